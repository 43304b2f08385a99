"""One run at a time in a folder: `RUN/run.lock`, held by the main process as long as it runs.

The kernel holds the lock, so it ends with the process, however that ends. The file says who holds
it. It is removed at the end; one that `kill -9` left behind locks nobody out.
"""

import contextlib
import errno
import json
import os
import socket
import time
from pathlib import Path

from strive.errors import CheckpointError, DiskError, RunInUseError
from strive.files import try_lock
from strive.progress import say

_MARK = "strive_run"
_TRIES, _SECONDS_BETWEEN = 50, 0.01


class RunLock:
    """The lock of one run folder."""

    def __init__(self, root: Path) -> None:
        self.file = root / "run.lock"
        self._root = root
        self._descriptor: int | None = None
        self._before: bytes | None = None
        self._made: list[Path] = []

    def left_by_a_run(self) -> bool:
        """Whether a run's lock is there, held or left behind; once taken: whether it was."""
        if self._descriptor is not None:
            return self._before is not None
        try:
            return _holder(self.file.read_bytes()) is not None
        except OSError:
            return False

    def acquire(self) -> None:
        """Make the folder where it is missing, and be its only process until `release`.

        Raises:
            RunInUseError: another process is; the message says which.
            CheckpointError: the folder cannot be made or written, or a file of this name is there
                that no run wrote.
            DiskError: the disk takes no more.
        """
        for tries_left in reversed(range(_TRIES)):
            try:
                missing = [p for p in (self._root, *self._root.parents) if not p.exists()]
                self._root.mkdir(parents=True, exist_ok=True)
                self._made = [*self._made, *(p for p in missing if p not in self._made)]
                descriptor, before = _open(self.file)
            except FileNotFoundError:
                # A start that was refused this very moment has removed the folder.
                continue
            except OSError as error:
                self._remove_made()
                full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
                raise (DiskError if full else CheckpointError)(
                    f"cannot use run folder {self._root}: {error.strerror or error}; give another "
                    "--run-dir"
                ) from error
            if before == b"" and tries_left:
                # Another start makes the file this very moment.
                os.close(descriptor)
                time.sleep(_SECONDS_BETWEEN)
                continue
            try:
                self._lock(descriptor, before)
            except BaseException:
                os.close(descriptor)
                self._remove_made()
                raise
            # Only a holder removes the file: of several that start at once a single one wins.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self.file.stat(), os.fstat(descriptor)):
                    self._descriptor, self._before = descriptor, before
                    return
            os.close(descriptor)
        self._remove_made()
        raise CheckpointError(
            f"cannot make {self.file}, or it is removed again and again; give another --run-dir"
        )

    def _lock(self, descriptor: int, before: bytes | None) -> None:
        holder = None if before is None else _holder(before)
        if before is not None and holder is None:
            raise CheckpointError(
                f"{self.file} was not written by a run, which needs that name; give another "
                "--run-dir, or move the file away"
            )
        free = try_lock(descriptor)
        if free is False:
            raise RunInUseError(
                f"{self._root} is in use by another run ({holder or 'just begun'}); wait for its "
                "end, or give another --run-dir"
            )
        if free is None:
            say(
                f"warning: {self._root} is on a file system without locks, so that nothing keeps a "
                "second run out of it" + (f" ({self.file.name} names {holder})" if holder else "")
            )
        if before is not None:
            _write(descriptor, _owner())

    def release(self, *, begun: bool, keep: bool) -> None:
        """Let go of the folder, if it was taken.

        Of a start that never became a run (not `begun`) nothing is left: a lock file that was there
        says again what it said. With `keep` the file stays, as the mark of a run.
        """
        if self._descriptor is None:
            return
        # A disk that takes no more must not hide why the run ends.
        with contextlib.suppress(OSError):
            if self._before is not None and not begun:
                _write(self._descriptor, self._before)
            elif not keep:
                self.file.unlink(missing_ok=True)
        self._remove_made()
        os.close(self._descriptor)
        self._descriptor = None

    def _remove_made(self) -> None:
        for folder in self._made:
            with contextlib.suppress(OSError):  # something is in it
                folder.rmdir()
        self._made = []


def _open(path: Path) -> tuple[int, bytes | None]:
    """Open the lock file; what it said before, None for a new one."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        descriptor = os.open(path, os.O_RDWR)
        return descriptor, os.pread(descriptor, 1000, 0)
    # Before it is locked: whoever gets the lock first finds a file that says whose it is.
    _write(descriptor, _owner())
    return descriptor, None


def _owner() -> bytes:
    owner = {_MARK: True, "host": socket.gethostname(), "pid": os.getpid()}
    return json.dumps(owner).encode() + b"\n"


def _write(descriptor: int, content: bytes) -> None:
    # In this order its first line is whole at any moment.
    os.pwrite(descriptor, content, 0)
    os.ftruncate(descriptor, len(content))


def _holder(content: bytes) -> str | None:
    """Whom a lock file names; None for a file that no run wrote."""
    try:
        owner = json.loads(content.partition(b"\n")[0])
        host = " ".join(str(owner["host"]).split())[:100]
        return f"process {int(owner['pid'])} on {host}" if owner[_MARK] else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
