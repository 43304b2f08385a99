"""The questions of a cache: the records that a run reads."""

import sys
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from strive.cache.commit import commit_part, read_parts
from strive.cache.layout import CacheLayout
from strive.records import Record

SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("problem", pa.string(), nullable=False),
        pa.field("options", pa.list_(pa.string()), nullable=False),
        pa.field("problem_type", pa.string(), nullable=False),
        pa.field("solution", pa.string(), nullable=False),
        pa.field("data_source", pa.string(), nullable=False),
        pa.field("evidence_spans_seconds", pa.list_(pa.list_(pa.float64()))),
    ]
)
_ROWS_AT_ONCE = 1024


def write_questions(
    layout: CacheLayout, records: Iterable[Record], *, writer: str = "s0of1"
) -> int:
    """Add the records that the cache lacks or holds in another form; return how many.

    A question whose text changed replaces the older one: readers take the last row of an id.
    """
    known = {record.question_id: record for record in read_questions(layout)}
    new = [record for record in records if known.get(record.question_id) != record]
    if not new:
        return 0
    # Column by column: rows as dicts would take several times the memory of the records.
    columns = [
        pa.array([getattr(record, field.name) for record in new], field.type) for field in SCHEMA
    ]
    table = pa.table(columns, schema=SCHEMA)
    commit_part(layout.questions, table, writer=writer)
    return len(new)


def read_questions(layout: CacheLayout) -> list[Record]:
    """Read all questions, in the order in which they were first added."""
    table = read_parts(layout.questions, "part", SCHEMA)
    records: dict[str, Record] = {}
    for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            records[row["question_id"]] = _from_row(row)
    return list(records.values())


def _from_row(row: dict[str, Any]) -> Record:
    spans = row["evidence_spans_seconds"]
    return Record(
        question_id=row["question_id"],
        video_id=sys.intern(row["video_id"]),
        problem=row["problem"],
        problem_type=sys.intern(row["problem_type"]),  # type: ignore[arg-type] # was one when written
        options=tuple(row["options"]),
        solution=sys.intern(row["solution"]),
        data_source=sys.intern(row["data_source"]),
        evidence_spans_seconds=(
            None if spans is None else tuple((start, end) for start, end in spans)
        ),
    )
