"""The run folder: what a run leaves behind, and cutting it back to a checkpoint on resume.

    config.json  metrics.jsonl  held_out.jsonl  completions.parquet/part-*  tensorboard/  wandb/
    checkpoints/step-000100/  best/  final/  run.lock
    nonfinite/step-000012/  failed_reward/step-000012/

These names, and the temporary ones of what is being written, are the run's; whatever else lies in
the folder is the user's and stays. A folder that holds one of them and no run of ours is refused.

Steps count from 1 here. Nothing in the folder is needed to compute a step, save the checkpoint, so
a run that is cut back and continued leaves the same lines as one that never stopped.

`best/` belongs to what a cut back removes. The best policy that the newest checkpoint saw therefore
stays, in `checkpoints/best`, until the next checkpoint has seen its successor.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from strive.errors import CheckpointError, short_reason
from strive.files import append_text, atomic_file, fsync, plain_json, whole_lines, write_atomically
from strive.progress import say
from strive.train.run_lock import RunLock

CHECKPOINT_STATE = "state.json"
BEST_STATE = "best.json"
# The list of a finished folder: on each line what a file held (`_content`), and its relative path.
WRITTEN = ".strive-files"
_MOST_DIGESTED_BYTES = 2**20
# What tells a folder as a run's; earlier versions wrote no list.
_MARKS = (WRITTEN, CHECKPOINT_STATE, BEST_STATE)
_STEP = "([0-9]{6}|[1-9][0-9]{6,})"
_NAMES = (
    *("config.json", "metrics.jsonl", "held_out.jsonl", "completions.parquet", "checkpoints"),
    *("best", "final", "nonfinite", "failed_reward", "tensorboard", "wandb", "wandb.json"),
)
# Names of files and folders while a run writes or removes them, by the folder that they lie in.
_TEMPORARY_FILES = {
    "": r"(config\.json|metrics\.jsonl|held_out\.jsonl|wandb\.json)\.tmp",
    "completions.parquet": rf"part-{_STEP}\.tmp",
}
_TEMPORARY_FOLDERS = {
    "": r"(best|final)(-old)?\.tmp",
    "checkpoints": rf"(best|step-{_STEP})(-old)?\.tmp",
}
# Columns of completions.parquet that are no float64.
_COLUMN_TYPES = {
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
_STATE_KEYS = {"step", "config", "cache", "start_digest", "world_size", "zero_stage"}


@dataclass(frozen=True)
class Best:
    """The policy in `best/`: when it was reached, and how good it was."""

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
        self.failed_reward = self.root / "failed_reward"
        self.wandb = self.root / "wandb"
        self.wandb_file = self.root / "wandb.json"
        self.lock = RunLock(self.root)
        self.begun = False
        """Whether this process's run has begun to change the folder."""
        self._rows: list[dict[str, Any]] = []

    def names(self) -> list[Path]:
        """Paths that exist under a name that a run writes, the lock left out."""
        finished = [self.root / name for name in _NAMES]
        files = _matching(self.root, _TEMPORARY_FILES[""])
        folders = _matching(self.root, _TEMPORARY_FOLDERS[""])
        return [path for path in (*finished, *files, *folders) if os.path.lexists(path)]

    @property
    def has_config(self) -> bool:
        """Whether the folder's `config.json` is one that `write_config` wrote."""
        try:
            found = self.read_config()
            return "strive" in found["versions"] and {"config", "data"} <= found.keys()
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return False

    @property
    def exists(self) -> bool:
        """Whether a run has been here, one included that was killed before its `config.json`."""
        return (
            self.has_config
            or (self.lock.left_by_a_run() and bool(self.names()))
            or None in self.checkpoint_damage().values()
        )

    @property
    def has_final(self) -> bool:
        """Whether `final/` is one that this version wrote, and as it was written."""
        return (self.final / WRITTEN).is_file() and damage(self.final) is None

    def require_ours(self) -> None:
        """Refuse a folder in which a run would meet what no run wrote.

        Raises:
            CheckpointError: it names what is there.
        """
        if os.path.lexists(self.root) and not self.root.is_dir():
            raise CheckpointError(f"{self.root} is not a folder; give another --run-dir")
        found = [] if self.exists else [path.name for path in self.names()]
        if found:
            raise CheckpointError(
                f"{self.root} is no run's folder but holds {', '.join(found)}, which a run would "
                "write; give another --run-dir, or move that away"
            )

    def release(self) -> None:
        """Let other runs in, and leave nothing of a start that was refused."""
        unfinished = not self.has_config and bool(self.names())
        self.lock.release(begun=self.begun, keep=unfinished)

    def checkpoint_steps(self) -> list[int]:
        """Steps of all complete checkpoints, in order."""
        return sorted(
            int(path.name.removeprefix("step-"))
            for path in _matching(self.checkpoints, f"step-{_STEP}")
            if (path / CHECKPOINT_STATE).is_file()
        )

    def checkpoint_damage(self) -> dict[int, str | None]:
        """The damage of each checkpoint that a run wrote, by step; None for a whole one."""
        found: dict[int, str | None] = {}
        for path in _matching(self.checkpoints, f"step-{_STEP}"):
            if not any((path / mark).is_file() for mark in (CHECKPOINT_STATE, WRITTEN)):
                continue
            step = int(path.name.removeprefix("step-"))
            try:
                reason = damage(path)
                if reason is None and _STATE_KEYS - self.read_state(step).keys():
                    reason = f"{CHECKPOINT_STATE} is no state that a run wrote"
            except (OSError, ValueError, AttributeError, RecursionError) as error:
                reason = f"{CHECKPOINT_STATE}: {short_reason(error, 80)}"
            found[step] = reason
        return dict(sorted(found.items()))

    def checkpoint(self, step: int) -> Path:
        """Folder of one checkpoint."""
        return self.checkpoints / checkpoint_name(step)

    def read_state(self, step: int) -> dict[str, Any]:
        """A checkpoint's state.json: its step, and the run that wrote it."""
        return json.loads((self.checkpoint(step) / CHECKPOINT_STATE).read_text(encoding="utf-8"))

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration, versions and cache keys."""
        _write(self.config_file, json.dumps(config, indent=2) + "\n")

    def read_config(self) -> dict[str, Any]:
        """The content of config.json."""
        return json.loads(self.config_file.read_text(encoding="utf-8"))

    def wandb_run_id(self) -> str:
        """The run's id at Weights & Biases: made once, so that a resumed run goes on under it."""
        if self.wandb_file.is_file():
            with _telling_damage(self.wandb_file, "remove it to go on under a new id"):
                return str(json.loads(self.wandb_file.read_text(encoding="utf-8"))["run_id"])
        run_id = secrets.token_hex(4)
        _write(self.wandb_file, json.dumps({"run_id": run_id}) + "\n")
        return run_id

    def read_best(self) -> Best | None:
        """The record of the policy in `best/`; None where there is none."""
        return _read_best(self.best)

    def replace_best(self, folder: Path, best: Best) -> None:
        """Make a finished folder beside it the new `best/`."""
        state = json.dumps(asdict(best), indent=2) + "\n"
        _write(folder / BEST_STATE, state)
        before = self.read_best()
        if before is not None and before.step <= max(self.checkpoint_steps(), default=-1):
            self.forget_earlier_best()
            self.best.rename(self.best_of_checkpoint)
        commit_folder(folder, self.best)

    def forget_earlier_best(self) -> None:
        """Drop the best policy before `best/`: the newest checkpoint has seen the latter."""
        if _read_best(self.best_of_checkpoint) is not None:
            remove(self.best_of_checkpoint)

    def add_completions(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep a step's completions until the next `flush_completions`."""
        self._rows.extend(rows)

    def flush_completions(self) -> None:
        """Commit the kept completions as one part, named after its first step."""
        if not self._rows:
            return
        types = {name: _COLUMN_TYPES.get(name, pa.float64()) for name in self._rows[0]}
        table = pa.Table.from_pylist(self._rows, schema=pa.schema(types))
        path = self.completions / f"part-{self._rows[0]['step']:06d}.parquet"
        _write_part(path, table)
        self._rows = []

    def surviving(self, step: int) -> tuple[dict[Path, str], dict[Path, pa.Table | None]]:
        """Texts of the logs and parts of the completions that a cut back to `step` steps leaves.

        A part that stays as it is is left out, one that goes is None.

        Raises:
            CheckpointError: a file is damaged; nothing has changed.
        """
        logs = {
            path: "".join(_lines_up_to(path, last))
            for path, last in (
                (self.metrics_file, step),
                (self.held_out_file, _last_evaluated(step)),
            )
            if path.is_file()
        }
        parts: dict[Path, pa.Table | None] = {}
        for part in _matching(self.completions, rf"part-{_STEP}\.parquet"):
            with _telling_damage(part, "remove it to resume (its steps' completions are lost)"):
                table = pq.read_table(part)
                kept = table.filter(pa.compute.less_equal(table["step"], step))
            if kept.num_rows < table.num_rows:
                parts[part] = kept if kept.num_rows else None
        return logs, parts

    def cut_back(self, step: int) -> None:
        """Remove everything that came after `step` steps.

        Raises:
            CheckpointError, DiskError: a file is damaged, or the disk refuses.
        """
        logs, parts = self.surviving(step)
        for path, text in logs.items():
            _write(path, text)
        for part, kept in parts.items():
            if kept is None:
                part.unlink()
            else:
                _write_part(part, kept)
        for later in self.checkpoint_damage():
            if later > step:
                remove(self.checkpoint(later))
        for place, pattern in _TEMPORARY_FILES.items():
            for path in _matching(self.root / place, pattern):
                if path.is_file():
                    path.unlink()
        for place, pattern in _TEMPORARY_FOLDERS.items():
            for path in _matching(self.root / place, pattern):
                if path.is_dir() and not path.is_symlink():
                    remove_leftover(path)
        remove(self.final)
        best, earlier = self.read_best(), _read_best(self.best_of_checkpoint)
        if best is not None and best.step > _last_evaluated(step):
            remove(self.best)
            best = None
        if best is None and earlier is not None and earlier.step <= _last_evaluated(step):
            remove(self.best)
            self.best_of_checkpoint.rename(self.best)
        self.forget_earlier_best()

    def prune_checkpoints(self, keep: int) -> None:
        """Remove all but the newest checkpoints."""
        for step in self.checkpoint_steps()[:-keep]:
            remove(self.checkpoint(step))

    def logged_steps(self) -> set[int]:
        """Steps that `metrics.jsonl` has a readable line of."""
        found: set[int] = set()
        if self.metrics_file.is_file():
            for line in self.metrics_file.read_text(errors="replace").splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    found.add(int(json.loads(line)["step"]))
        return found

    def last_metrics(self) -> dict[str, Any]:
        """The last step's line, or nothing."""
        lines = self.metrics_file.read_text().splitlines() if self.metrics_file.is_file() else []
        return json.loads(lines[-1]) if lines else {}


def _last_evaluated(step: int) -> int:
    """A run that begins anew evaluates the policy of step 0 again."""
    return step if step > 0 else -1


@contextmanager
def _telling_damage(path: Path, way_out: str) -> Iterator[None]:
    """Turn what is wrong with a file of the run into one line.

    Raises:
        CheckpointError: what is read in the block is not what a run writes.
    """
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        reason = short_reason(error, 120)
        raise CheckpointError(f"{path} is damaged ({reason}); {way_out}") from error


def _read_best(folder: Path) -> Best | None:
    path = folder / BEST_STATE
    if not path.is_file():
        return None
    with _telling_damage(path, f"remove {folder} to go on without that policy"):
        return Best(**json.loads(path.read_text(encoding="utf-8")))


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Paths in a folder whose whole name matches, in order."""
    return sorted(path for path in folder.glob("*") if re.fullmatch(pattern, path.name))


def _lines_up_to(path: Path, step: int) -> list[str]:
    """Whole lines of steps up to `step`; a line cut off by a kill is dropped."""
    kept = []
    for number, line in enumerate(whole_lines(path), 1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line.decode())
        except (ValueError, KeyError, TypeError):
            text = line.decode(errors="replace").strip()[:40]
            raise CheckpointError(
                f"{path}, line {number} is no line that a run wrote ({text!r}); remove it to resume"
            ) from None
    return kept


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add a step's line to a log; numbers that are not finite become null."""
    append_text(path, json.dumps(plain_json(line)) + "\n", sync=False, knob="--run-dir")


def _write(path: Path, text: str) -> None:
    # Its temporary name is one of those that a later start clears away.
    temporary = path.with_name(f"{path.name}.tmp")
    write_atomically(path, text, temporary=temporary, knob="--run-dir")


def _write_part(path: Path, table: pa.Table) -> None:
    with atomic_file(path, temporary=path.with_suffix(".tmp"), knob="--run-dir") as temporary:
        pq.write_table(table, temporary)


# --- finished folders ----------------------------------------------------------------------------
# Checkpoints and policies appear and go as wholes. Each lists the files that the run wrote into it,
# so that removing it removes no others, and none that somebody has edited since.


def commit_folder(temporary: Path, target: Path) -> None:
    """Let a finished folder appear under its name, in the place of the one there.

    Its files are on the disk by then, and have the modes that the user's umask gives: some
    libraries write theirs for the user alone.
    """
    lines = _lines_of_files(temporary)
    listed = temporary / WRITTEN
    listed.write_text("".join(f"{line}\n" for line in sorted(lines.values())), encoding="utf-8")
    mode = stat.S_IMODE(listed.stat().st_mode)
    for path in (*lines, listed):
        if path.is_symlink():
            continue
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)
        fsync(path)
    for path in {temporary, *(path.parent for path in lines)}:
        fsync(path)
    remove(target)
    temporary.rename(target)
    fsync(target.parent)


