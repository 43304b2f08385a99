"""What scores say about many questions at once: Eq. 4, ranks and evidence over arrays [Q, F].

Every function takes questions whose pools have one size, and gives for each row what
`strive.variants` and `strive.statistics` give for that question alone; a cache of 100,000 questions
is measured in seconds. Axes: Q questions, F pool frames, K segments.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from strive import variants
from strive.variants import DEFAULT_LOGIT_SCALE, segment_bounds

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def filled_bounds(num_frames: int, num_segments: int) -> NDArray[np.int64]:
    """Return the segments that hold a frame (with F < K some are empty), as rows [start, end)."""
    bounds_K2 = segment_bounds(num_frames, num_segments)
    return bounds_K2[bounds_K2[:, 1] > bounds_K2[:, 0]]


def transform_rows(
    scores_QF: Floats, transform: str, *, logit_scale: float = DEFAULT_LOGIT_SCALE
) -> Floats:
    """Rescale each row as `variants.transform_scores` does."""
    scores_QF = np.asarray(scores_QF, dtype=np.float64)
    if transform == "none":
        return scores_QF
    if transform == "logit":
        return logit_scale * scores_QF
    if transform == "zscore":
        offset_Q1, scale_Q1 = _column(scores_QF.mean(axis=1)), _column(scores_QF.std(axis=1))
    elif transform == "minmax":
        offset_Q1, scale_Q1 = _column(scores_QF.min(axis=1)), _column(np.ptp(scores_QF, axis=1))
    else:
        raise ValueError(f"score_transform '{transform}' has no rule here")
    flat_Q1 = scale_Q1 <= 1e-9 * np.maximum(1.0, _column(np.abs(scores_QF).max(axis=1)))
    return np.where(flat_Q1, 0.0, (scores_QF - offset_Q1) / np.where(flat_Q1, 1.0, scale_Q1))


def probability_rows(
    scores_QF: Floats,
    *,
    score_kind: str,
    num_segments: int,
    frame_temperature: float,
    score_transform: str = "none",
    logit_scale: float = DEFAULT_LOGIT_SCALE,
) -> Floats:
    """P(t) of each row: Eq. 4 for similarities, normalised weights otherwise; scores are finite.

    With one segment it is the softmax (or the share) over the whole pool.

    Raises:
        ConfigError: a temperature or transform that `variants.probabilities_of` refuses.
        CacheError: weights below 0.
    """
    suspects_QF = scores_QF[(scores_QF < 0).any(axis=1)] if score_kind == "weight" else scores_QF
    for scores_F in (*suspects_QF[:1], *scores_QF[:1]):
        variants.probabilities_of(
            scores_F,
            score_kind=score_kind,  # type: ignore[arg-type]
            num_segments=num_segments,
            frame_temperature=frame_temperature,
            score_transform=score_transform,  # type: ignore[arg-type]
        )
    bounds_K2 = filled_bounds(scores_QF.shape[1], num_segments)
    starts_K, lengths_K = bounds_K2[:, 0], bounds_K2[:, 1] - bounds_K2[:, 0]
    values_QF = np.asarray(scores_QF, dtype=np.float64)
    if score_kind == "similarity":
        values_QF = transform_rows(values_QF, score_transform, logit_scale=logit_scale)
    largest_QF = np.repeat(np.maximum.reduceat(values_QF, starts_K, axis=1), lengths_K, axis=1)
    if score_kind == "similarity":
        values_QF = np.exp((values_QF - largest_QF) / frame_temperature)
    else:
        nothing_QF = largest_QF == 0  # a segment without weight is uniform
        values_QF = np.where(nothing_QF, 1.0, values_QF / np.where(nothing_QF, 1.0, largest_QF))
    sums_QK = np.add.reduceat(values_QF, starts_K, axis=1)
    return values_QF / np.repeat(sums_QK, lengths_K, axis=1)


def segment_std_rows(scores_QF: Floats, num_segments: int) -> Floats:
    """Mean over segments of the deviation (ddof 0) of the scores in it: [Q]."""
    bounds_K2 = filled_bounds(scores_QF.shape[1], num_segments)
    starts_K, lengths_K = bounds_K2[:, 0], bounds_K2[:, 1] - bounds_K2[:, 0]
    means_QK = np.add.reduceat(scores_QF, starts_K, axis=1) / lengths_K
    deviations_QF = scores_QF - np.repeat(means_QK, lengths_K, axis=1)
    squares_QK = np.add.reduceat(deviations_QF**2, starts_K, axis=1) / lengths_K
    return np.sqrt(squares_QK).mean(axis=1)


def effective_rows(probabilities_QF: Floats, num_segments: int) -> tuple[Floats, Floats]:
    """Mean over segments of exp(entropy of P), and of its share of the segment's frames: [Q], [Q].

    The first runs from 1 (always the same frame) to the segment's length (uniform).
    """
    bounds_K2 = filled_bounds(probabilities_QF.shape[1], num_segments)
    logs_QF = np.log(np.where(probabilities_QF > 0, probabilities_QF, 1.0))
    entropy_QK = -np.add.reduceat(probabilities_QF * logs_QF, bounds_K2[:, 0], axis=1)
    effective_QK = np.exp(entropy_QK)
    lengths_K = bounds_K2[:, 1] - bounds_K2[:, 0]
    return effective_QK.mean(axis=1), (effective_QK / lengths_K).mean(axis=1)


def peak_rows(probabilities_QF: Floats, num_segments: int) -> tuple[Floats, Floats]:
    """P of the best frame of each row's most peaked segment, and what uniform would be: [Q], [Q].

    The most peaked segment is the one whose best frame stands furthest above 1 / length.
    """
    bounds_K2 = filled_bounds(probabilities_QF.shape[1], num_segments)
    best_QK = np.maximum.reduceat(probabilities_QF, bounds_K2[:, 0], axis=1)
    uniform_K = 1.0 / (bounds_K2[:, 1] - bounds_K2[:, 0])
    most_Q1 = _column((best_QK / uniform_K).argmax(axis=1))
    return np.take_along_axis(best_QK, most_Q1, axis=1)[:, 0], uniform_K[most_Q1[:, 0]]


def overlap_rows(probabilities_QF: Floats, num_segments: int) -> Floats:
    """Chance that two variants show the same frame, mean over segments of sum P(t)^2: [Q]."""
    num_filled = len(filled_bounds(probabilities_QF.shape[1], num_segments))
    return (probabilities_QF**2).sum(axis=1) / num_filled


def auc_rows(scores_QF: Floats, positive_QF: Bools) -> Floats:
    """ROC-AUC of each row: chance that a positive outscores a negative, ties half.

    NaN for a row without positives or without negatives.

    By the identity of Mann and Whitney: (rank sum of the positives - n(n + 1) / 2) / (n m), with n
    positives, m negatives and ties sharing their mean rank.
    """
    ranks_QF = rankdata(scores_QF, axis=1)
    positives_Q = positive_QF.sum(axis=1)
    pairs_Q = positives_Q * (positive_QF.shape[1] - positives_Q)
    rank_sums_Q = np.where(positive_QF, ranks_QF, 0.0).sum(axis=1)
    wins_Q = rank_sums_Q - positives_Q * (positives_Q + 1) / 2
    return np.where(pairs_Q > 0, wins_Q / np.maximum(pairs_Q, 1), np.nan)


def recall_rows(scores_QF: Floats, positive_QF: Bools, k_Q: NDArray[np.int64] | int) -> Floats:
    """Share of the evidence among the k highest scores, of what k frames can hold at most: [Q].

    |top k and evidence| / min(k, |evidence|): 1 for a perfect scorer at every k. Equal scores at
    the border count by the share that a random choice among them would take. NaN without evidence.
    """
    ks_Q = np.clip(np.broadcast_to(np.asarray(k_Q), len(scores_QF)), 1, scores_QF.shape[1])
    kth_Q1 = np.take_along_axis(-np.sort(-scores_QF, axis=1), _column(ks_Q) - 1, axis=1)
    above_QF, level_QF = scores_QF > kth_Q1, scores_QF == kth_Q1
    places_Q = ks_Q - above_QF.sum(axis=1)
    share_Q = places_Q / np.maximum(level_QF.sum(axis=1), 1)
    hits_Q = (above_QF & positive_QF).sum(axis=1) + share_Q * (level_QF & positive_QF).sum(axis=1)
    most_Q = np.minimum(ks_Q, positive_QF.sum(axis=1))
    return np.where(most_Q > 0, hits_Q / np.maximum(most_Q, 1), np.nan)


def uniform_rows(num_frames: int, num_segments: int) -> Floats:
    """P(t) of a draw that all frames of a segment share equally: [F]."""
    bounds_K2 = filled_bounds(num_frames, num_segments)
    lengths_K = bounds_K2[:, 1] - bounds_K2[:, 0]
    return np.repeat(1.0 / lengths_K, lengths_K)


def lift_rows(probabilities_QF: Floats, positive_QF: Bools, num_segments: int) -> Floats:
    """Evidence frames expected in a variant, over those of a uniform draw: [Q]; NaN without any."""
    uniform_F = uniform_rows(probabilities_QF.shape[1], num_segments)
    mass_Q = np.where(positive_QF, probabilities_QF, 0.0).sum(axis=1)
    base_Q = np.where(positive_QF, uniform_F, 0.0).sum(axis=1)
    return np.where(base_Q > 0, mass_Q / np.where(base_Q > 0, base_Q, 1.0), np.nan)


def seen_rows(probabilities_QF: Floats, positive_QF: Bools, num_segments: int) -> Floats:
    """Chance that a variant shows an evidence frame: 1 - prod_k (1 - mass of segment k): [Q]."""
    starts_K = filled_bounds(probabilities_QF.shape[1], num_segments)[:, 0]
    mass_QK = np.add.reduceat(np.where(positive_QF, probabilities_QF, 0.0), starts_K, axis=1)
    return 1.0 - np.prod(1.0 - np.minimum(mass_QK, 1.0), axis=1)


def evidence_mask(pts_seconds_F: Floats, spans: tuple[tuple[float, float], ...]) -> Bools:
    """Tell which frames lie in one of the half-open spans `[start, end)`, in seconds."""
    inside_F = np.zeros(len(pts_seconds_F), dtype=bool)
    for start, end in spans:
        inside_F |= (pts_seconds_F >= start) & (pts_seconds_F < end)
    return inside_F


def _column(values_Q: NDArray) -> NDArray:
    return values_Q[:, None]


def correlation_rows(a_QF: Floats, b_QF: Floats) -> Floats:
    """Pearson's correlation of each row of one array with that of another; NaN for a flat row."""
    a_QF = a_QF - a_QF.mean(axis=1, keepdims=True)
    b_QF = b_QF - b_QF.mean(axis=1, keepdims=True)
    norms_Q = np.sqrt((a_QF**2).sum(axis=1) * (b_QF**2).sum(axis=1))
    # Rounding noise of a constant row is no spread.
    flat_Q = norms_Q <= 1e-15
    return np.where(flat_Q, np.nan, (a_QF * b_QF).sum(axis=1) / np.where(flat_Q, 1.0, norms_Q))


