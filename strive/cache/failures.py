"""Failures as rows: a broken video costs its own rows and nothing else.

Rows are only ever added. Readers see the last row of a (video, stage, key, question), and only
while no later success has made it moot.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import pyarrow as pa

from strive.cache.commit import commit_part, list_parts, part_number, read_part, read_table
from strive.cache.layout import CacheLayout


@dataclass(frozen=True, slots=True)
class FailureRow:
    """One failure; `error` is a short kind such as `not_a_video`, `seconds` what it took.

    At the stage `decode` it is a video's: `size_bytes`, `modified_ns` and `content_digest` are of
    the file. At the stage `score` it is one question's: `question_id`, `query_digest` and
    `frames_checksum` say what was to be scored: what has changed since is tried again by itself.
    None where that is not known: older parts lack these columns, and have rows at the stage `score`
    that name no question and stand for all of a video's. `key` is the frames key or scorer key that
    was being made.
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


_TYPES = {str: pa.string(), float: pa.float64(), str | None: pa.string(), int | None: pa.int64()}
SCHEMA = pa.schema(
    [
        pa.field(field.name, _TYPES[field.type], nullable=field.default is None)  # type: ignore[index]
        for field in fields(FailureRow)
    ]
)


def commit_failures(layout: CacheLayout, rows: Sequence[FailureRow], *, writer: str) -> None:
    """Commit one part of failures."""
    if rows:
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
        commit_part(layout.failures, table, writer=writer)


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
    kinds = {(stage, key) for _, stage, key, _ in latest}
    succeeded = {kind: _succeeded(layout, *kind) for kind in kinds}
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
