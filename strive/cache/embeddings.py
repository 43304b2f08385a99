"""Frame embeddings: kept so that a new question on a known video costs a matmul."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from strive.cache.commit import commit_parquet, list_parts, new_part_path, read_part, read_parts
from strive.cache.layout import CacheLayout

SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("embeddings", pa.large_list(pa.float16()), nullable=False),
        # Embeddings of frames that were since decoded anew are stale.
        pa.field("frames_checksum", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class VideoEmbeddings:
    """The embeddings of one video's pool, float16 [F, D], rows of unit length."""

    video_id: str
    embeddings_FD: np.ndarray
    frames_checksum: str


def commit_embeddings(
    layout: CacheLayout, scorer_key: str, videos: Sequence[VideoEmbeddings], *, writer: str
) -> int:
    """Commit one part of embeddings; return its bytes."""
    if not videos:
        return 0
    flat = np.concatenate([video.embeddings_FD.astype(np.float16).ravel() for video in videos])
    bounds = np.cumsum([0] + [video.embeddings_FD.size for video in videos])
    values = pa.array(flat, pa.float16())
    table = pa.table(
        [
            pa.array([video.video_id for video in videos], pa.string()),
            pa.array([len(video.embeddings_FD) for video in videos], pa.int32()),
            pa.LargeListArray.from_arrays(pa.array(bounds, pa.int64()), values),
            pa.array([video.frames_checksum for video in videos], pa.string()),
        ],
        schema=SCHEMA,
    )
    path = new_part_path(layout.embeddings(scorer_key), "part", ".parquet", writer)
    commit_parquet(path, table)
    return path.stat().st_size


def read_embedding_states(layout: CacheLayout, scorer_key: str) -> dict[str, str]:
    """Map each embedded video to the checksum of the frames that its embeddings were made from."""
    columns = ["video_id", "frames_checksum"]
    table = read_parts(layout.embeddings(scorer_key), "part", SCHEMA, columns)
    ids, checksums = (table.column(name).to_pylist() for name in columns)
    return dict(zip(ids, checksums, strict=True))


def iter_embeddings(
    layout: CacheLayout, scorer_key: str, wanted: dict[str, str]
) -> Iterator[VideoEmbeddings]:
    """Yield the embeddings of the wanted videos ({video_id: frames_checksum}), part by part.

    A video is yielded once, from the last part that holds it with that checksum.
    """
    for path, held in find_embeddings(layout, scorer_key, wanted):
        yield from read_embeddings(path, held)


def find_embeddings(
    layout: CacheLayout, scorer_key: str, wanted: dict[str, str]
) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield each part that holds wanted videos, with those that are to be taken from it."""
    remaining = dict(wanted)
    for path in reversed(list_parts(layout.embeddings(scorer_key), "part")):
        if not remaining:
            return
        table = read_part(path, ["video_id", "frames_checksum"])
        ids, checksums = (table.column(name).to_pylist() for name in table.column_names)
        held = {
            video_id: checksum
            for video_id, checksum in zip(ids, checksums, strict=True)
            if remaining.get(video_id) == checksum
        }
        if held:
            for video_id in held:
                del remaining[video_id]
            yield path, held


def read_embeddings(path: Path, wanted: dict[str, str]) -> Iterator[VideoEmbeddings]:
    """Yield the embeddings of the wanted videos of one part."""
    remaining = dict(wanted)
    for row in read_part(path).to_batches(max_chunksize=1):
        video = _from_row(row)
        if remaining.get(video.video_id) == video.frames_checksum:
            del remaining[video.video_id]
            yield video


def _from_row(row: pa.RecordBatch) -> VideoEmbeddings:
    num_frames = row.column("num_frames")[0].as_py()
    flat = row.column("embeddings")[0].values.to_numpy(zero_copy_only=False)
    return VideoEmbeddings(
        video_id=row.column("video_id")[0].as_py(),
        embeddings_FD=flat.reshape(num_frames, -1),
        frames_checksum=row.column("frames_checksum")[0].as_py(),
    )
