"""Every error that a user can cause.

Each class also inherits the builtin it refines, so `except ValueError` works as usual. A message is
one line and holds the value that was found, what is allowed, and the knob to turn. `exit_code` is
what the command line returns: 2 for a wrong call or input, 1 for work that failed.

To add one: subclass `StriveError` and the fitting builtin, pass one finished sentence, and keep
extra fields out of `__init__` (errors cross process borders and must pickle).
"""

import difflib
import textwrap
from collections.abc import Iterable


class StriveError(Exception):
    """Base of all errors that a user can cause."""

    exit_code = 2
    is_told = False
    """Whether another process of the same run says it."""


class ConfigError(StriveError, ValueError):
    """A configuration key or value, or a command line option, is wrong."""


class UnknownNameError(StriveError, ValueError):
    """A name (scorer, variant kind, benchmark, preset, ...) is not one of the known ones."""


class MissingInputError(StriveError, FileNotFoundError):
    """A file or folder that the call names does not exist."""


class RecordsError(StriveError, ValueError):
    """A records file is malformed; the message names the row and the field."""


class OutsideRootError(StriveError, ValueError):
    """A record's path leaves the video root."""


class DecodeError(StriveError, RuntimeError):
    """A video or question fails. `args[0]` is a short kind (`not_a_video`, `timeout`, ...).

    `known_as` is the file that failed, where that is known: its size in bytes, its time of
    modification (`files.modified_ns`) and its content's digest, None if it was not read through.
    """

    known_as: tuple[int, int, str | None] | None = None

    @property
    def kind(self) -> str:
        """Short machine-readable class of the failure, stored in the failures table."""
        return str(self.args[0])

    def __str__(self) -> str:
        return ": ".join(str(part) for part in self.args)


class CacheError(StriveError, RuntimeError):
    """The cache lacks something that the call needs; the message says which command makes it."""


class StaleCacheError(CacheError):
    """The cache was made with other settings; the message shows the differing fields."""


class CacheDamageError(CacheError):
    """A committed part of the cache cannot be read."""

    exit_code = 1


class CheckpointError(StriveError, RuntimeError):
    """A checkpoint or run folder cannot be used for what was asked."""


class RunInUseError(CheckpointError):
    """Another process works in the run folder."""


class ModelError(StriveError, ValueError):
    """A model folder or id cannot be loaded, or is of a family that is not supported."""


class ScorerError(StriveError, RuntimeError):
    """A scorer (a user's own, as a rule) raised what no one foresaw, or answered nonsense."""

    exit_code = 1


class RewardError(StriveError, RuntimeError):
    """A reward function (a user's own, as a rule) raised something, or returned nonsense."""

    exit_code = 1


class TooManyFailuresError(StriveError, RuntimeError):
    """More of the work failed than `--max-failure-fraction` allows."""

    exit_code = 1


class NonFiniteError(StriveError, ArithmeticError):
    """A loss or gradient is not finite; training stops before the optimiser step."""

    exit_code = 1


class OutOfMemoryError(StriveError, MemoryError):
    """The device or the machine has too little memory; the message names what would take less."""

    exit_code = 1


class DiskError(StriveError, OSError):
    """Writing failed (disk full, read-only); what was committed before is intact."""

    exit_code = 1


class Interrupted(StriveError, RuntimeError):  # noqa: N818 - an interruption, not a fault
    """The user interrupted the work; what was committed is kept and the same call resumes."""

    exit_code = 130


def short_reason(error: Exception | str) -> str:
    """Write what another library said as part of a line, cut between words."""
    text = str(error) or type(error).__name__
    return textwrap.shorten(text, 240, placeholder=" ...")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest known name in any case, or an empty string."""
    names = {each.casefold(): each for each in known}
    matches = difflib.get_close_matches(name.casefold(), names, n=1, cutoff=0.5)
    return f" (did you mean '{names[matches[0]]}'?)" if matches else ""


def unknown_name(what: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a name outside a fixed list, with the nearest known one."""
    names = sorted(known)
    name = name[:200]  # a field of a stranger's file can be as long as it likes
    return UnknownNameError(
        f"unknown {what} '{name}'{nearest(name, names)}; known: {', '.join(names)}"
    )
