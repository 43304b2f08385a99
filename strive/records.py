"""Records: one row of the data (a question, its options, its solution, its video).

The schema is Video-R1's (https://huggingface.co/datasets/Video-R1/Video-R1-data): `problem_id`,
`problem`, `data_type`, `problem_type`, `options`, `solution`, `path`, `data_source`, and optionally
`process` (a chain of thought, not kept) and `evidence_spans_seconds`, the half-open time spans that
show what the question asks about.
"""

import hashlib
import json
import math
import re
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from strive.errors import ConfigError, MissingInputError, RecordsError, first_line, unknown_name
from strive.progress import one_line
from strive.seeding import derive_rng

ProblemType = Literal[
    "multiple choice",
    "numerical",
    "OCR",
    "free-form",
    "regression",
    "grounding",
    "grounded multiple choice",
]
"""Video-R1's five; `grounding`, whose solution is an interval ("10 to 20" seconds); `grounded
multiple choice`, whose gold clues are the record's `evidence_spans_seconds`."""
PROBLEM_TYPES: tuple[str, ...] = get_args(ProblemType)
CHOICE_TYPES = ("multiple choice", "grounded multiple choice")
"""Those with options."""


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
    text = path.replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    return ("/" if text.startswith("/") else "") + "/".join(parts) or "."


_REQUIRED = ("problem_id", "problem", "problem_type", "solution", "path")
_TEXTS = ("problem", "problem_type", "solution", "path", "data_source")
# Of a row with more fields (Video-R1's `process` may be long), only these are looked at.
_FIELDS = (*_REQUIRED, "data_type", "options", "data_source", "evidence_spans_seconds")


def parse_record(row: dict[str, Any], *, where: str) -> Record:
    """Turn one raw row into a `Record`.

    Text that many rows share (source, type, video, most solutions) is kept once in memory.

    Raises:
        RecordsError: a field is missing or has the wrong type; the message starts with `where`.
    """
    for name in _REQUIRED:
        if row.get(name) is None:
            raise RecordsError(f"{where}: field '{name}' is missing")
    texts = {name: _parse_text(row.get(name) or "", name, where=where) for name in _TEXTS}
    problem_type = texts["problem_type"]
    if problem_type not in PROBLEM_TYPES:
        raise RecordsError(f"{where}: {unknown_name('problem_type', problem_type, PROBLEM_TYPES)}")
    if not texts["path"]:
        raise RecordsError(f"{where}: field 'path' is empty; the path of a video is expected")
    options = row.get("options") or []
    if not isinstance(options, (list, tuple)) or not all(isinstance(o, str) for o in options):
        raise _wrong(where, "options", options, "a list of strings is expected")
    if problem_type in CHOICE_TYPES and len(options) < 2:
        raise RecordsError(
            f"{where}: a {problem_type} row needs at least two options, has {_shown(options)}"
        )
    spans = _parse_spans(row.get("evidence_spans_seconds"), where=where)
    if problem_type == "grounded multiple choice" and spans is None:
        raise RecordsError(
            f"{where}: a grounded multiple choice row needs evidence_spans_seconds, the spans that "
            "show its answer; a list of [start, end] pairs in seconds is expected"
        )
    return Record(
        question_id=_parse_id(row["problem_id"], where=where),
        video_id=sys.intern(video_id_of(texts["path"])),
        problem=texts["problem"],
        problem_type=sys.intern(problem_type),  # type: ignore[arg-type] # checked above
        options=tuple(_parse_text(option, "options", where=where) for option in options),
        solution=sys.intern(texts["solution"]),
        data_source=sys.intern(texts["data_source"]),
        evidence_spans_seconds=spans,
    )


def _parse_text(value: Any, name: str, *, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, name, value, "a string is expected")
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can spell half a surrogate pair, which no file of text can hold.
        raise RecordsError(f"{where}: field '{name}' is {value!r:.200}, no Unicode") from None
    return value


def _parse_id(value: Any, *, where: str) -> str:
    """Return an id as text; a whole number is one however it is stored (17, 17.0)."""
    if isinstance(value, (float, Decimal)) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise _wrong(where, "problem_id", value, "a whole number or a text is expected")
    return _parse_text(str(value), "problem_id", where=where)


def _parse_spans(value: Any, *, where: str) -> tuple[tuple[float, float], ...] | None:
    if value is None:
        return None
    name = "evidence_spans_seconds"
    try:
        spans = tuple((_parse_seconds(start), _parse_seconds(end)) for start, end in value)
    except (TypeError, ValueError, OverflowError):
        expected = "a list of [start, end] pairs in seconds is expected"
        raise _wrong(where, name, value, expected) from None
    if any(end <= start for start, end in spans):
        raise _wrong(where, name, value, "every end must follow its start")
    return spans


def _parse_seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise TypeError(value)
    seconds = float(value)
    if not math.isfinite(seconds):
        raise ValueError(value)
    return seconds


def _wrong(where: str, name: str, value: Any, expected: str) -> RecordsError:
    return RecordsError(f"{where}: field '{name}' is {_shown(value)}; {expected}")


