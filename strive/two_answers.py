r"""VideoAuto-R1's two answers (arXiv:2601.05175): `\boxed{B}<think>...</think>\boxed{C}`.

The first is given without thinking, and may be a sentence that puts it off; the second comes after
the thinking. Reading, format and grading are those of its code, save where a docstring says "ours".
"""

import re
import unicodedata

from strive.answers import extract_answer_or_text, grade
from strive.choices import GradingRules
from strive.intervals import Interval, best_iou, read_interval, read_intervals

PUTS_OFF = "Let's analyze"
"""The beginning of a first answer that leaves the question to the thinking."""

# Verified: the order (box, one think block, box, nothing else), that the first box comes without
# explanation, and the sentence that may stand in it. Unverified: every other word. The original is
# in VideoAuto-R1's code; put it into `system_prompt` for a faithful run.
SYSTEM_PROMPT = (
    "First give your answer in \\boxed{...}, without any explanation. If you cannot answer without "
    "thinking, write \\boxed{Let's analyze the problem step by step.} in its place. Then think "
    "between <think> and </think>. Then give your answer again in \\boxed{...}. Write nothing else."
)

_IN_BOX = r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}"  # one level of braces may stand within
_BOX = re.compile(_IN_BOX)
_ONE_BOX = re.compile(rf"\s*{_IN_BOX}\s*")
_OPENS, _CLOSES = "<think>", "</think>"
# The letter of an option, and nothing but brackets and a mark: "B", "(B)", "B)", but not "B.".
_LETTER = re.compile(r"(?:[(\[{]\s*([a-z])\s*[)\]}]\s*(?:[)/:;-]\s*)?|([a-z])\s*[)/:;-]|([a-z]))")
_SAME_WORD = {
    **dict.fromkeys(("yes", "true", "ok", "okay"), "yes"),
    **dict.fromkeys(("no", "false"), "no"),
}
_BETWEEN = "<>"
"""What stands between a grounded answer and its interval within one box."""


def first_answer(text: str) -> str:
    """Return what the single box before `<think>` holds, stripped; "" for none or several.

    Of a text without a think block both answers are those of the whole text, as in the source.
    """
    return _single_box(text.partition(_OPENS)[0])


def second_answer(text: str) -> str:
    """Return what the single box after the last `</think>` holds, stripped; "" for none or several.

    As for the first answer, a text without a think block is read as a whole.
    """
    return _single_box(text.rpartition(_CLOSES)[2])


def _single_box(text: str) -> str:
    boxes: list[str] = _BOX.findall(text)
    return boxes[0].strip() if len(boxes) == 1 else ""


def has_two_answers_format(text: str) -> bool:
    """Tell whether a text is box, one think block that is not empty, box, and else only blanks."""
    if text.count(_OPENS) != 1 or text.count(_CLOSES) != 1:
        return False
    before, _, rest = text.partition(_OPENS)
    thought, _, after = rest.partition(_CLOSES)
    return bool(thought.strip() and _ONE_BOX.fullmatch(before) and _ONE_BOX.fullmatch(after))


def puts_off(answer: str) -> bool:
    """Tell whether a first answer is the sentence that leaves the question to the thinking."""
    return answer.startswith(PUTS_OFF)


def grade_boxed(
    problem_type: str,
    answer: str,
    solution: str,
    *,
    clues: tuple[Interval, ...] = (),
    rules: GradingRules = "video_r1",
) -> float:
    """Grade what stands in a box, by problem type: in [0, 1], of a grounded choice in [0, 2].

    Multiple choice: the letter, or the whole text without regard to case and blanks; yes and true
    are one word, as are no and false. Grounding: IoU, the best over the solution's intervals.
    Grounded multiple choice: "B<>10 to 20" earns the letter's 1 and the best IoU with one of
    `clues`, the record's spans in seconds. Ours: intervals are read as Time-R1's, and all other
    types are graded by `answers.grade` under `rules` (there by math-verify, or as the whole text).
    """
    gold = extract_answer_or_text(solution)
    if not answer or not gold:
        return 0.0
    if problem_type == "multiple choice":
        return float(_normalised(answer) == _normalised(gold))
    if problem_type == "grounding":
        return best_iou(read_interval(answer), read_intervals(gold))
    if problem_type == "grounded multiple choice":
        parts = answer.split(_BETWEEN)
        is_right = _normalised(parts[0]) == _normalised(gold)
        return float(is_right) + best_iou(read_interval(parts[-1]), clues)
    return grade(problem_type, answer, solution, rules=rules)


def _normalised(answer: str) -> str:
    text = " ".join(unicodedata.normalize("NFKC", answer).lower().split())
    letter = _LETTER.fullmatch(text)
    if letter:
        return "".join(letter.groups(""))
    return _SAME_WORD.get(text, text)
