"""Removing from a cache what no reader can see, and whole sets that the user names.

By itself nothing but leftovers goes: hidden temporary files, pixel files that no committed part
lists, folders that hold neither settings nor parts, the search index that older versions kept; each
only when it is older than an hour and no running writer's name is on it, so that a precompute in
another terminal loses nothing. `superseded` also rewrites parts without the rows that later ones
replace: every part by an atomic rename onto itself, so that the order of parts, and with it what
readers see, stays as it is at every moment.
"""

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strive.cache.commit import commit_parquet, list_parts, read_part
from strive.cache.frames import frame_shards, read_video_states
from strive.cache.layout import (
    CacheLayout,
    open_cache,
    parts_without_settings,
    read_settings,
)
from strive.cache.lock import live_writers, runs
from strive.cache.scores import find_scorer
from strive.errors import CacheDamageError, CacheError, unknown_name
from strive.files import TEMPORARY_PREFIX, disk_error

SAFE_AGE_SECONDS = 3600.0
"""Leftovers younger than this stay: a writer renames its pixels a moment before it lists them."""

TEMPORARY = "temporary file"
UNLISTED = "pixels that no part lists"
NO_SETTINGS = "set without settings"
OLD_INDEX = "search index of an older version"
SUPERSEDED = "replaced by later rows"
DROPPED = "dropped set"
_MADE_FROM = ("video_id", "frames_checksum")


@dataclass(frozen=True, slots=True)
class Removal:
    """A file or folder to remove, or (`keep` rows of it given) a part to rewrite shorter."""

    path: Path
    why: str
    num_bytes: int
    keep: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What a prune would do.

    `num_young` leftovers stay because they may belong to a running precompute; `damaged` says which
    sets of frames were left alone because a part of theirs cannot be read.
    """

    root: Path
    removals: tuple[Removal, ...]
    num_young: int
    damaged: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes that are freed."""
        return sum(removal.num_bytes for removal in self.removals)

    @property
    def by_reason(self) -> dict[str, tuple[int, int]]:
        """{reason: (how many, bytes)}."""
        counts = Counter(removal.why for removal in self.removals)
        sizes: Counter[str] = Counter()
        for removal in self.removals:
            sizes[removal.why] += removal.num_bytes
        return {why: (count, sizes[why]) for why, count in counts.items()}


# --- planning -----------------------------------------------------------------------------------


def plan_prune(
    root: Path, *, superseded: bool = False, safe_age_seconds: float = SAFE_AGE_SECONDS
) -> PrunePlan:
    """Find what no reader of a cache can see; nothing is changed.

    Raises:
        CacheError: there is no cache.
    """
    layout = open_cache(root)
    busy = live_writers(layout)
    found: list[Removal] = []
    damaged: list[str] = []
    lost = parts_without_settings(layout)
    damaged += map(no_settings, lost)
    bare = [path for path in _folders_without_settings(layout) if path not in lost]
    found += [_removal(path, NO_SETTINGS) for path in bare]
    found += [
        _removal(path, TEMPORARY)
        for path in layout.root.rglob(f"{TEMPORARY_PREFIX}*")
        if not any(path.is_relative_to(folder) for folder in bare)
    ]
    found += [
        _removal(path, OLD_INDEX)
        for key in layout.scorer_keys()
        for path in sorted(layout.embeddings(key).glob("index[.-]*"))
    ]
    for key in layout.frames_keys():
        try:
            found += _unlisted_shards(layout, key)
        except CacheDamageError as error:
            damaged.append(str(error))
    old = time.time() - safe_age_seconds
    kept = [
        removal
        for removal in found
        if _is_idle(removal.path, busy)
        # A folder's settings come before its parts, but whose folder it is its name does not say.
        and not (busy and removal.why == NO_SETTINGS)
        and _newest_change(removal.path) < old
    ]
    rewrites: list[Removal] = []
    if superseded:
        rewrites = list(_superseded(layout, damaged, old))
    return PrunePlan(layout.root, tuple(kept + rewrites), len(found) - len(kept), tuple(damaged))


