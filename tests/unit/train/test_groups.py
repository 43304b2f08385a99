"""Rows for other trainers against what our own trainer reads."""

import subprocess
import sys

import numpy as np
import pytest
from torch.utils.data import DataLoader

from strive.answers import build_question
from strive.errors import CacheError, ConfigError
from strive.groups import GroupRows, VariantReader
from strive.train.augment import augment_variant
from strive.train.data import TrainingData

SHAPE = {"num_variants": 2, "num_generations": 3, "steps": 4}


def test_rows_stand_in_groups(make_config):
    rows = GroupRows(VariantReader(make_config(**SHAPE)))
    # 4 steps x 2 questions x 2 variants x 3 generations.
    assert (rows.group_size, rows.rows_per_step, len(rows)) == (6, 12, 48)
    table = [
        (row.step, row.record.question_id, row.variant, row.generation, row.group_id)
        for row in rows
    ]
    data = TrainingData(make_config(**SHAPE))
    assert table == [
        (step, record.question_id, variant, generation, f"{step}:{record.question_id}")
        for step in range(4)
        for record in data.questions_of(step)
        for variant in range(2)
        for generation in range(3)
    ]
    # A group is what `view(-1, M * G)` of a contiguous trainer makes of the rows.
    group_ids = np.array([row[4] for row in table]).reshape(-1, rows.group_size)
    assert (group_ids == group_ids[:, :1]).all()
    assert len(set(group_ids[:, 0])) == len(group_ids)


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("variants", ["importance", "stochastic", "deterministic"])
def test_a_row_is_what_our_trainer_reads(make_config, variants, spatial):
    config = make_config(**SHAPE, variants=variants, spatial=spatial, seed=5)
    reader = VariantReader(config, augment=augment_variant if spatial else None)
    data = TrainingData(config)
    for row in GroupRows(reader):
        ours = data.read(row.record, row.step)
        assert (row.frame_index_K == ours.frame_index_MK[row.variant]).all()
        video = ours.videos[row.variant]
        assert (row.video.frames_KHWC == video.frames_KHWC).all()
        assert (row.video.pts_seconds_K == video.pts_seconds_K).all()
        assert (row.video.source_index_K == video.source_index_K).all()
        assert row.prompt == build_question(row.record, "short")


def test_any_row_alone_equals_the_row_in_its_order(make_config):
    config = make_config(**SHAPE)
    rows = GroupRows(VariantReader(config))
    in_order = list(rows)
    for index in (47, 0, 13, 14, 12):
        alone = GroupRows(VariantReader(config))[index]
        assert alone.group_id == in_order[index].group_id == rows[index].group_id
        assert (alone.video.frames_KHWC == in_order[index].video.frames_KHWC).all()
    with pytest.raises(IndexError, match="row 48 of 48"):
        rows[48]
    with pytest.raises(IndexError, match="row -1"):
        rows[-1]


def test_frames_are_read_once_for_a_group(make_config):
    class CountingReader(VariantReader):
        num_reads = 0

        def read(self, record, step):
            self.num_reads += 1
            return super().read(record, step)

    reader = CountingReader(make_config(**SHAPE))
    assert len(list(GroupRows(reader))) == 48 and reader.num_reads == 4 * 2


def test_a_torch_loader_takes_the_rows_in_workers_too(make_config):
    rows = GroupRows(VariantReader(make_config(**SHAPE)))
    expected = [(row.group_id, row.variant, row.generation) for row in rows]
    loader = DataLoader(rows, batch_size=rows.group_size, collate_fn=list, num_workers=2)
    batches = list(loader)
    assert all(len({row.group_id for row in batch}) == 1 for batch in batches)
    assert [
        (row.group_id, row.variant, row.generation) for batch in batches for row in batch
    ] == expected


def test_clear_errors(make_config, tmp_path):
    with pytest.raises(ConfigError, match=r"spatial is true.*augment_variant.*spatial=false"):
        VariantReader(make_config(spatial=True))
    with pytest.raises(CacheError, match="precompute"):
        VariantReader(make_config(cache=tmp_path / "none"))


def test_no_torch_is_loaded():
    code = "import sys, strive.groups; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
