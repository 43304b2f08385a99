"""What is printed: text of data cannot steer a terminal, and a closed stream stops no one.

Questions, paths, messages of decoders and names in caches come from strangers. What is shown on a
terminal or in a pipe goes through `make_console`, `say` (stderr) or `show` (stdout), which put
visible signs in the place of control characters.
"""

import errno
import io
import os
import re
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

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
