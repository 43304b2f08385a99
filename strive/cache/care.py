"""The care of a cache: one walk says of every file whether a reader needs it, and why not if none.

From that `cache info` counts and `cache prune` removes (`verify.py` reads what is committed).
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
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from strive.cache.commit import commit_parquet, list_parts, read_json, read_part
from strive.cache.failures import read_failures
from strive.cache.frames import read_video_states
from strive.cache.layout import (
    CacheLayout,
    live_writers,
    open_cache,
    read_fields,
    read_settings,
    runs,
)
from strive.cache.questions import read_questions
from strive.cache.scores import ScorerInfo, find_scorer, list_scorers
from strive.errors import CacheDamageError, CacheError, unknown_name
from strive.files import TEMPORARY_PREFIX, disk_error

# Leftovers younger than this stay: a writer renames its pixels a moment before it lists them.
SAFE_AGE_SECONDS = 3600.0

COMMITTED = "committed"
TEMPORARY = "temporary file"
UNLISTED = "pixels that no part lists"
NO_SETTINGS = "set without settings"
OLD_INDEX = "search index of an older version"
SUPERSEDED = "replaced by later rows"
DROPPED = "dropped set"


@dataclass(frozen=True, slots=True)
class CacheItem:
    """A file of a cache, or a folder of which no file can be seen, with all that is in it.

    `why` is `committed`, or the reason for which nobody needs it. With `keep` a part is to be
    rewritten with these of its rows; `num_bytes` is then about what that frees. What `is_young` may
    belong to a running precompute.
    """

    path: Path
    why: str
    num_bytes: int
    keep: tuple[int, ...] | None = None
    is_young: bool = False


@dataclass(frozen=True, slots=True)
class Contents:
    """Every file of a cache; `damaged` says which sets were left alone, as parts cannot be read."""

    root: Path
    items: tuple[CacheItem, ...]
    damaged: tuple[str, ...] = ()

    def bytes_below(self, folder: Path) -> int:
        """Return the bytes of all files below a folder."""
        return sum(item.num_bytes for item in self.items if item.path.is_relative_to(folder))

    @property
    def removals(self) -> tuple[CacheItem, ...]:
        """The items that no reader needs, in the order in which they can go."""
        return tuple(item for item in self.items if item.why != COMMITTED and not item.is_young)

    @property
    def num_young(self) -> int:
        """How many leftovers stay because they may belong to a running precompute."""
        return sum(item.is_young for item in self.items)

    @property
    def num_bytes(self) -> int:
        """Bytes that are freed when all removals go."""
        return sum(removal.num_bytes for removal in self.removals)

    @property
    def by_reason(self) -> dict[str, tuple[int, int]]:
        """The removals as {reason: (how many, bytes)}."""
        sums: dict[str, tuple[int, int]] = {}
        for removal in self.removals:
            count, num_bytes = sums.get(removal.why, (0, 0))
            sums[removal.why] = (count + 1, num_bytes + removal.num_bytes)
        return sums


# --- the walk -----------------------------------------------------------------------------------


def walk_cache(
    root: Path, *, superseded: bool = False, safe_age_seconds: float = SAFE_AGE_SECONDS
) -> Contents:
    """List every file of a cache with what it is; nothing is changed.

    With `superseded` rows and pixels that later ones replace count as not needed.

    Raises:
        CacheError: there is no cache.
    """
    layout = open_cache(root)
    busy = live_writers(layout)
    old = time.time() - safe_age_seconds
    lost, bare = folders_without_settings(layout)
    damaged = [no_settings(folder) for folder in lost]
    sizes: Counter[Path] = Counter()
    changed: dict[Path, float] = {}
    for path in [*bare, *layout.root.rglob("*")]:
        item = _goes_with(path, layout.root, bare)
        try:
            is_folder, status = path.is_dir(), path.stat()
        except FileNotFoundError:
            continue  # its writer has just finished it
        if is_folder and item == path and path not in bare and not _is_hidden(path):
            continue
        sizes[item] += 0 if is_folder else status.st_size
        changed[item] = max(changed.get(item, 0.0), status.st_mtime)
    # The parts are read after the walk, which cannot have met pixels that are listed only now.
    rewrites = _rewrites(layout, old, damaged) if superseded else {}
    listed, used = _listed_pixels(layout, rewrites, damaged)
    items = list(rewrites.values())
    for path, num_bytes in sizes.items():
        if path in rewrites:
            continue
        why = COMMITTED
        if path in bare:
            why = NO_SETTINGS
        elif _is_hidden(path):
            why = TEMPORARY
        elif path.parent.parent.name == "embeddings" and path.match("index[.-]*"):
            why = OLD_INDEX
        elif path.parent in listed and path.match("frames-*.arrow"):
            if path not in listed[path.parent]:
                why = UNLISTED
            elif path not in used:
                why = SUPERSEDED
        is_young = why not in (COMMITTED, SUPERSEDED) and (
            changed[path] >= old
            # A running writer's name is part of the file's name, or a running process made it.
            or any(f"-{writer}-" in path.name for writer in busy)
            or (_is_hidden(path) and _maker_runs(path))
            # A folder's settings come before its parts, but its name does not say whose it is.
            or (why == NO_SETTINGS and bool(busy))
        )
        items.append(CacheItem(path, why, num_bytes, is_young=is_young))
    # Parts are rewritten before the pixels go that they listed: a kill in between leaves unlisted
    # pixels for the next prune and never a row without pixels.
    order = (COMMITTED, NO_SETTINGS, TEMPORARY, OLD_INDEX, UNLISTED, SUPERSEDED)
    items.sort(key=lambda item: (order.index(item.why), item.keep is None, item.path))
    return Contents(layout.root, tuple(items), tuple(dict.fromkeys(damaged)))


def folders_without_settings(layout: CacheLayout) -> tuple[list[Path], list[Path]]:
    """Return sets that lost their settings, which hides their parts, and sets without parts too.

    A precompute of the same options writes the settings again.
    """
    lost, bare = [], []
    for name, prefix in (("frames", "videos"), ("scores", "part"), ("embeddings", "part")):
        for folder in sorted((layout.root / name).glob("*")):
            # Embeddings have no settings of their own: they go by those of the scores.
            owner = layout.scores(folder.name) if name == "embeddings" else folder
            has_settings = (owner / "settings.json").is_file()
            if has_settings or _is_hidden(folder) or not folder.is_dir():
                continue
            if not list_parts(owner, prefix):
                bare.append(folder)
            elif owner == folder:
                lost.append(folder)
    return lost, bare


def no_settings(folder: Path) -> str:
    """Say what is wrong with a set that lost its settings."""
    return (
        f"{folder} holds parts but no settings.json, so that nobody sees them; the precompute that "
        "made it writes it again"
    )


def _goes_with(path: Path, root: Path, bare: list[Path]) -> Path:
    """Return the outermost folder that goes as a whole and holds a path, else the path."""
    place = root
    for part in path.relative_to(root).parts:
        place /= part
        if _is_hidden(place) or place in bare:
            return place
    return path


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(TEMPORARY_PREFIX)


def _maker_runs(path: Path) -> bool:
    pid = path.name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]
    return pid.isdigit() and runs(int(pid))


def _listed_pixels(
    layout: CacheLayout, rewrites: Mapping[Path, CacheItem], damaged: list[str]
) -> tuple[dict[Path, set[Path]], set[Path]]:
    """Return the pixel files that rows list, by folder, and those that are listed by kept rows.

    A folder of which a part cannot be read is left out: what it lists is not known.
    """
    listed: dict[Path, set[Path]] = {}
    used: set[Path] = set()
    for key in layout.frames_keys():
        folder, paths = layout.frames(key), set()
        try:
            for part in list_parts(folder, "videos"):
                # Names that lead out of the folder are no file of the walk.
                rows = [
                    folder / str(name) for name in read_part(part, ["shard"])["shard"].to_pylist()
                ]
                paths.update(rows)
                kept = rewrites[part].keep if part in rewrites else None
                used.update(rows if kept is None else (rows[number] for number in kept))
        except CacheDamageError as error:
            damaged.append(str(error))
        else:
            listed[folder] = paths
    return listed, used


def _rewrites(layout: CacheLayout, old: float, damaged: list[str]) -> dict[Path, CacheItem]:
    """Return the parts with rows that later ones replace, as they are to be rewritten."""
    found: list[CacheItem] = []
    for key in layout.frames_keys():
        with _noting_damage(damaged):
            found += _replaced_rows(layout.frames(key), "videos", ["video_id"], old)
    for key in layout.scorer_keys():
        with _noting_damage(damaged):
            states = read_video_states(layout, find_scorer(layout, key).frames_key)
            current = {video_id: state.checksum for video_id, state in states.items()}
            found += _replaced_rows(layout.scores(key), "part", ["question_id"], old, current)
            # Readers find the embeddings of the frames at hand even behind those of others.
            columns = ["video_id", "frames_checksum"]
            found += _replaced_rows(layout.embeddings(key), "part", columns, old, current)
    return {item.path: item for item in found}


@contextmanager
def _noting_damage(damaged: list[str]) -> Iterator[None]:
    try:
        yield
    except CacheDamageError as error:
        damaged.append(str(error))


def _replaced_rows(
    folder: Path,
    prefix: str,
    id_columns: list[str],
    old: float,
    current: Mapping[str, str] | None = None,
) -> list[CacheItem]:
    """Return the parts that hold rows which a later row of the same id replaces.

    Only rows in parts older than `old` replace others. With `current` ({video_id: checksum}), rows
    that were made from other frames of a video go too; those of a video that is not cached stay.
    """
    columns = (
        id_columns if current is None else sorted({*id_columns, "video_id", "frames_checksum"})
    )
    rows_of = {
        path: read_part(path, columns).to_pylist()
        for path in list_parts(folder, prefix)
        if path.stat().st_mtime < old  # a reader may have been opened before
    }
    id_of = itemgetter(*id_columns)
    last = {id_of(row): (path, n) for path, rows in rows_of.items() for n, row in enumerate(rows)}
    found = []
    for path, rows in rows_of.items():
        keep = tuple(
            number
            for number, row in enumerate(rows)
            if last[id_of(row)] == (path, number)
            and (current is None or current.get(row["video_id"]) in (None, row["frames_checksum"]))
        )
        if len(keep) < len(rows):
            num_bytes = int(path.stat().st_size * (1 - len(keep) / len(rows)))
            found.append(CacheItem(path, SUPERSEDED, num_bytes, keep))
    return found


# --- info ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FramesInfo:
    """One set of frames; `notes` counts its videos by what was odd about them (docs/files.md)."""

    key: str
    fields: dict[str, Any]
    num_videos: int
    num_frames: int
    num_bytes: int
    notes: dict[str, int]


@dataclass(frozen=True, slots=True)
class ScorerSize:
    """One scorer with the bytes of its scores and embeddings."""

    scorer: ScorerInfo
    num_bytes: int


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cache holds.

    `num_orphan_bytes` is what `cache prune` would free now; `num_young_files` leftovers are too
    young to be told from the work of a running precompute.
    """

    root: Path
    format_version: int
    num_questions: int
    frames: tuple[FramesInfo, ...]
    scorers: tuple[ScorerSize, ...]
    failed_by_error: dict[str, int]
    num_bytes: int
    num_orphan_bytes: int
    num_orphan_files: int
    num_young_files: int


