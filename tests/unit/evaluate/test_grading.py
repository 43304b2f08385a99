"""Grades, row by row: each is worked out by hand from the rule that its table names."""

import math
import time
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from strive import answers
from strive.errors import UnknownNameError
from strive.evaluate.grading import (
    Boundary,
    gold_letter,
    grade_caption_matching,
    grade_choice,
    grade_tempcompass,
    grade_video_r1,
    grade_videommmu,
    grade_vsibench,
    grade_yes_no,
    mean_relative_accuracy,
)
from strive.evaluate.items import Grade
from strive.evaluate.reading import final_text, read_option, read_quantity, read_yes_no

MC, NUM, REG = "multiple choice", "numerical", "regression"
# fmt: off
VIDEO_R1: list[tuple[str, str, str, float, str]] = [
    # (output, solution, type, score, rule). Multiple choice: the same text, nothing else.
    ("<answer>B</answer>", "<answer>B</answer>", MC, 1, "answer tag"),
    ("<answer> B\n</answer>", "<answer>B</answer>", MC, 1, "answer tag"),
    ("<think>C?</think><answer>B</answer>", "<answer>B</answer>", MC, 1, "answer tag"),
    ("B", "<answer>B</answer>", MC, 1, "whole text"),
    (" B\n", "<answer>B</answer>", MC, 1, "whole text"),
    ("<answer>B.</answer>", "<answer>B</answer>", MC, 0, "answer tag"),
    ("<answer>b</answer>", "<answer>B</answer>", MC, 0, "answer tag"),
    ("<answer>(B)</answer>", "<answer>B</answer>", MC, 0, "answer tag"),
    ("<answer>B. cat</answer>", "<answer>B</answer>", MC, 0, "answer tag"),
    ("<answer>B. cat</answer>", "<answer>B. cat</answer>", MC, 1, "answer tag"),
    ("<answer>A</answer>", "<answer>B</answer>", MC, 0, "answer tag"),
    ("The answer is B", "<answer>B</answer>", MC, 0, "whole text"),
    ("<think>so B</think>", "<answer>B</answer>", MC, 0, "whole text"),
    ("<think>so B</think>B", "<answer>B</answer>", MC, 0, "whole text"),
    # The first tag counts; an empty one is none, and then the tags are part of the text.
    ("<answer>A</answer><answer>B</answer>", "<answer>B</answer>", MC, 0, "answer tag"),
    ("<answer>B</answer><answer>A</answer>", "<answer>B</answer>", MC, 1, "answer tag"),
    ("<answer></answer>B", "<answer>B</answer>", MC, 0, "whole text"),
    ("<answer>B", "<answer>B</answer>", MC, 0, "whole text"),
    ("<answer>A <answer>B</answer>", "<answer>B</answer>", MC, 0, "answer tag"),
    ("<ANSWER>B</ANSWER>", "<answer>B</answer>", MC, 0, "whole text"),
    ("", "<answer>B</answer>", MC, 0, "empty"),
    ("  \n", "<answer>B</answer>", MC, 0, "empty"),
    ("\uff22", "<answer>B</answer>", MC, 0, "whole text"),
    # Numerical: equal to two digits, and a "." or "," on both sides or on neither.
    ("<answer>5</answer>", "<answer>5</answer>", NUM, 1, "answer tag"),
    ("<answer>5.0</answer>", "<answer>5</answer>", NUM, 0, "answer tag"),
    ("<answer>5</answer>", "<answer>5.0</answer>", NUM, 0, "answer tag"),
    ("<answer>5.00</answer>", "<answer>5.0</answer>", NUM, 1, "answer tag"),
    ("<answer>1,000</answer>", "<answer>1000</answer>", NUM, 0, "answer tag"),
    ("<answer>1,000</answer>", "<answer>1000.0</answer>", NUM, 1, "answer tag"),
    ("<answer>1,0,0</answer>", "<answer>100.0</answer>", NUM, 1, "answer tag"),
    ("<answer>3.141</answer>", "<answer>3.14</answer>", NUM, 1, "answer tag"),
    ("<answer>3.146</answer>", "<answer>3.14</answer>", NUM, 0, "answer tag"),
    ("<answer>0.001</answer>", "<answer>0.004</answer>", NUM, 1, "answer tag"),
    ("<answer>-5</answer>", "<answer>-5</answer>", NUM, 1, "answer tag"),
    ("<answer>-5</answer>", "<answer>5</answer>", NUM, 0, "answer tag"),
    ("<answer>+5</answer>", "<answer>5</answer>", NUM, 1, "answer tag"),
    ("<answer>5 m</answer>", "<answer>5</answer>", NUM, 0, "answer tag"),
    ("<answer>five</answer>", "<answer>5</answer>", NUM, 0, "answer tag"),
    ("<answer>1e3</answer>", "<answer>1000</answer>", NUM, 1, "answer tag"),
    ("<answer>1/2</answer>", "<answer>0.5</answer>", NUM, 0, "answer tag"),
    ("<answer>5%</answer>", "<answer>5</answer>", NUM, 0, "answer tag"),
    ("<answer>nan</answer>", "<answer>5</answer>", NUM, 0, "answer tag"),
    ("<answer>\u0665</answer>", "<answer>5</answer>", NUM, 1, "answer tag"),  # Python reads it
    ("5", "<answer>5</answer>", NUM, 1, "whole text"),
    ("It is 5", "<answer>5</answer>", NUM, 0, "whole text"),
    # Regression: thresholds strictly above the relative error, of 0.5, 0.45, ..., 0.05.
    ("<answer>4</answer>", "<answer>4</answer>", REG, 1, "answer tag"),
    ("<answer>4.0</answer>", "<answer>4</answer>", REG, 1, "answer tag"),
    ("<answer>3</answer>", "<answer>4</answer>", REG, 0.5, "answer tag"),  # 0.25: five above it
    ("<answer>1</answer>", "<answer>2</answer>", REG, 0, "answer tag"),  # 0.5: none
    ("<answer>9</answer>", "<answer>10</answer>", REG, 0.8, "answer tag"),  # 0.1: eight
    ("<answer>1.28</answer>", "<answer>1.3</answer>", REG, 1, "answer tag"),  # 0.0154: all
    ("<answer>-4</answer>", "<answer>4</answer>", REG, 0, "answer tag"),
    ("<answer>1,000</answer>", "<answer>1000</answer>", REG, 1, "answer tag"),
    ("<answer>4 m</answer>", "<answer>4</answer>", REG, 0, "answer tag"),
    ("<answer>inf</answer>", "<answer>4</answer>", REG, 0, "answer tag"),
    ("<answer>1e40</answer>", "<answer>4</answer>", REG, 0, "answer tag"),  # no float32
    ("4", "<answer>4</answer>", REG, 1, "whole text"),
    ("", "<answer>4</answer>", REG, 0, "empty"),
    # The evaluation script grades no other type.
    ("<answer>EXIT</answer>", "<answer>EXIT</answer>", "OCR", 0, "type not graded"),
    ("<answer>a dog</answer>", "<answer>a dog</answer>", "free-form", 0, "type not graded"),
]
OPTIONS = ("Gray", "A man walks", "Red car", "Vitamin D")
LISTED = "A. Gray\nB. A man walks\nC. Red car\nD. Vitamin D"
CHOICES: list[tuple[str, str, str]] = [
    # (output, letter that is read, rule)
    ("B", "B", "letter alone"), ("b", "B", "letter alone"), (" B\n", "B", "letter alone"),
    ("**B**", "B", "letter alone"), (r"\boxed{B}", "B", "letter alone"),
    ("B B", "B", "letter alone"),
    ("B.B.B", "B", "letter alone"), ("B</s>", "B", "letter alone"),
    ("B<|im_end|>", "B", "letter alone"),
    ("\uff08\uff22\uff09", "B", "letter alone"), ("(C) foo", "C", "letter first"),
    ("B. A man walks.", "B", "letter and its text"), ("A Gray", "A", "letter and its text"),
    ("Gray.", "A", "option's text"), ("a man walks", "B", "option's text"),
    ("The answer is a man walks", "B", "option's text"), ("Vitamin D", "D", "option's text"),
    ("B because it moves", "B", "letter first"), ("B, because it moves", "B", "letter first"),
    ("A because it moves", "A", "letter first"), ("option A is better", "A", "letter first"),
    ("The best answer is: D", "D", "answer announced"),
    ("The correct answer is **C**", "C", "answer announced"),
    ("Therefore, the final answer is: $C", "C", "answer announced"),
    ("B. cat\n\nExplanation:\nA. no\nC. no", "B", "letter first"),
    ("So B", "B", "letter last"), ("The man picks C. Then he leaves", "C", "only letter"),
    # Tags and thoughts.
    ("<answer>B</answer>", "B", "letter alone"), ("<answer>B", "B", "letter alone"),
    ("<think>A</think>B", "B", "letter alone"), ("A it seems</think>D", "D", "letter alone"),
    ("<think>A <answer>C</answer>", "C", "letter alone"),
    ("C <think>since it is red</think>", "C", "letter alone"),
    ("<think>maybe A. so B", "", "unfinished thought"), ("<answer></answer>", "", "empty"),
    # An article, a pronoun, a word, a name, initials.
    ("A man is walking", "", "unread"), ("A man is walking. Answer: B", "B", "answer announced"),
    ("The answer is B because Adam walks", "B", "answer announced"),
    ("The correct option is B, A man", "B", "option announced"),
    ("A woman enters. So D", "D", "letter last"), ("C'est la vie", "", "unread"),
    ("D-Day", "", "unread"), ("USA.", "", "unread"), ("U.S.A.", "", "unread"),
    ("Both", "", "unread"), ("A C++ program", "", "unread"),
    # Two options, none of them, another than the options.
    ("A or B", "", "several options"), ("A, B", "", "several options"),
    ("A, B, or C", "", "several options"), ("A. B. C.", "", "several options"),
    ("The answer is (A) or (B)", "", "several options"), ("A/B", "", "several options"),
    ("B or C? I'd go with B", "B", "option announced"), (LISTED, "", "all options listed"),
    (f"{LISTED}\nThe answer is C", "C", "answer announced"), ("E", "", "no such option"),
    ("E. foo", "", "no such option"), ("Z", "", "no such option"), ("", "", "empty"),
    # Letters that are denied, answers that are taken back.
    ("Not A", "", "denied"), ("Neither A nor B", "", "denied"), ("not A but B", "B", "letter last"),
    ("A is wrong, B is right", "B", "called right"), ("the answer isn't B", "", "denied"),
    ("I choose B, A is wrong", "B", "option announced"),
    ("It cannot be A or C, it must be B", "B", "letter last"),
    ("B fits better than C", "B", "letter first"), ("A: wrong\nB: right", "B", "letter first"),
    ("Option A: no. Option B: yes.", "", "several options"),
    ("The answer is A. No, wait, it is B.", "B", "option announced"),
    ("A. Wait, the answer is C", "C", "answer announced"),
    ("B. They wait at point C.", "B", "letter first"),
    ("Comparing A and C, he goes left. So C.", "C", "letter last"),
    ("A, C and D are wrong", "", "denied"), ("A, C and D can be eliminated", "", "denied"),
    ("Options A, C and D are wrong", "", "denied"), ("A, B, C, and D are all wrong", "", "denied"),
    ("A and C are wrong", "", "denied"), ("A, C, D are incorrect", "", "denied"),
    ("(A), (C) and (D) don't fit", "", "denied"), ("A/C are not right", "", "denied"),
    ("A, C and D have been ruled out, so B", "B", "letter last"),
    ("A and D should be safely excluded. B.", "B", "letter alone"),
    ("The answer is B, A and C are wrong", "B", "answer announced"),
    ("I choose B, A and C are wrong", "B", "option announced"),
    # Other scripts: "the answer is", "choose", "option B is right", "not A but B".
    ("\u7b54\u6848\u662fB", "B", "answer announced"), ("\u9009B", "B", "option announced"),
    ("B\u9009\u9879\u6b63\u786e", "B", "letter first"),
    ("\uc815\ub2f5\uc740 A\uc785\ub2c8\ub2e4", "A", "only letter"),
    ("\u7b54\u3048\u306fB\u3067\u3059", "B", "answer announced"),
    ("\u4e0d\u662fA\u800c\u662fB", "B", "letter last"), ("\u7684\u7684", "", "unread"),
]
QUANTITIES: list[tuple[str, float, str]] = [
    ("3", 3, "first number"), ("3m", 3, "first number"), ("about 3.5 meters.", 3.5, "first number"),
    ("There are 3 chairs in 2 rooms", 3, "first number"), ("-5", -5, "first number"),
    ("1,000", 1000, "first number"), (".5", 0.5, "first number"), ("1/2", 0.5, "first number"),
    ("1e3", 1000, "first number"), ("5 feet and 3 inches", 5, "first number"),
    ("\uff13", 3, "first number"), ("\u0663", 3, "first number"), ("3\u500b", 3, "first number"),
    ("\u7b54\u6848\u662f3\u7c73", 3, "first number"), (r"\boxed{4}", 4, "first number"),
    ("In 2 rooms the answer is about 3", 3, "number announced"),
    ("2 + 1 = 3", 3, "number announced"),
    # English words; "one" is a number only where it counts.
    ("three", 3, "first number"), ("twenty-one", 21, "first number"), ("zero", 0, "first number"),
    ("three hundred and twenty-one", 321, "first number"), ("a hundred", 100, "first number"),
    ("two hundred thousand", 200000, "first number"), ("two, three", 2, "first number"),
    ("one thousand two hundred", 1200, "first number"), ("minus three", -3, "first number"),
    ("the one on the left is 4 m", 4, "first number"), ("One can see 5", 5, "first number"),
    # Two numbers at once, none, none that is finite, digits of names and times.
    ("3 to 5", math.nan, "several numbers"), ("3-5", math.nan, "several numbers"),
    ("between 3 and 5", math.nan, "several numbers"), ("3 or 4", math.nan, "several numbers"),
    ("NaN", math.nan, "unread"), ("inf", math.nan, "unread"), ("1e999", math.nan, "unread"),
    ("no one", math.nan, "unread"), ("B52", math.nan, "unread"), ("12:30", math.nan, "unread"),
]
YES_NO: list[tuple[str, str, str]] = [
    ("Yes", "yes", "first word"), ("No, he is not", "no", "first word"),
    (" no\n", "no", "first word"),
    ("**Yes**", "yes", "first word"), ("Nope", "no", "first word"),
    ("Not at all.", "no", "first word"),
    ("No one is", "no", "first word"),
    ("The answer is yes", "yes", "answer announced"), ("He sits, so no.", "no", "last word"),
    ("Yes, there are no dogs", "yes", "first word"), ("\u662f\u7684\u3002", "yes", "first word"),
    ("\u3044\u3044\u3048", "no", "first word"), ("Not sure", "", "unread"),
    ("Nothing", "", "unread"), ("North", "", "unread"), ("Yesterday", "", "unread"),
    ("The answer is not yes", "", "denied"), ("It can't be a yes.", "", "denied"),
    ("I would not say no", "", "denied"), ("neither yes nor no", "", "denied"),
    ("Yes is wrong", "", "denied"), ("It would be wrong to say yes", "", "denied"),
    ("The answer is not yes, but no", "no", "last word"),
    ("The answer isn't no; it is yes", "yes", "last word"),
    ("No, it is not", "no", "first word"), ("I do not think so, no", "no", "last word"),
    ("yes and no", "", "several answers"), ("yes/no", "", "several answers"), ("", "", "unread"),
]
CAPTIONS = ("Option 1: The sign reads: go.", "Option 2: 2 men walk.")
CAPTION_ANSWERS: list[tuple[str, str]] = [
    ("Option 1", "Option 1"), ("option 2.", "Option 2"), ("2", "Option 2"), ("(2)", "Option 2"),
    ("1.", "Option 1"), ("B", "Option 2"), ("Option 2: 2 men walk.", "Option 2"),
    ("2 men walk", "Option 2"), ("The sign reads: go.", "Option 1"), ("2) 2 men walk.", "Option 2"),
    ("The answer is Option 2", "Option 2"), ("The best option is 2", "Option 2"),
    ("Option 1 fits better than Option 2", "Option 1"), (" Option 1\n", "Option 1"),
    ("Option 1 or Option 2", ""), ("not Option 1", ""), ("\n".join(CAPTIONS), ""), ("3", ""),
    ("A man walks", ""), ("", ""),
]
OPEN: list[tuple[str, str, float]] = [
    ("12.97", "12.97", 1), ("The answer is 12.97 m", "12.97", 1), ("12.974", "12.97", 1),
    ("The answer is 3, not 12.97 ", "12.97", 1),  # MMMU's parser takes every number of the phrase
    ("7,243,000", "7243000", 1), ("7.243 million", "7243000", 1), ("x = 5", "5", 1),
    ("We add 5 and 6.\nThe result is 11", "5", 0), ("The result is 11", "11", 1), ("-3", "-3", 1),
    ("concatenate", "cat", 0), ("It is a cat.", "cat", 1), ("", "5", 0), ("?", "5", 0),
    ("3.43", "['24/7', '3.429', '3.43]", 1), ("24/7", "['24/7', '3.429', '3.43]", 1),
    ("A", "A", 1), ("Answer: A", "A", 1), ("A cat is a dog.", "A", 0), ("B", "A", 0),
]
# fmt: on


