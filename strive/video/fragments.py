"""Whether the fragments of a fragmented MP4 are whole (ISO/IEC 14496-12).

FFmpeg passes over a box that it does not know, and with it a fragment's pictures.
"""

from typing import BinaryIO

from strive.errors import DecodeError

_TOP = frozenset(
    (
        *(b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"ssix", b"emsg", b"prft"),
        *(b"free", b"skip", b"wide", b"uuid", b"meta", b"pdin", b"pssh"),
    )
)
_IN_MOOF = frozenset((b"mfhd", b"traf", b"meta", b"uuid", b"free", b"skip", b"pssh"))
_IN_TRAF = frozenset(
    (
        *(b"tfhd", b"tfdt", b"trun", b"sdtp", b"saiz", b"saio", b"senc", b"sbgp", b"sgpd"),
        *(b"subs", b"meta", b"uuid", b"free", b"skip"),
    )
)
_MAX_MOOF_BYTES = 64 << 20


def end_of_fragments(file: BinaryIO, size: int) -> int | None:
    """Return where the last box of a fragmented MP4 says that it ends; None for other files.

    Raises:
        DecodeError: `damaged`; its boxes do not follow one another, or are of unknown kinds.
    """
    at, is_fragmented = 0, False
    while at < size:
        file.seek(at)
        head = file.read(16)
        length, kind, header_bytes = _box(head, 0)
        if length == 0 and len(head) >= 8:  # to the end of the file
            return None
        if length < 8 or kind not in _TOP:
            if is_fragmented:
                raise DecodeError("damaged", f"no known box begins at byte {at}")
            return None
        if kind == b"moof":
            is_fragmented = True
            if length <= _MAX_MOOF_BYTES and at + length <= size:
                file.seek(at + header_bytes)
                _check_moof(file.read(length - header_bytes), at)
        at += length
    return at if is_fragmented else None


def _check_moof(data: bytes, where: int) -> None:
    for kind, start, end in _boxes(data, 0, len(data), _IN_MOOF, where):
        if kind == b"traf":
            _boxes(data, start, end, _IN_TRAF, where)


def _boxes(
    data: bytes, at: int, end: int, known: frozenset[bytes], where: int
) -> list[tuple[bytes, int, int]]:
    found = []
    while at < end:
        length, kind, header_bytes = _box(data, at)
        if kind not in known or length < header_bytes or at + length > end:
            raise DecodeError("damaged", f"the fragment at byte {where} is damaged")
        found.append((kind, at + header_bytes, at + length))
        at += length
    return found


def _box(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Return a box's length, kind and bytes of both."""
    length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
    if length == 1 and at + 16 <= len(data):
        return int.from_bytes(data[at + 8 : at + 16], "big"), kind, 16
    return length, kind, 8
