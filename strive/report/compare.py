"""Two scorers over the same pools: do they rank the same frames high, and draw the same ones?

Numbers only; `compare_terminal` prints them. Axes: Q questions, F pool frames.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from strive import measures
from strive.cache.layout import open_cache
from strive.cache.pools import Pools
from strive.cache.questions import read_questions
from strive.errors import CacheError, ConfigError
from strive.records import Record
from strive.report.inspect import QuestionView, view_question
from strive.report.scores import InspectSettings, InspectSource, scored_questions
from strive.statistics import Interval, PairedDifference, mean_interval, paired_difference

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


@dataclass(frozen=True)
class ComparedViews:
    """One question seen through both scorers."""

    comparison: QuestionComparison
    first: QuestionView
    second: QuestionView


class CompareSource:
    """The readers of two scorers of one cache."""

    def __init__(
        self, cache: Path, first: str, second: str, settings: InspectSettings | None = None
    ) -> None:
        settings = settings or InspectSettings()
        layout = open_cache(cache)
        records = read_questions(layout)
        self.first = InspectSource(layout, first, records=records)
        if self.first.info.key == InspectSource(layout, second, records=[]).info.key:
            raise ConfigError(f"--compare {first} {second} names one scorer twice; give two")
        pools: Pools = self.first.pools
        self.second = InspectSource(layout, second, records=records, pools=pools)
        if self.first.info.frames_key != self.second.info.frames_key:
            raise CacheError(
                f"'{first}' scores the frames of {self.first.info.frames_key} and '{second}' those "
                f"of {self.second.info.frames_key}; only scores of the same frames can be compared"
            )
        self.settings = settings
        names = [source.info.name for source in (self.first, self.second)]
        keys = [source.info.key for source in (self.first, self.second)]
        self.names = names if names[0] != names[1] else keys

    def settings_of(self, source: InspectSource) -> InspectSettings:
        """Return the settings, without a transform that a scorer's kind does not allow."""
        if self.settings.score_transform in source.scores.allowed_transforms:
            return self.settings
        return dataclasses.replace(self.settings, score_transform="none")

    def view(self, comparison: QuestionComparison) -> ComparedViews:
        """Gather one question's view under each scorer."""
        first, second = (
            view_question(source, comparison.question_id, settings=self.settings_of(source))
            for source in (self.first, self.second)
        )
        return ComparedViews(comparison, first, second)


def compare_scorers(source: CompareSource) -> ScorerComparison:
    """Compare two scorers on every question that both have scored.

    Raises:
        CacheError: there is no such question.
    """
    found = [
        {record.question_id: (record, scores.scores_F) for record, scores in scored_questions(one)}
        for one in (source.first, source.second)
    ]
    common = [
        (record, np.stack([scores_F, found[1][name][1]]).astype(np.float64))
        for name, (record, scores_F) in found[0].items()
        if name in found[1]
    ]
    common = [(record, scores_2F) for record, scores_2F in common if np.isfinite(scores_2F).all()]
    if not common:
        raise CacheError(
            f"no question has scores of both '{source.names[0]}' and '{source.names[1]}'; make "
            "them with `strive-cli precompute --scorer A --scorer B`"
        )
    by_size: dict[int, list[tuple[Record, np.ndarray]]] = {}
    for record, scores_2F in common:
        by_size.setdefault(scores_2F.shape[1], []).append((record, scores_2F))
    rows = [row for group in by_size.values() for row in _compare_rows(source, group)]
    rows.sort(key=_how_alike)
    return ScorerComparison(
        cache=str(source.first.layout.root),
        first=source.names[0],
        second=source.names[1],
        first_key=source.first.info.key,
        second_key=source.second.info.key,
        settings=source.settings,
        num_only_first=len(found[0].keys() - found[1].keys()),
        num_only_second=len(found[1].keys() - found[0].keys()),
        means={name: _mean(rows, name) for name in MEASURES},
        auc_difference=_auc_difference(rows),
        questions=tuple(rows),
    )


def _how_alike(row: QuestionComparison) -> tuple[bool, float]:
    """Sort key: least alike first, constant scores (nothing to compare) last."""
    return math.isnan(row.spearman), row.spearman


def _compare_rows(
    source: CompareSource, group: Sequence[tuple[Record, np.ndarray]]
) -> list[QuestionComparison]:
    k = source.settings.num_segments
    scores_2QF = np.stack([scores_2F for _, scores_2F in group], axis=1)
    p_QF, other_QF = (
        measures.probability_rows(
            scores_QF,
            score_kind=one.info.kind,
            num_segments=k,
            frame_temperature=source.settings.frame_temperature,
            score_transform=source.settings_of(one).score_transform,
            logit_scale=one.logit_scale,
        )
        for one, scores_QF in zip((source.first, source.second), scores_2QF, strict=True)
    )
    evidence_QF = np.stack(
        [
            measures.evidence_mask(
                source.first.pools[record.video_id], record.evidence_spans_seconds or ()
            )
            for record, _ in group
        ]
    )
    num_filled = len(measures.filled_bounds(p_QF.shape[1], k))
    columns = {
        "spearman": measures.spearman_rows(scores_2QF[0], scores_2QF[1]),
        "top_k_jaccard": measures.jaccard_rows(scores_2QF[0], scores_2QF[1], k),
        "p_correlation": measures.correlation_rows(p_QF, other_QF),
        "expected_overlap": (p_QF * other_QF).sum(axis=1) / num_filled,
        "first_auc": measures.auc_rows(scores_2QF[0], evidence_QF),
        "second_auc": measures.auc_rows(scores_2QF[1], evidence_QF),
    }
    return [
        QuestionComparison(
            question_id=record.question_id,
            video_id=record.video_id,
            problem=record.problem,
            num_frames=scores_2F.shape[1],
            **{name: float(values_Q[q]) for name, values_Q in columns.items()},
        )
        for q, (record, scores_2F) in enumerate(group)
    ]


def _mean(rows: Sequence[QuestionComparison], name: str) -> Interval:
    known = [row for row in rows if not math.isnan(getattr(row, name))]
    return mean_interval(
        [getattr(row, name) for row in known], clusters=[row.video_id for row in known]
    )


def _auc_difference(rows: Sequence[QuestionComparison]) -> PairedDifference | None:
    known = [row for row in rows if not math.isnan(row.first_auc)]
    if not known:
        return None
    return paired_difference(
        [row.first_auc for row in known],
        [row.second_auc for row in known],
        clusters=[row.video_id for row in known],
    )