@pytest.mark.parametrize(("output", "solution", "kind", "score", "rule"), VIDEO_R1)
def test_video_r1(output: str, solution: str, kind: str, score: float, rule: str) -> None:
    grade = grade_video_r1(kind, output, solution)
    assert (grade.score, grade.rule) == (pytest.approx(score), rule)


def test_video_r1_tells_what_was_read() -> None:
    assert grade_video_r1(MC, "<answer>(B)</answer>", "B") == Grade(0, "(B)", "answer tag", True)
    assert not grade_video_r1(MC, "I do not know", "B").parsed
    assert len(VIDEO_R1) == 60
    with pytest.raises(UnknownNameError, match="problem_type 'essay'"):
        grade_video_r1("essay", "a", "a")


@pytest.mark.parametrize(
    ("prediction", "target", "official", "video_r1"),
    [(1, 2, 0.1, 0), (3, 2, 0.1, 0), (3, 4, 0.6, 0.5), (9, 10, 0.9, 0.8), (95, 100, 1, 0.9),
     (7, 10, 0.5, 0.4), (4, 5, 0.6, 0.6), (0, 0, 1, 1), (1, 0, 0, 0), (-5, 5, 0, 0)],
)  # fmt: skip
def test_mean_relative_accuracy(
    prediction: float, target: float, official: float, video_r1: float
) -> None:
    # (4, 5): 0.2 is within 0.2 by the formula, but 1 - 0.8 is a little less in float64.
    pairs: tuple[tuple[Boundary, float], ...] = (("official", official), ("video_r1", video_r1))
    for boundary, wanted in pairs:
        score = mean_relative_accuracy(prediction, target, boundary=boundary)
        assert score == pytest.approx(wanted)


