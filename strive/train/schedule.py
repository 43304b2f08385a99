"""Learning rate as a function of the optimiser step: a resumed run needs no state for it."""

import math

from strive.choices import Schedule


def learning_rate_at(
    update: int, *, num_updates: int, peak: float, warmup_steps: int, schedule: Schedule
) -> float:
    """Learning rate of optimiser step `update`, counted from 0.

    Linear warm-up that reaches the peak in step `warmup_steps`, then constant, or a cosine that
    would reach 0 in step `num_updates`.
    """
    if update < warmup_steps:
        return peak * (update + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return peak
    done = (update - warmup_steps) / max(1, num_updates - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
