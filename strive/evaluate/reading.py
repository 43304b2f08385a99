"""What an output answers: the option, yes or no, or the number that a careful person reads in it.

Each function takes a model's words and returns what it read with the name of the rule that read
it, so that a result can be counted by rule; docs/grading.md explains every rule with an example.
None raises for any text.
"""

import math
import re
import string
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from strive.answers import (
    bounded_text,
    digits_text,
    extract_answer,
    find_letter,
    find_numbers,
    plain_text,
)


class ReadAnswer(NamedTuple):
    """What was read, empty if nothing, and the rule that read it or says why nothing was."""

    answer: str
    rule: str


# --- the part of an output that answers ----------------------------------------------------------

_THOUGHT_OPENS = re.compile(r"<(?:think|thinking|analysis)>", re.IGNORECASE)
_THOUGHT_CLOSES = re.compile(r"</(?:think|thinking|analysis)>", re.IGNORECASE)
_TAG = re.compile(r"</?answer>", re.IGNORECASE)
# What ends a text for a model, where it was not taken off.
_END_TOKEN = re.compile(r"</s>|<\|[a-z_]{1,20}\|>")


def final_text(output: str) -> ReadAnswer:
    """Return the part of an output that answers, with "answer tag", "whole text" or why none is.

    What follows the last closed thought; of that the first `<answer>` tag, closed or not. Empty
    tags count as none. A thought that never ends ("unfinished thought") is no answer.
    """
    text = output = _END_TOKEN.sub("", output)
    closings = [closing.end() for closing in _THOUGHT_CLOSES.finditer(output)]
    if closings:
        text = output[closings[-1] :]
    opening = _THOUGHT_OPENS.search(output)
    if opening and not text.strip():
        # An answer may stand before its explanation.
        text = output[: opening.start()]
    tagged = extract_answer(text) if "</answer>" in text else text.partition("<answer>")[2]
    if _TAG.sub("", tagged).strip():
        return ReadAnswer(_TAG.sub("", tagged).strip(), "answer tag")
    unfinished = _THOUGHT_OPENS.search(text)
    if unfinished:
        text = text[: unfinished.start()]
    text = _TAG.sub("", text).strip()
    if text:
        return ReadAnswer(text, "whole text")
    return ReadAnswer("", "unfinished thought" if unfinished else "empty")


