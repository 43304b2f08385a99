"""The facts of a video file, by demuxing it once (PyAV).

The packets tell which pictures there are, as long as nothing speaks against it: then only what is
wanted needs to be decoded. The first packets are decoded on the way, to see that the pictures that
come are those that the packets tell. Where anything is amiss, the whole file is decoded
(`whole.py`), and what comes out is what counts.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.error
import numpy as np

from strive.errors import ConfigError, DecodeError
from strive.video.containers import (
    Cropping,
    breaks_off,
    check_first_bytes,
    damaged_ranges,
    open_container,
    packets_of,
    stated_bytes,
    stated_cropping,
    video_stream,
)
from strive.video.resize import AS_STORED, orientation_of

# Codecs with one packet a picture, of which tests show, picture for picture, that what is saved in
# decoding changes nothing.
INDEX_CODECS = frozenset(
    (
        *("h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "mpeg4", "mpeg2video", "mjpeg"),
        *("prores", "dnxhd", "png", "rawvideo"),
    )
)
# How many packets are decoded to see that they tell the pictures: as many as this number of pixels
# (64 pictures of 576x320) but no fewer and no more than these. Large pictures are dear to decode.
MAX_CHECKED_PIXELS = 64 * 576 * 320
NUM_CHECKED_PACKETS = (12, 64)
# A picture is stored a few places from where it is shown; far from there, stamps fall.
_MAX_DISPLACEMENT = 64
STREAMS_OF_PACKETS = ("mpegts", "mpeg")  # transport and program streams
MAX_STEP_SECONDS = 10.0  # between two pictures of one of these; more is a jump of its clock
_PROGRESSIVE_OR_UNKNOWN = (0, 1)  # FFmpeg's AV_FIELD_UNKNOWN, AV_FIELD_PROGRESSIVE
_MAX_NOT_CODED_BYTES = 19  # FFmpeg's MAX_NVOP_SIZE
# Their header states how long the longest of all streams is.
_STATED_BY_CONTAINER = ("matroska", "flv", "asf")


# --- how much of a file is there ----------------------------------------------------------------

# A download that broke off often decodes without complaint up to where it ends, and its frames
# would then pass for those of the whole video.
_ROUNDED_SECONDS = 0.1  # by so much writers round what they state
_SLOPPY_BYTES = 256


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
    bounds = stated_bytes(path, container)
    if bounds is None:
        return ["no_stated_length"]
    start, end = bounds
    size = path.stat().st_size
    # FFmpeg gives no time for a file of these that was cut.
    if container in ("avi", "asf") and end is not None and end > size > start:
        if end - size <= max(_SLOPPY_BYTES, 0.02 * end):
            end = size  # many writers get their own sizes wrong by a little
        else:
            by_bytes = reached_seconds * (end - start) / (size - start)
            stated_seconds = max(stated_seconds or 0.0, by_bytes)
    if not stated_seconds or (container == "mov" and end is None):
        return ["no_stated_length"]
    missing = stated_seconds - reached_seconds
    is_whole = end is not None and end <= size
    if is_whole and not DEFAULT_MAX_MISSING.allows(missing, stated_seconds):
        return ["stated_longer"]
    if not is_whole and not max_missing.allows(missing, stated_seconds):
        found = "" if end is None else f" and has {size} of {end} bytes"
        raise DecodeError(
            "incomplete",
            f"{path.name} ends at {reached_seconds:.2f} of {stated_seconds:.2f} s{found}; "
            "--max-missing says how much may be missing",
        )
    return ["ends_early"] if missing > _ROUNDED_SECONDS else []


# --- the index ----------------------------------------------------------------------------------

NO_INDICES = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A checked local video file.

    `way` is `index` where the packets tell the pictures, else `decode`. `pts_N` are the stamps of
    its pictures in display order, or None where they are told apart by counting. In the first way,
    `decode_rank_N` is each picture's place in the order in which they are stored, `keyframes_K` are
    the display indices (increasing) of the pictures that the container marks as keyframes, and
    `seek_stamps_K` what to ask the demuxer for to get there; in the second these are empty, and
    `is_damaged_N` says which pictures are damaged or build on what is. `notes` say what is odd
    about the file.
    """

    path: Path
    container: str
    codec: str
    num_frames: int
    pts_N: np.ndarray | None = None
    decode_rank_N: np.ndarray = field(default_factory=lambda: NO_INDICES)
    keyframes_K: np.ndarray = field(default_factory=lambda: NO_INDICES)
    seek_stamps_K: np.ndarray = field(default_factory=lambda: NO_INDICES)
    seconds_per_tick: Fraction = Fraction(1, 1000)
    way: str = "index"
    orientation: int = AS_STORED
    cropping: Cropping | None = None
    notes: tuple[str, ...] = ()
    num_packets: int = 0
    reached_seconds: float = 0.0
    stated_fps: float = 0.0
    begins_with_keyframe: bool = True
    damaged_bytes: tuple[tuple[int, int], ...] = ()
    lacks_end: bool = False
    is_damaged_N: np.ndarray | None = None
    has_damage: bool = False

    @property
    def fps(self) -> float:
        """Mean frame rate: of the frames themselves where they are stamped, else as stated."""
        if self._span_ticks > 0:
            return self.num_frames / self.duration_seconds
        return self.stated_fps if self.stated_fps > 0 else 25.0

    @property
    def duration_seconds(self) -> float:
        """Length of the pictures, from their stamps where they have some."""
        if self._span_ticks > 0:
            span = float(self._span_ticks * self.seconds_per_tick)
            # The last frame lasts as long as the mean of the others.
            return span * self.num_frames / (self.num_frames - 1)
        return self.num_frames / self.fps

    @property
    def _span_ticks(self) -> int:
        if self.pts_N is None or not len(self.pts_N):
            return 0
        return int(self.pts_N[-1] - self.pts_N[0])

    def pts_seconds(self, indices_F: np.ndarray) -> np.ndarray:
        """Return seconds from the file's first frame; from the frame rate where stamps lack."""
        if self.pts_N is None:
            return indices_F / self.fps
        # Divided: 1/10240 is no float, 10240 is. Frame 3 at 10 a second is then 0.3 to the bit.
        return (self.pts_N[indices_F] - self.pts_N[0]) / float(1 / self.seconds_per_tick)


