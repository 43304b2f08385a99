"""Questions as text, and answers as numbers: prompt templates, extraction, grading by rule set.

Used by the rewards and by evaluation, so that both mean the same by "correct". Rule set `video_r1`
is that of Video-R1's RL script (grpo.py): its prompt and its grading are a protocol and are kept to
the letter, save that an empty or non-finite answer is always wrong (there, "nan" earned a full
regression reward). Rule set `tolerant` reads what a person would accept (below). Both grade an
interval (`grounding`) by its IoU, as Time-R1 does, and the letter of a `grounded multiple choice`
as VideoChat-R1 reads it.
"""

import math
import re
import unicodedata
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, get_args

from strive.choices import GradingRules
from strive.errors import unknown_name
from strive.intervals import best_iou, read_clues, read_interval, read_intervals, split_clues
from strive.records import CHOICE_TYPES, PROBLEM_TYPES, Record

# Full-width characters are their ASCII twins; hyphens and dashes of any length are one sign.
_SAME_CHARACTER: dict[int, int | str] = {
    **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)},
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\ufe63"), "-"),
    0x3000: " ",
}
_TRUE_MINUS = re.compile("\u2212\\s*")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_LATEX_STYLE = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")


# A policy that has fallen into a loop writes tens of thousands of them, and the time of a pattern
# may grow with the square of such a run.
_LONG_BLANK = re.compile(r"\s{9,}")
_LONG_MARKS = re.compile(r"([\W_]{16})([\W_]{8,})([\W_]{16})")


def bounded_text(text: str) -> str:
    """Shorten long runs of white space and of marks; letters and digits stay, and so do lines.

    More than eight blanks are one (a line break, if one is among them), and of 40 marks or more
    the first and last 16 are kept.
    """

    def blank(run: re.Match[str]) -> str:
        return "\n" if "\n" in run[0] else " "

    def marks(run: re.Match[str]) -> str:
        return run[1] + ("\n" if "\n" in run[2] else "") + run[3]

    return _LONG_MARKS.sub(marks, _LONG_BLANK.sub(blank, text))


def plain_text(text: str) -> str:
    r"""What a person sees: ASCII for full-width characters, one minus, what the last \boxed has.

    Long runs of blanks and marks are those of `bounded_text`.
    """
    text = _TRUE_MINUS.sub("-", bounded_text(text.translate(_SAME_CHARACTER)))
    while boxed := _BOXED.findall(text):
        text = boxed[-1]
    # Taking a style away may join marks.
    return bounded_text(_LATEX_STYLE.sub(r"\1", text)).strip()


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


_WHOLE_RULES = (("letter alone", _BARE_LETTER), ("letter first", _LETTER_FIRST))
_INNER_RULES = (
    ("answer announced", _ANSWER_IS),
    ("called right", _IS_THE_ANSWER),
    ("option announced", _CHOICE_IS),
    ("last line", _LAST_LINE),
    ("in brackets", _IN_BRACKETS),
)


def find_letter(answer: str) -> tuple[str, str] | None:
    r"""Return an option letter, upper case, and the name of the rule that read it; None without.

    Read as a person would: "(B)", "B. cat", "the answer is B", "\boxed{B}". A letter that merely
    begins a sentence ("A man walks") or a word is no option letter, and of two options that are
    named alike neither is read.
    """
    text = plain_text(answer)
    for rule, pattern in _WHOLE_RULES:
        match = pattern.fullmatch(text)
        if match:
            return match[1].upper(), rule
    for rule, pattern in _INNER_RULES:
        letters = ["".join(match.groups("")).upper() for match in pattern.finditer(text)]
        # Who says "the answer is" twice has changed his mind.
        if letters and (pattern is _ANSWER_IS or len(set(letters)) == 1):
            return letters[-1], rule
    return None


def read_letter(answer: str) -> str | None:
    """Return the option letter of `find_letter`, or None."""
    found = find_letter(answer)
    return found[0] if found else None


# What VideoChat-R1 takes out of an answer before it looks for a letter. The last is two phrases,
# joined for want of a comma.
_STOCK_PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:Best option:",
)
_FIRST_CAPITAL = re.compile("[A-G]")