@given(st.integers(0, 400), st.integers(1, 200))
def test_an_error_on_the_border_is_not_within_it_for_video_r1(prediction: int, target: int) -> None:
    error = Fraction(abs(prediction - target), target)
    within = sum(error < Fraction(1, 2) - Fraction(k, 20) for k in range(10))
    score = mean_relative_accuracy(prediction, target, boundary="video_r1")
    assert score == pytest.approx(within / 10)


@given(st.floats(), st.floats())
def test_mean_relative_accuracy_of_anything(prediction: float, target: float) -> None:
    boundaries: tuple[Boundary, ...] = ("official", "video_r1")
    for boundary in boundaries:
        score = mean_relative_accuracy(prediction, target, boundary=boundary)
        assert round(score * 10) in range(11) and score == pytest.approx(round(score * 10) / 10)


@pytest.mark.parametrize(("output", "letter", "rule"), CHOICES)
def test_choices(output: str, letter: str, rule: str) -> None:
    assert grade_choice(output, OPTIONS, letter or "A") == Grade(
        float(bool(letter)), letter, rule, parsed=bool(letter)
    )
    # The same options with their letters, as other benchmarks publish them.
    lettered = tuple(LISTED.split("\n"))
    assert grade_choice(output, lettered, letter or "A").answer == letter