def read_index(path: Path, max_missing: MaxMissing = DEFAULT_MAX_MISSING) -> VideoSource:
    """Demux a file once; `way` is `decode` where its packets do not tell its pictures.

    Raises:
        DecodeError: it is no local video file, has no frames, or is incomplete.
    """
    check_first_bytes(path)
    with open_container(path) as opened:
        stream = video_stream(opened, path.name)
        container = opened.format.name.split(",")[0]
        packets = _Packets(opened, stream, container, stream.codec_context.name)
        packets.read()
        if not packets.num_packets:
            raise DecodeError("no_frames", f"{path.name} has a video stream without frames")
        tick = stream.time_base or Fraction(1, 1000)
        damaged_bytes = damaged_ranges(path) if container == "matroska" else ()
        stated = None
        if container in _STATED_BY_CONTAINER:
            stated = None if opened.duration is None else opened.duration / av.time_base
        elif stream.duration is not None and stream.time_base is not None:
            stated = float(stream.duration * stream.time_base)
        notes = check_length(path, container, stated, packets.reached_seconds, max_missing)
        if container == "avi" and not notes and packets.lack(stream.frames, stated, tick):
            notes.append("fewer_than_stated")
        if packets.num_shown == 1:
            notes.append("one_picture")
        if stream.sample_aspect_ratio not in (None, 0, 1):
            notes.append("anamorphic")
        broken, lacks_end = breaks_off(path, stream.id) if container == "mpegts" else (False, False)
        if broken:
            notes.append("ends_abruptly")
        lacks_end = lacks_end and packets.num_shown > 1
        order = packets.in_display_order(tick, lacks_end=lacks_end)
        nothing = None, NO_INDICES, NO_INDICES, NO_INDICES
        pts_N, decode_rank_N, keyframes_K, seek_stamps_K = order or nothing
        is_hurt = any(lies_in(damaged_bytes, position) for position in packets.byte_positions)
        number, is_exact = orientation_of(packets.first) if packets.first else (AS_STORED, True)
        way = "decode"
        if pts_N is not None and not is_hurt:
            way = "index"
            if has_gaps(pts_N, container):
                notes.append("gaps")
            if not packets.begins_with_keyframe:
                notes.append("late_start")
            if not is_exact:
                notes.append("turned_by_an_odd_angle")
        return VideoSource(
            path=path,
            container=container,
            codec=stream.codec_context.name,
            num_frames=packets.num_shown if pts_N is None else len(pts_N),
            pts_N=pts_N,
            decode_rank_N=decode_rank_N,
            keyframes_K=keyframes_K,
            seek_stamps_K=seek_stamps_K,
            seconds_per_tick=tick,
            way=way,
            orientation=number,
            cropping=stated_cropping(opened, stream),
            notes=tuple(notes),
            num_packets=packets.num_packets,
            reached_seconds=packets.reached_seconds,
            stated_fps=float(stream.average_rate or stream.guessed_rate or 0),
            begins_with_keyframe=packets.begins_with_keyframe,
            damaged_bytes=damaged_bytes,
            lacks_end=lacks_end,
        )