def cache_info(root: Path) -> CacheInfo:
    """Return sizes and keys, without reading pixels."""
    layout = open_cache(root)
    contents = walk_cache(root)
    frames = []
    for key in layout.frames_keys():
        states = read_video_states(layout, key).values()
        frames.append(
            FramesInfo(
                key=key,
                fields=read_fields(layout.frames(key)),
                num_videos=len(states),
                num_frames=sum(state.num_frames for state in states),
                num_bytes=contents.bytes_below(layout.frames(key)),
                notes=dict(Counter(note for state in states for note in state.notes or ())),
            )
        )
    scorers = [
        ScorerSize(
            info,
            contents.bytes_below(layout.scores(info.key))
            + contents.bytes_below(layout.embeddings(info.key)),
        )
        for info in list_scorers(layout)
    ]
    return CacheInfo(
        root=layout.root,
        format_version=read_json(layout.version_file)["format_version"],
        num_questions=len(read_questions(layout)),
        frames=tuple(frames),
        scorers=tuple(scorers),
        failed_by_error=dict(Counter(failure.error for failure in read_failures(layout))),
        num_bytes=contents.bytes_below(layout.root),
        num_orphan_bytes=contents.num_bytes,
        num_orphan_files=len(contents.removals),
        num_young_files=contents.num_young,
    )


