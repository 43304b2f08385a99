r"""Option letters and numbers out of a text, as a person reads them.

Used by the grading rules `tolerant`. What is not plainly one letter or one number is not read, so
that an answer is never right by a misreading: "A man walks" names no option, "T-5" no number.
"""

import math
import re
import unicodedata
from typing import Any

# Full-width characters are their ASCII twins; hyphens and dashes of any length are one sign.
_SAME_CHARACTER: dict[int, int | str] = {
    **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)},
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\ufe63"), "-"),
    0x3000: " ",
}
_TRUE_MINUS = re.compile("\u2212\\s*")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX_STYLE = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")


def plain_text(text: str) -> str:
    r"""What a person sees: ASCII for full-width characters, one minus, what the last \boxed has."""
    text = _TRUE_MINUS.sub("-", text.translate(_SAME_CHARACTER))
    while boxed := _BOXED.findall(text):
        text = boxed[-1]
    return _LATEX_STYLE.sub(r"\1", text).strip()


_BARE_LETTER = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
# "B. cat", "(b) cat", "B - cat", "B, because"; not "e.g.", "A man", and of "A, B" neither.
_LETTER_FIRST = re.compile(
    r"""
    [\W_]*([A-Za-z])
    (?: \s*(?: \.(?![A-Za-z]\.) | [):\]*] )
      | (?<=[A-Z])\s*\n
      | (?<=[B-HJ-Z])(?: \s+-\s | ,\s ) )
    (?! \s*(?:,|/|&|and\b|or\b)?\s*[(\[]*[A-HJ-Z]\b[)\]]* \s*$ )
    \s*\S.*
    """,
    re.VERBOSE | re.DOTALL,
)
# A letter that a phrase announces. A capital may go on ("answer is B because it moves"), save the
# words A and I, and a small letter must end the text, or "the answer is a cat" would be an A.
_ANNOUNCED = r"""
    (?:\s+(?:option|choice|letter|probably|likely|clearly|most)){0,3}
    (?: \s*[:=-]\s* | \s+ | (?=[(\[*"$]) | (?<=[是为案选项]) )
    [\s(\[*"'$\\]*
    (?: ([B-HJ-Z])(?![\w-]|['.]\w)
      | ([AI])(?= [)\]*"$}\\] | '(?!\w) | \s*[.,;:!?](?!\w) | \s*(?:\(|-\s|$) | \s*\n
                | \s+(?:because|since|as|for|which|and|or)\b )
      | ([a-z])(?=[)\]*"'$}\\.!]*\s*$) )
    (?! [)\]*"']*\s*(?:,|/|&|and\b|or\b)\s*[(\[*"']*[A-HJ-Z]\b )
    (?! [)\]*"']*\s+is\s+(?:not|wrong|incorrect|false)\b )
"""
_ANSWER_IS = re.compile(
    r"""
    (?: (?i:\banswer) (?i:'s|\s+(?:is|was|(?:would|should|must|will)\s+be)\b)? | 答案[是为]? )
    """
    + _ANNOUNCED,
    re.VERBOSE,
)
_CHOICE_IS = re.compile(
    r"""
    (?: (?i:\b(?:option|choice)(?:\s+is\b)?) | 选项?
      | (?i:\b(?:choose|pick|select|go\s+with))
      | (?i:\b(?:I\s+think|it\s+is|it's))(?=\W+[A-Z]\b) )
    """
    + _ANNOUNCED,
    re.VERBOSE,
)
_IS_THE_ANSWER = re.compile(
    r"\b([A-Z])[)\]*\"']*\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b"
)
_LAST_LINE = re.compile(r"\n[\W_]*([A-Z])[\W_]*\Z")
_IN_BRACKETS = re.compile(r"[(\[]([A-Z])[)\]]")