def plan_drop(root: Path, *, scorers: tuple[str, ...], frames_keys: tuple[str, ...]) -> PrunePlan:
    """Find the folders of whole sets: scorers by name or key, frames by key with their scorers.

    Raises:
        CacheError: no such scorer, or a precompute is writing to the cache.
        UnknownNameError: no such frames key.
    """
    layout = open_cache(root)
    busy = live_writers(layout)
    if busy:
        raise CacheError(
            f"{root} is being written by {', '.join(sorted(busy))}; wait for that precompute "
            "before dropping a set"
        )
    settings = {key: _settings_of(layout.scores(key)) for key in layout.scorer_keys()}
    keys = {_scorer_key(layout, name, settings) for name in scorers}
    for frames_key in frames_keys:
        if frames_key not in layout.frames_keys():
            raise unknown_name("frames key (--frames-key)", frames_key, layout.frames_keys())
    keys |= {key for key, made in settings.items() if made.get("frames_key") in frames_keys}
    folders = [
        folder
        for key in sorted(keys)
        # Scores first: their settings are what lets readers know of the scorer at all.
        for folder in (layout.scores(key), layout.embeddings(key))
    ] + [layout.frames(key) for key in frames_keys]
    removals = [_removal(folder, DROPPED) for folder in folders if folder.is_dir()]
    return PrunePlan(layout.root, tuple(removals), 0, ())


def _scorer_key(layout: CacheLayout, name: str, settings: Mapping[str, dict[str, Any]]) -> str:
    """Find a scorer by its settings alone: one whose parts are damaged can be dropped too."""
    matching = [key for key, made in settings.items() if name in (key, made.get("name"))]
    return matching[0] if len(matching) == 1 else find_scorer(layout, name).key


def _settings_of(folder: Path) -> dict[str, Any]:
    """Return name and frames key of a scorer, as far as they can be read."""
    try:
        settings = read_settings(folder)
    except CacheDamageError:
        return {}
    fields = settings.get("fields")
    frames_key = fields.get("frames_key") if isinstance(fields, dict) else None
    return {"name": settings.get("name"), "frames_key": frames_key}


def _is_idle(path: Path, busy: set[str]) -> bool:
    """Whether no running writer's name is part of a file's name, and no running process made it."""
    if any(f"-{writer}-" in path.name for writer in busy):
        return False
    if not path.name.startswith(TEMPORARY_PREFIX):
        return True
    pid = path.name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]
    return not (pid.isdigit() and runs(int(pid)))


def _removal(path: Path, why: str) -> Removal:
    return Removal(path, why, sum(size for size, _ in _files(path)))


