import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clip_world import TOY, World, question
from video import coded_clips as clips

from strive.cache.failures import read_failures
from strive.cache.frames import FrameReader
from strive.cache.layout import default_frames_key, open_cache
from strive.cache.questions import read_questions
from strive.cache.scores import ScoreReader, find_scorer
from strive.cache.verify import verify_cache
from strive.errors import (
    CacheError,
    ConfigError,
    DiskError,
    Interrupted,
    MissingInputError,
    ModelError,
    RecordsError,
    ScorerError,
    TooManyFailuresError,
    UnknownNameError,
)
from strive.lab.models import lab_model_path
from strive.pipeline.queues import BatchThreads
from strive.pipeline.run import precompute
from strive.pipeline.work import make_frames_key, prepare_rule
from strive.records import sample_records, shard_of, write_records


def scores_of(cache: Path, scorer: str | None = None) -> dict[str, bytes]:
    layout = open_cache(cache)
    reader = ScoreReader(layout, find_scorer(layout, scorer).key)
    return {
        question_id: scores.scores_F.tobytes()
        for question_id in sorted(reader.question_ids)
        if (scores := reader.get(question_id)) is not None
    }


def decodes(cache: Path) -> int:
    """How many pixel rows were ever committed."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in cache.glob("frames/*/videos-*"))


def test_from_records_to_scores(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    summary = precompute(world.options(cache))
    assert (summary.num_videos, summary.num_ok, summary.num_failed) == (4, 4, 0)
    assert (summary.num_decoded, summary.num_scored, summary.num_frames) == (4, 8, 3 * 12 + 5)
    layout = open_cache(cache)
    assert len(read_questions(layout)) == 8
    frames = FrameReader(layout, default_frames_key(layout))
    for number, length in enumerate((30, 40, 50, 5)):
        info = frames.info(f"clip{number}.mp4")
        pool = frames.read(f"clip{number}.mp4", range(info.num_frames))
        assert clips.numbers_of(pool) == info.source_index_F.tolist()
        assert info.source_num_frames == length
    assert verify_cache(cache) == []


@pytest.mark.parametrize("scorer", [TOY, "siglip2"])
def test_no_thread_is_left_behind(world: World, tmp_path: Path, scorer: str) -> None:
    # One that lets go of its tensors while the interpreter goes down aborts the process.
    models = {"siglip2": str(lab_model_path("siglip2"))} if scorer == "siglip2" else {}
    before = set(threading.enumerate())
    precompute(world.options(tmp_path / "cache", scorers=(scorer,), scorer_models=models))
    assert [thread.name for thread in set(threading.enumerate()) - before] == []


def test_batch_threads_end_before_stop_returns() -> None:
    threads = BatchThreads(2)
    slow = threads.submit(lambda: time.sleep(0.3) or np.zeros(1))
    threads.stop()
    assert slow.done()
    assert not [thread for thread in threading.enumerate() if thread.name == "strive-embed"]


def test_scores_are_cosines_of_the_stored_frames(world: World, tmp_path: Path) -> None:
    from pipeline.toy_scorer import Toy

    cache = tmp_path / "cache"
    precompute(world.options(cache))
    layout = open_cache(cache)
    reader = ScoreReader(layout, find_scorer(layout, None).key)
    frames = FrameReader(layout, reader.frames_key)
    for record in read_questions(layout):
        scores = reader.get(record.question_id)
        assert scores is not None
        pool = frames.read(record.video_id, range(len(scores.scores_F)))
        query = Toy().embed_questions([record.problem])[0]
        for f, frame in enumerate(pool):  # one frame at a time, as Sec. 3.3 words it
            v = Toy().embed_frames(frame[None])[0]
            cosine = v @ query / np.linalg.norm(v) / np.linalg.norm(query)
            assert scores.scores_F[f] == pytest.approx(cosine, abs=5e-4)


def test_the_same_call_again_does_nothing(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    precompute(world.options(cache))
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    summary = precompute(world.options(cache))
    assert summary.nothing_to_do and summary.num_ok == 4 and summary.num_decoded == 0
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


@pytest.mark.long
def test_a_complete_cache_needs_no_torch_and_no_videos(world: World, tmp_path: Path) -> None:
    from strive.lab.models import lab_model_path

    weights = lab_model_path("siglip2")
    script = f"""
