"""The boxes of MP4 and QuickTime files that say how much there is and which way up it is shown."""

import struct
from pathlib import Path
from typing import BinaryIO

_MOVIE_HEAD_BYTES = 1 << 20  # headers of tracks come before their tables, mostly
_IDENTITY = (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
# Where the matrix lies behind a box's name, by the box's version.
_MATRIX_AT = {b"mvhd": (36, 48), b"tkhd": (40, 52)}


def boxes_of(file: BinaryIO, size: int) -> list[tuple[bytes, int, int]]:
    """Return a file's top boxes while they follow one another: (kind, first byte, stated end)."""
    found, at = [], 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:  # to the end of the file
            length = size - at
        if length < 8:
            break
        found.append((kind, at, at + length))
        at += length
    return found


def mov_bytes(file: BinaryIO, size: int) -> tuple[int, int | None]:
    """Return where the pictures begin and where they end as stated: None if nothing is stated.

    What is appended behind the last box of pictures is no concern; fragments state nothing.
    """
    boxes = boxes_of(file, size)
    if any(kind == b"moof" for kind, _, _ in boxes):
        return 0, None
    return 0, max((end for kind, _, end in boxes if kind == b"mdat"), default=None)


def has_matrix(path: Path) -> bool:
    """Whether a file is an MP4 or QuickTime file whose pictures are turned, mirrored or moved."""
    head = _movie_head(path)
    for name, offsets in _MATRIX_AT.items():
        at = -1
        while (at := head.find(name, at + 1)) >= 0:
            start = at + 4 + offsets[head[at + 4 : at + 5] == b"\1"]
            if start + 36 <= len(head) and struct.unpack_from(">9i", head, start) != _IDENTITY:
                return True
    return False


def names_box(path: Path, name: bytes) -> bool:
    """Whether a file is an MP4 or QuickTime file whose head names a box, such as `elst`."""
    return name in _movie_head(path)


def _movie_head(path: Path) -> bytes:
    with path.open("rb") as file:
        for kind, start, end in boxes_of(file, path.stat().st_size):
            if kind == b"moov":
                file.seek(start)
                return file.read(min(end - start, _MOVIE_HEAD_BYTES))
    return b""
