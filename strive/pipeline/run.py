"""The offline stage: decode workers beside one embedding loop, committed part by part.

Nothing is printed here except progress; the summary goes to the caller.
"""

import atexit
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

from strive.cache.failures import commit_failures
from strive.cache.layout import CacheLayout, create_cache, ensure_settings
from strive.cache.lock import writer_lock
from strive.cache.questions import write_questions
from strive.configs.load import load_config
from strive.configs.schema import PrecomputeConfig, TrainConfig
from strive.errors import Interrupted
from strive.pipeline.embed import EmbedStage
from strive.pipeline.estimate import default_workers, estimate_work
from strive.pipeline.options import (
    check_options,
    frames_fields,
    make_frames_key,
    prepare_rule,
    writer_name,
)
from strive.pipeline.prepare import decode_pool
from strive.pipeline.summary import PrecomputeSummary, check_failures, count_results, new_summary
from strive.pipeline.work import (
    SelectedRecords,
    Work,
    find_work,
    select_records,
    write_sample_ids,
)
from strive.progress import show_progress
from strive.scorers import ScorerRequest
from strive.scorers.session import ScorerSession
from strive.video.decode import decoder_order, decoder_versions

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
        work = find_work(options, layout, selected, _sessions(options, layout))
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
