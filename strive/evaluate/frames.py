"""The frames of a video that an evaluated question sees, from the file or from a cache's pool."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strive.cache.frames import EncodedVideo, FrameCodec, FrameReader, FrameWriter
from strive.cache.layout import create_cache, ensure_settings, make_key
from strive.choices import FramesMode
from strive.configs.schema import EvaluateConfig
from strive.errors import CacheDamageError, DecodeError, OutsideRootError
from strive.evaluate.items import Item
from strive.files import content_digest, follow_video, has_video, modified_ns
from strive.progress import say
from strive.records import Record, VideoFacts, VideoFrames
from strive.variants import evidence_mask, uniform_frames
from strive.video.decode import DecodedVideo, decode_in_worker
from strive.video.frame_plan import FramePlan

GREY = 128
POOL_FRAMES = 64
"""Frames that `evidence` chooses among when it reads from the file."""
PART_BYTES = 2**28
"""Frames of so many bytes are committed to `frames_cache` together."""
_KEPT_VIDEOS = 8


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

    def prepare(self, records: Sequence[Record]) -> None:  # noqa: B027 - nothing to do, as a rule
        """Be told which questions come next."""

    def close(self) -> None:  # noqa: B027
        """End what works for this source."""


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
    """Decodes the video files, each once, in worker processes that can be killed.

    With `frames_cache` what was decoded is kept in a cache of the format of `precompute`, one set
    of frames a benchmark and rule, and the next policy that is evaluated decodes nothing.
    """

    def __init__(self, config: EvaluateConfig, name: str = "records") -> None:
        super().__init__(config)
        self._pools: OrderedDict[tuple[str, int | None], Future[VideoFrames]] = OrderedDict()
        # Each thread keeps a worker process of its own.
        self._threads = ThreadPoolExecutor(config.decode_workers or _default_workers())
        self._kept = FrameKeeper(config, name, self._plan()) if config.frames_cache else None
        self.num_decoded = 0

    def identity(self, record: Record) -> str:
        """Size of the file; an absent one is found out when it is read."""
        if not has_video(self.config.data_root, record.video_id):
            return "absent"
        path = follow_video(self.config.data_root, record.video_id)
        return f"bytes={path.stat().st_size}"

    def prepare(self, records: Sequence[Record]) -> None:
        """Begin to decode the videos of questions that are asked next."""
        for record in records:
            self._pool(record)
        # The videos of this batch and of the one before it.
        while len(self._pools) > max(_KEPT_VIDEOS, 2 * len(records)):
            self._pools.popitem(last=False)

    def read(self, record: Record) -> VideoFrames:
        pool = self._pool(record).result()
        if self.frames_mode != "evidence":
            return pool
        index_K = choose_frames(self.config, record, pool.pts_seconds_K)
        return replace(
            pool,
            frames_KHWC=pool.frames_KHWC[index_K],
            pts_seconds_K=pool.pts_seconds_K[index_K],
            source_index_K=pool.source_index_K[index_K],
        )

    def close(self) -> None:
        """Commit what is kept and end the workers."""
        self._threads.shutdown(cancel_futures=True)
        if self._kept is not None:
            self._kept.commit()

    def _plan(self, end_frame: int | None = None) -> FramePlan:
        fewest = POOL_FRAMES if self.frames_mode == "evidence" else 1
        kind = self.frames_mode if self.frames_mode in ("linspace", "fps") else "uniform"
        return FramePlan(kind, max(fewest, self.config.num_frames), end_frame)

    def _pool(self, record: Record) -> Future[VideoFrames]:
        end_frame = record.end_frame if isinstance(record, Item) else None
        key = (record.video_id, end_frame)
        if key not in self._pools:
            self._pools[key] = self._threads.submit(self._decode, record.video_id, end_frame)
        self._pools.move_to_end(key)
        return self._pools[key]

    def _decode(self, video_id: str, end_frame: int | None) -> VideoFrames:
        try:
            path = follow_video(self.config.data_root, video_id)
        except OutsideRootError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            # A loop of links, a name that is too long, or one with a NUL byte.
            raise DecodeError("missing", f"{video_id!r:.300}: {error}") from None
        kept_as = video_id if end_frame is None else f"{video_id}#{end_frame}"
        if self._kept is not None:
            found = self._kept.find(kept_as, path)
            if found is not None:
                return found
        decoded = decode_in_worker(
            path,
            self._plan(end_frame),
            max_pixels=self.config.max_pixels,
            decoder=self.config.decoder,
            timeout_seconds=self.config.decode_timeout_seconds,
        )
        self.num_decoded += 1
        if self._kept is not None:
            return self._kept.keep(kept_as, path, decoded)
        return as_frames(decoded.frames_FHWC, decoded.facts)


class FrameKeeper:
    """Keeps decoded frames in a cache; threads may share it, and processes write parts apart."""

    def __init__(self, config: EvaluateConfig, name: str, plan: FramePlan) -> None:
        assert config.frames_cache is not None
        self.codec = FrameCodec(config.frame_codec)
        fields = {
            "plan": plan.fields,
            "max_pixels": config.max_pixels,
            "codec": self.codec.fields,
            "decoder": config.decoder,
            "benchmark": name,
        }
        layout = create_cache(config.frames_cache)
        key = make_key(f"evaluate-{name}-{plan.kind}{plan.num_frames}", fields)
        ensure_settings(layout.frames(key), {"fields": fields})
        index, count = config.shard
        self._writer = FrameWriter(layout, key, writer=f"s{index}of{count}")
        self._reader = FrameReader(layout, key)
        self._lock = threading.Lock()

    def find(self, video_id: str, path: Path) -> VideoFrames | None:
        """Return a video's kept frames; None if there are none, or the file is another now."""
        if video_id not in self._reader:
            return None
        row = self._reader.row(video_id)
        try:
            status = path.stat()
        except OSError:
            return None  # the decoder says what is wrong with it
        if status.st_size != row["size_bytes"]:
            return None
        # Copying a file changes its time stamp only.
        is_same = modified_ns(status) == row["modified_ns"]
        if not is_same and content_digest(path)[1] != row["content_digest"]:
            return None
        try:
            with self._lock:  # the reader opens its shards as they are asked for
                frames_FHWC = self._reader.read(video_id, range(row["num_frames"]))
        except CacheDamageError as error:
            say(f"warning: {error}; '{video_id}' is decoded again")
            return None
        return as_frames(frames_FHWC, self._reader.info(video_id))

    def keep(self, video_id: str, path: Path, decoded: DecodedVideo) -> VideoFrames:
        """Keep a decoded video and return its frames as the next reader will see them.

        Raises:
            DiskError: the disk refused; parts that were committed stay.
        """
        frames = tuple(self.codec.encode(frame_HWC) for frame_HWC in decoded.frames_FHWC)
        size_bytes, digest = content_digest(path)
        facts, stamp = decoded.facts, modified_ns(path.stat())
        with self._lock:
            self._writer.add(EncodedVideo(video_id, facts, size_bytes, digest, frames, stamp))
            if self._writer.num_bytes > PART_BYTES:
                self._writer.commit()
        seen_FHWC = np.stack([self.codec.decode(f, facts.height, facts.width) for f in frames])
        return as_frames(seen_FHWC, facts)

    def commit(self) -> None:
        """Make what was kept since the last part exist for readers."""
        with self._lock:
            self._writer.commit()


def as_frames(frames_FHWC: NDArray[np.uint8], facts: VideoFacts) -> VideoFrames:
    """Join a video's pictures and their times."""
    return VideoFrames(frames_FHWC, facts.pts_seconds_F, facts.source_index_F)


def _default_workers() -> int:
    return min(8, os.cpu_count() or 1)


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
        if record.video_id not in self.reader:
            raise DecodeError("not_cached", f"video '{record.video_id}' is not in the cache")
        info = self.reader.info(record.video_id)
        index_K = choose_frames(self.config, record, info.pts_seconds_F)
        return VideoFrames(
            frames_KHWC=self.reader.read(record.video_id, index_K),
            pts_seconds_K=info.pts_seconds_F[index_K],
            source_index_K=info.source_index_F[index_K],
        )
