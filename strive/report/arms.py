"""Runs as arms: the seeds of one configuration, their band, and how arms' settings differ."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from strive.report.runs import Curve, Run

SEED_KEYS = ("seed", "wandb_run_name")
"""The keys of a configuration that may differ within an arm; the second is a name alone."""


@dataclass(frozen=True, eq=False)
class Arm:
    """The runs whose configurations differ in their seed alone, by seed."""

    name: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> str:
        """`0, 1, 2`; a dash stands for a configuration without a seed."""
        return ", ".join(_text(run.config.get("seed")) for run in self.runs)

    @property
    def is_single(self) -> bool:
        """Whether it is one run, a line without a band."""
        return len(self.runs) == 1

    @property
    def label(self) -> str:
        """The name, with the seeds where there are several."""
        return self.name if self.is_single else f"{self.name} (seeds {self.seeds})"


@dataclass(frozen=True, eq=False)
class Band:
    """One metric over the seeds of an arm, at each of the S steps that one of them logged."""

    steps_S: NDArray[np.float64]
    mean_S: NDArray[np.float64]
    low_S: NDArray[np.float64]
    """The smallest value of a seed."""
    high_S: NDArray[np.float64]
    """The largest value of a seed."""


def group_arms(runs: Sequence[Run]) -> list[Arm]:
    """Put the runs of one configuration together, arms in the order of their first runs.

    A second run of the same seed is no further seed: it begins another arm.
    """
    found: dict[tuple[str, int], list[Run]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for run in runs:
        shared = json.dumps(
            {key: value for key, value in run.config.items() if key not in SEED_KEYS},
            sort_keys=True,
        )
        seed = _text(run.config.get("seed"))
        found.setdefault((shared, seen[shared, seed]), []).append(run)
        seen[shared, seed] += 1
    groups = list(found.values())
    names = [_common_name(group) for group in groups]
    return [
        Arm(
            # Two arms of one name would not be told apart; the names of runs are.
            name if names.count(name) == 1 else group[0].name,
            tuple(sorted(group, key=lambda run: run.config.get("seed") or 0)),
        )
        for name, group in zip(names, groups, strict=True)
    ]


def band(curves: Sequence[Curve]) -> Band:
    """Mean, minimum and maximum over seeds, at every step that one of them logged.

    A seed counts from its first step to its last, with a straight line over steps that it lacks.
    """
    steps_S = np.unique(np.concatenate([curve.steps for curve in curves]))
    values_NS = np.array(
        [
            np.interp(steps_S, curve.steps, curve.values, left=np.nan, right=np.nan)
            for curve in curves
        ]
    )
    return Band(
        steps_S,
        np.nanmean(values_NS, axis=0),
        np.nanmin(values_NS, axis=0),
        np.nanmax(values_NS, axis=0),
    )


def config_differences(arms: Sequence[Arm]) -> list[tuple[str, list[str]]]:
    """Return the configuration keys that are not the same in all runs, with each arm's value.

    Where the runs of an arm differ (in their seed), all its values are listed: `0, 1, 2`.
    """
    rows = []
    for key in sorted({key for arm in arms for run in arm.runs for key in run.config}):
        found = [[json.dumps(run.config.get(key)) for run in arm.runs] for arm in arms]
        if len({value for values in found for value in values}) > 1:
            rows.append((key, [", ".join(dict.fromkeys(values)) for values in found]))
    return rows


def _common_name(runs: Sequence[Run]) -> str:
    """Return the one name of runs without the numbers at their ends, else the first run's name."""
    first = runs[0].name
    # `strive-seed10` is `strive`, `grpo/s1` is `grpo`, and nothing is left of `seed-0`.
    stems = {re.sub(r"((^|[-_./ =]+)(seed|s)?)?[-_=]?\d+$", "", run.name) for run in runs}
    if len(runs) == 1 or len(stems) > 1:
        return first
    # Folders that are named after their seeds alone: the folder above them names the arm.
    folders = {run.path.resolve().parent.name for run in runs}
    return stems.pop() or (folders.pop() if len(folders) == 1 else first)


def _text(seed: object) -> str:
    return "–" if seed is None else str(seed)
