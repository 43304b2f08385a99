"""What a run writes while it goes: metrics to JSONL and TensorBoard, and checkpoints."""

import json
import math
import shutil
from collections.abc import Mapping
from typing import Any

from strive.configs.schema import TrainConfig
from strive.errors import DiskError
from strive.models.loading import save_policy
from strive.models.lora import merged_state_dict
from strive.train.processes import Processes
from strive.train.run_folder import CHECKPOINT_STATE, RunFolder, checkpoint_name
from strive.train.step import Trainer


class MetricWriters:
    """Metrics and held-out results of every step; silent on all but the main process."""

    def __init__(
        self, folder: RunFolder, config: TrainConfig, processes: Processes, first_step: int
    ) -> None:
        self._folder = folder
        self._is_main = processes.is_main
        self._tensorboard: Any = None
        if self._is_main and config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Events after the checkpoint that a run resumes from are marked as void.
            self._tensorboard = SummaryWriter(
                str(folder.tensorboard), purge_step=first_step + 1 if first_step else None
            )

    def __enter__(self) -> "MetricWriters":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write one step's line."""
        if self._is_main:
            self._folder.append_metrics({"step": step, **values})
            self._scalars(step, values)

    def held_out(self, step: int, values: Mapping[str, float]) -> None:
        """Write one held-out evaluation's line, under the names that the evaluation gives."""
        if self._is_main:
            self._folder.append_held_out({"step": step, **values})
            self._scalars(step, values)

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._tensorboard is None:
            return
        for name, value in values.items():
            if isinstance(value, float | int) and math.isfinite(value):
                self._tensorboard.add_scalar(name, value, step)


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
        target = folder.checkpoint(step)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        folder.prune_checkpoints(trainer.config.keep_checkpoints)
    processes.barrier()


def write_final(trainer: Trainer, folder: RunFolder) -> None:
    """Write the policy as a plain Hugging Face folder with its processor, adapters merged in."""
    with trainer.engine.gathered():
        if trainer.processes.is_main:
            temporary = folder.final.with_name("final.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            merged = trainer.config.trainable == "lora"
            model = trainer.policy.model
            save_policy(trainer.policy, temporary, merged_state_dict(model) if merged else None)
            shutil.rmtree(folder.final, ignore_errors=True)
            temporary.rename(folder.final)
    trainer.processes.barrier()


def _make_folder(path: Any) -> None:
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise DiskError(f"cannot make {path}: {error.strerror or error}") from error
