"""Failures as rows: a broken video costs its own rows and nothing else.

Rows are only ever added. Readers see the last row of a (video, stage, key, question), and only
while no later success has made it moot.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from strive.cache.commit import (
    commit_parquet,
    list_parts,
    new_part_path,
    part_number,
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
        # What failed, as it was then: what has changed since is tried again by itself. Nullable:
        # older parts lack these columns.
        pa.field("size_bytes", pa.int64()),
        pa.field("modified_ns", pa.int64()),
        pa.field("content_digest", pa.string()),
        pa.field("question_id", pa.string()),
        pa.field("query_digest", pa.string()),
        pa.field("frames_checksum", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class FailureRow:
    """One failure; `error` is a short kind such as `not_a_video`, `seconds` what it took.

    At the stage `decode` it is a video's: `size_bytes`, `modified_ns` and `content_digest` are of
    the file. At the stage `score` it is one question's: `question_id`, `query_digest` and
    `frames_checksum` say what was to be scored. None where that is not known: older caches have
    rows at the stage `score` that name no question and stand for all of a video's.
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
    content_digest: str | None = None
    question_id: str | None = None
    query_digest: str | None = None
    frames_checksum: str | None = None


def commit_failures(layout: CacheLayout, rows: Sequence[FailureRow], *, writer: str) -> None:
    """Commit one part of failures."""
    if rows:
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
        commit_parquet(new_part_path(layout.failures, "part", ".parquet", writer), table)


def read_failures(layout: CacheLayout) -> list[FailureRow]:
    """Read the failures that no later success has made moot."""
    latest: dict[tuple[str, str, str, str | None], tuple[FailureRow, int]] = {}
    for path in list_parts(layout.failures, "part"):
        for row in read_table(path, SCHEMA).to_pylist():
            failure = FailureRow(**row)
            where = (failure.video_id, failure.stage, failure.key)
            if failure.question_id is not None:  # says more than one of all the video's questions
                latest.pop((*where, None), None)
            latest[*where, failure.question_id] = failure, part_number(path)
    succeeded = {
        (stage, key): _succeeded(layout, stage, key)
        for stage, key in {(stage, key) for _, stage, key, _ in latest}
    }
    return [
        failure
        for (video_id, stage, key, question_id), (failure, failed_at) in latest.items()
        if succeeded[stage, key].get((video_id, question_id), -1) < failed_at
    ]


def _succeeded(layout: CacheLayout, stage: str, key: str) -> dict[tuple[str, str | None], int]:
    """Map (video, question) to the number of the last part in which it went well.

    With None for the question: the video was decoded; at the stage `score`, embedded or scored.
    """
    if stage == "decode":
        places = [(layout.frames(key), "videos", ["video_id"])]
    else:
        places = [
            (layout.embeddings(key), "part", ["video_id"]),
            (layout.scores(key), "part", ["video_id", "question_id"]),
        ]
    latest: dict[tuple[str, str | None], int] = {}
    for folder, prefix, columns in places:
        for path in list_parts(folder, prefix):
            at = part_number(path)
            for row in read_part(path, columns).to_pylist():
                for question_id in {None, row.get("question_id")}:
                    one = (row["video_id"], question_id)
                    latest[one] = max(at, latest.get(one, 0))
    return latest
