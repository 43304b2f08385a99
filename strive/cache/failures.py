"""Failures as rows: a broken video costs its own rows and nothing else.

Rows are only ever added. Readers see the last row of a (video, stage, key), and only while no later
success has made it moot.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from strive.cache.commit import (
    commit_parquet,
    list_parts,
    new_part_path,
    part_time_ns,
    read_part,
    read_table,
)
from strive.cache.layout import CacheLayout

SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        # The frames key (stage `decode`) or scorer key (stage `score`) that was being made.
        pa.field("key", pa.string(), nullable=False),
        # The file as it was then, so that a changed file that fails is not tried again until it
        # changes once more. Nullable: older parts lack these columns.
        pa.field("size_bytes", pa.int64()),
        pa.field("modified_ns", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class FailureRow:
    """One failure; `error` is a short kind such as `not_a_video`, `seconds` what it took.

    `size_bytes` and `modified_ns` are the video file's; None where they are not known.
    """

    video_id: str
    path: str
    stage: str
    error: str
    message: str
    seconds: float
    key: str
    size_bytes: int | None = None
    modified_ns: int | None = None


def commit_failures(layout: CacheLayout, rows: Sequence[FailureRow], *, writer: str) -> None:
    """Commit one part of failures."""
    if rows:
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
        commit_parquet(new_part_path(layout.failures, "part", ".parquet", writer), table)


def read_failures(layout: CacheLayout) -> list[FailureRow]:
    """Read the failures that no later success has made moot."""
    latest: dict[tuple[str, str, str], tuple[FailureRow, int]] = {}
    for path in list_parts(layout.failures, "part"):
        for row in read_table(path, SCHEMA).to_pylist():
            failure = FailureRow(**row)
            latest[failure.video_id, failure.stage, failure.key] = failure, part_time_ns(path)
    succeeded = {
        (stage, key): _succeeded(layout, stage, key)
        for stage, key in {(stage, key) for _, stage, key in latest}
    }
    return [
        failure
        for (video_id, stage, key), (failure, failed_at) in latest.items()
        if succeeded[stage, key].get(video_id, -1) < failed_at
    ]


def _succeeded(layout: CacheLayout, stage: str, key: str) -> dict[str, int]:
    """Map each video that went well to the time (nanoseconds) when that was last committed."""
    if stage == "decode":
        places = [(layout.frames(key), "videos")]
    else:
        places = [(layout.embeddings(key), "part"), (layout.scores(key), "part")]
    latest: dict[str, int] = {}
    for folder, prefix in places:
        for path in list_parts(folder, prefix):
            at = part_time_ns(path)
            for video_id in read_part(path, ["video_id"]).column(0).unique().to_pylist():
                latest[video_id] = max(at, latest.get(video_id, 0))
    return latest
