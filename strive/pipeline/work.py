"""The work of a call: its frames and records, and of these all that the cache lacks."""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from strive.cache.commit import commit_json
from strive.cache.failures import FailureRow, read_failures
from strive.cache.frames import FrameCodec, VideoState, read_video_states
from strive.cache.layout import CacheLayout, make_key
from strive.cache.scores import find_embeddings, query_of, read_embedding_states, read_score_states
from strive.configs.schema import PrecomputeConfig
from strive.errors import ConfigError, DecodeError, MissingInputError, RecordsError
from strive.files import content_digest, locate_video, modified_ns
from strive.pipeline.prepare import PrepareRule
from strive.records import Record, RecordSet, read_records, sample_records, shard_records
from strive.scorers import check_scorer_name
from strive.scorers.session import ScorerSession
from strive.video.containers import has_matrix, may_crop, names_box
from strive.video.decode import decoder_order
from strive.video.frame_plan import DEFAULT_MAX_PIXELS, FramePlan
from strive.video.resize import RESIZE_RULE
from strive.video.source import parse_max_missing

# Kinds of failure that cost nothing to look at again: what the user may have changed since (the
# folder, permissions, what is installed) shows in no file's size or time stamp.
ALWAYS_RETRIED = ("missing", "outside_root", "unreadable", "unavailable")
NO_TEXT = "no_text"

# --- frames ---------------------------------------------------------------------------------------


def check_options(options: PrecomputeConfig) -> None:
    """Refuse what cannot work, before anything is read.

    Raises:
        ConfigError: no records, no scorer, a model of no scorer, or `max_missing` cannot be read.
        UnknownNameError: a scorer that there is not.
    """
    if not options.data:
        raise ConfigError("no records file; give one with --data")
    if not options.scorers and options.for_config is None:
        raise ConfigError("no scorer; give one with --scorer")
    for name in options.scorers:
        check_scorer_name(name)
    for name in sorted(set(options.scorer_models) - set(options.scorers)):
        raise ConfigError(
            f"--scorer-model names '{name}', which is not among the scorers of this "
            f"call ({', '.join(options.scorers)}); add --scorer {name}"
        )
    parse_max_missing(options.max_missing)


def writer_name(options: PrecomputeConfig) -> str:
    """Return the name of this writer, part of every file name that it commits."""
    return f"s{options.shard[0]}of{options.shard[1]}"


def prepare_rule(options: PrecomputeConfig) -> PrepareRule:
    """Return how videos become frames; the budget is the frame plan's own if none is asked for."""
    plan = FramePlan(options.frame_plan, options.frames)
    return PrepareRule(
        options.video_root.resolve(),  # workers may have another working directory
        plan,
        options.max_pixels or DEFAULT_MAX_PIXELS[plan.kind],
        FrameCodec(options.frame_codec),
        decoder_order(options.decoder),
        allow_outside_root=options.allow_outside_root,
        repair=options.repair,
        max_missing=parse_max_missing(options.max_missing),
        allow_damaged=options.allow_damaged,
    )


def frames_fields(options: PrecomputeConfig) -> dict[str, Any]:
    """Return everything that decides which pixels are cached."""
    rule = prepare_rule(options)
    return {
        "plan": rule.plan.fields,
        "max_pixels": rule.max_pixels,
        "resize": RESIZE_RULE,
        "codec": rule.codec.fields,
        "decoder": options.decoder,
    }


def make_frames_key(options: PrecomputeConfig) -> str:
    """Return the frames key."""
    fields = frames_fields(options)
    name = f"{options.frame_plan}{options.frames}-{fields['max_pixels']}px-{options.frame_codec}"
    return make_key(name, fields)


# --- records --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SelectedRecords(RecordSet):
    """The records of one call, after filters, sample, shard and limit; the ids of the sample."""

    sample_ids: tuple[str, ...] | None = None

    @cached_property
    def by_video(self) -> dict[str, list[Record]]:
        """Questions of each video, in the order of the file."""
        grouped: dict[str, list[Record]] = {}
        for record in self.records:
            grouped.setdefault(record.video_id, []).append(record)
        return grouped


def select_records(options: PrecomputeConfig) -> SelectedRecords:
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
        # The sample that a training run draws from its data, then its held-out records.
        if options.subset is not None and options.subset < len(records):
            records = sample_records(records, options.subset, options.seed)
        sampled = {record.question_id: record for record in records}
        for record in held_out.records:
            if sampled.setdefault(record.question_id, record) != record:
                raise RecordsError(
                    f"problem_id {record.question_id} is another question in data than in "
                    "held_out; ids must be unique"
                )
        records = tuple(sampled.values())
        num_image_rows += held_out.num_image_rows
        sample_ids = tuple(record.question_id for record in records)
    elif options.subset is not None:
        records = sample_records(records, options.subset, options.seed)
        sample_ids = tuple(record.question_id for record in records)
    records = shard_records(records, *options.shard)
    if options.limit is not None:
        first = set(list(dict.fromkeys(record.video_id for record in records))[: options.limit])
        records = [record for record in records if record.video_id in first]
    return SelectedRecords(tuple(records), num_image_rows, bad_rows, sample_ids)


