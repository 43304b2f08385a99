from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cache.conftest import add_frames, add_scorer
from strive.cache.frames import read_video_states
from strive.cache.layout import CacheLayout
from strive.cache.questions import write_questions
from strive.cache.scores import (
    QuestionScores,
    ScoreReader,
    commit_scores,
    find_scorer,
    iter_embeddings,
    list_scorers,
    query_digest,
    read_embedding_states,
)
from strive.errors import CacheError
from strive.records import Record


def test_round_trip_is_exact(layout: CacheLayout) -> None:
    frames_key = add_frames(layout, "raw", "a", "b")
    reader = ScoreReader(layout, add_scorer(layout, "siglip2", frames_key, "1@a", "2@a", "3@b"))
    assert (reader.name, reader.kind, reader.allowed_transforms) == (
        "siglip2",
        "similarity",
        ("none",),
    )
    assert reader.question_ids == ["1@a", "2@a", "3@b"]
    scores = reader.get("2@a")
    assert scores is not None
    np.testing.assert_array_equal(scores.scores_F, np.arange(5, dtype=np.float32) / 7 + 1)
    assert scores.scores_F.dtype == np.float32
    assert (scores.video_id, scores.num_text_tokens, scores.text_truncated) == ("a", 5, True)
    assert reader.get("9@z") is None and "9@z" not in reader


def test_scores_of_frames_that_were_replaced_are_not_shown(layout: CacheLayout) -> None:
    frames_key = add_frames(layout, "raw", "a", "b")
    key = add_scorer(layout, "siglip2", frames_key, "1@a", "2@b")
    add_frames(layout, "raw", "a", num_frames=3)
    assert ScoreReader(layout, key).question_ids == ["2@b"]


def test_find_scorer(layout: CacheLayout) -> None:
    frames_key = add_frames(layout, "raw", "a")
    with pytest.raises(CacheError, match=r"holds no scores.*precompute.*--scorer siglip2"):
        find_scorer(layout, None)
    key = add_scorer(layout, "siglip2", frames_key, "1@a")
    assert find_scorer(layout, None).key == key
    assert find_scorer(layout, None).num_questions == 1
    other = add_scorer(layout, "llava_ov", frames_key, "1@a")
    with pytest.raises(CacheError, match="several scorers") as caught:
        find_scorer(layout, None)
    assert "--scorer" in str(caught.value) and "llava_ov" in str(caught.value)
    assert find_scorer(layout, "llava_ov").key == other
    assert find_scorer(layout, key).name == "siglip2"
    with pytest.raises(CacheError, match=r"no scorer 'siglip' \(did you mean 'siglip2'"):
        find_scorer(layout, "siglip")
    assert [info.name for info in list_scorers(layout)] == ["llava_ov", "siglip2"]


def test_two_keys_of_one_name_ask_for_the_key(layout: CacheLayout) -> None:
    raw, jpeg = add_frames(layout, "raw", "a"), add_frames(layout, "jpeg", "a")
    keys = [add_scorer(layout, "siglip2", frames_key, "1@a") for frames_key in (raw, jpeg)]
    with pytest.raises(CacheError, match="by its key"):
        find_scorer(layout, "siglip2")
    assert find_scorer(layout, keys[1]).frames_key == jpeg


def test_embeddings_round_trip(layout: CacheLayout) -> None:
    frames_key = add_frames(layout, "raw", "a", "b", "c")
    key = add_scorer(layout, "siglip2", frames_key, "1@a")
    states = read_video_states(layout, frames_key)
    assert read_embedding_states(layout, key) == {v: s.checksum for v, s in states.items()}
    wanted = {"a": states["a"].checksum, "c": "another checksum"}
    (video,) = iter_embeddings(layout, key, wanted)
    assert video.video_id == "a" and video.embeddings_FD.dtype == np.float16
    np.testing.assert_array_equal(video.embeddings_FD, np.eye(5, 3))


def write_row(layout: CacheLayout, key: str, record: Record, digest: str) -> None:
    checksum = read_video_states(layout, find_scorer(layout, key).frames_key)["a"].checksum
    scores_F = np.zeros(5, np.float32)
    row = QuestionScores(record.question_id, "a", scores_F, None, None, digest, checksum)
    commit_scores(layout, key, [row], writer="test")


ASKED = Record("q", "a", "What is red?", "OCR", ("A. x", "B. y"), "<answer>z</answer>")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"solution": "<answer>other</answer>", "problem_type": "free-form"}, None),
        ({"options": ("A. y", "B. x")}, None),  # this scorer's query is the question alone
        ({"evidence_spans_seconds": ((0.0, 1.0),)}, None),
        ({"problem": "What is blue?"}, "text"),
        ({"video_id": "b"}, "frames"),
    ],
)
def test_scores_are_current_for_what_they_were_made_from(
    layout: CacheLayout, change: dict[str, Any], why: str | None
) -> None:
    key = add_scorer(layout, "siglip2", add_frames(layout, "raw", "a", "b"))
    write_row(layout, key, ASKED, query_digest(ASKED))
    reader = ScoreReader(layout, key, [replace(ASKED, **change)])
    assert reader.stale == ({} if why is None else {"q": why})
    assert (reader.get("q") is None) == ("q" not in reader) == (why is not None)


def test_the_caches_own_questions_decide_where_none_are_given(layout: CacheLayout) -> None:
    key = add_scorer(layout, "siglip2", add_frames(layout, "raw", "a"))
    write_row(layout, key, ASKED, query_digest(ASKED))
    write_questions(layout, [ASKED])
    assert ScoreReader(layout, key).question_ids == ["q"]
    write_questions(layout, [replace(ASKED, problem="What else?")])
    assert ScoreReader(layout, key).stale == {"q": "text"}


def test_a_digest_covers_what_the_scorer_reads() -> None:
    moved = replace(ASKED, evidence_spans_seconds=((0.0, 1.0),))
    assert query_digest(ASKED) == query_digest(moved)
    assert query_digest(ASKED, needs_spans=True) != query_digest(moved, needs_spans=True)
    shuffled = replace(ASKED, options=ASKED.options[::-1])
    template = "question+options"
    assert query_digest(ASKED) == query_digest(shuffled)
    assert query_digest(ASKED, template) != query_digest(shuffled, template)
