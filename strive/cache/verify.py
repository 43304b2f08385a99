"""Whether a cache is whole, and whether its videos are still those that it was made from."""

import json
import mmap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from strive.cache import failures, questions, scores
from strive.cache.care import folders_without_settings, no_settings
from strive.cache.commit import list_parts, read_rows, read_table
from strive.cache.frames import (
    VIDEOS_SCHEMA,
    VideoState,
    frames_checksum,
    read_video_states,
    shard_path,
)
from strive.cache.layout import CacheLayout, make_key, open_cache, read_fields
from strive.errors import CacheDamageError, MissingInputError, OutsideRootError, first_line
from strive.files import content_digest, resolve_video
from strive.progress import show_progress


def verify_cache(root: Path) -> list[str]:
    """Read every committed byte of a cache and return what is wrong, one line each."""
    return list(dict.fromkeys(_problems(open_cache(root))))  # two checks may meet the same damage


def _problems(layout: CacheLayout) -> Iterator[str]:
    for folder, schema in (
        (layout.questions, questions.SCHEMA),
        (layout.failures, failures.SCHEMA),
    ):
        for _, problem in _parts(folder, "part", schema):
            yield from problem
    for folder in folders_without_settings(layout)[0]:
        yield no_settings(folder)
    for key in layout.frames_keys():
        yield from _key_problems(layout.frames(key), key)
        yield from _frames_problems(layout.frames(key))
    for key in layout.scorer_keys():
        yield from _key_problems(layout.scores(key), key)
        for _, problem in _parts(layout.embeddings(key), "part", scores.EMBEDDINGS_SCHEMA):
            yield from problem
        yield from _scores_problems(layout, key)


def _key_problems(folder: Path, key: str) -> Iterator[str]:
    try:
        fields = read_fields(folder)
    except CacheDamageError as error:
        yield str(error)
        return
    if not key.endswith(make_key("", fields).rpartition("-")[2]):
        yield f"{folder}: settings.json does not belong to this key ({json.dumps(fields)})"


def _parts(folder: Path, prefix: str, schema: pa.Schema) -> Iterator[tuple[pa.Table, list[str]]]:
    """Yield each part, an empty table for a damaged one, with what is wrong with it."""
    for path in list_parts(folder, prefix):
        try:
            table = read_table(path, schema)
            table.validate(full=True)
        except CacheDamageError as error:
            yield schema.empty_table(), [str(error)]
        except pa.ArrowException as error:
            yield schema.empty_table(), [f"{path} is damaged ({first_line(error)})"]
        else:
            yield table, []


def _frames_problems(folder: Path) -> Iterator[str]:
    for table, problem in _parts(folder, "videos", VIDEOS_SCHEMA):
        yield from problem
        for row in table.to_pylist():
            name = row["video_id"]
            try:
                shard = shard_path(folder, row["shard"])
            except CacheDamageError as error:
                yield str(error)
                continue
            lists = ("source_index", "pts_seconds", "offsets", "lengths")
            if any(len(row[column]) != row["num_frames"] for column in lists):
                yield f"{folder}: the row of '{name}' does not have {row['num_frames']} frames"
            elif not shard.is_file():
                yield f"{shard} is missing; it holds '{name}'"
            elif (found := _checksum(shard, row)) != row["checksum"]:
                yield f"{shard}: the frames of '{name}' have checksum {found}"


def _checksum(shard: Path, row: dict[str, Any]) -> str:
    if shard.stat().st_size == 0:
        return "none, the file is empty"
    with shard.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        spans = zip(row["offsets"], row["lengths"], strict=True)
        return frames_checksum([mapped[start : start + length] for start, length in spans])


def _scores_problems(layout: CacheLayout, key: str) -> Iterator[str]:
    folder = layout.scores(key)
    states: dict[str, VideoState] | None = None
    try:
        frames_key = scores.read_scorer_settings(layout, key)["fields"]["frames_key"]
    except CacheDamageError as error:
        yield str(error)
    else:
        with suppress(CacheDamageError):  # reported with the frames
            states = read_video_states(layout, frames_key)
    for table, problem in _parts(folder, "part", scores.SCHEMA):
        yield from problem
        if states is None:
            continue
        for row in table.to_pylist():
            state, num_scores = states.get(row["video_id"]), len(row["scores"])
            where = f"{folder}: question {row['question_id']} has"
            if not np.isfinite(np.asarray(row["scores"], np.float64)).all():
                yield f"{where} scores that are not finite"
            elif state is None:
                yield f"{where} no frames in {frames_key}"
            elif row["frames_checksum"] == state.checksum and num_scores != state.num_frames:
                yield f"{where} {num_scores} scores, its pool {state.num_frames} frames"


@dataclass(frozen=True, slots=True)
class VideoCheck:
    """The cached videos by what their files are today; `missing` ones are not under the root.

    Both lists are in order of ids, whatever order the videos were decoded in.
    """

    num_same: int
    changed: tuple[str, ...]
    missing: tuple[str, ...]


def check_videos(cache: Path, video_root: Path) -> VideoCheck:
    """Digest the file of every cached video again and compare with what was decoded.

    A changed video makes its frames and scores stale; `precompute` decodes it anew. A missing one
    is no fault: the cache serves without its videos.

    Raises:
        CacheError: there is no cache.
        MissingInputError: there is no such folder.
    """
    layout = open_cache(cache)
    if not video_root.is_dir():
        raise MissingInputError(f"no folder at --video-root {video_root}")
    digests: dict[str, set[str]] = {}
    for key in layout.frames_keys():
        columns = ["video_id", "content_digest"]
        last = dict(read_rows(layout.frames(key), "videos", VIDEOS_SCHEMA, columns))
        for video_id, digest in last.items():
            digests.setdefault(video_id, set()).add(digest)
    changed, missing = [], []
    with show_progress("videos", len(digests), "videos") as bar:
        for video_id, wanted in sorted(digests.items()):
            try:
                path = resolve_video(video_root, video_id)
                # Reading a pipe that took a video's place would wait for ever.
                found = content_digest(path)[1] if path.is_file() else None
            except (OSError, OutsideRootError, RuntimeError):  # RuntimeError: a loop of links
                found = None
            if found is None:
                missing.append(video_id)
            elif wanted != {found}:
                # Two sets of frames can have been made from two states of a file.
                changed.append(video_id)
            bar.advance()
    return VideoCheck(len(digests) - len(changed) - len(missing), tuple(changed), tuple(missing))
