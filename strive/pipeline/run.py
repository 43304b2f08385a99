"""The offline stage: decode workers beside one embedding loop, committed part by part.

Nothing is printed here except progress; the summary goes to the caller.
"""

import atexit
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from strive.cache.failures import commit_failures
from strive.cache.frames import FrameReader, read_video_states
from strive.cache.layout import CacheLayout, create_cache, ensure_settings, writer_lock
from strive.cache.questions import write_questions
from strive.cache.scores import ScoreReader, read_score_states
from strive.configs.load import load_config
from strive.configs.schema import PrecomputeConfig, TrainConfig
from strive.errors import DecodeError, Interrupted, TooManyFailuresError, way_out
from strive.pipeline.embed import EmbedStage
from strive.pipeline.part import StageCounts
from strive.pipeline.prepare import decode_pool, read_back
from strive.pipeline.work import (
    NO_TEXT,
    SelectedRecords,
    Work,
    check_options,
    find_work,
    frames_fields,
    make_frames_key,
    prepare_rule,
    select_records,
    write_sample_ids,
    writer_name,
)
from strive.progress import show_progress
from strive.scorers import ScorerRequest, SplitScorer, scorer_faults
from strive.scorers.session import ScorerSession
from strive.unmatched import Unmatched, find_unmatched
from strive.variants import DrawRule, Peak, typical_peak
from strive.video.decode import decoder_order, decoder_versions
from strive.video.worker import Outcome

NUM_TRIED = 4
# One row of the videos part: four lists of 64 numbers, and the rest.
_ROW_BYTES_PER_VIDEO = 3_000

MAX_WAYS_SHOWN = 2
"""Of how many kinds of failure, the most frequent first, an error says what to do."""

