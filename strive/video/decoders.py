"""The decoders: PyAV decodes only what the wanted frames need; decord and torchcodec by index.

PyAV's three savings, none of which changes a picture:

* Groups of pictures without a wanted frame are passed over: each run of decoding starts at the
  keyframe before a wanted frame and ends with the last packet that it needs.
* Frames to which no other frame refers are not decoded unless wanted (`skip_frame`).
* Only wanted frames are converted to RGB, at the size in which they are kept.

Runs do not depend on each other: with several threads each takes some of them.

What the container says is not believed: the picture at which a run starts must carry the stamp that
was asked for and be a keyframe to the decoder as well. Where anything is amiss, the frames that
are still missing are decoded from the file's start in one run. If that fails too, the packets do
not tell the pictures, and the whole file has to be decoded (`whole.py`).

decord and torchcodec return upright RGB frames. Neither is believed blindly. Both go by stamps, so
a file without one stamp a frame is refused; the number of frames must be the one that demuxing
found, and the first picture the one that PyAV gives.
"""

import functools
import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import av
import av.container
import av.error
import numpy as np
from av.video.frame import PictureType

from strive.errors import DecodeError
from strive.video.containers import (
    error_text,
    open_container,
    packets_of,
    report_damage,
    video_stream,
)
from strive.video.resize import FrameScaler, as_progressive, oriented
from strive.video.source import VideoSource
from strive.video.whole import pictures_at

SKIPPABLE_CODECS = frozenset(("h264", "hevc", "mpeg4", "mpeg2video"))
# Fewer packets than this are read and dropped; a seek costs about as much.
SEEK_PACKETS = 64