def damage(folder: Path) -> str | None:
    """The first damage of a finished folder by its own list: a file is missing, or has changed.

    A small file is known by its content, a large one by its size; `state.json`, which readers check
    themselves, may have been edited. Earlier versions wrote no list.
    """
    listed = folder / WRITTEN
    if not listed.is_file():
        return None
    lines = listed.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines:
        return f"{WRITTEN} is empty"
    for content, _, name in (line.partition(" ") for line in lines):
        if not os.path.lexists(folder / name):
            return f"{name} is missing"
        if name != CHECKPOINT_STATE and _content(folder / name) != content:
            return f"{name} is not as it was written"
    return None


def remove(path: Path) -> None:
    """Remove a finished policy or checkpoint, so that no half of it is ever seen under its name.

    What no run wrote stays as `NAME-kept`: files that were put into it, or all of another folder.
    """
    if path.is_dir() and not path.is_symlink() and any((path / m).is_file() for m in _MARKS):
        leftover = path.with_name(f"{path.name}-old.tmp")
        path.rename(leftover)
        remove_leftover(leftover)
    elif os.path.lexists(path):
        path.rename(_name_to_keep(path))


def remove_leftover(leftover: Path) -> None:
    """Remove a folder that has no more, or not yet, a name of its own."""
    listed = leftover / WRITTEN
    if listed.is_file():
        written = set(listed.read_text(encoding="utf-8", errors="replace").splitlines())
        others = [path for path, line in _lines_of_files(leftover).items() if line not in written]
        name = leftover.name.removesuffix(".tmp").removesuffix("-old")
        kept = _name_to_keep(leftover.with_name(name)) if others else leftover
        for path in others:
            target = kept / path.relative_to(leftover)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    shutil.rmtree(leftover)


def _name_to_keep(path: Path) -> Path:
    """A free name for what no run wrote; it is said, so that it can be found."""
    kept, number = path.with_name(f"{path.name}-kept"), 1
    while os.path.lexists(kept):
        number += 1
        kept = path.with_name(f"{path.name}-kept-{number}")
    say(f"train: what no run wrote in {path} is now in {kept}")
    return kept


def _lines_of_files(folder: Path) -> dict[Path, str]:
    """A line of the list for each file in a folder, the list itself left out."""
    lines = {}
    for path in folder.rglob("*"):
        if path != folder / WRITTEN and (path.is_symlink() or not path.is_dir()):
            lines[path] = f"{_content(path)} {path.relative_to(folder).as_posix()}"
    return lines


def _content(path: Path) -> str:
    """A file's digest, or its size where it is large (weights): an edited file has another."""
    size = path.lstat().st_size
    if path.is_symlink() or size > _MOST_DIGESTED_BYTES:
        return str(size)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