# What a user can turn when a part of the work is the one that all others wait for.
_KNOBS = {
    "decode": "decoding; more cores and --workers, --shard i/n, or --frame-plan keyframe",
    "prepare": "reading frames back and preparing them; --shard i/n, or a smaller --max-pixels",
    "embed": "the models; a GPU, a smaller --scorer-model, --shard i/n or --engine ray",
    "write": "writing; a faster disk under --cache, or --frame-codec jpeg",
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of a run, from a few of its videos that were really decoded (and embedded)."""

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


@dataclass(slots=True, kw_only=True)
class PrecomputeSummary(StageCounts):
    """The work of a call, and what the cache now holds of what was asked for."""

    cache: Path
    frames_key: str
    scorer_keys: dict[str, str] = field(default_factory=dict)
    num_videos: int = 0
    num_questions: int = 0
    num_image_rows: int = 0
    num_bad_rows: int = 0  # left out, as the call allows
    num_ok: int = 0
    redone: list[str] = field(default_factory=list)  # cached by rules that may have erred
    truncated_share: dict[str, float | None] = field(default_factory=dict)
    # How far the draws of the run that was named (else of the paper's settings) are from uniform,
    # by scorer, and which solutions no answer can earn under its grading.
    peaks: dict[str, Peak | None] = field(default_factory=dict)
    draws: str = ""  # the settings of those draws
    unmatched: Unmatched | None = None
    engine: str = "local"  # with what a cluster has
    num_workers: int = 0
    num_nodes_used: int = 1
    total_seconds: float = 0.0
    run_seconds: float = 0.0  # wall time between the first video and the last commit
    nothing_to_do: bool = False
    interrupted: bool = False
    subset_file: Path | None = None
    estimate: Estimate | None = None
    time_shares: dict[str, float] = field(default_factory=dict)
    bottleneck: str = ""

    def explain_time(self) -> None:
        """Fill `time_shares` and `bottleneck` from the seconds.

        Shares are of the run's wall time: `decode` of all workers' time together, `embed` in which
        a model was at work, `waiting` in which neither the models nor the writer were.
        """
        wall = self.run_seconds
        if wall <= 0:
            return
        shares = {
            "decode": self.decode_seconds / (wall * max(self.num_workers, 1)),
            "prepare": self.prepare_seconds / wall,
            "embed": self.embed_wall_seconds / wall,
            "write": self.write_seconds / wall,
        }
        shares = {name: min(share, 1.0) for name, share in shares.items()}
        shares["waiting"] = max(0.0, 1.0 - max(shares["embed"], shares["write"]))
        self.time_shares = shares
        slowest = max(_KNOBS, key=lambda name: shares[name])
        if self.num_decoded + self.num_embedded + self.num_scored:
            self.bottleneck = _KNOBS[slowest]


SummaryHook = Callable[[PrecomputeSummary], None]


# --- a call ---------------------------------------------------------------------------------------


def precompute(
    options: PrecomputeConfig, on_summary: SummaryHook | None = None
) -> PrecomputeSummary:
    """Bring the cache to what the options ask for, doing only what is missing.

    `on_summary` also sees the summary of a call that ends with an error after its work.

    Raises:
        TooManyFailuresError: more videos failed than allowed; everything else is committed.
        Interrupted: the user interrupted; what was finished is committed.
        DiskError: writing failed; what was committed before is intact.
    """
    started = time.monotonic()
    try:
        check_options(options)
        # The run for which the summary says what scores and solutions are worth.
        training = load_config(TrainConfig, [options.for_config] if options.for_config else [])
        selected = select_records(options)
        # A cache is made only when the scorers are known to load.
        layout = CacheLayout(options.cache)
        if layout.version_file.is_file():
            create_cache(options.cache)  # refuses one of another version
        frames_key = make_frames_key(options)
        sessions = []
        for name in dict.fromkeys(options.scorers):
            request = ScorerRequest(
                options.scorer_models.get(name),
                options.device,
                options.dtype,
                options.embed_batch_size,
                options.long_text,
            )
            sessions.append(ScorerSession(name, request, layout, frames_key, options.query))
        work = find_work(options, layout, selected, sessions)
        summary = new_summary(options, selected, work)
        if options.dry_run:
            summary.estimate = estimate_work(options, layout, work)
        else:
            try:
                with nullcontext() if work.is_empty else writer_lock(layout, writer_name(options)):
                    _commit_inputs(options, layout, selected, work, summary)
                    if work.num_videos:
                        _run(options, layout, work, summary)
            except KeyboardInterrupt:
                summary.interrupted = True
        summary.total_seconds = time.monotonic() - started
        summary.explain_time()
        count_results(training, layout, selected, work, summary)
    except KeyboardInterrupt:
        raise Interrupted("interrupted before there was anything to keep") from None
    if on_summary is not None:
        on_summary(summary)
    if summary.interrupted:
        raise Interrupted("interrupted; what was finished is kept, the same command goes on")
    check_failures(options, summary)
    return summary


def _commit_inputs(
    options: PrecomputeConfig,
    layout: CacheLayout,
    selected: SelectedRecords,
    work: Work,
    summary: PrecomputeSummary,
) -> None:
    """Commit what stands around the parts: settings, questions, known failures, a sample's ids."""
    create_cache(options.cache)
    settings = {
        "fields": frames_fields(options),
        "decoder_versions": decoder_versions(),
        "decoder_order": list(decoder_order(options.decoder)),
    }
    ensure_settings(layout.frames(make_frames_key(options)), settings)
    for scorer in work.scorers:
        if scorer.to_score:
            scorer.session.scorer  # noqa: B018 - a model that cannot be loaded ends the call now
        scorer.session.commit_settings()
    write_questions(layout, selected.records, writer=writer_name(options))
    commit_failures(layout, work.new_failures, writer=writer_name(options))
    summary.subset_file = write_sample_ids(options, selected)


def _run(
    options: PrecomputeConfig, layout: CacheLayout, work: Work, summary: PrecomputeSummary
) -> None:
    """Decode, embed, score and commit what is left, in this process or on Ray."""
    if options.engine == "ray":
        from strive.pipeline.ray_engine import run_with_ray

        run_with_ray(options, work, summary)
        return
    started = time.monotonic()
    sessions = [scorer.session for scorer in work.scorers]
    seen: set[str] = set()
    with show_progress("precompute", work.num_videos, "videos") as progress:

        def advance(video_id: str) -> None:
            if video_id not in seen:  # one scorer may need the model, another a matmul
                seen.add(video_id)
                frames = stage.counts.num_frames / max(time.monotonic() - started, 1e-9)
                # Nothing is decoded where only embeddings or scores are missing.
                rate = f"{frames:.0f} frames/s, " if frames else ""
                progress.note(f"{rate}{stage.counts.failed_text}")
                progress.advance()

        stage = EmbedStage(options, sessions, writer=writer_name(options), on_video=advance)
        try:
            with stage:
                num_workers = min(options.workers or default_workers(), len(work.to_decode))
                if num_workers:
                    summary.num_workers = num_workers
                    with decode_pool(
                        work.to_decode,
                        prepare_rule(options),
                        num_workers=num_workers,
                        timeout_seconds=options.decode_timeout_seconds,
                    ) as pool:
                        for outcome in pool:
                            stage.put(work.item_of(outcome.key, decode=True), outcome)
                for item in work.cached_items(layout):
                    stage.put(item)
        finally:
            summary.add(stage.counts)
            summary.run_seconds = time.monotonic() - started
            if stage.is_running:
                # A model in the middle of a long batch: everything is committed, and taking the
                # interpreter down around it could crash.
                code = getattr(sys.exception(), "exit_code", Interrupted.exit_code)
                atexit.register(_leave_at_once, stage, code)


def _leave_at_once(stage: EmbedStage, exit_code: int) -> None:
    if stage.is_running:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


# --- what it did ----------------------------------------------------------------------------------


def new_summary(
    options: PrecomputeConfig, selected: SelectedRecords, work: Work
) -> PrecomputeSummary:
    """Return the summary of a call whose work has not begun."""
    summary = PrecomputeSummary(
        cache=options.cache,
        frames_key=make_frames_key(options),
        scorer_keys={scorer.session.name: scorer.session.key for scorer in work.scorers},
        num_videos=len(selected.by_video),
        num_questions=len(selected.records),
        num_image_rows=selected.num_image_rows,
        num_bad_rows=selected.bad_rows.count,
        num_unscorable=sum(scorer.num_unscorable for scorer in work.scorers),
        nothing_to_do=work.is_empty,
        redone=list(work.redone),
    )
    summary.failed = {name: failure.error for name, failure in work.known_failures.items()}
    summary.failed_questions = {
        name: failure.error for name, failure in work.known_question_failures.items()
    } | {row.question_id: row.error for row in work.new_failures if row.question_id is not None}
    return summary


def count_results(
    training: TrainConfig,
    layout: CacheLayout,
    selected: SelectedRecords,
    work: Work,
    summary: PrecomputeSummary,
) -> None:
    """Count what the cache now holds of what was asked for."""
    for video_id, records in selected.by_video.items():
        errors = [summary.failed_questions.get(record.question_id) for record in records]
        # One bad question is no bad video, and one without a text is nobody's failure.
        if None not in errors and any(error != NO_TEXT for error in errors):
            error = next(error for error in errors if error not in (None, NO_TEXT))
            summary.failed.setdefault(video_id, str(error))
    summary.num_ok = summary.num_videos - summary.num_failed
    if summary.interrupted or summary.estimate is not None:
        cached = read_video_states(layout, summary.frames_key)
        summary.num_ok = sum(video_id in cached for video_id in selected.by_video)
    rule = DrawRule(training.num_frames, training.frame_temperature, training.score_transform)
    question_ids = {record.question_id for record in selected.records}
    for scorer in work.scorers:
        states = read_score_states(layout, scorer.session.key)
        truncated = [
            state.text_truncated
            for question_id, state in states.items()
            if question_id in question_ids and state.text_truncated is not None
        ]
        share = sum(truncated) / len(truncated) if truncated else None
        summary.truncated_share[scorer.session.name] = share
        if question_ids & states.keys():
            reader = ScoreReader(layout, scorer.session.key, selected.records)
            found = (reader.get(record.question_id) for record in selected.records)
            summary.peaks[scorer.session.name] = typical_peak(
                [scores.scores_F for scores in found if scores],
                reader.draw_rule(rule, drop_transform=True),
            )
    summary.draws = (
        f"at frame_temperature {training.frame_temperature:g}, score_transform "
        f"{training.score_transform}"
    )
    summary.unmatched = find_unmatched(selected.records, training.grading)


def check_failures(options: PrecomputeConfig, summary: PrecomputeSummary) -> None:
    """Refuse a call on which more of the videos, or of the questions, failed than it allows.

    Raises:
        TooManyFailuresError: with what failed most, and what can be done about it.
    """
    # Questions without a text are told and counted; no scorer could have done better.
    questions = {
        error: count
        for error, count in summary.failed_questions_by_error.items()
        if error != NO_TEXT
    }
    for what, errors, total in (
        ("videos", summary.failed_by_error, summary.num_videos),
        ("questions", questions, summary.num_questions),
    ):
        num_failed = sum(errors.values())
        if num_failed <= options.max_failure_fraction * total:
            continue
        ranked = sorted(errors.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{count} {error}" for error, count in ranked)
        ways = "; ".join(f"{error}: {way_out(error)}" for error, _ in ranked[:MAX_WAYS_SHOWN])
        raise TooManyFailuresError(
            f"{num_failed} of {total} {what} failed ({shown}); at most "
            f"{options.max_failure_fraction:.0%} may with --max-failure-fraction; everything else "
            f"is committed; {ways}; each failure and what to do: strive-cli cache failures "
            f"--cache {options.cache}"
        )


# --- what a call would cost -----------------------------------------------------------------------


def default_workers() -> int:
    """Return one decode worker per core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def estimate_work(options: PrecomputeConfig, layout: CacheLayout, work: Work) -> Estimate:
    """Decode and embed a few evenly chosen videos and scale up; nothing is written.

    seconds = max(videos x decode seconds / workers, videos x embed seconds): the two overlap.

    Raises:
        ScorerError: a scorer raised what no one foresaw.
    """
    for scorer in work.scorers:
        if scorer.to_embed:
            scorer.session.scorer  # noqa: B018 - loaded now: that is no time of a video
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
