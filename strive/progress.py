"""Progress of long work: a bar with rate and ETA on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from strive.terminal import make_console, say

SECONDS_BETWEEN_LINES = 10.0


class Progress(Protocol):
    """What long work reports to."""

    def advance(self, count: int = 1) -> None:
        """Count finished units."""

    def note(self, *texts: str) -> None:
        """Replace the short text beside the count (failures, ...), or several lines below it."""

    def begin(self, done: int, seconds: float) -> None:
        """Count `done` units as finished earlier; this call's own work began `seconds` ago.

        Without it the rate would take units of an earlier call, and the time of loading, for its.
        """


def size_text(num_bytes: float) -> str:
    """Write a size in the largest fitting unit (1024-based)."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def time_text(seconds: float) -> str:
    """Write a duration as seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def number_text(value: float, digits: int = 2) -> str:
    """Write a number with some decimals, and one that would take a line otherwise in short."""
    return f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.3g}"


@dataclass
class _Count:
    """Units done, and what their pace says about those to come."""

    total: int
    unit: str
    """In the plural."""
    done: int = 0
    done_before: int = 0
    started: float = field(default_factory=time.monotonic)

    def begin(self, done: int, seconds: float) -> None:
        self.done = self.done_before = done
        self.started = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        return (self.done - self.done_before) / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        left = self.total - self.done
        return left / self.rate if left > 0 and self.rate > 0 else None

    @property
    def pace(self) -> str:
        """`4.20 videos/s`, or `3.1 s/step` where a unit takes longer than a second."""
        if self.rate <= 0:
            return f"- {self.unit}/s"
        if self.rate < 1:
            return f"{1 / self.rate:.1f} s/{self.unit.removesuffix('s')}"
        return f"{self.rate:.2f} {self.unit}/s"


class _PlainProgress:
    """Writes a line to stderr at most every ten seconds, and one at the end."""

    def __init__(self, label: str, count: _Count) -> None:
        self.label, self.count = label, count
        self.texts: tuple[str, ...] = ()
        self.last_line = time.monotonic()

    def advance(self, count: int = 1) -> None:
        self.count.done += count
        if time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.line()

    def note(self, *texts: str) -> None:
        self.texts = texts

    def begin(self, done: int, seconds: float) -> None:
        self.count.begin(done, seconds)

    def line(self) -> None:
        self.last_line = time.monotonic()
        count = self.count
        left = count.seconds_left
        parts = [f"{count.done}/{count.total} {count.unit}", count.pace]
        if left is not None:
            parts.append(f"ETA {left:.0f} s")
        texts = [text for text in self.texts if text]
        between = "; " if len(texts) > 1 else ", "
        say(f"{self.label}: {between.join([', '.join(parts), *texts])}")


class _BarProgress:
    def __init__(self, bar: Any, task: Any, count: _Count) -> None:
        self._bar, self._task, self._count = bar, task, count

    def advance(self, count: int = 1) -> None:
        self._count.done += count
        self._bar.update(self._task, completed=self._count.done)

    def note(self, *texts: str) -> None:
        beside = texts[0] if len(texts) == 1 else ""
        self._bar.lines_below = texts if len(texts) > 1 else ()
        self._bar.update(self._task, note=beside)

    def begin(self, done: int, seconds: float) -> None:
        self._count.begin(done, seconds)
        self._bar.update(self._task, completed=done)


@contextmanager
def show_progress(label: str, total: int, unit: str) -> Iterator[Progress]:
    """Show progress of `total` units on stderr while the block runs."""
    count = _Count(total, unit)
    if sys.stderr is None or not sys.stderr.isatty():
        plain = _PlainProgress(label, count)
        try:
            yield plain
        finally:
            if count.done > count.done_before:  # a refused start has made no progress
                plain.line()
        return
    bar = _make_bar(count)
    with bar:
        yield _BarProgress(bar, bar.add_task(label, total=total, note=""), count)


def _make_bar(count: _Count) -> Any:
    from rich.console import RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column
    from rich.text import Text

    class PaceColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            left = count.seconds_left
            eta = "" if left is None else f"  ETA {_clock(left)}"
            return Text(f"{count.pace}  {_clock(count.seconds)}{eta}")

        def get_table_column(self) -> Column:
            return Column(no_wrap=True)

    class Bar(RichProgress):
        lines_below: tuple[str, ...] = ()

        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            for line in self.lines_below:
                yield Text(line)

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        PaceColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=make_console(stderr=True),
        transient=True,  # what it has counted is in the result that follows
    )


def _clock(seconds: float) -> str:
    """`0:07:08`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