# --- which stretches of a file have to be decoded -----------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of stored frames, decoded without a gap.

    `start_rank` and `stop_rank` (inclusive) are places in the order of storage; `anchor_pts` is the
    stamp of the keyframe at which the run starts and `seek_stamp` what to ask the demuxer for, None
    for the start of the file; `wanted_pts` are the stamps of the frames to keep, increasing.
    """

    start_rank: int
    stop_rank: int
    anchor_pts: int | None
    seek_stamp: int | None
    wanted_pts: tuple[int, ...]


def decode_runs(source: VideoSource, indices_F: np.ndarray) -> list[Run]:
    """Return the runs that cover `indices_F` (increasing): each from a keyframe to its last frame.

    A frame needs the keyframe at or before it in display order and all that is stored from there up
    to the frame itself: what is stored later cannot be referred to. (A frame that is shown before a
    keyframe but stored after it may refer to the group of pictures before; its keyframe in display
    order is the start of that group.) Runs that touch or overlap are one.

    Raises:
        ValueError: the source has no stamps.
    """
    if source.pts_N is None:
        raise ValueError("frames without stamps cannot be sought")
    runs: list[Run] = []
    before_F = np.searchsorted(source.keyframes_K, indices_F, side="right") - 1
    for index, before in zip(indices_F.tolist(), before_F.tolist(), strict=True):
        pts = int(source.pts_N[index])
        stop = int(source.decode_rank_N[index])
        start, anchor_pts, seek_stamp = 0, None, None
        if before >= 0:
            anchor = int(source.keyframes_K[before])
            start = int(source.decode_rank_N[anchor])
            if start > 0:
                anchor_pts = int(source.pts_N[anchor])
                seek_stamp = int(source.seek_stamps_K[before])
        if runs and start <= runs[-1].stop_rank + 1:
            last = runs[-1]
            wanted = (*last.wanted_pts, pts)
            runs[-1] = replace(last, stop_rank=max(last.stop_rank, stop), wanted_pts=wanted)
        else:
            runs.append(Run(start, stop, anchor_pts, seek_stamp, (pts,)))
    return runs


def one_run(source: VideoSource, indices_F: np.ndarray) -> list[Run]:
    """Return the run from the start of the file to the last of `indices_F` (increasing).

    Raises:
        ValueError: the source has no stamps.
    """
    if source.pts_N is None:
        raise ValueError("frames without stamps cannot be told apart")
    wanted = tuple(source.pts_N[indices_F].tolist())
    return [Run(0, int(source.decode_rank_N[indices_F].max()), None, None, wanted)]


def split_runs(runs: list[Run], num_parts: int) -> list[list[Run]]:
    """Split runs into at most `num_parts` neighbouring parts of about equally many packets."""
    lengths_R = np.array([run.stop_rank + 1 - run.start_rank for run in runs])
    middles_R = np.cumsum(lengths_R) - lengths_R / 2
    part_R = (middles_R * num_parts / max(lengths_R.sum(), 1)).astype(int)
    parts = [[run for run, p in zip(runs, part_R, strict=True) if p == i] for i in range(num_parts)]
    return [part for part in parts if part]


# --- PyAV ---------------------------------------------------------------------------------------


class NotExactError(Exception):
    """The savings may not give the right picture in this file."""


def decode_pyav(
    source: VideoSource, indices_F: np.ndarray, scaler: FrameScaler, threads: int = 1
) -> Iterator[np.ndarray]:
    """Yield the frames of some indices (increasing), as they are shown, resized: uint8 [H, W, 3].

    Raises:
        NotExactError: its packets do not tell its pictures after all, or some are damaged.
        DecodeError: `frames_missing` or `undecodable`.
    """
    if source.way == "decode":
        for picture in pictures_at(source, indices_F):
            yield scaler.from_picture(picture, source.orientation)
        return
    parts = split_runs(decode_runs(source, indices_F), threads)
    if len(parts) > 1:
        try:
            frames = _decode_parts(source, parts, scaler)
        except NotExactError:
            frames = []  # one thread tries further ways
        if frames:
            yield from frames
            return
    num_found = 0
    try:
        for picture in run_pictures(source, decode_runs(source, indices_F)):
            num_found += 1
            yield scaler.from_picture(picture, source.orientation)
    except NotExactError:
        for picture in run_pictures(source, one_run(source, indices_F[num_found:])):
            yield scaler.from_picture(picture, source.orientation)


def _decode_parts(
    source: VideoSource, parts: list[list[Run]], like: FrameScaler
) -> list[np.ndarray]:
    """Decode each part in a thread of its own, the file opened anew.

    Raises:
        NotExactError: as `run_pictures`; or pictures of several sizes, whose common size is the
            first picture's to set.
    """

    def decode(runs: list[Run]) -> list[np.ndarray]:
        scaler = FrameScaler(like.max_pixels, like.cropping)
        pictures = run_pictures(source, runs)
        return [scaler.from_picture(picture, source.orientation) for picture in pictures]

    with ThreadPoolExecutor(len(parts)) as pool:
        frames = [frame for part in pool.map(decode, parts) for frame in part]
    if len({frame.shape for frame in frames}) != 1:
        raise NotExactError
    return frames


def run_pictures(
    source: VideoSource, runs: list[Run], *, seek_packets: int = SEEK_PACKETS
) -> Iterator[av.VideoFrame]:
    """Decode runs and keep their wanted pictures; gaps of `seek_packets` and more are sought over.

    Raises:
        NotExactError: the pictures that are still missing cannot be had exactly in this way, or
            something in a run is damaged.
        DecodeError: `undecodable`; the file cannot be opened any more.
    """
    with open_container(source.path) as opened:
        decoder = _RunDecoder(source, opened, seek_packets)
        for run in runs:
            try:
                yield from decoder.pictures(run)
            except av.error.FFmpegError as error:
                raise NotExactError from error


class _RunDecoder:
    """Decodes run after run of one open file; a run lies behind the one before it."""

    def __init__(
        self, source: VideoSource, opened: av.container.InputContainer, seek_packets: int
    ) -> None:
        assert source.pts_N is not None
        self._seek_packets = seek_packets
        self._opened = opened
        self._stream = video_stream(opened, source.path.name)
        report_damage(self._stream)
        self._context = self._stream.codec_context
        self._packets = packets_of(opened, self._stream)
        self._next_rank = 0
        self._first_pts = int(source.pts_N[0])
        self._begins_with_keyframe = source.begins_with_keyframe
        self._ranks: dict[int, int] = dict(
            zip(source.pts_N.tolist(), source.decode_rank_N.tolist(), strict=True)
        )
        self._skips = source.codec in SKIPPABLE_CODECS and (
            source.codec != "hevc" or has_one_temporal_layer(self._context.extradata)
        )

    def pictures(self, run: Run) -> Iterator[av.VideoFrame]:
        """Yield the wanted pictures of a run."""
        kept = {run.anchor_pts, *run.wanted_pts}
        num_found = 0
        is_anchored = run.anchor_pts is None
        for picture in self._decoded(run, kept):
            if picture.pts == run.anchor_pts:
                if not picture.key_frame or picture.pict_type != PictureType.I:
                    raise NotExactError
                is_anchored = True
            if picture.pts == run.wanted_pts[num_found]:
                if picture.is_corrupt or not is_anchored:
                    raise NotExactError
                num_found += 1
                yield picture
                if num_found == len(run.wanted_pts):
                    break
        if num_found < len(run.wanted_pts):
            raise NotExactError
        self._context.flush_buffers()

    def _decoded(self, run: Run, kept: set[int | None]) -> Iterator[av.VideoFrame]:
        """Decode the packets of a run and drain the decoder."""
        for packet in self._packets_of(run):
            if self._skips:
                self._context.skip_frame = "DEFAULT" if packet.pts in kept else "NONREF"
            yield from self._context.decode(packet)
        yield from self._context.decode(None)

    def _packets_of(self, run: Run) -> Iterator[av.Packet]:
        """Go to the run's first packet and yield all up to its last, hidden ones included."""
        if run.start_rank - self._next_rank >= self._seek_packets and run.seek_stamp is not None:
            self._opened.seek(run.seek_stamp, stream=self._stream)
            self._packets = packets_of(self._opened, self._stream)
        has_begun = run.anchor_pts is None
        for packet in self._packets:
            if packet.is_corrupt:
                raise NotExactError
            rank = None
            if not packet.is_discard:
                pts = packet.pts
                if pts is not None and pts < self._first_pts and not self._begins_with_keyframe:
                    continue  # of a late start: it is shown before the first keyframe
                rank = None if pts is None else self._ranks.get(pts)
                if rank is None:
                    raise NotExactError  # stamps differ from those of the first reading
            if not has_begun:
                if rank is None or rank < run.start_rank:
                    continue
                if rank > run.start_rank:
                    raise NotExactError  # the seek went too far
                has_begun = True
            yield packet
            if rank is not None:
                self._next_rank = rank + 1
                if rank >= run.stop_rank:
                    return
        raise NotExactError  # the file ended before the run did


