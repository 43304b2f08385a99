import dataclasses
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strive import answers
from strive.errors import UnknownNameError
from strive.records import Record

MISSILE = Record(
    question_id="2",
    video_id="a.mp4",
    problem="What appears on the screen?",
    problem_type="multiple choice",
    options=("A. A missile", "B. A graph"),
    solution="<answer>A</answer>",
)


def with_type(problem_type: str) -> Record:
    return dataclasses.replace(MISSILE, problem_type=problem_type)  # type: ignore[arg-type]


def test_video_r1_prompt_is_the_protocols_text() -> None:
    assert answers.build_question(MISSILE, "video_r1") == (
        "What appears on the screen?Options:\nA. A missile\nB. A graph\n\n"
        "Please think about this question as if you were a human pondering deeply. Engage in an "
        "internal dialogue using expressions such as 'let me think', 'wait', 'Hmm', 'oh, I see', "
        "'let's break it down', etc, or other natural language thought expressions It's "
        "encouraged to include self-reflection or verification in the reasoning process. Provide "
        "your detailed reasoning between the <think> </think> tags, and then give your final "
        "answer between the <answer> </answer> tags. Please provide only the single option letter "
        "(e.g., A, B, C, D, etc.) within the <answer> </answer> tags."
    )


@pytest.mark.parametrize(
    ("problem_type", "suffix"),
    [
        ("numerical", " Please provide the numerical value (e.g., 42 or 3.14) within the"),
        ("regression", " Please provide the numerical value (e.g., 42 or 3.14) within the"),
        (
            "OCR",
            " Please transcribe text from the image/video clearly and provide your text answer "
            "within the",
        ),
        ("free-form", " Please provide your text answer within the"),
    ],
)
def test_video_r1_suffixes(problem_type: str, suffix: str) -> None:
    text = answers.build_question(with_type(problem_type), "video_r1")
    assert text.startswith("What appears on the screen?\nPlease think about")
    assert text.endswith(f"<answer> </answer> tags.{suffix} <answer> </answer> tags.")


def test_evaluation_prompt_differs_by_two_words() -> None:
    rl = answers.build_question(MISSILE, "video_r1")
    evaluation = answers.build_question(MISSILE, "video_r1_eval")
    assert len(evaluation.split()) == len(rl.split()) + 2
    assert (
        "<think> and </think>" in evaluation and "between the <answer> and </answer>" in evaluation
    )
    # The type suffix keeps its wording.
    assert evaluation.endswith("within the <answer> </answer> tags.")


def test_other_templates() -> None:
    body = "What appears on the screen?Options:\nA. A missile\nB. A graph\n"
    assert answers.build_question(MISSILE, "short") == body
    assert answers.build_question(with_type("OCR"), "short") == "What appears on the screen?"
    assert answers.build_question(MISSILE, "direct") == (
        f"{body}\nAnswer with the option's letter from the given choices directly."
    )
    with pytest.raises(UnknownNameError, match="did you mean 'video_r1'"):
        answers.build_question(MISSILE, "video_r2")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>x</think><answer> B\n</answer>", "B"),
        ("<answer>A</answer><answer>B</answer>", "A"),
        ("<answer>two\nlines</answer>", "two\nlines"),
        ("<answer>A", ""),
        ("B", ""),
        ("<answer></answer>", ""),
    ],
)
def test_extract_answer(text: str, answer: str) -> None:
    assert answers.extract_answer(text) == answer


def test_extract_answer_or_text() -> None:
    assert answers.extract_answer_or_text(" B. ") == "B."
    assert answers.extract_answer_or_text("<answer>C</answer>") == "C"


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("<think>a</think>\n <answer>B</answer>", True),
        ("<think>a\nb</think><answer></answer>", True),
        ("<think><think>a</think></think><answer>B</answer>", True),  # nested tags pass
        ("<think>a</think><answer>B</answer>\n", False),  # trailing white space fails
        (" <think>a</think><answer>B</answer>", False),
        ("<think>a</think> so <answer>B</answer>", False),
        ("<answer>B</answer>", False),
    ],
)
def test_think_answer_format(text: str, good: bool) -> None:
    assert answers.has_think_answer_format(text) is good


