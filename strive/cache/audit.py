"""Looking after a cache: what it holds and takes up, and whether it is intact."""

import json
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from strive.cache.commit import list_parts, read_json, read_table
from strive.cache.embeddings import SCHEMA as EMBEDDINGS_SCHEMA
from strive.cache.failures import SCHEMA as FAILURES_SCHEMA
from strive.cache.failures import read_failures
from strive.cache.frames import VIDEOS_SCHEMA, frames_checksum, read_video_states, shard_path
from strive.cache.layout import (
    CacheLayout,
    make_key,
    open_cache,
    parts_without_settings,
    read_fields,
)
from strive.cache.prune import no_settings, plan_prune
from strive.cache.questions import SCHEMA as QUESTIONS_SCHEMA
from strive.cache.questions import read_questions
from strive.cache.scores import SCHEMA as SCORES_SCHEMA
from strive.cache.scores import ScorerInfo, list_scorers, read_scorer_settings
from strive.errors import CacheDamageError


@dataclass(frozen=True, slots=True)
class FramesInfo:
    """One set of frames."""

    key: str
    fields: dict[str, Any]
    num_videos: int
    num_frames: int
    num_bytes: int
    notes: dict[str, int]
    """Videos by what was odd about them (docs/files.md)."""


@dataclass(frozen=True, slots=True)
class ScorerSize:
    """One scorer with the bytes of its scores and embeddings."""

    scorer: ScorerInfo
    num_bytes: int


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a cache holds."""

    root: Path
    format_version: int
    num_questions: int
    frames: tuple[FramesInfo, ...]
    scorers: tuple[ScorerSize, ...]
    failed_by_error: dict[str, int]
    num_bytes: int
    num_orphan_bytes: int
    """Bytes that `cache prune` would free now."""
    num_orphan_files: int
    num_young_files: int
    """Leftovers too young to be told from the work of a running precompute."""


def cache_info(root: Path) -> CacheInfo:
    """Return sizes and keys, without reading pixels."""
    layout = open_cache(root)
    frames = []
    for key in layout.frames_keys():
        states = read_video_states(layout, key)
        frames.append(
            FramesInfo(
                key=key,
                fields=read_fields(layout.frames(key)),
                num_videos=len(states),
                num_frames=sum(state.num_frames for state in states.values()),
                num_bytes=_num_bytes(layout.frames(key)),
                notes=dict(
                    Counter(note for state in states.values() for note in state.notes or ())
                ),
            )
        )
    scorers = [
        ScorerSize(
            info, sum(map(_num_bytes, (layout.scores(info.key), layout.embeddings(info.key))))
        )
        for info in list_scorers(layout)
    ]
    leftovers = plan_prune(root)
    return CacheInfo(
        root=layout.root,
        format_version=read_json(layout.version_file)["format_version"],
        num_questions=len(read_questions(layout)),
        frames=tuple(frames),
        scorers=tuple(scorers),
        failed_by_error=dict(Counter(failure.error for failure in read_failures(layout))),
        num_bytes=_num_bytes(layout.root),
        num_orphan_bytes=leftovers.num_bytes,
        num_orphan_files=len(leftovers.removals),
        num_young_files=leftovers.num_young,
    )


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def verify_cache(root: Path) -> list[str]:
    """Read every committed byte of a cache and return what is wrong, one line each."""
    layout = open_cache(root)
    problems: list[str] = []
    problems += _check_parts(layout.questions, QUESTIONS_SCHEMA)
    problems += _check_parts(layout.failures, FAILURES_SCHEMA)
    problems += [no_settings(folder) for folder in parts_without_settings(layout)]
    for key in layout.frames_keys():
        problems += _check_key(layout.frames(key), key)
        problems += _check_parts(layout.frames(key), VIDEOS_SCHEMA, "videos")
        problems += _check_frames(layout, key)
    for key in layout.scorer_keys():
        problems += _check_key(layout.scores(key), key)
        problems += _check_parts(layout.embeddings(key), EMBEDDINGS_SCHEMA)
        problems += _check_parts(layout.scores(key), SCORES_SCHEMA)
        problems += _check_scores(layout, key)
    return list(dict.fromkeys(problems))  # two checks may meet the same damage


def _check_key(folder: Path, key: str) -> list[str]:
    try:
        fields = read_fields(folder)
    except CacheDamageError as error:
        return [str(error)]
    digest = make_key("", fields).rpartition("-")[2]
    if key.endswith(digest):
        return []
    return [f"{folder}: settings.json does not belong to this key ({json.dumps(fields)})"]


def _check_parts(folder: Path, schema: pa.Schema, prefix: str = "part") -> list[str]:
    problems = []
    for path in list_parts(folder, prefix):
        try:
            read_table(path, schema).validate(full=True)
        except CacheDamageError as error:
            problems.append(str(error))
        except pa.ArrowException as error:
            problems.append(f"{path} is damaged ({str(error).splitlines()[0]})")
    return problems


def _rows(folder: Path, prefix: str, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    """Yield the rows of the parts that can be read; the others are reported by `_check_parts`."""
    for path in list_parts(folder, prefix):
        try:
            rows = read_table(path, schema).to_pylist()
        except (CacheDamageError, pa.ArrowException, UnicodeDecodeError):
            continue
        yield from rows


def _check_frames(layout: CacheLayout, key: str) -> list[str]:
    folder = layout.frames(key)
    problems = []
    for row in _rows(folder, "videos", VIDEOS_SCHEMA):
        name = row["video_id"]
        try:
            shard = shard_path(folder, row["shard"])
        except CacheDamageError as error:
            problems.append(str(error))
            continue
        lists = ("source_index", "pts_seconds", "offsets", "lengths")
        if any(len(row[column]) != row["num_frames"] for column in lists):
            problems.append(
                f"{folder}: the row of '{name}' does not have {row['num_frames']} frames"
            )
        elif not shard.is_file():
            problems.append(f"{shard} is missing; it holds '{name}'")
        elif (found := _checksum(shard, row)) != row["checksum"]:
            problems.append(f"{shard}: the frames of '{name}' have checksum {found}")
    return problems


def _checksum(shard: Path, row: dict[str, Any]) -> str:
    if shard.stat().st_size == 0:
        return "none, the file is empty"
    with (
        shard.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        spans = zip(row["offsets"], row["lengths"], strict=True)
        return frames_checksum([mapped[start : start + length] for start, length in spans])


def _check_scores(layout: CacheLayout, key: str) -> list[str]:
    folder = layout.scores(key)
    try:
        frames_key = read_scorer_settings(layout, key)["fields"]["frames_key"]
    except CacheDamageError as error:
        return [str(error)]
    try:
        states = read_video_states(layout, frames_key)
    except CacheDamageError:
        return []  # reported with the frames
    problems = []
    for row in _rows(folder, "part", SCORES_SCHEMA):
        state = states.get(row["video_id"])
        if not np.isfinite(np.asarray(row["scores"], np.float64)).all():
            problems.append(
                f"{folder}: question {row['question_id']} has scores that are not finite"
            )
        elif state is None:
            problems.append(
                f"{folder}: question {row['question_id']} has no frames in {frames_key}"
            )
        elif row["frames_checksum"] == state.checksum and len(row["scores"]) != state.num_frames:
            problems.append(
                f"{folder}: question {row['question_id']} has {len(row['scores'])} scores, "
                f"its pool {state.num_frames} frames"
            )
    return problems
