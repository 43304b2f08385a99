"""What a cache holds, as data: the dataset summary and one question's view.

Numbers only: `inspect_terminal`, `inspect_html` and `inspect_png` draw them. Works on a cache whose
precompute is unfinished, and needs neither torch nor a model.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from strive.cache.failures import read_failures
from strive.cache.frames import Pools
from strive.cache.layout import open_cache
from strive.cache.questions import read_questions
from strive.cache.scores import find_scorer, list_scorers
from strive.choices import ScoreTransform, Worst
from strive.errors import CacheError, ConfigError, UnknownNameError, nearest, unknown_name
from strive.files import plain_json
from strive.records import Record, VideoFacts
from strive.report.scores import (
    InspectSettings,
    QuestionStats,
    ScoreSource,
    measure_questions,
    open_source,
)
from strive.seeding import derive_rng
from strive.variants import (
    Peak,
    draw_variants,
    effective_frames,
    evidence_mask,
    evidence_seen,
    expected_overlap,
    frame_overlap,
    segment_bounds,
    suggest_temperature,
    typical_peak,
)

__all__ = ["InspectSettings", "QuestionStats", "ScoreSource", "open_source"]


@dataclass(frozen=True, slots=True)
class ScorerSummary:
    """One scorer over all the questions it has scored."""

    name: str
    key: str
    kind: str
    score_transform: str
    num_scored: int
    num_missing: int
    """Questions whose video has frames and that have no scores yet, or stale ones."""
    num_stale: int
    """Of these, the ones with scores of an earlier text or of earlier frames."""
    num_non_finite: int
    num_wrong_length: int
    truncated_share: float
    flat_share: float
    """Questions whose P(t) is nearly uniform."""
    constant_share: float
    """Questions whose scores are all but equal."""
    peak: Peak | None
    """None where the pools leave no choice."""
    score_mean: float
    score_std: float
    score_min: float
    score_max: float
    within_segment_std: float
    effective_frames: float
    effective_share: float
    expected_overlap: float
    evidence_auc: float
    evidence_lift: float
    num_with_evidence: int


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """What a cache holds; `problems` are the integrity checks that fail (exit code 1)."""

    cache: str
    frames_key: str | None
    num_frames_keys: int
    """Sets of frames in the cache; the figures are those of one of them."""
    num_questions: int
    num_videos_named: int
    num_videos_ok: int
    num_videos_pending: int
    failures_by_error: dict[str, int]
    questions_by_type: dict[str, int]
    num_questions_with_evidence: int
    num_questions_without_frames: int
    frames_per_video: dict[int, int]
    num_videos_with_repeated_frames: int
    num_videos_short: int
    """Videos with fewer frames than segments: every variant shows all of them."""
    duration_seconds_total: float
    settings: InspectSettings
    scorers: tuple[ScorerSummary, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class QuestionView:
    """One question with its scores, probabilities and the variants that training would draw."""

    cache: str
    record: Record
    video: VideoFacts
    scorer_name: str
    scorer_key: str
    scorer_kind: str
    settings: InspectSettings
    logit_scale: float
    scores_F: NDArray[np.float64]
    probabilities_F: NDArray[np.float64]
    bounds_K2: NDArray[np.int64]
    effective_frames_K: NDArray[np.floating]
    expected_overlap: float
    picks_MK: NDArray[np.int64]
    frame_overlap: float
    evidence_F: NDArray[np.bool_] | None
    """Which pool frames lie in an evidence span; None where no span is known."""
    evidence_seen_M: NDArray[np.bool_] | None
    stats: QuestionStats


MEANS = ("within_segment_std", "effective_frames", "effective_share", "expected_overlap")
"""Measures of a question that a scorer's summary shows the mean of."""

# --- the dataset summary ------------------------------------------------------------------------


