"""What published benchmarks share: letters, answers, Video-R1's copy and when it is read."""

import json
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strive.errors import MissingInputError, RecordsError, UnknownNameError
from strive.evaluate.benchmarks import read_benchmark
from strive.evaluate.benchmarks.mmvu import MMVU
from strive.evaluate.benchmarks.published import (
    RowError,
    letter_of_answer,
    letter_of_index,
    letter_options,
    unlettered,
)
from strive.evaluate.benchmarks.videomme import VideoMME

ROW = {
    "problem_id": 7,
    "problem": "What is cut first?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. Apples.", "B. Candles."],
    "solution": "<answer>B</answer>",
    "path": "./VideoMME/fFjv93ACGo8.mp4",
}


def copy(root: Path, *changes: dict[str, Any], name: str = "eval_videomme.json") -> Path:
    rows = [{**ROW, "problem_id": number, **change} for number, change in enumerate(changes)]
    (root / name).write_text(json.dumps(rows))
    return root


def test_letters_go_past_j_and_are_given_once() -> None:
    options = letter_options([f"option {n}" for n in range(14)])
    assert options[10:] == ("K. option 10", "L. option 11", "M. option 12", "N. option 13")
    assert letter_options(options) == options
    assert letter_options(["A) yes", "B) no"]) == ("A) yes", "B) no")
    # Only the first looks lettered: it is an option's text.
    assert letter_options(["A. Smith", "Jones"]) == ("A. A. Smith", "B. Jones")
    assert letter_of_answer(" N ", options) == "N"
    assert letter_of_index("13", options) == letter_of_index(13, options) == "N"


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=26))
def test_lettering_loses_no_text(texts: list[str]) -> None:
    options = letter_options(texts)
    assert letter_options(options) == options
    assert [option.lstrip()[0] for option in options] == list(ascii_uppercase[: len(texts)])
    if options != tuple(texts):
        assert [unlettered(option) for option in options] == texts


def test_an_options_text_is_what_follows_its_letter() -> None:
    assert unlettered("A. a cat") == "a cat"
    assert unlettered("C: 3. of May") == "3. of May"
    assert unlettered("no letter. B. x") == "no letter. B. x"


@pytest.mark.parametrize("options", [None, [], ["one"], "AB", ["a", None], ["x"] * 27])
def test_options_that_are_none(options: object) -> None:
    with pytest.raises(RowError, match="option"):
        letter_options(options)


@pytest.mark.parametrize("answer", [None, "", "C", "b", "AB", "B. no", 1])
def test_answers_that_are_no_letter(answer: object) -> None:
    with pytest.raises(RowError, match="is no option; they are A to B"):
        letter_of_answer(answer, ("A. yes", "B. no"))


@pytest.mark.parametrize("answer", [None, "", "2", 2, -1, "-1", 1.0, True, "B"])
def test_answers_that_are_no_index(answer: object) -> None:
    with pytest.raises(RowError, match="is no option; they are 0 to 1"):
        letter_of_index(answer, ("A. yes", "B. no"))


def test_video_r1s_copy_is_read_where_nothing_else_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "data" / "fFjv93ACGo8.mp4"
    video.parent.mkdir()
    video.write_bytes(b"x")
    reading = read_benchmark("videomme", VideoMME(), copy(tmp_path, {}))
    [item] = reading.items
    assert (item.question_id, item.video_id) == ("0", "data/fFjv93ACGo8.mp4")
    assert (item.problem, item.solution) == ("What is cut first?", "B")
    assert item.options == ("A. Apples.", "B. Candles.")
    assert reading.files == (tmp_path / "eval_videomme.json",)
    assert "Video-R1's copy of the questions is asked" in capsys.readouterr().err


def test_video_r1s_copy_is_reported_by_what_its_path_says(tmp_path: Path) -> None:
    copy(
        tmp_path,
        {"path": "./MMVU/Art/0.mp4"},
        {"path": "./MMVU/0.mp4"},
        name="eval_mmvu.json",
    )
    known, unknown = MMVU().read(tmp_path, "video_r1").items
    assert known.dimensions == {"discipline": "Humanities_and_Social_Science", "subject": "Art"}
    assert unknown.dimensions["discipline"] == "(none)"


BAD = {
    "null type": ({"problem_type": None}, "'problem_type' is None; known: multiple choice"),
    "unknown type": ({"problem_type": "essay"}, "'problem_type' is 'essay'; known"),
    "no options": ({"options": []}, "0 options; 2 to 26 are wanted"),
    "null options": ({"options": None}, "options are None; a list of texts"),
    "another answer": ({"solution": "<answer>E</answer>"}, "answer 'E' is no option"),
    "null answer": ({"solution": None}, "'solution' is None; a text is wanted"),
    "no text": ({"problem": " "}, "'problem' is ' '; a text is wanted"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_of_the_copy_is_a_failure(tmp_path: Path, case: str) -> None:
    change, message = BAD[case]
    reading = VideoMME().read(copy(tmp_path, {}, change), "video_r1")
    assert len(reading.items) == 1
    [failure] = reading.failures
    assert (failure.question_id, failure.error, failure.score) == ("1", "bad_row", 0.0)
    assert f"eval_videomme.json, row 2: {message}" in failure.message
    assert failure.problem_type == (change.get("problem_type", "multiple choice") or "")


def test_numbers_of_the_copy_keep_their_type(tmp_path: Path) -> None:
    change = {"problem_type": "regression", "options": [], "solution": "<answer>1.3</answer>"}
    [item] = VideoMME().read(copy(tmp_path, change), "video_r1").items
    assert (item.problem_type, item.options, item.solution) == ("regression", (), "1.3")


def test_what_stops_the_reading(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"videomme/test-\*\.parquet"):
        VideoMME().read(tmp_path, "test")
    with pytest.raises(MissingInputError, match="Video-R1/Video-R1-eval"):
        VideoMME().read(tmp_path, "video_r1")
    with pytest.raises(UnknownNameError, match="split of videomme 'val'"):
        VideoMME().read(tmp_path, "val")
    with pytest.raises(RecordsError, match="'problem_id' is None; a text or a whole number"):
        VideoMME().read(copy(tmp_path, {"problem_id": None}), "video_r1")
