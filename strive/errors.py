"""Every error that a user can cause.

Each class also inherits the builtin it refines, so `except ValueError` works as usual. A message is
one line and holds the value that was found, what is allowed, and the knob to turn. `exit_code` is
what the command line returns: 2 for a wrong call or input, 1 for work that failed.

To add one: subclass `StriveError` and the fitting builtin, pass one finished sentence, and keep
extra fields out of `__init__` (errors cross process borders and must pickle).
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


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


def short_reason(error: BaseException | str, limit: int = 240, *, kind: bool = False) -> str:
    """Write what another library said as part of a line of ours, cut between words.

    With `kind` the error's class stands in front.
    """
    text = " ".join(str(error).split())
    if kind or not text:
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    if len(text) <= limit:
        return text
    return text[: limit - 4].rsplit(" ", 1)[0] + " ..."


def first_line(error: BaseException | str) -> str:
    """Return the first line of what another library said, of those that go on with details."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


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


# --- kinds of failure ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FailureKind:
    """What a kind of failure means, and what a user can do; both are half a sentence."""

    reason: str
    way_out: str


_OTHER_COPY = "get the file anew; a file that changes is tried again by itself"
_REPAIR = "--repair --retry-failed decodes a repaired copy; or get the file anew"

FAILURE_KINDS: dict[str, FailureKind] = {
    # --- the file cannot be had
    "missing": FailureKind(
        "there is no such file under the video root",
        "put it there or correct --video-root; it is looked for again in every run",
    ),
    "outside_root": FailureKind(
        "its path, or a link on the way, leads out of the video root",
        "--allow-outside-root takes such paths and links, if you trust the records and the folder",
    ),
    "unreadable": FailureKind(
        "the system does not let it be read",
        "correct its permissions; it is tried again in every run",
    ),
    "changed": FailureKind(
        "it was written to while it was read",
        "run the same command again when it is complete",
    ),
    # --- the file is no video that is taken
    "empty_file": FailureKind("the file has no bytes", _OTHER_COPY),
    "not_a_video": FailureKind(
        "it is no container of videos that is taken (docs/files.md)", _REPAIR
    ),
    "playlist": FailureKind(
        "it is a list that may name other files or addresses, which are never followed",
        "join what it lists into one file (ffmpeg -i LIST -c copy FILE)",
    ),
    "no_video_stream": FailureKind(
        "it holds no pictures, or only a cover", "leave its questions out, or get the file anew"
    ),
    "no_frames": FailureKind("its video stream holds no frames", _OTHER_COPY),
    "unsupported": FailureKind(
        "the decoder that was asked for does not take such files",
        "--decoder auto, or --repair --retry-failed",
    ),
    "too_large": FailureKind(
        "its pictures have more pixels than are decoded",
        "make a smaller copy (ffmpeg -i FILE -vf scale=1920:-2 COPY)",
    ),
    # --- the file is damaged or not whole
    "incomplete": FailureKind(
        "it ends long before what its header states, and bytes are short",
        "get the file anew; or --max-missing any --retry-failed takes what is there",
    ),
    "truncated": FailureKind(
        "it ended before what it says it holds, to an earlier version", _REPAIR
    ),
    "damaged": FailureKind(
        "a picture that is wanted is damaged, or builds on one that is",
        "get the file anew; or --allow-damaged --retry-failed takes what players show",
    ),
    "undecodable": FailureKind("no decoder opens it", _REPAIR),
    "frames_missing": FailureKind("frames that it lists do not come out of it", _REPAIR),
    "frame_count": FailureKind(
        "the decoder that was asked for counts other frames than PyAV", "--decoder auto or pyav"
    ),
    "wrong_picture": FailureKind(
        "the decoder that was asked for gives other pictures than PyAV", "--decoder auto or pyav"
    ),
    "unavailable": FailureKind(
        "the decoder that was asked for cannot be loaded here",
        "strive-cli doctor says what it lacks; or --decoder auto",
    ),
    # --- the work went wrong
    "timeout": FailureKind(
        "decoding took longer than is allowed",
        "a longer --decode-timeout with --retry-failed",
    ),
    "crashed": FailureKind(
        "the process that worked on it died",
        "--retry-failed, with fewer --workers if memory is short; --decoder pyav",
    ),
    "out_of_memory": FailureKind(
        "its frames do not fit into the memory of one worker",
        "fewer --frames or a smaller --max-pixels; with --retry-failed on a larger machine",
    ),
    "unexpected": FailureKind(
        "a decoder or scorer failed in a way that nobody foresaw",
        "the message says how; --retry-failed once the cause is mended",
    ),
    "not_cached": FailureKind(
        "it is not in the cache that is read", "strive-cli precompute with the same records"
    ),
    # --- a question has no scores
    "no_text": FailureKind(
        "the question has no text",
        "mend it in the records, or --query question+options where it has options; "
        "it is then scored by itself",
    ),
    "too_long": FailureKind(
        "the question with its video is longer than the policy's context",
        "shorten it in the records, or take fewer --frames or a smaller --max-pixels",
    ),
    "nonfinite": FailureKind(
        "the scorer gives NaN or infinity for it",
        "--dtype float32 or another scorer; --retry-failed tries the same again",
    ),
}


def way_out(kind: str) -> str:
    """Return what a user can do about a kind of failure; one of another version has no line."""
    known = FAILURE_KINDS.get(kind)
    return known.way_out if known else "the message says how; --retry-failed tries it again"
