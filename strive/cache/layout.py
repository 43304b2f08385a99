"""A cache as a whole: its paths, its version, the keys that say what made a part, its writers."""

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strive import __version__
from strive.cache.commit import commit_json, read_json
from strive.errors import CacheDamageError, CacheError, StaleCacheError
from strive.files import TEMPORARY_PREFIX, disk_error, try_lock

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """The paths of one cache."""

    root: Path

    @property
    def version_file(self) -> Path:
        """`cache.json`."""
        return self.root / "cache.json"

    @property
    def questions(self) -> Path:
        """Folder of the question parts."""
        return self.root / "questions"

    @property
    def failures(self) -> Path:
        """Folder of the failure parts."""
        return self.root / "failures.parquet"

    @property
    def writers(self) -> Path:
        """Folder of the locks of processes that write."""
        return self.root / "writers"

    def frames(self, frames_key: str) -> Path:
        """Folder of one set of frames."""
        return self.root / "frames" / frames_key

    def embeddings(self, scorer_key: str) -> Path:
        """Folder of one scorer's frame embeddings."""
        return self.root / "embeddings" / scorer_key

    def scores(self, scorer_key: str) -> Path:
        """Folder of one scorer's scores."""
        return self.root / "scores" / scorer_key

    def frames_keys(self) -> list[str]:
        """Keys of all frame sets that have settings."""
        return _keys_in(self.root / "frames")

    def scorer_keys(self) -> list[str]:
        """Keys of all scorers that have settings."""
        return _keys_in(self.root / "scores")


def _keys_in(folder: Path) -> list[str]:
    keys = (path.parent.name for path in folder.glob("*/settings.json"))
    return sorted(key for key in keys if not key.startswith(TEMPORARY_PREFIX))


def open_cache(root: Path) -> CacheLayout:
    """Open an existing cache.

    Raises:
        CacheError: there is no cache at `root`, or it has another format version.
    """
    layout = CacheLayout(Path(root))
    if not layout.version_file.is_file():
        raise CacheError(
            f"no cache at {root}; make one with `strive-cli precompute --cache {root}`"
        )
    _check_version(layout)
    return layout


def create_cache(root: Path) -> CacheLayout:
    """Open the cache at `root`, making an empty one if there is none."""
    layout = CacheLayout(Path(root))
    if layout.version_file.is_file():
        _check_version(layout)
    else:
        commit_json(layout.version_file, {"format_version": FORMAT_VERSION, "made_by": _made_by()})
    return layout


def _check_version(layout: CacheLayout) -> None:
    found = read_json(layout.version_file).get("format_version")
    if found != FORMAT_VERSION:
        raise CacheError(
            f"{layout.root} has cache format {found!r}, this version reads {FORMAT_VERSION}; "
            "make a new one with `strive-cli precompute --cache DIR`"
        )


def _made_by() -> str:
    return f"strive {__version__}"


def make_key(name: str, fields: Mapping[str, Any]) -> str:
    """Join a readable name and a hash of everything that changes the numbers."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:60]
    return f"{readable}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the `settings.json` of a frames or scores folder."""
    path = folder / "settings.json"
    if not path.is_file():
        raise CacheError(f"{folder} is not in the cache; make it with `strive-cli precompute`")
    return read_json(path)


def read_fields(folder: Path) -> dict[str, Any]:
    """Read the fields that the key of a frames or scores folder hashes.

    Raises:
        CacheDamageError: `settings.json` has none.
    """
    fields = read_settings(folder).get("fields")
    if not isinstance(fields, dict):
        raise CacheDamageError(f"{folder / 'settings.json'} is damaged: it has no 'fields'")
    return fields


def is_plain_name(name: object) -> bool:
    """Whether a name that a part or settings hold is that of something in one folder."""
    # Caches come from strangers: `../` in one must not lead out of it.
    return isinstance(name, str) and Path(name).name == name and "\0" not in name


def ensure_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write a folder's settings once; `settings["fields"]` are those that the key hashes.

    Raises:
        StaleCacheError: the folder was made with other fields.
    """
    if (folder / "settings.json").is_file():
        require_fields(folder, settings["fields"])
    else:
        commit_json(folder / "settings.json", {**settings, "made_by": _made_by()})


def require_fields(folder: Path, expected: Mapping[str, Any]) -> None:
    """Check that a folder was made with the expected fields (those given; others may be anything).

    Raises:
        StaleCacheError: some differ; the message shows each with both values.
    """
    found = read_fields(folder)
    differing = {
        name: (found.get(name), value)
        for name, value in expected.items()
        if found.get(name) != value
    }
    if differing:
        shown = "; ".join(
            f"{name}: the cache has {json.dumps(old)}, this call has {json.dumps(new)}"
            for name, (old, new) in sorted(differing.items())
        )
        raise StaleCacheError(
            f"{folder} was made with other settings ({shown}); "
            "use the same options, or make another cache with `strive-cli precompute --cache DIR`"
        )


def default_frames_key(layout: CacheLayout) -> str:
    """Return the only frames key of a cache.

    Raises:
        CacheError: the cache holds no frames, or several sets of them.
    """
    keys = layout.frames_keys()
    if len(keys) == 1:
        return keys[0]
    if not keys:
        raise CacheError(f"{layout.root} holds no frames; make them with `strive-cli precompute`")
    raise CacheError(
        f"{layout.root} holds several sets of frames ({', '.join(keys)}); choose a scorer of one "
        "of them with --scorer"
    )


# --- one process per writer name: two at the same work would do all of it twice ------------------


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