def _shown(value: Any) -> str:
    """Write a raw value as it stands in the file, numbers read exactly; a long one is cut."""
    text = str(value) if isinstance(value, Decimal) else repr(value)
    if isinstance(value, (list, tuple)):
        text = f"[{', '.join(map(_shown, value))}]"
    return text if len(text) <= 200 else f"{text[:200]}..."


MAX_BAD_ROWS_SHOWN = 10


@dataclass(slots=True)
class BadRows:
    """Rows that are no records: how many, and what is wrong with the first ten."""

    count: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, error: RecordsError) -> None:
        """Count a row."""
        self.count += 1
        if len(self.shown) < MAX_BAD_ROWS_SHOWN:
            self.shown.append(one_line(str(error)))


@dataclass(frozen=True, slots=True)
class RecordSet:
    """The video records of some files, how many image rows were passed over, and the bad rows."""

    records: tuple[Record, ...]
    num_image_rows: int
    bad_rows: BadRows = field(default_factory=BadRows)


Filters = Sequence[tuple[str, str]]


def read_records(
    paths: Iterable[Path], *, filters: Filters = (), skip_bad: bool = False
) -> RecordSet:
    """Read video records from files, in order; image rows are counted and passed over.

    The files are streamed: memory grows with the video rows that are kept, not with the files. Of
    `filters` a row has to match any value that is given for a field, and all of the fields; what
    they leave out is not looked at any further. With `skip_bad` rows that are no records are
    counted and left out.

    >>> read_records(paths, filters=[("problem_type", "OCR"), ("problem_type", "numerical")])

    Raises:
        RecordsError: malformed rows, or question ids that appear twice; all are counted. Or a file
            that cannot be read to its end.
        MissingInputError: a file does not exist.
        ConfigError: a filter names a field that cannot be filtered by.
    """
    paths, num_image_rows = [Path(path) for path in paths], 0
    wanted = _wanted(filters)
    records: list[Record] = []
    seen: set[str] = set()
    bad = BadRows()
    try:
        for where, row in chain.from_iterable(iter_rows(path, _FIELDS) for path in paths):
            try:
                if isinstance(row, RecordsError):
                    raise row
                about = _data_type(row)
                if about == "image":
                    num_image_rows += 1
                    continue
                if not all((row.get(name) or "") in values for name, values in wanted.items()):
                    continue
                if about not in DATA_TYPES:
                    if not isinstance(about, str):
                        raise _wrong(where, "data_type", about, "a text is expected")
                    raise RecordsError(
                        f"{where}: {unknown_name('data_type', row['data_type'], DATA_TYPES)}"
                    )
                record = parse_record(row, where=where)
                if record.question_id in seen:
                    raise RecordsError(
                        f"{where}: field 'problem_id' is {record.question_id}"
                        # Reading again costs too much for a row that is only counted.
                        + f", as in {_first_row_with(paths, record.question_id)}"
                        * (len(bad.shown) < MAX_BAD_ROWS_SHOWN)
                        + "; ids must be unique"
                    )
            except RecordsError as error:
                bad.add(error)
                continue
            seen.add(record.question_id)
            records.append(record)
    except RecordsError as error:  # of a file: there is no going on
        bad.add(error)
        raise RecordsError("; ".join([*bad.shown[:-1], one_line(str(error))])) from None
    if bad.count and not skip_bad:
        raise _bad_rows_error(bad)
    return RecordSet(tuple(records), num_image_rows, bad)


def _bad_rows_error(bad: BadRows) -> RecordsError:
    """Build the error of all bad rows: one line for one, a list for several."""
    knob = "; --skip-bad-records (in a configuration skip_bad_records) counts such rows and goes on"
    if bad.count == 1:
        return RecordsError(bad.shown[0] + knob)
    first = f", the first {len(bad.shown)} are" * (bad.count > len(bad.shown))
    lines = "".join(f"\n  {line}" for line in bad.shown)
    return RecordsError(f"{bad.count} bad rows{knob}{first}:{lines}")


DATA_TYPES = ("video", "image")


def _data_type(row: dict[str, Any]) -> Any:
    """Return what a row is about; neither case nor plural says anything else."""
    value = row.get("data_type") or "video"
    if not isinstance(value, str):
        return value
    return value.strip().lower().removesuffix("s")


def _first_row_with(paths: Sequence[Path], question_id: str) -> str:
    """Find the first row with an id by reading again: no good file pays for its row numbers."""
    for path in paths:
        for where, row in iter_rows(path, _FIELDS):
            if isinstance(row, RecordsError) or _data_type(row) != "video":
                continue
            with suppress(RecordsError):
                if _parse_id(row.get("problem_id"), where=where) == question_id:
                    return where
    raise AssertionError(question_id)  # the caller has just read it


