"""Which frames of a video an evaluated question sees, from the file or from a cache's pool."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from strive.cache.frames import FrameReader
from strive.choices import FramesMode
from strive.errors import ConfigError, unknown_name
from strive.files import resolve_video
from strive.records import Record
from strive.variants import evidence_mask, uniform_frames

if TYPE_CHECKING:
    from strive.models.inputs import VideoFrames

FRAMES_MODES: tuple[str, ...] = get_args(FramesMode)
GREY = 128
POOL_FRAMES = 64
"""Frames that `evidence` chooses among when it reads from the file."""
_KEPT_VIDEOS = 8
_DECODE_THREADS = min(4, os.cpu_count() or 1)  # one video at a time is waited for here


@dataclass(frozen=True, slots=True)
class FrameChoice:
    """How frames are chosen.

    `uniform`: spread over the video. `evidence`: every pool frame inside the record's evidence
    spans, the rest uniform (a question without spans gets uniform ones). `blank`: the uniform
    frames, all grey, to measure what the language alone answers.
    """

    num_frames: int = 32
    mode: FramesMode = "uniform"

    def __post_init__(self) -> None:
        if self.mode not in FRAMES_MODES:
            raise unknown_name("frames mode", self.mode, FRAMES_MODES)
        if self.num_frames < 1:
            raise ConfigError(f"--frames is {self.num_frames}; it must be at least 1")


class FrameSource(Protocol):
    """Gives the frames of a record's video; raises `DecodeError` where there are none."""

    def frames(self, record: Record) -> VideoFrames:
        """Return the chosen frames in temporal order."""

    def identity(self, record: Record) -> str:
        """Return what tells this video from another one under the same name, without decoding."""


def choose_frames(
    choice: FrameChoice, record: Record, pts_seconds_F: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Pick pool indices, sorted and without repeats."""
    num_pool = len(pts_seconds_F)
    spans = record.evidence_spans_seconds
    uniform_K = np.unique(uniform_frames(num_pool, choice.num_frames))
    if choice.mode != "evidence" or not spans:
        return uniform_K
    inside_F = evidence_mask(pts_seconds_F, spans)
    evidence_E = np.flatnonzero(inside_F)
    if len(evidence_E) >= choice.num_frames:
        return evidence_E[uniform_frames(len(evidence_E), choice.num_frames)]
    others_E = np.flatnonzero(~inside_F)
    fill = min(choice.num_frames - len(evidence_E), len(others_E))
    filled = others_E[uniform_frames(len(others_E), fill)] if fill else others_E[:0]
    return np.unique(np.concatenate([evidence_E, filled]))


class FileFrames:
    """Decodes the video files in a worker process that can be killed; keeps the last few."""

    def __init__(
        self,
        video_root: Path,
        choice: FrameChoice,
        *,
        max_pixels: int | None = None,
        decoder: str = "auto",
        timeout_seconds: float = 120.0,
    ) -> None:
        self.video_root, self.choice = Path(video_root), choice
        self.max_pixels, self.decoder = max_pixels, decoder
        self.timeout_seconds = timeout_seconds
        self._kept: OrderedDict[str, VideoFrames] = OrderedDict()

    def identity(self, record: Record) -> str:
        """Size of the file; an absent one is found out when it is read."""
        path = self.video_root / record.video_id
        return f"bytes={path.stat().st_size}" if path.is_file() else "absent"

    def frames(self, record: Record) -> VideoFrames:
        """Decode the frames, or take them from the last few videos."""
        pool = self._kept.get(record.video_id)
        if pool is None:
            pool = self._kept[record.video_id] = self._decode(record)
            while len(self._kept) > _KEPT_VIDEOS:
                self._kept.popitem(last=False)
        if self.choice.mode == "evidence":
            pool = _subset(pool, choose_frames(self.choice, record, pool.pts_seconds_K))
        return _grey(pool) if self.choice.mode == "blank" else pool

    def _decode(self, record: Record) -> VideoFrames:
        from strive.models.inputs import VideoFrames
        from strive.video.frame_plan import FramePlan
        from strive.video.worker import decode_in_worker

        is_pool = self.choice.mode == "evidence"
        wanted = max(POOL_FRAMES, self.choice.num_frames) if is_pool else self.choice.num_frames
        decoded = decode_in_worker(
            resolve_video(self.video_root, record.video_id),
            FramePlan("uniform", wanted),
            max_pixels=self.max_pixels,
            decoder=self.decoder,
            timeout_seconds=self.timeout_seconds,
            threads=_DECODE_THREADS,
        )
        return VideoFrames(
            frames_KHWC=decoded.frames_FHWC,
            pts_seconds_K=decoded.pts_seconds_F,
            source_index_K=decoded.source_index_F,
        )


class CacheFrames:
    """Reads from the frame pool of a cache: the frames that training sees; decodes no video."""

    def __init__(self, reader: FrameReader, choice: FrameChoice) -> None:
        self.reader, self.choice = reader, choice

    def identity(self, record: Record) -> str:
        """Return the frames key and the checksum of the stored pool."""
        if record.video_id not in self.reader:
            return "absent"
        return f"{self.reader.frames_key}/{self.reader.row(record.video_id)['checksum']}"

    def frames(self, record: Record) -> VideoFrames:
        """Read only the chosen frames."""
        from strive.errors import DecodeError
        from strive.models.inputs import VideoFrames

        if record.video_id not in self.reader:
            raise DecodeError("not_cached", f"video '{record.video_id}' is not in the cache")
        info = self.reader.info(record.video_id)
        index_K = choose_frames(self.choice, record, info.pts_seconds_F)
        video = VideoFrames(
            frames_KHWC=self.reader.read(record.video_id, index_K),
            pts_seconds_K=info.pts_seconds_F[index_K],
            source_index_K=info.source_index_F[index_K],
        )
        return _grey(video) if self.choice.mode == "blank" else video


def _subset(video: VideoFrames, index_K: NDArray[np.int64]) -> VideoFrames:
    from dataclasses import replace

    return replace(
        video,
        frames_KHWC=video.frames_KHWC[index_K],
        pts_seconds_K=video.pts_seconds_K[index_K],
        source_index_K=video.source_index_K[index_K],
    )


def _grey(video: VideoFrames) -> VideoFrames:
    from dataclasses import replace

    return replace(video, frames_KHWC=np.full_like(video.frames_KHWC, GREY))
