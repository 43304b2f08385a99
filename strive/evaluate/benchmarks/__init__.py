"""Benchmarks by name. Each reads its questions from `--data-root`; videos lie under that folder."""

from collections.abc import Callable
from pathlib import Path

from strive.errors import unknown_name
from strive.evaluate.benchmarks import lab
from strive.records import Record

BENCHMARKS: dict[str, Callable[[Path, str], list[Record]]] = {"lab": lab.read_questions}
"""Name -> `(data_root, split) -> records`; a record's video is found under the data root."""
OWN = "own"
"""What a user's own records are called, in the place of a benchmark's name."""


def read_benchmark(name: str, data_root: Path, split: str) -> list[Record]:
    """Read a benchmark's questions.

    Raises:
        UnknownNameError: no such benchmark.
    """
    if name not in BENCHMARKS:
        raise unknown_name("benchmark", name, BENCHMARKS)
    return BENCHMARKS[name](data_root, split)
