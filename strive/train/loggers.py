"""A step's numbers on their way out: metrics.jsonl, TensorBoard, Weights & Biases.

A logger is someone else's code, often with a network behind it. Its start may stop a run, because
the user is still there to act on it. From then on it may not: its first failure is said, and the
run goes on without it. `metrics.jsonl` holds everything that loggers get.
"""

import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from strive.configs.schema import TrainConfig
from strive.errors import ConfigError, short_reason
from strive.progress import say
from strive.train.processes import Processes
from strive.train.run_folder import RunFolder, append_line


class Logger(Protocol):
    """Takes named numbers by step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take finite values of one step; a step may come in several calls."""

    def close(self, *, failed: bool) -> None:
        """Write what is still held back."""


class TensorBoardLogger:
    """Event files in `RUN/tensorboard`."""

    def __init__(self, folder: RunFolder, config: TrainConfig, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events after the checkpoint that a run resumes from are marked as void.
        self._writer = SummaryWriter(
            str(folder.tensorboard), purge_step=first_step + 1 if first_step else None
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take finite values of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        """Write what is still held back."""
        self._writer.close()


class WandbLogger:
    """A run at Weights & Biases; its files are in `RUN/wandb`, offline too (`WANDB_MODE=offline`).

    A resumed run goes on under the same id. Weights & Biases keeps the first values that it got for
    a step, so the steps between the checkpoint and the stop stay as they were: they are the same.
    """

    def __init__(self, folder: RunFolder, config: TrainConfig, first_step: int) -> None:
        import wandb

        folder.root.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=config.wandb_project,
                name=config.wandb_run_name or folder.root.resolve().name,
                id=folder.wandb_run_id(),
                resume="allow",
                dir=folder.root,
                config=config.model_dump(mode="json"),
                # The keys that a resumed run may change.
                allow_val_change=True,
                # Our own terminal view stays as it is; nothing of the user's code is uploaded.
                settings=wandb.Settings(console="off", silent=True, save_code=False),
            )
        except (wandb.Error, OSError) as error:
            reason = short_reason(error, 200)
            raise ConfigError(
                f"logger wandb cannot start ({reason}); run `wandb login`, or set "
                "WANDB_MODE=offline, or leave wandb out of loggers"
            ) from error
        place = self._run.url or self._run.dir
        say(f"train: Weights & Biases run {self._run.id}, {place}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take finite values of one step."""
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        """Write what is still held back, and say how the run ended."""
        # On a bad network this may take long, and looks like a run that hangs.
        say("train: handing the rest to Weights & Biases")
        self._run.finish(exit_code=int(failed))


LOGGERS: dict[str, Callable[[RunFolder, TrainConfig, int], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
}


def require_loggers(names: Iterable[str]) -> None:
    """Tell of a logger whose package is missing, before anything is computed.

    Raises:
        ConfigError: with the line that installs it.
    """
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "loggers names wandb, which is not installed; install it with `pip install wandb`, or "
            "leave it out (--set loggers=[tensorboard])"
        )


class MetricWriters:
    """Numbers of every step for the run folder and its loggers; neither on other processes.

    A logger that fails is said once and left out from there on.
    """

    def __init__(self, folder: RunFolder | None, loggers: Mapping[str, Logger]) -> None:
        self._folder = folder
        self._loggers = dict(loggers)

    @classmethod
    @contextmanager
    def opened(
        cls, folder: RunFolder, config: TrainConfig, processes: Processes, first_step: int
    ) -> Iterator["MetricWriters"]:
        """Start the loggers on the main process, and close them with what the block ends in."""
        writers = cls(folder if processes.is_main else None, {})
        processes.of_main(lambda: writers._start(folder, config, first_step))
        try:
            yield writers
        except BaseException:
            writers.close(failed=True)
            raise
        writers.close(failed=False)

    def _start(self, folder: RunFolder, config: TrainConfig, first_step: int) -> None:
        """Start the loggers that the configuration names, or leave nothing of any of them."""
        places = (folder.tensorboard, folder.wandb, folder.wandb_file)
        new = [path for path in places if not os.path.lexists(path)]
        try:
            for name in config.loggers:
                self._loggers[name] = LOGGERS[name](folder, config, first_step)
        except BaseException:
            self.close(failed=True)
            for path in new:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            raise

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write one step's line."""
        if self._folder is not None:
            append_line(self._folder.metrics_file, {"step": step, **values})
        self._log(step, values)

    def held_out(self, step: int, values: Mapping[str, float]) -> None:
        """Write one held-out evaluation's line; the loggers get its names under `held_out/`."""
        if self._folder is not None:
            append_line(self._folder.held_out_file, {"step": step, **values})
        self._log(step, {f"held_out/{name}": value for name, value in values.items()})

    def close(self, *, failed: bool) -> None:
        """Close every logger that still runs."""
        for name, logger in list(self._loggers.items()):
            self._guarded(name, "at the end", partial(logger.close, failed=failed))

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        finite = {
            name: value
            for name, value in values.items()
            if isinstance(value, float | int) and math.isfinite(value)
        }
        for name, logger in list(self._loggers.items()):
            self._guarded(name, f"at step {step}", partial(logger.log, step, finite))

    def _guarded(self, name: str, when: str, call: Callable[[], None]) -> None:
        try:
            call()
        # The one place that catches whatever comes: training must outlive its curves.
        except Exception as error:
            del self._loggers[name]
            reason = short_reason(error, 200, kind=True)
            say(
                f"warning: logger {name} failed {when} and gets nothing more ({reason}); "
                "metrics.jsonl goes on"
            )