def test_letters_past_j_and_the_pronoun() -> None:
    options = tuple(f"metal {n}" for n in range(14))
    assert grade_videommmu("N", options, "N").score == 1
    assert grade_videommmu("K. metal 10", options, "K").score == 1
    assert grade_videommmu("I think it is K", options, "K").score == 1
    assert grade_videommmu("I", options, "I").score == 1
    assert not grade_videommmu("I cannot tell", options, "I").parsed
    assert grade_videommmu("O", options, "N").rule == "no such option"


@pytest.mark.parametrize(
    ("solution", "letter"),
    [("B", "B"), ("b", "B"), ("<answer>B</answer>", "B"), ("B. A man walks", "B"), ("Gray", "A"),
     ("A man walks", "B"), ("D.", "D"), ("E", ""), ("", ""), ("blue", "")],
)  # fmt: skip
def test_solutions(solution: str, letter: str) -> None:
    assert gold_letter(solution, OPTIONS) == letter


@pytest.mark.parametrize(("text", "value", "rule"), QUANTITIES)
def test_quantities(text: str, value: float, rule: str) -> None:
    found, by = read_quantity(text)
    assert (found, by) == (pytest.approx(value, nan_ok=True), rule)


def test_vsibench() -> None:
    assert grade_vsibench("(B) right", ("A. left", "B. right"), "B").score == 1
    # |3 - 4| / 4 = 0.25: within 0.5, 0.45, 0.4, 0.35, 0.3 and, by the official rule, 0.25.
    assert grade_vsibench("3 chairs", (), "4") == Grade(0.6, "3", "first number", True)
    assert grade_vsibench("<think>9</think><answer>4</answer>", (), "4").score == 1
    assert grade_vsibench("three or four", (), "4").rule == "several numbers"
    assert grade_vsibench("", (), "4") == Grade(0, "", "empty", False)
    assert grade_vsibench("<think>4", (), "4") == Grade(0, "", "unfinished thought", False)