# --- an option's letter --------------------------------------------------------------------------

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
_SCRIPT_BORDER = re.compile(rf"(?<=[{_CJK}])(?=[A-Za-z\d])|(?<=[A-Za-z\d])(?=[{_CJK}])")
# "The answer is" in the languages in which a model slips into; what follows must be a letter.
_ANSWER_IN_OTHER_WORDS = re.compile(
    r"(?:정답|답|答え|正解|回答|答案)\s*(?:은|는|は|应该是|是|为)?\s*:?\s*(?=[(\[]?[A-Z]\b)"
)
_LETTER = r"[(\[\"'*]{0,3}(?<!\w)(?<!\w['’])[A-Z](?![\w+#]|['’]\w)[)\]\"'*.]{0,3}"
_MORE_LETTERS = rf"(?:\s*[,;]\s*{_LETTER}){{0,25}}"
# "A or B", "A, B and C", "A/B"; a comma alone joins less: "B, A is smaller".
_JOINED = re.compile(
    rf"{_LETTER}{_MORE_LETTERS}"
    r"(?:\s*,?\s*(?:\b(?i:and|or|nor)\b(?:\s+(?i:maybe|perhaps|possibly|even|also)\b)?"
    r"|[/&|]|或者?|和|또는|か)\s*(?:\b(?i:option|choice)\s+)?"
    rf"{_LETTER}{_MORE_LETTERS}){{1,25}}"
)
_LISTED = re.compile(rf"{_LETTER}(?:\s*[,;]\s*(?:(?:maybe|perhaps|possibly)\s+)?{_LETTER}){{1,25}}")
_NOT_BEFORE = re.compile(
    r"(?:\b(?i:not|never|neither|nor|cannot|except|exclud\w+|eliminat\w+|rul\w+\s+out|reject\w*"
    r"|than|instead\s+of)\b|n['’]t\b|不是|不选)"
    r"(?:\s+(?i:be|the|option|choice|answer|is|either|likely|to|it)\b){0,3}\s*"
    rf"{_LETTER}"
    rf"(?:{_MORE_LETTERS}\s*,?\s*\b(?:or|nor|and)\b\s*{_LETTER})?"
)
_REFUSED = r"(?:wrong|excluded|eliminated|dismissed|discarded|rejected|ruled\s+out)"
_NOT_AFTER = re.compile(
    rf"(?!I\s+(?:do|did|can|could|would)(?:n['’]t)?)(?!I\s+cannot)"
    # "A, C and D are wrong", "A, C are wrong"; of "B, A is wrong" only the last is denied.
    rf"(?:{_LETTER}{_MORE_LETTERS}\s*,?(?:\s+(?:and|or)\s+|\s*[/&]\s*){_LETTER}"
    rf"|{_LETTER}{_MORE_LETTERS}(?=\s+(?:are|were)(?:\b|n['’]t))|{_LETTER})(?<!\.)\s+"
    r"(?:(?:is|are|was|were|seems?|looks?|can|could|does|do|would|should|must|have|has)"
    r"(?:\s+(?:\w+ly|both|all|also)){0,2}\s+"
    rf"(?:not|wrong|incorrect|false|impossible|unlikely|(?:be|been)\s+(?:\w+ly\s+)?{_REFUSED}"
    rf"|{_REFUSED}|out)"
    r"|cannot|(?:is|are|was|does|do|ca|could|would|wo)n['’]t)\b"
    r"(?!\s+(?:wrong|incorrect|only|just)\b)"
    rf"|{_LETTER}\s*:?\s*(?:wrong|incorrect|false)\b"
)
# "The answer is B, A and C are wrong": the letter that is announced is none of the list.
_ANNOUNCED_BEFORE = re.compile(
    r"(?:\banswer(?:\s+(?:is|was|would\s+be))?|\b(?:option|choice)\s+is|\bit\s+is|\bit's"
    r"|\b(?:choose|pick|select|go\s+with|think))\s*:?[\s\"'(\[*]*\Z",
    re.IGNORECASE,
)
_CORRECTED = re.compile(
    r"\b(?:no,?\s+wait|wait(?=\s*[,.!…-]|\s+no\b)|scratch\s+that|on\s+second\s+thought"
    r"|let\s+me\s+(?:reconsider|rethink|correct)|correction(?=\s*:)|actually,?\s+(?:no|it(?:'s|\s+is)))\b",
    re.IGNORECASE,
)
_ANNOUNCES = re.compile(
    r"[\W_]*(?:(?:so|thus|therefore|hence)\W+)?(?:(?:the|my)\s+)?(?:(?:correct|best|right|final)\s+)?"
    r"(?:answer|option|choice)\s*(?:is|:)\s*",
    re.IGNORECASE,
)
# A capital that stands by itself: no part of a word, a name (D-Day, C++) or initials (U.S.).
_STANDALONE = re.compile(r"(?<![\w.&+-])(?<!\w['’])[A-Z](?![\w+#]|['’&.-]\w)")
_END_MARKS = " .,;:!?\"'`()[]*_。，"
_ONE_LETTER_AGAIN = re.compile(r"[\W_]*([A-Z])(?:[\W_]*\1)+[\W_]*")
_ONLY_LETTERS = re.compile(r"[\W_]*(?:[A-Z](?!\.\w)[\W_]+)+[A-Z][\W_]*")
_NO_WORD = re.compile(r"[\W_]*")
_OPTION_BEFORE = re.compile(r"[\W_]*(?:the\s+)?(?:option|choice|letter)\b[\W_]*", re.IGNORECASE)
# After an option's letter, and not after an article.
_NO_NOUN = (
    r"\s+(?:because|since|as|for|which|is|was|seems|fits|matches|best|would|should|and|or|nor|but"
    r"|then|so|with|rather|over|not|if|due|given|based)\b"
)
_ARTICLE = re.compile(rf"(?<![\w.&+-])A(?=\s+[a-z])(?!{_NO_NOUN})")
_WORD_FOLLOWS = re.compile(rf"(?!{_NO_NOUN})\s+[A-Za-z]")