# --- prune --------------------------------------------------------------------------------------


def plan_drop(root: Path, *, scorers: tuple[str, ...], frames_keys: tuple[str, ...]) -> Contents:
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
    keys = set()
    for name in scorers:
        # By the settings alone: a scorer whose parts are damaged can be dropped too.
        matching = [key for key, made in settings.items() if name in (key, made.get("name"))]
        keys.add(matching[0] if len(matching) == 1 else find_scorer(layout, name).key)
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
    contents = walk_cache(root)
    removals = [
        CacheItem(folder, DROPPED, contents.bytes_below(folder))
        for folder in folders
        if folder.is_dir()
    ]
    return Contents(layout.root, tuple(removals))


def _settings_of(folder: Path) -> dict[str, Any]:
    """Return name and frames key of a scorer, as far as they can be read."""
    try:
        settings = read_settings(folder)
    except CacheDamageError:
        return {}
    fields = settings.get("fields")
    frames_key = fields.get("frames_key") if isinstance(fields, dict) else None
    return {"name": settings.get("name"), "frames_key": frames_key}


def apply_prune(contents: Contents) -> int:
    """Remove and rewrite what no reader needs, in order; return the bytes that were freed.

    Raises:
        DiskError: something cannot be removed; what was done before is done.
    """
    freed = 0
    for removal in contents.removals:
        path = removal.path
        try:
            if removal.keep:
                before = path.stat().st_size
                commit_parquet(path, read_part(path).take(list(removal.keep)))
                freed += before - path.stat().st_size
                continue
            if path.is_dir() and not path.is_symlink():
                # A hidden set does not exist for readers: a kill from here on harms nobody.
                hidden = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}"
                path.rename(hidden)
                shutil.rmtree(hidden)
            else:
                path.unlink()
            freed += removal.num_bytes
        except FileNotFoundError:
            continue  # its writer came to an end and removed it
        except OSError as error:
            raise disk_error(path, error) from error
    return freed
