r"""VideoAuto-R1's boxes: `\boxed{B}<think>...</think>\boxed{C}`."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strive.two_answers import (
    PUTS_OFF,
    SYSTEM_PROMPT,
    first_answer,
    grade_boxed,
    has_two_answers_format,
    puts_off,
    second_answer,
)

THOUGHT = "<think>so</think>"


def text_of(first, second, thought=THOUGHT):
    return f"\\boxed{{{first}}}{thought}\\boxed{{{second}}}"


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        (text_of("B", "C"), "B", "C"),
        (text_of(" B ", r"\text{C}"), "B", r"\text{C}"),  # one level of braces
        (r"\boxed{A}\boxed{B}<think>x</think>\boxed{C}", "", "C"),  # several: none
        (r"\boxed{A}<think>x</think>", "A", ""),
        (r"A <think>x</think> \boxed{C}", "", "C"),
        # The boxes within the thought are nobody's.
        (r"\boxed{A}<think>\boxed{D}</think>\boxed{C}", "A", "C"),
        # Without a thought the whole text is read twice, as in the source.
        (r"It is \boxed{B}.", "B", "B"),
        (r"\boxed{A}\boxed{B}", "", ""),
        (r"\boxed{A", "", ""),
        ("", "", ""),
    ],
)
def test_the_two_answers(text, first, second):
    assert (first_answer(text), second_answer(text)) == (first, second)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (text_of("B", "C"), True),
        (text_of("Let's analyze the problem step by step.", "C"), True),
        (f" {text_of('B', 'C')} \n", True),
        (text_of("B", "C", "\n<think>a\nb</think>\n"), True),
        (text_of("B", "C", "<think> \n</think>"), False),  # an empty thought
        (text_of("B", "C", ""), False),
        (text_of("B", "C", THOUGHT * 2), False),
        (text_of("B", "C", "<think><think>so</think>"), False),
        (text_of("B", "C") + ".", False),
        ("It is " + text_of("B", "C"), False),
        (r"\boxed{B}<think>so</think>", False),
        ("", False),
    ],
)
def test_the_format(text, good):
    assert has_two_answers_format(text) is good


@pytest.mark.parametrize(
    ("answer", "gold", "grade"),
    [
        ("B", "B", 1),
        ("b", "B", 1),
        ("(B)", "B", 1),
        ("B)", "B", 1),
        ("B", "(B)", 1),
        ("\uff22", "B", 1),  # a full-width B
        ("B.", "B", 0),
        ("B. green", "B", 0),
        ("The  Green ball", "the green ball", 1),
        ("Yes", "true", 1),
        ("no", "False", 1),
        ("yes", "no", 0),
        ("A", "B", 0),
        ("", "B", 0),
        ("B", "", 0),
    ],
)
def test_choices(answer, gold, grade):
    assert grade_boxed("multiple choice", answer, f"<answer>{gold}</answer>") == grade


def test_other_types():
    solution = "<answer>10 to 20</answer>"
    assert grade_boxed("grounding", "12 to 22", solution) == pytest.approx(2 / 3)
    # The best of several golds; an interval without length has 0.
    assert grade_boxed("grounding", "12 to 22", "0 to 5, 12 to 22") == 1
    assert grade_boxed("grounding", "15 to 15", solution) == 0
    clues = ((0.0, 5.0), (12.0, 22.0))
    for answer, grade in (
        ("B<>12 to 22", 2),
        ("(B)<>10 to 20", 1 + 2 / 3),
        ("A<>12 to 22", 1),
        ("B", 1),
        ("B<>", 1),
        ("12 to 22", 1),
    ):
        found = grade_boxed("grounded multiple choice", answer, "B", clues=clues)
        assert found == pytest.approx(grade), answer
    assert grade_boxed("numerical", "3.141", "3.14") == 1
    assert grade_boxed("numerical", "5.0", "5") == 0
    assert grade_boxed("numerical", "5.0", "5", rules="tolerant") == 1


def test_the_prompt_asks_for_what_the_readers_read():
    [sentence] = [part for part in SYSTEM_PROMPT.split("\\boxed{") if part.startswith(PUTS_OFF)]
    postponed = sentence[: sentence.index("}")]
    assert postponed == "Let's analyze the problem step by step."
    assert puts_off(first_answer(text_of(postponed, "C"))) and not puts_off("B")


@given(st.text(alphabet="\\boxed{}<think>/ AB", max_size=60))
def test_what_has_the_format_has_both_boxes(text):
    for wrapped in (text, text_of(text, "B"), text_of("A", "B", f"<think>{text}</think>")):
        assert isinstance(first_answer(wrapped) + second_answer(wrapped), str)
        if has_two_answers_format(wrapped):
            assert wrapped.count("\\boxed{") >= 2 and "<think>" in wrapped


def test_long_texts_take_no_time():
    start = time.monotonic()
    for text in ("\\boxed{" * 20_000, "\\boxed{" + "{a}" * 50_000, "<think>" * 20_000):
        assert first_answer(text) == "" and not has_two_answers_format(text)
    assert time.monotonic() - start < 2
