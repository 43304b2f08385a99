"""Records: one row of the data (a question, its options, its solution, its video).

The schema is Video-R1's (https://huggingface.co/datasets/Video-R1/Video-R1-data): `problem_id`,
`problem`, `data_type`, `problem_type`, `options`, `solution`, `path`, `data_source`, and optionally
`evidence_spans_seconds`, the half-open time spans that show what the question asks about.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from strive.errors import (
    ConfigError,
    MissingInputError,
    OutsideRootError,
    RecordsError,
    unknown_name,
)
from strive.seeding import derive_rng

ProblemType = Literal["multiple choice", "numerical", "OCR", "free-form", "regression"]
PROBLEM_TYPES: tuple[str, ...] = get_args(ProblemType)


@dataclass(frozen=True, slots=True)
class Record:
    """One question about one video.

    `video_id` is the POSIX path relative to the video root and `question_id` is `str(problem_id)`.
    `solution` keeps its `<answer>` tags, as in the source files.
    """

    question_id: str
    video_id: str
    problem: str
    problem_type: ProblemType
    options: tuple[str, ...]
    solution: str
    data_source: str = ""
    evidence_spans_seconds: tuple[tuple[float, float], ...] | None = None


def video_id_of(path: str) -> str:
    """Normalise a record's `path` to POSIX form (`./a//b.mp4` becomes `a/b.mp4`).

    A path that leaves the root is kept as it is: `resolve_video` refuses it, so that one bad record
    becomes one failure row and not the end of the run.
    """
    return str(PurePosixPath(path.replace("\\", "/")))


def resolve_video(video_root: Path, video_id: str) -> Path:
    """Return the file of a video, refusing symbolic links that leave the root.

    Raises:
        OutsideRootError: the resolved file lies outside `video_root`.
    """
    root = video_root.resolve()
    path = (root / video_id).resolve()
    if not path.is_relative_to(root):
        raise OutsideRootError(f"video '{video_id}' resolves outside the video root {video_root}")
    return path


def parse_record(row: dict[str, Any], *, where: str) -> Record:
    """Turn one raw row into a `Record`.

    Raises:
        RecordsError: a field is missing or has the wrong type; the message starts with `where`.
    """
    for name in ("problem_id", "problem", "problem_type", "solution", "path"):
        if row.get(name) is None:
            raise RecordsError(f"{where}: field '{name}' is missing")
    for name in ("problem", "problem_type", "solution", "path"):
        if not isinstance(row[name], str):
            raise RecordsError(f"{where}: field '{name}' is {row[name]!r}; a string is expected")
    if row["problem_type"] not in PROBLEM_TYPES:
        raise RecordsError(
            f"{where}: {unknown_name('problem_type', row['problem_type'], PROBLEM_TYPES)}"
        )
    options = row.get("options") or []
    if not isinstance(options, (list, tuple)) or not all(isinstance(o, str) for o in options):
        raise RecordsError(
            f"{where}: field 'options' is {options!r}; a list of strings is expected"
        )
    if row["problem_type"] == "multiple choice" and len(options) < 2:
        raise RecordsError(
            f"{where}: a multiple choice row needs at least two options, has {options!r}"
        )
    return Record(
        question_id=str(row["problem_id"]),
        video_id=video_id_of(row["path"]),
        problem=row["problem"],
        problem_type=row["problem_type"],
        options=tuple(options),
        solution=row["solution"],
        data_source=str(row.get("data_source") or ""),
        evidence_spans_seconds=_parse_spans(row.get("evidence_spans_seconds"), where=where),
    )


def _parse_spans(value: Any, *, where: str) -> tuple[tuple[float, float], ...] | None:
    if value is None:
        return None
    try:
        spans = tuple((float(start), float(end)) for start, end in value)
    except (TypeError, ValueError):
        raise RecordsError(
            f"{where}: field 'evidence_spans_seconds' is {value!r}; "
            "a list of [start, end] pairs in seconds is expected"
        ) from None
    if any(end <= start for start, end in spans):
        raise RecordsError(
            f"{where}: field 'evidence_spans_seconds' is {value!r}; every end must follow its start"
        )
    return spans


@dataclass(frozen=True, slots=True)
class RecordSet:
    """The video records of some files, and how many image rows were passed over."""

    records: tuple[Record, ...]
    num_image_rows: int


def iter_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, raw row) of a JSON list, JSONL or Parquet file; `where` names file and row."""
    if not path.is_file():
        raise MissingInputError(f"no records file at {path}; give one with --data")
    readers: dict[str, Callable[[Path], Iterator[Any]]] = {
        ".json": _json_rows,
        ".jsonl": _jsonl_rows,
        ".parquet": _parquet_rows,
    }
    if path.suffix not in readers:
        raise RecordsError(
            f"{path}: '{path.suffix}' is not a records format; use {', '.join(readers)}"
        )
    for number, row in enumerate(readers[path.suffix](path), start=1):
        where = f"{path}, row {number}"
        if not isinstance(row, dict):
            raise RecordsError(f"{where}: an object is expected, found {type(row).__name__}")
        yield where, row