def option_letters(options: Sequence[str]) -> str:
    """The letters of so many options, A to Z at most; without options any letter may be meant."""
    return string.ascii_uppercase[: len(options)] if options else string.ascii_uppercase


def option_text(option: str, letter: str) -> str:
    """An option without the letter that it may carry: "B. cat", "(B) cat" and "cat" are one."""
    return re.sub(rf"^\s*\(?{letter}\s*[.):]\s*", "", option).strip()


def fold(text: str) -> str:
    """A text for comparing: case, white space and the marks at its ends do not count."""
    return " ".join(plain_text(text).casefold().split()).strip(_END_MARKS)


def read_option(text: str, options: Sequence[str]) -> ReadAnswer:
    """Read an option's letter in a `final_text`; options may carry letters or not.

    The order of the rules: the letter alone, an option's text, a letter with its option's text,
    then, once denied letters are struck out, what `answers.find_letter` reads, then the one
    capital letter that begins the text, ends it, or is the only one. Letters that are joined ("A
    or B") name none.
    """
    plain = _SCRIPT_BORDER.sub(" ", plain_text(text))
    letters = option_letters(options)
    texts = {
        letter: option_text(option, letter)
        for letter, option in zip(letters, options, strict=False)
    }
    found = _read_known_text(plain, texts)
    if found is None:
        rest = _without_listing(plain, texts)
        if rest != plain and not rest.strip(string.punctuation + string.whitespace):
            return ReadAnswer("", "all options listed")
        *_, last = _CORRECTED.split(rest)
        found = _read_letter(last, letters) if last != rest else None
        if found is None or not found.answer:
            found = _read_letter(rest, letters)
    if found.answer and found.answer not in letters:
        return ReadAnswer("", "no such option")
    return found


def _read_known_text(plain: str, texts: dict[str, str]) -> ReadAnswer | None:
    """Rules that know what the options say."""
    by_text: dict[str, list[str]] = {}
    for letter, option in texts.items():
        by_text.setdefault(fold(option), []).append(letter)
    by_text.pop("", None)
    folded = fold(plain)
    is_letter = len(folded) == 1 and folded.upper() in texts
    if not is_letter:
        for written in (folded, fold(_ANNOUNCES.sub("", plain, count=1))):
            if len(by_text.get(written, [])) == 1:
                return ReadAnswer(by_text[written][0], "option's text")
    begins = re.match(r"[\W_]*([A-Za-z])\b", plain)
    if begins and begins[1].upper() in texts:
        option = fold(texts[begins[1].upper()])
        if option and fold(plain[begins.end() :]) == option:
            return ReadAnswer(begins[1].upper(), "letter and its text")
    return None


def _without_listing(plain: str, texts: dict[str, str]) -> str:
    """The text without a copy of all the options, one after another with their letters."""
    if len(texts) < 2 or not all(texts.values()):
        return plain
    lines = [
        rf"\(?{letter}\W{{1,3}}" + r"\s+".join(map(re.escape, plain_text(option).split()))
        for letter, option in texts.items()
    ]
    return re.sub(r"(?:\boptions\W{1,3})?" + r"\W{1,4}".join(lines), "", plain, flags=re.IGNORECASE)


def _read_letter(plain: str, letters: str) -> ReadAnswer:
    """Rules that look for letters alone."""
    again = _ONE_LETTER_AGAIN.fullmatch(plain)
    if again:
        return ReadAnswer(again[1], "letter alone")
    if _ONLY_LETTERS.fullmatch(plain):
        return ReadAnswer("", "several options")
    plain = bounded_text(_ARTICLE.sub("a", plain))
    # What is struck out leaves blanks, which may join to a long run of them.
    kept = bounded_text(_NOT_AFTER.sub(_strike, bounded_text(_NOT_BEFORE.sub(" ", plain))))
    single = bounded_text(_JOINED.sub(" ", kept))
    found = find_letter(_ANSWER_IN_OTHER_WORDS.sub("The answer is ", single))
    if found:
        return ReadAnswer(*found)
    single = bounded_text(_LISTED.sub(" ", single))
    mentions = [m for m in _mentions(single) if m[0] in letters]
    if mentions:
        first, last = mentions[0], mentions[-1]
        num_named = len({mention[0] for mention in mentions})
        before = single[: first.start()]
        if _NO_WORD.fullmatch(before) or (num_named == 1 and _OPTION_BEFORE.fullmatch(before)):
            return ReadAnswer(first[0], "letter first")
        if _NO_WORD.fullmatch(single[last.end() :]):
            return ReadAnswer(last[0], "letter last")
        if num_named == 1:
            return ReadAnswer(first[0], "only letter")
    if mentions or single != kept:
        return ReadAnswer("", "several options")
    return ReadAnswer("", "denied" if kept != plain else "unread")


