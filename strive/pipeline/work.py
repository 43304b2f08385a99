"""What is asked for against what the cache holds: the work that is left."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from strive.cache.commit import commit_json
from strive.cache.embeddings import read_embedding_states
from strive.cache.failures import FailureRow, read_failures
from strive.cache.frames import VideoState, read_video_states
from strive.cache.layout import CacheLayout
from strive.cache.scores import read_score_states
from strive.configs.schema import PrecomputeConfig
from strive.errors import MissingInputError, RecordsError
from strive.files import content_digest, locate_video, modified_ns
from strive.pipeline.failing import NO_TEXT, no_text_failure
from strive.pipeline.options import make_frames_key
from strive.records import (
    Record,
    read_records,
    sample_records,
    shard_records,
)
from strive.scorers.session import ScorerSession
from strive.video.ebml import may_crop
from strive.video.mov import has_matrix, names_box

# Kinds of failure that cost nothing to look at again: what the user may have changed since (the
# folder, permissions, what is installed) shows in no file's size or time stamp.
ALWAYS_RETRIED = ("missing", "outside_root", "unreadable", "unavailable")


@dataclass(frozen=True)
class Asked:
    """The records of one call, after filters, sample, shard and limit."""

    records: tuple[Record, ...]
    num_image_rows: int
    sample_ids: tuple[str, ...] | None
    num_bad_rows: int = 0

    @cached_property
    def by_video(self) -> dict[str, list[Record]]:
        """Questions of each video, in the order of the file."""
        grouped: dict[str, list[Record]] = {}
        for record in self.records:
            grouped.setdefault(record.video_id, []).append(record)
        return grouped


def select_records(options: PrecomputeConfig) -> Asked:
    """Read the records of a call.

    Raises:
        MissingInputError: a file or the video root does not exist.
        RecordsError: a file is malformed, or nothing is left of it.
    """
    if not options.video_root.is_dir():
        raise MissingInputError(f"no folder at {options.video_root}; give one with --video-root")
    read = read_records(options.data, filters=options.filters, skip_bad=options.skip_bad_records)
    records: Sequence[Record] = read.records
    bad_rows = read.bad_rows
    if not records:
        shown = ", ".join(str(path) for path in options.data)
        filters = " ".join(f"--filter {name}={value}" for name, value in options.filters)
        passed = f"{read.num_image_rows} image rows passed over"
        bad = f", {bad_rows.count} bad rows left out" * bool(bad_rows.count)
        raise RecordsError(
            f"no video record in {shown}"
            + (f" matches {filters}" if filters else "")
            + f" ({passed}{bad})"
            + (f"; the first: {bad_rows.shown[0]}" if bad_rows.count else "")
        )
    sample_ids, num_image_rows = None, read.num_image_rows
    if options.for_config is not None:
        held_out = read_records(options.held_out, skip_bad=options.skip_bad_records)
        bad_rows.count += held_out.bad_rows.count
        records = _as_a_run_reads(options, records, held_out.records)
        num_image_rows += held_out.num_image_rows
        sample_ids = tuple(record.question_id for record in records)
    elif options.subset is not None:
        records = sample_records(records, options.subset, options.seed)
        sample_ids = tuple(record.question_id for record in records)
    records = shard_records(records, *options.shard)
    if options.limit is not None:
        first = set(list(dict.fromkeys(record.video_id for record in records))[: options.limit])
        records = [record for record in records if record.video_id in first]
    return Asked(tuple(records), num_image_rows, sample_ids, bad_rows.count)


def _as_a_run_reads(
    options: PrecomputeConfig, records: Sequence[Record], held_out: Sequence[Record]
) -> tuple[Record, ...]:
    """Return the sample that a training run draws from `records`, then its held-out records."""
    if options.subset is not None and options.subset < len(records):
        records = sample_records(records, options.subset, options.seed)
    sampled = {record.question_id: record for record in records}
    for record in held_out:
        if sampled.setdefault(record.question_id, record) != record:
            raise RecordsError(
                f"problem_id {record.question_id} is another question in data than in held_out; "
                "ids must be unique"
            )
    return tuple(sampled.values())


def write_sample_ids(options: PrecomputeConfig, asked: Asked) -> Path | None:
    """Write the ids of a sample beside the cache, for whoever wants to train on the same."""
    if asked.sample_ids is None:
        return None
    what = f"subset-{options.subset}"
    content: dict[str, Any] = {"subset": options.subset, "seed": options.seed}
    if options.for_config is not None:
        what = f"for-{Path(options.for_config).stem}"
        content = {"for_config": options.for_config, **content}
    path = options.cache.parent / f"{options.cache.name}-{what}-seed-{options.seed}.json"
    content["filters"] = [list(pair) for pair in options.filters]
    content["question_ids"] = list(asked.sample_ids)
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
    num_unscorable: int = 0
    to_embed: set[str] = field(default_factory=set)
    to_score: dict[str, list[Record]] = field(default_factory=dict)

    @property
    def num_questions(self) -> int:
        """Questions without scores."""
        return sum(len(records) for records in self.to_score.values())


@dataclass(slots=True)
class Work:
    """The work of one call.

    What failed before and is as it was then is not tried again: `known_failures` by video and
    `known_question_failures` by question. `new_failures` need no trying: they are to be written.
    """

    to_decode: list[str]
    scorers: list[ScorerWork]
    known_failures: dict[str, FailureRow]
    cached: dict[str, VideoState]
    redone: list[str] = field(default_factory=list)  # cached by rules that may have erred
    known_question_failures: dict[str, FailureRow] = field(default_factory=dict)
    new_failures: list[FailureRow] = field(default_factory=list)

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
        """Whether the cache already holds all that is asked for, as far as it can be had."""
        return self.num_videos == 0 and not self.new_failures


def find_work(
    options: PrecomputeConfig,
    layout: CacheLayout,
    asked: Asked,
    sessions: Sequence[ScorerSession],
) -> Work:
    """Compare what is asked for with what is committed."""
    frames_key = make_frames_key(options)
    cached = {} if options.overwrite else read_video_states(layout, frames_key)
    known = [] if options.retry_failed or options.overwrite else read_failures(layout)
    failures = {(row.video_id, row.key): row for row in known if row.question_id is None}
    work = Work([], [], {}, cached)
    for video_id in asked.by_video:
        failure = failures.get((video_id, frames_key))
        path = locate_video(options.video_root, video_id)
        is_redone = False
        if video_id in cached and not _has_changed(path, cached[video_id]):
            is_redone = _may_be_wrong(path, cached[video_id])
            if not is_redone:
                continue
        if failure is None or failure.error in ALWAYS_RETRIED or _has_changed_since(path, failure):
            work.to_decode.append(video_id)
            if is_redone:
                work.redone.append(video_id)
        else:
            work.known_failures[video_id] = failure
    decoding = set(work.to_decode)
    of_questions = {(row.question_id, row.key): row for row in known if row.question_id is not None}
    for session in sessions:
        scorer = ScorerWork(session)
        scored = {} if options.overwrite else read_score_states(layout, session.key)
        embedded = {} if options.overwrite else read_embedding_states(layout, session.key)
        for video_id, asked_for in asked.by_video.items():
            if video_id in work.known_failures:
                continue
            # Frames that are about to be decoded anew leave nothing of what was made of the old.
            state = None if video_id in decoding else cached.get(video_id)
            missing = []
            for record in asked_for:
                if not session.can_score(record):
                    scorer.num_unscorable += 1
                    continue
                row = scored.get(record.question_id)
                digest = session.digest_of(record)
                if (
                    state is not None
                    and row is not None
                    and (row.query_digest, row.frames_checksum) == (digest, state.checksum)
                ):
                    continue
                failure = of_questions.get((record.question_id, session.key))
                if failure is not None and failure.query_digest == digest:
                    # A question without a text has none whatever the frames are.
                    made_from = None if failure.error == NO_TEXT else failure.frames_checksum
                    if made_from is None or (state is not None and made_from == state.checksum):
                        work.known_question_failures.setdefault(record.question_id, failure)
                        continue
                without_text = no_text_failure(record, session)
                if without_text is None:
                    missing.append(record)
                else:
                    work.new_failures.append(without_text)
            if not missing:
                continue
            scorer.to_score[video_id] = missing
            has_embeddings = state is not None and embedded.get(video_id) == state.checksum
            if not (session.is_split and has_embeddings):
                scorer.to_embed.add(video_id)
        work.scorers.append(scorer)
    return work


def _has_changed(path: Path, state: VideoState) -> bool:
    """Whether a file has another content than when it was cached; an absent file has not changed.

    A file of the same size is read only if its time stamp differs: copying changes that.
    """
    try:
        status = path.stat()
        if status.st_size != state.size_bytes:
            return True
        if state.modified_ns is None or modified_ns(status) == state.modified_ns:
            return False
        return content_digest(path)[1] != state.content_digest
    except (OSError, ValueError):
        return False  # the cache serves without the videos


def _may_be_wrong(path: Path, state: VideoState) -> bool:
    """Whether an older row may show a video otherwise than players do, and its file is there.

    Then only turning by quarters was known, no mirroring and no cropping, and repair forgot edit
    lists.
    """
    if state.way is not None:
        return False
    try:
        if state.rotation:
            return path.is_file()
        if has_matrix(path) or names_box(path, b"clap") or may_crop(path):
            return True
        return bool(state.repaired) and names_box(path, b"elst")
    except (OSError, ValueError):
        return False  # the cache serves without the videos


def _has_changed_since(path: Path, failure: FailureRow) -> bool:
    """Whether a file is another than the one that failed, or which one failed is not known."""
    try:
        status = path.stat()
        if (status.st_size, modified_ns(status)) == (failure.size_bytes, failure.modified_ns):
            return False
        if status.st_size != failure.size_bytes or failure.content_digest is None:
            return True
        return content_digest(path)[1] != failure.content_digest
    except (OSError, ValueError):
        return failure.size_bytes is not None  # it was there
