"""Failures as rows: a broken video costs its own rows and nothing else.

Rows are only ever added. Readers see the last row of a (video, stage, key), and only while no later
success has made it moot.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from strive.cache.commit import commit_parquet, new_part_path, read_parts
from strive.cache.embeddings import read_embedding_states
from strive.cache.frames import read_video_states
from strive.cache.layout import CacheLayout
from strive.cache.scores import SCHEMA as SCORES_SCHEMA

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
    ]
)


@dataclass(frozen=True, slots=True)
class FailureRow:
    """One failure; `error` is a short kind such as `not_a_video`, `seconds` what it took."""

    video_id: str
    path: str
    stage: str
    error: str
    message: str
    seconds: float
    key: str


def commit_failures(layout: CacheLayout, rows: Sequence[FailureRow], *, writer: str) -> None:
    """Commit one part of failures."""
    if rows:
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
        commit_parquet(new_part_path(layout.failures, "part", ".parquet", writer), table)


def read_failures(layout: CacheLayout) -> list[FailureRow]:
    """Read the failures that no later success has made moot."""
    table = read_parts(layout.failures, "part", SCHEMA)
    latest: dict[tuple[str, str, str], FailureRow] = {}
    for row in table.to_pylist():
        failure = FailureRow(**row)
        latest[failure.video_id, failure.stage, failure.key] = failure
    succeeded = {
        (stage, key): set(_succeeded(layout, stage, key))
        for stage, key in {(failure.stage, failure.key) for failure in latest.values()}
    }
    return [
        failure
        for failure in latest.values()
        if failure.video_id not in succeeded[failure.stage, failure.key]
    ]


def _succeeded(layout: CacheLayout, stage: str, key: str) -> list[str]:
    if stage == "decode":
        return list(read_video_states(layout, key))
    scored = read_parts(layout.scores(key), "part", SCORES_SCHEMA, ["video_id"])
    return [*read_embedding_states(layout, key), *scored.column(0).to_pylist()]
