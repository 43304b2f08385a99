"""The facts of a video file, by demuxing it once without decoding (PyAV)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.container
import av.error
import av.logging
import numpy as np

from strive.errors import DecodeError
from strive.video.complete import check_complete
from strive.video.frame_plan import SourceFacts
from strive.video.sniff import sniff_container

# FFmpeg's own messages would go to the terminal past the progress bar; errors come as exceptions.
av.logging.set_level(av.logging.PANIC)

MAX_SOURCE_PIXELS = 8192 * 8192
# No network, no playlists, no data: URLs; file is the only protocol that may be opened.
LOCAL_FILES_ONLY = {"protocol_whitelist": "file"}


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A checked local video file.

    `pts_N` are the presentation stamps of its frames in display order, or None where the container
    does not stamp every frame once (then frames are told apart by counting). With stamps,
    `decode_rank_N` is each frame's place in the order in which they are stored, `keyframes_K` are
    the display indices of the frames that the container marks as keyframes, and `seek_stamps_K`
    what to ask the demuxer for to get there.
    """

    path: Path
    container: str
    codec: str
    num_frames: int
    pts_N: np.ndarray | None
    decode_rank_N: np.ndarray
    keyframes_K: np.ndarray
    seek_stamps_K: np.ndarray
    seconds_per_tick: Fraction
    fps: float
    duration_seconds: float

    @property
    def facts(self) -> SourceFacts:
        """What a frame plan looks at."""
        return SourceFacts(self.num_frames, self.fps, self.duration_seconds, self.keyframes_K)

    def pts_seconds(self, indices_F: np.ndarray) -> np.ndarray:
        """Return seconds from the file's first frame; from the frame rate where stamps lack."""
        if self.pts_N is None:
            return indices_F / self.fps
        # Divided: 1/10240 is no float, 10240 is. Frame 3 at 10 a second is then 0.3 to the bit.
        return (self.pts_N[indices_F] - self.pts_N[0]) / float(1 / self.seconds_per_tick)


@contextmanager
def open_container(path: Path, container: str) -> Iterator[av.container.InputContainer]:
    """Open a local file with the demuxer that its first bytes show, and no other."""
    try:
        # "file:" keeps a name such as `concat:a|b` from being read as a protocol.
        with av.open(
            f"file:{path.absolute()}", format=container, options=LOCAL_FILES_ONLY
        ) as opened:
            yield opened
    except (av.error.FFmpegError, UnicodeError) as error:
        raise DecodeError("undecodable", f"{path.name}: {error_text(error)}") from None


