"""The offline stage: decode workers beside one embedding loop, committed part by part.

Nothing is printed here except progress; the summary goes to the caller.
"""

import atexit
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from strive.answers import find_unmatched
from strive.cache.embeddings import VideoEmbeddings, iter_embeddings
from strive.cache.failures import commit_failures
from strive.cache.frames import read_video_states
from strive.cache.layout import CacheLayout, create_cache, ensure_settings
from strive.cache.lock import writer_lock
from strive.cache.questions import write_questions
from strive.cache.scores import ScoreReader, read_score_states
from strive.configs.load import load_config
from strive.configs.schema import PrecomputeConfig, TrainConfig
from strive.errors import Interrupted, TooManyFailuresError, way_out
from strive.pipeline.estimate import default_workers, estimate_work
from strive.pipeline.failing import NO_TEXT
from strive.pipeline.options import (
    check_options,
    frames_fields,
    make_frames_key,
    prepare_rule,
    writer_name,
)
from strive.pipeline.prepare import next_decoder, prepare_video
from strive.pipeline.stage import Stage
from strive.pipeline.summary import PrecomputeSummary
from strive.pipeline.work import Asked, Work, find_work, select_records, write_sample_ids
from strive.progress import show_progress
from strive.scorers import ScorerRequest
from strive.scorers.session import ScorerSession
from strive.variants import DrawRule, typical_peak
from strive.video.decode import decoder_order, decoder_versions
from strive.video.worker import Job, WorkerPool

MAX_WAYS_SHOWN = 2
"""Of how many kinds of failure, the most frequent first, an error says what to do."""

SummaryHook = Callable[[PrecomputeSummary], None]


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
    try:
        summary = _precompute(options)
    except KeyboardInterrupt:
        raise Interrupted("interrupted before there was anything to keep") from None
    if on_summary is not None:
        on_summary(summary)
    if summary.interrupted:
        raise Interrupted("interrupted; what was finished is kept, the same command goes on")
    _check_failures(options, summary)
    return summary


def _precompute(options: PrecomputeConfig) -> PrecomputeSummary:
    started = time.monotonic()
    check_options(options)
    # The run for which the summary says what scores and solutions are worth.
    training = load_config(TrainConfig, [options.for_config] if options.for_config else [])
    asked = select_records(options)
    layout = _open(options)
    work = find_work(options, layout, asked, _sessions(options, layout))
    summary = _new_summary(options, asked, work)
    if options.dry_run:
        summary.estimate = estimate_work(options, layout, work, prepare_rule(options))
    else:
        try:
            with _writing(options, layout, work):
                _commit_frame(options, layout, asked, work, summary)
                _run(options, layout, work, summary)
        except KeyboardInterrupt:
            summary.interrupted = True
    summary.total_seconds = time.monotonic() - started
    summary.explain_time()
    _count_results(training, layout, asked, work, summary)
    return summary


@contextmanager
def _writing(options: PrecomputeConfig, layout: CacheLayout, work: Work) -> Iterator[None]:
    """Hold the lock of this writer while there is work to do."""
    if work.is_empty:
        yield
        return
    with writer_lock(layout, writer_name(options)):
        yield


def _open(options: PrecomputeConfig) -> CacheLayout:
    """Open the cache if there is one; it is made only when the scorers are known to load."""
    layout = CacheLayout(options.cache)
    return create_cache(options.cache) if layout.version_file.is_file() else layout


def _sessions(options: PrecomputeConfig, layout: CacheLayout) -> list[ScorerSession]:
    frames_key = make_frames_key(options)
    return [
        ScorerSession(
            name,
            ScorerRequest(
                options.scorer_models.get(name),
                options.device,
                options.dtype,
                options.embed_batch_size,
                options.long_text,
            ),
            layout,
            frames_key,
            options.query,
        )
        for name in dict.fromkeys(options.scorers)
    ]


def _new_summary(options: PrecomputeConfig, asked: Asked, work: Work) -> PrecomputeSummary:
    summary = PrecomputeSummary(
        cache=options.cache,
        frames_key=make_frames_key(options),
        scorer_keys={scorer.session.name: scorer.session.key for scorer in work.scorers},
        num_videos=len(asked.by_video),
        num_questions=len(asked.records),
        num_image_rows=asked.num_image_rows,
        num_bad_rows=asked.num_bad_rows,
        num_unscorable=sum(scorer.num_unscorable for scorer in work.scorers),
        nothing_to_do=work.is_empty,
        redone=list(work.redone),
    )
    summary.failed = {name: failure.error for name, failure in work.known_failures.items()}
    summary.failed_questions = {
        name: failure.error for name, failure in work.known_question_failures.items()
    } | {row.question_id: row.error for row in work.new_failures if row.question_id is not None}
    return summary


