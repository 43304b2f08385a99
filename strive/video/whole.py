"""The slow way: a file is decoded from end to end, and what comes out is what it shows.

It serves wherever the packet index does not tell the pictures: hidden or packed frames, field
pairs, stamps that lack or lie, damage. One decoding counts the pictures and finds what is damaged;
another picks by their ordinals.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import av
import av.error
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.frame import PictureType

from strive.errors import DecodeError
from strive.video import orientation
from strive.video.length import DEFAULT_MAX_MISSING, MaxMissing
from strive.video.lifetime import ask_for_time
from strive.video.opened import open_container, packets_of, report_damage, video_stream
from strive.video.source import (
    MAX_STEP_SECONDS,
    STREAMS_OF_PACKETS,
    VideoSource,
    has_gaps,
    rate_and_duration,
    read_index,
)

# Supplemental information, which players pass over where it is malformed and a decoder that reports
# damage does not. Of HEVC what is filtered has start codes, however it came.
_SEI_FILTERS = {
    "h264": "filter_units=remove_types=6",
    "hevc": "hevc_mp4toannexb,filter_units=remove_types=39|40",
}


@dataclass(frozen=True, slots=True)
class _Shown:
    """A picture as it came out: its stamp, the packet that it came from, what it is."""

    pts: int | None
    packet: int
    starts_group: bool
    is_corrupt: bool


def probe(path: Path, max_missing: MaxMissing = DEFAULT_MAX_MISSING) -> VideoSource:
    """Return a file's facts: from its packets where they tell its pictures, else by decoding it.

    Raises:
        DecodeError: it is no local video file, has no frames, or is incomplete.
    """
    source = read_index(path, max_missing)
    return source if source.way == "index" else decode_whole(source)


def decode_whole(source: VideoSource) -> VideoSource:
    """Return a source's facts as decoding all of it finds them; its `way` is `decode`.

    Raises:
        DecodeError: `no_frames`; not one picture can be decoded.
    """
    ask_for_time(min(source.reached_seconds, source.num_packets) / 2)
    shown, bad_packets, first = _decode_all(source, reports_damage=True)
    if bad_packets:
        if source.codec in _SEI_FILTERS:
            with suppress(DecodeError):  # that of the filter: what was found holds
                bad_packets &= _decode_all(source, reports_damage=True, takes_sei=False)[1]
        # Once more as players do it, who conceal what is damaged and show it.
        shown, _, first = _decode_all(source, reports_damage=False)
    if first is None:
        raise DecodeError("no_frames", f"{source.path.name} has no picture that can be decoded")
    if source.lacks_end:
        bad_packets.add(source.num_packets - 1)
    is_damaged_N = _damaged(shown, bad_packets)
    end = _whole_packets(source, bad_packets)
    # Where the file ends within a picture, the video ends before that is shown.
    for ordinal in range(1, len(shown)):
        if shown[ordinal].packet >= end and is_damaged_N[ordinal]:
            del shown[ordinal:]
            break
    orientation_number, is_exact = orientation.of_picture(first)
    pts_N, is_mended = _times([picture.pts for picture in shown], source)
    fps, duration = rate_and_duration(source.stated_fps, pts_N, len(shown), source.seconds_per_tick)
    first_key = next((picture.packet for picture in shown if picture.starts_group), 0)
    # What a late start cannot decode is no damage.
    lead_end = 0 if source.begins_with_keyframe else first_key
    notes = [note for note in source.notes if note != "late_start"]
    if first_key > 0 and not source.begins_with_keyframe:
        notes.append("late_start")
    if is_mended:
        notes.append("times_mended")
    if pts_N is not None and has_gaps(pts_N, source.container):
        notes.append("gaps")
    if not is_exact:
        notes.append("turned_by_an_odd_angle")
    if end < source.num_packets:
        notes.append("ends_abruptly")
    empty = np.zeros(0, np.int64)
    return replace(
        source,
        way="decode",
        num_frames=len(shown),
        pts_N=pts_N,
        decode_rank_N=empty,
        keyframes_K=empty,
        seek_stamps_K=empty,
        fps=fps,
        duration_seconds=duration,
        orientation=orientation_number,
        notes=tuple(dict.fromkeys(notes)),  # the packets may have told some
        is_damaged_N=is_damaged_N[: len(shown)],
        has_damage=bool(is_damaged_N[: len(shown)].any())
        or any(lead_end <= bad < end for bad in bad_packets),
    )


def _whole_packets(source: VideoSource, bad_packets: set[int]) -> int:
    """Return how many packets there are before the one, if any, within which the file ends."""
    end = source.num_packets
    most = 2 if source.container == "mpegts" else 1  # see `_flagged_bad`
    while end - 1 in bad_packets:
        end -= 1
    return end if source.num_packets - end <= most else source.num_packets


def pictures_at(source: VideoSource, indices_F: np.ndarray) -> Iterator[av.VideoFrame]:
    """Decode the whole file again and yield the pictures of some ordinals (increasing).

    Raises:
        DecodeError: `frames_missing`; the file is not as it was.
    """
    wanted = iter(indices_F.tolist())
    index = next(wanted, None)
    for ordinal, (picture, _) in enumerate(_pictures(source, set(), False)):
        if ordinal == index:
            yield picture
            index = next(wanted, None)
        if index is None:
            return
    raise DecodeError(
        "frames_missing", f"frame {index} of {source.num_frames} did not come a second time"
    )


def _decode_all(
    source: VideoSource, *, reports_damage: bool, takes_sei: bool = True
) -> tuple[list[_Shown], set[int], av.VideoFrame | None]:
    """Return all pictures, the packets with which something is wrong, and the first picture."""
    bad: set[int] = set()
    shown: list[_Shown] = []
    first = None
    for picture, packet in _pictures(source, bad, reports_damage, takes_sei):
        first = first or picture
        starts_group = bool(picture.key_frame) and picture.pict_type == PictureType.I
        shown.append(_Shown(picture.pts, packet, starts_group, picture.is_corrupt))
    return shown, bad, first


def _pictures(
    source: VideoSource, bad: set[int], reports_damage: bool, takes_sei: bool = True
) -> Iterator[tuple[av.VideoFrame, int]]:
    """Yield every picture with the number of its packet; what goes wrong is added to `bad`."""
    with open_container(source.path) as opened:
        stream = video_stream(opened, source.path.name)
        if reports_damage:
            report_damage(stream)
        context = stream.codec_context
        sei_filter = None if takes_sei else _sei_filter(stream)
        number = -1
        flagged: list[int] = []
        keyframes: set[int] = set()
        packets = packets_of(opened, stream)
        has_more = True
        while has_more:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError:
                packet = None  # the file cannot be read on: players end here
            has_more = packet is not None
            if packet is not None:
                number += 1
                packet.opaque = number
                if packet.is_keyframe:
                    keyframes.add(number)
                if packet.is_corrupt:
                    flagged.append(number)
                if source.is_damaged_at(-1 if packet.pos is None else packet.pos):
                    bad.add(number)
            try:
                parts: Sequence[av.Packet | None] = (packet,)
                if sei_filter is not None and packet is not None:
                    parts = sei_filter.filter(packet)
                    if not parts:
                        bad.add(number)  # nothing in it was readable as units
                for part in parts:
                    for picture in context.decode(part):
                        came_from = picture.opaque
                        yield picture, came_from if isinstance(came_from, int) else number
            except av.error.FFmpegError:
                bad.add(number)
    for position in flagged:
        bad |= _flagged_bad(position, bad, keyframes, source)


def _sei_filter(stream: av.VideoStream) -> BitStreamFilterContext:
    """Return what takes the supplemental information out of a stream's packets."""
    context = stream.codec_context
    found = BitStreamFilterContext(_SEI_FILTERS[context.name], stream)
    if context.name == "hevc" and (context.extradata or b"").startswith(b"\1"):
        context.extradata = None  # it says that units have lengths in front
    return found