def _strike(denied: re.Match[str]) -> str:
    """Return what stays of denied letters: the first of a list by commas, if it is announced."""
    before = denied.string[max(0, denied.start() - _MOST_BEFORE) : denied.start()]
    first, comma, _ = denied[0].partition(",")
    return f"{first}. " if comma and _ANNOUNCED_BEFORE.search(before) else " "


_MOST_BEFORE = 40
"""Characters in which an announcement before a letter is looked for."""


def _mentions(plain: str) -> Iterator[re.Match[str]]:
    """Capitals that stand by themselves, save the article "A" and the pronoun "I"."""
    for mention in _STANDALONE.finditer(plain):
        if mention[0] not in "AI" or not _WORD_FOLLOWS.match(plain, mention.end()):
            yield mention


# --- yes or no -----------------------------------------------------------------------------------

_YES = "yes|yeah|yep|yup|是的|是|はい|예|네"
_NO = "no|nope|nah|not at all|not really|never|不是|否|いいえ|아니요|아니오"
_YES_OR_NO = rf"({_YES}|{_NO})(?!\w|['’-]\w)"
_AND_OR = r"\s*(?:/|,?\s*\b(?:and|or)\b)\s*"
_BOTH = re.compile(rf"[\W_]*(?:(?:{_YES}){_AND_OR}(?:{_NO})|(?:{_NO}){_AND_OR}(?:{_YES}))(?!\w)")
_SIDES = r"(?:yes|yeah|yep|yup|no|nope)\b(?!['’-]\w)"
# "Not yes", "can't be a yes", "neither yes nor no", "wrong to say yes"; "yes is wrong".
_NO_SUCH_SIDE = re.compile(
    r"(?:(?:\b(?:not|never|cannot|neither|nor)|n['’]t|\b(?:rather|other)[ ]than|\binstead[ ]of)"
    r"|\b(?:wrong|incorrect|false)[ ]to)"
    r"(?:[ ](?:an?|the|be|say|answer|is|it|either|\w{1,20}ly)){0,4}"
    rf"[ ][\"'(*]{{0,3}}{_SIDES}(?:[\"')*]{{0,3}}(?:[ ]?,[ ]?|[ ]?/[ ]?|[ ](?:or|nor|and)[ ])"
    rf"[\"'(*]{{0,3}}{_SIDES}){{0,3}}"
    rf"|\b{_SIDES}[\"')*]{{0,3}}[ ](?:(?:is|was|would[ ]be|seems)[ ](?:not|wrong|incorrect|false)"
    r"|(?:is|was|would|ca|could)n['’]t|(?:cannot|could[ ]not|can[ ]not)[ ]be)\b"
)
_PLACES = (
    ("first word", re.compile(rf"[\W_]*{_YES_OR_NO}")),
    ("answer announced", re.compile(rf".*\banswer(?:\s+is|\s*:)?[\W_]*{_YES_OR_NO}", re.DOTALL)),
    ("last word", re.compile(rf".*[\W_]{_YES_OR_NO}[\W_]*\Z", re.DOTALL)),
)


def read_yes_no(text: str) -> ReadAnswer:
    """Read "yes" or "no" in a `final_text`: its first word, an announced or its last one.

    "not sure", "nothing" and "north" are no "no"; "not yes" is neither ("denied").
    """
    folded = bounded_text(plain_text(text).casefold())
    if _BOTH.match(folded):
        return ReadAnswer("", "several answers")
    kept = bounded_text(_NO_SUCH_SIDE.sub(" ", folded))
    for rule, pattern in _PLACES:
        match = pattern.match(kept)
        if match:
            return ReadAnswer("yes" if re.fullmatch(_YES, match[1]) else "no", rule)
    return ReadAnswer("", "denied" if kept != folded else "unread")


