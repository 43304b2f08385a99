"""Raw rows of records files: JSON lists, JSONL and Parquet, one at a time."""

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from strive.errors import MissingInputError, RecordsError

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
    lines = str(error).removeprefix("b'").replace("\\n", "\n").splitlines()
    reason = lines[0].strip() if lines else type(error).__name__
    return RecordsError(f"{path}, row {number}: not valid {what} ({reason})")
