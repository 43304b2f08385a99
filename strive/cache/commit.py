"""Committed parts of a cache: written whole or not at all, and in an order that all agree on."""

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from strive.errors import CacheDamageError, first_line
from strive.files import atomic_file, write_atomically


def commit_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that `commit_json` wrote."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CacheDamageError(f"{path} is damaged: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise CacheDamageError(f"{path} is damaged: a JSON object is expected")
    return value


def commit_parquet(path: Path, table: pa.Table) -> None:
    """Write a table atomically, with a checksum of each page."""
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def commit_part(folder: Path, table: pa.Table, *, writer: str, prefix: str = "part") -> int:
    """Commit a table as the newest part of a folder; return its bytes."""
    path = new_part_path(folder, prefix, ".parquet", writer)
    commit_parquet(path, table)
    return path.stat().st_size


def new_part_path(folder: Path, prefix: str, suffix: str, writer: str) -> Path:
    """Return a part name that no other writer takes, with a number above all that the cache holds.

    Readers take parts in the order of their numbers, so of two rows about one thing the later wins.
    """
    # The time in nanoseconds since 1970, unless the cache holds a larger number: what a run has
    # seen lies before what it writes, whatever the clocks of the machines that wrote it.
    number = max(time.time_ns(), 1 + _largest_number(folder))
    return folder / f"{prefix}-{number:019d}-{writer}-{secrets.token_hex(4)}{suffix}"


def part_number(path: Path) -> int:
    """Return the number in a part's name, which says what came after what; 0 if it has none."""
    number = path.name.split("-")[1:2]
    return int(number[0]) if number and number[0].isdecimal() else 0


def _largest_number(folder: Path) -> int:
    """Return the largest number of all parts of the cache around a folder, else of its own."""
    # Of all folders: rows of failures are compared with those of frames and scores.
    for root in (folder.parent, folder.parent.parent):
        if (root / "cache.json").is_file():
            groups = _entries(root)
            folders = [*groups, *(inner for group in groups for inner in _entries(group))]
            break
    else:
        folders = [folder]
    return max((part_number(path) for inner in folders for path in _entries(inner)), default=0)


def _entries(folder: Path) -> list[Path]:
    """Return what lies in a folder and is not hidden; nothing for what is no folder."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def list_parts(folder: Path, prefix: str, suffix: str = ".parquet") -> list[Path]:
    """Return the committed parts of a folder, oldest first; an absent folder has none."""
    paths = folder.glob(f"{prefix}-*{suffix}")
    return sorted(paths, key=lambda path: (part_number(path), path.name))


def read_part(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read one committed Parquet part; its pages are checked where they carry checksums.

    Raises:
        CacheDamageError: the file cannot be read, or a page differs from its checksum.
    """
    try:
        # One small local file: the dataset machinery and its threads would only cost time.
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as part:
            return part.read(columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise CacheDamageError(
            f"{path} is damaged ({first_line(error)}); remove it and run precompute again"
        ) from None


def read_parts(
    folder: Path, prefix: str, schema: pa.Schema, columns: list[str] | None = None
) -> pa.Table:
    """Read all parts of a folder as one table, oldest rows first.

    A nullable column that an older part lacks reads as nulls.
    """
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    tables = [read_table(path, wanted, columns) for path in list_parts(folder, prefix)]
    return pa.concat_tables(tables or [wanted.empty_table()])


def read_table(path: Path, wanted: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Read one part in the form of a schema; a nullable column that it lacks reads as nulls.

    With `columns` only those are read, and the schema is of those.

    Raises:
        CacheDamageError: the file cannot be read, or lacks a column.
    """
    table = read_part(path, columns)
    for position, field in enumerate(wanted):
        if field.nullable and field.name not in table.column_names:
            nulls = pa.nulls(table.num_rows, field.type)
            table = table.add_column(min(position, table.num_columns), field, nulls)
    if set(table.column_names) == set(wanted.names):
        table = table.select(wanted.names)
    try:
        return table.cast(wanted)
    except (pa.ArrowException, ValueError) as error:
        raise CacheDamageError(
            f"{path} does not have the expected columns ({first_line(error)})"
        ) from None


def read_rows(
    folder: Path, prefix: str, schema: pa.Schema, columns: list[str]
) -> Iterator[tuple[Any, ...]]:
    """Read some columns of all parts of a folder and yield their rows, oldest first."""
    table = read_parts(folder, prefix, schema, columns)
    yield from zip(*(table.column(name).to_pylist() for name in columns), strict=True)


def last_rows(table: pa.Table, column: str) -> dict[str, int]:
    """Map each value of an id column to the number of its last row."""
    return {value: row for row, value in enumerate(table.column(column).to_pylist())}


def flat_lists(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a list column behind one another, and where each row begins."""
    chunks = table.column(column).chunks
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks if len(chunk)]
    lengths = [chunk.value_lengths().to_numpy() for chunk in chunks if len(chunk)]
    if not values:
        return np.empty(0), np.zeros(1, np.int64)
    bounds = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    return np.concatenate(values), bounds