@pytest.mark.parametrize(("text", "answer", "rule"), YES_NO)
def test_yes_no(text: str, answer: str, rule: str) -> None:
    assert read_yes_no(text) == (answer, rule)
    assert grade_yes_no(text, "yes").score == (answer == "yes")


@pytest.mark.parametrize(("output", "label"), CAPTION_ANSWERS)
def test_caption_matching(output: str, label: str) -> None:
    grade = grade_caption_matching(output, CAPTIONS, CAPTIONS[1])
    assert (grade.answer, grade.parsed) == (label, bool(label))
    assert grade.score == (label == "Option 2")


def test_tempcompass_tasks() -> None:
    options = ("A. walking", "B. running")
    assert grade_tempcompass("A\n", options, "A. walking", "multi-choice").score == 1
    assert grade_tempcompass("running", options, "A. walking", "multi-choice").score == 0
    assert grade_tempcompass("No.", (), "no", "yes_no").score == 1
    assert grade_tempcompass("1", CAPTIONS, CAPTIONS[0], "caption_matching").score == 1
    sentences = ("Sentence A: He runs.", "Sentence B: He sits.")
    assert grade_tempcompass("B", sentences, sentences[1], "caption_matching").score == 1
    assert grade_tempcompass("He runs.", (), "", "captioning").rule == "needs a judge"
    assert grade_tempcompass("A", options, "A. walking", "captioning").score == 1
    with pytest.raises(UnknownNameError, match="multi-choice"):
        grade_tempcompass("A", options, "A", "multi_choice")


