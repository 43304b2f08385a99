import re
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strive.cache.failures import FailureRow, commit_failures
from strive.cache.layout import open_cache
from strive.cache.questions import write_questions
from strive.errors import CacheError, ConfigError
from strive.records import Record, sample_records, write_records
from strive.seeding import derive_rng
from strive.train.augment import augment_frames, draw_augmentation
from strive.train.data import Prefetcher, TrainingData, shard
from strive.variants import DrawRule, draw_variants


def ids(records):
    return [record.question_id for record in records]


def test_an_epoch_holds_every_question_once(make_config):
    data = TrainingData(make_config())  # 6 questions, 2 a step: 3 steps an epoch
    epochs = [[i for s in range(3) for i in ids(data.questions_of(3 * e + s))] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [f"q{n}" for n in range(6)]
    assert epochs[0] != epochs[1]
    assert ids(TrainingData(make_config()).questions_of(4)) == ids(data.questions_of(4))
    other = TrainingData(make_config(seed=1))
    assert [ids(other.questions_of(s)) for s in range(3)] != [
        ids(data.questions_of(s)) for s in range(3)
    ]


def test_a_step_never_holds_a_question_twice(make_config):
    data = TrainingData(make_config(questions_per_step=4))
    assert all(len(set(ids(data.questions_of(step)))) == 4 for step in range(20))


def test_reading_a_question(make_config):
    data = TrainingData(make_config())
    [record] = [record for record in data.records if record.question_id == "q1"]
    question = data.read(record, step=5)
    scores_F = data.scores.get("q1").scores_F
    expected_MK = draw_variants(
        "importance",
        DrawRule(8),
        num_frames=24,
        num_variants=2,
        scores_F=scores_F,
        seed=0,
        step=5,
        question_id="q1",
    ).frame_index_MK
    assert (question.frame_index_MK == expected_MK).all()
    for video, indices_K in zip(question.videos, expected_MK, strict=True):
        assert (video.frames_KHWC == data.frames.read("clip1.mp4", indices_K)).all()
        assert (video.pts_seconds_K == indices_K * 0.25).all()
        assert (video.source_index_K == indices_K * 3).all()
    seen_M = ((expected_MK * 0.25 >= 1) & (expected_MK * 0.25 < 2)).any(axis=1)
    assert (question.evidence_seen_M == seen_M).all()
    assert 1 < question.effective_frames < 3
    assert data.read(data.records[0], step=5).evidence_seen_M is None


def test_spatial_augmentation_is_drawn_per_variant(make_config):
    plain, spatial = TrainingData(make_config()), TrainingData(make_config(spatial=True))
    before, after = (data.read(data.records[0], step=1) for data in (plain, spatial))
    assert (before.frame_index_MK == after.frame_index_MK).all()
    for variant in (0, 1):
        draw = draw_augmentation(derive_rng(0, "augment", 1, "q0", variant))
        expected = augment_frames(before.videos[variant].frames_KHWC, draw)
        assert (after.videos[variant].frames_KHWC == expected).all()


def test_variants_without_scores_ask_for_no_scorer(make_config):
    data = TrainingData(make_config(variants="none", num_variants=1, num_generations=8))
    assert data.scorer_name is None and np.isnan(data.read(data.records[0], 0).effective_frames)
    assert TrainingData(make_config()).scorer_name == "siglip2"


def test_questions_can_be_chosen(make_config, tmp_path):
    everything = TrainingData(make_config()).records
    write_records(tmp_path / "some.jsonl", everything[:3])
    chosen = TrainingData(make_config(data=(tmp_path / "some.jsonl",)))
    assert ids(chosen.records) == ["q0", "q1", "q2"]
    sampled = TrainingData(make_config(num_questions=3))
    assert len(sampled.records) == 3
    # The sample that `precompute --subset 3 --seed 0` takes of the same records.
    assert ids(sampled.records) == ids(sample_records(everything, 3, 0))


def test_a_sample_ignores_what_lies_outside_it(make_config, new_cache):
    """Precomputing the sample alone is enough: other questions may lack their scores."""
    everything = TrainingData(make_config()).records
    chosen = ids(sample_records(everything, 3, 0))
    others = tuple(name for name in ids(everything) if name not in chosen)
    data = TrainingData(make_config(cache=new_cache(unscored=others), num_questions=3))
    assert ids(data.records) == chosen and data.left_out.total() == 0


def test_logit_multiplies_by_the_scorers_own_scale(make_config):
    """P ~ exp(14 s / tau) within a segment: the scale that the scorer's settings hold, not 100."""
    data = TrainingData(make_config(score_transform="logit"))
    [record] = [record for record in data.records if record.question_id == "q1"]
    scores_F = data.scores.get("q1").scores_F.astype(np.float64)
    effective = []
    for segment_E in scores_F.reshape(8, 3):  # 24 frames, 8 segments
        p_E = np.exp(14.0 * segment_E / 0.4)
        p_E /= p_E.sum()
        effective.append(np.exp(-(p_E * np.log(p_E)).sum()))
    assert data.read(record, step=0).effective_frames == pytest.approx(np.mean(effective))


def test_clear_errors(make_config, tmp_path):
    with pytest.raises(CacheError, match="precompute"):
        TrainingData(make_config(cache=tmp_path / "none"))
    with pytest.raises(ConfigError, match="cache is not set"):
        TrainingData(make_config(cache=None))
    with pytest.raises(ConfigError, match="questions_per_step is 7 but there are 6"):
        TrainingData(make_config(questions_per_step=7))
    with pytest.raises(CacheError, match=r"no scorer 'llava_ov'.*precompute"):
        TrainingData(make_config(scorer="llava_ov"))


def test_unknown_questions_are_an_error(make_config, tmp_path, cache_root):
    text = '{"problem_id": 99, "problem": "?", "problem_type": "OCR", "solution": "x", "path": "a"}'
    (tmp_path / "more.jsonl").write_text(text)
    with pytest.raises(CacheError, match=r"1 of 1 questions are not in .*first: '99'.*precompute"):
        TrainingData(make_config(data=(tmp_path / "more.jsonl",)))


def test_missing_scores_name_the_command_or_are_counted(make_config, new_cache):
    cache = new_cache(unscored=("q2", "q4"))
    with pytest.raises(CacheError, match=r"2 of 6 .*first: 'q2'.*precompute --cache .* --scorer"):
        TrainingData(make_config(cache=cache))
    data = TrainingData(make_config(cache=cache, skip_unscored=True))
    assert ids(data.records) == ["q0", "q1", "q3", "q5"] and data.left_out["no current scores"] == 2
    assert data.describe()["num_questions_unscored"] == 2


def test_weights_refuse_transforms(make_config, new_cache):
    cache = new_cache(kind="weight")
    with pytest.raises(ConfigError, match=r"score_transform is 'zscore'.*allowed: none"):
        TrainingData(make_config(cache=cache, score_transform="zscore"))
    data = TrainingData(make_config(cache=cache))
    assert data.read(data.records[0], 0).frame_index_MK.shape == (2, 8)


def test_missing_frames_are_an_error_but_failed_videos_are_left_out(make_config, new_cache):
    cache = new_cache()
    layout = open_cache(cache)
    key = layout.frames_keys()[0]
    write_questions(layout, [Record("q9", "broken.mp4", "?", "OCR", (), "<answer>x</answer>")])
    options = {"cache": cache, "variants": "none", "num_variants": 1}
    with pytest.raises(CacheError, match=r"1 of 7 questions have no fr.*'broken.mp4'.*precompute"):
        TrainingData(make_config(**options))
    row = FailureRow("broken.mp4", "broken.mp4", "decode", "not_a_video", "no", 0.1, key)
    commit_failures(layout, [row], writer="test")
    data = TrainingData(make_config(**options))
    assert len(data.records) == 6 and data.left_out["no video"] == 1


def test_shard_shares_out_variants():
    # 4 questions x M=2 on 8 processes: one variant each.
    eight = [shard("abcd", 2, rank, 8) for rank in range(8)]
    assert eight == [[(question, range(i, i + 1))] for question in "abcd" for i in (0, 1)]
    # 3 x M=4 on 2: the second question is cut in the middle.
    assert shard("abc", 4, 0, 2) == [("a", range(4)), ("b", range(2))]
    assert shard("abc", 4, 1, 2) == [("b", range(2, 4)), ("c", range(4))]
    assert shard("abc", 4, 0, 1) == [(question, range(4)) for question in "abc"]


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 12))
def test_shares_are_equal_and_in_order(questions, variants, processes):
    pairs = [(q, i) for q in range(questions) for i in range(variants)]
    if len(pairs) % processes:
        with pytest.raises(ConfigError) as refused:
            shard(range(questions), variants, 0, processes)
        more = int(re.search(r"--set questions_per_step=(\d+)", str(refused.value)).group(1))
        fewer = int(re.search(r"--num_gpus (\d+)", str(refused.value)).group(1))
        # Both ways out are ways out, and the nearest ones.
        assert more > questions and more * variants % processes == 0
        assert all(q * variants % processes for q in range(questions, more))
        assert len(pairs) % fewer == 0 and all(len(pairs) % n for n in range(fewer + 1, processes))
        return
    shares = [shard(range(questions), variants, rank, processes) for rank in range(processes)]
    found = [[(q, i) for q, own in share for i in own] for share in shares]
    assert [pair for part in found for pair in part] == pairs
    assert {len(part) for part in found} == {len(pairs) // processes}


def test_what_does_not_divide_names_both_ways_out():
    with pytest.raises(
        ConfigError,
        match=r"questions_per_step=3 x num_variants=2 gives 6 variants a step, which 4 processes "
        r"cannot share evenly; add --set questions_per_step=4, or start 3 processes \(--num_gpus 3",
    ):
        shard(range(3), 2, 0, 4)


def test_a_part_of_the_variants_reads_as_in_the_whole(make_config):
    data = TrainingData(make_config(num_variants=3, spatial=True))
    record = data.questions_of(0)[0]
    whole, part = data.read(record, 0), data.read(record, 0, [2, 0])
    assert (whole.variants, part.variants) == ((0, 1, 2), (2, 0))
    assert (part.frame_index_MK == whole.frame_index_MK).all()
    for video, variant in zip(part.videos, part.variants, strict=True):
        assert (video.frames_KHWC == whole.videos[variant].frames_KHWC).all()


def test_prefetch_reads_the_next_step_while_this_one_computes():
    started = {step: threading.Event() for step in range(4)}

    def load(step):
        started[step].set()
        return step * 10

    with Prefetcher(load, num_steps=3) as prefetcher:
        assert prefetcher.get(0) == 0
        assert started[1].wait(5)
        assert prefetcher.get(1) == 10 and prefetcher.get(2) == 20
    assert not started[3].is_set()


def test_prefetch_passes_errors_on():
    def load(step):
        raise CacheError("damaged")

    with Prefetcher(load, num_steps=3) as prefetcher, pytest.raises(CacheError, match="damaged"):
        prefetcher.get(0)
