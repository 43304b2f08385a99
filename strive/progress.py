"""Progress of long work: a bar with rate and ETA on a terminal, plain lines otherwise."""

import errno
import io
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console

# Control characters but tab and line feed; what turns the direction of text; half surrogate pairs.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    """Replace control characters by visible signs (ESC by U+241B); lines and tabs stay."""
    return _UNSAFE.sub(_sign, text)


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code == 0x7F:
        return "\u2421"
    return chr(0x2400 + code) if code < 0x20 else "\ufffd"


def one_line(text: str) -> str:
    """Clean a text and join its lines: data in it cannot look like a line of ours."""
    return clean(" ".join(text.split("\n")))


def say(text: str) -> None:
    """Print a line on stderr, where progress goes too; stdout is for results."""
    if sys.stderr is not None:  # closed before a process that is not ours to prepare began
        print(clean(text), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print a line of a result on stdout."""
    print(clean(text), flush=True)


def make_console(*, stderr: bool = False) -> "Console":
    """Return a rich console whose texts are cleaned; numbers in text stay uncoloured."""
    return _console_class()(stderr=stderr, highlight=False)


@cache
def _console_class() -> Any:
    from rich.console import Console
    from rich.segment import Segment

    class CleanConsole(Console):
        def render_str(self, text: str, **how: Any) -> Any:
            return super().render_str(clean(text), **how)

        def render(self, renderable: Any, options: Any = None) -> Any:
            # What is no plain string comes by here: rich's own codes are controls or styles.
            for segment in super().render(renderable, options):
                if segment.control is None and _UNSAFE.search(segment.text):
                    yield Segment(clean(segment.text), segment.style)
                else:
                    yield segment

    return CleanConsole


def prepare_streams() -> None:
    """Make the standard streams such that printing cannot end the work.

    One that is closed is opened on nothing: its number would else be the next file's, and what a
    library prints there would land in it. What a stream's encoding lacks is printed as `?`. A
    stderr whose reader has gone, or whose disk is full, is given up silently.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
        stream = getattr(sys, name)
        if stream is None:
            mode = "r" if number == 0 else "w"
            stream = open(number, mode, errors="replace", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
        elif number > 0 and isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _LastingStream(sys.stderr)  # type: ignore[assignment] # all that is used of it


class _LastingStream:
    """A text stream that goes on into nothing when it cannot be written any more."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if error.errno == errno.EAGAIN:
            raise error
        # What is left in the buffer would fail again when the interpreter ends, as exit code 120.
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self._stream.fileno())
        os.close(nothing)


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
