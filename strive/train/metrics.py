"""One group's outcome as plain arrays, and a step's metrics from all groups. Pure NumPy.

Axes: M variants, G completions, K frames. A metric that does not apply (overlap with one variant,
evidence without spans) is NaN here and null in metrics.jsonl.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strive.train.advantages import FloatArray, is_zero_std


@dataclass(frozen=True)
class GroupOutcome:
    """What became of one question in one step; small enough to send between processes."""

    question_id: str
    frame_index_MK: NDArray[np.int64]
    frame_overlap: float
    effective_frames: float
    evidence_seen_M: NDArray[np.bool_] | None
    texts: tuple[tuple[str, ...], ...]
    answers: tuple[tuple[str, ...], ...]
    lengths_MG: NDArray[np.int64]
    truncated_MG: NDArray[np.bool_]
    parsed_MG: NDArray[np.bool_]
    """Whether the tags hold an answer of the form that the problem type asks for."""
    rewards_MG: FloatArray
    rewards_by_name: Mapping[str, FloatArray]
    advantages_MG: FloatArray
    """Zeros until the step's advantages are known."""
    measures: Mapping[str, float]
    """Those of `advantages.group_measures`, likewise."""
    problem_type: str


def variant_agreement(answers: Sequence[Sequence[str]]) -> float:
    """Chance that completions of two variants give the same answer; NaN with one variant."""
    agreements = [
        np.mean([first == second for first in row for second in other])
        for row, other in combinations(answers, 2)
    ]
    return float(np.mean(agreements)) if agreements else float("nan")


def summarise(outcomes: Sequence[GroupOutcome]) -> dict[str, float]:
    """Metrics of a step's groups, under the names of the run folder."""

    def mean(values: Iterable[float]) -> float:
        known = [value for value in values if not np.isnan(value)]
        return float(np.mean(known)) if known else float("nan")

    def over_completions(grids: Iterable[NDArray[Any]]) -> float:
        return mean(float(value) for grid in grids for value in grid.ravel())

    def over_groups(measure: str) -> float:
        return mean(o.measures[measure] for o in outcomes)

    rewards = [o.rewards_by_name for o in outcomes]
    names = sorted({name for by_name in rewards for name in by_name})
    accuracies = [by_name["accuracy"] for by_name in rewards if "accuracy" in by_name]
    of_accuracy = {
        "group/accuracy_zero_std_fraction": mean(float(is_zero_std(grid)) for grid in accuracies),
        "group/all_correct_fraction": mean(float((grid >= 1).all()) for grid in accuracies),
        "group/all_wrong_fraction": mean(float((grid <= 0).all()) for grid in accuracies),
    }
    seen = [o.evidence_seen_M for o in outcomes if o.evidence_seen_M is not None]
    return {
        "reward/mean": over_completions(o.rewards_MG for o in outcomes),
        **{f"reward/{name}": over_completions(by[name] for by in rewards) for name in names},
        "group/reward_std": over_groups("reward_std"),
        "group/zero_std_fraction": over_groups("zero_std"),
        # Absent where accuracy is no reward of the run.
        **(of_accuracy if accuracies else {}),
        "group/between_variant_share": over_groups("between_variant_share"),
        "group/advantage_abs_max": max(o.measures["advantage_abs_max"] for o in outcomes),
        "group/variant_agreement": mean(variant_agreement(o.answers) for o in outcomes),
        "group/mixed_evidence_fraction": mean(float(row.any() and not row.all()) for row in seen),
        "completion/length_mean": over_completions(o.lengths_MG for o in outcomes),
        "completion/truncated_fraction": over_completions(o.truncated_MG for o in outcomes),
        "completion/parsed_fraction": over_completions(o.parsed_MG for o in outcomes),
        "variants/frame_overlap": mean(o.frame_overlap for o in outcomes),
        "variants/effective_frames": mean(o.effective_frames for o in outcomes),
        "variants/evidence_seen": mean(float(row.mean()) for row in seen),
    }


def completion_rows(outcome: GroupOutcome, step: int) -> list[dict[str, Any]]:
    """Rows of completions.parquet: one per completion of the group."""
    return [
        {
            "step": step,
            "question_id": outcome.question_id,
            "variant": variant,
            "generation": generation,
            "frame_index": outcome.frame_index_MK[variant].tolist(),
            "evidence_seen": (
                None if outcome.evidence_seen_M is None else bool(outcome.evidence_seen_M[variant])
            ),
            "text": outcome.texts[variant][generation],
            "reward": float(outcome.rewards_MG[variant, generation]),
            **{
                f"reward_{name}": float(grid[variant, generation])
                for name, grid in outcome.rewards_by_name.items()
            },
            "advantage": float(outcome.advantages_MG[variant, generation]),
            "length": int(outcome.lengths_MG[variant, generation]),
            "truncated": bool(outcome.truncated_MG[variant, generation]),
        }
        for variant in range(outcome.lengths_MG.shape[0])
        for generation in range(outcome.lengths_MG.shape[1])
    ]