def record_to_row(record: Record) -> dict[str, Any]:
    """Turn a record back into a raw row of the source schema."""
    number: int | str = record.question_id
    # Those that survive being written as a number: "007" would not.
    if re.fullmatch("0|[1-9][0-9]*", record.question_id):
        number = int(record.question_id)
    row: dict[str, Any] = {
        "problem_id": number,
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


def _wanted(filters: Filters) -> dict[str, set[str]]:
    wanted: dict[str, set[str]] = {}
    for name, value in filters:
        if name not in FILTER_FIELDS:
            raise ConfigError(str(unknown_name("--filter field", name, FILTER_FIELDS)))
        wanted.setdefault(name, set()).add(value)
    return wanted


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


# --- frames of a video ---------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoFrames:
    """K frames of one video with their true places in the source.

    Frames are RGB. `pts_seconds_K` are the times at which they are shown, from the file's first
    frame. `source_index_K` counts frames of the file, from which no time follows: a file's rate
    may vary.
    """

    frames_KHWC: NDArray[np.uint8]
    pts_seconds_K: NDArray[np.float64]
    source_index_K: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """The facts of a video and of the F frames that are its pool, from the decoder to the reader.

    `source_index_F` counts in the file, `pts_seconds_F` from the file's first frame; `height` and
    `width` are those of the pool's frames, as shown and resized; `codec` is the video's;
    `orientation` is numbered as EXIF does (1: as stored); `way` is `index` where packets told the
    pictures, `decode` where the whole file was decoded; `notes` say what is odd about the file.
    `repaired` is "" for a file that was read as it is, else `remuxed` or `transcoded`: then frames
    are counted in the repaired copy.
    """

    source_index_F: NDArray[np.int64]
    pts_seconds_F: NDArray[np.float64]
    source_fps: float
    source_num_frames: int
    duration_seconds: float
    height: int
    width: int
    orientation: int
    codec: str
    decoder: str
    repaired: str = ""
    way: str = ""
    notes: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        """F, the size of the pool."""
        return len(self.source_index_F)


# --- raw rows of files ---------------------------------------------------------------------------


Row = dict[str, Any] | RecordsError


def iter_rows(path: Path, columns: Collection[str]) -> Iterator[tuple[str, Row]]:
    """Yield (where, raw row) of a JSON list, JSONL or Parquet file; `where` names file and row.

    A row that is none comes as its error, where the next one can still be read. Of Parquet only
    `columns` are read.

    One row (of Parquet: a thousand) is in memory at a time. Rows count from 1; blank lines of JSONL
    do not count. Numbers with a point may be `Decimal`: `parse_record` takes them.

    Raises:
        RecordsError: the file is malformed; the message names the row that was reached.
        MissingInputError: there is no such file.
    """
    if not path.is_file():
        raise MissingInputError(f"no records file at {path}; give one with --data")
    readers: dict[str, Callable[[Path], Iterator[Any]]] = {
        ".json": _json_rows,
        ".jsonl": _jsonl_rows,
        ".parquet": lambda path: _parquet_rows(path, columns),
    }
    if path.suffix not in readers:
        raise RecordsError(
            f"{path}: '{path.suffix}' is not a records format; use {', '.join(readers)}"
        )
    for number, row in enumerate(readers[path.suffix](path), start=1):
        where = f"{path}, row {number}"
        if not isinstance(row, (dict, RecordsError)):
            row = RecordsError(f"{where}: an object is expected, found {type(row).__name__}")
        yield where, row


def _json_rows(path: Path) -> Iterator[Any]:
    import ijson

    number = 0
    with path.open("rb") as file:
        if file.read(len(BOM_UTF8)) != BOM_UTF8:
            file.seek(0)
        start = file.tell()
        first = next((byte for byte in iter(lambda: file.read(1), b"") if not byte.isspace()), b"")
        if first not in (b"[", b""):
            raise RecordsError(
                f"{path}: a JSON list of rows is expected, the file begins with "
                f"{first.decode(errors='replace')!r}; a file of one row a line ends in .jsonl"
            )
        file.seek(start)
        try:
            for number, row in enumerate(ijson.items(file, "item"), start=1):  # noqa: B007
                yield row
        except ijson.JSONError as error:
            raise _syntax_error(path, number + 1, "JSON", error) from None


def _jsonl_rows(path: Path) -> Iterator[Any]:
    number = 0
    with path.open("rb") as lines:
        for line in lines:
            text = line.removeprefix(BOM_UTF8) if number == 0 else line
            if not text.strip():
                continue
            number += 1
            try:
                yield _JSON.decode(text.decode())
            except (ValueError, RecursionError) as error:
                yield _syntax_error(path, number, "JSON", error)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not in JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


def _parquet_rows(path: Path, wanted: Collection[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowException

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in wanted]
            for batch in file.iter_batches(1024, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield row
    except (ArrowException, OSError) as error:
        raise _syntax_error(path, number + 1, "Parquet", error) from None


def _syntax_error(path: Path, number: int, what: str, error: Exception) -> RecordsError:
    """Build the one-line error of a file that cannot be read on from a row."""
    # ijson's errors hold bytes as they are written in Python.
    reason = first_line(str(error).removeprefix("b'").replace("\\n", "\n") or type(error).__name__)
    return RecordsError(f"{path}, row {number}: not valid {what} ({reason})")
