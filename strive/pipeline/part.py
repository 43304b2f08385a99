"""The work between two commits: videos that are done but not yet on disk."""

import time

from strive.cache.embeddings import VideoEmbeddings, commit_embeddings
from strive.cache.failures import FailureRow, commit_failures
from strive.cache.frames import EncodedVideo, FrameWriter
from strive.cache.layout import CacheLayout
from strive.cache.scores import ScoreRow, commit_scores
from strive.pipeline.summary import StageCounts

# A commit falls due with any of these since the last one.
MAX_VIDEOS = 256
MAX_BYTES = 256 << 20
MAX_SECONDS = 20.0


class Part:
    """Collects finished videos and commits them together, in an order that survives a kill.

    Frames first, then embeddings, then scores: whatever was cut off is found again as work. Frames
    go to a hidden file as they come, so that a part costs little memory. Used by one thread.
    """

    def __init__(
        self, layout: CacheLayout, frames_key: str, counts: StageCounts, *, writer: str
    ) -> None:
        self.layout, self.frames_key = layout, frames_key
        self.counts, self.writer = counts, writer
        self.frames = FrameWriter(layout, frames_key, writer=writer)
        self.failures: list[FailureRow] = []
        self.embeddings: dict[str, list[VideoEmbeddings]] = {}
        self.scores: dict[str, list[ScoreRow]] = {}

    def add_frames(self, video: EncodedVideo) -> None:
        """Take the frames of a newly decoded video."""
        started = time.monotonic()
        self.frames.add(video)
        self.counts.num_decoded += 1
        self.counts.num_frames += video.facts.num_frames
        self.counts.num_repaired += bool(video.facts.repaired)
        self.counts.notes.update(video.facts.notes)
        self.counts.write_seconds += time.monotonic() - started

    def add_embeddings(self, scorer_key: str, video: VideoEmbeddings) -> None:
        """Take the embeddings of a video."""
        self.embeddings.setdefault(scorer_key, []).append(video)
        self.counts.num_embedded += 1

    def add_scores(self, scorer_key: str, rows: list[ScoreRow]) -> None:
        """Take the scores of some questions."""
        self.scores.setdefault(scorer_key, []).extend(rows)

    def add_failure(self, row: FailureRow) -> None:
        """Take a failure row."""
        self.failures.append(row)
        if row.question_id is None:
            self.counts.failed.setdefault(row.video_id, row.error)
        else:
            self.counts.failed_questions.setdefault(row.question_id, row.error)

    def commit(self) -> None:
        """Commit everything that was taken.

        Raises:
            DiskError: writing failed; what was committed before is intact.
        """
        started = time.monotonic()
        num_parts = bool(self.frames.num_bytes) + len(self.embeddings) + len(self.scores)
        self.counts.num_parts += num_parts + bool(self.failures)
        written = self.frames.commit()
        embeddings, self.embeddings = self.embeddings, {}
        for key, videos in embeddings.items():
            written += commit_embeddings(self.layout, key, videos, writer=self.writer)
        scores, self.scores = self.scores, {}
        for key, rows in scores.items():
            written += commit_scores(self.layout, key, rows, writer=self.writer)
            self.counts.num_scored += len(rows)
        failures, self.failures = self.failures, []
        commit_failures(self.layout, failures, writer=self.writer)
        self.counts.bytes_written += written
        self.counts.write_seconds += time.monotonic() - started

    def discard(self) -> None:
        """Forget what was not committed, and its hidden file."""
        self.frames.discard()
