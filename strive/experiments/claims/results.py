"""The kept result of one run: a small JSON file, and what is read back from it.

`docs/lab-results/runs/ARM-wWARMUP-sSEED.json`; committed as the runs come, so that several sittings
add up. Curves are per step; shares and accuracies lie in [0, 1].
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from strive.errors import RecordsError
from strive.experiments.claims.plan import ARMS, UNTRAINED, Cell
from strive.files import write_atomically

FORMAT = 1
METRICS = (
    "reward/accuracy", "reward/mean", "group/reward_std", "group/accuracy_std",
    "group/zero_std_fraction", "group/accuracy_zero_std_fraction", "group/all_correct_fraction",
    "group/all_wrong_fraction", "group/between_variant_share", "group/variant_agreement",
    "group/mixed_evidence_fraction", "variants/evidence_seen", "optim/grad_norm", "loss/kl",
    "completion/length_mean",
)  # fmt: skip
"""The curves that are kept; `group/accuracy_std` is made from the completions."""


@dataclass(frozen=True)
class RunResult:
    """What one run left; every field is in its file."""

    arm: str
    warmup: int
    seed: int
    accuracy: float
    """Held-out: the mean score, as `evaluate` counts it; greedy, uniform, last checkpoint."""
    blind_accuracy: float
    """The same questions with all frames grey."""
    agreement: float
    """Share of held-out questions that get the same greedy answer from two importance variants."""
    scores: str
    """Held-out scores in the order of the question ids, four digits each, between spaces."""
    num_questions: int
    curves: Mapping[str, Sequence[float | None]]
    probe: Sequence[Mapping[str, Any]]
    """Rows of the fixed-checkpoint probe; empty where it was not taken."""
    seconds: Mapping[str, float]
    about: Mapping[str, Any]
    """Plan, world and weights digests, commit, packages, threads."""
    format: int = FORMAT

    @property
    def cell(self) -> Cell:
        """The place of this run in the plan."""
        return Cell(self.arm, self.warmup, self.seed)

    def curve(self, metric: str) -> np.ndarray:
        """A metric by step, NaN where it was null."""
        return np.array([np.nan if v is None else v for v in self.curves[metric]], dtype=float)

    @property
    def scores_Q(self) -> np.ndarray:
        """The grade of each held-out question, in [0, 1]: float64 [Q]."""
        return np.array(self.scores.split(), dtype=float)


def pack_scores(scores_Q: Iterable[float]) -> str:
    """Write scores with four digits, between spaces."""
    return " ".join(f"{score:.4g}" for score in scores_Q)


def rounded(value: float | None) -> float | None:
    """Six significant digits of a finite figure; None of any other."""
    if value is None or not np.isfinite(value):
        return None
    return float(f"{value:.6g}")


def write_run(folder: Path, result: RunResult) -> Path:
    """Write one run's file; it is there whole or not at all."""
    path = folder / "runs" / f"{result.cell.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A field a line: a third smaller than a value a line, and a change shows what it changed.
    fields = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in asdict(result).items())
    write_atomically(path, "{\n" + ",\n".join(fields) + "\n}\n")
    return path


def read_runs(folder: Path) -> dict[Cell, RunResult]:
    """Read every kept run.

    Raises:
        RecordsError: a file is damaged or edited, of another format, or of an arm that the plan
            lacks.
    """
    found = {}
    for path in sorted((folder / "runs").glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            result = RunResult(**content)
        except (ValueError, TypeError) as error:
            raise RecordsError(f"{path} holds no result of a run ({error}); remove it") from None
        if result.format != FORMAT or result.arm not in {*ARMS, UNTRAINED}:
            raise RecordsError(
                f"{path} has format {result.format} and arm '{result.arm}'; format {FORMAT} and an "
                "arm of the plan are expected"
            )
        if abs(result.scores_Q.mean() - result.accuracy) > 1e-4:
            raise RecordsError(f"{path}: its accuracy is not that of its scores; remove it")
        found[result.cell] = result
    return found