def read_first_capital(answer: str) -> str | None:
    """Return VideoChat-R1's option letter: the first capital from A to G, or None.

    Stock phrases go first; any other word counts, so that "Both" is a B (arXiv:2504.06958, code).
    """
    for phrase in _STOCK_PHRASES:
        answer = answer.replace(phrase, "")
    found = _FIRST_CAPITAL.search(answer)
    return found[0] if found else None


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


def digits_text(answer: str) -> str:
    """What a person sees (`plain_text`), with powers, fractions and "minus" written in digits."""
    text = plain_text(answer)
    for pattern, replacement in _AS_DIGITS:
        text = pattern.sub(replacement, text)
    return text


def find_numbers(text: str) -> list[tuple[float, int, int]]:
    """Every number in digits of a `digits_text` that stands by itself: value, start, end.

    No part of a name (B52), date, time or version is one. A value that no float holds, and one
    over zero, is not finite.
    """
    found = []
    for number in _NUMBER.finditer(text):
        if number["under"] is None:
            value = float(re.sub("[,'’\u00a0\u2009\u202f]", "", number["plain"]))
        elif int(number["under"]):
            value = int(number["whole"] or 0) + int(number["over"]) / int(number["under"])
        else:
            value = math.nan
        value *= _SCALES.get(number["scale"], 1.0) * (-1 if number["sign"] == "-" else 1)
        found.append((value, number.start(), number.end()))
    return found


def read_number(answer: str) -> float | None:
    """Read the one number of a text ("42", "1,000", "3.0 m", "$5", "1/2"); None if not exactly one.

    Percent signs and units do not count: "50%" is 50. Where no digit is, a word up to twenty does.
    """
    text = digits_text(answer)
    if not any(character.isdigit() for character in text):
        return _read_word(text.lower())
    found = find_numbers(text)
    if len(found) != 1 or not math.isfinite(found[0][0]):
        return None
    return found[0][0]


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


GRADING_RULES: tuple[str, ...] = get_args(GradingRules)
GRADING_VERSION = 3
"""Raised whenever a grade can change; evaluation results carry it."""

_OPENS, _CLOSES = "<answer>", "</answer>"
_FROM_THOUGHT_TO_ANSWER = re.compile(r"</think>\s*<answer>")

# --- prompts ------------------------------------------------------------------------------------

# One line; there is no full stop after "thought expressions" in the source either.
_VIDEO_R1_INSTRUCTION = (
    "Please think about this question as if you were a human pondering deeply. Engage in an "
    "internal dialogue using expressions such as 'let me think', 'wait', 'Hmm', 'oh, I see', "
    "'let's break it down', etc, or other natural language thought expressions It's encouraged to "
    "include self-reflection or verification in the reasoning process. Provide your detailed "
    "reasoning between the <think> </think> tags, and then give your final answer between the "
    "<answer> </answer> tags."
)
# Video-R1's evaluation script says "and" between each pair of tags where its RL script does not.
_VIDEO_R1_EVAL_INSTRUCTION = _VIDEO_R1_INSTRUCTION.replace(
    "<think> </think>", "<think> and </think>"
).replace("<answer> </answer>", "<answer> and </answer>")

_NUMERICAL_SUFFIX = (
    " Please provide the numerical value (e.g., 42 or 3.14) within the <answer> </answer> tags."
)
_VIDEO_R1_SUFFIX = {
    "multiple choice": (
        " Please provide only the single option letter (e.g., A, B, C, D, etc.) "
        "within the <answer> </answer> tags."
    ),
    "numerical": _NUMERICAL_SUFFIX,
    "regression": _NUMERICAL_SUFFIX,
    "OCR": (
        " Please transcribe text from the image/video clearly and provide your text answer "
        "within the <answer> </answer> tags."
    ),
    "free-form": " Please provide your text answer within the <answer> </answer> tags.",
    # These two are ours: Video-R1 asks nothing of the kind.
    "grounding": (
        " Please provide the start and the end of the event in seconds (e.g., 12.54 to 17.83) "
        "within the <answer> </answer> tags."
    ),
    "grounded multiple choice": (
        " Please provide only the single option letter (e.g., A, B, C, D, etc.) within the "
        "<answer> </answer> tags, followed by the time spans in seconds that show it "
        "(e.g., [(5.2, 10.4)]) within the <glue> </glue> tags."
    ),
}
_DIRECT_SUFFIX = {
    "multiple choice": "Answer with the option's letter from the given choices directly.",
    "numerical": "Answer the question using a single number.",
    "regression": "Answer the question using a single number.",
    "OCR": "Answer with the text itself and nothing else.",
    "free-form": "Answer the question using a single word or phrase.",
    "grounding": "Answer with the start and the end in seconds, such as 12.54 to 17.83.",
    "grounded multiple choice": (
        "Answer with the option's letter from the given choices directly."
    ),
}


