"""One scorer's numbers per question: what every view of a cache is made of."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strive import measures, variants
from strive.cache.frames import FrameReader
from strive.cache.layout import CacheLayout, open_cache
from strive.cache.pools import Pools
from strive.cache.questions import read_questions
from strive.cache.scores import QuestionScores, ScoreReader, find_scorer
from strive.choices import ScoreTransform
from strive.progress import show_progress
from strive.records import Record

CONSTANT_RANGE = 1e-3
"""Scores are constant when they span less than this (for weights: this share of the largest).
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
    score_std: float
    """Over the pool's frames, ddof 0."""
    score_min: float
    score_max: float
    within_segment_std: float
    effective_frames: float
    """Mean over segments of exp(entropy of P)."""
    effective_share: float
    """The same as a share of the segment's frames: 1 is uniform, near 0 always the same frame."""
    expected_overlap: float
    peak_probability: float
    """P of the best frame in the most peaked segment, and below what it would be without scores."""
    peak_uniform: float
    is_flat: bool
    """Whether the first is within 10 % of the second: P(t) is nearly uniform."""
    is_constant: bool
    """Whether the scores are all but equal, so that no temperature would help."""
    is_finite: bool
    num_text_tokens: int | None
    text_truncated: bool | None
    """Both None where a scorer does not tell."""
    evidence_auc: float
    """Chance that an evidence frame outscores another one; NaN where no span is known."""
    evidence_lift: float
    """Evidence frames expected in a variant over those of a uniform draw; NaN without spans."""


class InspectSource:
    """The readers of one cache and one scorer, opened once."""

    def __init__(
        self,
        layout: CacheLayout,
        scorer: str | None,
        *,
        records: Sequence[Record] | None = None,
        pools: Pools | None = None,
    ) -> None:
        self.layout = layout
        self.info = find_scorer(layout, scorer)
        known = read_questions(layout) if records is None else records
        self.scores = ScoreReader(layout, self.info.key, known)
        self.pools = Pools(layout, self.info.frames_key) if pools is None else pools
        self.records = {record.question_id: record for record in known}

    @cached_property
    def frames(self) -> FrameReader:
        """The pixels, opened when a view needs them."""
        return FrameReader(self.layout, self.info.frames_key)

    @property
    def logit_scale(self) -> float:
        """The scorer's own learned scale, which the transform `logit` multiplies by."""
        return self.scores.logit_scale

    def probabilities(self, scores_F: Any, settings: InspectSettings) -> NDArray[np.float64]:
        """P(t) of Eq. 4 (or the normalised weights) under the settings."""
        return probabilities_of(scores_F, self.info.kind, settings, self.logit_scale)


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
    return measures.evidence_mask(pts_seconds_F, record.evidence_spans_seconds)


SECONDS_MATTER = 100_000
"""From so many questions on, measuring shows its progress (about 50,000 a second)."""
_ROWS_AT_ONCE = 4096


def _measure_rows(
    source: InspectSource,
    found: Sequence[tuple[Record, QuestionScores]],
    settings: InspectSettings,
) -> list[QuestionStats]:
    """Measure questions whose pools have one size, in the order given."""
    scores_QF = np.stack([scores.scores_F for _, scores in found]).astype(np.float64)
    finite_Q = np.asarray(np.isfinite(scores_QF).all(axis=1))
    columns = {name: np.full(len(found), math.nan) for name in _FIGURES}
    if finite_Q.any():
        good = [item for item, is_finite in zip(found, finite_Q.tolist(), strict=True) if is_finite]
        figures = _figures(source, good, scores_QF[finite_Q], settings)
        for name, values_Q in figures.items():
            columns[name][finite_Q] = values_Q
    figures_Q = zip(*(columns[name].tolist() for name in _FIGURES), strict=True)
    return [
        QuestionStats(
            **dict(zip(_FIGURES, figures, strict=True))
            | {name: figures[_FIGURES.index(name)] == 1.0 for name in _FLAGS},
            question_id=record.question_id,
            video_id=record.video_id,
            problem=record.problem,
            num_frames=len(scores.scores_F),
            num_text_tokens=scores.num_text_tokens,
            text_truncated=scores.text_truncated,
            is_finite=is_finite,
        )
        for (record, scores), is_finite, figures in zip(
            found, finite_Q.tolist(), figures_Q, strict=True
        )
    ]