def _files(path: Path) -> Iterator[tuple[int, float]]:
    """Yield size and time of a file, or of all files below a folder; vanished ones are left out."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        try:
            status = file.stat()
        except FileNotFoundError:
            continue
        if not file.is_dir():
            yield status.st_size, status.st_mtime


def _newest_change(path: Path) -> float:
    try:
        own = path.stat().st_mtime
    except FileNotFoundError:
        own = 0.0  # its writer has just finished it
    return max([own, *(changed for _, changed in _files(path))])


def _folders_without_settings(layout: CacheLayout) -> Iterator[Path]:
    known = {"frames": layout.frames_keys(), "scores": layout.scorer_keys()}
    known["embeddings"] = known["scores"]
    for name, keys in known.items():
        for folder in sorted((layout.root / name).glob("*")):
            is_set = folder.is_dir() and not folder.name.startswith(TEMPORARY_PREFIX)
            # Embeddings have no settings of their own: they go by those of the scores.
            has_scores = name == "embeddings" and list_parts(layout.scores(folder.name), "part")
            if is_set and folder.name not in keys and not has_scores:
                yield folder


def no_settings(folder: Path) -> str:
    """Say what is wrong with a set that lost its settings."""
    return (
        f"{folder} holds parts but no settings.json, so that nobody sees them; the precompute that "
        "made it writes it again"
    )


def _unlisted_shards(layout: CacheLayout, frames_key: str) -> Iterator[Removal]:
    shards = frame_shards(layout, frames_key)  # before the parts: what is listed later is younger
    listed = {
        name
        for part in list_parts(layout.frames(frames_key), "videos")
        for name in read_part(part, ["shard"]).column(0).to_pylist()
    }
    for shard in shards:
        if shard.name not in listed:
            yield _removal(shard, UNLISTED)


# --- rows that later ones replace ----------------------------------------------------------------


def _superseded(layout: CacheLayout, damaged: list[str], old: float) -> Iterator[Removal]:
    """Yield parts with replaced rows, then pixels that only such rows list."""
    for key in layout.frames_keys():
        folder = layout.frames(key)
        try:
            rewrites = list(_short_parts(folder, "videos", ["video_id"], old))
            yield from rewrites
            yield from _unused_shards(layout, key, {r.path: r.keep or () for r in rewrites})
        except CacheDamageError as error:
            damaged.append(str(error))
    for key in layout.scorer_keys():
        try:
            frames_key = find_scorer(layout, key).frames_key
            states = read_video_states(layout, frames_key)
            current = {video_id: state.checksum for video_id, state in states.items()}
            scores, embeddings = layout.scores(key), layout.embeddings(key)
            yield from _short_parts(scores, "part", ["question_id"], old, current)
            # Readers find the embeddings of the frames at hand even behind those of others.
            columns = ["video_id", "frames_checksum"]
            yield from _short_parts(embeddings, "part", columns, old, current)
        except CacheDamageError as error:
            damaged.append(str(error))


def _short_parts(
    folder: Path,
    prefix: str,
    id_columns: list[str],
    old: float,
    current: Mapping[str, str] | None = None,
) -> Iterator[Removal]:
    """Yield the parts that hold rows which a later row of the same id replaces.

    Only rows in parts older than `old` replace others: a reader may have been opened before. With
    `current` ({video_id: checksum}), rows that were made from other frames of a video go too.
    """
    columns = id_columns if current is None else sorted({*id_columns, *_MADE_FROM})
    parts = [
        (path, [tuple(row[name] for name in id_columns) for row in rows], rows)
        for path in list_parts(folder, prefix)
        if path.stat().st_mtime < old
        for rows in [read_part(path, columns).to_pylist()]
    ]
    last = {key: (path, number) for path, keys, _ in parts for number, key in enumerate(keys)}
    for path, keys, rows in parts:
        keep = tuple(
            number
            for number, (key, row) in enumerate(zip(keys, rows, strict=True))
            if last[key] == (path, number) and not (current and _is_stale(row, current))
        )
        if len(keep) < len(rows):
            share = 1 - len(keep) / len(rows)
            yield Removal(path, SUPERSEDED, int(path.stat().st_size * share), keep)


def _is_stale(row: Mapping[str, str], current: Mapping[str, str]) -> bool:
    """Whether a row belongs to frames that were since decoded anew; uncached videos stay."""
    return current.get(row["video_id"]) not in (None, row["frames_checksum"])


def _unused_shards(
    layout: CacheLayout, frames_key: str, keep: Mapping[Path, tuple[int, ...]]
) -> Iterator[Removal]:
    """Yield the pixel files that only rows list which are about to go."""
    used: set[str] = set()
    listed: set[str] = set()
    for path in list_parts(layout.frames(frames_key), "videos"):
        names = read_part(path, ["shard"]).column(0).to_pylist()
        listed.update(names)
        used.update(names[row] for row in keep.get(path, range(len(names))))
    # Of the files that are there: a stranger's rows may list any path.
    for shard in frame_shards(layout, frames_key):
        if shard.name in listed - used:
            yield _removal(shard, SUPERSEDED)


# --- doing it -----------------------------------------------------------------------------------


def apply_prune(plan: PrunePlan) -> int:
    """Do what a plan says; return the bytes that were freed.

    Parts are rewritten before the pixels that they listed go, so that a kill in between leaves
    unlisted pixels for the next prune and never a row without pixels.

    Raises:
        DiskError: something cannot be removed; what was done before is done.
    """
    freed = 0
    for removal in plan.removals:
        try:
            freed += _apply(removal)
        except FileNotFoundError:
            continue  # its writer came to an end and removed it
        except OSError as error:
            raise disk_error(removal.path, error) from error
    return freed


def _apply(removal: Removal) -> int:
    path = removal.path
    if removal.keep:
        before = path.stat().st_size
        commit_parquet(path, read_part(path).take(list(removal.keep)))
        return before - path.stat().st_size
    if path.is_dir() and not path.is_symlink():
        # A hidden set does not exist for readers: a kill from here on harms nobody.
        hidden = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}"
        path.rename(hidden)
        shutil.rmtree(hidden)
    else:
        path.unlink()
    return removal.num_bytes