def summarise(
    cache_root: Path, scorer: str | None = None, *, settings: InspectSettings | None = None
) -> DatasetSummary:
    """Summarise a cache; `scorer` restricts the scores to one, otherwise each has its own row.

    A transform that a scorer's kind does not allow is an error for a named scorer; in the overview
    that scorer's row is computed, and marked, with `none`.
    """
    settings = settings or InspectSettings()
    layout = open_cache(cache_root)
    records = read_questions(layout)
    failures = read_failures(layout)
    infos = [find_scorer(layout, scorer)] if scorer else list_scorers(layout)
    frames_keys = {info.frames_key for info in infos} or layout.frames_keys()
    pools = {key: Pools(layout, key) for key in sorted(frames_keys)}
    # The set of frames that an overview describes: the one of the most videos.
    frames_key = max(pools, key=lambda key: len(pools[key])) if pools else None
    videos = pools[frames_key] if frames_key else None
    cached = set(videos or ())
    sizes = Counter(len(videos[v]) for v in cached) if videos else Counter()
    named = {record.video_id for record in records}
    failed = {row.video_id for row in failures if row.question_id is None} - cached
    scorers = []
    problems = []
    for info in infos:
        source = ScoreSource(layout, info.key, records=records, pools=pools[info.frames_key])
        row = _summarise_scorer(source, settings, strict=scorer is not None)
        scorers.append(row)
        if row.num_non_finite:
            problems.append(
                f"{row.name}: {row.num_non_finite} questions have scores that are not finite"
            )
        if row.num_wrong_length:
            problems.append(
                f"{row.name}: {row.num_wrong_length} questions have not one score per frame"
            )
    return DatasetSummary(
        cache=str(cache_root),
        frames_key=frames_key,
        num_frames_keys=len(layout.frames_keys()),
        num_questions=len(records),
        num_videos_named=len(named | cached | failed),
        num_videos_ok=len(cached),
        num_videos_pending=len(named - cached - failed),
        failures_by_error=dict(Counter(f"{row.stage}: {row.error}" for row in failures)),
        questions_by_type=dict(Counter(record.problem_type for record in records)),
        num_questions_with_evidence=sum(r.evidence_spans_seconds is not None for r in records),
        num_questions_without_frames=sum(record.video_id not in cached for record in records),
        frames_per_video=dict(sorted(sizes.items())),
        num_videos_with_repeated_frames=sum(map(videos.has_repeats, cached)) if videos else 0,
        num_videos_short=sum(
            count for size, count in sizes.items() if size < settings.num_segments
        ),
        duration_seconds_total=sum(map(videos.duration_seconds, cached)) if videos else 0.0,
        settings=settings,
        scorers=tuple(scorers),
        problems=tuple(problems),
    )


