"""One process per writer name: two that do the same work at once would do all of it twice."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from strive.cache.layout import CacheLayout
from strive.errors import CacheError
from strive.files import TEMPORARY_PREFIX, disk_error, try_lock


@contextmanager
def writer_lock(layout: CacheLayout, writer: str) -> Iterator[None]:
    """Be the only process of this writer name while the block runs.

    Hidden files that a killed process of the name left behind are removed.

    Raises:
        CacheError: another process holds it; the message says which.
        DiskError: the cache cannot be written.
    """
    path = layout.writers / f"{writer}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise disk_error(path, error) from error
    try:
        # The kernel holds the lock, so it ends with the process, however that ends. On a file
        # system without locks two writers are harmless all the same (parts have names of their own,
        # and of two rows about one thing readers take the later), they only waste work.
        if try_lock(descriptor) is False:
            holder = os.pread(descriptor, 1000, 0).decode("utf-8", "replace").strip() or "unknown"
            raise CacheError(
                f"{layout.root} is being written by another process of the same part ({holder}); "
                "wait for it, or give each process its own with --shard i/n"
            )
        owner = json.dumps({"writer": writer, "host": socket.gethostname(), "pid": os.getpid()})
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, owner.encode(), 0)
        except OSError as error:
            raise disk_error(layout.writers, error) from error
        for leftover in layout.root.rglob(f"{TEMPORARY_PREFIX}*-{writer}-*"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def live_writers(layout: CacheLayout) -> set[str]:
    """Return the names of writers whose process runs, as far as can be told without disturbing it.

    A process of this machine is looked up by its id, one of another by the lock that it holds.
    """
    alive = set()
    for path in layout.writers.glob("*.lock"):
        try:
            owner = json.loads(path.read_text(encoding="utf-8"))
            is_here = owner["host"] == socket.gethostname()
            is_alive = runs(int(owner["pid"])) if is_here else _is_locked(path)
        except FileNotFoundError:
            continue
        except (KeyError, ValueError, TypeError):
            is_alive = _is_locked(path)  # it is being written this very moment, or was cut off
        if is_alive:
            alive.add(path.stem)
    return alive


def runs(pid: int) -> bool:
    """Whether a process of this machine is alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_locked(path: Path) -> bool:
    try:
        # To write: network file systems lock no file for one process alone that is open to read.
        with path.open("r+b") as file:
            return try_lock(file.fileno()) is False
    except PermissionError:
        return True  # it is another user's, whose leftovers are not ours to remove
