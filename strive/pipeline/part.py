"""The work between two commits: videos that are done but not yet on disk."""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np

from strive.cache.embeddings import VideoEmbeddings, commit_embeddings
from strive.cache.failures import FailureRow, commit_failures
from strive.cache.frames import EncodedVideo, FrameWriter
from strive.cache.layout import CacheLayout
from strive.cache.scores import ScoreRow, commit_scores
from strive.errors import DecodeError
from strive.pipeline.options import PrecomputeSummary
from strive.pipeline.scorers import SplitScorer
from strive.pipeline.work import ScorerWork

MAX_VIDEOS = 256
MAX_BYTES = 256 << 20
MAX_SECONDS = 20.0


class Part:
    """Collects finished videos and commits them together, in an order that survives a kill.

    Frames first, then embeddings, then scores: whatever was cut off is found again as work.
    """

    def __init__(
        self,
        layout: CacheLayout,
        frames_key: str,
        scorers: Sequence[ScorerWork],
        summary: PrecomputeSummary,
        *,
        writer: str,
    ) -> None:
        self.layout, self.frames_key, self.scorers = layout, frames_key, scorers
        self.summary, self.writer = summary, writer
        self.frames = FrameWriter(layout, frames_key, writer=writer)
        self.failures: list[FailureRow] = []
        self.embeddings: dict[str, list[VideoEmbeddings]] = {}
        self.scores: dict[str, list[ScoreRow]] = {}
        self.num_videos = 0
        self.last_commit = time.monotonic()

    def add_frames(self, video: EncodedVideo) -> None:
        """Take the frames of a newly decoded video."""
        self.frames.add(video)
        self.summary.num_decoded += 1
        self.summary.num_frames += video.info.num_frames

    def add_failure(
        self, video_id: str, stage: str, error: DecodeError, seconds: float, key: str
    ) -> None:
        """Take a failure row."""
        message = ": ".join(str(part) for part in error.args[1:]) or error.kind
        row = FailureRow(video_id, video_id, stage, error.kind, message, seconds, key)
        self.failures.append(row)
        by_error = self.summary.failed_by_error
        by_error[error.kind] = by_error.get(error.kind, 0) + 1

    def run_models(self, video_id: str, frames_FHWC: np.ndarray, checksum: str) -> None:
        """Run every scorer that has not seen this video on its frames."""
        started = time.monotonic()
        for work in self.scorers:
            if video_id not in work.to_embed:
                continue
            session = work.session
            began = time.monotonic()
            try:
                if isinstance(session.scorer, SplitScorer):
                    embedded = session.embed(video_id, frames_FHWC, checksum)
                    self.embeddings.setdefault(session.key, []).append(embedded)
                else:
                    records = work.to_score[video_id]
                    rows = session.score_joint(frames_FHWC, records, checksum)
                    self.scores.setdefault(session.key, []).extend(rows)
                self.summary.num_embedded += 1
            except DecodeError as error:
                self.add_failure(video_id, "score", error, time.monotonic() - began, session.key)
        self.summary.embed_seconds += time.monotonic() - started
        self.num_videos += 1

    def add_embedded(self, work: ScorerWork, videos: Sequence[VideoEmbeddings]) -> None:
        """Score questions of videos whose embeddings the cache holds: a matmul."""
        started = time.monotonic()
        rows = work.session.score_split(videos, work.to_score)
        self.scores.setdefault(work.session.key, []).extend(rows)
        self.summary.embed_seconds += time.monotonic() - started

    @property
    def is_due(self) -> bool:
        """Whether it is time to commit."""
        return (
            self.num_videos >= MAX_VIDEOS
            or self.frames.num_bytes >= MAX_BYTES
            or time.monotonic() - self.last_commit >= MAX_SECONDS
        )

    def commit(self, *, score: bool = True) -> None:
        """Commit everything; without `score`, leave the questions of new embeddings for later."""
        by_key = {work.session.key: work for work in self.scorers}
        embeddings, self.embeddings = self.embeddings, {}
        if score:
            started = time.monotonic()
            for key, videos in embeddings.items():
                work = by_key[key]
                rows = work.session.score_split(videos, work.to_score)
                self.scores.setdefault(key, []).extend(rows)
            self.summary.embed_seconds += time.monotonic() - started
        started = time.monotonic()
        with interrupts_held():
            written = self.frames.commit()
            for key, videos in embeddings.items():
                written += commit_embeddings(self.layout, key, videos, writer=self.writer)
            scores, self.scores = self.scores, {}
            for key, rows in scores.items():
                written += commit_scores(self.layout, key, rows, writer=self.writer)
                self.summary.num_scored += len(rows)
            commit_failures(self.layout, self.failures, writer=self.writer)
            self.failures = []
        self.num_videos = 0
        self.summary.bytes_written += written
        self.last_commit = time.monotonic()
        self.summary.write_seconds += self.last_commit - started


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back for the moment of a commit; it is raised right after."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        held.append(number)

    previous: Any = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if held:
        raise KeyboardInterrupt
