"""The skeleton of Matroska and WebM files (RFC 9559): sizes that chain, and checksums.

A file is an EBML header and a segment; a segment is a row of elements, most of them clusters of
frames. An element is an id, a size and its content, and may begin with a CRC-32 of the rest of it.
"""

import re
import zlib
from pathlib import Path
from typing import BinaryIO

_HEAD_BYTES = 1 << 16
_EBML = 0x1A45DFA3
_SEGMENT = 0x18538067
_CLUSTER = 0x1F43B675
_CRC_32 = 0xBF
_PIXEL_CROP = re.compile(rb"\x54[\xaa\xbb\xcc\xdd][\x81-\x88]")  # four ids, with a size
_MAX_CHECKED_BYTES = 64 << 20  # of one element; FFmpeg's clusters have 5 MiB at most


def segment_end(file: BinaryIO, size: int) -> int | None:
    """Return where a file's segment says that it ends; None if it does not say."""
    bounds = _segment(file)
    return None if bounds is None else bounds[1]


def damaged_ranges(path: Path) -> tuple[tuple[int, int], ...]:
    """Return the clusters whose content differs from their checksum: (first byte, end)."""
    found = []
    with path.open("rb") as file:
        at, end = _segment(file) or (0, 0)
        end = min(end, path.stat().st_size)
        while at < end:
            file.seek(at)
            element = _header(file.read(12), 0)
            kind, length, header_bytes = element or (0, None, 0)
            if length is None:
                break  # written live, or lost: nothing after this can be followed
            start, at = at + header_bytes, at + header_bytes + length
            if kind == _CLUSTER and length <= _MAX_CHECKED_BYTES and at <= end:
                file.seek(start)
                if not _agrees(file.read(length)):
                    found.append((start, at))
    return tuple(found)


def may_crop(path: Path) -> bool:
    """Whether a file is a Matroska file whose head may say to crop its pictures."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).partition(_CLUSTER.to_bytes(4, "big"))[0]
    return head.startswith(_EBML.to_bytes(4, "big")) and bool(_PIXEL_CROP.search(head))


def _segment(file: BinaryIO) -> tuple[int, int] | None:
    """Return where the segment's content begins and ends; None if unknown."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    ebml = _header(head, 0)
    if ebml is None or ebml[0] != _EBML or ebml[1] is None:
        return None
    at = ebml[2] + ebml[1]
    segment = _header(head, at)
    if segment is None or segment[0] != _SEGMENT or segment[1] is None:
        return None
    return at + segment[2], at + segment[2] + segment[1]


def _agrees(data: bytes) -> bool:
    """Whether an element agrees with the checksum at its beginning, if it has one."""
    first = _header(data, 0)
    if first is None or first[0] != _CRC_32 or first[1] != 4:
        return True
    stated = int.from_bytes(data[first[2] : first[2] + 4], "little")
    return zlib.crc32(memoryview(data)[first[2] + 4 :]) == stated


def _header(data: bytes, at: int) -> tuple[int, int | None, int] | None:
    """Return an element's id, size (None: unknown) and bytes of both; None if there is none."""
    if at >= len(data) or data[at] < 0x10:
        return None
    id_bytes = 9 - data[at].bit_length()
    kind = int.from_bytes(data[at : at + id_bytes], "big")
    at += id_bytes
    if at >= len(data) or data[at] == 0:
        return None
    num_bytes = 9 - data[at].bit_length()
    mask = (1 << 7 * num_bytes) - 1
    length = int.from_bytes(data[at : at + num_bytes], "big") & mask
    return kind, (None if length == mask else length), id_bytes + num_bytes
