"""What everything does with files: what a file is known by."""

import os
from pathlib import Path
from typing import TypeVar

PathOrText = TypeVar("PathOrText", str, Path)


def expanded(path: PathOrText) -> PathOrText:
    """Return a path with a leading `~` or `~name` replaced by that home, if there is one."""
    try:
        return type(path)(Path(path).expanduser()) if str(path).startswith("~") else path
    except RuntimeError:  # no such user: a file may have that name
        return path


def modified_ns(status: os.stat_result) -> int:
    """Return a file's time of modification in nanoseconds since 1970, as 64 bits with a sign.

    A time outside the years 1678 to 2261 wraps around: it is only ever compared with another, and
    two that differ stay different.
    """
    return (status.st_mtime_ns + (1 << 63)) % (1 << 64) - (1 << 63)