def write_sample_ids(options: PrecomputeConfig, selected: SelectedRecords) -> Path | None:
    """Write the ids of a sample beside the cache, for whoever wants to train on the same."""
    if selected.sample_ids is None:
        return None
    what = f"subset-{options.subset}"
    content: dict[str, Any] = {"subset": options.subset, "seed": options.seed}
    if options.for_config is not None:
        what = f"for-{Path(options.for_config).stem}"
        content = {"for_config": options.for_config, **content}
    path = options.cache.parent / f"{options.cache.name}-{what}-seed-{options.seed}.json"
    content["filters"] = [list(pair) for pair in options.filters]
    content["question_ids"] = list(selected.sample_ids)
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != content:
        commit_json(path, content)
    return path


# --- work -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One unit of work: a video to decode, a cached video that some scorer's model has not seen, or
    new questions about videos whose embeddings are cached in the file `part`.

    `records` are, by scorer key and video, the questions to score; `checksums` are of the frames
    that the embeddings in `part` were made from.
    """

    key: str
    video_ids: tuple[str, ...]
    records: Mapping[str, Mapping[str, Sequence[Record]]]
    decode: bool = False
    part: Path | None = None
    checksums: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class ScorerWork:
    """The work of one scorer: videos to run its model on, and questions to score."""

    session: ScorerSession
    num_unscorable: int = 0
    to_embed: set[str] = field(default_factory=set)
    to_score: dict[str, list[Record]] = field(default_factory=dict)


@dataclass(slots=True)
class Work:
    """The work of one call.

    What failed before and is as it was then is not tried again: `known_failures` by video and
    `known_question_failures` by question. `new_failures` need no trying: they are to be written.
    """

    cached: dict[str, VideoState]
    to_decode: list[str] = field(default_factory=list)
    redone: list[str] = field(default_factory=list)  # cached by rules that may have erred
    scorers: list[ScorerWork] = field(default_factory=list)
    known_failures: dict[str, FailureRow] = field(default_factory=dict)
    known_question_failures: dict[str, FailureRow] = field(default_factory=dict)
    new_failures: list[FailureRow] = field(default_factory=list)

    @property
    def to_read(self) -> list[str]:
        """Cached videos that some scorer's model has not seen."""
        wanted = {video_id for scorer in self.scorers for video_id in scorer.to_embed}
        wanted -= set(self.to_decode)
        return [video_id for video_id in self.cached if video_id in wanted]

    def item_of(self, video_id: str, *, decode: bool) -> WorkItem:
        """Return the item of a video that is decoded, or read because a model has not seen it."""
        records = {
            scorer.session.key: {video_id: tuple(scorer.to_score[video_id])}
            for scorer in self.scorers
            if video_id in scorer.to_embed and scorer.to_score.get(video_id)
        }
        return WorkItem(f"video {video_id}", (video_id,), records, decode)

    def cached_items(self, layout: CacheLayout) -> Iterator[WorkItem]:
        """Yield the items that need no decoding."""
        for video_id in self.to_read:
            yield self.item_of(video_id, decode=False)
        for scorer in self.scorers:
            key = scorer.session.key
            wanted = {
                video_id: self.cached[video_id].checksum
                for video_id in scorer.to_score
                if video_id not in scorer.to_embed
            }
            for path, held in find_embeddings(layout, key, wanted):
                questions = {video_id: scorer.to_score[video_id] for video_id in held}
                yield WorkItem(
                    f"part {key} {path.name}",
                    tuple(held),
                    {key: questions},
                    part=path,
                    checksums=held,
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
    selected: SelectedRecords,
    sessions: Sequence[ScorerSession],
) -> Work:
    """Compare what is asked for with what is committed."""
    frames_key = make_frames_key(options)
    work = Work({} if options.overwrite else read_video_states(layout, frames_key))
    known = [] if options.retry_failed or options.overwrite else read_failures(layout)
    failures = {
        row.video_id: row for row in known if (row.key, row.question_id) == (frames_key, None)
    }
    for video_id in selected.by_video:
        path = locate_video(options.video_root, video_id)
        state, failure = work.cached.get(video_id), failures.get(video_id)
        is_redone = False
        if state is not None and not _is_another_file(path, state, when_absent=False):
            is_redone = _may_be_wrong(path, state)
            if not is_redone:
                continue
        if (
            failure is None
            or failure.error in ALWAYS_RETRIED
            # A file that was there and is not fails in another way.
            or _is_another_file(path, failure, when_absent=failure.size_bytes is not None)
        ):
            work.to_decode.append(video_id)
            if is_redone:
                work.redone.append(video_id)
        else:
            work.known_failures[video_id] = failure
    of_questions = {(row.question_id, row.key): row for row in known if row.question_id is not None}
    for session in sessions:
        work.scorers.append(
            _find_scorer_work(options, layout, selected, session, work, of_questions)
        )
    return work