# --- a number ------------------------------------------------------------------------------------

_ONES = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORD_VALUES = {
    "zero": 0,
    **{word: value for value, word in enumerate(_ONES.split(), start=1)},
    **{word: 10 * value for value, word in enumerate(_TENS.split(), start=2)},
    "hundred": 100,
    "thousand": 1000,
}
_WORD = re.compile(r"[a-z]+")
# "One" counts nothing in "the one on the left", "no one" and "one can see".
_NO_COUNT_BEFORE = {"the", "this", "that", "which", "no", "any", "every", "each", "some", "another"}
_NO_COUNT_AFTER = {"can", "could", "would", "should", "might", "must", "may"}
_NUMBER_ANNOUNCED = re.compile(r".*(?:\banswer\s*(?:is|:)|[=≈])", re.DOTALL | re.IGNORECASE)
_MOST_BETWEEN = 25
"""Characters between an announcement and its number ("the answer is approximately 3")."""
_RANGE = re.compile(r"\s*[a-z²³%]{0,8}\s*(?:-|~|\bto\b|\bor\b)\s*", re.IGNORECASE)
_BETWEEN = re.compile(r"between\s*\Z", re.IGNORECASE)


def read_quantity(text: str) -> tuple[float, str]:
    """Read a number of any unit in a `final_text`, NaN if none, with the rule that read it.

    The number that is announced ("the answer is 3", "= 3"), else the first in the text, in digits
    or in English words; thousands separators, fractions and powers of ten count. Of a range ("3 to
    5") neither end is read.
    """
    written = _SCRIPT_BORDER.sub(" ", digits_text(text))
    numbers = sorted([*find_numbers(written), *_find_words(written.lower())], key=lambda n: n[1])
    numbers = [number for number in numbers if math.isfinite(number[0])]
    if not numbers:
        return math.nan, "unread"
    announced = _NUMBER_ANNOUNCED.match(written)
    after = [n for n in numbers if announced and 0 <= n[1] - announced.end() <= _MOST_BETWEEN]
    value, start, end = (after or numbers)[0]
    following = [n for n in numbers if n[1] >= end]
    if following:
        between = written[end : following[0][1]]
        is_pair = between.strip() == "and" and _BETWEEN.search(written[:start])
        if is_pair or _RANGE.fullmatch(between):
            return math.nan, "several numbers"
    return value, "number announced" if after else "first number"


def _find_words(text: str) -> Iterator[tuple[float, int, int]]:
    """Numbers in English words of a lower-case text ("three hundred and five"): value, span."""
    words = list(_WORD.finditer(text))
    at = 0
    while at < len(words):
        run = [words[at]]
        at += 1
        if run[0][0] not in _WORD_VALUES:
            continue
        before = words[at - 2][0] if at >= 2 else ""
        while at < len(words):
            skipped = int(words[at][0] == "and" and run[-1][0] in ("hundred", "thousand"))
            following = words[at + skipped] if at + skipped < len(words) else words[at]
            if not _continues(run[-1][0], following[0]):
                break
            if text[run[-1].end() : following.start()].strip(" -and"):
                break
            run.append(following)
            at += 1 + skipped
        after = words[at][0] if at < len(words) else ""
        is_pronoun = [word[0] for word in run] == ["one"] and (
            before in _NO_COUNT_BEFORE or after in _NO_COUNT_AFTER
        )
        if not is_pronoun:
            sign = -1.0 if before in ("minus", "negative") else 1.0
            yield sign * _word_value([word[0] for word in run]), run[0].start(), run[-1].end()


def _continues(word: str, following: str) -> bool:
    """Whether two words are parts of one number: "twenty one", "two hundred", not "two three"."""
    if following not in _WORD_VALUES:
        return False
    value, next_value = _WORD_VALUES[word], _WORD_VALUES[following]
    if next_value >= 100:
        return 0 < value < next_value
    return value >= 100 or (value >= 20 and 0 < next_value < 10)


def _word_value(words: Sequence[str]) -> float:
    total, current = 0, 0
    for word in words:
        value = _WORD_VALUES[word]
        if value == 1000:
            total, current = total + max(current, 1) * 1000, 0
        elif value == 100:
            current = max(current, 1) * 100
        else:
            current += value
    return float(total + current)
