"""What failed once: rows a question, and what the next run does about it by itself."""

import os
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from clip_world import World, question
from video import coded_clips as clips

from strive.cache.failures import SCHEMA, FailureRow, commit_failures, read_failures
from strive.cache.frames import FrameReader
from strive.cache.layout import default_frames_key, open_cache
from strive.cache.scores import read_score_states
from strive.cache.verify import verify_cache
from strive.configs.schema import PrecomputeConfig
from strive.errors import TooManyFailuresError
from strive.files import locate_video, resolve_video
from strive.pipeline.run import precompute
from strive.records import Record, write_records

PICKY = "pipeline.toy_scorer:make_picky"


def empty(number: int, video_id: str, text: str = "") -> Record:
    return Record(str(number), video_id, text, "free-form", (), "<answer>x</answer>")


def failed(cache: Path) -> dict[str | None, str]:
    return {row.question_id: row.error for row in read_failures(open_cache(cache))}


def scored(cache: Path) -> set[str]:
    layout = open_cache(cache)
    return {name for key in layout.scorer_keys() for name in read_score_states(layout, key)}


@pytest.mark.parametrize("scorer", ["random", PICKY, "pipeline.toy_scorer:make_weights"])
def test_questions_without_a_text_are_rows_of_their_own_for_every_scorer(
    world: World, tmp_path: Path, scorer: str
) -> None:
    texts = ("", " \n", "\u200b\u2060", "What?")
    write_records(world.data, [empty(n, "clip3.mp4", text) for n, text in enumerate(texts)])
    options = world.options(tmp_path / "cache", scorers=(scorer,), max_failure_fraction=0.0)
    summary = precompute(options)
    assert failed(options.cache) == {"0": "no_text", "1": "no_text", "2": "no_text"}
    assert scored(options.cache) == {"3"}
    assert (summary.num_failed, summary.num_ok, summary.num_scored) == (0, 1, 1)
    assert summary.failed_questions_by_error == {"no_text": 3}
    again = precompute(options)
    assert again.nothing_to_do and again.failed_questions_by_error == {"no_text": 3}
    assert verify_cache(options.cache) == []


def test_mended_and_new_questions_are_scored_whatever_became_of_the_others(
    world: World, tmp_path: Path
) -> None:
    """One question has no text, one the scorer cannot embed; both stay beside what is mended."""
    cache = tmp_path / "cache"
    options = world.options(cache, scorers=(PICKY,))
    rows = [question(0, "clip0.mp4"), empty(1, "clip0.mp4"), question(2, "clip0.mp4", "nan nan")]
    rows += [empty(3, "clip0.mp4"), question(4, "clip0.mp4", "nan too")]
    write_records(world.data, rows)
    summary = precompute(options)
    assert failed(cache) == {"1": "no_text", "2": "nonfinite", "3": "no_text", "4": "nonfinite"}
    assert (summary.num_failed, scored(cache)) == (0, {"0"})
    rows[1], rows[2] = question(1, "clip0.mp4", "Mended"), question(2, "clip0.mp4", "Mended too")
    write_records(world.data, [*rows, question(5, "clip0.mp4", "New")])
    summary = precompute(options)
    assert (summary.num_decoded, summary.num_scored) == (0, 3)
    assert failed(cache) == {"3": "no_text", "4": "nonfinite"}
    assert scored(cache) == {"0", "1", "2", "5"}
    assert precompute(options).nothing_to_do
    assert precompute(world.options(cache, scorers=(PICKY,), retry_failed=True)).num_scored == 0


def test_too_many_questions_without_scores_end_with_an_error(world: World, tmp_path: Path) -> None:
    options = world.options(tmp_path / "cache", scorers=(PICKY,), max_failure_fraction=0.2)
    rows = [question(n, "clip0.mp4", f"{'nan' if n < 2 else 'word'} {n}") for n in range(8)]
    write_records(world.data, rows)
    with pytest.raises(TooManyFailuresError, match=r"2 of 8 questions failed \(2 nonfinite\)"):
        precompute(options)
    write_records(world.data, [*rows, question(8, "clip0.mp4"), question(9, "clip0.mp4")])
    assert precompute(options).num_scored == 2  # 2 of 10 may


def test_a_question_of_new_frames_is_tried_again(world: World, tmp_path: Path) -> None:
    """The video changes and another scorer has it decoded: this one sees frames it has not met."""
    cache = tmp_path / "cache"
    short = "pipeline.toy_scorer:make_nan"  # fails on pools of fewer than ten frames
    precompute(world.options(cache, scorers=(short,)))
    assert failed(cache) == {"6": "nonfinite", "7": "nonfinite"}
    clips.write_clip(world.root / "clip3.mp4", 33)
    precompute(world.options(cache))
    summary = precompute(world.options(cache, scorers=(short,)))
    assert summary.num_scored == 2 and failed(cache) == {}


def test_a_failed_file_is_tried_again_when_it_has_changed(world: World, tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", world.root / "clip2.mp4"
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))
    os.utime(path, ns=(5, 5))
    options = world.options(cache)
    assert precompute(options).num_failed == 1
    (row,) = read_failures(open_cache(cache))
    assert (row.size_bytes, row.modified_ns) == (len(good), 5) and row.content_digest
    assert precompute(options).nothing_to_do
    os.utime(path, ns=(6, 6))  # copied: the same bytes
    assert precompute(options).nothing_to_do
    path.write_bytes(good)  # as many bytes, others
    healed = precompute(options)
    assert (healed.num_decoded, healed.num_failed) == (1, 0)
    assert read_failures(open_cache(cache)) == []


