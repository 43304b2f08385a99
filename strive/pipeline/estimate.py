"""What a run would cost, from a few of its videos."""

import os
import shutil
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from strive.cache.frames import FrameReader
from strive.cache.layout import CacheLayout
from strive.configs.schema import PrecomputeConfig
from strive.errors import DecodeError
from strive.pipeline.options import make_frames_key, prepare_rule
from strive.pipeline.prepare import decode_pool, read_back
from strive.pipeline.work import Work
from strive.scorers import SplitScorer, scorer_faults
from strive.video.worker import Outcome

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


def estimate_work(options: PrecomputeConfig, layout: CacheLayout, work: Work) -> Estimate:
    """Decode and embed a few evenly chosen videos and scale up; nothing is written.

    seconds = max(videos x decode seconds / workers, videos x embed seconds): the two overlap.

    Raises:
        ScorerError: a scorer raised what no one foresaw.
    """
    for scorer in work.scorers:
        if scorer.to_embed:
            scorer.session.mode  # noqa: B018 - loaded now: that is no time of a video
    decode_seconds: list[float] = []
    embed_seconds: list[float] = []
    frame_bytes: list[int] = []
    embedding_bytes: list[int] = []
    num_tried = num_failed = 0
    with closing(_sample(options, layout, work)) as sample:
        for video_id, outcome, frames_FHWC, pts_seconds_F in sample:
            num_tried += 1
            if outcome is not None:
                decode_seconds.append(outcome.seconds)
                if outcome.error is not None:
                    num_failed += 1
                    continue
                frame_bytes.append(outcome.value.num_bytes)
            started = time.monotonic()
            try:
                num_bytes = _embed(work, video_id, frames_FHWC, pts_seconds_F)
            except DecodeError:  # it would be this video's failure row
                num_failed += 1
                continue
            embedding_bytes.append(num_bytes)
            embed_seconds.append(time.monotonic() - started)
    num_workers = min(options.workers or default_workers(), max(len(work.to_decode), 1))
    num_embed = len(set().union(*(scorer.to_embed for scorer in work.scorers)))
    per_decode, per_embed = _mean(decode_seconds), _mean(embed_seconds)
    num_bytes_on_disk = len(work.to_decode) * (_mean(frame_bytes) + _ROW_BYTES_PER_VIDEO)
    num_bytes_on_disk += num_embed * _mean(embedding_bytes)
    return Estimate(
        num_videos_to_decode=len(work.to_decode),
        num_videos_to_embed=num_embed,
        num_questions_to_score=sum(
            len(records) for scorer in work.scorers for records in scorer.to_score.values()
        ),
        num_videos_tried=num_tried,
        num_tried_failed=num_failed,
        bytes_on_disk=int(num_bytes_on_disk),
        bytes_free=shutil.disk_usage(_existing(options.cache)).free,
        seconds=max(len(work.to_decode) * per_decode / num_workers, num_embed * per_embed),
        decode_seconds_per_video=per_decode,
        embed_seconds_per_video=per_embed,
        num_workers=num_workers,
    )


def _sample(
    options: PrecomputeConfig, layout: CacheLayout, work: Work
) -> Generator[tuple[str, Outcome | None, np.ndarray, np.ndarray]]:
    """Yield a few videos: what became of decoding them (None: read), frames, times in seconds."""
    if work.to_decode:
        rule = prepare_rule(options)
        video_ids = _spread(work.to_decode)
        timeout_seconds = options.decode_timeout_seconds
        with decode_pool(video_ids, rule, num_workers=1, timeout_seconds=timeout_seconds) as pool:
            for outcome in pool:
                if outcome.error is not None:
                    yield outcome.key, outcome, np.empty(0), np.empty(0)
                else:
                    frames_FHWC = read_back(outcome.value, rule.codec)
                    yield outcome.key, outcome, frames_FHWC, outcome.value.facts.pts_seconds_F
    elif work.to_read:
        reader = FrameReader(layout, make_frames_key(options))
        for video_id in _spread(work.to_read):
            facts = reader.info(video_id)
            frames_FHWC = reader.read(video_id, range(facts.num_frames))
            yield video_id, None, frames_FHWC, facts.pts_seconds_F


def _spread(video_ids: list[str]) -> list[str]:
    """Choose a few, evenly."""
    return video_ids[:: max(1, len(video_ids) // NUM_TRIED)][:NUM_TRIED]


def _embed(work: Work, video_id: str, frames_FHWC: np.ndarray, pts_seconds_F: np.ndarray) -> int:
    """Run every scorer once on a video and return what its float16 embeddings would take."""
    num_bytes = 0
    for scorer in work.scorers:
        if video_id not in scorer.to_embed:
            continue
        session = scorer.session
        with scorer_faults(session.name, f"on video '{video_id}'"):
            if isinstance(session.scorer, SplitScorer):
                num_bytes += np.asarray(session.scorer.embed_frames(frames_FHWC)).size * 2
            else:
                for record in scorer.to_score.get(video_id, []):
                    session.score_one(record, frames_FHWC, pts_seconds_F, "")
    return num_bytes


def _mean(values: list[float] | list[int]) -> float:
    return float(np.mean(values)) if values else 0.0


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
