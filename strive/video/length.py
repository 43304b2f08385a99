"""How much of a file is there, against what its container states.

A download that broke off often decodes without complaint up to where it ends, and its frames would
then pass for those of the whole video.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from strive.errors import ConfigError, DecodeError
from strive.video.ebml import segment_end
from strive.video.mov import mov_bytes

_HEAD_BYTES = 1 << 16
# ASF's File Properties Object, and the flag of a broadcast (its sizes mean nothing).
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_BROADCAST = 1


@dataclass(frozen=True, slots=True)
class MaxMissing:
    """How much of a video's stated length may be missing: the larger of the two."""

    seconds: float = 1.0
    share: float = 0.02

    def allows(self, missing_seconds: float, stated_seconds: float) -> bool:
        """Whether so much may be missing."""
        return missing_seconds <= max(self.seconds, self.share * stated_seconds)


DEFAULT_MAX_MISSING = MaxMissing()


def parse_max_missing(text: str | None) -> MaxMissing:
    """Read `5s`, `10%` or `any`; None is the default, the larger of one second and 2 %.

    Raises:
        ConfigError: it is none of these.
    """
    if text is None:
        return DEFAULT_MAX_MISSING
    if text == "any":
        return MaxMissing(float("inf"), 0.0)
    number, unit = text[:-1], text[-1:]
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if unit not in ("s", "%") or not 0 <= value < float("inf"):
        raise ConfigError(f"--max-missing {text}; write seconds (5s), a share (10%) or any")
    return MaxMissing(value, 0.0) if unit == "s" else MaxMissing(0.0, value / 100)


def check_length(
    path: Path,
    container: str,
    stated_seconds: float | None,
    reached_seconds: float,
    max_missing: MaxMissing,
) -> list[str]:
    """Compare what was reached with what is stated, and return what is to be noted.

    Raises:
        DecodeError: `incomplete`; more is missing than may be, and bytes are short or uncounted.
    """
    if container not in _STATED_BYTES:
        return ["no_stated_length"]
    size = path.stat().st_size
    with path.open("rb") as file:
        start, stated_bytes = _STATED_BYTES[container](file, size)
    if container in _COUNTED_BY_BYTES and stated_bytes is not None and stated_bytes > size > start:
        if stated_bytes - size <= max(_SLOPPY_BYTES, 0.02 * stated_bytes):
            stated_bytes = size  # many writers get their own sizes wrong by a little
        else:
            by_bytes = reached_seconds * (stated_bytes - start) / (size - start)
            stated_seconds = max(stated_seconds or 0.0, by_bytes)
    if not stated_seconds or (container == "mov" and stated_bytes is None):
        return ["no_stated_length"]
    missing = stated_seconds - reached_seconds
    is_whole = stated_bytes is not None and stated_bytes <= size
    if is_whole and not DEFAULT_MAX_MISSING.allows(missing, stated_seconds):
        return ["stated_longer"]
    if not is_whole and not max_missing.allows(missing, stated_seconds):
        found = "" if stated_bytes is None else f" and has {size} of {stated_bytes} bytes"
        raise DecodeError(
            "incomplete",
            f"{path.name} ends at {reached_seconds:.2f} of {stated_seconds:.2f} s{found}; "
            "--max-missing says how much may be missing",
        )
    return ["ends_early"] if missing > _ROUNDED_SECONDS else []


def breaks_off(path: Path, pid: int) -> tuple[bool, bool]:
    """Whether a transport stream ends within a packet, and within a picture of its stream `pid`.

    Packets lie 188, 192 or 204 bytes apart and begin with 0x47, whatever lies in front of them all.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 9 * 204))
        tail = file.read()
    for at in range(len(tail) - 1, max(len(tail) - 188, 7 * 204), -1):
        if any(set(tail[at - 7 * step : at + 1 : step]) == {0x47} for step in (188, 192, 204)):
            head = int.from_bytes(tail[at : at + 4].ljust(4, b"\0"), "big")
            # It is of that stream, begins nothing new, and holds something.
            return True, (head >> 8 & 0x1FFF, head & 0x400010) == (pid, 0x10)
    return False, False


_ROUNDED_SECONDS = 0.1  # by so much writers round what they state
# FFmpeg gives no time for a file of these that was cut.
_COUNTED_BY_BYTES = ("avi", "asf")
_SLOPPY_BYTES = 256


# Each returns where the pictures begin, and where they end as stated; None if that is not stated.


def _matroska_bytes(file: BinaryIO, size: int) -> tuple[int, int | None]:
    return 0, segment_end(file, size)


def _avi_bytes(file: BinaryIO, size: int) -> tuple[int, int | None]:
    """A long file has several lists of pictures, in one RIFF part each."""
    at, start, end = 0, 0, None
    while True:
        kind, length, form = _chunk(file, at)
        if kind != b"RIFF" or form not in (b"AVI ", b"AVIX") or not 0 < length < 0xFFFFFFFF:
            return start, end
        end, inner = at + 8 + length, at + 12
        while inner + 12 <= min(end, size):
            kind, inner_length, form = _chunk(file, inner)
            if kind == b"LIST" and form == b"movi":
                start = start or inner
                end = inner + 8 + inner_length if inner_length > 4 else end
                break
            inner += 8 + inner_length + inner_length % 2
        at += 8 + length + length % 2


def _chunk(file: BinaryIO, at: int) -> tuple[bytes, int, bytes]:
    file.seek(at)
    head = file.read(12)
    return head[:4], int.from_bytes(head[4:8], "little"), head[8:]


def _asf_bytes(file: BinaryIO, size: int) -> tuple[int, int | None]:
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    at = head.find(_ASF_FILE_PROPERTIES)
    if at < 0 or at + 92 > len(head):
        return 0, None
    (header_bytes,) = struct.unpack_from("<Q", head, 16)
    (stated,) = struct.unpack_from("<Q", head, at + 40)
    (flags,) = struct.unpack_from("<I", head, at + 88)
    return header_bytes, None if flags & _ASF_BROADCAST else stated


def _flv_bytes(file: BinaryIO, size: int) -> tuple[int, int | None]:
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    at = head.find(b"filesize\x00")  # a number of the file's own metadata
    if at < 0 or at + 17 > len(head):
        return 0, None
    (stated,) = struct.unpack_from(">d", head, at + 9)
    return 0, int(stated) if 0 < stated < 2**53 else None


_STATED_BYTES: dict[str, Callable[[BinaryIO, int], tuple[int, int | None]]] = {
    "mov": mov_bytes,
    "matroska": _matroska_bytes,
    "flv": _flv_bytes,
    "avi": _avi_bytes,
    "asf": _asf_bytes,
}
