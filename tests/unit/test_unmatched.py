from typing import Any

import pytest

from strive.answers import grade_completion
from strive.records import Record
from strive.unmatched import find_unmatched, why_unmatched

COLOURS = ("A. red", "B. green", "C. blue")


@pytest.mark.parametrize(
    ("problem_type", "options", "solution", "strict", "tolerant"),
    [
        ("multiple choice", COLOURS, "<answer>B</answer>", None, None),
        ("multiple choice", COLOURS, "B", None, None),
        ("multiple choice", COLOURS, "<answer>B. green</answer>", "none of the options'", None),
        ("multiple choice", COLOURS, "<answer>b</answer>", "none of the options'", None),
        ("multiple choice", COLOURS, "(B)", "none of the options'", None),
        ("multiple choice", COLOURS, "<answer>Z</answer>", "'Z' is none", "'Z' is none"),
        ("multiple choice", COLOURS, "<answer></answer>", "empty", "empty"),
        ("multiple choice", COLOURS, "  ", "empty", "empty"),
        ("multiple choice", ("red", "green"), "A", "carry no letters", "carry no letters"),
        ("multiple choice", ("red", "green"), "green", None, None),
        ("multiple choice", ("A man walks", "A dog"), "A dog", None, None),
        ("multiple choice", ("(a) red", "(b) green"), "b", None, None),
        ("multiple choice", ("A", "B"), "B", None, None),
        ("multiple choice", ("A - red", "B - green"), "B", None, None),
        ("multiple choice", ("A red", "B green"), "B", None, None),
        ("multiple choice", ("1. red", "2. green"), "2", None, None),
        ("multiple choice", ("3.5 m", "4.5 m"), "4.5 m", None, None),
        ("multiple choice", ("A man", "I see none"), "A man", None, None),
        ("multiple choice", ("A. red", "B. green", "none"), "B", None, None),
        ("multiple choice", ("A. red", "B. green", "none"), "none", None, None),
        ("multiple choice", ("X-ray", "T-shirt"), "T-shirt", None, None),
        ("numerical", (), "<answer>3 rings</answer>", "no bare number", None),
        ("numerical", (), "<answer>3</answer>", None, None),
        ("numerical", (), "1,000.5", None, None),
        ("numerical", (), "a few", "no bare number", "no bare number"),
        ("regression", (), "2.5", None, None),
        ("regression", (), "0", "word for word", None),  # the source's formula gives 0 to a 0
        ("OCR", (), "EXIT", None, None),
        ("free-form", (), "a red ring", None, None),
        ("free-form", (), "?!", "word for word", "word for word"),
        ("grounding", (), "<answer>10 to 20</answer>", None, None),
        ("grounding", (), "10-20", "no interval in seconds", "no interval in seconds"),
        ("grounding", (), "15 to 15", "word for word", "word for word"),
        ("grounded multiple choice", COLOURS, "<answer>B</answer>", None, None),
        ("grounded multiple choice", COLOURS, "B. green", None, None),
        ("grounded multiple choice", COLOURS, "Z", "none of the options'", "none of the options'"),
        ("grounded multiple choice", ("red", "green"), "A", "no letters", "no letters"),
    ],
)
def test_solutions_that_no_answer_can_earn(
    problem_type: Any, options: tuple[str, ...], solution: str, strict: Any, tolerant: Any
) -> None:
    record = Record("q", "v", "?", problem_type, options, solution)
    for rules, wanted in (("video_r1", strict), ("tolerant", tolerant)):
        found = why_unmatched(record, rules)  # type: ignore[arg-type]
        assert (found is None) == (wanted is None), (rules, found)
        assert wanted is None or wanted in str(found)


def test_the_line_about_unmatched_solutions() -> None:
    solutions = ["B", "B. green", "(C)", "Z", "c"]
    records = [
        Record(f"q{n}", "v", "?", "multiple choice", COLOURS, text)
        for n, text in enumerate(solutions)
    ]
    found = find_unmatched(records, "video_r1")
    assert found is not None
    assert (found.num_unmatched, found.num_records, found.num_tolerant) == (4, 5, 3)
    assert found.text().startswith(
        "4 of 5 solutions can never be earned under grading video_r1: question q1: 'B. "
        "green' is none of the options' letters (A, B, C); question q2: '(C)'"
    )
    assert "q4" not in found.text() and "--set grading=tolerant matches 3 of them" in found.text()
    assert find_unmatched(records[:1], "video_r1") is None


@pytest.mark.parametrize(
    ("options", "gold"),
    [
        (("A、红", "B、绿"), "A"),
        (("（A）红", "（B）绿"), "A"),
        (("Option A: red", "Option B: green"), "B"),
        (("**A** red", "**B** green"), "A"),
        (("<b>A</b> red", "<b>B</b> green"), "B"),
        (("A\tred", "B\tgreen"), "A"),
        (("red (A)", "green (B)"), "B"),
        (("А. красный", "Б. зелёный"), "Б"),
        (("i. red", "ii. green"), "ii"),
        (("1 - red", "2 - green"), "2"),
        (("Yes.", "No."), "No"),
        (("A. red", "A. green", "B. blue"), "B"),
    ],
)
def test_marks_of_options_are_seen_however_they_are_written(options, gold):
    record = Record("q", "v.mp4", "?", "multiple choice", options, gold)
    assert find_unmatched([record], "video_r1") is None


def test_letters_of_options_without_letters_are_doubtful():
    record = Record("q", "v.mp4", "?", "multiple choice", ("red", "green"), "B")
    unmatched = find_unmatched([record], "video_r1")
    assert unmatched is not None and unmatched.num_unmatched == 1 and not unmatched.is_hopeless
    outside = Record("q", "v.mp4", "?", "multiple choice", ("A. red", "B. green"), "Z")
    unmatched = find_unmatched([outside], "video_r1")
    assert unmatched is not None and unmatched.is_hopeless


def test_a_letter_that_no_option_carries_may_yet_be_earned() -> None:
    # A policy that counts the options may answer B, and is then right: the line must not deny it.
    record = Record("q", "a.mp4", "Which?", "multiple choice", ("red", "blue"), "B", "test", None)
    assert grade_completion(record, "<answer>B</answer>", rules="video_r1") == 1
    unmatched = find_unmatched([record], "video_r1")
    assert unmatched is not None
    assert unmatched.text().startswith(
        "1 of 1 solutions can never be earned under grading video_r1 (1 save by a letter that no "
        "option carries): question q: 'B' is the text of no option"
    )
