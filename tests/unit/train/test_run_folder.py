import json

import polars as pl
import pytest

from strive.errors import CheckpointError, DiskError
from strive.train.run_folder import RunFolder, require_same_config


def row(step, **changes):
    return {
        "step": step,
        "question_id": "q",
        "variant": 0,
        "generation": 0,
        "frame_index": [0, 1],
        "evidence_seen": None,
        "text": "é",
        "reward": 1.0,
        "reward_accuracy": float("nan"),
        "advantage": 0.0,
        "length": 3,
        "truncated": False,
    } | changes


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_config({"config": {"seed": 0}})
    return folder


def make_checkpoint(folder, step):
    folder.checkpoint(step).mkdir(parents=True)
    (folder.checkpoint(step) / "state.json").write_text(json.dumps({"step": step}))


def steps_of(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_metrics_are_json_lines_without_nan(folder):
    folder.append_metrics({"step": 1, "a": 0.5, "b": float("nan"), "c": 3})
    assert folder.metrics_file.read_text() == '{"step": 1, "a": 0.5, "b": null, "c": 3}\n'
    assert folder.last_metrics() == {"step": 1, "a": 0.5, "b": None, "c": 3}


def test_completions_are_one_table(folder):
    folder.add_completions([row(1), row(1, generation=1)])
    folder.flush_completions()
    folder.add_completions([row(2)])
    folder.flush_completions()
    folder.flush_completions()
    table = pl.read_parquet(folder.completions)
    assert table["step"].to_list() == [1, 1, 2] and table["text"][0] == "é"
    assert table.schema["frame_index"] == pl.List(pl.Int64)
    assert table.schema["evidence_seen"] == pl.Boolean


def test_cut_back_leaves_what_the_checkpoint_saw(folder):
    for step in (1, 2, 3, 4):
        folder.append_metrics({"step": step})
        folder.append_held_out({"step": step})
        folder.add_completions([row(step)])
        if step == 1:
            folder.flush_completions()
    folder.flush_completions()
    with folder.metrics_file.open("a") as out:
        out.write('{"step": 5, "half')
    make_checkpoint(folder, 2)
    make_checkpoint(folder, 4)
    (folder.checkpoints / "step-000005.tmp").mkdir()
    folder.final.mkdir()
    folder.cut_back(2)
    assert steps_of(folder.metrics_file) == steps_of(folder.held_out_file) == [1, 2]
    assert pl.read_parquet(folder.completions)["step"].to_list() == [1, 2]
    assert folder.checkpoint_steps() == [2]
    assert not folder.final.exists()
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000002"]


def test_cut_back_to_nothing(folder):
    folder.append_metrics({"step": 1})
    folder.add_completions([row(1)])
    folder.flush_completions()
    folder.cut_back(0)
    assert folder.metrics_file.read_text() == "" and not list(folder.completions.iterdir())
    RunFolder(folder.root / "new").cut_back(0)


def test_an_unfinished_checkpoint_is_none(folder):
    (folder.checkpoints / "step-000003.tmp").mkdir(parents=True)
    folder.checkpoint(4).mkdir()
    assert folder.checkpoint_steps() == []


def test_prune_keeps_the_newest(folder):
    for step in (5, 100, 20):
        make_checkpoint(folder, step)
    folder.prune_checkpoints(2)
    assert folder.checkpoint_steps() == [20, 100]


def test_another_configuration_is_refused_with_the_keys(folder):
    with pytest.raises(CheckpointError, match=r"beta: the run has 0.04, this call has 0.1\)"):
        require_same_config({"beta": 0.04, "seed": 1}, {"beta": 0.1, "seed": 1}, folder.root)
    require_same_config({"beta": 0.04}, {"beta": 0.04}, folder.root)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot write"):
        RunFolder(tmp_path / "file" / "run").write_config({})