def spearman_rows(a_QF: Floats, b_QF: Floats) -> Floats:
    """Spearman's rank correlation of each row, ties sharing their mean rank; NaN for a flat row."""
    return correlation_rows(rankdata(a_QF, axis=1), rankdata(b_QF, axis=1))


def jaccard_rows(a_QF: Floats, b_QF: Floats, k: int) -> Floats:
    """|A and B| / |A or B| of the k highest of each row; of equal values the earlier ones count."""
    k = min(k, a_QF.shape[1])
    chosen = []
    for values_QF in (a_QF, b_QF):
        top_QK = np.argsort(-values_QF, axis=1, kind="stable")[:, :k]
        flags_QF = np.zeros(values_QF.shape, dtype=bool)
        np.put_along_axis(flags_QF, top_QK, True, axis=1)
        chosen.append(flags_QF)
    return (chosen[0] & chosen[1]).sum(axis=1) / (chosen[0] | chosen[1]).sum(axis=1)


NEARLY_UNIFORM = 1.1
"""P(t) whose best frame is drawn less than so many times as often as by a uniform draw is flat:
training then draws frames at random, whatever the scores say."""
WANTED_PEAK = 0.5
"""P of the best frame that `suggest_temperatures` looks for: as likely as all others together."""
MAX_QUESTIONS = 10_000
"""Of more questions, as many are measured, evenly chosen."""
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Peak:
    """How peaked Eq. 4 is, as medians over questions whose segments leave a choice.

    `probability` is that of the best frame in a question's most peaked segment, `uniform` what it
    would be without scores.
    """

    probability: float
    uniform: float
    overlap: float
    """Chance that two variants show the same frame (mean over questions)."""
    num_questions: int

    @property
    def is_flat(self) -> bool:
        """Whether the draws are nearly uniform."""
        return self.probability < NEARLY_UNIFORM * self.uniform

    @property
    def text(self) -> str:
        """The two figures beside one another, and what a flat P(t) means."""
        flat = ": within 10 % of it, so frames are drawn at random" if self.is_flat else ""
        return (
            f"best frame of the most peaked segment P {self.probability:.2f}, uniform "
            f"{self.uniform:.2f}{flat}"
        )