# {template: what follows the question, and what follows that, by problem type}
TEMPLATES: dict[str, tuple[str, dict[str, str]]] = {
    "video_r1": (_VIDEO_R1_INSTRUCTION, _VIDEO_R1_SUFFIX),
    "video_r1_eval": (_VIDEO_R1_EVAL_INSTRUCTION, _VIDEO_R1_SUFFIX),
    "direct": ("", _DIRECT_SUFFIX),
    "short": ("", {}),
    "answer_twice": ("", {}),
}
"""`video_r1`: the RL prompt; `video_r1_eval`: its evaluation script's wording; `direct`: the answer
alone; `short`: the question and its options without any instruction; `answer_twice`: likewise,
where VideoAuto-R1's instruction is in the system turn (`two_answers.py`, `system_prompt`)."""


def build_question(record: Record, template: str) -> str:
    """Return the text of the user turn that follows the video.

    Raises:
        UnknownNameError: no such template.
    """
    if template not in TEMPLATES:
        raise unknown_name("prompt_template", template, TEMPLATES)
    text = record.problem
    if record.problem_type in CHOICE_TYPES and record.options:
        # No newline before "Options:": that is how Video-R1 joins them.
        text += "Options:\n" + "".join(f"{option}\n" for option in record.options)
    instruction, suffixes = TEMPLATES[template]
    return f"{text}\n{instruction}{suffixes[record.problem_type]}" if suffixes else text


# --- extraction ---------------------------------------------------------------------------------


def extract_answer(text: str) -> str:
    """Return what stands in the first `<answer>` tags, stripped; without tags the empty string."""
    start = text.find(_OPENS)
    end = text.find(_CLOSES, start)
    return text[start + len(_OPENS) : end].strip() if 0 <= start < end else ""


def extract_last_answer(text: str) -> str:
    """Return what stands in the last `<answer>` tags, stripped; without tags the empty string."""
    answer, end = "", 0
    while (start := text.find(_OPENS, end)) >= 0 and (closes := text.find(_CLOSES, start)) >= 0:
        answer, end = text[start + len(_OPENS) : closes].strip(), closes + len(_CLOSES)
    return answer


def extract_graded(problem_type: str, text: str) -> str:
    """Return what is graded of a completion: within its first answer tags, for grounding the last.

    Video-R1 reads the first, Time-R1 the last.
    """
    return extract_last_answer(text) if problem_type == "grounding" else extract_answer(text)


def extract_answer_or_text(text: str) -> str:
    """Like `extract_answer`, but without (or with empty) tags the whole text is the answer.

    Video-R1's evaluation script does this, and so must every protocol that asks for no tags.
    """
    return extract_answer(text) or text.strip()


def has_think_answer_format(text: str) -> bool:
    """Tell whether the whole text is `<think>...</think> <answer>...</answer>` (Video-R1's format).

    Trailing white space fails and nested tags pass, as in the source.
    """
    if not (text.startswith("<think>") and text.endswith(_CLOSES)):
        return False
    between = text[len("<think>") : -len(_CLOSES)]
    return _FROM_THOUGHT_TO_ANSWER.search(between) is not None


def has_think_answer_clues_format(text: str) -> bool:
    """Tell whether the whole text is think block, answer block and a well-formed list of clues.

    VideoChat-R1's format of a grounded answer: `<glue>[(1, 4), (5.5, 6)]</glue>` comes last, blanks
    may stand around it.
    """
    before, clues = split_clues(text.strip())
    return read_clues(clues) is not None and has_think_answer_format(before.rstrip())


# --- grading ------------------------------------------------------------------------------------


