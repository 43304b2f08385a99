"""Where everything in a cache lives, its version, and the keys that say what made it."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strive import __version__
from strive.cache.commit import commit_json, read_json
from strive.errors import CacheDamageError, CacheError, StaleCacheError
from strive.files import TEMPORARY_PREFIX

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
