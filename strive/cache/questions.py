"""The questions of a cache: the records that a run reads."""

from collections.abc import Iterable

import pyarrow as pa

from strive.cache.commit import commit_parquet, new_part_path, read_parts
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
    rows = [
        {
            "question_id": record.question_id,
            "video_id": record.video_id,
            "problem": record.problem,
            "options": list(record.options),
            "problem_type": record.problem_type,
            "solution": record.solution,
            "data_source": record.data_source,
            "evidence_spans_seconds": (
                None
                if record.evidence_spans_seconds is None
                else [list(span) for span in record.evidence_spans_seconds]
            ),
        }
        for record in new
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    commit_parquet(new_part_path(layout.questions, "part", ".parquet", writer), table)
    return len(new)


def read_questions(layout: CacheLayout) -> list[Record]:
    """Read all questions, in the order in which they were first added."""
    table = read_parts(layout.questions, "part", SCHEMA)
    records: dict[str, Record] = {}
    for row in table.to_pylist():
        spans = row["evidence_spans_seconds"]
        records[row["question_id"]] = Record(
            question_id=row["question_id"],
            video_id=row["video_id"],
            problem=row["problem"],
            problem_type=row["problem_type"],
            options=tuple(row["options"]),
            solution=row["solution"],
            data_source=row["data_source"],
            evidence_spans_seconds=(
                None if spans is None else tuple((start, end) for start, end in spans)
            ),
        )
    return list(records.values())