def _json_rows(path: Path) -> Iterator[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordsError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(rows, list):
        raise RecordsError(f"{path}: a JSON list of rows is expected, found {type(rows).__name__}")
    yield from rows


def _jsonl_rows(path: Path) -> Iterator[Any]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise RecordsError(f"{path}, line {number}: not valid JSON ({error})") from None


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowInvalid

    try:
        batches = pq.ParquetFile(path).iter_batches(batch_size=1024)
    except ArrowInvalid as error:
        raise RecordsError(f"{path}: not a Parquet file ({error})") from None
    for batch in batches:
        yield from batch.to_pylist()


def read_records(paths: Iterable[Path]) -> RecordSet:
    """Read video records from files, in order; image rows are counted and passed over.

    Raises:
        RecordsError: a malformed row, or a question id that appears twice.
        MissingInputError: a file does not exist.
    """
    records: list[Record] = []
    counts: Counter[str] = Counter()
    num_image_rows = 0
    for path in paths:
        for where, row in iter_rows(Path(path)):
            if row.get("data_type", "video") != "video":
                num_image_rows += 1
                continue
            record = parse_record(row, where=where)
            counts[record.question_id] += 1
            if counts[record.question_id] > 1:
                raise RecordsError(
                    f"{where}: problem_id {record.question_id} appears twice; ids must be unique"
                )
            records.append(record)
    return RecordSet(tuple(records), num_image_rows)


def record_to_row(record: Record) -> dict[str, Any]:
    """Turn a record back into a raw row of the source schema."""
    number = record.question_id
    row: dict[str, Any] = {
        "problem_id": int(number) if number.isdigit() else number,
        "problem": record.problem,
        "data_type": "video",
        "problem_type": record.problem_type,
        "options": list(record.options),
        "solution": record.solution,
        "path": f"./{record.video_id}",
        "data_source": record.data_source,
    }
    if record.evidence_spans_seconds is not None:
        row["evidence_spans_seconds"] = [list(span) for span in record.evidence_spans_seconds]
    return row


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSONL, one row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record_to_row(record), ensure_ascii=False) + "\n")


FILTER_FIELDS = ("data_source", "problem_type")


def filter_records(
    records: Iterable[Record], filters: Sequence[tuple[str, str]]
) -> tuple[Record, ...]:
    """Keep the records that match: any value given for a field, all of the fields.

    >>> filter_records(records, [("problem_type", "OCR"), ("problem_type", "numerical")])

    Raises:
        ConfigError: a filter names a field that cannot be filtered by.
    """
    wanted: dict[str, set[str]] = {}
    for field, value in filters:
        if field not in FILTER_FIELDS:
            raise ConfigError(str(unknown_name("--filter field", field, FILTER_FIELDS)))
        wanted.setdefault(field, set()).add(value)
    return tuple(
        record
        for record in records
        if all(getattr(record, field) in values for field, values in wanted.items())
    )


def sample_records(records: Sequence[Record], size: int, seed: int) -> tuple[Record, ...]:
    """Take `size` records at random, in the order of the file.

    The sample depends on the question ids alone, not on their order, and a smaller one of the same
    seed lies within a larger one.

    Raises:
        ConfigError: there are fewer records than asked for.
    """
    if not 1 <= size <= len(records):
        raise ConfigError(f"--subset {size} of {len(records)} records; 1 to {len(records)} can be")
    ids = sorted(record.question_id for record in records)
    order = derive_rng(seed, "subset").permutation(len(ids))
    chosen = {ids[position] for position in order[:size]}
    return tuple(record for record in records if record.question_id in chosen)


def shard_records(records: Iterable[Record], index: int, count: int) -> tuple[Record, ...]:
    """Keep shard `index` of `count`: whole videos, assigned by a hash of their id."""
    return tuple(record for record in records if shard_of(record.video_id, count) == index)


def shard_of(video_id: str, count: int) -> int:
    """Return the shard of a video, equal on every machine."""
    digest = hashlib.sha256(video_id.encode()).digest()
    return int.from_bytes(digest[:8], "little") % count
