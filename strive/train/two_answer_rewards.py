"""VideoAuto-R1's rewards of two answers (arXiv:2601.05175): see `strive/two_answers.py`.

Its sum is 0.9 accuracy_first + 1.1 accuracy_second + format_twice + 0.3 fallback.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from strive.two_answers import (
    first_answer,
    grade_boxed,
    has_two_answers_format,
    puts_off,
    second_answer,
)

FALLBACK_ABOVE = 0.7
"""Grade of the second answer above which putting the first one off is rewarded."""


def accuracy_first_reward(
    prompts: Sequence[str], completions: Sequence[str], **columns: Any
) -> list[float | None]:
    """Grade of the first box (`two_answers.grade_boxed`): up to 1, of a grounded choice up to 2."""
    return list(_grades(completions, first_answer, **columns))


def accuracy_second_reward(
    prompts: Sequence[str], completions: Sequence[str], **columns: Any
) -> list[float | None]:
    """Grade of the second box, likewise."""
    return list(_grades(completions, second_answer, **columns))


def format_twice_reward(
    prompts: Sequence[str], completions: Sequence[str], **columns: Any
) -> list[float | None]:
    """1 for box, one think block that is not empty, box, and nothing else; else 0."""
    return [float(has_two_answers_format(text)) for text in completions]


def fallback_reward(
    prompts: Sequence[str], completions: Sequence[str], **columns: Any
) -> list[float | None]:
    """1 where the first answer is put off and the second has a grade above 0.7; else 0."""
    grades = _grades(completions, second_answer, **columns)
    return [
        float(puts_off(first_answer(text)) and score > FALLBACK_ABOVE)
        for text, score in zip(completions, grades, strict=True)
    ]


def _grades(
    completions: Sequence[str],
    read: Callable[[str], str],
    *,
    problem_type: Sequence[str],
    solution: Sequence[str],
    grading: Sequence[Any],
    evidence_spans_seconds: Sequence[Sequence[Sequence[float]] | None],
    **columns: Any,
) -> Iterator[float]:
    rows = zip(problem_type, completions, solution, grading, evidence_spans_seconds, strict=True)
    for kind, text, gold, rules, spans in rows:
        clues = tuple((start, end) for start, end in spans or ())
        yield grade_boxed(kind, read(text), gold, clues=clues, rules=rules)
