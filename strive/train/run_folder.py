"""The run folder: what a run leaves behind, and cutting it back to a checkpoint on resume.

    config.json  metrics.jsonl  held_out.jsonl  completions.parquet/part-*  tensorboard/  wandb/
    checkpoints/step-000100/  best/  final/  nonfinite/step-000012/

Steps count from 1 here. Nothing in the folder is needed to compute a step, save the checkpoint, so
a run that is cut back and continued leaves the same lines as one that never stopped.

`best/` belongs to what a cut back removes. The best policy that the newest checkpoint saw therefore
stays, in `checkpoints/best`, until the next checkpoint has seen its successor.
"""

import json
import math
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from strive.errors import CheckpointError, DiskError

CHECKPOINT_STATE = "state.json"
BEST_STATE = "best.json"


@dataclass(frozen=True)
class Best:
    """Which policy is in `best/`."""

    step: int
    """Steps that had been done; 0 is the policy that the run began with."""
    metric: str
    """Name of the held-out metric that decides; larger is better."""
    value: float


def checkpoint_name(step: int) -> str:
    """Folder name of a checkpoint that was written after `step` steps."""
    return f"step-{step:06d}"


class RunFolder:
    """Paths and files of one run; only the main process writes through it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.config_file = self.root / "config.json"
        self.metrics_file = self.root / "metrics.jsonl"
        self.held_out_file = self.root / "held_out.jsonl"
        self.completions = self.root / "completions.parquet"
        self.checkpoints = self.root / "checkpoints"
        self.tensorboard = self.root / "tensorboard"
        self.final = self.root / "final"
        self.best = self.root / "best"
        self.best_of_checkpoint = self.checkpoints / "best"
        self.nonfinite = self.root / "nonfinite"
        self.wandb_file = self.root / "wandb.json"
        self._rows: list[dict[str, Any]] = []

    @property
    def exists(self) -> bool:
        """Whether a run has been here."""
        return self.config_file.is_file()

    def checkpoint_steps(self) -> list[int]:
        """Steps of all complete checkpoints, in order."""
        states = self.checkpoints.glob(f"step-*/{CHECKPOINT_STATE}")
        return sorted(
            int(path.parent.name.removeprefix("step-"))
            for path in states
            if path.parent.name.removeprefix("step-").isdigit()
        )

    def checkpoint(self, step: int) -> Path:
        """Folder of one checkpoint."""
        return self.checkpoints / checkpoint_name(step)

    def read_state(self, step: int) -> dict[str, Any]:
        """What a checkpoint says about the run that wrote it."""
        return json.loads((self.checkpoint(step) / CHECKPOINT_STATE).read_text(encoding="utf-8"))

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration, versions and cache keys."""
        _write_atomically(self.config_file, json.dumps(config, indent=2) + "\n")

    def read_config(self) -> dict[str, Any]:
        """What `write_config` wrote."""
        return json.loads(self.config_file.read_text(encoding="utf-8"))

    def wandb_run_id(self) -> str:
        """The run's id at Weights & Biases: made once, so that a resumed run goes on under it."""
        if self.wandb_file.is_file():
            return str(json.loads(self.wandb_file.read_text(encoding="utf-8"))["run_id"])
        run_id = secrets.token_hex(4)
        _write_atomically(self.wandb_file, json.dumps({"run_id": run_id}) + "\n")
        return run_id

    def read_best(self) -> Best | None:
        """What `best/` holds; None where there is none."""
        return _read_best(self.best)

    def put_best(self, folder: Path, best: Best) -> None:
        """Make a finished folder beside it the new `best/`."""
        state = json.dumps(asdict(best), indent=2) + "\n"
        _write_atomically(folder / BEST_STATE, state)
        before = self.read_best()
        if before is not None:
            if before.step <= max(self.checkpoint_steps(), default=-1):
                self.forget_earlier_best()
                self.best.rename(self.best_of_checkpoint)
            else:
                _remove(self.best)
        folder.rename(self.best)

    def forget_earlier_best(self) -> None:
        """Drop the best policy before `best/`: the newest checkpoint has seen the latter."""
        _remove(self.best_of_checkpoint)

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Add one step's line; numbers that are not finite become null."""
        _append(self.metrics_file, line)

    def append_held_out(self, line: Mapping[str, Any]) -> None:
        """Add the line of one held-out evaluation."""
        _append(self.held_out_file, line)

    def add_completions(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep a step's completions until the next `flush_completions`."""
        self._rows.extend(rows)

    def flush_completions(self) -> None:
        """Commit the kept completions as one part, named after its first step."""
        if not self._rows:
            return
        table = pa.Table.from_pylist(self._rows, schema=_completions_schema(self._rows[0]))
        path = self.completions / f"part-{self._rows[0]['step']:06d}.parquet"
        temporary = path.with_suffix(".tmp")
        try:
            self.completions.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, temporary)
            _sync(temporary)
            temporary.rename(path)
        except OSError as error:
            raise DiskError(f"cannot write {path}: {error.strerror or error}") from error
        self._rows = []

    def cut_back(self, step: int) -> None:
        """Remove everything that came after `step` steps."""
        # A run that begins anew evaluates the policy of step 0 again.
        last_evaluated = step if step > 0 else -1
        for path, last in ((self.metrics_file, step), (self.held_out_file, last_evaluated)):
            if path.is_file():
                _write_atomically(path, "".join(_lines_up_to(path, last)))
        for part in sorted(self.completions.glob("part-*.parquet")):
            table = pq.read_table(part)
            kept = table.filter(pa.compute.less_equal(table["step"], step))
            if kept.num_rows == 0:
                part.unlink()
            elif kept.num_rows < table.num_rows:
                pq.write_table(kept, part.with_suffix(".tmp"))
                part.with_suffix(".tmp").rename(part)
        for later in self.checkpoint_steps():
            if later > step:
                shutil.rmtree(self.checkpoint(later))
        for leftover in [*self.checkpoints.glob("*.tmp"), *self.root.glob("*.tmp")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        shutil.rmtree(self.final, ignore_errors=True)
        self._cut_back_best(last_evaluated)

    def _cut_back_best(self, step: int) -> None:
        """Bring back the best policy that `step` steps had seen."""
        best, earlier = self.read_best(), _read_best(self.best_of_checkpoint)
        if best is not None and best.step > step:
            _remove(self.best)
            best = None
        if best is None and earlier is not None and earlier.step <= step:
            self.best_of_checkpoint.rename(self.best)
        self.forget_earlier_best()

    def prune_checkpoints(self, keep: int) -> None:
        """Remove all but the newest checkpoints."""
        for step in self.checkpoint_steps()[:-keep]:
            shutil.rmtree(self.checkpoint(step))

    def last_metrics(self) -> dict[str, Any]:
        """The last step's line, or nothing."""
        lines = self.metrics_file.read_text().splitlines() if self.metrics_file.is_file() else []
        return json.loads(lines[-1]) if lines else {}


def require_same_config(found: Mapping[str, Any], wanted: Mapping[str, Any], where: Path) -> None:
    """Refuse to continue a run under another configuration, showing the keys that differ.

    Raises:
        CheckpointError: some differ.
    """
    differing = [
        f"{key}: the run has {json.dumps(found.get(key))}, this call has {json.dumps(value)}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if differing:
        raise CheckpointError(
            f"{where} was written with another configuration ({'; '.join(differing)}); use the "
            "same one to resume, or another --run-dir to start anew"
        )


def _read_best(folder: Path) -> Best | None:
    path = folder / BEST_STATE
    return Best(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _remove(folder: Path) -> None:
    """Remove a folder so that no half of it is ever seen under its name."""
    if folder.is_dir():
        leftover = folder.with_name(f"{folder.name}-old.tmp")
        folder.rename(leftover)
        shutil.rmtree(leftover)


def _lines_up_to(path: Path, step: int) -> list[str]:
    """Whole lines of steps up to `step`; a line cut off by a kill is dropped."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n") and json.loads(line)["step"] <= step:
            kept.append(line)
    return kept


def _append(path: Path, line: Mapping[str, Any]) -> None:
    values = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in line.items()
    }
    try:
        with path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(values) + "\n")
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror or error}") from error


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        temporary.rename(path)
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror or error}") from error


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _completions_schema(row: Mapping[str, Any]) -> pa.Schema:
    types = {
        "step": pa.int64(),
        "question_id": pa.string(),
        "variant": pa.int32(),
        "generation": pa.int32(),
        "frame_index": pa.list_(pa.int64()),
        "evidence_seen": pa.bool_(),
        "text": pa.string(),
        "length": pa.int32(),
        "truncated": pa.bool_(),
    }
    return pa.schema([(name, types.get(name, pa.float64())) for name in row])
