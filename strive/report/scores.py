"""One scorer's numbers per question: what every view of a cache is made of."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strive import variants
from strive.cache.frames import FrameReader, VideoInfo
from strive.cache.layout import CacheLayout, open_cache
from strive.cache.questions import read_questions
from strive.cache.scores import QuestionScores, ScoreReader, find_scorer
from strive.records import Record
from strive.statistics import roc_auc
from strive.variants import ScoreTransform

FLAT_RANGE = 1e-3
"""A question is flat when its scores span less than this (for weights: this share of the largest).
float16 embeddings alone move a cosine by about 1e-4."""


@dataclass(frozen=True, slots=True)
class InspectSettings:
    """How variants are drawn from the scores; the fields are those of a training config."""

    variants: str = "importance"
    frame_temperature: float = 0.4
    score_transform: ScoreTransform = "none"
    num_segments: int = 16
    num_variants: int = 2
    seed: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class QuestionStats:
    """One question under one scorer; the figures are NaN when its scores are not finite."""

    question_id: str
    video_id: str
    problem: str
    num_frames: int
    score_mean: float
    score_min: float
    score_max: float
    within_segment_std: float
    effective_frames: float
    """Mean over segments of exp(entropy of P)."""
    effective_share: float
    """The same as a share of the segment's frames: 1 is uniform, near 0 always the same frame."""
    expected_overlap: float
    is_flat: bool
    is_finite: bool
    num_text_tokens: int | None
    text_truncated: bool | None
    """Both None where a scorer does not tell."""
    evidence_auc: float
    """Chance that an evidence frame outscores another one; NaN where no span is known."""


class InspectSource:
    """The readers of one cache and one scorer, opened once."""

    def __init__(self, layout: CacheLayout, scorer: str | None) -> None:
        self.layout = layout
        self.info = find_scorer(layout, scorer)
        self.scores = ScoreReader(layout, self.info.key)
        self.frames = FrameReader(layout, self.info.frames_key)
        self.records = {record.question_id: record for record in read_questions(layout)}

    @property
    def logit_scale(self) -> float:
        """The scorer's own learned scale, which the transform `logit` multiplies by."""
        return logit_scale_of(self.scores.settings)

    def probabilities(self, scores_F: Any, settings: InspectSettings) -> NDArray[np.float64]:
        """P(t) of Eq. 4 (or the normalised weights) under the settings."""
        return probabilities_of(scores_F, self.info.kind, settings, self.logit_scale)


def logit_scale_of(scorer_settings: dict[str, Any]) -> float:
    """Read a scorer's logit scale from its settings, as training does."""
    return float(scorer_settings.get("logit_scale") or variants.DEFAULT_LOGIT_SCALE)


def open_source(cache_root: Path, scorer: str | None = None) -> InspectSource:
    """Open a cache for one scorer (the only one, if none is named)."""
    return InspectSource(open_cache(cache_root), scorer)


def probabilities_of(
    scores_F: Any, kind: str, settings: InspectSettings, logit_scale: float
) -> NDArray[np.float64]:
    """P(t) of Eq. 4 (or the normalised weights) under the settings."""
    probabilities_F = variants.probabilities_of(
        np.asarray(scores_F, dtype=np.float64),
        score_kind=kind,  # type: ignore[arg-type]
        num_segments=settings.num_segments,
        frame_temperature=settings.frame_temperature,
        score_transform=settings.score_transform,
        logit_scale=logit_scale,
    )
    return np.asarray(probabilities_F, dtype=np.float64)


def evidence_frames(record: Record, pts_seconds_F: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """Tell which frames lie in the record's evidence spans `[start, end)`; None without spans."""
    if record.evidence_spans_seconds is None:
        return None
    index_F1 = np.arange(len(pts_seconds_F))[:, None]
    return variants.evidence_seen(index_F1, pts_seconds_F, record.evidence_spans_seconds)


def _segment_std(
    scores_F: NDArray[np.float64], filled_K2: NDArray[np.int64]
) -> NDArray[np.float64]:
    """std (ddof 0) of each non-empty segment; the segments tile the pool."""
    lengths_K = filled_K2[:, 1] - filled_K2[:, 0]
    means_K = np.add.reduceat(scores_F, filled_K2[:, 0]) / lengths_K
    deviations_F = scores_F - np.repeat(means_K, lengths_K)
    squares_K = np.add.reduceat(deviations_F**2, filled_K2[:, 0])
    return np.asarray(np.sqrt(squares_K / lengths_K), dtype=np.float64)


def _is_flat(scores_F: NDArray[np.float64], kind: str) -> bool:
    scale = float(scores_F.max()) if kind == "weight" else 1.0
    return float(np.ptp(scores_F)) < FLAT_RANGE * max(scale, 1e-30)


def question_stats(
    record: Record,
    found: QuestionScores,
    video: VideoInfo,
    *,
    kind: str,
    settings: InspectSettings,
    logit_scale: float,
) -> QuestionStats:
    """Measure one question's scores and the probabilities they give."""
    scores_F = np.asarray(found.scores_F, dtype=np.float64)
    nan = math.nan
    common: dict[str, Any] = {
        "question_id": record.question_id,
        "video_id": record.video_id,
        "problem": record.problem,
        "num_frames": len(scores_F),
        "num_text_tokens": found.num_text_tokens,
        "text_truncated": found.text_truncated,
    }
    if not np.isfinite(scores_F).all():
        return QuestionStats(
            **common, score_mean=nan, score_min=nan, score_max=nan, within_segment_std=nan,
            effective_frames=nan, effective_share=nan, expected_overlap=nan, is_flat=False,
            is_finite=False, evidence_auc=nan,
        )  # fmt: skip
    bounds_K2 = variants.segment_bounds(len(scores_F), settings.num_segments)
    filled_K2 = bounds_K2[bounds_K2[:, 1] > bounds_K2[:, 0]]
    probabilities_F = probabilities_of(scores_F, kind, settings, logit_scale)
    effective_K = variants.effective_frames(probabilities_F, filled_K2)
    evidence_F = evidence_frames(record, video.pts_seconds_F)
    return QuestionStats(
        **common,
        score_mean=float(scores_F.mean()),
        score_min=float(scores_F.min()),
        score_max=float(scores_F.max()),
        within_segment_std=float(_segment_std(scores_F, filled_K2).mean()),
        effective_frames=float(effective_K.mean()),
        effective_share=float(np.mean(effective_K / (filled_K2[:, 1] - filled_K2[:, 0]))),
        expected_overlap=variants.expected_overlap(probabilities_F, filled_K2),
        is_flat=_is_flat(scores_F, kind),
        is_finite=True,
        evidence_auc=nan if evidence_F is None else roc_auc(scores_F, evidence_F),
    )


def iter_stats(source: InspectSource, settings: InspectSettings) -> Iterator[QuestionStats]:
    """Measure every question that has scores and frames, in the cache's order."""
    videos: dict[str, VideoInfo] = {}
    for record in source.records.values():
        found = source.scores.get(record.question_id)
        if found is None or record.video_id not in source.frames:
            continue
        if record.video_id not in videos:
            videos[record.video_id] = source.frames.info(record.video_id)
        video = videos[record.video_id]
        if len(found.scores_F) != video.num_frames:
            continue
        yield question_stats(
            record, found, video,
            kind=source.info.kind, settings=settings, logit_scale=source.logit_scale,
        )  # fmt: skip
