"""The frames of a video that an evaluated question sees, from the file or from a cache's pool."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from strive.cache.frames import FrameReader
from strive.choices import FramesMode
from strive.configs.schema import EvaluateConfig
from strive.errors import DecodeError
from strive.files import resolve_video
from strive.records import Record
from strive.variants import evidence_mask, uniform_frames

if TYPE_CHECKING:
    from strive.models.inputs import VideoFrames

GREY = 128
POOL_FRAMES = 64
"""Frames that `evidence` chooses among when it reads from the file."""
_KEPT_VIDEOS = 8
_DECODE_THREADS = min(4, os.cpu_count() or 1)  # one video at a time is waited for here


class FrameSource(ABC):
    """Gives the frames of a record's video as a configuration chooses them.

    `uniform`: spread over the video. `linspace`: from the first frame to the very last. `fps`: two
    a second by Video-R1's rule. `evidence`: every pool frame inside the record's evidence spans,
    the rest uniform (a question without spans gets uniform ones). `blank`: the uniform frames, all
    grey, to measure what the language alone answers.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        self.frames_mode: FramesMode = config.frames_mode or "uniform"

    def frames(self, record: Record) -> VideoFrames:
        """Return the chosen frames in temporal order.

        Raises:
            DecodeError: there are none.
        """
        video = self.read(record)
        if self.frames_mode == "blank":
            return replace(video, frames_KHWC=np.full_like(video.frames_KHWC, GREY))
        return video

    @abstractmethod
    def read(self, record: Record) -> VideoFrames:
        """Read the chosen frames as they are."""

    @abstractmethod
    def identity(self, record: Record) -> str:
        """Return what tells this video from another one under the same name, without decoding."""


def choose_frames(
    config: EvaluateConfig, record: Record, pts_seconds_F: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Pick pool indices, sorted and without repeats."""
    num_pool = len(pts_seconds_F)
    spans = record.evidence_spans_seconds
    uniform_K = np.unique(uniform_frames(num_pool, config.num_frames))
    if config.frames_mode != "evidence" or not spans:
        return uniform_K
    inside_F = evidence_mask(pts_seconds_F, spans)
    evidence_E = np.flatnonzero(inside_F)
    if len(evidence_E) >= config.num_frames:
        return evidence_E[uniform_frames(len(evidence_E), config.num_frames)]
    others_E = np.flatnonzero(~inside_F)
    fill = min(config.num_frames - len(evidence_E), len(others_E))
    filled = others_E[uniform_frames(len(others_E), fill)] if fill else others_E[:0]
    return np.unique(np.concatenate([evidence_E, filled]))


class FileFrames(FrameSource):
    """Decodes the video files in a worker process that can be killed; keeps the last few."""

    def __init__(self, config: EvaluateConfig) -> None:
        super().__init__(config)
        self._kept: OrderedDict[str, VideoFrames] = OrderedDict()

    def identity(self, record: Record) -> str:
        """Size of the file; an absent one is found out when it is read."""
        path = self.config.data_root / record.video_id
        return f"bytes={path.stat().st_size}" if path.is_file() else "absent"

    def read(self, record: Record) -> VideoFrames:
        pool = self._kept.get(record.video_id)
        if pool is None:
            pool = self._kept[record.video_id] = self._decode(record)
            while len(self._kept) > _KEPT_VIDEOS:
                self._kept.popitem(last=False)
        if self.frames_mode != "evidence":
            return pool
        index_K = choose_frames(self.config, record, pool.pts_seconds_K)
        return replace(
            pool,
            frames_KHWC=pool.frames_KHWC[index_K],
            pts_seconds_K=pool.pts_seconds_K[index_K],
            source_index_K=pool.source_index_K[index_K],
        )

    def _decode(self, record: Record) -> VideoFrames:
        from strive.models.inputs import VideoFrames
        from strive.video.decode import decode_in_worker
        from strive.video.frame_plan import FramePlan

        config = self.config
        fewest = POOL_FRAMES if self.frames_mode == "evidence" else 1
        plan = self.frames_mode if self.frames_mode in ("linspace", "fps") else "uniform"
        decoded = decode_in_worker(
            resolve_video(config.data_root, record.video_id),
            FramePlan(plan, max(fewest, config.num_frames)),
            max_pixels=config.max_pixels,
            decoder=config.decoder,
            timeout_seconds=config.decode_timeout_seconds,
            threads=_DECODE_THREADS,
        )
        return VideoFrames(
            frames_KHWC=decoded.frames_FHWC,
            pts_seconds_K=decoded.facts.pts_seconds_F,
            source_index_K=decoded.facts.source_index_F,
        )


class CacheFrames(FrameSource):
    """Reads from the frame pool of a cache: the frames that training sees; decodes no video."""

    def __init__(self, reader: FrameReader, config: EvaluateConfig) -> None:
        super().__init__(config)
        self.reader = reader

    def identity(self, record: Record) -> str:
        """Return the frames key and the checksum of the stored pool."""
        if record.video_id not in self.reader:
            return "absent"
        return f"{self.reader.frames_key}/{self.reader.row(record.video_id)['checksum']}"

    def read(self, record: Record) -> VideoFrames:
        from strive.models.inputs import VideoFrames

        if record.video_id not in self.reader:
            raise DecodeError("not_cached", f"video '{record.video_id}' is not in the cache")
        info = self.reader.info(record.video_id)
        index_K = choose_frames(self.config, record, info.pts_seconds_F)
        return VideoFrames(
            frames_KHWC=self.reader.read(record.video_id, index_K),
            pts_seconds_K=info.pts_seconds_F[index_K],
            source_index_K=info.source_index_F[index_K],
        )
