"""Benchmarks by name. Each reads its questions from `--data-root`; videos lie under that folder.

A benchmark is one file here and one entry of `BENCHMARKS`, or a user's own `module:function`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strive.errors import ConfigError, StriveError
from strive.evaluate.benchmarks.base import Benchmark, PlainRecords
from strive.evaluate.benchmarks.lab import Lab
from strive.evaluate.benchmarks.mmvu import MMVU
from strive.evaluate.benchmarks.perceptiontest import PerceptionTest
from strive.evaluate.benchmarks.tempcompass import TempCompass
from strive.evaluate.benchmarks.videomme import VideoMME
from strive.evaluate.benchmarks.videommmu import VideoMMMU
from strive.evaluate.benchmarks.vsibench import VSIBench
from strive.evaluate.items import Item, Reading, fail_unfit
from strive.files import expanded
from strive.named import check_name, load_function, raised
from strive.records import Record, read_records

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Lab(),
        VideoMME(),
        VSIBench(),
        PerceptionTest(),
        TempCompass(),
        VideoMMMU(),
        MMVU(),
    )
}
OWN = "own"
"""The name of a user's own records in the place of a benchmark's."""
RECORDS = "records"
"""`records:FILE` is a file of records as a benchmark."""


@dataclass(frozen=True, slots=True)
class BenchmarkSpec:
    """What `NAME[:DIR][@N]`, `records:FILE[@N]` or `module:function[@N]` names."""

    name: str
    """Its name in results: of a user's own, `module:function` or `records:FILE`."""
    root: Path | None = None
    """Folder of its files where the text names one; of `records:FILE` the file."""
    limit: int | None = None
    """Questions at most."""

    @property
    def is_records(self) -> bool:
        """Whether it is `records:FILE`."""
        return self.name.startswith(f"{RECORDS}:")


def parse_spec(text: str) -> BenchmarkSpec:
    """Read a benchmark's name with its folder and limit, if it has them.

    Raises:
        UnknownNameError: neither one of `BENCHMARKS` nor a records file nor `module:function`.
        ConfigError: the limit is no positive number.
    """
    head, at, last = text.rpartition("@")
    limit = None
    if at and "/" not in last:
        if not last.isdigit() or not int(last):
            raise ConfigError(f"benchmark '{text}': @{last} is no number of questions above 0")
        text, limit = head, int(last)
    name, colon, place = text.partition(":")
    if name == RECORDS and place:
        return BenchmarkSpec(text, expanded(Path(place)), limit)
    if name in BENCHMARKS and colon:
        if not place:
            raise ConfigError(f"benchmark '{text}' names no folder; write {name}:DIR, or {name}")
        return BenchmarkSpec(name, expanded(Path(place)), limit)
    known = {**BENCHMARKS, f"{RECORDS}:FILE": None}
    check_name("benchmark", text, known)
    return BenchmarkSpec(text, None, limit)


def load_benchmark(spec: BenchmarkSpec) -> Benchmark:
    """Return what a spec names.

    Raises:
        ConfigError, MissingInputError: a user's own cannot be imported.
        RecordsError, MissingInputError: a records file cannot be read.
    """
    if spec.name in BENCHMARKS:
        return BENCHMARKS[spec.name]
    if spec.is_records and spec.root is not None:
        return PlainRecords(read_records([spec.root]).records)
    found: Any = load_function(f"benchmark '{spec.name}'", spec.name, or_a=Benchmark)
    if isinstance(found, type) and issubclass(found, Benchmark):
        found = found()
    return found if isinstance(found, Benchmark) else OwnFunction(spec.name, found)


def grader_of(name: str) -> Benchmark:
    """Return the benchmark that grades stored answers, by the name that the results give it.

    Raises:
        ConfigError, MissingInputError, UnknownNameError: it cannot be loaded any more.
    """
    if name in (RECORDS, OWN) or name.startswith(f"{RECORDS}:"):
        return PlainRecords()
    return load_benchmark(parse_spec(name))


class OwnFunction(PlainRecords):
    """A user's function of `(data_root, split)` that gives records or items."""

    def __init__(self, place: str, function: Any) -> None:
        super().__init__()
        self.place = place
        self.function = function

    def read(self, root: Path, split: str) -> Reading:
        """Call it.

        Raises:
            ConfigError: it raises, gives something else than records, or an id twice.
        """
        try:
            given = self.function(root, split)
            records = list(given) if isinstance(given, Iterable) else [given]
        except StriveError:
            raise
        except Exception as error:
            raise ConfigError(f"benchmark '{self.place}' raised {raised(error)}") from error
        for record in records:
            if not isinstance(record, Record):
                raise ConfigError(
                    f"benchmark '{self.place}' gives a {type(record).__name__}; a list of "
                    "strive.records.Record is wanted"
                )
        return Reading(tuple(Item.of(record) for record in records))


def read_benchmark(
    name: str, benchmark: Benchmark, root: Path, split: str | None = None
) -> Reading:
    """Read a benchmark's questions; `split` is None for its default one.

    What `items.fail_unfit` names fails.

    Raises:
        MissingInputError, RecordsError: files are missing or not what was published.
        ConfigError: an id stands twice.
    """
    reading = fail_unfit(benchmark.read(root, split or benchmark.default_split), name)
    given = [item.question_id for item in reading.items]
    given += [failure.question_id for failure in reading.failures]
    ids: set[str] = set()
    for question_id in given:
        if question_id in ids:
            raise ConfigError(
                f"benchmark '{name}' gives question_id '{question_id}' twice; ids must be unique"
            )
        ids.add(question_id)
    return reading
