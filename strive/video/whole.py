"""The slow way: a file is decoded from end to end, and what comes out is what it shows.

It serves wherever the packet index does not tell the pictures: hidden or packed frames, field
pairs, stamps that lack or lie, damage. One decoding counts the pictures and finds what is damaged;
another picks by their ordinals.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import av
import av.error
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.frame import PictureType

from strive.errors import DecodeError
from strive.video.containers import open_container, packets_of, report_damage, video_stream
from strive.video.resize import orientation_of
from strive.video.source import (
    DEFAULT_MAX_MISSING,
    MAX_STEP_SECONDS,
    NO_INDICES,
    STREAMS_OF_PACKETS,
    MaxMissing,
    VideoSource,
    has_gaps,
    lies_in,
    read_index,
)
from strive.video.worker import ask_for_time

# Supplemental information, which players pass over where it is malformed and a decoder that reports
# damage does not. Of HEVC what is filtered has start codes, however it came.
_SEI_FILTERS = {
    "h264": "filter_units=remove_types=6",
    "hevc": "hevc_mp4toannexb,filter_units=remove_types=39|40",
}

MOST_DISORDERED = 16  # places by which codecs move a picture at most


@dataclass(frozen=True, slots=True)
class _Shown:
    """A picture as it came out: its stamps, the packet that it came from, what it is."""

    pts: int | None
    dts: int | None
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
    orientation_number, is_exact = orientation_of(first)
    stamps = chosen_stamps([(picture.pts, picture.dts) for picture in shown])
    pts_N, is_mended = _times(stamps, source)
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
    return replace(
        source,
        way="decode",
        num_frames=len(shown),
        pts_N=pts_N,
        decode_rank_N=NO_INDICES,
        keyframes_K=NO_INDICES,
        seek_stamps_K=NO_INDICES,
        orientation=orientation_number,
        notes=tuple(dict.fromkeys(notes)),  # the packets may have told some
        is_damaged_N=is_damaged_N[: len(shown)],
        has_damage=bool(is_damaged_N[: len(shown)].any())
        or any(lead_end <= bad < end for bad in bad_packets),
    )


def _whole_packets(source: VideoSource, bad_packets: set[int]) -> int:
    """Return how many packets there are before the one, if any, within which the file ends."""
    end = source.num_packets
    # A demuxer that looks for the end of a picture in what is left flags those before it, too.
    most = {"mpegts": 2, "mpeg": 3}.get(source.container, 1)
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
        shown.append(_Shown(picture.pts, picture.dts, packet, starts_group, picture.is_corrupt))
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
        sei_filter = None
        if not takes_sei:
            sei_filter = BitStreamFilterContext(_SEI_FILTERS[context.name], stream)
            if context.name == "hevc" and (context.extradata or b"").startswith(b"\1"):
                context.extradata = None  # it says that units have lengths in front
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
                if packet.pos is not None and lies_in(source.damaged_bytes, packet.pos):
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
        if source.container != "mpegts":
            bad.add(position)
            continue
        # In a transport stream the demuxer flags the packet before the one in which a counter
        # jumped, as the parser holds one back. A jump right before a keyframe is how recordings are
        # joined.
        pair = {position, position + 1}
        if position + 2 not in keyframes or pair & bad:
            bad |= pair & set(range(source.num_packets))


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
    most = None
    if source.container in STREAMS_OF_PACKETS:
        most = int(MAX_STEP_SECONDS / source.seconds_per_tick)
    known = np.array([stamp for stamp in stamps if stamp is not None], np.int64)
    steps = np.diff(known)
    jumps = most is not None and bool((steps > most).any())
    # An AVI numbers its chunks, of which one may hold two pictures; elsewhere equal stamps stand.
    falls = (steps <= 0) if source.container == "avi" else (steps < 0)
    if len(known) == len(stamps) and not falls.any() and not jumps:
        return known, False
    mended_N = mended_times(stamps, most)
    return mended_N, mended_N is not None


def chosen_stamps(stamps: Sequence[tuple[int | None, int | None]]) -> list[int | None]:
    """Choose of each picture's stamps (pts, dts) the one that tells when it is shown.

    Presentation stamps where they rise; else decode stamps where those do, as they come out in the
    order of showing; else whichever of the two has failed to rise less often so far, by which
    FFmpeg's program goes (`guess_correct_pts` of libavcodec).
    """
    all_pts, all_dts = [pts for pts, _ in stamps], [dts for _, dts in stamps]
    if None not in all_pts and _rise(all_pts):
        return all_pts
    if any(dts is not None for dts in all_dts) and _rise(all_dts):
        return all_dts
    chosen: list[int | None] = []
    last_pts, last_dts, num_bad_pts, num_bad_dts = -(1 << 63), -(1 << 63), 0, 0
    for pts, dts in stamps:
        if dts is not None:
            num_bad_dts += dts <= last_dts
        if pts is not None:
            num_bad_pts += pts <= last_pts
        takes_pts = pts is not None and (num_bad_pts <= num_bad_dts or dts is None)
        last_dts = dts if dts is not None else pts if pts is not None else last_dts
        last_pts = pts if pts is not None else dts if dts is not None else last_pts
        chosen.append(pts if takes_pts else dts)
    return chosen


def _rise(stamps: Sequence[int | None]) -> bool:
    known = [stamp for stamp in stamps if stamp is not None]
    return all(before < after for before, after in pairwise(known))


def mended_times(stamps: Sequence[int | None], most: int | None = None) -> np.ndarray | None:
    """Return times [N] in ticks that never fall, from stamps that lack, fall or jump.

    Pictures come in the order in which they are shown: stamps in a slight disorder belong to them
    in rising order, and missing ones lie evenly between their neighbours. Where a stamp lies far
    before those that came, or more than `most` after them, a clock was set: the times go on at the
    usual rate. None where the stamps tell no rate.
    """
    at_P = np.array([ordinal for ordinal, stamp in enumerate(stamps) if stamp is not None])
    known = np.array([stamp for stamp in stamps if stamp is not None], np.int64)
    # Over so many pictures a disorder does not matter; most of the spans have no clock set in them.
    lag = max(1, min(MOST_DISORDERED, len(known) // 4))
    rates = (known[lag:] - known[:-lag]) / (at_P[lag:] - at_P[:-lag])
    if not (rates > 0).any():
        return None
    usual = float(np.median(rates[rates > 0]))
    pieces, highest = [[0]], int(known[0])
    for number, stamp in enumerate(known[1:].tolist(), 1):
        is_set = highest - stamp > MOST_DISORDERED * usual
        is_set |= most is not None and stamp - int(known[number - 1]) > most
        if is_set:
            pieces.append([])
            highest = stamp
        pieces[-1].append(number)
        highest = max(highest, stamp)
    times_N = np.zeros(len(stamps))
    start, offset = 0, 0.0
    for numbers, following in zip(pieces, [*pieces[1:], None], strict=True):
        end = len(stamps) if following is None else int(at_P[following[0]])
        own, ordinals = _one_of_equals(np.sort(known[numbers]), at_P[numbers], usual)
        # Beyond the first and the last known stamp of a piece the usual rate holds.
        before = usual * (ordinals[0] - start)
        after = usual * (end - 1 - ordinals[-1])
        x = [start, *ordinals, end - 1]
        y = [own[0] - before, *own, own[-1] + after]
        times_N[start:end] = np.interp(np.arange(start, end), x, y) - y[0] + offset
        start, offset = end, times_N[end - 1] + usual
    return np.rint(times_N).astype(np.int64)


def _one_of_equals(
    stamps_P: np.ndarray, ordinals_P: np.ndarray, usual: float
) -> tuple[np.ndarray, np.ndarray]:
    """Keep of equal stamps the one whose picture is where the usual rate would have it."""
    kept = [0]
    for place in range(1, len(stamps_P)):
        if stamps_P[place] > stamps_P[kept[-1]]:
            kept.append(place)
        elif len(kept) > 1:
            last = kept[-2]
            expected_2 = usual * (ordinals_P[[kept[-1], place]] - ordinals_P[last])
            off_2 = np.abs(expected_2 - (stamps_P[place] - stamps_P[last]))
            if off_2[1] < off_2[0]:
                kept[-1] = place
    return stamps_P[kept].astype(float), ordinals_P[kept]