def _flagged_bad(
    position: int, bad: set[int], keyframes: set[int], source: VideoSource
) -> set[int]:
    """Return what is bad where the demuxer flags a packet as corrupt.

    In a transport stream it flags the packet before the one in which a counter jumped, as the
    parser holds one back. A jump right before a keyframe is how recordings are joined.
    """
    if source.container != "mpegts":
        return {position}
    pair = {position, position + 1}
    is_join = position + 2 in keyframes and not pair & bad
    return set() if is_join else pair & set(range(source.num_packets))


def _damaged(shown: list[_Shown], bad_packets: set[int]) -> np.ndarray:
    """Mark the pictures that are corrupt, or have a bad packet since the keyframe before them."""
    bad = np.array(sorted(bad_packets), np.int64)
    is_damaged_N = np.zeros(len(shown), bool)
    start = 0
    for ordinal, picture in enumerate(shown):
        if picture.starts_group:
            start = picture.packet
        low, high = np.searchsorted(bad, [start, picture.packet + 1])
        is_damaged_N[ordinal] = picture.is_corrupt or high > low
    return is_damaged_N


def _times(stamps: list[int | None], source: VideoSource) -> tuple[np.ndarray | None, bool]:
    """Return stamps in ticks that rise, and whether they had to be mended; None if none can be."""
    known = [stamp for stamp in stamps if stamp is not None]
    steps = np.diff(np.array(known, np.int64))
    most = int(MAX_STEP_SECONDS / source.seconds_per_tick)
    jumps = source.container in STREAMS_OF_PACKETS and bool((steps > most).any())
    if len(known) == len(stamps) and not (steps < 0).any() and not jumps:
        return np.array(known, np.int64), False
    # AVI and raw streams count their pictures: the rate is all there is.
    usual = steps[(steps > 0) & (steps <= most)]
    if source.container == "avi" or not known or not len(usual):
        return None, False
    mean = float(usual.mean())
    times, last = [0.0], stamps[0]
    for stamp in stamps[1:]:
        step = None if stamp is None or last is None else stamp - last
        times.append(times[-1] + (step if step is not None and 0 < step <= most else mean))
        last = None if stamp is None else stamp
    return np.rint(times).astype(np.int64), True
