"""One group's outcome as plain arrays, and a step's metrics from all groups. Pure NumPy.

Axes: M variants, G completions, K frames. A metric that does not apply (overlap with one variant,
evidence without spans) is NaN here and null in metrics.jsonl.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strive.train.advantages import is_zero_std

FloatArray = NDArray[np.floating]


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
    measures: Mapping[str, float]
    """What `advantages.group_advantages` says about the group."""


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

    def over_groups(function: Callable[[GroupOutcome], float]) -> float:
        return mean(function(outcome) for outcome in outcomes)

    def over_completions(grids: Iterable[NDArray[Any]]) -> float:
        return mean(float(value) for grid in grids for value in grid.ravel())

    names = sorted({name for outcome in outcomes for name in outcome.rewards_by_name})
    by_name = {
        f"reward/{name}": over_completions(o.rewards_by_name[name] for o in outcomes)
        for name in names
    }
    seen = [o.evidence_seen_M for o in outcomes if o.evidence_seen_M is not None]
    return {
        "reward/mean": over_completions(o.rewards_MG for o in outcomes),
        **by_name,
        "group/reward_std": over_groups(lambda o: o.measures["reward_std"]),
        "group/zero_std_fraction": over_groups(lambda o: o.measures["zero_std"]),
        "group/accuracy_zero_std_fraction": over_groups(_accuracy_is(is_zero_std)),
        "group/between_variant_share": over_groups(lambda o: o.measures["between_variant_share"]),
        "group/all_correct_fraction": over_groups(
            _accuracy_is(lambda grid: bool((grid >= 1).all()))
        ),
        "group/all_wrong_fraction": over_groups(_accuracy_is(lambda grid: bool((grid <= 0).all()))),
        "group/advantage_abs_max": max(o.measures["advantage_abs_max"] for o in outcomes),
        "group/variant_agreement": over_groups(lambda o: variant_agreement(o.answers)),
        "group/mixed_evidence_fraction": mean(float(row.any() and not row.all()) for row in seen),
        "completion/length_mean": over_completions(o.lengths_MG for o in outcomes),
        "completion/truncated_fraction": over_completions(o.truncated_MG for o in outcomes),
        "completion/parsed_fraction": over_completions(o.parsed_MG for o in outcomes),
        "variants/frame_overlap": over_groups(lambda o: o.frame_overlap),
        "variants/effective_frames": over_groups(lambda o: o.effective_frames),
        "variants/evidence_seen": mean(float(row.mean()) for row in seen),
    }


def _accuracy_is(test: Callable[[FloatArray], bool]) -> Callable[[GroupOutcome], float]:
    """Apply a test to a group's accuracy rewards; NaN where accuracy is no reward of the run."""

    def apply(outcome: GroupOutcome) -> float:
        accuracy_MG = outcome.rewards_by_name.get("accuracy")
        return float("nan") if accuracy_MG is None else float(test(accuracy_MG))

    return apply


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
