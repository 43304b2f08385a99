"""What a run writes while it goes: metrics to JSONL and the loggers, checkpoints, policies."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from strive.configs.schema import TrainConfig
from strive.files import as_disk_error, disk_error
from strive.models.loading import save_policy
from strive.models.lora import merged_state_dict
from strive.train.card import model_card
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


@contextmanager
def written_whole(temporary: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line, and leave no half of what was being written.

    Raises:
        DiskError: it refused.
    """
    try:
        yield
    except Exception as error:
        refused = as_disk_error(error)
        if refused is None:
            raise
        told = disk_error(temporary, refused, "--run-dir")
        shutil.rmtree(temporary, ignore_errors=True)
        raise told from error


def write_checkpoint(trainer: Trainer, folder: RunFolder, step: int, about: dict[str, Any]) -> None:
    """Write everything that resuming after `step` needs, then let it appear under its name.

    A run needs no random state: every draw is derived from the seed and its own keys.

    Raises:
        DiskError: the disk takes no more; nothing of the checkpoint is left.
    """
    processes = trainer.processes
    temporary = folder.checkpoints / f"{checkpoint_name(step)}.tmp"

    def begin() -> None:
        folder.flush_completions()
        shutil.rmtree(temporary, ignore_errors=True)
        with written_whole(temporary):
            temporary.mkdir(parents=True)

    def finish() -> None:
        state = {
            "step": step,
            "world_size": processes.world_size,
            "zero_stage": trainer.engine.stage,
            **about,
        }
        with written_whole(temporary):
            (temporary / CHECKPOINT_STATE).write_text(json.dumps(state, indent=2) + "\n")
            put_finished(temporary, folder.checkpoint(step))
        folder.prune_checkpoints(trainer.config.keep_checkpoints)
        folder.forget_earlier_best()

    processes.of_main(begin)
    with written_whole(temporary):
        trainer.engine.save(temporary)
    processes.barrier()
    processes.of_main(finish)


def write_final(trainer: Trainer, folder: RunFolder, about: Mapping[str, Any]) -> None:
    """Write the policy as it ended to `final/`.

    Raises:
        DiskError: the disk takes no more; nothing of it is left.
    """

    def finish(temporary: Path) -> None:
        put_finished(temporary, folder.final)

    step = trainer.config.steps
    write_policy(trainer, folder.final, about, step, folder.last_metrics, finish)


def write_policy(
    trainer: Trainer,
    target: Path,
    about: Mapping[str, Any],
    step: int,
    figures: Callable[[], Mapping[str, Any]],
    finish: Callable[[Path], None],
) -> None:
    """Write the policy as a plain Hugging Face folder with its processor, adapters merged in.

    It is written beside `target`, with a README of how it came about (`card.model_card`); `finish`
    lets it appear. All processes call it together.

    Raises:
        DiskError: the disk takes no more; nothing of it is left.
    """
    temporary = target.with_name(f"{target.name}.tmp")

    def write() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        merged = trainer.config.trainable == "lora"
        model = trainer.policy.model
        with written_whole(temporary):
            save_policy(trainer.policy, temporary, merged_state_dict(model) if merged else None)
            card = model_card(trainer.config, about, step=step, figures=figures())
            (temporary / "README.md").write_text(card, encoding="utf-8")
            finish(temporary)

    with trainer.engine.gathered():
        trainer.processes.of_main(write)