def _find_scorer_work(
    options: PrecomputeConfig,
    layout: CacheLayout,
    selected: SelectedRecords,
    session: ScorerSession,
    work: Work,
    failures: Mapping[tuple[str, str], FailureRow],
) -> ScorerWork:
    """Find what one scorer has to do; note in `work` the questions that fail, or did before."""
    found = ScorerWork(session)
    scored = {} if options.overwrite else read_score_states(layout, session.key)
    embedded = {} if options.overwrite else read_embedding_states(layout, session.key)
    # Frames that are about to be decoded anew leave nothing of what was made of the old.
    decoding = set(work.to_decode)
    for video_id, records in selected.by_video.items():
        if video_id in work.known_failures:
            continue
        checksum = None
        if video_id in work.cached and video_id not in decoding:
            checksum = work.cached[video_id].checksum
        missing = []
        for record in records:
            if not session.can_score(record):
                found.num_unscorable += 1
                continue
            digest = session.digest_of(record)
            row = scored.get(record.question_id)
            if row is not None and (row.query_digest, row.frames_checksum) == (digest, checksum):
                continue
            failure = failures.get((record.question_id, session.key))
            # A question without a text has none whatever the frames are.
            if (
                failure is not None
                and failure.query_digest == digest
                and (failure.error == NO_TEXT or failure.frames_checksum in (None, checksum))
            ):
                work.known_question_failures.setdefault(record.question_id, failure)
                continue
            if has_text(query_of(record, session.template)):
                missing.append(record)
            else:
                error = DecodeError(NO_TEXT, f"question {record.question_id} has no text to score")
                work.new_failures.append(question_failure(record, error, 0.0, session, None))
        if missing:
            found.to_score[video_id] = missing
            has_embeddings = checksum is not None and embedded.get(video_id) == checksum
            if not (session.settings["split"] and has_embeddings):
                found.to_embed.add(video_id)
    return found


def _is_another_file(path: Path, known: VideoState | FailureRow, *, when_absent: bool) -> bool:
    """Whether a file has another content than the one that was cached, or that failed.

    A file of the same size is read only if its time stamp differs: copying changes that. One that
    is known by no size is another.
    """
    try:
        status = path.stat()
        if status.st_size != known.size_bytes:
            return True
        if known.modified_ns is None or known.modified_ns == modified_ns(status):
            return False
        if known.content_digest is None:  # it failed and was too large to be read through
            return True
        return content_digest(path)[1] != known.content_digest
    except (OSError, ValueError):
        return when_absent


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


# --- failures as rows -----------------------------------------------------------------------------


def has_text(text: str) -> bool:
    """Whether a text has anything to read: not only blanks and invisible characters."""
    return any(unicodedata.category(character)[0] not in "ZC" for character in text)


def video_failure(
    video_id: str, error: DecodeError, seconds: float, frames_key: str, video_root: Path
) -> FailureRow:
    """Return the row of a video that has no frames, with which file it was."""
    known_as = error.known_as or (None, None, None)
    if error.known_as is None:
        with suppress(OSError, ValueError):
            status = locate_video(video_root, video_id).stat()
            known_as = status.st_size, modified_ns(status), None
    told = error.kind, _text_of(error), seconds
    return FailureRow(video_id, video_id, "decode", *told, frames_key, *known_as)


def question_failure(
    record: Record, error: DecodeError, seconds: float, session: ScorerSession, checksum: str | None
) -> FailureRow:
    """Return the row of a question that a scorer has no scores for; `checksum` is of the frames."""
    told = error.kind, _text_of(error), seconds
    return FailureRow(
        *(record.video_id, record.video_id, "score", *told, session.key),
        question_id=record.question_id,
        query_digest=session.digest_of(record),
        frames_checksum=checksum,
    )


def _text_of(error: DecodeError) -> str:
    return ": ".join(str(item) for item in error.args[1:]) or error.kind
