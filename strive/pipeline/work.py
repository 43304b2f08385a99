"""What is asked for against what the cache holds: the work that is left."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from strive.cache.commit import commit_json
from strive.cache.embeddings import read_embedding_states
from strive.cache.failures import FailureRow, read_failures
from strive.cache.frames import VideoState, read_video_states
from strive.cache.layout import CacheLayout
from strive.cache.scores import read_score_states
from strive.errors import MissingInputError, RecordsError
from strive.pipeline.options import PrecomputeOptions
from strive.pipeline.session import ScorerSession, query_digest
from strive.records import (
    Record,
    filter_records,
    read_records,
    sample_records,
    shard_records,
)

# Kinds of failure that cost nothing to look at again: the user may have put the file there.
ALWAYS_RETRIED = ("missing", "outside_root")


@dataclass(frozen=True)
class Asked:
    """The records of one call, after filters, sample, shard and limit."""

    records: tuple[Record, ...]
    num_image_rows: int
    subset_ids: tuple[str, ...] | None

    @cached_property
    def by_video(self) -> dict[str, list[Record]]:
        """Questions of each video, in the order of the file."""
        grouped: dict[str, list[Record]] = {}
        for record in self.records:
            grouped.setdefault(record.video_id, []).append(record)
        return grouped


def select_records(options: PrecomputeOptions) -> Asked:
    """Read the records of a call.

    Raises:
        MissingInputError: a file or the video root does not exist.
        RecordsError: a file is malformed, or nothing is left of it.
    """
    if not options.video_root.is_dir():
        raise MissingInputError(f"no folder at {options.video_root}; give one with --video-root")
    read = read_records(options.data)
    records: Sequence[Record] = filter_records(read.records, options.filters)
    if not records:
        shown = ", ".join(str(path) for path in options.data)
        filters = " ".join(f"--filter {name}={value}" for name, value in options.filters)
        raise RecordsError(
            f"no video record in {shown}" + (f" matches {filters}" if filters else "")
        )
    subset_ids = None
    if options.subset is not None:
        records = sample_records(records, options.subset, options.seed)
        subset_ids = tuple(record.question_id for record in records)
    records = shard_records(records, *options.shard)
    if options.limit is not None:
        first = set(list(dict.fromkeys(record.video_id for record in records))[: options.limit])
        records = [record for record in records if record.video_id in first]
    return Asked(tuple(records), read.num_image_rows, subset_ids)


def write_subset_ids(options: PrecomputeOptions, asked: Asked) -> Path | None:
    """Write the ids of a sample beside the cache, for whoever wants to train on the same."""
    if asked.subset_ids is None:
        return None
    name = f"{options.cache.name}-subset-{options.subset}-seed-{options.seed}.json"
    path = options.cache.parent / name
    content = {
        "subset": options.subset,
        "seed": options.seed,
        "filters": [list(pair) for pair in options.filters],
        "question_ids": list(asked.subset_ids),
    }
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != content:
        commit_json(path, content)
    return path


@dataclass(frozen=True, slots=True)
class VideoTask:
    """What one video needs: by scorer key, the questions of each scorer that has to look at it."""

    video_id: str
    records: dict[str, tuple[Record, ...]]


@dataclass(slots=True)
class ScorerWork:
    """What one scorer has to do: videos to run its model on, and questions to score."""

    session: ScorerSession
    to_embed: set[str] = field(default_factory=set)
    to_score: dict[str, list[Record]] = field(default_factory=dict)

    @property
    def num_questions(self) -> int:
        """Questions without scores."""
        return sum(len(records) for records in self.to_score.values())


@dataclass(slots=True)
class Work:
    """The work of one call."""

    to_decode: list[str]
    scorers: list[ScorerWork]
    known_failures: dict[str, FailureRow]
    cached: dict[str, VideoState]

    @property
    def to_read(self) -> list[str]:
        """Cached videos that some scorer's model has not seen."""
        wanted = {video_id for scorer in self.scorers for video_id in scorer.to_embed}
        wanted -= set(self.to_decode)
        return [video_id for video_id in self.cached if video_id in wanted]

    def task_of(self, video_id: str) -> VideoTask:
        """Return what a video needs that is decoded, or read because a model has not seen it."""
        return VideoTask(
            video_id,
            {
                scorer.session.key: tuple(scorer.to_score[video_id])
                for scorer in self.scorers
                if video_id in scorer.to_embed and scorer.to_score.get(video_id)
            },
        )

    @property
    def num_videos(self) -> int:
        """Videos that something has to be done for."""
        pending = {video_id for scorer in self.scorers for video_id in scorer.to_score}
        return len(pending | set(self.to_decode))

    @property
    def is_empty(self) -> bool:
        """Whether the cache already holds all that is asked for."""
        return self.num_videos == 0


def find_work(
    options: PrecomputeOptions,
    layout: CacheLayout,
    asked: Asked,
    sessions: Sequence[ScorerSession],
) -> Work:
    """Compare what is asked for with what is committed."""
    frames_key = options.frames_key()
    by_video = asked.by_video
    cached = {} if options.overwrite else read_video_states(layout, frames_key)
    failures = {} if options.retry_failed or options.overwrite else _failures(layout, by_video)
    to_decode, known = [], {}
    for video_id in by_video:
        failure = failures.get((video_id, frames_key))
        if video_id in cached and not _has_changed(options.video_root / video_id, cached[video_id]):
            continue
        if failure is not None and failure.error not in ALWAYS_RETRIED:
            known[video_id] = failure
            continue
        to_decode.append(video_id)
    scorers = []
    for session in sessions:
        work = _scorer_work(options, layout, session, by_video, set(to_decode), cached)
        for video_id in list(work.to_score):
            failure = failures.get((video_id, session.key))
            if video_id in known or failure is not None:
                if failure is not None:
                    known.setdefault(video_id, failure)
                del work.to_score[video_id]
                work.to_embed.discard(video_id)
        scorers.append(work)
    return Work(to_decode, scorers, known, cached)


def _scorer_work(
    options: PrecomputeOptions,
    layout: CacheLayout,
    session: ScorerSession,
    by_video: dict[str, list[Record]],
    to_decode: set[str],
    cached: dict[str, VideoState],
) -> ScorerWork:
    scored = {} if options.overwrite else read_score_states(layout, session.key)
    embedded = {} if options.overwrite else read_embedding_states(layout, session.key)
    work = ScorerWork(session)
    for video_id, records in by_video.items():
        state = cached.get(video_id)
        missing = records
        if video_id not in to_decode and state is not None:
            missing = [
                record
                for record in records
                if (row := scored.get(record.question_id)) is None
                or row.query_digest != query_digest(record, session.template)
                or row.frames_checksum != state.checksum
            ]
        if not missing:
            continue
        work.to_score[video_id] = list(missing)
        has_embeddings = state is not None and embedded.get(video_id) == state.checksum
        if video_id in to_decode or not (session.is_split and has_embeddings):
            work.to_embed.add(video_id)
    return work


def _failures(
    layout: CacheLayout, by_video: dict[str, list[Record]]
) -> dict[tuple[str, str], FailureRow]:
    return {
        (failure.video_id, failure.key): failure
        for failure in read_failures(layout)
        if failure.video_id in by_video
    }


def _has_changed(path: Path, state: VideoState) -> bool:
    """Whether a file has another size than when it was cached; an absent file has not changed."""
    try:
        return path.stat().st_size != state.size_bytes
    except OSError:
        return False  # the cache serves without the videos