@pytest.mark.parametrize(
    ("problem_type", "prediction", "gold", "reward"),
    [
        ("multiple choice", "B", "B", 1),
        ("multiple choice", " B ", "B", 1),
        ("multiple choice", "B.", "B", 0),
        ("multiple choice", "(B)", "B", 0),
        ("multiple choice", "b", "B", 0),
        ("multiple choice", "", "B", 0),
        ("numerical", "42", "42", 1),
        ("numerical", "5.0", "5", 0),  # one has a ".", the other not
        ("numerical", "1,000", "1000", 0),  # a "," counts as well
        ("numerical", "1,000", "1000.0", 1),  # either mark on both sides
        ("numerical", "3.141", "3.14", 1),  # equal after round(., 2)
        ("numerical", "3.15", "3.14", 0),
        ("numerical", "four", "4", 0),
        ("numerical", "nan", "4", 0),
        # gold 3 words, one deleted: 1 - 1/3.
        ("OCR", "hello world", "hello big world", 2 / 3),
        ("OCR", "Hello big world", "hello big world", 2 / 3),  # case counts
        ("OCR", "hello\nbig  world", "hello big world", 1),
        ("OCR", "a b c d e f", "x", 0),  # WER 6, clipped
        # "a cat runs" on "the cats running", stemmed: 2 of 3 words, 1 of 2 pairs, LCS 2 of 3.
        ("free-form", "a cat runs", "the cats running", (2 / 3 + 1 / 2 + 2 / 3) / 3),
        ("free-form", "red", "red", 2 / 3),  # one word has no bigram
        ("regression", "9", "10", 0.9),
        ("regression", "1,0", "10", 1),
        ("regression", "25", "10", 0),
        ("regression", "-10", "10", 0),
        ("regression", "ten", "10", 0),
        ("regression", "nan", "10", 0),  # the source's clip lets NaN through as a full reward
        ("regression", "inf", "10", 0),
        ("regression", "0", "0", 0),  # (0 + 1e-9) / (0 + 1e-9) is 1
    ],
)
def test_video_r1_rules(problem_type: str, prediction: str, gold: str, reward: float) -> None:
    for solution in (gold, f"<answer>{gold}</answer>"):
        got = answers.grade(problem_type, prediction, solution, rules="video_r1")
        assert got == pytest.approx(reward, abs=1e-8)


@pytest.mark.parametrize("prediction", ["(B)", "B.", "b", "B. cat", "B) cat", "**B**", "B: cat",
                                        "The answer is B.", "Answer: (B)", "option b"])  # fmt: skip
def test_tolerant_letters(prediction: str) -> None:
    assert answers.grade("multiple choice", prediction, "<answer>B</answer>", rules="tolerant") == 1
    assert answers.grade("multiple choice", prediction, "<answer>A</answer>", rules="tolerant") == 0


@pytest.mark.parametrize(
    "text", ["A man walks", "cat", "", "AB", "the answer is a cat", "_", "A B"]
)
def test_no_letter(text: str) -> None:
    assert answers.read_letter(text) is None
    assert not answers.is_parsed("multiple choice", text)


@pytest.mark.parametrize(
    ("problem_type", "prediction", "gold", "reward"),
    [
        ("numerical", "5.0", "5", 1),
        ("numerical", "1,000", "1000", 1),
        ("numerical", "$5 ", "5", 1),
        ("numerical", "42 apples", "42", 1),
        ("numerical", "3 of 5", "3", 0),  # two numbers: not read
        ("numerical", "-5", "5", 0),
        ("OCR", "HELLO  World", "hello world", 1),
        ("regression", "0", "0", 1),
        ("regression", "9 m", "10", 0.9),
        ("free-form", "The Cat", "the cat", 1),
    ],
)
def test_tolerant_rules(problem_type: str, prediction: str, gold: str, reward: float) -> None:
    got = answers.grade(problem_type, prediction, gold, rules="tolerant")
    # ROUGE-2 of a two-word text is 1.
    assert got == pytest.approx(reward, abs=1e-8)


