"""Solutions that no answer can earn, found before a run that could learn nothing from them."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from strive.answers import grade, grade_completion, strict_number
from strive.choices import GradingRules
from strive.intervals import read_intervals
from strive.records import CHOICE_TYPES, Record

_TAGS = re.compile(r"</?answer>")
NO_LETTERS = "the options carry no letters"
_OPTION_LABEL = re.compile(r"[\W_]*([A-Za-z](?=\s*(?:[.):\],/]|-\s|$))|\d{1,2}(?=[.):](?:\s|$)))")


@dataclass(frozen=True, slots=True)
class Unmatched:
    """Solutions that no answer of the form that the prompt asks for can earn."""

    num_unmatched: int
    num_records: int
    grading: str
    examples: tuple[str, ...]
    """Three of them, with why."""
    num_tolerant: int
    """How many of them the tolerant rules would match."""
    num_doubtful: int = 0
    """How many are labels of options that carry none: a policy may count them and be right."""

    @property
    def is_hopeless(self) -> bool:
        """Whether not one solution can be earned, without a doubt."""
        return self.num_unmatched - self.num_doubtful == self.num_records

    def text(self, tolerant_knob: str = "--set grading=tolerant") -> str:
        """One line: how many, three examples, and the way out."""
        tolerant = (
            f"{tolerant_knob} matches {self.num_tolerant} of them, or " if self.num_tolerant else ""
        )
        doubtful = f" ({self.num_doubtful} save by a letter that no option carries)"
        return (
            f"{self.num_unmatched} of {self.num_records} solutions can never be earned under "
            f"grading {self.grading}{doubtful * bool(self.num_doubtful)}: "
            f"{'; '.join(self.examples)}; {tolerant}write them as the "
            "prompt asks for answers (the letter of an option that carries it, a bare number)"
        )


def find_unmatched(records: Iterable[Record], rules: GradingRules) -> Unmatched | None:
    """Look for solutions that no answer can earn under a rule set; None if there are none."""
    num_records = num_tolerant = num_unmatched = num_doubtful = 0
    examples: list[str] = []
    for record in records:
        num_records += 1
        why = why_unmatched(record, rules)
        if why is not None:
            num_unmatched += 1
            num_tolerant += rules != "tolerant" and why_unmatched(record, "tolerant") is None
            num_doubtful += why.endswith(NO_LETTERS)
            if len(examples) < 3:
                examples.append(f"question {record.question_id}: {why}")
    if not num_unmatched:
        return None
    return Unmatched(num_unmatched, num_records, rules, tuple(examples), num_tolerant, num_doubtful)


def why_unmatched(record: Record, rules: GradingRules) -> str | None:
    """Say why no answer of the form that the prompt asks for earns anything; None if one does.

    Candidates are the labels of the options (of options without labels, their texts), otherwise the
    solution itself; the graders judge them.
    """
    gold = _TAGS.sub("", record.solution).strip()
    shown = f"'{gold[:40]}...'" if len(gold) > 40 else f"'{gold}'"
    if not gold:
        return "the solution is empty"
    is_choice = record.problem_type in CHOICE_TYPES
    labels = _option_labels(record.options) if is_choice else []
    candidates = [*labels, *map(str.upper, labels)] if labels else list(record.options)
    # Texts earn by the words that they share: the first alone tells, and long ones cost much.
    is_text = record.problem_type in ("OCR", "free-form")
    if is_text and _earns_itself(record.problem_type, gold.split()[0], rules):
        return None
    if not is_choice or any(_is_marked(option, gold) for option in record.options):
        candidates.append(gold)
    if any(
        grade_completion(record, f"<answer>{candidate}</answer>", rules=rules) > 0
        for candidate in (candidates if is_choice else [gold])
    ):
        return None
    if labels:
        return f"{shown} is none of the options' letters ({', '.join(labels[:8])})"
    if is_choice:
        return f"{shown} is the text of no option, and {NO_LETTERS}"
    if record.problem_type in ("numerical", "regression") and strict_number(gold) is None:
        return f"{shown} is no bare number"
    if record.problem_type == "grounding" and not read_intervals(gold):
        return f"{shown} is no interval in seconds, such as 12.5 to 17"
    return f"{shown} earns nothing even when it is answered word for word"


def _is_marked(option: str, gold: str) -> bool:
    """Whether an option bears a solution as its mark, however it is written ("Option A: red")."""
    plain = unicodedata.normalize("NFKC", re.sub("<[^>]*>", "", option))
    plain = re.sub(r"^\W*(?:(?:option|choice)\b\W*)?", "", plain, flags=re.IGNORECASE)
    is_first = plain.startswith(gold) and not plain[len(gold) : len(gold) + 1].isalnum()
    return " " not in gold and (is_first or plain.rstrip().endswith(f"({gold})"))


@lru_cache(maxsize=10_000)
def _earns_itself(problem_type: str, word: str, rules: GradingRules) -> bool:
    # ROUGE counts words of ASCII letters and digits; its package takes two seconds to import.
    if problem_type == "free-form" and word.isascii() and word.isalnum():
        return True
    return grade(problem_type, word, word, rules=rules) > 0


def _option_labels(options: tuple[str, ...]) -> list[str]:
    """What stands before the options ("A. red", "(b) red", "3) red", "A red" of A, B, C ...).

    Of an option without a label, such as "none of these", its text; empty where labels are few.
    """
    in_order = [f"{chr(ord('A') + place)} " for place in range(len(options))]
    if all(map(str.startswith, options, in_order)):
        return [start.strip() for start in in_order]
    found = [_OPTION_LABEL.match(option) for option in options]
    labels = [match.group(1) for match in found if match]
    if len(labels) < 2 or len(set(labels)) < len(labels):
        return []
    return [match.group(1) if match else text for match, text in zip(found, options, strict=True)]