def read_letter(answer: str) -> str | None:
    r"""Read an option letter as a person would: "(B)", "B. cat", "the answer is B", "\boxed{B}".

    A letter that merely begins a sentence ("A man walks") or a word is no option letter, and of
    two options that are named alike neither is read.
    """
    text = plain_text(answer)
    for pattern in (_BARE_LETTER, _LETTER_FIRST):
        match = pattern.fullmatch(text)
        if match:
            return match[1].upper()
    for pattern in (_ANSWER_IS, _IS_THE_ANSWER, _CHOICE_IS, _LAST_LINE, _IN_BRACKETS):
        letters = ["".join(match.groups("")).upper() for match in pattern.finditer(text)]
        # Who says "the answer is" twice has changed his mind.
        if letters and (pattern is _ANSWER_IS or len(set(letters)) == 1):
            return letters[-1]
    return None


# A number that stands by itself: no part of a name (T-5, B52), a date, a time or a power.
_NUMBER = re.compile(
    r"""
    (?<![^\W\d_])(?<![^\W\d_][-.])(?<!\d)(?<!\d[.,:/])
    (?P<sign>(?<![\d)])[-+])?[$€£¥]?
    (?: (?:(?P<whole>\d{1,15})\s+)?(?P<over>\d{1,15})\s?/\s?(?P<under>\d{1,15})
      | (?P<plain> (?: (?:\d{1,3}(?:[,'’\u00a0\u2009\u202f]\d{3})+|\d+)(?:\.\d+)? | \.\d+ )
                   (?:[eE][-+]?\d+)? ) )
    (?![.,:/]?\d|\s?/\s?\d|\^)
    (?:\s?(?P<scale>thousand|million|billion)\b)?
    """,
    re.VERBOSE,
)
_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9}
_HALVES = "[\u00bc-\u00be\u2150-\u215e]"
_AS_DIGITS: tuple[tuple[re.Pattern[str], Any], ...] = (
    (re.compile(rf"(?<=\d)(?=\\[dt]?frac|{_HALVES})"), " "),
    (re.compile(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}"), r"\1/\2"),
    (
        re.compile(_HALVES),
        lambda half: unicodedata.normalize("NFKC", half[0]).replace("\u2044", "/"),
    ),
    (
        re.compile("[\u207b\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+"),
        lambda power: "^" + unicodedata.normalize("NFKC", power[0]).replace("\u2212", "-"),
    ),
    (re.compile(r"(?<=\d)\s*(?:[x×*·]|\\times|\\cdot)\s*10\s*\^\s*\{?([-+]?\d+)\}?"), r"e\1"),
    # What is left of powers is a unit's (m^2), or of a number that is then not read.
    (re.compile(r"\^\s*\{?[-+]?\d+\}?"), "^"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\b(?:minus|negative)\s+(?=[$€£¥]?[.\d])", re.IGNORECASE), "-"),
)


def read_number(answer: str) -> float | None:
    """Read the one number of a text ("42", "1,000", "3.0 m", "$5", "1/2"); None if not exactly one.

    Percent signs and units do not count: "50%" is 50. Where no digit is, a word up to twenty does.
    """
    text = plain_text(answer)
    for pattern, replacement in _AS_DIGITS:
        text = pattern.sub(replacement, text)
    if not any(character.isdigit() for character in text):
        return _read_word(text.lower())
    found = list(_NUMBER.finditer(text))
    if len(found) != 1:
        return None
    [number] = found
    if number["under"] is None:
        value = float(re.sub("[,'’\u00a0\u2009\u202f]", "", number["plain"]))
    elif int(number["under"]):
        value = int(number["whole"] or 0) + int(number["over"]) / int(number["under"])
    else:
        return None
    value *= _SCALES.get(number["scale"], 1.0) * (-1 if number["sign"] == "-" else 1)
    return value if math.isfinite(value) else None


_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty",
)  # fmt: skip
_LARGER = re.compile(r"(?:thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|illion")


def _read_word(text: str) -> float | None:
    words = re.findall(r"[a-z]+", text)
    numbers = [word for word in words if word in _WORDS]
    # "The one on the left" counts nothing.
    if len(numbers) != 1 or _LARGER.search(text) or (numbers[0] == "one" and words[0] != "one"):
        return None
    before = words[: words.index(numbers[0])]
    return (-1.0 if before[-1:] in (["minus"], ["negative"]) else 1.0) * _WORDS.index(numbers[0])