@given(st.sampled_from(answers.PROBLEM_TYPES), st.text(max_size=40), st.text(max_size=40))
def test_grades_stay_in_the_unit_interval(problem_type: str, prediction: str, gold: str) -> None:
    for rules in ("video_r1", "tolerant"):
        value = answers.grade(problem_type, prediction, gold, rules=rules)  # type: ignore[arg-type]
        assert math.isfinite(value) and 0 <= value <= 1


@given(st.lists(st.sampled_from("abc"), max_size=7), st.lists(st.sampled_from("abc"), min_size=1))
def test_word_error_rate_against_the_textbook_table(hypothesis: list[str], gold: list[str]) -> None:
    table = [[i + j if i * j == 0 else 0 for j in range(len(hypothesis) + 1)]
             for i in range(len(gold) + 1)]  # fmt: skip
    for i, a in enumerate(gold, start=1):
        for j, b in enumerate(hypothesis, start=1):
            table[i][j] = min(
                table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a != b)
            )
    expected = max(0.0, 1 - table[-1][-1] / len(gold)) if hypothesis else 0.0
    assert answers.grade("OCR", " ".join(hypothesis), " ".join(gold)) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6, allow_nan=False))
def test_numbers_are_read_back(value: float) -> None:
    assert answers.read_number(f"about {value:,.3f} m") == pytest.approx(value, abs=5e-4)


def test_grade_completion_with_and_without_tags() -> None:
    assert answers.grade_completion(MISSILE, "<answer>A</answer>") == 1
    assert answers.grade_completion(MISSILE, "A") == 0
    assert answers.grade_completion(MISSILE, "A", tags_required=False) == 1


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match=re.escape("known: tolerant, video_r1")):
        answers.grade("OCR", "a", "a", rules="lenient")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="problem_type 'essay'"):
        answers.grade("essay", "a", "a")


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
    ],
)
def test_solutions_that_no_answer_can_earn(
    problem_type: Any, options: tuple[str, ...], solution: str, strict: Any, tolerant: Any
) -> None:
    record = Record("q", "v", "?", problem_type, options, solution)
    for rules, wanted in (("video_r1", strict), ("tolerant", tolerant)):
        found = answers.why_unmatched(record, rules)  # type: ignore[arg-type]
        assert (found is None) == (wanted is None), (rules, found)
        assert wanted is None or wanted in str(found)


def test_the_line_about_unmatched_solutions() -> None:
    solutions = ["B", "B. green", "(C)", "Z", "c"]
    records = [
        Record(f"q{n}", "v", "?", "multiple choice", COLOURS, text)
        for n, text in enumerate(solutions)
    ]
    found = answers.find_unmatched(records, "video_r1")
    assert found is not None
    assert (found.num_unmatched, found.num_records, found.num_tolerant) == (4, 5, 3)
    assert found.text().startswith(
        "4 of 5 solutions can never be earned under grading video_r1: question q1: 'B. "
        "green' is none of the options' letters (A, B, C); question q2: '(C)'"
    )
    assert "q4" not in found.text() and "--set grading=tolerant matches 3 of them" in found.text()
    assert answers.find_unmatched(records[:1], "video_r1") is None


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
    assert answers.find_unmatched([record], "video_r1") is None


def test_letters_of_options_without_letters_are_doubtful():
    record = Record("q", "v.mp4", "?", "multiple choice", ("red", "green"), "B")
    unmatched = answers.find_unmatched([record], "video_r1")
    assert unmatched is not None and unmatched.num_unmatched == 1 and not unmatched.is_hopeless
    outside = Record("q", "v.mp4", "?", "multiple choice", ("A. red", "B. green"), "Z")
    unmatched = answers.find_unmatched([outside], "video_r1")
    assert unmatched is not None and unmatched.is_hopeless