def _summarise_scorer(
    source: ScoreSource, settings: InspectSettings, *, strict: bool
) -> ScorerSummary:
    rule = source.scores.draw_rule(settings.rule, drop_transform=not strict)
    questions = source.scored()
    rows = measure_questions(source, rule, questions)
    good = [row for row in rows if row.is_finite]
    score_mean, score_std = _pooled(good)
    with_frames = [r for r in source.records.values() if r.video_id in source.pools]
    num_scored = sum(record.question_id in source.scores for record in with_frames)
    truncated = [row.text_truncated for row in rows if row.text_truncated is not None]
    with_evidence = [row for row in good if not math.isnan(row.evidence_auc)]

    def mean(field: str, over: list[QuestionStats] = good) -> float:
        return float(np.mean([getattr(row, field) for row in over])) if over else math.nan

    return ScorerSummary(
        name=source.info.name,
        key=source.info.key,
        kind=source.info.kind,
        score_transform=rule.score_transform,
        num_scored=num_scored,
        num_missing=len(with_frames) - num_scored,
        num_stale=sum(record.question_id in source.scores.stale for record in with_frames),
        num_non_finite=len(rows) - len(good),
        num_wrong_length=num_scored - len(rows),
        truncated_share=float(np.mean(truncated)) if truncated else math.nan,
        flat_share=mean("is_flat"),
        constant_share=mean("is_constant"),
        peak=typical_peak([scores.scores_F for _, scores in questions], rule),
        score_mean=score_mean,
        score_std=score_std,
        score_min=min((row.score_min for row in good), default=math.nan),
        score_max=max((row.score_max for row in good), default=math.nan),
        num_with_evidence=len(with_evidence),
        **{name: mean(name) for name in MEANS},
        **{name: mean(name, with_evidence) for name in ("evidence_auc", "evidence_lift")},
    )


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The tau at which the best frame has P 0.5 under a transform, and what that does."""

    score_transform: ScoreTransform
    frame_temperature: float | None
    """None where no tau does it: the scores are all but equal, or the pools leave no choice."""
    peak: Peak | None


def suggest_temperatures(source: ScoreSource, settings: InspectSettings) -> tuple[Suggestion, ...]:
    """Look for a tau under each transform that one training can use as well as another.

    Raises:
        ConfigError: the scores are weights, which no temperature is applied to.
    """
    if source.info.kind != "similarity":
        raise ConfigError(
            f"scores of '{source.info.name}' are weights, which are normalised as they are: there "
            "is no temperature to suggest; name another scorer with --scorer"
        )
    scores = [found.scores_F for _, found in source.scored()]
    transforms: tuple[ScoreTransform, ...] = ("none", "zscore")
    suggestions = []
    for transform in transforms:
        found = suggest_temperature(scores, replace(settings.rule, score_transform=transform))
        suggestions.append(Suggestion(transform, *(found or (None, None))))
    return tuple(suggestions)


def _pooled(good: list[QuestionStats]) -> tuple[float, float]:
    """Mean and deviation over all frames of all questions."""
    if not good:
        return math.nan, math.nan
    sizes_N = np.array([row.num_frames for row in good], dtype=np.float64)
    means_N = np.array([row.score_mean for row in good])
    mean = float(np.average(means_N, weights=sizes_N))
    # By parts: the plain sum of squares loses cosines whose spread is 1e-3 of their mean.
    squares_N = np.array([row.score_std for row in good]) ** 2 + (means_N - mean) ** 2
    return mean, math.sqrt(float(np.average(squares_N, weights=sizes_N)))


# --- one question -------------------------------------------------------------------------------


def view_question(
    source: ScoreSource, question_id: str, *, settings: InspectSettings | None = None
) -> QuestionView:
    """Gather one question's view; the picks are those that training draws at `settings.step`.

    Raises:
        UnknownNameError: no such question in the cache.
        CacheError: it has no scores of its text and frames.
    """
    settings = settings or InspectSettings()
    if question_id not in source.records:
        raise UnknownNameError(
            f"unknown question '{question_id}'{nearest(question_id, source.records)}; the cache "
            f"holds {len(source.records)} (list some with --sample 5)"
        )
    record = source.records[question_id]
    found = source.scores.get(question_id)
    if found is None:
        stale = source.scores.stale.get(question_id)
        why = f" (there are scores of an earlier {stale})" if stale else ""
        raise CacheError(
            f"question '{question_id}' has no current '{source.info.name}' scores{why}; make them "
            f"with strive-cli precompute --scorer {source.info.name}"
        )
    video = source.frames.info(record.video_id)
    rule = source.scores.draw_rule(settings.rule)
    num_segments = rule.num_segments
    picks_MK, probabilities_F = draw_variants(
        settings.variants,
        rule,
        num_frames=video.num_frames,
        num_variants=settings.num_variants,
        scores_F=found.scores_F,
        seed=settings.seed,
        step=settings.step,
        question_id=question_id,
    )
    bounds_K2 = segment_bounds(video.num_frames, num_segments)
    assert probabilities_F is not None
    effective_K = np.zeros(num_segments)
    effective_K[np.diff(bounds_K2)[:, 0] > 0] = effective_frames(probabilities_F, num_segments)
    spans = record.evidence_spans_seconds
    return QuestionView(
        cache=str(source.layout.root),
        record=record,
        video=video,
        scorer_name=source.info.name,
        scorer_key=source.info.key,
        scorer_kind=source.info.kind,
        settings=settings,
        logit_scale=rule.logit_scale,
        scores_F=np.asarray(found.scores_F, dtype=np.float64),
        probabilities_F=probabilities_F,
        bounds_K2=bounds_K2,
        effective_frames_K=effective_K,
        expected_overlap=float(expected_overlap(probabilities_F, num_segments)),
        picks_MK=picks_MK,
        frame_overlap=frame_overlap(picks_MK),
        evidence_F=None if spans is None else evidence_mask(video.pts_seconds_F, spans),
        evidence_seen_M=evidence_seen(picks_MK, video.pts_seconds_F, spans),
        stats=measure_questions(source, rule, [(record, found)])[0],
    )


def view_json(view: QuestionView) -> dict[str, Any]:
    """Return a view as `json.dumps` takes it; its video says which and how many frames."""
    values: dict[str, Any] = plain_json(view)
    named = {"video_id": view.record.video_id, "num_frames": view.video.num_frames}
    return values | {"video": named | values["video"]}


def importance_points(view: QuestionView, step: int) -> NDArray[np.float64]:
    """Uniform draws [M, K] behind `importance` at a step: a page can redraw picks for any tau."""
    settings = view.settings
    return np.stack(
        [
            derive_rng(settings.seed, "frames", step, view.record.question_id, variant).random(
                settings.num_segments
            )
            for variant in range(settings.num_variants)
        ]
    )


def select_questions(
    source: ScoreSource,
    *,
    count: int,
    worst: Worst | None = None,
    settings: InspectSettings | None = None,
) -> list[QuestionStats]:
    """Pick questions to look at: a seeded sample, or the worst of one kind first.

    `flat`: P nearest to uniform; `peaky`: P nearest to a single frame; `truncated`: questions whose
    text the scorer cut, longest first.
    """
    settings = settings or InspectSettings()
    if count < 1:
        raise ConfigError(f"--sample is {count}; it must be at least 1")
    if worst is not None and worst not in get_args(Worst):
        raise unknown_name("--worst", worst, get_args(Worst))
    rule = source.scores.draw_rule(settings.rule)
    rows = [row for row in measure_questions(source, rule) if row.is_finite]
    if worst == "flat":
        rows.sort(key=lambda row: (-row.effective_share, row.score_max - row.score_min))
    elif worst == "peaky":
        rows.sort(key=lambda row: row.effective_share)
    elif worst == "truncated":
        rows = sorted(
            (row for row in rows if row.text_truncated), key=lambda row: -(row.num_text_tokens or 0)
        )
    else:
        rng = derive_rng(settings.seed, "inspect sample")
        chosen = sorted(rng.permutation(len(rows))[:count].tolist())
        rows = [rows[index] for index in chosen]
    return rows[:count]
