import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl

from strive.report.arms import group_arms
from strive.report.completions import choose_questions, compare_completions
from strive.report.dynamics import render_dynamics_page
from strive.report.runs import Run, read_run

from .conftest import FRAMES_KEY, HOSTILE


def row(step: int, question_id: str, variant: int, frames: list[int], text: str) -> dict[str, Any]:
    return {
        "step": step, "question_id": question_id, "variant": variant, "frame_index": frames,
        "evidence_seen": 21 in frames, "text": text, "reward": 2.0, "advantage": 0.5,
    }  # fmt: skip


def write_run(path: Path, cache: str, rows: list[dict[str, Any]], **config: Any) -> Run:
    path.mkdir(parents=True)
    about = {"config": {"cache": cache, **config}, "data": {"frames_key": FRAMES_KEY}}
    (path / "config.json").write_text(json.dumps(about))
    (path / "completions.parquet").mkdir()
    pl.DataFrame(rows).write_parquet(path / "completions.parquet" / "part-000001.parquet")
    return read_run(path)


def two_arms(root: Path, cache: str) -> list[Run]:
    """Two seeds of one arm and one of another; seed 0 of both is asked 1 and 3 at step 2."""
    asked = [row(1, "2", 0, [5], "early"), row(2, "3", 0, [0, 8], "b"), row(2, "1", 0, [0], "c")]
    texts = [row(2, "1", 0, [0, 21, 22, 40], text) for text in ("blue", HOSTILE, HOSTILE)]
    return [
        write_run(root / "a-0", cache, asked, variants="none", seed=0),
        write_run(
            root / "b-0", cache,
            [
                row(1, "3", 0, [0], "x"), *texts, row(2, "1", 1, [1, 1], "red"),
                row(3, "9", 0, [0], ""),
            ],
            variants="importance", seed=0,
        ),
        write_run(root / "b-1", cache, [row(1, "3", 0, [0], "x")], variants="importance", seed=1),
    ]  # fmt: skip


def test_questions_of_the_last_common_step_come_in_the_order_of_asking() -> None:
    first = {1: ["a"], 2: ["d", "c", "b"], 3: ["x"]}
    second = {1: ["a"], 2: ["b", "c", "e"]}
    # Step 3 is the first run's alone; at step 2 both were asked c and b.
    assert choose_questions([first, second], 3) == [("c", {0: 2, 1: 2}), ("b", {0: 2, 1: 2})]
    assert choose_questions([first, second], 1) == [("c", {0: 2, 1: 2})]
    assert choose_questions([first], 2) == [("x", {0: 3})]


def test_questions_without_a_common_step() -> None:
    # `a` was asked last at step 3 by the first and at step 1 by the second; `b` at 1 and 2.
    asked = [{1: ["b"], 3: ["a"]}, {1: ["a"], 2: ["b"]}]
    assert choose_questions(asked, 3) == [("a", {0: 3, 1: 1}), ("b", {0: 1, 1: 2})]
    assert choose_questions([{1: ["a"], 2: ["b"]}, {1: ["c"]}], 3) == [("b", {0: 2}), ("c", {1: 1})]
    assert choose_questions([], 3) == []


def test_arms_are_shown_beside_each_other_with_their_frames(tmp_path: Path, cache: Path) -> None:
    arms = group_arms(two_arms(tmp_path / "runs", str(cache)))
    found = compare_completions(arms)
    assert found.notes == ()
    (question,) = found.questions
    assert question.question_id == "1" and question.asked is not None
    assert question.asked["gold"] == "B"
    first, second = question.arms
    assert (first.name, first.seed, first.step, len(first.variants)) == ("a-0", 0, 2, 1)
    assert (second.name, second.seed, second.step, second.number) == ("b", 0, 2, 1)
    seen, missed = second.variants
    # Evidence is [5.25, 5.75) s: frames 21 and 22 of four a second.
    assert [(f["index"], f["evidence"]) for f in seen.frames] == [
        (0, False), (21, True), (22, True), (40, False),
    ]  # fmt: skip
    assert seen.frames[1]["seconds"] == 5.25 and seen.evidence_seen is True
    assert [(w.text, w.count) for w in seen.written] == [(HOSTILE, 2), ("blue", 1)]
    # A frame that was shown twice is shown twice.
    assert [f["index"] for f in missed.frames] == [1, 1] and missed.evidence_seen is False


def test_the_page_escapes_and_marks_evidence(tmp_path: Path, cache: Path) -> None:
    runs = two_arms(tmp_path / "runs", str(cache))
    page = render_dynamics_page(runs)
    assert HOSTILE not in page and "2 of 3: reward 2.00, advantage 0.50" in page
    assert page.count('class="cell evidence"') == 2 and page.count('class="cell"') == 1 + 2 + 2
    assert "What colour is the square?" in page and "1 other text<" in page
    assert "--prob:" not in page.partition("<body>")[2] and "http" not in page


def test_without_its_cache_a_run_shows_its_texts_and_a_line(tmp_path: Path, cache: Path) -> None:
    runs = two_arms(tmp_path / "runs", str(cache))
    shutil.rmtree(cache)
    found = compare_completions(group_arms(runs))
    assert found.notes == (f"a-0, b: frames are not shown: the cache {cache} is gone",)
    (question,) = found.questions
    assert question.asked is None
    assert [arm.variants[0].frames for arm in question.arms] == [(), ()]
    page = render_dynamics_page(runs)
    assert "is gone" in page and "<pre>red</pre>" in page and "<img" not in page


def test_a_cache_that_was_made_anew_is_a_line(tmp_path: Path, cache: Path) -> None:
    # Question 3 is about a video of 9 frames.
    run = write_run(tmp_path / "run", str(cache), [row(1, "3", 0, [0, 9], "x")])
    (note,) = compare_completions(group_arms([run])).notes
    assert "cached anew" in note and "clips/b.mp4" in note
    strange = write_run(tmp_path / "other", str(cache), [row(1, "77", 0, [0], "x")])
    (note,) = compare_completions(group_arms([strange])).notes
    assert "question '77' is not in the cache" in note


def test_a_relative_cache_is_found_from_the_run_upwards(tmp_path: Path, cache: Path) -> None:
    # The workspace was moved after the training that was called beside it.
    run = write_run(cache.parent / "ws" / "runs" / "x", cache.name, [row(1, "1", 0, [3], "x")])
    found = compare_completions(group_arms([run]))
    assert found.notes == () and len(found.questions[0].arms[0].variants[0].frames) == 1


def test_steps_that_differ_are_said(tmp_path: Path, cache: Path) -> None:
    runs = [
        write_run(
            tmp_path / str(step), str(cache), [row(step, "1", 0, [0], "x")], spatial=step == 2
        )
        for step in (1, 2)
    ]
    found = compare_completions(group_arms(runs))
    assert [arm.step for arm in found.questions[0].arms] == [1, 2]
    assert "steps differ" in found.notes[0]


def test_arms_that_share_no_question_say_so(tmp_path: Path, cache: Path) -> None:
    runs = [
        write_run(tmp_path / name, str(cache), [row(1, name, 0, [0], "x")], spatial=name == "1")
        for name in ("1", "3")
    ]
    found = compare_completions(group_arms(runs))
    assert [(q.question_id, len(q.arms)) for q in found.questions] == [("1", 1), ("3", 1)]
    assert "No question was asked of all arms" in found.notes[0]
    assert "without the augmentation of their views" in found.notes[1]
