"""What a benchmark gives and what becomes of it: items, rows that cannot be asked, grades.

A benchmark reads its published files into items; an item is a record (`strive.records.Record`) with
what its benchmark reports it by.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

from strive.evaluate.samples import Sample
from strive.records import Record


@dataclass(frozen=True, slots=True)
class Item(Record):
    """One question of a benchmark.

    Of multiple choice, `options` carry their letters ("A. a cat") and `solution` is a letter.
    """

    dimensions: dict[str, str] = field(default_factory=dict)
    """What it is reported by, such as {"duration": "short"}."""
    cluster: str = ""
    """Key of its video, by which standard errors are clustered; empty: `video_id`."""
    end_frame: int | None = None
    """Frames of the file from this index on are not shown; None: all may be."""

    @classmethod
    def of(cls, record: Record) -> "Item":
        """Take over a plain record; an item is returned as it is."""
        if isinstance(record, cls):
            return record
        names = Record.__dataclass_fields__
        return cls(**{name: getattr(record, name) for name in names})

    def update(self, sample: Sample) -> Sample:
        """Return a stored answer with what this question is graded and reported by now."""
        return replace(
            sample,
            problem_type=self.problem_type,
            kind=self.data_source,
            solution=self.solution,
            options=self.options,
            dimensions=dict(self.dimensions),
            cluster=self.cluster,
        )


BAD_ROW = "bad_row"
"""The kind of a failure whose row cannot be asked or graded."""
LONGEST_NAME_BYTES = 255
"""Of a file or folder, on the usual file systems."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A question that could not be asked; it counts as wrong in every score."""

    benchmark: str
    question_id: str
    video_id: str
    error: str
    message: str
    problem_type: str = ""
    kind: str = ""
    dimensions: dict[str, str] = field(default_factory=dict)
    cluster: str = ""

    @property
    def score(self) -> float:
        """Nothing was answered."""
        return 0.0

    @classmethod
    def of(cls, item: Item, benchmark: str, error: str, message: str) -> "Failure":
        """Fail an item, which keeps its place in every report."""
        return cls(
            benchmark=benchmark,
            question_id=item.question_id,
            video_id=item.video_id,
            error=error,
            message=message,
            problem_type=item.problem_type,
            kind=item.data_source,
            dimensions=dict(item.dimensions),
            cluster=item.cluster,
        )


Row = TypeVar("Row", Item, Failure)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a benchmark found under its root."""

    items: tuple[Item, ...]
    failures: tuple[Failure, ...] = ()
    """Rows that no policy can be asked or graded by, such as an answer that is no option."""
    files: tuple[Path, ...] = ()
    """Files of questions that were read."""
    left_out: dict[str, int] = field(default_factory=dict)
    """{why: how many} questions that the protocol does not ask; they are in no score."""


def fail_unfit(reading: Reading, benchmark: str) -> Reading:
    """Turn items that no prompt, file or report can hold into failures, which are written escaped.

    These are texts with half a surrogate pair, as JSON can spell it, and names of videos that no
    file system takes: with a NUL, or with a part of more than 255 bytes.
    """
    items = []
    failures = [_escaped(failure) for failure in reading.failures]
    for item in reading.items:
        why = _why_unfit(item)
        if why:
            failures.append(Failure.of(_escaped(item), benchmark, BAD_ROW, why))
        else:
            items.append(item)
    return replace(reading, items=tuple(items), failures=tuple(failures))


def _why_unfit(item: Item) -> str:
    for entry in fields(item):
        value = getattr(item, entry.name)
        if _escape(value) != value:
            return f"'{entry.name}' is {value!r:.200}, no Unicode"
    if "\0" in item.video_id:
        return f"the video is {item.video_id!r:.200}; no file has a NUL in its name"
    longest = max((len(p.encode()) for p in PurePosixPath(item.video_id).parts), default=0)
    if longest > LONGEST_NAME_BYTES:
        return f"the video's name has {longest} bytes; a file's has {LONGEST_NAME_BYTES} at most"
    return ""


def _escaped(row: Row) -> Row:
    return replace(row, **{f.name: _escape(getattr(row, f.name)) for f in fields(row)})


def _escape(value: Any) -> Any:
    """Spell out what is no Unicode in a text, or in the texts of a tuple or dict."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, tuple):
        return tuple(map(_escape, value))
    if isinstance(value, dict):
        return {_escape(key): _escape(entry) for key, entry in value.items()}
    return value


@dataclass(frozen=True, slots=True)
class Grade:
    """One graded answer; `score` is in [0, 1]."""

    score: float
    answer: str
    """What was read from the output."""
    rule: str
    """Name of the rule that read it."""
    parsed: bool
    """Whether an answer of the wanted form was found at all."""


class Graded(Protocol):
    """A row that counts: a graded sample, or a failure."""

    @property
    def score(self) -> float: ...
    @property
    def video_id(self) -> str: ...
    @property
    def cluster(self) -> str: ...
    @property
    def problem_type(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def dimensions(self) -> dict[str, str]: ...


@dataclass(frozen=True, slots=True)
class Total:
    """One way to average a benchmark's rows into a number.

    `path` says to which group a row belongs: the score is the mean over the groups of the mean of
    each (nested where a path is longer than one), so that `()` for every row is the plain mean over
    rows. Rows whose path is None are left out of it.
    """

    name: str
    path: Callable[[Graded], tuple[str, ...] | None] = lambda row: ()
    groups: tuple[str, ...] = ()
    """What the paths of the whole benchmark begin with; results name those without a question."""


MICRO = Total("accuracy")
"""The plain mean over all questions."""
