"""Whether the chunks of an AVI file follow one another.

FFmpeg skips what it does not understand between two chunks, and with it pictures: those that build
on them come out wrong.
"""

import os
from typing import BinaryIO

from strive.errors import DecodeError

_HEADER_BYTES = 12


def check_chunks(file: BinaryIO, name: str) -> None:
    """Follow the chunks of each RIFF part and of its lists of pictures, to the last of them.

    Raises:
        DecodeError: `damaged`.
    """
    size = os.fstat(file.fileno()).st_size
    at = 0
    while at + _HEADER_BYTES <= size:
        kind, length, form = _header(file, at)
        if kind != b"RIFF" or form not in (b"AVI ", b"AVIX"):
            return  # what follows the last part is no concern of the pictures
        _follow(file, name, at + _HEADER_BYTES, min(at + 8 + length, size))
        at += 8 + length + length % 2


def _follow(file: BinaryIO, name: str, at: int, end: int) -> None:
    while at + 8 <= end:
        kind, length, form = _header(file, at)
        if not all(0x20 <= byte < 0x7F for byte in kind) or at + 8 + length > end:
            raise DecodeError("damaged", f"{name}: no chunk begins at byte {at}")
        if kind == b"LIST" and form in (b"movi", b"rec "):
            _follow(file, name, at + _HEADER_BYTES, at + 8 + length)
        at += 8 + length + length % 2


def _header(file: BinaryIO, at: int) -> tuple[bytes, int, bytes]:
    file.seek(at)
    head = file.read(_HEADER_BYTES)
    return head[:4], int.from_bytes(head[4:8], "little"), head[8:]
