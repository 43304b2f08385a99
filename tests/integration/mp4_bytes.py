"""Changes of single fields in the bytes of video files."""

import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path


def moved(data: bytes, inserted: bytes) -> bytes:
    """Insert a box after an MP4's first one, and move its chunk offsets along."""
    start = int.from_bytes(data[:4], "big")
    grown = bytearray(data[:start] + inserted + data[start:])
    _shift_chunks(grown, len(inserted))
    return bytes(grown)


def _shift_chunks(data: bytearray, by: int) -> None:
    at = data.index(b"stco") + 8
    (count,) = struct.unpack_from(">I", data, at)
    for i in range(count):
        (offset,) = struct.unpack_from(">I", data, at + 4 + 4 * i)
        struct.pack_into(">I", data, at + 4 + 4 * i, offset + by)


def _grown(data: bytes, old: bytes, new: bytes, boxes: Iterable[bytes]) -> bytes:
    """Replace a box of an MP4 whose index comes last, and correct the boxes around it."""
    grown = bytearray(data.replace(old, new, 1))
    for name in boxes:
        at = grown.index(name) - 4
        (length,) = struct.unpack_from(">I", grown, at)
        struct.pack_into(">I", grown, at, length + len(new) - len(old))
    return bytes(grown)


def elsewhere(data: bytes, secret: Path, kind: bytes) -> bytes:
    """Say in a MOV that its pictures lie in another file."""
    at = data.index(b"dref") - 4
    old = data[at : at + int.from_bytes(data[at : at + 4], "big")]
    reference = b"file://" + os.fsencode(secret) + b"\0"
    if kind == b"alis":  # an alias record of a Macintosh: volume, name, levels, absolute path
        path = b"disk" + os.fsencode(secret).replace(b"/", b":")
        names = b"\x04" + b"disk".ljust(27, b"\0") + bytes(12) + b"\x01" + b"x".ljust(63, b"\0")
        levels = bytes(16) + struct.pack(">HH", 1, 1) + bytes(16)
        path += bytes(len(path) % 2)
        reference = bytes(10) + names + levels + struct.pack(">HH", 2, len(path)) + path
        reference += struct.pack(">hH", -1, 0) + bytes(64)
    entry = struct.pack(">I4sI", 12 + len(reference), kind, 0) + reference
    new = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    return _grown(data, old, new, (b"dinf", b"minf", b"mdia", b"trak", b"moov"))


def resized(data: bytes, size: int) -> bytes:
    """Claim another picture size in an MP4's sample description."""
    resized = bytearray(data)
    at = data.index(b"avc1", data.index(b"stsd")) + 28
    struct.pack_into(">HH", resized, at, size, size)
    return bytes(resized)


def jpeg_resized(data: bytes, size: int) -> bytes:
    """Claim another picture size in every JPEG of a file."""
    resized = bytearray(data)
    at = -1
    while (at := resized.find(b"\xff\xc0\x00\x11", at + 1)) >= 0:
        struct.pack_into(">HH", resized, at + 5, size, size)
    return bytes(resized)


def png_resized(data: bytes, size: int) -> bytes:
    """Claim another picture size in every PNG of a file, with the right checksum."""
    resized = bytearray(data)
    at = -1
    while (at := resized.find(b"IHDR", at + 1)) >= 0:
        struct.pack_into(">II", resized, at + 4, size, size)
        struct.pack_into(">I", resized, at + 17, zlib.crc32(resized[at : at + 17]))
    return bytes(resized)