@pytest.mark.parametrize(("output", "solution", "score"), OPEN)
def test_open_questions(output: str, solution: str, score: float) -> None:
    assert grade_videommmu(output, (), solution).score == score


def graders(output: str) -> list[Grade]:
    return [
        *(grade_video_r1(kind, output, "<answer>4</answer>") for kind in (MC, NUM, REG, "OCR")),
        grade_choice(output, OPTIONS, "B"),
        grade_choice(output, (), "B"),
        grade_choice(output, ("", " ", "A"), "B"),
        grade_vsibench(output, (), "4"),
        grade_vsibench(output, (), "no number"),
        grade_yes_no(output, "yes"),
        grade_caption_matching(output, CAPTIONS, CAPTIONS[0]),
        grade_caption_matching(output, (), ""),
        grade_videommmu(output, (), "12.97"),
        grade_videommmu(output, (), "[]"),
    ]


WORDS = (
    "A B C D E I a b 1 2 3.5 -4 1/2 , . / ( ) ' \" : \n <answer> </answer> <think> </think> the "
    "answer is not or and option wrong wait no yes than two hundred one \\boxed{ } = to "
    "\u7b54\u6848 \uff22"
)


@given(
    st.one_of(
        st.text(max_size=40), st.lists(st.sampled_from(WORDS.split(" ")), max_size=14).map(" ".join)
    )
)
@example("<answer>\x00</answer>")
def test_every_text_has_a_grade(output: str) -> None:
    grades = graders(output)
    assert grades == graders(output)
    for grade in grades:
        assert 0 <= grade.score <= 1 and grade.rule
        assert grade.parsed or (grade.score == 0)
    # What was read is read again as itself.
    part = final_text(output)
    letter = read_option(part.answer, OPTIONS).answer
    assert not letter or (letter in "ABCD" and read_option(letter, OPTIONS).answer == letter)


