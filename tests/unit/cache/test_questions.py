from dataclasses import replace

from cache.conftest import add_frames, add_scorer
from strive.cache.failures import FailureRow, commit_failures, read_failures
from strive.cache.layout import CacheLayout
from strive.cache.questions import read_questions, write_questions
from strive.records import Record

RECORDS = [
    Record("1", "a.mp4", "What?\n2 + 2", "multiple choice", ("A. 4", "B. 5"), "<answer>A</answer>"),
    Record("x-2", "ü/b.mp4", "说", "free-form", (), "<answer>t</answer>", "src", ((0.5, 1.0),)),
    Record("3", "a.mp4", "How many?", "numerical", (), "<answer>3</answer>", "src", ()),
]


def test_round_trip(layout: CacheLayout) -> None:
    assert write_questions(layout, RECORDS) == 3
    assert read_questions(layout) == RECORDS


def test_only_what_is_new_is_written(layout: CacheLayout) -> None:
    write_questions(layout, RECORDS[:2])
    assert write_questions(layout, RECORDS) == 1
    assert write_questions(layout, RECORDS) == 0
    assert len(list(layout.questions.iterdir())) == 2


def test_a_changed_question_replaces_the_older(layout: CacheLayout) -> None:
    write_questions(layout, RECORDS)
    changed = replace(RECORDS[0], problem="Why?")
    assert write_questions(layout, [changed]) == 1
    assert read_questions(layout) == [changed, *RECORDS[1:]]


def row(video_id: str, key: str, stage: str = "decode", error: str = "damaged") -> FailureRow:
    return FailureRow(video_id, video_id, stage, error, "text", 0.5, key)


def test_a_later_success_hides_a_failure(layout: CacheLayout) -> None:
    frames_key = add_frames(layout, "raw", "changed")
    names = ("changed", "good", "bad")
    failures = [row(name, frames_key) for name in names] + [row("good", "other-key")]
    commit_failures(layout, failures, writer="w")
    assert read_failures(layout) == failures
    add_frames(layout, "raw", "good")
    assert read_failures(layout) == [failures[0], *failures[2:]]
    add_frames(layout, "raw", "bad", "changed")
    assert read_failures(layout) == failures[3:]


def test_the_last_failure_of_a_video_is_shown(layout: CacheLayout) -> None:
    for error in ("timeout", "damaged"):
        commit_failures(layout, [row("bad", "key", error=error)], writer="w")
    assert [failure.error for failure in read_failures(layout)] == ["damaged"]


def test_failures_of_a_scorer_are_hidden_by_its_scores(layout: CacheLayout) -> None:
    frames_key = add_frames(layout, "raw", "a", "b")
    key = add_scorer(layout, "siglip2", frames_key)
    commit_failures(layout, [row("a", key, "score"), row("z", key, "score")], writer="w")
    assert [failure.video_id for failure in read_failures(layout)] == ["a", "z"]
    assert add_scorer(layout, "siglip2", frames_key, "1@a") == key
    assert [failure.video_id for failure in read_failures(layout)] == ["z"]
