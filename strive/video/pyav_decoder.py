"""Exact decoding through PyAV: only what the wanted frames need is decoded.

Three savings, none of which changes a picture:

* Groups of pictures without a wanted frame are passed over: each run of decoding starts at the
  keyframe before a wanted frame (`runs.py`) and ends with the last packet that it needs.
* Frames to which no other frame refers are not decoded unless wanted (`skip_frame`).
* Only wanted frames are converted to RGB, at the size in which they are kept.

Runs do not depend on each other: with several threads each takes some of them.

What the container says is not believed: the picture at which a run starts must carry the stamp that
was asked for and be a keyframe to the decoder as well. Where anything is amiss, the frames that
are still missing are decoded from the file's start in one run. If that fails too, the packets do
not tell the pictures, and the whole file has to be decoded (`whole.py`).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import av
import av.container
import av.error
import numpy as np
from av.video.frame import PictureType

from strive.video.opened import open_container, packets_of, report_damage, video_stream
from strive.video.resize import FrameScaler
from strive.video.runs import Run, decode_runs, one_run, split_runs
from strive.video.source import VideoSource
from strive.video.whole import pictures_at

SKIPPABLE_CODECS = frozenset(("h264", "hevc", "mpeg4", "mpeg2video"))
# Fewer packets than this are read and dropped; a seek costs about as much.
SEEK_PACKETS = 64


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
                if picture.is_corrupt:
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
            if self._is_lead(packet):
                continue
            rank = None if packet.is_discard else self._rank(packet)
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

    def _is_lead(self, packet: av.Packet) -> bool:
        """Whether a packet of a late start lies or is shown before the first keyframe."""
        if self._begins_with_keyframe or packet.is_discard or packet.pts is None:
            return False
        return packet.pts < self._first_pts

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