LOOPS = (
    "A or ", "not A ", "<answer>", "</think>", "<think>", "two ", "1 to ", "A, ", "A,", "A is ",
    " ", "\n", " ,", " \n", "(", '"', "=", "<", "<|", "-", "* ", "1", "1,000,", "1.", "\u0663", "/",
    "\\boxed{", "\\text{(}", "not yes ", "answer ", "answer is ", "option ", "\u7b54\u6848 ",
    "\u00a0", "</think><answer>",
)  # fmt: skip


def cpu_seconds(text: str) -> float:
    """Return the time of this process alone in which every grader has graded a text."""
    started = time.process_time()
    for grade in graders(text):
        assert grade.rule
    for kind, gold in ((MC, "B"), (NUM, "4"), (REG, "4"), ("OCR", "EXIT"), ("free-form", "a cat")):
        assert 0 <= answers.grade(kind, text, gold, rules="tolerant") <= 1
    answers.has_think_answer_format(f"<think>{text}</answer>")
    return time.process_time() - started


@pytest.mark.parametrize("before", ["A", pytest.param("not", marks=pytest.mark.long)])
def test_the_time_of_a_text_does_not_grow_with_its_square(before: str) -> None:
    cpu_seconds("B")  # the libraries that grade words are imported
    for part in LOOPS:
        short, long = (before + (part * size)[:size] + "x" for size in (1_000, 4_000))
        # Four times the length: a square would take 16 times as long, and blanks 6 s.
        assert cpu_seconds(long) < 8 * cpu_seconds(short) + 1, repr(part)


@pytest.mark.parametrize("mark", [" ", "\n", "(", '"', " ,", "*_", "\u00a0"])
def test_a_long_run_of_marks_says_what_a_short_one_says(mark: str) -> None:
    for size in (3, 5_000):
        run = mark * size
        assert grade_choice(f"{run}B{run}", OPTIONS, "B").score == 1
        assert grade_choice(f"So{run} B", OPTIONS, "B").score == 1
        assert grade_choice(f"He moves.\n{run}\nB", OPTIONS, "B").score == 1
        assert grade_vsibench(f"{run}-4{run}", (), "-4").score == 1
        assert grade_yes_no(f"{run}no{run}", "no").score == 1
        assert grade_videommmu(f"the result is{run} 5", (), "5").score == 1
    assert grade_vsibench("9" * 300, (), "9" * 300).score == 1