def typical_peak(
    scores: Sequence[NDArray[np.floating]],
    *,
    score_kind: str,
    num_segments: int,
    frame_temperature: float,
    score_transform: str = "none",
    logit_scale: float = DEFAULT_LOGIT_SCALE,
) -> Peak | None:
    """Measure the scores [F] of some questions; None where no pool leaves a choice (F <= K).

    Questions whose scores are not finite are left out.
    """
    by_size: dict[int, list[NDArray[np.floating]]] = {}
    for scores_F in scores[:: -(-len(scores) // MAX_QUESTIONS) or 1]:
        if len(scores_F) > num_segments and np.isfinite(scores_F).all():
            by_size.setdefault(len(scores_F), []).append(scores_F)
    found: list[Floats] = []
    for rows in by_size.values():
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            p_QF = probability_rows(
                np.stack(rows[start : start + _ROWS_AT_ONCE]).astype(np.float64),
                score_kind=score_kind,
                num_segments=num_segments,
                frame_temperature=frame_temperature,
                score_transform=score_transform,
                logit_scale=logit_scale,
            )
            found.append(
                np.stack([*peak_rows(p_QF, num_segments), overlap_rows(p_QF, num_segments)])
            )
    if not found:
        return None
    best_Q, uniform_Q, overlap_Q = np.concatenate(found, axis=1)
    return Peak(
        float(np.median(best_Q)), float(np.median(uniform_Q)), float(overlap_Q.mean()), len(best_Q)
    )


def suggest_temperature(
    scores: Sequence[NDArray[np.floating]],
    *,
    num_segments: int,
    score_transform: str = "none",
    logit_scale: float = DEFAULT_LOGIT_SCALE,
) -> tuple[float, Peak] | None:
    """Tau of Eq. 4 at which the best frame of a question's most peaked segment has P = 0.5.

    In the median over the questions, to two digits. None where no tau does that: scores are all
    equal, or the pools leave no choice.
    """

    def at(tau: float) -> Peak | None:
        return typical_peak(
            scores,
            score_kind="similarity",
            num_segments=num_segments,
            frame_temperature=tau,
            score_transform=score_transform,
            logit_scale=logit_scale,
        )

    # P falls from 1 to uniform as tau grows; it is searched for on a scale of logarithms.
    low, high = 1e-6, 1e6
    coldest, hottest = at(low), at(high)
    if coldest is None or hottest is None:
        return None
    if not hottest.probability < WANTED_PEAK <= coldest.probability:
        return None
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        peak = at(middle)
        assert peak is not None
        low, high = (middle, high) if peak.probability >= WANTED_PEAK else (low, middle)
    tau = float(f"{low:.2g}")
    found = at(tau)
    assert found is not None
    return tau, found