def has_one_temporal_layer(extradata: bytes | None) -> bool:
    """Whether every parameter set of an HEVC stream (an hvcC record) allows one temporal layer.

    With several, a picture marked as not referred to may still be referred to by higher layers.
    """
    if extradata is None or len(extradata) < 23 or extradata[0] != 1:
        return False
    sequence_parameter_set, found, at = 33, False, 23
    for _ in range(extradata[22]):
        if at >= len(extradata):
            return False
        kind = extradata[at] & 0x3F
        num_units = int.from_bytes(extradata[at + 1 : at + 3], "big")
        at += 3
        for _ in range(num_units):
            if at >= len(extradata):
                return False
            length = int.from_bytes(extradata[at : at + 2], "big")
            unit = extradata[at + 2 : at + 2 + length]
            at += 2 + length
            if kind == sequence_parameter_set:
                # Two bytes of header, 4 bits of an id, then sps_max_sub_layers_minus1 in 3 bits.
                if len(unit) < 3 or unit[2] >> 1 & 7:
                    return False
                found = True
    return found


# --- decord and torchcodec ----------------------------------------------------------------------

# Elsewhere (AVI, MPEG streams) decord shows other frames than those asked for where there are
# B-frames, and says nothing.
DECORD_CONTAINERS = ("mov", "matroska", "flv")
TORCHCODEC_FIX = (
    "pip install torchcodec, and install FFmpeg's shared libraries "
    "(apt-get install ffmpeg, or conda install ffmpeg)"
)


