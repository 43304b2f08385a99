"""What a run writes while it goes: metrics to JSONL and the loggers, checkpoints, policies."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from strive.configs.schema import TrainConfig
from strive.errors import DiskError
from strive.models.loading import save_policy
from strive.models.lora import merged_state_dict
from strive.train.finished import CHECKPOINT_STATE, put_finished
from strive.train.loggers import Loggers
from strive.train.processes import Processes
from strive.train.run_folder import RunFolder, checkpoint_name
from strive.train.step import Trainer


class MetricWriters:
    """Metrics and held-out results of every step; silent on all but the main process."""

    def __init__(
        self, folder: RunFolder, config: TrainConfig, processes: Processes, first_step: int
    ) -> None:
        self._folder = folder
        self._is_main = processes.is_main
        self._loggers = Loggers({})

        def start() -> None:
            self._loggers = Loggers.start(folder, config, first_step)

        processes.of_main(start)

    def __enter__(self) -> "MetricWriters":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loggers.close(failed=kind is not None)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write one step's line."""
        if self._is_main:
            self._folder.append_metrics({"step": step, **values})
            self._loggers.log(step, values)

    def held_out(self, step: int, values: Mapping[str, float]) -> None:
        """Write one held-out evaluation's line; the loggers get its names under `held_out/`."""
        if self._is_main:
            self._folder.append_held_out({"step": step, **values})
            self._loggers.log(step, {f"held_out/{name}": v for name, v in values.items()})


def write_checkpoint(trainer: Trainer, folder: RunFolder, step: int, about: dict[str, Any]) -> None:
    """Write everything that resuming after `step` needs, then let it appear under its name.

    A run needs no random state: every draw is derived from the seed and its own keys.
    """
    processes = trainer.processes
    temporary = folder.checkpoints / f"{checkpoint_name(step)}.tmp"
    if processes.is_main:
        folder.flush_completions()
        shutil.rmtree(temporary, ignore_errors=True)
        _make_folder(temporary)
    processes.barrier()
    try:
        trainer.engine.save(temporary)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its own stream writer.
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        raise DiskError(f"cannot write checkpoint {temporary}: {error}") from error
    processes.barrier()
    if processes.is_main:
        state = {
            "step": step,
            "world_size": processes.world_size,
            "zero_stage": trainer.engine.stage,
            **about,
        }
        (temporary / CHECKPOINT_STATE).write_text(json.dumps(state, indent=2) + "\n")
        put_finished(temporary, folder.checkpoint(step))
        folder.prune_checkpoints(trainer.config.keep_checkpoints)
        folder.forget_earlier_best()
    processes.barrier()


def write_final(trainer: Trainer, folder: RunFolder) -> None:
    """Write the policy as it ended to `final/`."""
    temporary = folder.final.with_name("final.tmp")
    write_policy(trainer, temporary)
    if trainer.processes.is_main:
        put_finished(temporary, folder.final)
    trainer.processes.barrier()


def write_policy(trainer: Trainer, folder: Path) -> None:
    """Write the policy as a plain Hugging Face folder with its processor, adapters merged in.

    All processes call it together.
    """
    with trainer.engine.gathered():
        if trainer.processes.is_main:
            shutil.rmtree(folder, ignore_errors=True)
            merged = trainer.config.trainable == "lora"
            model = trainer.policy.model
            save_policy(trainer.policy, folder, merged_state_dict(model) if merged else None)
    trainer.processes.barrier()


def _make_folder(path: Any) -> None:
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise DiskError(f"cannot make {path}: {error.strerror or error}") from error