# Stamps, places in the file, keyframes and what seeks them: see `VideoSource`.
_Order = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(slots=True)
class _Packets:
    """The findings of one demux pass; lists hold the shown packets in the order of storage."""

    opened: av.container.InputContainer
    stream: av.VideoStream
    container: str
    codec: str
    pts: list[int] = field(default_factory=list)
    dts: list[int] = field(default_factory=list)
    is_keyframe: list[bool] = field(default_factory=list)
    byte_positions: list[int] = field(default_factory=list)
    checked: list[int | None] = field(default_factory=list)  # stamps of the pictures that came
    first: av.VideoFrame | None = None
    last_dts: int = -(1 << 63)
    num_packets: int = 0
    num_shown: int = 0
    reached_seconds: float = 0.0
    begins_with_keyframe: bool = True
    is_odd: bool = False

    def read(self) -> None:
        """Read all packets and decode the first of them."""
        context = self.stream.codec_context
        # What pictures look like is no matter in the check.
        context.options = {**context.options, "skip_loop_filter": "all", "skip_idct": "all"}
        self.is_odd = (
            self.codec not in INDEX_CODECS
            or getattr(context, "field_order", 0) not in _PROGRESSIVE_OR_UNKNOWN
        )
        pixels = max(context.width * context.height, 1)
        num_checked = int(np.clip(MAX_CHECKED_PIXELS // pixels, *NUM_CHECKED_PACKETS))
        streams = () if self.container in _STATED_BY_CONTAINER else (self.stream,)
        own, checks_until = self.stream.index, None
        reached: dict[int, tuple[int, int]] = {}  # by stream: first and last tick
        ticks = {stream.index: stream.time_base for stream in self.opened.streams}
        try:
            for packet in packets_of(self.opened, *streams):
                pts, index = packet.pts, packet.stream_index
                if pts is not None and not packet.is_corrupt:
                    # This runs for every packet of a file: no call that it can do without.
                    end = pts + (packet.duration or 0)
                    bounds = reached.get(index)
                    if bounds is None:
                        reached[index] = (pts, end)
                    elif end > bounds[1] or pts < bounds[0]:
                        reached[index] = (min(bounds[0], pts), max(bounds[1], end))
                if index != own:
                    continue
                self._take(packet, pts)
                if checks_until is None and packet.is_keyframe:
                    checks_until = self.num_packets + num_checked
                if not self.is_odd and (checks_until is None or self.num_packets < checks_until):
                    self._check(packet)
            if not self.is_odd and (checks_until is None or self.num_packets < checks_until):
                self._check(None)
        except av.error.FFmpegError:
            self.is_odd = True  # the file cannot be read on: players end here
        # The clock of a stream may start at any time; elsewhere lengths count from zero.
        bounds_seconds = [] if self.container in STREAMS_OF_PACKETS else [0.0]
        for index, ends in reached.items():
            bounds_seconds += [float(end * (ticks.get(index) or 0)) for end in ends]
        self.reached_seconds = max(bounds_seconds, default=0.0) - min(bounds_seconds, default=0.0)

    def _take(self, packet: av.Packet, pts: int | None) -> None:
        self.num_packets += 1
        if self.container == "matroska":
            self.byte_positions.append(-1 if packet.pos is None else packet.pos)
        is_keyframe, dts = packet.is_keyframe, packet.dts
        if packet.is_corrupt or (is_keyframe and packet.has_sidedata("new_extradata")):
            self.is_odd = True
        if packet.is_discard:  # outside the edit list: decoded by players, never shown
            return
        if self.num_packets == 1 and not is_keyframe:
            self.begins_with_keyframe = False
        self.num_shown += 1
        # A packet shows no picture of its own, by what the codec says in its bytes.
        is_hidden = False
        if self.codec == "vp8":
            is_hidden = not memoryview(packet)[0] & 0x10  # show_frame
        elif self.codec == "mpeg4" and self.container == "avi":
            is_hidden = packet.size <= _MAX_NOT_CODED_BYTES
        if pts is None or is_hidden:
            self.is_odd = True
            return
        if dts is None:
            dts = pts
        elif dts < self.last_dts:
            self.is_odd = True  # its clock was set back
        else:
            self.last_dts = dts
        self.pts.append(pts)
        self.dts.append(dts)
        self.is_keyframe.append(is_keyframe)

    def _check(self, packet: av.Packet | None) -> None:
        try:
            for picture in self.stream.codec_context.decode(packet):
                self.first = self.first or picture
                self.checked.append(picture.pts)
        except av.error.FFmpegError:
            pass  # what the packet should have shown is missing from `checked`

    def lack(self, num_stated: int, stated_seconds: float | None, tick: Fraction) -> bool:
        """Whether an AVI holds fewer pictures than are stated: its chunks and its time fall short.

        Empty chunks count too, which show the picture before them for longer.
        """
        steps = np.diff(np.sort(np.array(self.pts, np.int64)))
        usual = float(np.median(steps)) if len(steps) else 1.0
        missing_seconds = (stated_seconds or 0.0) - self.reached_seconds
        return self.num_packets * usual < num_stated and missing_seconds > usual * tick / 2

    def in_display_order(self, tick: Fraction, *, lacks_end: bool) -> _Order | None:
        """Sort the shown packets by stamp; None where they do not tell the pictures.

        A stream whose last picture lacks its end is over before that is shown.
        """
        # AVI numbers its frames as they are stored, which says nothing where B-frames reorder them.
        context = self.stream.codec_context
        is_reordered = self.container == "avi" and context.name in ("h264", "hevc")
        if self.is_odd or not self.pts or (is_reordered and context.has_b_frames):
            return None
        pts_P, dts_P = np.asarray(self.pts, np.int64), np.asarray(self.dts, np.int64)
        is_keyframe_P = np.asarray(self.is_keyframe, bool)
        if lacks_end:
            kept = pts_P < pts_P[-1]
            pts_P, dts_P, is_keyframe_P = pts_P[kept], dts_P[kept], is_keyframe_P[kept]
        if not len(pts_P) or not (self.begins_with_keyframe or is_keyframe_P.any()):
            return None
        if not self.begins_with_keyframe:
            # What lies or is shown before the first keyframe cannot be decoded.
            first = int(np.argmax(is_keyframe_P))
            kept = (np.arange(len(pts_P)) >= first) & (pts_P >= pts_P[first])
            pts_P, dts_P, is_keyframe_P = pts_P[kept], dts_P[kept], is_keyframe_P[kept]
        elif not is_keyframe_P[0] and self.num_packets == self.num_shown:
            return None
        stored_N = np.argsort(pts_P, kind="stable")  # display order -> place in the file
        pts_N = pts_P[stored_N]
        steps = np.diff(pts_N)
        displacement_N = np.abs(stored_N - np.arange(len(stored_N)))
        if (steps == 0).any() or displacement_N.max() > _MAX_DISPLACEMENT:
            return None
        longest = steps.max(initial=0) * float(tick)
        if self.container in STREAMS_OF_PACKETS and longest > MAX_STEP_SECONDS:
            return None
        checked = self.checked[: len(pts_N)] if lacks_end else self.checked
        if checked != pts_N[: len(checked)].tolist() or not checked:
            return None
        keyframes_K = np.flatnonzero(is_keyframe_P[stored_N])
        # Matroska indexes its keyframes by presentation stamps; the others search decode stamps.
        seek_P = pts_P if self.container == "matroska" else dts_P
        return pts_N, stored_N, keyframes_K, seek_P[stored_N][keyframes_K]


def lies_in(byte_ranges: tuple[tuple[int, int], ...], byte: int) -> bool:
    """Whether a byte lies in one of some half-open ranges."""
    return any(start <= byte < end for start, end in byte_ranges)


def has_gaps(pts_N: np.ndarray, container: str) -> bool:
    """Whether pictures of an even rate lack where a container does not tell of losses."""
    if container not in (*STREAMS_OF_PACKETS, "avi") or len(pts_N) < 3:
        return False
    steps = np.diff(pts_N)
    usual = float(np.median(steps))
    return bool((steps > 1.5 * usual).any() and (steps == usual).mean() > 0.5)
