"""What a person reads out of an answer: golden rows, each reasoned out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strive import answers
from strive.answers import plain_text, read_letter, read_number

# fmt: off
LETTERS = [
    # The letter alone, however it is dressed.
    ("B", "B"), ("b", "B"), ("B.", "B"), ("(B)", "B"), ("[B]", "B"), ("**B**", "B"), ("$B$", "B"),
    (r"\boxed{B}", "B"), (r"\boxed{\text{B}}", "B"), (r"So it moves left: \boxed{(B)}.", "B"),
    (r"\boxed{A} is wrong, \boxed{B}", "B"),  # the last box is the answer
    ("\uff22", "B"), ("\uff08\uff22\uff09", "B"), ("\uff22\u3002", "B"),  # full-width B, (B), B.
    # The letter, then its option's text.
    ("B. cat", "B"), ("B) cat", "B"), ("(B) cat", "B"), ("**B.** cat", "B"), ("**B** cat", "B"),
    ("B: cat", "B"), ("B.cat", "B"), ("B - cat", "B"), ("B \u2013 cat", "B"), ("A. A man", "A"),
    ("B, because it moves", "B"), ("B\nThe cat moves.", "B"), ("B. U.S. flag", "B"),
    # A phrase announces it.
    ("Answer: B", "B"), ("**Answer:** B", "B"), ("Final answer - B.", "B"), ("answer b", "B"),
    ("The answer is (B) cat", "B"), ("The answer is B because Adam moves", "B"),
    ("The answer's B.", "B"), ("The correct answer is option B", "B"), ("It must be option B", "B"),
    ("A man is walking. Answer: B", "B"), ("The answer is A. No, wait: the answer is B.", "B"),
    ("Option A is wrong, option B", "B"), ("B is the correct answer", "B"), ("I choose B", "B"),
    ("I think it is (B).", "B"), ("It moves left.\n\nB", "B"), ("The answer is A, it moves", "A"),
    ("The answer is A since it moves", "A"), ("\u7b54\u6848\uff1a\uff22", "B"),
    ("\u7b54\u6848\u662fB", "B"),
    # No letter: an article, the first person, a word, an abbreviation, a name.
    ("A man walks", None), ("Answer: A man walks", None), ("the answer is a cat", None),
    ("the answers", None), ("the answer's", None), ("e.g.", None), ("i.e. a cat", None),
    ("U.S. flag", None), ("I think so", None), ("I think I am right", None), ("T-5", None),
    ("a.m.", None), ("Answer: Yes", None), ("It's A-flat", None), ("the second option", None),
    # Two are named, or one is only ruled out.
    ("A B", None), ("A, B", None), ("A and B", None), ("The answer is A or B", None),
    ("(A) or (C)", None), ("The answer is (A) or (B)", None), ("The answer is not B", None),
    ("option B is wrong", None), ("option A and option B", None), ("B, C", None), ("A: B", None),
]
NUMBERS = [
    # Every minus sign is one; a dash between words or numbers, or in a name, is none.
    ("-5", -5), ("\u22125", -5), ("\u20135", -5), ("\uff0d5", -5), ("\u2212 5", -5), ("-$5", -5),
    ("x = \u22125", -5), ("minus 5", -5), ("negative 5 degrees", -5), ("Answer \u2013 5", 5),
    ("T-5", None), ("T\u22125", None), ("B-52", None), ("COVID-19", None), ("3-5", None),
    ("3\u20135 m", None), ("5\u22123", None),
    # Full-width digits, units, currencies, percent.
    ("\uff14\uff12", 42), ("\uff0d\uff13\uff0e\uff15", -3.5), ("42 apples", 42), ("5m", 5),
    ("-5\u00b0C", -5), ("$5", 5), ("50%", 50), ("50 percent", 50), ("\uff15\uff10\uff05", 50),
    ("5 m\u00b2", 5),
    ("5 m^2", 5), ("3rd", 3), ("about 5.", 5), ("m2", None),
    # Thousands and decimals.
    ("1,000", 1000), ("1,234,567.5", 1234567.5), ("1'000", 1000), ("1\u202f000", 1000),
    (r"\boxed{1{,}000}", 1000), ("2 million", 2e6), (".5", 0.5), ("1.5e3", 1500),
    ("1.5 \u00d7 10^3", 1500), ("2\u00d710\u207b\u00b2", 0.02), ("10\u00b2", None),
    ("1,00", None), ("1.2.3", None),
    # Fractions; no date, time or rate is one.
    ("1/2", 0.5), ("-1/2", -0.5), ("3 1/2", 3.5), ("\u00bd", 0.5), ("1\u00bd", 1.5),
    (r"\frac{3}{4}", 0.75),
    (r"$-\frac{1}{2}$", -0.5), ("1/0", None), ("12/25/2020", None), ("12:30", None),
    ("3.5/5", None),
    # Words up to twenty.
    ("Three", 3), ("seven rings", 7), ("one", 1), ("the one on the left", None), ("no one", None),
    ("twenty-one", None), ("thirty two", None), ("two or three", None),
    ("minus five", -5),
    # One number and no other; one that Python can hold.
    (r"2 + 3 is \boxed{5}", 5), ("3 of 5", None), ("", None), ("none", None), ("1e999", None),
]
# fmt: on


@pytest.mark.parametrize(("text", "letter"), LETTERS)
def test_letters(text: str, letter: str | None) -> None:
    assert read_letter(text) == letter


@pytest.mark.parametrize(("text", "number"), NUMBERS)
def test_numbers(text: str, number: float | None) -> None:
    assert read_number(text) == (None if number is None else pytest.approx(number, rel=1e-12))


def test_the_true_minus_is_graded() -> None:
    for sign in ("\u2212", "\u2013", "\uff0d"):
        assert answers.grade("numerical", f"{sign}5", "5", rules="tolerant") == 0
        assert answers.grade("numerical", f"{sign}5", "-5", rules="tolerant") == 1
        # To the letter of the source: Python's float reads none of them.
        assert answers.grade("numerical", f"{sign}5", "-5", rules="video_r1") == 0
    assert answers.grade("numerical", "T-5", "-5", rules="tolerant") == 0
    assert answers.grade("multiple choice", "\\boxed{\uff22}", "B", rules="tolerant") == 1
    assert answers.grade("multiple choice", r"\boxed{B}", "B", rules="video_r1") == 0
    assert answers.grade("OCR", r"\boxed{}", "x", rules="tolerant") == 0
    assert answers.grade("OCR", "\uff28\uff29", "hi", rules="tolerant") == 1


@given(st.integers(-(10**12), 10**12), st.sampled_from(["-", "\u2212", "\u2013", "\uff0d"]))
def test_integers_are_read_back_however_they_are_written(value: int, minus: str) -> None:
    for written in (str(value), f"{value:,}"):
        assert read_number(f"it is {written.replace('-', minus)} m") == value


@pytest.mark.timeout(20)
@pytest.mark.parametrize("part", ["option ", "answer ", "\\boxed{", "1,111", "2^", "A ", "* "])
def test_a_text_of_any_length_is_read_at_once(part: str) -> None:
    for text in (part * 20_000, "1/" + "9" * 20_000):
        read_letter(text)
        assert read_number(text) is None


@given(st.text(max_size=30))
def test_a_text_reads_as_its_plain_form(text: str) -> None:
    assert read_letter(text) == read_letter(plain_text(text))
    assert read_number(text) == read_number(plain_text(text))
