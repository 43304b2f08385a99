"""Whether an MPEG transport stream has lost packets of its pictures (ISO/IEC 13818-1).

FFmpeg drops what was lost and decodes on: the pictures that build on it come out wrong.
"""

from typing import BinaryIO

import numpy as np

from strive.errors import DecodeError

SYNC_BYTE = 0x47
PACKET_BYTES = 188
M2TS_PACKET_BYTES = 192  # four bytes of time code before each packet, as on Blu-ray
_BLOCK_PACKETS = 100_000


def check_packets(file: BinaryIO, name: str) -> None:
    """Follow the packets of a file and their counters.

    A counter may jump where a picture that needs no other begins: that is how streams are joined.

    Raises:
        DecodeError: `damaged`.
    """
    last_counters: dict[int, int] = {}
    file.seek(0)
    stride = PACKET_BYTES if file.read(1)[0] == SYNC_BYTE else M2TS_PACKET_BYTES
    file.seek(0)
    while block := file.read(stride * _BLOCK_PACKETS):
        num_packets = len(block) // stride
        packets_NB = np.frombuffer(block, np.uint8, num_packets * stride)
        packets_NB = packets_NB.reshape(num_packets, stride)[:, stride - PACKET_BYTES :]
        _check_block(packets_NB, last_counters, name)


def _check_block(packets_NB: np.ndarray, last_counters: dict[int, int], name: str) -> None:
    flags_N, third_N = packets_NB[:, 1], packets_NB[:, 3]
    if (packets_NB[:, 0] != SYNC_BYTE).any() or (flags_N & 0x80).any():
        raise DecodeError("damaged", f"{name}: a packet of its transport stream is damaged")
    pids_N = (flags_N.astype(np.int32) & 0x1F) << 8 | packets_NB[:, 2]
    starts_N = (flags_N & 0x40) != 0
    has_fields_N = (third_N & 0x20) != 0
    payload_N = 4 + np.where(has_fields_N, 1 + packets_NB[:, 4].astype(np.int64), 0)
    fields_N = np.where(has_fields_N & (packets_NB[:, 4] > 0), packets_NB[:, 5], 0)
    # Discontinuity indicator, random access indicator.
    may_jump_N = ((fields_N & 0x80) != 0) | (((fields_N & 0x40) != 0) & starts_N)
    is_picture_N = starts_N & _begins_picture(packets_NB, payload_N)
    pictures = {*np.unique(pids_N[is_picture_N]).tolist(), *last_counters}
    for pid in pictures:
        of_pid = np.flatnonzero((pids_N == pid) & ((third_N & 0x10) != 0))
        if not len(of_pid):
            continue
        counters = (third_N[of_pid] & 0x0F).astype(np.int64)
        first = last_counters.get(pid, int(counters[0]))
        steps = np.diff(counters, prepend=first) % 16
        if ((steps > 1) & ~may_jump_N[of_pid]).any():
            raise DecodeError("damaged", f"{name}: packets of its transport stream are missing")
        if (starts_N[of_pid] & ~is_picture_N[of_pid]).any():
            raise DecodeError("damaged", f"{name}: a packet of its pictures is damaged")
        last_counters[pid] = int(counters[-1])


def _begins_picture(packets_NB: np.ndarray, payload_N: np.ndarray) -> np.ndarray:
    """Whether the payload begins a PES packet of video: 00 00 01 E0 to EF, or FD."""
    at_N = np.minimum(payload_N, PACKET_BYTES - 4)
    rows_N = np.arange(len(packets_NB))
    head_N4 = np.stack([packets_NB[rows_N, at_N + i] for i in range(4)], axis=1)
    is_video_N = ((head_N4[:, 3] & 0xF0) == 0xE0) | (head_N4[:, 3] == 0xFD)
    return np.asarray((head_N4[:, :3] == (0, 0, 1)).all(axis=1) & is_video_N)
