"""Progress of long work: a bar with rate and ETA on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 10.0


class Progress(Protocol):
    """What long work reports to."""

    def advance(self, count: int = 1) -> None:
        """Count finished units."""

    def note(self, text: str) -> None:
        """Replace the short text shown beside the count (failures, reward, ...)."""


class _PlainProgress:
    """Writes a line to stderr at most every ten seconds, and one at the end."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.text = 0, ""
        self.started = self.last_line = time.monotonic()

    def advance(self, count: int = 1) -> None:
        self.done += count
        if time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.line()

    def note(self, text: str) -> None:
        self.text = text

    def line(self) -> None:
        self.last_line = time.monotonic()
        rate = self.done / max(self.last_line - self.started, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        eta = f", ETA {left:.0f} s" if self.done < self.total and left < float("inf") else ""
        print(
            f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.2f} {self.unit}/s{eta}"
            f"{', ' + self.text if self.text else ''}",
            file=sys.stderr,
            flush=True,
        )


class _BarProgress:
    def __init__(self, bar: object, task: object) -> None:
        self._bar, self._task = bar, task

    def advance(self, count: int = 1) -> None:
        self._bar.update(self._task, advance=count)  # type: ignore[attr-defined]

    def note(self, text: str) -> None:
        self._bar.update(self._task, note=text)  # type: ignore[attr-defined]


@contextmanager
def show_progress(label: str, total: int, unit: str) -> Iterator[Progress]:
    """Show progress of `total` units on stderr while the block runs."""
    if not sys.stderr.isatty():
        plain = _PlainProgress(label, total, unit)
        try:
            yield plain
        finally:
            plain.line()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.2f} {unit}/s" if task.speed else f"- {unit}/s")

    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
    with bar:
        yield _BarProgress(bar, bar.add_task(label, total=total, note=""))
