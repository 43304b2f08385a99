"""The figures that are watched while a run goes, as lines of at most 80 columns."""

import math
from collections import deque
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
        self._progress.note(*self._lines(report))
        self._progress.advance(report.step - self._seen)
        self._seen = report.step

    def _lines(self, report: "StepReport") -> list[str]:
        mean = sum(self._rewards) / max(len(self._rewards), 1)
        lines = [
            reward_line(report, mean, len(self._rewards)),
            completion_line(report),
            time_line(report),
        ]
        return [*lines, self._held_out] if self._held_out else lines


def reward_line(report: "StepReport", mean: float, num_steps: int) -> str:
    """The last step's reward, its mean over the last steps, and the share without a signal."""
    metrics = report.metrics
    named = [name.removeprefix("reward/") for name in metrics if name.startswith("reward/")]
    parts = [f"{name} {number_text(metrics[f'reward/{name}'])}" for name in named if name != "mean"]
    of_several = f", {number_text(mean)} over {num_steps} steps" if num_steps > 1 else ""
    return (
        f"reward {number_text(metrics['reward/mean'])} ({', '.join(parts)}){of_several}; "
        f"zero-std {metrics['group/zero_std_fraction']:.0%}"
    )


def completion_line(report: "StepReport") -> str:
    """Lengths, and what the optimiser saw."""
    metrics = report.metrics
    return (
        f"{metrics['completion/length_mean']:.0f} tokens a completion, "
        f"{metrics['completion/truncated_fraction']:.0%} cut; "
        f"KL {number_text(metrics['loss/kl'], 4)}, "
        f"gradient norm {number_text(metrics['optim/grad_norm'], 3)}"
    )


def time_line(report: "StepReport") -> str:
    """Where a step's seconds went, and the peak of memory."""
    metrics = report.metrics
    whole = metrics["time/step"]
    shares = ", ".join(
        f"{shown} {metrics[f'time/{name}'] / whole:.0%}" for name, shown in _PARTS.items()
    )
    return f"step {time_text(whole)}: {shares}; peak {size_text(metrics['memory/peak_bytes'])}"


def held_out_line(report: "StepReport") -> str:
    """The held-out accuracy after this step and the best one, as far as there are any."""
    parts = []
    if report.held_out is not None:
        accuracy = report.held_out.get("accuracy", float("nan"))
        parts.append(f"held-out {accuracy:.1%} after step {report.step}")
    if report.best is not None:
        parts.append(f"best held-out {report.best.value:.1%} after step {report.best.step}")
    return "; ".join(parts)
