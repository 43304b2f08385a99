"""One scorer's numbers per question: the table that every view of a cache is made of.

Axes: Q questions whose pools have one size, F pool frames.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from strive.cache.frames import FrameReader, Pools
from strive.cache.layout import CacheLayout, open_cache
from strive.cache.questions import read_questions
from strive.cache.scores import QuestionScores, ScoreReader, find_scorer
from strive.choices import ScoreTransform
from strive.progress import show_progress
from strive.records import Record
from strive.statistics import recall_at, roc_auc
from strive.variants import (
    NEARLY_UNIFORM,
    DrawRule,
    by_pool_size,
    draw_probabilities,
    effective_frames,
    evidence_chance,
    evidence_lift,
    evidence_mask,
    expected_overlap,
    per_segment,
    segment_lengths,
    segment_peak,
    uniform_probabilities,
)

Floats = NDArray[np.float64]

CONSTANT_RANGE = 1e-3
"""Scores are constant when they span less than this (for weights: this share of the largest).
float16 embeddings alone move a cosine by about 1e-4."""
SECONDS_MATTER = 100_000
"""From so many questions on, measuring shows its progress (about 50,000 a second)."""


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

    @property
    def rule(self) -> DrawRule:
        """The part that Eq. 4 reads, before a scorer completes it."""
        return DrawRule(self.num_segments, self.frame_temperature, self.score_transform)


class ScoreSource:
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

    def scored(self) -> list[tuple[Record, QuestionScores]]:
        """Return the questions that have frames and one score for each of them."""
        found = []
        for record in self.records.values():
            scores = self.scores.get(record.question_id)
            if scores is None or record.video_id not in self.pools:
                continue
            if len(scores.scores_F) == len(self.pools[record.video_id]):
                found.append((record, scores))
        return found


def open_source(cache_root: Path, scorer: str | None = None) -> ScoreSource:
    """Open a cache for one scorer (the only one, if none is named)."""
    return ScoreSource(open_cache(cache_root), scorer)


# --- measures -----------------------------------------------------------------------------------


def _score_measures(scores_QF: Floats, rule: DrawRule) -> dict[str, NDArray]:
    """Measure questions whose pools have one size: {name: [Q]}; `measure` says what they are."""
    p_QF = draw_probabilities(scores_QF, rule)
    effective_QK = effective_frames(p_QF, rule.num_segments)
    lengths_K = segment_lengths(scores_QF.shape[1], rule.num_segments)
    peak_Q, peak_uniform_Q = segment_peak(p_QF, rule.num_segments)
    std_QK = per_segment(scores_QF, rule.num_segments, lambda part: part.std(-1))
    scale_Q = np.maximum(scores_QF.max(axis=1), 1e-30) if rule.score_kind == "weight" else 1.0
    return {
        "score_mean": scores_QF.mean(axis=1),
        "score_std": scores_QF.std(axis=1),
        "score_min": scores_QF.min(axis=1),
        "score_max": scores_QF.max(axis=1),
        "within_segment_std": std_QK.mean(axis=1),
        "effective_frames": effective_QK.mean(axis=1),
        "effective_share": (effective_QK / lengths_K).mean(axis=1),
        "expected_overlap": expected_overlap(p_QF, rule.num_segments),
        "peak_probability": peak_Q,
        "peak_uniform": peak_uniform_Q,
        "is_flat": peak_Q < NEARLY_UNIFORM * peak_uniform_Q,
        "is_constant": np.ptp(scores_QF, axis=1) < CONSTANT_RANGE * scale_Q,
    }


def _evidence_measures(
    scores_QF: Floats, evidence_QF: NDArray[np.bool_], rule: DrawRule
) -> dict[str, NDArray]:
    """Measure how questions' scores find their evidence, as `_score_measures` does the rest."""
    num_segments = rule.num_segments
    p_QF = draw_probabilities(scores_QF, rule)
    p_pool_QF = draw_probabilities(scores_QF, replace(rule, num_segments=1))
    uniform_F = uniform_probabilities(scores_QF.shape[1], num_segments)
    num_evidence_Q = evidence_QF.sum(axis=1)
    return {
        "auc": roc_auc(scores_QF, evidence_QF),
        "recall_at_k": recall_at(scores_QF, evidence_QF, num_segments),
        "recall_at_evidence": recall_at(scores_QF, evidence_QF, num_evidence_Q),
        "lift": evidence_lift(p_QF, evidence_QF, num_segments),
        "lift_pool": evidence_lift(p_pool_QF, evidence_QF, 1),
        "evidence_seen": evidence_chance(p_QF, evidence_QF, num_segments),
        "evidence_seen_uniform": evidence_chance(
            np.broadcast_to(uniform_F, p_QF.shape), evidence_QF, num_segments
        ),
    }


