"""Rewards of answers in time: intervals (`grounding`) and clues (`grounded multiple choice`).

TRL's signature, plain Python. None ("does not apply") where the problem type has no interval.
"""

from collections.abc import Sequence
from typing import Any

from strive.answers import extract_answer_or_text, extract_last_answer
from strive.intervals import (
    best_iou,
    clue_iou,
    read_clues,
    read_interval,
    read_intervals,
    timed_iou,
)

Spans = Sequence[Sequence[float]] | None
"""A record's `evidence_spans_seconds`: [start, end] pairs."""


def grounding_iou_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    problem_type: Sequence[str],
    solution: Sequence[str],
    evidence_spans_seconds: Sequence[Spans],
    **columns: Any,
) -> list[float | None]:
    """IoU in time, in [0, 1]: the interval's for `grounding`, the clues' for a grounded choice.

    The interval is read from the last answer block (Time-R1); see `clue_iou_reward` for clues. What
    cannot be read has 0. None for every other problem type, and for clues without gold.
    """
    values: list[float | None] = []
    for kind, text, gold, spans in zip(
        problem_type, completions, solution, evidence_spans_seconds, strict=True
    ):
        if kind == "grounding":
            golds = read_intervals(extract_answer_or_text(gold))
            values.append(best_iou(read_interval(extract_last_answer(text)), golds))
        else:
            values.append(_clue_iou(kind, text, spans))
    return values


def grounding_iou_timed_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    problem_type: Sequence[str],
    solution: Sequence[str],
    duration_seconds: Sequence[float | None],
    **columns: Any,
) -> list[float | None]:
    """Time-R1's `iou_v2` (`intervals.timed_iou`), at most 1 and not clipped below; unreadable 0.

    None for every problem type but `grounding` (clues have no one start and end), and for a video
    whose duration is unknown or 0.
    """
    values: list[float | None] = []
    for kind, text, gold, duration in zip(
        problem_type, completions, solution, duration_seconds, strict=True
    ):
        if kind != "grounding" or not duration:
            values.append(None)
            continue
        predicted = read_interval(extract_last_answer(text))
        golds = read_intervals(extract_answer_or_text(gold))
        if predicted is None or not golds:
            values.append(0.0)
        else:
            values.append(max(timed_iou(predicted, one, duration) for one in golds))
    return values


def clue_iou_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    problem_type: Sequence[str],
    evidence_spans_seconds: Sequence[Spans],
    **columns: Any,
) -> list[float | None]:
    """VideoChat-R1's clue reward: IoU of the unions of the spans that are given and of the gold's.

    The `<glue>` block holds a list of pairs; a missing or malformed one has 0. None for every
    problem type but `grounded multiple choice`, and for a record without `evidence_spans_seconds`.
    """
    rows = zip(problem_type, completions, evidence_spans_seconds, strict=True)
    return [_clue_iou(kind, text, spans) for kind, text, spans in rows]


def _clue_iou(problem_type: str, text: str, spans: Spans) -> float | None:
    if problem_type != "grounded multiple choice" or spans is None:
        return None
    predicted = read_clues(text)
    return 0.0 if predicted is None else clue_iou(predicted, [(a, b) for a, b in spans])