def decode_decord(
    source: VideoSource, indices_F: np.ndarray, scaler: FrameScaler, threads: int = 1
) -> Iterator[np.ndarray]:
    """Read frame after frame to the last one wanted, in one thread whatever `threads` says.

    decord rotates the frames and tells no angle.

    Raises:
        DecodeError: `unsupported`, `frame_count`, `wrong_picture` or `undecodable`.
    """
    import decord

    if source.container not in DECORD_CONTAINERS:
        raise DecodeError(
            "unsupported",
            f"decord is exact in {', '.join(DECORD_CONTAINERS)} alone, not in {source.container}",
        )
    # decord computes a line's length from the picture's width, and for some sizes (rotated ones,
    # mostly) reads skewed pictures from that: hence the look at the first picture.
    first_HWC = _first_picture("decord", source)
    decord.logging.set_level(decord.logging.QUIET)
    try:
        # A tiny fault_tol turns decord's silent repeats of a neighbour frame into an error. With
        # more than one thread it fails on some files (dmlc/decord 246).
        reader = decord.VideoReader(str(source.path.absolute()), num_threads=1, fault_tol=1e-6)
        _check_count("decord", len(reader), source)
        wanted = set(indices_F.tolist())
        # Not by index: decord passes over frames in a loop that gives up after 10,000 looks at its
        # decoding thread and then returns, without an error, whichever frame comes next. On a busy
        # machine that happened to one in ten frames of a plain H.264 clip (decord2 3.4).
        # `get_batch` has the same loop, and can hang besides (dmlc/decord 373).
        for index in range(int(indices_F[-1]) + 1):
            frame = reader.next()
            if index == 0:
                _check_first("decord", frame.asnumpy(), first_HWC)
            if index in wanted:
                yield scaler.from_rgb(frame.asnumpy())
    except StopIteration:
        raise DecodeError("frames_missing", "decord ends before the last frame") from None
    except (
        decord.DECORDError,
        decord.DECORDLimitReachedError,
        AssertionError,
        IndexError,
    ) as error:
        raise DecodeError("undecodable", error_text(error)) from None


@functools.cache
def torchcodec_import_error() -> str:
    """Import torchcodec, once, and return why that fails; empty when it works."""
    # Its package may be there without the FFmpeg libraries that it loads when it is imported, so
    # asking whether it is installed would not do.
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:
        return error_text(error)
    return ""


def decode_torchcodec(
    source: VideoSource, indices_F: np.ndarray, scaler: FrameScaler, threads: int = 1
) -> Iterator[np.ndarray]:
    """Read single frames by index, in exact mode (the approximate one errs at variable rates).

    Raises:
        DecodeError: `unavailable`, `unsupported`, `frame_count`, `wrong_picture` or `undecodable`.
    """
    if problem := torchcodec_import_error():
        raise DecodeError("unavailable", f"torchcodec cannot be imported ({problem})")
    from torchcodec.decoders import VideoDecoder

    first_HWC = _first_picture("torchcodec", source)
    try:
        decoder = VideoDecoder(
            str(source.path.absolute()),
            seek_mode="exact",
            num_ffmpeg_threads=threads,
            device="cpu",
            dimension_order="NHWC",
        )
        _check_count("torchcodec", len(decoder), source)
        _check_first("torchcodec", decoder.get_frame_at(0).data.numpy(), first_HWC)
        for index in indices_F:
            frame = decoder.get_frame_at(int(index))
            assert source.pts_N is not None
            expected = float(int(source.pts_N[index]) * source.seconds_per_tick)
            if abs(frame.pts_seconds - expected) > 1e-3:
                raise DecodeError(
                    "wrong_picture",
                    f"torchcodec gave the frame at {frame.pts_seconds:.3f} s for the one at "
                    f"{expected:.3f} s",
                )
            yield scaler.from_rgb(frame.data.numpy())
    except DecodeError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise DecodeError("undecodable", error_text(error)) from None


def _first_picture(name: str, source: VideoSource) -> np.ndarray:
    """Return the first frame in full size, converted as other decoders do it.

    Raises:
        DecodeError: `unsupported`; a decoder by index would not be exact.
    """
    if source.way != "index" or source.pts_N is None:
        raise DecodeError("unsupported", f"{name} needs one stamped packet for every frame")
    if source.cropping is not None:
        raise DecodeError("unsupported", f"{name} does not crop as the container says")
    picture = next(pictures_at(source, np.zeros(1, np.int64)))
    rgb_HWC = as_progressive(picture).to_ndarray(format="rgb24")
    return oriented(rgb_HWC, source.orientation)


def _check_count(name: str, count: int, source: VideoSource) -> None:
    if count != source.num_frames:
        raise DecodeError("frame_count", f"{name} counts {count} frames of {source.num_frames}")


def _check_first(name: str, frame_HWC: np.ndarray, first_HWC: np.ndarray) -> None:
    is_same = frame_HWC.shape == first_HWC.shape
    # They may differ by no more than rounding in the colour conversion.
    if not is_same or np.abs(frame_HWC.astype(np.int16) - first_HWC).mean() >= 2.0:
        raise DecodeError("wrong_picture", f"{name} shows another first frame than PyAV")
