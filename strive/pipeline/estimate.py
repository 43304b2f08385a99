"""What a run would cost, from a few of its videos."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from strive.cache.frames import VideoInfo
from strive.pipeline.feed import read_back
from strive.pipeline.options import PrecomputeOptions
from strive.pipeline.prepare import PrepareRule, next_decoder, prepare_video
from strive.pipeline.summary import Estimate
from strive.pipeline.work import Work
from strive.video.worker import Job, WorkerPool

NUM_TRIED = 4
# One row of the videos part: four lists of 64 numbers, and the rest.
_ROW_BYTES_PER_VIDEO = 3_000


def default_workers() -> int:
    """Return one decode worker per core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def estimate_work(options: PrecomputeOptions, work: Work, rule: PrepareRule) -> Estimate:
    """Decode and embed a few evenly chosen videos and scale up; nothing is written.

    seconds = max(videos x decode seconds / workers, videos x embed seconds): the two overlap.
    """
    num_workers = min(options.workers or default_workers(), max(len(work.to_decode), 1))
    step = max(1, len(work.to_decode) // NUM_TRIED)
    tried = work.to_decode[::step][:NUM_TRIED]
    num_bytes: list[int] = []
    decode_seconds, embed_seconds, num_failed = [], [], 0
    jobs = (Job(video_id, {"video_id": video_id, "rule": rule}) for video_id in tried)
    with WorkerPool(
        prepare_video,
        jobs,
        num_workers=1,
        timeout_seconds=options.decode_timeout_seconds,
        retry=next_decoder,
    ) as pool:
        for outcome in pool:
            decode_seconds.append(outcome.seconds)
            if outcome.error is not None:
                num_failed += 1
                continue
            num_bytes.append(outcome.value.num_bytes)
            frames_FHWC = read_back(outcome.value, rule.codec)
            started = time.monotonic()
            num_bytes[-1] += _embedded_bytes(work, outcome.key, frames_FHWC, outcome.value.info)
            embed_seconds.append(time.monotonic() - started)
    num_embed = len(set().union(*(scorer.to_embed for scorer in work.scorers)))
    per_decode, per_embed = _mean(decode_seconds), _mean(embed_seconds)
    per_video_bytes = _mean(num_bytes) + _ROW_BYTES_PER_VIDEO
    return Estimate(
        num_videos_to_decode=len(work.to_decode),
        num_videos_to_embed=num_embed,
        num_questions_to_score=sum(scorer.num_questions for scorer in work.scorers),
        num_videos_tried=len(tried),
        num_tried_failed=num_failed,
        bytes_on_disk=int(len(work.to_decode) * per_video_bytes),
        bytes_free=shutil.disk_usage(_existing(options.cache)).free,
        seconds=max(len(work.to_decode) * per_decode / num_workers, num_embed * per_embed),
        decode_seconds_per_video=per_decode,
        embed_seconds_per_video=per_embed,
        num_workers=num_workers,
    )


def _embedded_bytes(work: Work, video_id: str, frames_FHWC: np.ndarray, info: VideoInfo) -> int:
    """Run every scorer once on a video and return what its float16 embeddings would take."""
    num_bytes = 0
    for scorer in work.scorers:
        session = scorer.session
        if session.mode in ("batched", "split"):
            model: Any = session.scorer
            num_bytes += model.embed_frames(frames_FHWC).size * 2
            continue
        records = scorer.to_score.get(video_id, [])
        if session.mode == "joint":
            session.score_joint(frames_FHWC, info.pts_seconds_F, records, "")
        else:
            session.score_frame_free(info.pts_seconds_F, records, "")
    return num_bytes


def _mean(values: list[float] | list[int]) -> float:
    return float(np.mean(values)) if values else 0.0


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
