"""Whether a file is whole, as far as its container can tell without decoding.

A download that broke off often decodes without complaint up to where it ends, and its frames would
then pass for those of the whole video. Some codecs (VP9 first of all) show damaged data as wrong
pictures and report nothing, so what a container offers is used: stated lengths, chained sizes,
checksums. Containers that offer nothing cannot be judged.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from strive.errors import DecodeError
from strive.video.ebml import check_segment, segment_end
from strive.video.fragments import end_of_fragments
from strive.video.mpegts import M2TS_PACKET_BYTES, PACKET_BYTES, SYNC_BYTE, check_packets
from strive.video.riff import check_chunks

_HEAD_BYTES = 1 << 16
# ASF's File Properties Object, and the flag of a broadcast (its sizes mean nothing).
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_BROADCAST = 1


def check_complete(path: Path, container: str) -> None:
    """Compare a file with what its container says about it.

    Raises:
        DecodeError: `truncated`, the file ends before its header says; `damaged`, its parts do not
            follow one another as their sizes say, or a part differs from its checksum.
    """
    if container not in _STATED_SIZE:
        return
    size = path.stat().st_size
    with path.open("rb") as file:
        stated = _STATED_SIZE[container](file, size)
        if stated is not None and stated > size:
            raise DecodeError(
                "truncated", f"{path.name} has {size} bytes; its header speaks of {stated}"
            )
        if container in _STRUCTURE:
            _STRUCTURE[container](file, path.name)


def _avi_size(file: BinaryIO, size: int) -> int | None:
    head = file.read(8)
    stated = int.from_bytes(head[4:], "little")
    return stated + 8 if head.startswith(b"RIFF") and 0 < stated < 0xFFFFFFFF else None


def _mpegts_size(file: BinaryIO, size: int) -> int | None:
    """Whole packets; a recording that ends within one has lost the end of its last picture."""
    packet = PACKET_BYTES if file.read(1)[0] == SYNC_BYTE else M2TS_PACKET_BYTES
    return -(-size // packet) * packet


def _asf_size(file: BinaryIO, size: int) -> int | None:
    head = file.read(_HEAD_BYTES)
    at = head.find(_ASF_FILE_PROPERTIES)
    if at < 0 or at + 92 > len(head):
        return None
    (stated,) = struct.unpack_from("<Q", head, at + 40)
    (flags,) = struct.unpack_from("<I", head, at + 88)
    return None if flags & _ASF_BROADCAST else stated


def _flv_size(file: BinaryIO, size: int) -> int | None:
    head = file.read(_HEAD_BYTES)
    at = head.find(b"filesize\x00")  # a number of the file's own metadata
    if at < 0 or at + 17 > len(head):
        return None
    (stated,) = struct.unpack_from(">d", head, at + 9)
    return int(stated) if 0 < stated < 2**53 else None


_STATED_SIZE: dict[str, Callable[[BinaryIO, int], int | None]] = {
    "avi": _avi_size,
    "matroska": segment_end,
    "mpegts": _mpegts_size,
    "asf": _asf_size,
    "flv": _flv_size,
    "mov": end_of_fragments,
}
_STRUCTURE: dict[str, Callable[[BinaryIO, str], None]] = {
    "avi": check_chunks,
    "matroska": check_segment,
    "mpegts": check_packets,
}