def measure(
    scores: Sequence[NDArray[np.floating]],
    evidence: Sequence[NDArray[np.bool_]],
    rule: DrawRule,
    *,
    label: str = "scores",
) -> dict[str, Floats]:
    """Measure questions from their scores [F] and evidence flags [F]: {name of a measure: [Q]}.

    `score_...`: over the pool's frames, std with ddof 0; `within_segment_std`: the same in a
    segment, mean over segments. `effective_frames`, `effective_share`: exp(entropy of P) per
    segment, and as a share of its frames. `expected_overlap`: chance that two variants show the
    same frame.
    `peak_...`: P of the best frame in the most peaked segment, and that of a uniform draw;
    `is_flat`: the two are within 10 %; `is_constant`: the scores are all but equal. `auc`: chance
    that an evidence frame outscores another one. `recall_at_k`, `recall_at_evidence`: share of the
    evidence among the K, or as many as there is evidence, highest scores (of what so many frames
    can hold). `lift`: evidence frames expected in a variant drawn by Eq. 4, over those of a uniform
    draw; `lift_pool`: the same with the softmax over the whole pool instead of each segment.
    `evidence_seen`: chance that a variant shows evidence, and `..._uniform` that of a uniform draw.

    All are NaN for a question whose scores are not finite, and those of evidence where none is
    known.
    """
    table: dict[str, Floats] = defaultdict(lambda: np.full(len(scores), math.nan))
    finite = [place for place, scores_F in enumerate(scores) if np.isfinite(scores_F).all()]
    is_long = len(finite) >= SECONDS_MATTER
    with show_progress(label, len(finite), "questions") if is_long else nullcontext() as bar:
        for some, scores_QF in by_pool_size([scores[place] for place in finite]):
            places_Q = np.array([finite[number] for number in some])
            for name, values_Q in _score_measures(scores_QF, rule).items():
                table[name][places_Q] = values_Q
            evidence_QF = np.stack([evidence[place] for place in places_Q])
            has_Q = evidence_QF.any(axis=1)
            if has_Q.any():
                found = _evidence_measures(scores_QF[has_Q], evidence_QF[has_Q], rule)
                for name, values_Q in found.items():
                    table[name][places_Q[has_Q]] = values_Q
            if bar is not None:
                bar.advance(len(places_Q))
    return table


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


_FIGURES = (
    "score_mean", "score_std", "score_min", "score_max", "within_segment_std", "effective_frames",
    "effective_share", "expected_overlap", "peak_probability", "peak_uniform",
)  # fmt: skip


def measure_questions(
    source: ScoreSource,
    rule: DrawRule,
    questions: Sequence[tuple[Record, QuestionScores]] | None = None,
) -> list[QuestionStats]:
    """Measure questions that have one score for each frame: all of them, or those given."""
    questions = source.scored() if questions is None else questions
    table = measure(
        [scores.scores_F for _, scores in questions],
        [
            evidence_mask(source.pools[record.video_id], record.evidence_spans_seconds)
            for record, _ in questions
        ],
        rule,
        label=f"scores of {source.info.name}",
    )
    names = (*_FIGURES, "is_flat", "is_constant", "auc", "lift")
    columns = {name: table[name].tolist() for name in names}
    return [
        QuestionStats(
            question_id=record.question_id,
            video_id=record.video_id,
            problem=record.problem,
            num_frames=len(scores.scores_F),
            **{name: columns[name][row] for name in _FIGURES},
            is_flat=columns["is_flat"][row] == 1.0,
            is_constant=columns["is_constant"][row] == 1.0,
            is_finite=not math.isnan(columns["score_mean"][row]),
            num_text_tokens=scores.num_text_tokens,
            text_truncated=scores.text_truncated,
            evidence_auc=columns["auc"][row],
            evidence_lift=columns["lift"][row],
        )
        for row, (record, scores) in enumerate(questions)
    ]