def _figures(
    source: InspectSource,
    found: Sequence[tuple[Record, QuestionScores]],
    scores_QF: NDArray[np.float64],
    settings: InspectSettings,
) -> dict[str, NDArray[Any]]:
    """Return a row of numbers for each of `_FIGURES`; the scores are finite."""
    kind, k = source.info.kind, settings.num_segments
    evidence_QF = np.stack(
        [
            measures.evidence_mask(
                source.pools[record.video_id], record.evidence_spans_seconds or ()
            )
            for record, _ in found
        ]
    )
    p_QF = measures.probability_rows(
        scores_QF,
        score_kind=kind,
        num_segments=k,
        frame_temperature=settings.frame_temperature,
        score_transform=settings.score_transform,
        logit_scale=source.logit_scale,
    )
    effective_Q, share_Q = measures.effective_rows(p_QF, k)
    peak_Q, uniform_Q = measures.peak_rows(p_QF, k)
    scale_Q = scores_QF.max(axis=1) if kind == "weight" else np.ones(len(scores_QF))
    return {
        "score_mean": scores_QF.mean(axis=1),
        "score_std": scores_QF.std(axis=1),
        "score_min": scores_QF.min(axis=1),
        "score_max": scores_QF.max(axis=1),
        "within_segment_std": measures.segment_std_rows(scores_QF, k),
        "effective_frames": effective_Q,
        "effective_share": share_Q,
        "expected_overlap": measures.overlap_rows(p_QF, k),
        "peak_probability": peak_Q,
        "peak_uniform": uniform_Q,
        "is_flat": peak_Q < measures.NEARLY_UNIFORM * uniform_Q,
        "is_constant": np.ptp(scores_QF, axis=1) < CONSTANT_RANGE * np.maximum(scale_Q, 1e-30),
        "evidence_auc": measures.auc_rows(scores_QF, evidence_QF),
        "evidence_lift": measures.lift_rows(p_QF, evidence_QF, k),
    }


_FIGURES = (
    "score_mean", "score_std", "score_min", "score_max", "within_segment_std", "effective_frames",
    "effective_share", "expected_overlap", "peak_probability", "peak_uniform", "is_flat",
    "is_constant", "evidence_auc", "evidence_lift",
)  # fmt: skip
_FLAGS = ("is_flat", "is_constant")


def question_stats(
    source: InspectSource, record: Record, found: QuestionScores, settings: InspectSettings
) -> QuestionStats:
    """Measure one question's scores and the probabilities they give."""
    return _measure_rows(source, [(record, found)], settings)[0]


def measure_questions(source: InspectSource, settings: InspectSettings) -> list[QuestionStats]:
    """Measure every question that has one score for each frame, in the cache's order."""
    by_size: dict[int, list[tuple[int, Record, QuestionScores]]] = {}
    for place, (record, found) in enumerate(scored_questions(source)):
        by_size.setdefault(len(found.scores_F), []).append((place, record, found))
    total = sum(map(len, by_size.values()))
    measured: dict[int, QuestionStats] = {}
    for batch in _batches(by_size, f"scores of {source.info.name}", total):
        rows = _measure_rows(source, [(record, found) for _, record, found in batch], settings)
        measured.update(zip((place for place, _, _ in batch), rows, strict=True))
    return [measured[place] for place in range(total)]


def scored_questions(source: InspectSource) -> Iterator[tuple[Record, QuestionScores]]:
    """Yield the questions that have frames and one score for each of them."""
    for record in source.records.values():
        found = source.scores.get(record.question_id)
        if found is None or record.video_id not in source.pools:
            continue
        if len(found.scores_F) == source.pools.num_frames(record.video_id):
            yield record, found


def _batches(
    by_size: dict[int, list[tuple[int, Record, QuestionScores]]], label: str, total: int
) -> Iterator[list[tuple[int, Record, QuestionScores]]]:
    batches = [
        rows[start : start + _ROWS_AT_ONCE]
        for rows in by_size.values()
        for start in range(0, len(rows), _ROWS_AT_ONCE)
    ]
    if total < SECONDS_MATTER:
        yield from batches
        return
    with show_progress(label, total, "questions") as bar:
        for batch in batches:
            yield batch
            bar.advance(len(batch))