import sys
from pathlib import Path
from strive.configs.schema import PrecomputeConfig
from strive.pipeline.run import precompute
summary = precompute(PrecomputeConfig(
    data=(Path({str(world.data)!r}),), video_root=Path({str(world.root)!r}), frames=12,
    cache=Path({str(tmp_path / "cache")!r}), scorer_models={{"siglip2": {str(weights)!r}}},
))
print(summary.nothing_to_do, "torch" in sys.modules)
"""
    for number, expected in enumerate(("False True", "True False")):
        if number == 1:
            for path in world.root.iterdir():
                path.unlink()
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == expected


def test_new_questions_on_known_videos_decode_and_embed_nothing(
    world: World, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    precompute(world.options(cache))
    more = tmp_path / "more.jsonl"
    write_records(more, [question(100, "clip0.mp4", "Something new?"), question(101, "clip2.mp4")])
    shutil.rmtree(world.root)
    world.root.mkdir()
    summary = precompute(world.options(cache, data=(more,)))
    assert (summary.num_decoded, summary.num_embedded, summary.num_scored) == (0, 0, 2)
    fresh = precompute(world.options(cache, data=(world.data, more)))
    assert fresh.nothing_to_do


def test_a_changed_question_is_scored_anew(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    precompute(world.options(cache))
    before = scores_of(cache)
    write_records(world.data, [question(0, "clip0.mp4", "Entirely different words, more of them")])
    summary = precompute(world.options(cache))
    assert summary.num_scored == 1
    after = scores_of(cache)
    assert {name for name in after if after[name] != before[name]} == {"0"}


def test_a_changed_video_is_decoded_anew(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    precompute(world.options(cache))
    clips.write_clip(world.root / "clip1.mp4", 60)
    summary = precompute(world.options(cache))
    assert (summary.num_decoded, summary.num_scored) == (1, 2)
    layout = open_cache(cache)
    info = FrameReader(layout, default_frames_key(layout)).info("clip1.mp4")
    assert info.source_num_frames == 60


def test_a_second_scorer_reads_the_frames_again_and_decodes_nothing(
    world: World, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    precompute(world.options(cache))
    weights = "pipeline.toy_scorer:make_weights"
    summary = precompute(world.options(cache, scorers=(TOY, weights)))
    assert (summary.num_decoded, summary.num_embedded, summary.num_scored) == (0, 4, 8)
    layout = open_cache(cache)
    reader = ScoreReader(layout, find_scorer(layout, weights).key)
    assert (reader.kind, reader.allowed_transforms) == ("weight", ("none",))
    with pytest.raises(CacheError, match="several scorers"):
        find_scorer(layout, None)


def test_shards_together_equal_one_run(world: World, tmp_path: Path) -> None:
    precompute(world.options(tmp_path / "one"))
    # Two caches-in-one by two writers at once, as a job array would.
    calls = [
        threading.Thread(
            target=precompute, args=(world.options(tmp_path / "many", shard=(i, 3), workers=1),)
        )
        for i in range(3)
        if any(shard_of(f"clip{n}.mp4", 3) == i for n in range(4))
    ]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert scores_of(tmp_path / "many") == scores_of(tmp_path / "one")
    assert decodes(tmp_path / "many") == 4


def test_bad_videos_are_rows_and_the_others_are_cached(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (world.root / "text.mp4").write_text("not a video")
    (world.root / "list.mp4").write_text("#EXTM3U\nhttp://example.org/x.ts\n")
    (world.root / "link.mp4").symlink_to("/etc/hostname")
    names = ["text.mp4", "list.mp4", "link.mp4", "gone.mp4", "../up.mp4", "clip0.mp4", "clip3.mp4"]
    write_records(world.data, [question(n, name) for n, name in enumerate(names)])
    with pytest.raises(TooManyFailuresError, match=r"5 of 7 videos failed.*--max-failure-fraction"):
        precompute(world.options(cache, max_failure_fraction=0.5))
    layout = open_cache(cache)
    failures = {failure.video_id: failure for failure in read_failures(layout)}
    assert {name: failure.error for name, failure in failures.items()} == {
        "text.mp4": "not_a_video",
        "list.mp4": "playlist",
        "link.mp4": "outside_root",
        "gone.mp4": "missing",
        "../up.mp4": "outside_root",
    }
    assert all(failure.stage == "decode" for failure in failures.values())
    assert sorted(scores_of(cache)) == ["5", "6"]
    assert verify_cache(cache) == []


def test_failures_are_remembered_until_the_file_changes(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    good = (world.root / "clip1.mp4").read_bytes()
    (world.root / "clip1.mp4").write_text("not a video")
    (world.root / "clip2.mp4").unlink()
    assert precompute(world.options(cache)).failed_by_error == {"not_a_video": 1, "missing": 1}
    (world.root / "clip2.mp4").write_bytes(good)
    # A missing file costs nothing to look for again; a broken one is tried when it has changed.
    again = precompute(world.options(cache))
    assert (again.failed_by_error, again.num_decoded, again.num_ok) == ({"not_a_video": 1}, 1, 3)
    assert precompute(world.options(cache)).nothing_to_do
    assert not precompute(world.options(cache, retry_failed=True)).nothing_to_do
    (world.root / "clip1.mp4").write_bytes(good)
    retried = precompute(world.options(cache))
    assert (retried.failed_by_error, retried.num_decoded, retried.num_ok) == ({}, 1, 4)
    assert read_failures(open_cache(cache)) == []
    assert precompute(world.options(cache)).nothing_to_do


def test_a_scorer_that_fails_on_a_video_leaves_a_row(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    options = world.options(cache, scorers=("pipeline.toy_scorer:make_nan",))
    summary = precompute(options)
    assert summary.failed_by_error == {"nonfinite": 1}
    assert len(scores_of(cache)) == 6
    failures = read_failures(open_cache(cache))
    assert {(row.video_id, row.stage) for row in failures} == {("clip3.mp4", "score")}
    assert sorted(str(row.question_id) for row in failures) == ["6", "7"]
    assert precompute(options).failed_by_error == {"nonfinite": 1}
    assert precompute(options).nothing_to_do


@pytest.mark.parametrize(
    ("maker", "fault", "error", "text"),
    [
        ("unsound", "made", ScorerError, r"failed while it was made \(RuntimeError: no begin\)"),
        ("unsound", "identity raises", ScorerError, r"failed in identity\(\) \(KeyError: 'x'\)"),
        ("unsound", "identity none", ScorerError, "gives None, not a dict"),
        ("unsound", "identity object", ScorerError, r"failed in identity\(\) \(TypeError"),
        ("unsound", "frames text", ScorerError, "failed on a video's frames"),
        ("unsound", "questions raise", ScorerError, "failed in embed_questions.*user's own"),
        ("unsound", "questions few", ModelError, r"shape \(1, 12\); \[\d, 12\] is expected"),
        ("unsound", "questions narrow", ModelError, r"shape \(\d, 5\); \[\d, 12\] is expected"),
        ("unsound", "lengths few", ModelError, r"gives 0 text_lengths of \d texts"),
        ("unsound_batches", "batch raises", ScorerError, "failed in embed_prepared"),
        ("unsound_batches", "embedded few", ModelError, r"batch of 8 .* of shape \(7, 12\)"),
        ("unsound_batches", "prepared few", ModelError, "prepares 12 frames as 11 rows"),
    ],
)
def test_an_unsound_scorer_is_one_clear_line(
    world: World, tmp_path: Path, maker: str, fault: str, error: type[Exception], text: str
) -> None:
    cache, name = tmp_path / "cache", f"pipeline.faulty_scorer:make_{maker}"
    with pytest.raises(error, match=text) as raised:
        precompute(world.options(cache, scorers=(name,), scorer_models={name: fault}))
    assert "\n" not in str(raised.value)
    if cache.exists():
        assert verify_cache(cache) == []


def test_a_video_fails_once_whatever_fails_on_it(world: World, tmp_path: Path) -> None:
    """Two scorers, of which one fails on each of a video's questions: still one video of four."""
    cache = tmp_path / "cache"
    names = ("pipeline.toy_scorer:make_nan", "pipeline.toy_scorer:make_nan_questions")
    options = world.options(cache, scorers=names)
    summary = precompute(options)
    assert (summary.num_failed, summary.num_ok) == (4, 0)
    assert summary.failed_by_error == {"nonfinite": 4}
    assert len(read_failures(open_cache(cache))) == 2 + 8  # a row for each question and scorer
    assert precompute(options).num_failed == 4  # remembered


