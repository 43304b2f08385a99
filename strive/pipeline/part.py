"""The work between two commits: videos that are done but not yet on disk, and their counts."""

import time
from collections import Counter
from dataclasses import dataclass, field, fields

from strive.cache.failures import FailureRow, commit_failures
from strive.cache.frames import EncodedVideo, FrameWriter
from strive.cache.layout import CacheLayout
from strive.cache.scores import QuestionScores, VideoEmbeddings, commit_embeddings, commit_scores

# A commit falls due with any of these since the last one.
MAX_VIDEOS = 256
MAX_BYTES = 256 << 20
MAX_SECONDS = 20.0


def is_commit_due(num_videos: int, num_bytes: int, seconds: float) -> bool:
    """Whether so many videos, bytes of new frames or seconds since the last commit call for one."""
    return num_videos >= MAX_VIDEOS or num_bytes >= MAX_BYTES or seconds >= MAX_SECONDS


@dataclass(slots=True, kw_only=True)
class StageCounts:
    """Counts of one stage's work; those of several (Ray actors) add up."""

    num_decoded: int = 0
    num_repaired: int = 0
    num_embedded: int = 0
    num_scored: int = 0
    num_unscorable: int = 0  # questions that a scorer cannot score, such as ones without spans
    num_frames: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # {video_id: its first error}
    notes: Counter[str] = field(default_factory=Counter)  # newly decoded videos by note
    failed_questions: dict[str, str] = field(default_factory=dict)  # {question_id: its first error}
    num_parts: int = 0  # files that were committed
    bytes_written: int = 0
    decode_seconds: float = 0.0  # summed over the workers
    prepare_seconds: float = 0.0  # reading frames back and preparing them for the models
    embed_seconds: float = 0.0  # models at work, frames and questions, summed over threads
    embed_wall_seconds: float = 0.0  # in which any model was at work
    write_seconds: float = 0.0

    @property
    def num_failed(self) -> int:
        """Videos that have failed; one on which several scorers fail counts once."""
        return len(self.failed)

    @property
    def failed_by_error(self) -> dict[str, int]:
        """Failed videos by the error that came first."""
        return dict(Counter(self.failed.values()))

    @property
    def failed_questions_by_error(self) -> dict[str, int]:
        """Questions that some scorer failed on, by the error that came first."""
        return dict(Counter(self.failed_questions.values()))

    @property
    def failed_text(self) -> str:
        """`2 failed`, and how many questions if there are any."""
        num_questions = len(self.failed_questions)
        questions = f", {num_questions} questions not scored" * bool(num_questions)
        return f"{self.num_failed} failed{questions}"

    def add(self, other: "StageCounts") -> None:
        """Add what another stage has done."""
        for item in fields(StageCounts):
            value = getattr(other, item.name)
            if isinstance(value, Counter):
                getattr(self, item.name).update(value)
            elif isinstance(value, dict):
                mine = getattr(self, item.name)
                for name, error in value.items():
                    mine.setdefault(name, error)
            else:
                setattr(self, item.name, getattr(self, item.name) + value)

    def reset(self) -> None:
        """Begin again from zero."""
        for item in fields(StageCounts):
            value = getattr(self, item.name)
            setattr(self, item.name, type(value)())


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
        self.scores: dict[str, list[QuestionScores]] = {}

    def add_frames(self, video: EncodedVideo) -> None:
        """Add the frames of a newly decoded video."""
        started = time.monotonic()
        self.frames.add(video)
        self.counts.num_decoded += 1
        self.counts.num_frames += video.facts.num_frames
        self.counts.num_repaired += bool(video.facts.repaired)
        self.counts.notes.update(video.facts.notes)
        self.counts.write_seconds += time.monotonic() - started

    def add_embeddings(self, scorer_key: str, video: VideoEmbeddings) -> None:
        """Add the embeddings of a video."""
        self.embeddings.setdefault(scorer_key, []).append(video)
        self.counts.num_embedded += 1

    def add_scores(self, scorer_key: str, rows: list[QuestionScores]) -> None:
        """Add the scores of some questions."""
        self.scores.setdefault(scorer_key, []).extend(rows)

    def add_failure(self, row: FailureRow) -> None:
        """Add a failure row."""
        self.failures.append(row)
        if row.question_id is None:
            self.counts.failed.setdefault(row.video_id, row.error)
        else:
            self.counts.failed_questions.setdefault(row.question_id, row.error)

    def commit(self) -> None:
        """Commit everything that was added.

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
