"""Progress of long work: a bar with rate and ETA on a terminal, plain lines otherwise."""

import errno
import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

# Control characters but tab and line feed have signs of their own (ESC is U+241B); for those of
# 8 bits, what turns the direction of text, and half surrogate pairs U+FFFD stands.
_SIGNS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
for _first, _last in ((0x80, 0x9F), (0x202A, 0x202E), (0x2066, 0x2069), (0xD800, 0xDFFF)):
    _SIGNS |= dict.fromkeys(range(_first, _last + 1), 0xFFFD)


def clean(text: str) -> str:
    """Replace control characters by visible signs (ESC by U+241B); lines and tabs stay."""
    return text.translate(_SIGNS)


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


class CleanConsole(Console):
    """A rich console whose texts are cleaned."""

    def render_str(self, text: str, **how: Any) -> Any:
        """Clean a plain string before its markup is read."""
        return super().render_str(clean(text), **how)

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        """Clean what is no plain string; rich's own codes are controls or styles."""
        for segment in super().render(renderable, options):
            is_text = segment.control is None
            yield Segment(clean(segment.text), segment.style) if is_text else segment


def make_console(*, stderr: bool = False) -> Console:
    """Return a rich console whose texts are cleaned; numbers in text stay uncoloured."""
    return CleanConsole(stderr=stderr, highlight=False)


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


SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Units done of long work, and what their pace says about those to come."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        """In the plural."""
        self.done = self.done_before = 0
        self.started = self.last_line = time.monotonic()
        self.texts: tuple[str, ...] = ()
        self.prints_lines = True

    def advance(self, count: int = 1) -> None:
        """Count finished units."""
        self.done += count
        if self.prints_lines and time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.print_line()

    def note(self, *texts: str) -> None:
        """Replace the short text beside the count (failures, ...), or several lines below it."""
        self.texts = texts

    def begin(self, done: int, seconds: float) -> None:
        """Count `done` units as finished earlier; this call's own work began `seconds` ago.

        Without it the rate would take units of an earlier call, and the time of loading, for its.
        """
        self.done = self.done_before = done
        self.started = time.monotonic() - seconds

    def pace(self) -> tuple[str, float, float | None]:
        """Return the rate in words, the seconds so far, and those to come where they are known.

        The rate is `4.20 videos/s`, or `3.1 s/step` where a unit takes longer than a second.
        """
        seconds = time.monotonic() - self.started
        rate = (self.done - self.done_before) / max(seconds, 1e-9)
        if rate <= 0:
            return f"- {self.unit}/s", seconds, None
        words = f"{rate:.2f} {self.unit}/s"
        if rate < 1:
            words = f"{1 / rate:.1f} s/{self.unit.removesuffix('s')}"
        left = self.total - self.done
        return words, seconds, left / rate if left > 0 else None

    def print_line(self) -> None:
        """Print one line that says it all, on stderr."""
        self.last_line = time.monotonic()
        rate, _, left = self.pace()
        parts = [f"{self.done}/{self.total} {self.unit}", rate]
        if left is not None:
            parts.append(f"ETA {left:.0f} s")
        texts = [text for text in self.texts if text]
        between = "; " if len(texts) > 1 else ", "
        say(f"{self.label}: {between.join([', '.join(parts), *texts])}")

    def bar(self) -> Group:
        """Return what a terminal shows: a bar, and below it the lines of several texts."""
        rate, seconds, left = self.pace()
        eta = "" if left is None else f"  ETA {_clock(left)}"
        count = f"{self.done:{len(str(self.total))}d}/{self.total}"
        row = Table.grid(padding=(0, 1))
        for name in ("label", "bar", "count", "pace", "text"):
            row.add_column(no_wrap=name != "bar")  # the one that gives way
        row.add_row(
            Text(self.label),
            ProgressBar(total=self.total, completed=self.done),
            Text(count, style="progress.download"),
            Text(f"{rate}  {_clock(seconds)}{eta}"),
            Text(self.texts[0] if len(self.texts) == 1 else ""),
        )
        return Group(row, *map(Text, self.texts if len(self.texts) > 1 else ()))


@contextmanager
def show_progress(label: str, total: int, unit: str) -> Iterator[Progress]:
    """Show progress of `total` units on stderr while the block runs.

    A terminal shows a bar; elsewhere a line is printed at most every ten seconds, and one at the
    end.
    """
    progress = Progress(label, total, unit)
    if sys.stderr is None or not sys.stderr.isatty():
        try:
            yield progress
        finally:
            if progress.done > progress.done_before:  # a refused start has made no progress
                progress.print_line()
        return
    progress.prints_lines = False
    with Live(
        get_renderable=progress.bar,
        console=make_console(stderr=True),
        refresh_per_second=10,
        transient=True,  # what it has counted is in the result that follows
    ):
        yield progress


def _clock(seconds: float) -> str:
    """`0:07:08`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