def grade(
    problem_type: str, prediction: str, solution: str, *, rules: GradingRules = "video_r1"
) -> float:
    """Grade an answer in [0, 1].

    Args:
        problem_type: one of `records.PROBLEM_TYPES`.
        prediction: the answer, **already extracted** (`extract_graded(problem_type, completion)`);
            an empty one is wrong.
        solution: the record's solution, with or without its `<answer>` tags.
        rules: `video_r1` (strict) or `tolerant`.

    Raises:
        UnknownNameError: no such problem type or rule set.
    """
    if rules not in GRADING_RULES:
        raise unknown_name("grading", rules, GRADING_RULES)
    if problem_type not in PROBLEM_TYPES:
        raise unknown_name("problem_type", problem_type, PROBLEM_TYPES)
    gold = extract_answer_or_text(solution)
    answer = prediction.strip()
    if rules == "tolerant":
        answer, gold = plain_text(answer), plain_text(gold)
    if not answer or not gold:
        return 0.0
    if problem_type in ("numerical", "regression"):
        return _grade_numbers(problem_type, answer, gold, is_strict=rules == "video_r1")
    if problem_type == "free-form":
        return _mean_rouge(answer, gold)
    if problem_type == "grounding":
        return best_iou(read_interval(answer), read_intervals(gold))
    if problem_type == "grounded multiple choice":
        letter = read_first_capital(gold)
        return float(letter is not None and read_first_capital(answer) == letter)
    if rules == "tolerant":
        letter = read_letter(gold) if problem_type == "multiple choice" else None
        if letter:
            return float(read_letter(answer) == letter)
        answer, gold = _fold(answer), _fold(gold)
    return (
        float(answer == gold) if problem_type == "multiple choice" else _one_minus_wer(answer, gold)
    )


def grade_completion(
    record: Record, text: str, *, rules: GradingRules = "video_r1", tags_required: bool = True
) -> float:
    """Grade a whole completion; with `tags_required` (the RL reward) one without tags is wrong."""
    answer = extract_graded(record.problem_type, text)
    if not tags_required:
        answer = answer or text.strip()
    return grade(record.problem_type, answer, record.solution, rules=rules)


def is_parsed(problem_type: str, answer: str) -> bool:
    """Tell whether an extracted answer has the form that its problem type asks for.

    A letter for multiple choice, a number for numerical and regression, an interval for grounding,
    any text otherwise.
    """
    if problem_type in ("OCR", "free-form"):
        return bool(answer.strip())
    return answer_key(problem_type, answer) is not None


def answer_key(problem_type: str, answer: str) -> Hashable | None:
    """Return what an extracted answer says, the same for equal answers; None if it is unreadable.

    The letter of a choice, a number (of two places for numerical), an interval, or for texts the
    text without regard to case and blanks.
    """
    if problem_type == "multiple choice":
        return read_letter(answer)
    if problem_type == "grounded multiple choice":
        return read_first_capital(answer)
    if problem_type == "grounding":
        return read_interval(answer)
    if problem_type in ("numerical", "regression"):
        number = read_number(answer)
        return round(number, 2) if number is not None and problem_type == "numerical" else number
    return _fold(plain_text(answer)) or None


def strict_number(text: str) -> float | None:
    """Video-R1's number: commas dropped, then Python's float; non-finite counts as unreadable."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _grade_numbers(problem_type: str, answer: str, gold: str, *, is_strict: bool) -> float:
    read = strict_number if is_strict else read_number
    found, wanted = read(answer), read(gold)
    if found is None or wanted is None:
        return 0.0
    if problem_type == "numerical":
        # Video-R1: both or neither must hold a "." or ",": "5.0" is not "5" there.
        if is_strict and any(m in answer for m in ".,") != any(m in gold for m in ".,"):
            return 0.0
        return float(round(found, 2) == round(wanted, 2))
    # The formula, which is Video-R1's, gives 0 to an exact answer when the gold is 0.
    if not is_strict and found == wanted:
        return 1.0
    return 1.0 - min(1.0, (abs(found - wanted) + 1e-9) / (abs(wanted) + 1e-9))


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def _one_minus_wer(answer: str, gold: str) -> float:
    """clip(1 - word edits / gold words, 0, 1)."""
    import jiwer

    # jiwer splits at single spaces only; Video-R1 at any white space.
    counts = jiwer.process_words(" ".join(gold.split()), " ".join(answer.split()))
    edits = counts.substitutions + counts.deletions + counts.insertions
    return max(0.0, 1.0 - edits / len(gold.split()))


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def _mean_rouge(answer: str, gold: str) -> float:
    """Mean of the F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, with stemming."""
    scores = _rouge_scorer().score(gold, answer)
    return float(sum(score.fmeasure for score in scores.values()) / len(scores))
