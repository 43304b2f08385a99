"""The policy with the best held-out accuracy, kept in `RUN/best`, a folder like `RUN/final`.

The first evaluation, of the policy that the run begins with, takes part: where training never
passes it, the starting policy is the best. Of equals the earliest stays.
"""

import math
from collections.abc import Mapping
from typing import Any

from strive.errors import ConfigError
from strive.train.run_folder import Best, RunFolder
from strive.train.step import Trainer
from strive.train.writers import write_policy

BEST_METRIC = "accuracy"
"""The held-out reward: the share of held-out questions that were answered correctly."""


def keep_if_best(
    trainer: Trainer,
    folder: RunFolder,
    step: int,
    held_out: Mapping[str, float],
    about: Mapping[str, Any],
) -> Best | None:
    """Write the policy to `best/` if its accuracy passes that of the one there; return the best.

    All processes call it together, with the same values; only the main one gets an answer.

    Raises:
        ConfigError: the evaluation gives no accuracy.
        DiskError: it could not be written.
    """
    if BEST_METRIC not in held_out:
        raise ConfigError(
            f"keep_best goes by held-out '{BEST_METRIC}', but the evaluation gives "
            f"{', '.join(sorted(held_out))}; set keep_best=false"
        )
    processes = trainer.processes
    candidate = Best(step, BEST_METRIC, float(held_out[BEST_METRIC]))
    before = folder.read_best() if processes.is_main else None
    record = -math.inf if before is None else before.value
    if processes.any(processes.is_main and candidate.value > record):
        write_policy(
            trainer,
            folder.best,
            about,
            step,
            lambda: {f"held-out {name}": value for name, value in held_out.items()},
            lambda temporary: folder.put_best(temporary, candidate),
        )
        return candidate
    return before
