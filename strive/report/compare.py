"""Two scorers over the same pools: do they rank the same frames high, and draw the same ones?

Numbers only; `terminal` prints them. Axes: Q questions, F pool frames.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from strive.cache.layout import open_cache
from strive.cache.questions import read_questions
from strive.errors import CacheError, ConfigError, UnknownNameError
from strive.report.inspect import QuestionView, view_question
from strive.report.scores import InspectSettings, ScoreSource
from strive.seeding import derive_rng
from strive.statistics import (
    Interval,
    PairedDifference,
    correlation,
    mean_interval,
    paired_difference,
    roc_auc,
    spearman,
    top_jaccard,
)
from strive.variants import by_pool_size, draw_probabilities, evidence_mask, expected_overlap

MEASURES = ("spearman", "top_k_jaccard", "p_correlation", "expected_overlap")


@dataclass(frozen=True, slots=True)
class QuestionComparison:
    """One question under two scorers; figures are NaN where the scores of one are constant.

    `top_k_jaccard` is over the K best frames of each, `p_correlation` that of P(t) over the pool,
    `expected_overlap` the chance that a variant of one and a variant of the other show the same
    frame. The AUCs are NaN where no evidence span is known.
    """

    question_id: str
    video_id: str
    problem: str
    num_frames: int
    spearman: float
    top_k_jaccard: float
    p_correlation: float
    expected_overlap: float
    first_auc: float
    second_auc: float


@dataclass(frozen=True, slots=True)
class ScorerComparison:
    """Two scorers over all the questions that both have scored, most different first."""

    cache: str
    first: str
    second: str
    first_key: str
    second_key: str
    settings: InspectSettings
    num_only_first: int
    num_only_second: int
    means: dict[str, Interval]
    """Mean over questions of each of `MEASURES`, standard error clustered by video."""
    auc_difference: PairedDifference | None
    """First minus second, over the questions with evidence spans."""
    questions: tuple[QuestionComparison, ...]


class CompareSource:
    """The readers of two scorers of one cache."""

    def __init__(
        self, cache: Path, first: str, second: str, settings: InspectSettings | None = None
    ) -> None:
        self.settings = settings or InspectSettings()
        layout = open_cache(cache)
        records = read_questions(layout)
        self.first = ScoreSource(layout, first, records=records)
        self.second = ScoreSource(layout, second, records=records)
        one, other = self.first.info, self.second.info
        if one.key == other.key:
            raise ConfigError(f"--compare {first} {second} names one scorer twice; give two")
        if one.frames_key != other.frames_key:
            raise CacheError(
                f"'{first}' scores the frames of {one.frames_key} and '{second}' those of "
                f"{other.frames_key}; only scores of the same frames can be compared"
            )
        self.names = [one.name, other.name] if one.name != other.name else [one.key, other.key]
        # A transform that one of the kinds does not allow is left out for that scorer alone.
        self.rules = [
            source.scores.draw_rule(self.settings.rule, drop_transform=True)
            for source in (self.first, self.second)
        ]

    def views(self, question_id: str) -> list[QuestionView]:
        """Gather one question's view under each scorer."""
        return [
            view_question(
                source,
                question_id,
                settings=replace(self.settings, score_transform=rule.score_transform),
            )
            for source, rule in zip((self.first, self.second), self.rules, strict=True)
        ]


def compare_scorers(source: CompareSource) -> ScorerComparison:
    """Compare two scorers on every question that both have scored.

    Raises:
        CacheError: there is no such question.
    """
    records = source.first.records
    first, second = (
        {record.question_id: scores.scores_F for record, scores in one.scored()}
        for one in (source.first, source.second)
    )
    common = [
        question_id
        for question_id in first
        if question_id in second
        and np.isfinite(first[question_id]).all()
        and np.isfinite(second[question_id]).all()
    ]
    if not common:
        raise CacheError(
            f"no question has scores of both '{source.names[0]}' and '{source.names[1]}'; make "
            "them with `strive-cli precompute --scorer A --scorer B`"
        )
    num_segments = source.settings.num_segments
    rows = []
    for places, a_QF in by_pool_size([first[question_id] for question_id in common]):
        found = [records[common[place]] for place in places]
        b_QF = np.stack([second[record.question_id] for record in found]).astype(np.float64)
        p_QF, other_QF = (
            draw_probabilities(scores_QF, rule)
            for scores_QF, rule in zip((a_QF, b_QF), source.rules, strict=True)
        )
        evidence_QF = np.stack(
            [
                evidence_mask(source.first.pools[record.video_id], record.evidence_spans_seconds)
                for record in found
            ]
        )
        columns = {
            "spearman": spearman(a_QF, b_QF),
            "top_k_jaccard": top_jaccard(a_QF, b_QF, num_segments),
            "p_correlation": correlation(p_QF, other_QF),
            "expected_overlap": expected_overlap(p_QF, num_segments, other_QF),
            "first_auc": roc_auc(a_QF, evidence_QF),
            "second_auc": roc_auc(b_QF, evidence_QF),
        }
        rows += [
            QuestionComparison(
                question_id=record.question_id,
                video_id=record.video_id,
                problem=record.problem,
                num_frames=a_QF.shape[1],
                **{name: float(values_Q[q]) for name, values_Q in columns.items()},
            )
            for q, record in enumerate(found)
        ]
    # Least alike first, constant scores (nothing to compare) last.
    rows.sort(key=lambda row: (math.isnan(row.spearman), row.spearman))
    means = {}
    for name in MEASURES:
        known = [row for row in rows if not math.isnan(getattr(row, name))]
        means[name] = mean_interval(
            [getattr(row, name) for row in known], clusters=[row.video_id for row in known]
        )
    with_auc = [row for row in rows if not math.isnan(row.first_auc)]
    auc_difference = None
    if with_auc:
        auc_difference = paired_difference(
            [row.first_auc for row in with_auc],
            [row.second_auc for row in with_auc],
            clusters=[row.video_id for row in with_auc],
        )
    return ScorerComparison(
        cache=str(source.first.layout.root),
        first=source.names[0],
        second=source.names[1],
        first_key=source.first.info.key,
        second_key=source.second.info.key,
        settings=source.settings,
        num_only_first=len(first.keys() - second.keys()),
        num_only_second=len(second.keys() - first.keys()),
        means=means,
        auc_difference=auc_difference,
        questions=tuple(rows),
    )


def choose_questions(
    comparison: ScorerComparison, *, question: str | None, sample: int | None
) -> tuple[QuestionComparison, ...]:
    """Pick one question, or a seeded sample, or all where neither is asked for.

    Raises:
        UnknownNameError: the question has no scores of both scorers.
    """
    rows = comparison.questions
    if question is not None:
        chosen = tuple(row for row in rows if row.question_id == question)
        if not chosen:
            raise UnknownNameError(f"question '{question}' has no scores of both scorers")
        return chosen
    if sample is None:
        return rows
    rng = derive_rng(comparison.settings.seed, "inspect sample")
    return tuple(rows[index] for index in sorted(rng.permutation(len(rows))[:sample].tolist()))
