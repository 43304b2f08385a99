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
        (
            "grounding",
            " Please provide the start and the end of the event in seconds (e.g., 12.54 to 17.83) "
            "within the",
        ),
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
    assert answers.build_question(MISSILE, "answer_twice") == body
    grounded = with_type("grounded multiple choice")
    assert answers.build_question(grounded, "short") == body
    assert answers.build_question(grounded, "video_r1").endswith(
        "<answer> </answer> tags, followed by the time spans in seconds that show it (e.g., "
        "[(5.2, 10.4)]) within the <glue> </glue> tags."
    )
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


def test_grounding_is_read_from_the_last_tags() -> None:
    text = "<answer>1 to 2</answer> no <answer> 3 to 4 </answer> or <answer>5 to 6"
    assert answers.extract_graded("grounding", text) == "3 to 4"
    assert answers.extract_graded("grounded multiple choice", text) == "1 to 2"
    assert answers.extract_last_answer("5 to 6") == answers.extract_last_answer("<answer>") == ""
    record = dataclasses.replace(with_type("grounding"), solution="<answer>3 to 4</answer>")
    assert answers.grade_completion(record, text) == 1
    assert answers.grade_completion(record, "3 to 4") == 0
    assert answers.grade_completion(record, "3 to 4", tags_required=False) == 1


@pytest.mark.parametrize("rules", ["video_r1", "tolerant"])
@pytest.mark.parametrize(
    ("problem_type", "prediction", "gold", "grade"),
    [
        ("grounding", "12 to 22", "10 to 20", 8 / 12),
        ("grounding", "it lasts from 10.0 to 20", "10 to 20", 1),
        ("grounding", "10 to 20", "1 to 2, 10 to 20", 1),  # any of the solution's
        ("grounding", "10-20", "10 to 20", 0),
        ("grounding", "15 to 15", "15 to 15", 0),
        # VideoChat-R1: the first capital from A to G, once the stock phrases are gone.
        ("grounded multiple choice", "B", "B", 1),
        ("grounded multiple choice", "(B) a man", "B", 1),
        ("grounded multiple choice", "The best answer is B.", "B", 1),
        ("grounded multiple choice", "The answer: B", "B", 1),
        ("grounded multiple choice", "Both are A", "B", 1),
        ("grounded multiple choice", "b", "B", 0),
        ("grounded multiple choice", "A, not B", "B", 0),
        ("grounded multiple choice", "H", "H", 0),  # beyond G
        ("grounded multiple choice", "none", "none", 0),  # two texts without a letter are no match
    ],
)
def test_intervals_and_grounded_letters(
    problem_type: str, prediction: str, gold: str, grade: float, rules: Any
) -> None:
    solution = f"<answer>{gold}</answer>"
    found = answers.grade(problem_type, prediction, solution, rules=rules)
    assert found == pytest.approx(grade)


@pytest.mark.parametrize(
    ("problem_type", "answer", "key"),
    [
        ("multiple choice", "(b)", "B"),
        ("multiple choice", "A man walks", None),
        ("grounded multiple choice", "The answer is C", "C"),
        ("grounded multiple choice", "c", None),
        ("numerical", "3.141 m", 3.14),
        ("regression", "3.141 m", 3.141),
        ("numerical", "3 of 5", None),
        ("grounding", "from 1 to 2.50", (1, 2.5)),
        ("grounding", "soon", None),
        ("free-form", " A  Red ball", "a red ball"),
        ("OCR", " ", None),
    ],
)
def test_what_an_answer_says(problem_type: str, answer: str, key: Any) -> None:
    assert answers.answer_key(problem_type, answer) == key
    assert answers.is_parsed(problem_type, answer) == (key is not None)


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
        ("<think>a</think><answer>B</answer><glue>[]</glue>", False),
    ],
)
def test_think_answer_format(text: str, good: bool) -> None:
    assert answers.has_think_answer_format(text) is good


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("<think>a</think><answer>B</answer><glue>[(1, 4), (5.5, 6)]</glue>", True),
        (" <think>a</think>\n<answer>B</answer>\n<glue>[]</glue>\n", True),
        ("<think>a</think><answer>B</answer>", False),
        ("<answer>B</answer><glue>[(1, 4)]</glue>", False),
        ("<think>a</think><answer>B</answer><glue>[(4, 1)]</glue>", False),
        ("<think>a</think><answer>B</answer><glue>[(1, 4)]</glue>.", False),
        ("<think>a</think><answer>B</answer><glue>[(1, 4)]</glue><glue>[]</glue>", False),
    ],
)
def test_think_answer_clues_format(text: str, good: bool) -> None:
    assert answers.has_think_answer_clues_format(text) is good


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
