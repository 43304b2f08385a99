"""Grades of benchmark answers: Video-R1's evaluation rules, and each benchmark's own (`direct`).

Pure functions from a model's output to a `Grade`. docs/grading.md has every rule in plain words and
the classes of answers on which the direct rules differ from lmms-eval 0.7.3.
"""

import math
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from strive import answers
from strive.errors import unknown_name
from strive.evaluate.items import Grade
from strive.evaluate.reading import (
    final_text,
    fold,
    option_letters,
    option_text,
    read_option,
    read_quantity,
    read_yes_no,
)

Boundary = Literal["official", "video_r1"]


# --- mean relative accuracy ----------------------------------------------------------------------

NUM_THRESHOLDS = 10
"""Ten: 0.50, 0.55, ..., 0.95."""


def mean_relative_accuracy(prediction: float, target: float, *, boundary: Boundary) -> float:
    """Share of ten thresholds theta with |prediction - target| / |target| within 1 - theta.

    `official` (VSI-Bench, arXiv:2412.14171, its published code, lmms-eval and VLMEvalKit): at most
    1 - theta, in float64. `video_r1` (Video-R1, src/eval_bench.py): less than 1 - theta, in
    float32, over |target| + 1e-8. Counts meet the border all the time: a 3 for a 4 is 0.6 or 0.5.
    A prediction that is not finite scores 0. For a target of 0, which the benchmark does not hold,
    only an exact prediction scores.
    """
    if not (math.isfinite(prediction) and math.isfinite(target)):
        return 0.0
    if boundary == "official":
        error = abs(prediction - target) / abs(target) if target else float(prediction != 0)
        return float((error <= 1 - np.linspace(0.5, 0.95, NUM_THRESHOLDS)).mean())
    # So many, and each a little above the exact one: an error on the border is never within.
    thresholds = np.arange(0.5, 0.975, 0.05, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        found, wanted = np.float32(prediction), np.float32(target)
        error_32 = np.abs(found - wanted) / (np.abs(wanted) + np.float32(1e-8))
        within = error_32 < np.float32(1) - thresholds
    return float(within.mean())


# --- Video-R1 ------------------------------------------------------------------------------------


def grade_video_r1(problem_type: str, output: str, solution: str) -> Grade:
    """Grade as Video-R1's evaluation script does (src/eval_bench.py), oddities included.

    The first `<answer>` tag, or without one (or with an empty one) the whole output. Multiple
    choice: the same text as the solution's. Numerical: equal after rounding to two digits, and
    either both or neither with a "." or ",". Regression: `mean_relative_accuracy` with that
    script's border. Other types score 0 there.

    Raises:
        UnknownNameError: no such problem type.
    """
    if problem_type not in answers.PROBLEM_TYPES:
        raise unknown_name("problem_type", problem_type, answers.PROBLEM_TYPES)
    answer = answers.extract_answer_or_text(output)
    rule = "answer tag" if answers.extract_answer(output) else "whole text"
    if not answer:
        return Grade(0.0, "", "empty", parsed=False)
    if problem_type in ("OCR", "free-form"):
        return Grade(0.0, answer, "type not graded", parsed=True)
    if problem_type == "regression":
        found = answers.strict_number(answer)
        wanted = answers.strict_number(answers.extract_answer_or_text(solution))
        score = (
            0.0
            if found is None or wanted is None
            else mean_relative_accuracy(found, wanted, boundary="video_r1")
        )
    else:
        score = answers.grade(problem_type, answer, solution, rules="video_r1")
    return Grade(score, answer, rule, parsed=answers.is_parsed(problem_type, answer))


# --- direct: letters, yes or no, numbers ---------------------------------------------------------


def grade_choice(output: str, options: Sequence[str], solution: str) -> Grade:
    """Grade multiple choice by the option that `reading.read_option` reads.

    The rule of Video-MME, PerceptionTest, MMVU and the multiple-choice questions of the others.
    `options` may carry letters or not; `solution` is a letter or an option.
    """
    part = final_text(output)
    if not part.answer:
        return Grade(0.0, "", part.rule, parsed=False)
    letter, rule = read_option(part.answer, options)
    score = float(bool(letter) and letter == gold_letter(solution, options))
    return Grade(score, letter, rule, parsed=bool(letter))


def gold_letter(solution: str, options: Sequence[str]) -> str:
    """Return the letter of a solution ("B", "b", "B. cat", "cat", tagged or not), "" if none is."""
    gold = answers.extract_answer_or_text(solution)
    letters = option_letters(options)
    bare = gold.strip().rstrip(".")
    if len(bare) == 1 and bare.upper() in letters:
        return bare.upper()
    for letter, option in zip(letters, options, strict=False):
        text = fold(option_text(option, letter))
        if fold(option_text(gold, letter)) == text or fold(gold) == text:
            return letter
    labelled = re.match(r"\(?([A-Z])[.):]", gold)
    return labelled[1] if labelled and labelled[1] in letters else ""


def grade_vsibench(output: str, options: Sequence[str], solution: str) -> Grade:
    """Grade VSI-Bench: `grade_choice` with options; without, the official mean relative accuracy.

    The number is `reading.read_quantity`'s. lmms-eval 0.7.3 takes the first one as well.
    """
    if options:
        return grade_choice(output, options, solution)
    part = final_text(output)
    if not part.answer:
        return Grade(0.0, "", part.rule, parsed=False)
    found, rule = read_quantity(part.answer)
    if math.isnan(found):
        return Grade(0.0, "", rule, parsed=False)
    wanted = answers.strict_number(answers.extract_answer_or_text(solution))
    score = 0.0 if wanted is None else mean_relative_accuracy(found, wanted, boundary="official")
    return Grade(score, f"{found:.15g}", rule, parsed=True)


# --- TempCompass ---------------------------------------------------------------------------------

_LABELLED = re.compile(r"\s*((?:option|caption|sentence)\s+([12AB]))\s*:\s*(.*)", re.I | re.DOTALL)
_LINE_LABEL = re.compile(r"^(\W*)(?:option|caption|sentence)\s+([12AB])\s*:", re.I | re.MULTILINE)
_LABEL = re.compile(r"\b(?:option|caption|sentence)\s*\(?([12AB])\b\)?", re.IGNORECASE)
_BARE_NUMBER = re.compile(
    r"(\A[\W_]*|\b(?:answer|option|caption|sentence|choice)(?:\s+is|:)[\W_]*)"
    r"([12])(?=[\W_]*\Z|\s*[.):](?!\d))",
    re.IGNORECASE,
)
_LETTER_OF = {"1": "A", "2": "B", "a": "A", "b": "B"}


def grade_tempcompass(output: str, options: Sequence[str], solution: str, task: str) -> Grade:
    """Grade one of TempCompass' tasks: `multi-choice`, `yes_no`, `caption_matching`, `captioning`.

    `options` are the question's option lines ("A. walking"; "Option 1: A man walks."), `solution`
    the published answer. Captions are graded by a judge in the original and by nothing here: a
    `captioning` question counts only when it was turned into multiple choice (its `mc_question`).

    Raises:
        UnknownNameError: no such task.
    """
    if task not in TEMPCOMPASS_TASKS:
        raise unknown_name("TempCompass task", task, TEMPCOMPASS_TASKS)
    if task == "yes_no":
        return grade_yes_no(output, solution)
    if task == "caption_matching":
        return grade_caption_matching(output, options, solution)
    if task == "captioning" and not options:
        return Grade(0.0, "", "needs a judge", parsed=False)
    return grade_choice(output, options, solution)


TEMPCOMPASS_TASKS = ("multi-choice", "yes_no", "caption_matching", "captioning")


def grade_yes_no(output: str, solution: str) -> Grade:
    """Grade "yes" or "no" by `reading.read_yes_no`."""
    part = final_text(output)
    if not part.answer:
        return Grade(0.0, "", part.rule, parsed=False)
    answer, rule = read_yes_no(part.answer)
    is_right = bool(answer) and answer == fold(answers.extract_answer_or_text(solution))
    return Grade(float(is_right), answer, rule, parsed=bool(answer))


def grade_caption_matching(output: str, options: Sequence[str], solution: str) -> Grade:
    """Grade the choice between two labelled sentences; the answer is the label that was read.

    Labels ("Option 2", "Caption B", "2") are read as letters are, so `read_option` does the work.
    """
    part = final_text(output)
    if not part.answer:
        return Grade(0.0, "", part.rule, parsed=False)
    labels = [_LABELLED.fullmatch(option) for option in options]
    sentences = [
        label[3] if label else option for label, option in zip(labels, options, strict=True)
    ]
    text = answers.plain_text(part.answer)
    text = _BARE_NUMBER.sub(lambda m: m[1] + _LETTER_OF[m[2]], text)
    text = _LINE_LABEL.sub(lambda m: f"{m[1]}{_LETTER_OF[m[2].lower()]}.", text)
    text = _LABEL.sub(lambda m: f"option {_LETTER_OF[m[1].lower()]}", text)
    letter, rule = read_option(text, sentences)
    gold = _LABELLED.fullmatch(answers.extract_answer_or_text(solution))
    wanted = _LETTER_OF[gold[2].lower()] if gold else gold_letter(solution, sentences)
    label = dict(zip("AB", labels, strict=False)).get(letter)
    answer = label[1] if label else letter
    return Grade(float(bool(letter) and letter == wanted), answer, rule, parsed=bool(letter))


# --- Video-MMMU's open questions -----------------------------------------------------------------

# fmt: off
_CUES = (
    "could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ", "are ",
    "in total ", "total ", "identify ", "recognize ", "calculated as ", "counted as ",
    "measured as ", "observed as ", "concluded as ", "found to be ", "equals ",
    "determined to be ", "number of ", "value is ", "adds up to ", "have ", "has ",
)
# fmt: on
"""MMMU's list; what follows the last of them in a line is the candidate."""
_PLAIN_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    # Only from a number's first digit: to try each of a long one takes the square of its length.
    re.compile(r"-?(?<!\d)\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:(?<!\d)\d+\.\d+|\.\d+|(?<!\d)\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def grade_videommmu(output: str, options: Sequence[str], solution: str) -> Grade:
    """Grade Video-MMMU: `grade_choice` for any row with options, whatever its type says.

    Without options as MMMU's parser of open answers does (MMMU, eval_utils.py): each line's
    shortest tail after a cue word and all its numbers are candidates; one that equals the solution
    as a number (two digits), or holds it as words, is right. A letter as the solution is read as a
    letter, a list of solutions as several of them.
    """
    if options:
        return grade_choice(output, options, solution)
    part = final_text(output)
    if not part.answer:
        return Grade(0.0, "", part.rule, parsed=False)
    golds = published_solutions(answers.extract_answer_or_text(solution))
    if all(re.fullmatch("[A-Za-z]", gold) for gold in golds):
        return grade_choice(output, (), golds[0])
    text = answers.bounded_text(part.answer)
    tails = _key_tails(text)
    for gold in golds:
        value = _rounded(gold)
        for tail in tails:
            if value is None and re.search(rf"(?<!\w){re.escape(gold.lower())}(?!\w)", tail):
                return Grade(1.0, gold, "words of the solution", parsed=True)
            if value is not None and value in map(_rounded, [tail, *_numbers_in(tail)]):
                return Grade(1.0, gold, "number of a key phrase", parsed=True)
        if value is not None and value == _rounded(f"{answers.read_number(text)}"):
            return Grade(1.0, gold, "only number", parsed=True)
    return Grade(0.0, tails[-1], "key phrase", parsed=True)


def published_solutions(gold: str) -> list[str]:
    """Return the entries of a list that was published as text, "['24/7', '3.429']", or the text."""
    if not gold.startswith("["):
        return [gold]
    # One published list lacks its last quote.
    parts = [part.strip(" '\"") for part in gold.strip("[]").split(",")]
    return [part for part in parts if part] or [gold]


def _key_tails(answer: str) -> list[str]:
    """Each line's shortest tail after a cue word, lower case; without any the whole answer."""
    lines = answer.strip().strip(".").lower().split("\n")
    tails = []
    for number, line in enumerate(lines):
        cues = (*_CUES, "=") if number == len(lines) - 1 else _CUES
        found = [line.rsplit(cue, 1)[1].strip() for cue in cues if cue in line]
        shortest = min((tail for tail in found if tail), key=len, default="")
        if re.search(r"\w", shortest):
            tails.append(shortest)
    return tails or [answer.strip().strip(".").lower()]


def _numbers_in(text: str) -> list[str]:
    return [number for pattern in _PLAIN_NUMBERS for number in pattern.findall(text)]


def _rounded(text: str) -> float | None:
    value = answers.strict_number(text)
    return None if value is None else round(value, 2)
