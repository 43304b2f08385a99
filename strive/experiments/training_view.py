"""The figures that are watched while a run goes, as lines of at most 80 columns."""

import math
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from strive.progress import Progress, number_text, size_text, time_text

if TYPE_CHECKING:
    from strive.train.loop import StepReport

NUM_STEPS_OF_MEAN = 20
_PARTS = {"data": "data", "rollout": "rollout", "logprob": "log-probs", "backward": "backward"}


class TrainingView:
    """Shows every step's report on a progress display."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seen: int | None = None
        self._rewards: deque[float] = deque(maxlen=NUM_STEPS_OF_MEAN)
        self._held_out = ""

    def show(self, report: "StepReport") -> None:
        """Count the step and replace the figures."""
        if self._seen is None:
            self._seen = report.step - 1
            self._progress.begin(self._seen, report.metrics["time/step"])
        if not math.isnan(report.metrics["reward/mean"]):
            self._rewards.append(report.metrics["reward/mean"])
        if report.held_out is not None or not self._held_out:
            self._held_out = held_out_line(report)
        mean = sum(self._rewards) / max(len(self._rewards), 1)
        lines = figure_lines(report.metrics, mean, len(self._rewards))
        self._progress.note(*lines, *filter(None, [self._held_out]))
        self._progress.advance(report.step - self._seen)
        self._seen = report.step


def figure_lines(metrics: Mapping[str, float], mean: float, num_steps: int) -> list[str]:
    """Write the last step's reward and its mean over `num_steps`, its lengths, its seconds."""
    rewards = [name for name in metrics if name.startswith("reward/") and name != "reward/mean"]
    parts = [f"{name.removeprefix('reward/')} {number_text(metrics[name])}" for name in rewards]
    of_several = f", {number_text(mean)} over {num_steps} steps" if num_steps > 1 else ""
    whole = metrics["time/step"]
    shares = [f"{shown} {metrics[f'time/{name}'] / whole:.0%}" for name, shown in _PARTS.items()]
    return [
        f"reward {number_text(metrics['reward/mean'])} ({', '.join(parts)}){of_several}; "
        f"zero-std {metrics['group/zero_std_fraction']:.0%}",
        f"{metrics['completion/length_mean']:.0f} tokens a completion, "
        f"{metrics['completion/truncated_fraction']:.0%} cut; "
        f"KL {number_text(metrics['loss/kl'], 4)}, "
        f"gradient norm {number_text(metrics['optim/grad_norm'], 3)}",
        f"step {time_text(whole)}: {', '.join(shares)}; "
        f"peak {size_text(metrics['memory/peak_bytes'])}",
    ]


def held_out_line(report: "StepReport") -> str:
    """The held-out accuracy after this step and the best one, as far as there are any."""
    parts = []
    if report.held_out is not None:
        accuracy = report.held_out.get("accuracy", float("nan"))
        parts.append(f"held-out {accuracy:.1%} after step {report.step}")
    if report.best is not None:
        parts.append(f"best held-out {report.best.value:.1%} after step {report.best.step}")
    return "; ".join(parts)