def _commit_frame(
    options: PrecomputeConfig,
    layout: CacheLayout,
    asked: Asked,
    work: Work,
    summary: PrecomputeSummary,
) -> None:
    """Commit what stands around the parts: settings, questions, the ids of a sample."""
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
    write_questions(layout, asked.records, writer=writer_name(options))
    commit_failures(layout, work.new_failures, writer=writer_name(options))
    summary.subset_file = write_sample_ids(options, asked)


def _run(
    options: PrecomputeConfig, layout: CacheLayout, work: Work, summary: PrecomputeSummary
) -> None:
    if work.num_videos == 0:
        return
    if options.engine == "ray":
        from strive.pipeline.ray_engine import run_with_ray

        run_with_ray(options, layout, work, summary)
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

        stage = Stage(options, sessions, writer=writer_name(options), on_video=advance)
        try:
            with stage:
                _decode_new(options, work, stage, summary)
                for video_id in work.to_read:
                    stage.put_cached(work.task_of(video_id))
                _score_embedded(layout, work, stage)
        finally:
            summary.add(stage.counts)
            summary.run_seconds = time.monotonic() - started
            if stage.is_running:
                # A model in the middle of a long batch: everything is committed, and taking the
                # interpreter down around it could crash.
                code = getattr(sys.exception(), "exit_code", Interrupted.exit_code)
                atexit.register(_leave_at_once, stage, code)


def _leave_at_once(stage: Stage, exit_code: int) -> None:
    if stage.is_running:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _decode_new(
    options: PrecomputeConfig, work: Work, stage: Stage, summary: PrecomputeSummary
) -> None:
    """Decode the videos that the cache lacks and hand them on."""
    if not work.to_decode:
        return
    rule = prepare_rule(options)
    jobs = (Job(video_id, {"video_id": video_id, "rule": rule}) for video_id in work.to_decode)
    summary.num_workers = min(options.workers or default_workers(), len(work.to_decode))
    with WorkerPool(
        prepare_video,
        jobs,
        num_workers=summary.num_workers,
        timeout_seconds=options.decode_timeout_seconds,
        retry=next_decoder,
    ) as pool:
        for outcome in pool:
            stage.put(outcome, work.task_of(outcome.key))


def _score_embedded(layout: CacheLayout, work: Work, stage: Stage) -> None:
    """Score new questions of videos whose embeddings are cached."""
    for scorer in work.scorers:
        wanted = {
            video_id: work.cached[video_id].checksum
            for video_id in scorer.to_score
            if video_id not in scorer.to_embed
        }
        if not wanted:
            continue
        key = scorer.session.key
        for videos in _chunks(iter_embeddings(layout, key, wanted)):
            records = {video.video_id: scorer.to_score[video.video_id] for video in videos}
            stage.put_embedded(key, videos, records)


def _chunks(items: Iterator[VideoEmbeddings], size: int = 64) -> Iterator[list[VideoEmbeddings]]:
    chunk: list[VideoEmbeddings] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _count_results(
    training: TrainConfig,
    layout: CacheLayout,
    asked: Asked,
    work: Work,
    summary: PrecomputeSummary,
) -> None:
    """Count what the cache now holds of what was asked for."""
    for video_id, records in asked.by_video.items():
        errors = [summary.failed_questions.get(record.question_id) for record in records]
        # One bad question is no bad video, and one without a text is nobody's failure.
        if None not in errors and any(error != NO_TEXT for error in errors):
            error = next(error for error in errors if error not in (None, NO_TEXT))
            summary.failed.setdefault(video_id, str(error))
    summary.num_ok = summary.num_videos - summary.num_failed
    if summary.interrupted or summary.estimate is not None:
        cached = read_video_states(layout, summary.frames_key)
        summary.num_ok = sum(video_id in cached for video_id in asked.by_video)
    asked_ids = {record.question_id for record in asked.records}
    rule = DrawRule(training.num_frames, training.frame_temperature, training.score_transform)
    for scorer in work.scorers:
        states = read_score_states(layout, scorer.session.key)
        truncated = [
            state.text_truncated
            for question_id, state in states.items()
            if question_id in asked_ids and state.text_truncated is not None
        ]
        share = sum(truncated) / len(truncated) if truncated else None
        summary.truncated_share[scorer.session.name] = share
        if asked_ids & states.keys():
            reader = ScoreReader(layout, scorer.session.key, asked.records)
            found = (reader.get(record.question_id) for record in asked.records)
            summary.peaks[scorer.session.name] = typical_peak(
                [scores.scores_F for scores in found if scores],
                reader.draw_rule(rule, drop_transform=True),
            )
    summary.draws = (
        f"at frame_temperature {training.frame_temperature:g}, score_transform "
        f"{training.score_transform}"
    )
    summary.unmatched = find_unmatched(asked.records, training.grading)


def _check_failures(options: PrecomputeConfig, summary: PrecomputeSummary) -> None:
    """Raise if more of the videos, or of the questions, failed than the call allows."""
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
