"""Benchmarks by name. Each reads its questions from `--data-root`; videos lie under that folder.

A benchmark is one file here and one entry of `BENCHMARKS`, or a user's own `module:function`.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from strive.errors import ConfigError, StriveError
from strive.evaluate.benchmarks import lab
from strive.named import check_name, load_function, raised
from strive.records import Record

BENCHMARKS: dict[str, Callable[[Path, str], list[Record]]] = {"lab": lab.read_questions}
"""Name -> `(data_root, split) -> records`; a record's video is found under the data root."""
OWN = "own"
"""The name of a user's own records in the place of a benchmark's."""


def check_benchmark(name: str) -> None:
    """Refuse a name that can be no benchmark.

    Raises:
        UnknownNameError: neither one of `BENCHMARKS` nor of the form `module:function`.
    """
    check_name("benchmark", name, BENCHMARKS)


def read_benchmark(name: str, data_root: Path, split: str) -> list[Record]:
    """Read a benchmark's questions.

    Raises:
        UnknownNameError: no such benchmark.
        ConfigError: a user's own raises, or gives something else than records.
    """
    check_benchmark(name)
    if name in BENCHMARKS:
        return BENCHMARKS[name](data_root, split)
    read = load_function(f"benchmark '{name}'", name)
    try:
        given = read(data_root, split)
        records = list(given) if isinstance(given, Iterable) else [given]
    except StriveError:
        raise
    except Exception as error:
        raise ConfigError(f"benchmark '{name}' raised {raised(error)}") from error
    ids: set[str] = set()
    for record in records:
        if not isinstance(record, Record):
            raise ConfigError(
                f"benchmark '{name}' gives a {type(record).__name__}; a list of "
                "strive.records.Record is wanted"
            )
        if record.question_id in ids:
            raise ConfigError(
                f"benchmark '{name}' gives question_id '{record.question_id}' twice; ids must be "
                "unique"
            )
        ids.add(record.question_id)
    return records