def error_text(error: BaseException) -> str:
    """Return an error's first line without the path that FFmpeg appends."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split("; last error log")[0].split(": 'file:")[0]


def probe(path: Path) -> VideoSource:
    """Demux a file once and return its facts.

    Raises:
        DecodeError: it is no local video file, or has no frames.
    """
    container = sniff_container(path)
    check_complete(path, container)
    with open_container(path, container) as opened:
        stream = video_stream(opened)
        if stream is None:
            raise DecodeError("no_video_stream", f"{path.name} has no video stream")
        context = stream.codec_context
        if context is None:
            raise DecodeError("undecodable", f"{path.name}: no decoder for its codec")
        if context.width * context.height > MAX_SOURCE_PIXELS:
            raise DecodeError(
                "too_large",
                f"{path.name} is {context.width}x{context.height}; "
                f"at most {MAX_SOURCE_PIXELS} pixels a frame are decoded",
            )
        stamps = _frame_stamps(opened, stream)
        num_frames = stamps.num_frames
        if num_frames == 0:
            raise DecodeError("no_frames", f"{path.name} has a video stream without frames")
        if container == "mov" and stream.frames > num_frames + stamps.num_discarded:
            raise DecodeError(
                "truncated",
                f"{path.name} lists {stream.frames} frames and holds {num_frames}",
            )
        tick = stream.time_base or Fraction(1, 1000)
        # AVI numbers its frames as they are stored, which says nothing where B-frames reorder them.
        is_reordered = container == "avi" and context.name in ("h264", "hevc")
        if is_reordered and context.has_b_frames:
            stamps.pts.clear()
        order = stamps.in_display_order(container)
        fps, duration = _fps_and_duration(stream, order.pts_N, num_frames, tick)
        return VideoSource(
            path=path,
            container=container,
            codec=context.name,
            num_frames=num_frames,
            pts_N=order.pts_N,
            decode_rank_N=order.decode_rank_N,
            keyframes_K=order.keyframes_K,
            seek_stamps_K=order.seek_stamps_K,
            seconds_per_tick=tick,
            fps=fps,
            duration_seconds=duration,
        )


def video_stream(opened: av.container.InputContainer) -> av.VideoStream | None:
    """Return the stream that FFmpeg calls best (a cover picture only if there is nothing else)."""
    stream = opened.streams.best("video")
    return stream if isinstance(stream, av.VideoStream) else None


def packets_of(opened: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """Yield a stream's packets from where the container stands, in the order of storage.

    Raises:
        DecodeError: `damaged`; a stream appears that was not there when the file was opened.
    """
    demuxed = opened.demux(stream)
    while True:
        try:
            packet = next(demuxed, None)
        except IndexError:  # PyAV looks the new stream up in its list
            raise DecodeError("damaged", "its streams change while it is read") from None
        if packet is None:
            return
        if packet.size:  # not the empty one that PyAV adds at the end
            yield packet


@dataclass(frozen=True, slots=True)
class _Order:
    """The frames of a stream in display order; see `VideoSource`."""

    pts_N: np.ndarray | None
    decode_rank_N: np.ndarray
    keyframes_K: np.ndarray
    seek_stamps_K: np.ndarray


@dataclass(slots=True)
class _Stamps:
    """What demuxing tells of a stream's frames, in the order in which they are stored."""

    pts: list[int]
    dts: list[int]
    is_keyframe: list[bool]
    num_frames: int
    num_discarded: int

    def in_display_order(self, container: str) -> _Order:
        """Sort by stamp; everything is empty where stamps lack or repeat."""
        pts_P = np.asarray(self.pts, np.int64)
        stored_N = np.argsort(pts_P, kind="stable")  # display order -> place in the file
        pts_N = pts_P[stored_N]
        if len(pts_N) != self.num_frames or (np.diff(pts_N) == 0).any():
            empty = np.zeros(0, np.int64)
            return _Order(None, empty, empty, empty)
        keyframes_K = np.flatnonzero(np.asarray(self.is_keyframe, bool)[stored_N])
        # Matroska indexes its keyframes by presentation stamps; the others search decode stamps.
        seek_P = pts_P if container == "matroska" else np.asarray(self.dts, np.int64)
        return _Order(pts_N, stored_N, keyframes_K, seek_P[stored_N][keyframes_K])


def _frame_stamps(opened: av.container.InputContainer, stream: av.VideoStream) -> _Stamps:
    """Demux the whole stream, and count how many frames are shown and not."""
    stamps = _Stamps([], [], [], 0, 0)
    try:
        for packet in packets_of(opened, stream):
            if packet.is_discard:  # outside the edit list: decoded by players, never shown
                stamps.num_discarded += 1
                continue
            stamps.num_frames += 1
            if packet.pts is not None:
                stamps.pts.append(packet.pts)
                stamps.dts.append(packet.pts if packet.dts is None else packet.dts)
                stamps.is_keyframe.append(packet.is_keyframe)
    except av.error.FFmpegError as error:
        raise DecodeError("undecodable", f"cannot read its packets: {error_text(error)}") from None
    return stamps


def _fps_and_duration(
    stream: av.VideoStream, pts_N: np.ndarray | None, num_frames: int, tick: Fraction
) -> tuple[float, float]:
    """Return frame rate and duration, both from the frames themselves where they are stamped."""
    declared = float(stream.average_rate or stream.guessed_rate or 0)
    if pts_N is not None and num_frames > 1:
        span = float(int(pts_N[-1] - pts_N[0]) * tick)
        # The last frame lasts as long as the mean of the others.
        duration = span * num_frames / (num_frames - 1)
        return num_frames / duration, duration
    fps = declared if declared > 0 else 25.0
    return fps, num_frames / fps
