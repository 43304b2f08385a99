"""What a run would cost, from a few of its videos."""

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from strive.cache.frames import EncodedVideo, FrameReader
from strive.cache.layout import CacheLayout
from strive.configs.schema import PrecomputeConfig
from strive.errors import DecodeError
from strive.pipeline.options import make_frames_key, prepare_rule
from strive.pipeline.prepare import decode_pool, read_back
from strive.pipeline.work import Work
from strive.scorers import scorer_faults

NUM_TRIED = 4
# One row of the videos part: four lists of 64 numbers, and the rest.
_ROW_BYTES_PER_VIDEO = 3_000


def default_workers() -> int:
    """Return one decode worker per core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would cost, from a few videos that were really decoded (and embedded)."""

    num_videos_to_decode: int
    num_videos_to_embed: int
    num_questions_to_score: int
    num_videos_tried: int
    num_tried_failed: int
    bytes_on_disk: int
    bytes_free: int
    seconds: float
    decode_seconds_per_video: float
    embed_seconds_per_video: float
    num_workers: int


@dataclass(slots=True)
class _Sample:
    """A few videos that were tried; bytes are of frames, and of float16 embeddings."""

    num_videos: int = 0
    num_failed: int = 0
    frame_bytes: list[int] = field(default_factory=list)
    embedding_bytes: list[int] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)
    embed_seconds: list[float] = field(default_factory=list)

    def embed(
        self, work: Work, video_id: str, frames_FHWC: np.ndarray, pts_seconds_F: np.ndarray
    ) -> None:
        """Run every scorer once on a video.

        Raises:
            ScorerError: a scorer raised what no one foresaw.
        """
        started, num_bytes = time.monotonic(), 0
        for scorer in work.scorers:
            if video_id not in scorer.to_embed:
                continue
            session = scorer.session
            records = scorer.to_score.get(video_id, [])
            try:
                with scorer_faults(session.name, f"on video '{video_id}'"):
                    if session.mode in ("batched", "split"):
                        model: Any = session.scorer
                        num_bytes += np.asarray(model.embed_frames(frames_FHWC)).size * 2
                    else:
                        for record in records:
                            session.score_one(record, frames_FHWC, pts_seconds_F, "")
            except DecodeError:  # it would be this video's failure row
                self.num_failed += 1
                return
        self.embedding_bytes.append(num_bytes)
        self.embed_seconds.append(time.monotonic() - started)


def estimate_work(options: PrecomputeConfig, layout: CacheLayout, work: Work) -> Estimate:
    """Decode and embed a few evenly chosen videos and scale up; nothing is written.

    seconds = max(videos x decode seconds / workers, videos x embed seconds): the two overlap.

    Raises:
        ScorerError: a scorer raised what no one foresaw.
    """
    for scorer in work.scorers:
        if scorer.to_embed:
            scorer.session.mode  # noqa: B018 - loaded now: that is no time of a video
    num_workers = min(options.workers or default_workers(), max(len(work.to_decode), 1))
    sample = _Sample()
    if work.to_decode:
        _try_decoding(options, work, sample)
    else:
        _try_cached(options, layout, work, sample)
    num_embed = len(set().union(*(scorer.to_embed for scorer in work.scorers)))
    per_decode, per_embed = _mean(sample.decode_seconds), _mean(sample.embed_seconds)
    num_bytes = len(work.to_decode) * (_mean(sample.frame_bytes) + _ROW_BYTES_PER_VIDEO)
    num_bytes += num_embed * _mean(sample.embedding_bytes)
    return Estimate(
        num_videos_to_decode=len(work.to_decode),
        num_videos_to_embed=num_embed,
        num_questions_to_score=sum(
            len(records) for scorer in work.scorers for records in scorer.to_score.values()
        ),
        num_videos_tried=sample.num_videos,
        num_tried_failed=sample.num_failed,
        bytes_on_disk=int(num_bytes),
        bytes_free=shutil.disk_usage(_existing(options.cache)).free,
        seconds=max(len(work.to_decode) * per_decode / num_workers, num_embed * per_embed),
        decode_seconds_per_video=per_decode,
        embed_seconds_per_video=per_embed,
        num_workers=num_workers,
    )


def _spread(video_ids: list[str]) -> list[str]:
    """Take a few, evenly."""
    return video_ids[:: max(1, len(video_ids) // NUM_TRIED)][:NUM_TRIED]


def _try_decoding(options: PrecomputeConfig, work: Work, sample: _Sample) -> None:
    rule = prepare_rule(options)
    with decode_pool(
        _spread(work.to_decode),
        rule,
        num_workers=1,
        timeout_seconds=options.decode_timeout_seconds,
    ) as pool:
        for outcome in pool:
            sample.num_videos += 1
            sample.decode_seconds.append(outcome.seconds)
            if outcome.error is not None:
                sample.num_failed += 1
                continue
            video: EncodedVideo = outcome.value
            sample.frame_bytes.append(video.num_bytes)
            frames_FHWC = read_back(video, rule.codec)
            sample.embed(work, outcome.key, frames_FHWC, video.facts.pts_seconds_F)


def _try_cached(
    options: PrecomputeConfig, layout: CacheLayout, work: Work, sample: _Sample
) -> None:
    """Embed a few of the cached videos that a scorer has not seen."""
    video_ids = _spread(work.to_read)
    if not video_ids:
        return
    reader = FrameReader(layout, make_frames_key(options))
    for video_id in video_ids:
        sample.num_videos += 1
        info = reader.info(video_id)
        frames_FHWC = reader.read(video_id, range(info.num_frames))
        sample.embed(work, video_id, frames_FHWC, info.pts_seconds_F)


def _mean(values: list[float] | list[int]) -> float:
    return float(np.mean(values)) if values else 0.0


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
