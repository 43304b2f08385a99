"""Exact decoding through PyAV: only what the wanted frames need is decoded.

Three savings, none of which changes a picture:

* Groups of pictures without a wanted frame are passed over: each run of decoding starts at the
  keyframe before a wanted frame (`runs.py`) and ends with the last packet that it needs.
* Frames to which no other frame refers are not decoded unless wanted (`skip_frame`).
* Only wanted frames are converted to RGB, at the size in which they are kept.

Runs do not depend on each other: with several threads each takes some of them.

What the container says is not believed: the picture at which a run starts must carry the stamp that
was asked for and be a keyframe to the decoder as well. Where anything is amiss, the frames that
are still missing are decoded from the file's start in one run, and if that fails too, without any
saving: this has the last word.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import av
import av.container
import av.error
import numpy as np
from av.video.frame import PictureType

from strive.errors import DecodeError
from strive.video.resize import FrameScaler, as_progressive
from strive.video.runs import Run, decode_runs, one_run, split_runs
from strive.video.source import (
    MAX_SOURCE_PIXELS,
    VideoSource,
    error_text,
    open_container,
    packets_of,
    video_stream,
)

# Codecs of which tests show, picture for picture, that each saving is exact.
SEEKABLE_CODECS = frozenset(
    ("h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "mpeg4", "mpeg2video", "mjpeg")
)
SKIPPABLE_CODECS = frozenset(("h264", "hevc", "mpeg4", "mpeg2video"))
# Fewer packets than this are read and dropped; a seek costs about as much.
SEEK_PACKETS = 64


@dataclass(frozen=True, slots=True)
class UprightFrame:
    """One RGB frame after rotation and resizing, and by how many degrees it was turned."""

    frame_HWC: np.ndarray
    rotation: int


class NotExactError(Exception):
    """The savings may not give the right picture in this file."""


def decode_pyav(
    source: VideoSource, indices_F: np.ndarray, scaler: FrameScaler, threads: int = 1
) -> Iterator[UprightFrame]:
    """Yield the frames of some indices (increasing), upright and resized.

    Damaged picture data is an error: FFmpeg would otherwise conceal it with what is around it. It
    is found in the frames that are decoded, not in those that are passed over.

    Raises:
        DecodeError: `damaged`, `frames_missing` or `undecodable`.
    """
    parts = split_runs(decode_runs(source, indices_F), threads) if _may_save(source) else []
    if len(parts) > 1:
        try:
            frames = _decode_parts(source, parts, scaler.max_pixels)
        except (NotExactError, DecodeError):
            frames = []  # one thread tries further ways, and says what is wrong
        if frames:
            yield from frames
            return
    num_found = 0
    for plan_runs in (decode_runs, one_run) if _may_save(source) else ():
        try:
            for picture in run_pictures(source, plan_runs(source, indices_F[num_found:])):
                upright = _upright(picture, scaler, int(indices_F[num_found]))
                num_found += 1
                yield upright
            return
        except (NotExactError, DecodeError):
            continue  # the next way skips less; the last one says what is wrong
    for picture in all_pictures(source, indices_F[num_found:]):
        yield _upright(picture, scaler, int(indices_F[num_found]))
        num_found += 1


def _decode_parts(
    source: VideoSource, parts: list[list[Run]], max_pixels: int | None
) -> list[UprightFrame]:
    """Decode each part in a thread of its own, the file opened anew.

    Raises:
        NotExactError: pictures of several sizes, whose common size is the first picture's to set.
        DecodeError: `damaged` or `undecodable`.
    """

    def decode(runs: list[Run]) -> list[UprightFrame]:
        scaler = FrameScaler(max_pixels)
        pictures = run_pictures(source, runs)
        return [_upright(picture, scaler, number) for number, picture in enumerate(pictures)]

    with ThreadPoolExecutor(len(parts)) as pool:
        frames = [frame for part in pool.map(decode, parts) for frame in part]
    if len({frame.frame_HWC.shape for frame in frames}) != 1:
        raise NotExactError
    return frames


def _may_save(source: VideoSource) -> bool:
    return source.pts_N is not None and source.codec in SEEKABLE_CODECS


def first_picture(source: VideoSource) -> UprightFrame:
    """Return the first frame in full size, converted as other decoders do it."""
    picture = next(all_pictures(source, np.zeros(1, np.int64)))
    rotation = int(picture.rotation) % 360
    rgb = as_progressive(picture).to_ndarray(format="rgb24")
    return UprightFrame(np.rot90(rgb, rotation // 90), rotation)


def _upright(picture: av.VideoFrame, scaler: FrameScaler, index: int) -> UprightFrame:
    if picture.is_corrupt:
        raise DecodeError("damaged", f"frame {index} is damaged")
    rotation = int(picture.rotation) % 360
    return UprightFrame(scaler.from_picture(picture, rotation), rotation)


def all_pictures(source: VideoSource, indices_F: np.ndarray) -> Iterator[av.VideoFrame]:
    """Decode every frame from the start and keep those whose stamps (or counts) are wanted.

    Raises:
        DecodeError: `damaged`, `frames_missing` or `undecodable`.
    """
    wanted = [int(w) for w in (indices_F if source.pts_N is None else source.pts_N[indices_F])]
    num_found = 0
    with open_container(source.path, source.container) as opened:
        stream = _prepared_stream(opened)
        with _damage_is_an_error():
            for count, frame in enumerate(_decoded(opened, stream)):
                if (count if source.pts_N is None else frame.pts) == wanted[num_found]:
                    num_found += 1
                    yield frame
                    if num_found == len(wanted):
                        return
    raise DecodeError(
        "frames_missing", f"frame {indices_F[num_found]} of {source.num_frames} is not in the file"
    )


def _decoded(
    opened: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    for packet in packets_of(opened, stream):
        yield from stream.codec_context.decode(packet)
    yield from stream.codec_context.decode(None)


@contextmanager
def _damage_is_an_error() -> Iterator[None]:
    try:
        yield
    except av.error.InvalidDataError as error:
        raise DecodeError("damaged", f"its picture data is damaged ({error_text(error)})") from None


def _prepared_stream(opened: av.container.InputContainer) -> av.VideoStream:
    stream = video_stream(opened)
    assert stream is not None  # `probe` found it
    # Many processes, one thread each; with one thread a packet is decoded before the next is read,
    # so that `skip_frame` applies to the packet for which it was set.
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {
        "err_detect": "explode",
        "max_pixels": str(MAX_SOURCE_PIXELS),  # whatever the container said about the size
    }
    return stream


def run_pictures(
    source: VideoSource, runs: list[Run], *, seek_packets: int = SEEK_PACKETS
) -> Iterator[av.VideoFrame]:
    """Decode runs and keep their wanted pictures; gaps of `seek_packets` and more are sought over.

    Raises:
        NotExactError: the pictures that are still missing cannot be had exactly in this way.
        DecodeError: `damaged` or `undecodable`.
    """
    with open_container(source.path, source.container) as opened, _damage_is_an_error():
        decoder = _RunDecoder(source, opened, seek_packets)
        for run in runs:
            yield from decoder.pictures(run)


class _RunDecoder:
    """Decodes run after run of one open file; a run lies behind the one before it."""

    def __init__(
        self, source: VideoSource, opened: av.container.InputContainer, seek_packets: int
    ) -> None:
        assert source.pts_N is not None
        self._seek_packets = seek_packets
        self._opened = opened
        self._stream = _prepared_stream(opened)
        self._context = self._stream.codec_context
        self._packets = packets_of(opened, self._stream)
        self._next_rank = 0
        self._ranks = dict(zip(source.pts_N.tolist(), source.decode_rank_N.tolist(), strict=True))
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
                if not is_anchored:
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
            rank = None if packet.is_discard else self._rank(packet)
            if not has_begun:
                if rank is None or rank < run.start_rank:
                    if packet.has_sidedata("new_extradata"):
                        raise NotExactError  # the decoder must see these parameters
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

    def _rank(self, packet: av.Packet) -> int:
        rank = None if packet.pts is None else self._ranks.get(packet.pts)
        if rank is None:
            raise NotExactError  # stamps differ from those of the first reading
        return rank


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
