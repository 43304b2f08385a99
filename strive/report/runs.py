"""Reading run folders: metrics, configuration and completions, finished or not."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strive.errors import CheckpointError
from strive.files import whole_lines
from strive.statistics import log_deviation

CACHE_KEYS = ("frames_key", "scorer_key")
"""What a run found in its cache that changes its numbers; `config.json` has it under `data`."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One metric of one run: finite values only, by step."""

    steps: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Run:
    """One training run as it lies on disk."""

    name: str
    path: Path
    config: dict[str, Any]
    """The resolved configuration and, of `CACHE_KEYS`, what it was found to mean."""
    curves: dict[str, Curve]
    num_steps: int
    accuracy_by_evidence: dict[str, float]
    """Mean accuracy reward of completions whose variant saw the evidence, and missed it."""
    completions: tuple[Path, ...]
    """The Parquet files of its completions, by step."""

    def mean(self, metric: str, *, first: float = 0.0, last: float = 1.0) -> float:
        """Mean of a metric over a part of the run, given as fractions of its steps."""
        curve = self.curves.get(metric)
        if curve is None or not len(curve.values):
            return math.nan
        low, high = first * self.num_steps, last * self.num_steps
        chosen = curve.values[(curve.steps > low) & (curve.steps <= high)]
        return float(chosen.mean()) if len(chosen) else math.nan

    @property
    def grad_norm_log_deviation(self) -> float:
        """Deviation of the logarithm of the gradient norm over steps that had a gradient."""
        curve = self.curves.get("optim/grad_norm")
        return math.nan if curve is None else log_deviation(curve.values)

    @property
    def seconds(self) -> float:
        """Seconds in all steps."""
        curve = self.curves.get("time/step")
        return math.nan if curve is None else float(curve.values.sum())


def read_run(path: Path, name: str | None = None) -> Run:
    """Read a run folder; one that is still training is read as far as it has come.

    Raises:
        CheckpointError: the folder holds no run.
    """
    config_file, metrics_file = path / "config.json", path / "metrics.jsonl"
    if not config_file.is_file():
        raise CheckpointError(
            f"no run at {path}: config.json is missing; give folders that strive-cli train left"
        )
    try:
        about = json.loads(config_file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{config_file} is damaged: not valid JSON ({error})") from None
    curves = _curves(_lines(metrics_file))
    held_out = _curves(_lines(path / "held_out.jsonl"))
    curves.update({f"held_out/{metric}": curve for metric, curve in held_out.items()})
    steps = [curve.steps.max() for curve in curves.values() if len(curve.steps)]
    found = about.get("data", {})
    completions = tuple(sorted((path / "completions.parquet").glob("*.parquet")))
    return Run(
        name=name or path.name,
        path=path,
        config=dict(about.get("config", about))
        | {key: found[key] for key in CACHE_KEYS if key in found},
        curves=curves,
        num_steps=int(max(steps, default=0)),
        accuracy_by_evidence=_accuracy_by_evidence(completions),
        completions=completions,
    )


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read several runs under names that tell them apart."""
    names = [path.resolve().name for path in paths]
    unique = len(set(names)) == len(names)
    return [
        read_run(path, name if unique else f"{path.resolve().parent.name}/{name}")
        for path, name in zip(paths, names, strict=True)
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines by step, the last of a step counting; a torn last line is left out."""
    if not path.is_file():
        return []
    found: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(whole_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found[int(row["step"])] = row
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}, line {number}: not a line of metrics ({error})"
            ) from None
    return [found[step] for step in sorted(found)]


def _curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    points: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for metric, value in line.items():
            if metric == "step" or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if math.isfinite(value):
                points.setdefault(metric, []).append((int(line["step"]), float(value)))
    return {
        metric: Curve(
            np.array([step for step, _ in rows], dtype=np.float64),
            np.array([value for _, value in rows], dtype=np.float64),
        )
        for metric, rows in points.items()
    }


def _accuracy_by_evidence(parts: Sequence[Path]) -> dict[str, float]:
    if not parts:
        return {}
    import polars as pl

    table = pl.scan_parquet(list(parts))
    if "reward_accuracy" not in table.collect_schema().names():
        return {}
    grouped = (
        table.filter(pl.col("evidence_seen").is_not_null())
        .group_by("evidence_seen")
        .agg(pl.col("reward_accuracy").mean())
        .collect()
    )
    return {"seen" if seen else "missed": float(value) for seen, value in grouped.iter_rows()}


DRAW_KEYS = (
    "variants", "scorer", "num_variants", "num_frames", "frame_temperature", "score_transform",
    "spatial", "views",
)  # fmt: skip
"""What decides which frames a run's completions are written for."""


def accuracy_note(runs: Sequence[Run]) -> str | None:
    """Say that training accuracies cannot be compared, where runs draw their frames otherwise."""
    differing = [
        key for key in DRAW_KEYS if len({json.dumps(run.config.get(key)) for run in runs}) > 1
    ]
    if not differing:
        return None
    return (
        "Accuracy here is that of completions over each run's own frames. These runs draw them "
        f"otherwise ({', '.join(differing)}), so it cannot be compared between them: frames that "
        "show more of the evidence make questions easier without a better policy. Compare "
        "held-out accuracy, or evaluations of both policies (strive-cli compare)."
    )
