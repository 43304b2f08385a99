"""The classes of difference from lmms-eval, told on verdicts that its functions gave."""

import json
import re
from collections import Counter

import pytest

from bench import grading
from bench.grading_answers import BENCHMARKS, CAPTIONS, NUMBERS, WAYS, YES_NO, Case, generate
from bench.harness import RESULTS
from strive.evaluate.grading import grade_choice, grade_video_r1
from strive.evaluate.items import Grade

OPTIONS = ("A. Gray", "B. A man walks", "C. Red car", "D. Vitamin D")


def difference(
    output: str, solution: str, score: float, read: str, *, benchmark: str = "videomme",
    options: tuple[str, ...] = OPTIONS, task: str = "",
) -> str:  # fmt: skip
    """The class of a difference between our grade and a verdict of lmms-eval."""
    case = Case(benchmark, task, "?", options, solution, output, "", {})
    verdict = {"score": score, "read": read, "judge": False}
    grade = grading.grade_ours(case)
    assert grading.differs(grade, verdict)
    return grading.class_of(case, grade, verdict)


@pytest.mark.parametrize(
    ("output", "solution", "score", "read", "wanted"),
    [
        ("<think>maybe A. <answer>C</answer>", "C", 0, "A", "tags and thoughts"),
        ("A or B", "A", 1, "A", "two at once"),
        ("Not A", "A", 1, "A", "denied or taken back"),
        ("A man walks.", "B", 0, "A", "option's text"),
        ("A woman sits. So C", "C", 0, "A", "article or pronoun"),
        ("Both of them.", "B", 1, "B", "letter of a word"),
        ("\uff22", "B", 0, "", "other scripts"),
        ("b", "B", 0, "", "small letter"),
        ("The answer is C. Then D follows", "C", 0, "D", "other than the announced"),
        # No reason that is known: such a verdict must not be counted as explained.
        ("B", "B", 0, "", "unexplained"),
    ],
)
def test_letters(output: str, solution: str, score: float, read: str, wanted: str) -> None:
    assert difference(output, solution, score, read) == wanted


@pytest.mark.parametrize(
    ("output", "solution", "score", "read", "wanted"),
    [
        ("3 to 5", "3", 1, "3.0", "two at once"),
        ("2 + 1 = 3", "3", 0.3, "2.0", "other than the announced"),
        ("the one on the left is 4 m", "4", 0, "1.0", "one that counts nothing"),
        ("1,000", "1000", 0, "1.0", "number otherwise written"),
        (".5", "5", 1, "5.0", "number otherwise written"),
        ("B52", "52", 1, "52.0", "digits of no number"),
        ("3", "3", 0, "None", "unexplained"),
    ],
)
def test_numbers(output: str, solution: str, score: float, read: str, wanted: str) -> None:
    assert difference(output, solution, score, read, benchmark="vsibench", options=()) == wanted


def test_benchmarks_with_classes_of_their_own() -> None:
    assert difference("B, not A", "A", 1, "B", benchmark="mmvu") == "gold anywhere"
    assert difference("(B)", "B", 0, "(B)", benchmark="vsibench") == "first word alone"
    asked = {"benchmark": "tempcompass", "options": (), "task": "yes_no"}
    assert difference("Nothing", "no", 1, "Nothing", **asked) == "word with yes or no in it"  # type: ignore[arg-type]
    opened = {"benchmark": "videommmu", "options": ()}
    for output, solution, score, read, wanted in (
        ("It is a dog", "A", 1, "['a dog']", "solution otherwise written"),
        ("five", "5", 0, "['five']", "number otherwise written"),
        ("Ginis", "Gini", 1, "['ginis']", "solution inside a word"),
        ("", "5", 0, grading.LEFT_OUT, "empty answer left out"),
        ("5", "5", 0, "[5.0]", "unexplained"),
    ):
        assert difference(output, solution, score, read, **opened) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_answers_are_the_same_each_time_and_of_every_form(benchmark: str) -> None:
    cases = generate(benchmark, 500, 0)
    assert cases == generate(benchmark, 500, 0) != generate(benchmark, 500, 1)
    forms = Counter(case.form for case in cases)
    assert set(WAYS) <= set(forms)
    if benchmark == "vsibench":
        assert set(NUMBERS) <= set(forms)
    if benchmark == "tempcompass":
        assert {*YES_NO, *CAPTIONS} <= set(forms)
    grades = [grading.grade_ours(case) for case in cases]
    assert all(isinstance(grade, Grade) for grade in grades)
    # Some right, some wrong, some unread.
    assert 0.2 < sum(grade.score for grade in grades) / 500 < 0.7
    assert 0.05 < sum(not grade.parsed for grade in grades) / 500 < 0.4


def test_the_page_holds_the_measured_tables_and_every_class() -> None:
    figures = json.loads((RESULTS / "grading.json").read_text())["figures"]
    page = grading.PAGE.read_text()
    assert grading.with_tables(page, figures) == page
    assert figures["unexplained"] == []
    for name in grading.CLASSES:
        assert f"| {name} |" in page


def rows(header: str) -> list[list[str]]:
    """The cells of the page's table with this header."""
    table = grading.PAGE.read_text().split(header, 1)[1].split("\n\n", 1)[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def test_the_pages_examples_of_letters_are_read_as_it_says() -> None:
    options = ("riding a bike", "a dog", "a red car")
    checked = 0
    for cells in rows("| rule | reads | example → letter |"):
        examples, _, letter = cells[-1].partition(" → ")
        for example in re.findall("`([^`]+)`", examples):
            grade = grade_choice(example.replace("\\n", "\n"), options, "A")
            assert (grade.answer, f"`{grade.rule}`" in cells[0]) == (letter, True), example
            checked += 1
    assert checked >= 13


def test_the_pages_examples_of_video_r1_score_as_it_says() -> None:
    found = rows("| answer | solution | type | score | why |")
    assert len(found) == 6
    for answer, solution, kind, score, *_ in found:
        grade = grade_video_r1(kind, answer.strip("`"), solution.strip("`"))
        assert grade.score == pytest.approx(float(score)), answer


def test_what_was_measured_is_what_is_graded_today() -> None:
    figures = json.loads((RESULTS / "grading.json").read_text())["figures"]
    for row in figures["examples"].values():
        cases = generate(row["benchmark"], figures["count"], figures["seed"])
        found = [c for c in cases if (c.output, c.solution) == (row["output"], row["solution"])]
        assert {grading.grade_ours(case).rule for case in found} == {row["rule"]}