def test_overwrite_does_everything_again(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    precompute(world.options(cache))
    before = scores_of(cache)
    summary = precompute(world.options(cache, overwrite=True))
    assert (summary.num_decoded, summary.num_scored) == (4, 8)
    assert scores_of(cache) == before


def test_filter_subset_and_limit(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    summary = precompute(world.options(cache, filters=(("data_source", "even"),), subset=3, seed=5))
    assert summary.num_questions == summary.num_scored == 3
    assert summary.subset_file == tmp_path / "cache-subset-3-seed-5.json"
    assert sorted(scores_of(cache)) == sorted(
        r.question_id for r in read_questions(open_cache(cache))
    )
    limited = precompute(world.options(tmp_path / "other", limit=1))
    assert (limited.num_videos, limited.num_scored) == (1, 2)


def test_dry_run_writes_nothing(world: World, tmp_path: Path) -> None:
    summary = precompute(world.options(tmp_path / "cache", dry_run=True))
    assert summary.estimate is not None
    assert summary.estimate.num_videos_to_decode == 4
    assert summary.estimate.num_questions_to_score == 8
    assert not (tmp_path / "cache").exists()
    real = precompute(world.options(tmp_path / "cache"))
    assert 0.5 < summary.estimate.bytes_on_disk / real.bytes_written < 2


@pytest.mark.long
def test_a_dry_run_tries_cached_videos_where_none_is_to_be_decoded(
    world: World, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    precompute(world.options(cache))
    slow = "pipeline.faulty_scorer:make_slow"
    precompute(world.options(cache, scorers=(slow,), limit=1))
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    estimate = precompute(world.options(cache, scorers=(slow,), dry_run=True)).estimate
    assert estimate is not None
    assert (estimate.num_videos_to_decode, estimate.num_videos_to_embed) == (0, 3)
    assert 3 <= estimate.seconds < 4  # a second for each video, and nothing for the scorer itself
    assert estimate.bytes_on_disk == (12 + 12 + 5) * 12 * 2
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_a_dry_run_counts_videos_that_fail(world: World, tmp_path: Path) -> None:
    nan = "pipeline.toy_scorer:make_nan_weights"
    estimate = precompute(world.options(tmp_path / "c", scorers=(nan,), dry_run=True)).estimate
    assert estimate is not None
    assert (estimate.num_videos_tried, estimate.num_tried_failed) == (4, 1)
    broken = "pipeline.faulty_scorer:make_raising"
    with pytest.raises(ScorerError, match=r"on video 'clip3.mp4' \(ValueError: a fault"):
        precompute(world.options(tmp_path / "c", scorers=(broken,), dry_run=True))


@pytest.mark.long
def test_other_settings_make_other_keys(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    keys = {precompute(world.options(cache)).frames_key}
    for changes in (
        {"frames": 8},
        {"max_pixels": 2000},
        {"frame_codec": "raw"},
        {"decoder": "pyav"},
    ):
        keys.add(precompute(world.options(cache, limit=1, **changes)).frames_key)
    assert len(keys) == 5 == len(open_cache(cache).frames_keys())


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"scorers": ("siglip",)}, UnknownNameError, r"did you mean 'siglip2'"),
        ({"scorers": ("nowhere:make",)}, MissingInputError, "no module 'nowhere'"),
        ({"scorers": ("pipeline.toy_scorer:absent",)}, ConfigError, "has no 'absent'"),
        ({"scorers": ("pipeline.toy_scorer:make_nothing",)}, ModelError, "has none of score"),
        ({"scorers": ("pipeline.toy_scorer:make_wrong",)}, ModelError, r"shape \(3, 4\)"),
        ({"decoder": "opencv"}, ConfigError, r"\(--decoder\) is 'opencv': .*'torchcodec'"),
        ({"frame_codec": "jpg"}, ConfigError, r"--frame-codec.*'jpg'.*mean 'jpeg'"),
        ({"frames": 0}, ConfigError, "--frames"),
        ({"shard": (3, 3)}, ConfigError, r"--shard\) is \(3, 3\): write i/n with 0 <= i < n"),
        ({"subset": 99}, ConfigError, "--subset 99 of 8"),
        ({"filters": (("problem", "x"),)}, ConfigError, "--filter"),
        ({"filters": (("data_source", "x"),)}, RecordsError, "no video record"),
        ({"video_root": Path("/nowhere")}, MissingInputError, "--video-root"),
        ({"data": (Path("/nowhere.json"),)}, MissingInputError, "--data"),
        ({"scorer_models": {"other": "x"}}, ConfigError, "--scorer-model names 'other'"),
        ({"max_failure_fraction": 2.0}, ConfigError, "--max-failure-fraction"),
        (
            {"decode_timeout_seconds": float("nan")},
            ConfigError,
            r"--decode-timeout\) is nan: .*finite",
        ),
        (
            {"decode_timeout_seconds": float("inf")},
            ConfigError,
            r"--decode-timeout\) is inf: .*finite",
        ),
        ({"scorers": ("siglip2",), "device": "gpu"}, ConfigError, "--device gpu cannot be used"),
        ({"scorers": ("siglip2",), "device": "meta9"}, ConfigError, "--device meta9 cannot"),
        ({"query": "all"}, ConfigError, r"\(--query\) is 'all': .*'question\+options'"),
        ({"long_text": "cut"}, ConfigError, r"--long-text.*'truncate' or 'chunk-mean'"),
        ({"engine": "spark"}, ConfigError, r"--engine.*'local' or 'ray'"),
        ({"frame_plan": "random"}, ConfigError, "--frame-plan.*'uniform'"),
        ({"max_missing": "5"}, ConfigError, "--max-missing 5; write seconds"),
        ({"data": ()}, ConfigError, "give one with --data"),
        ({"scorers": ()}, ConfigError, "give one with --scorer"),
    ],
)
def test_wrong_calls_say_what_is_wrong(
    world: World, tmp_path: Path, changes: dict, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        precompute(world.options(tmp_path / "cache", **changes))


def test_an_unreachable_cache_folder_is_a_disk_error(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="cannot write"):
        precompute(world.options(tmp_path / "file" / "cache"))


def test_ctrl_c_keeps_what_is_finished(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.toy_scorer import Toy

    cache = tmp_path / "cache"
    seen: list[int] = []
    real = Toy.embed_frames

    def interrupt_in_the_third(self: Toy, frames_FHWC: np.ndarray) -> np.ndarray:
        seen.append(len(frames_FHWC))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(self, frames_FHWC)

    monkeypatch.setattr(Toy, "embed_frames", interrupt_in_the_third)
    started = time.monotonic()
    summaries = []
    with pytest.raises(Interrupted, match="same command"):
        precompute(world.options(cache), on_summary=summaries.append)
    assert time.monotonic() - started < 5
    # The third video, and perhaps the fourth, was decoded by then; its frames are kept.
    assert summaries[0].interrupted and summaries[0].num_ok in (3, 4)
    monkeypatch.setattr(Toy, "embed_frames", real)
    rest = precompute(world.options(cache))
    assert (rest.num_decoded, rest.num_embedded) == (4 - summaries[0].num_ok, 2)
    precompute(world.options(tmp_path / "plain"))
    assert scores_of(cache) == scores_of(tmp_path / "plain")


def test_nothing_is_printed_but_progress(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (world.root / "clip0.mp4").write_bytes((world.root / "clip0.mp4").read_bytes()[:900])
    precompute(world.options(tmp_path / "cache"))
    out, err = capfd.readouterr()
    assert out == ""
    assert all(line.startswith("precompute: ") for line in err.splitlines())


def decode_workers() -> set[str]:
    """Decode workers that are children of this process, by process id."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {
        pid
        for pid in children
        if b"strive.video.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    }


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_no_process_is_left(world: World, tmp_path: Path) -> None:
    # An earlier test may hold the worker that evaluation keeps for its next video.
    before = decode_workers()
    precompute(world.options(tmp_path / "cache"))
    assert decode_workers() <= before


def test_a_file_with_another_time_stamp_is_not_decoded_again(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    precompute(world.options(cache))
    os.utime(world.root / "clip0.mp4", (1, 1))
    assert precompute(world.options(cache)).nothing_to_do
    # The same size and other bytes: a real change.
    data = bytearray((world.root / "clip1.mp4").read_bytes())
    (world.root / "clip1.mp4").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert precompute(world.options(cache)).num_decoded == 1


@pytest.mark.long
def test_a_changed_file_that_fails_is_tried_once(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    precompute(world.options(cache))
    good = (world.root / "clip1.mp4").read_bytes()
    (world.root / "clip1.mp4").write_text("not a video")
    assert precompute(world.options(cache)).failed_by_error == {"not_a_video": 1}
    parts = len(list(cache.glob("failures.parquet/*")))
    again = precompute(world.options(cache))
    assert again.failed_by_error == {"not_a_video": 1} and again.nothing_to_do
    assert len(list(cache.glob("failures.parquet/*"))) == parts
    assert precompute(world.options(cache, retry_failed=True)).num_failed == 1
    (world.root / "clip1.mp4").write_text("neither is this one")
    assert not precompute(world.options(cache)).nothing_to_do
    (world.root / "clip1.mp4").write_bytes(good)  # as it was cached: its frames serve again
    healed = precompute(world.options(cache))
    assert healed.nothing_to_do and healed.failed_by_error == {}


def test_a_query_with_options_has_a_key_of_its_own(world: World, tmp_path: Path) -> None:
    from pipeline.toy_scorer import Toy

    cache = tmp_path / "cache"
    plain = precompute(world.options(cache))
    summary = precompute(world.options(cache, query="question+options"))
    assert summary.scorer_keys != plain.scorer_keys
    assert (summary.num_decoded, summary.num_scored) == (0, 8)
    layout = open_cache(cache)
    reader = ScoreReader(layout, summary.scorer_keys[TOY])
    record = read_questions(layout)[0]
    query = "\n".join([record.problem, "A. this", "B. that"])
    question_D = Toy().embed_questions([query])[0]
    pool = FrameReader(layout, reader.frames_key).read(record.video_id, range(12))
    frames_FD = Toy().embed_frames(pool)
    cosine_F = frames_FD @ question_D / np.linalg.norm(frames_FD, axis=1)
    scores = reader.get(record.question_id)
    assert scores is not None
    expected_F = cosine_F / np.linalg.norm(question_D)
    np.testing.assert_allclose(scores.scores_F, expected_F, atol=5e-4)


def test_scorers_without_frames_read_none_and_count_what_they_cannot_score(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from strive.cache.frames import FrameCodec

    decoded: list[int] = []
    real = FrameCodec.decode
    monkeypatch.setattr(
        FrameCodec,
        "decode",
        lambda *args: decoded.append(1) or real(*args),  # type: ignore[func-returns-value]
    )
    spans = (None, ((0.0, 1.0),), None, ((0.5, 1.0),))
    records = [question(n, f"clip{n}.mp4") for n in range(4)]
    write_records(
        world.data,
        [replace(r, evidence_spans_seconds=s) for r, s in zip(records, spans, strict=True)],
    )
    options = world.options(tmp_path / "cache", scorers=("random", "oracle"))
    summary = precompute(options)
    assert (summary.num_scored, summary.num_unscorable, summary.num_failed) == (4 + 2, 2, 0)
    assert decoded == []
    again = precompute(options)
    assert again.nothing_to_do and again.num_unscorable == 2


def test_a_training_run_is_prepared_as_it_samples(world: World, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.jsonl"
    write_records(held_out, [question(100, "clip3.mp4"), question(101, "clip2.mp4")])
    records = [question(n, f"clip{n // 2}.mp4") for n in range(8)]
    run = tmp_path / "run.yaml"
    run.write_text("num_questions: 3\nseed: 7\n")
    summary = precompute(
        world.options(
            tmp_path / "cache", for_config=str(run), subset=3, seed=7, held_out=(held_out,)
        )
    )
    expected = {record.question_id for record in sample_records(records, 3, 7)} | {"100", "101"}
    assert set(scores_of(tmp_path / "cache")) == expected
    assert summary.subset_file == tmp_path / "cache-for-run-seed-7.json"
    content = json.loads(summary.subset_file.read_text())
    assert set(content["question_ids"]) == expected and content["for_config"] == str(run)
    # A sample larger than the records is all of them, as in training.
    whole = precompute(world.options(tmp_path / "all", for_config=str(run), subset=100))
    assert whole.num_questions == 8


def test_frame_plans_have_their_own_budget(world: World, tmp_path: Path) -> None:
    from strive.video.frame_plan import DEFAULT_MAX_PIXELS

    for plan, pixels in DEFAULT_MAX_PIXELS.items():
        assert prepare_rule(world.options(tmp_path, frame_plan=plan)).max_pixels == pixels
    assert prepare_rule(world.options(tmp_path, frame_plan="fps", max_pixels=9)).max_pixels == 9
    assert make_frames_key(world.options(tmp_path)).startswith("uniform12-100352px-jpeg-")


def test_time_is_explained(world: World, tmp_path: Path) -> None:
    summary = precompute(world.options(tmp_path / "cache"))
    assert set(summary.time_shares) == {"decode", "prepare", "embed", "write", "waiting"}
    assert all(0 <= share <= 1 for share in summary.time_shares.values())
    assert summary.bottleneck.startswith("decoding") and "--workers" in summary.bottleneck