@pytest.mark.parametrize(
    "year", [1920, *(pytest.param(year, marks=pytest.mark.long) for year in (2299, 2440))]
)
def test_any_time_stamp_of_any_century(world: World, tmp_path: Path, year: int) -> None:
    cache = tmp_path / "cache"
    write_records(world.data, [question(0, "clip3.mp4"), question(1, "bad.mp4")])
    (world.root / "bad.mp4").write_text("no video")
    seconds = (year - 1970) * 31_556_952
    for name in ("clip3.mp4", "bad.mp4"):
        os.utime(world.root / name, (seconds, seconds))
    summary = precompute(world.options(cache))
    assert (summary.num_decoded, summary.failed_by_error) == (1, {"not_a_video": 1})
    assert precompute(world.options(cache)).nothing_to_do
    # Another time and other bytes of the same size: seen as a change.
    data = (world.root / "clip3.mp4").read_bytes()
    (world.root / "clip3.mp4").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(world.root / "clip3.mp4", (seconds + 1, seconds + 1))
    assert precompute(world.options(cache)).num_decoded == 1


@pytest.mark.parametrize("years", [1, pytest.param(8000, marks=pytest.mark.long)])
def test_parts_of_a_clock_that_ran_ahead_do_not_win(
    world: World, tmp_path: Path, years: int
) -> None:
    cache = tmp_path / "cache"
    write_records(world.data, [question(0, "clip0.mp4"), question(1, "bad.mp4")])
    (world.root / "bad.mp4").write_text("no video")
    precompute(world.options(cache))
    ahead = years * 31_556_952 * 10**9
    for path in cache.rglob("*.parquet"):
        match = re.match(r"(videos|part)-(\d{19})-(.*)", path.name)
        if match:
            number = int(match[2]) + ahead
            path.rename(path.with_name(f"{match[1]}-{number:019d}-{match[3]}"))
    assert failed(cache) == {None: "not_a_video"}
    clips.write_clip(world.root / "clip0.mp4", 44)
    shutil.copy(world.root / "clip1.mp4", world.root / "bad.mp4")
    write_records(world.data, [question(0, "clip0.mp4", "Mended"), question(1, "bad.mp4")])
    summary = precompute(world.options(cache))
    assert (summary.num_decoded, summary.num_scored, summary.num_failed) == (2, 2, 0)
    layout = open_cache(cache)
    assert read_failures(layout) == []
    info = FrameReader(layout, default_frames_key(layout)).info("clip0.mp4")
    assert info.source_num_frames == 44
    assert precompute(world.options(cache)).nothing_to_do


def test_failures_of_an_older_cache_are_read_and_tried_once(world: World, tmp_path: Path) -> None:
    """Older parts lack the later columns; a row of a scorer stood for all questions of a video."""
    cache = tmp_path / "cache"
    options = world.options(cache, scorers=(PICKY,))
    write_records(world.data, [question(0, "clip0.mp4"), question(1, "clip0.mp4", "nan")])
    precompute(options)
    layout = open_cache(cache)
    (key,) = layout.scorer_keys()
    for part in [*layout.failures.iterdir(), *layout.scores(key).glob("part-*")]:
        part.unlink()
    old = FailureRow("clip0.mp4", "clip0.mp4", "score", "nonfinite", "m", 0.0, key)
    commit_failures(layout, [old], writer="w")
    (part,) = layout.failures.iterdir()
    pq.write_table(pq.read_table(part).select(SCHEMA.names[:9]), part)
    assert read_failures(layout) == [old]
    summary = precompute(options)
    assert summary.num_scored == 1 and failed(cache) == {"1": "nonfinite"}
    assert precompute(options).nothing_to_do


def test_a_name_in_the_other_form_is_found_if_there_is_one(world: World, tmp_path: Path) -> None:
    composed, decomposed = "\u00e9t\u00e9/\u00fcber.mp4", "e\u0301te\u0301/u\u0308ber.mp4"
    (world.root / "e\u0301te\u0301").mkdir()
    shutil.copy(world.root / "clip0.mp4", world.root / decomposed)
    write_records(world.data, [question(0, composed)])
    options: PrecomputeConfig = world.options(tmp_path / "cache")
    assert precompute(options).num_decoded == 1
    assert locate_video(world.root, composed) == world.root / decomposed
    clips.write_clip(world.root / decomposed, 44)
    assert precompute(options).num_decoded == 1  # a change is seen too
    # Nothing else is ever taken for it, and two that would do are none.
    assert locate_video(world.root, "\u00e9t\u00e9/uber\u0301.mp4").name == "uber\u0301.mp4"
    (world.root / "o\u0302\u0301.mp4").touch()
    (world.root / "\u00f4\u0301.mp4").touch()
    assert locate_video(world.root, "\u1ed1.mp4") == world.root / "\u1ed1.mp4"
    # A link of that name that leads out is refused as any other.
    (world.root / "a\u0308.mp4").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="outside the video root"):
        resolve_video(world.root, "\u00e4.mp4")
