"""Standard errors, paired differences, resampling and rank statistics, on scipy.

Values are per-sample scores (0 to 1, or any unit: the result has the same unit). "Clustered" means
that samples sharing a key (questions about one video) are not independent: the clusters are what is
resampled, or what the variance is summed over.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its standard error and confidence interval; `num_units` are independent."""

    value: float
    standard_error: float
    low: float
    high: float
    num_samples: int
    num_units: int


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of `a - b` over pairs, its interval and the two-sided p-value of "no difference"."""

    difference: float
    standard_error: float
    low: float
    high: float
    p_value: float
    num_pairs: int
    num_units: int


def _finite(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; one dimension is expected")
    _require_finite(array, name)
    return array


def _require_finite(array: Floats, name: str) -> None:
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(array)).sum())} non-finite values")


def _cluster_sums(deviations: Floats, clusters: Sequence[Hashable]) -> Floats:
    if len(clusters) != len(deviations):
        raise ValueError(f"{len(clusters)} cluster keys for {len(deviations)} values")
    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(key, len(numbers)) for key in clusters]
    return np.bincount(index, weights=deviations, minlength=len(numbers)).astype(np.float64)


def standard_error(values: ArrayLike) -> float:
    """std(ddof=1) / sqrt(n); NaN for fewer than two values."""
    array = _finite(values, "values")
    if len(array) < 2:
        return float("nan")
    return float(array.std(ddof=1) / np.sqrt(len(array)))


def clustered_standard_error(values: ArrayLike, clusters: Sequence[Hashable]) -> float:
    """Standard error of the mean when values that share a cluster key depend on each other.

    sqrt(C / (C - 1) * sum_c (sum_{i in c} (x_i - mean))^2) / n, with C clusters: equal to
    `standard_error` when every cluster holds one value. NaN for fewer than two clusters.
    """
    array = _finite(values, "values")
    if len(array) == 0:
        return float("nan")
    sums_C = _cluster_sums(array - array.mean(), clusters)
    num_clusters = len(sums_C)
    if num_clusters < 2:
        return float("nan")
    variance = num_clusters / (num_clusters - 1) * float((sums_C**2).sum()) / len(array) ** 2
    return float(np.sqrt(variance))


def mean_interval(
    values: ArrayLike, *, clusters: Sequence[Hashable] | None = None, confidence: float = 0.95
) -> Interval:
    """Mean with its (clustered) standard error and the t interval over independent units."""
    array = _finite(values, "values")
    if len(array) == 0:
        nan = float("nan")
        return Interval(nan, nan, nan, nan, 0, 0)
    keys: Sequence[Hashable] = range(len(array)) if clusters is None else clusters
    error = clustered_standard_error(array, keys)
    num_units = len(set(keys))
    mean = float(array.mean())
    half = _t_quantile(confidence, num_units) * error
    return Interval(mean, error, mean - half, mean + half, len(array), num_units)


def _t_quantile(confidence: float, num_units: int) -> float:
    if num_units < 2:
        return float("nan")
    return float(stats.t.ppf(0.5 + confidence / 2, df=num_units - 1))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
) -> PairedDifference:
    """Test the mean of `a - b` over pairs (questions, or seeds), optionally clustered.

    Without clusters this is the paired t-test. When all differences are equal the p-value is 0, or
    1 if they are all zero.
    """
    array_a, array_b = _finite(a, "a"), _finite(b, "b")
    if len(array_a) != len(array_b):
        raise ValueError(f"a has {len(array_a)} values and b {len(array_b)}; pairs are needed")
    interval = mean_interval(array_a - array_b, clusters=clusters, confidence=confidence)
    if interval.num_units < 2:
        p_value = float("nan")
    elif interval.standard_error == 0:
        p_value = float(interval.value == 0)
    else:
        t = interval.value / interval.standard_error
        p_value = float(2 * stats.t.sf(abs(t), df=interval.num_units - 1))
    return PairedDifference(
        difference=interval.value,
        standard_error=interval.standard_error,
        low=interval.low,
        high=interval.high,
        p_value=p_value,
        num_pairs=interval.num_samples,
        num_units=interval.num_units,
    )


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values, in the order given.

    Sorted ascending, p_(i) becomes max over j <= i of min(1, (m - j) * p_(j)), j from 0.
    """
    p = _finite(p_values, "p_values")
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"p_values are {p.tolist()}; all must lie in [0, 1]")
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, (len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted


def bootstrap_interval(
    values: ArrayLike,
    *,
    rng: np.random.Generator,
    statistic: Callable[[Floats], float] | None = None,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
) -> Interval:
    """Percentile bootstrap of a statistic (the mean by default), resampling whole clusters."""
    array = _finite(values, "values")
    if len(array) == 0:
        raise ValueError("values is empty; at least one is needed")
    compute = statistic or (lambda sample: float(sample.mean()))
    keys: Sequence[Hashable] = range(len(array)) if clusters is None else clusters
    if len(keys) != len(array):
        raise ValueError(f"{len(keys)} cluster keys for {len(array)} values")
    members: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(key, []).append(index)
    groups = [np.asarray(group) for group in members.values()]
    draws = rng.integers(len(groups), size=(num_resamples, len(groups)))
    resampled = np.array(
        [compute(array[np.concatenate([groups[g] for g in draw])]) for draw in draws]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(
        value=float(compute(array)),
        standard_error=float(resampled.std(ddof=1)),
        low=float(low),
        high=float(high),
        num_samples=len(array),
        num_units=len(groups),
    )


# --- ranks ---------------------------------------------------------------------------------------
# Each takes one list of N values or many, [..., N], and gives one figure a row, [...].


def correlation(a: ArrayLike, b: ArrayLike) -> Floats:
    """Pearson's correlation; NaN where either side is constant."""
    array_a, array_b = _paired_rows(a, b)
    array_a = array_a - array_a.mean(-1, keepdims=True)
    array_b = array_b - array_b.mean(-1, keepdims=True)
    norms = np.sqrt((array_a**2).sum(-1) * (array_b**2).sum(-1))
    # Rounding noise of a constant row is no spread.
    is_flat = norms <= 1e-15
    products = (array_a * array_b).sum(-1)
    return np.where(is_flat, np.nan, products / np.where(is_flat, 1.0, norms))[()]


def spearman(a: ArrayLike, b: ArrayLike) -> Floats:
    """Spearman's rank correlation with ties averaged; NaN where either side is constant."""
    array_a, array_b = _paired_rows(a, b)
    return correlation(stats.rankdata(array_a, axis=-1), stats.rankdata(array_b, axis=-1))


def roc_auc(scores: ArrayLike, positive: ArrayLike) -> Floats:
    """Probability that a positive outscores a negative, ties counting half; NaN without both.

    By the identity of Mann and Whitney: (rank sum of the positives - n(n + 1) / 2) / (n m), with n
    positives, m negatives and ties sharing their mean rank.
    """
    scores_N, positive_N = _labelled_rows(scores, positive)
    num_positive = positive_N.sum(-1)
    num_pairs = num_positive * (positive_N.shape[-1] - num_positive)
    rank_sums = np.where(positive_N, stats.rankdata(scores_N, axis=-1), 0.0).sum(-1)
    wins = rank_sums - num_positive * (num_positive + 1) / 2
    return np.where(num_pairs > 0, wins / np.maximum(num_pairs, 1), np.nan)[()]


def recall_at(scores: ArrayLike, positive: ArrayLike, k: ArrayLike) -> Floats:
    """Share of the positives among the k highest scores, of what k places can hold at most.

    |top k and positive| / min(k, |positive|): 1 for a perfect ranking at every k, which is one
    number or one a row. Equal scores at the border count by the share that a random choice among
    them would take. NaN without positives.
    """
    scores_N, positive_N = _labelled_rows(scores, positive)
    places = np.clip(np.broadcast_to(np.asarray(k), scores_N.shape[:-1]), 1, scores_N.shape[-1])
    kth = np.take_along_axis(-np.sort(-scores_N, axis=-1), places[..., None] - 1, axis=-1)
    is_above, is_level = scores_N > kth, scores_N == kth
    share = (places - is_above.sum(-1)) / np.maximum(is_level.sum(-1), 1)
    hits = (is_above & positive_N).sum(-1) + share * (is_level & positive_N).sum(-1)
    most = np.minimum(places, positive_N.sum(-1))
    return np.where(most > 0, hits / np.maximum(most, 1), np.nan)[()]


def top_jaccard(a: ArrayLike, b: ArrayLike, k: int) -> Floats:
    """|A and B| / |A or B| of the k highest of either side; of equal values the earlier count."""
    is_top = []
    for values in _paired_rows(a, b):
        top = np.argsort(-values, axis=-1, kind="stable")[..., :k]
        flags = np.zeros(values.shape, dtype=bool)
        np.put_along_axis(flags, top, True, axis=-1)
        is_top.append(flags)
    return (is_top[0] & is_top[1]).sum(-1) / (is_top[0] | is_top[1]).sum(-1)


def _paired_rows(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    array_a, array_b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if array_a.shape != array_b.shape:
        raise ValueError(f"a has shape {array_a.shape} and b {array_b.shape}; pairs are needed")
    for name, array in (("a", array_a), ("b", array_b)):
        _require_finite(array, name)
    return array_a, array_b


def _labelled_rows(scores: ArrayLike, positive: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    scores_N, positive_N = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if positive_N.shape != scores_N.shape:
        raise ValueError(f"scores have shape {scores_N.shape}, positive {positive_N.shape}")
    _require_finite(scores_N, "scores")
    return scores_N, positive_N


# --- spread and power ----------------------------------------------------------------------------


def log_deviation(values: ArrayLike) -> float:
    """std(ddof=1) of the natural logarithm of the positive values; NaN for fewer than two.

    For gradient norms: a run with twice the rate everywhere has the same deviation.
    """
    array = _finite(values, "values")
    positive = array[array > 0]
    return float(np.log(positive).std(ddof=1)) if len(positive) >= 2 else float("nan")


def pairs_needed(
    deviation: float, difference: float, *, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Smallest number of pairs at which a two-sided paired t-test reaches `power`.

    `deviation` is the standard deviation of the paired differences.
    """
    if not (deviation > 0 and difference != 0 and 0 < power < 1 and 0 < alpha < 1):
        raise ValueError(
            f"deviation {deviation}, difference {difference}, power {power}, alpha {alpha}: the "
            "deviation must be positive, the difference non-zero, power and alpha inside (0, 1)"
        )
    num_pairs = 2
    while _paired_power(num_pairs, abs(difference) / deviation, alpha) < power:
        num_pairs += 1
    return num_pairs


def _paired_power(num_pairs: int, effect: float, alpha: float) -> float:
    """Power of the two-sided paired t-test, from the non-central t distribution."""
    shift = effect * np.sqrt(num_pairs)
    critical = stats.t.ppf(1 - alpha / 2, df=num_pairs - 1)
    upper = stats.nct.sf(critical, num_pairs - 1, shift)
    lower = stats.nct.cdf(-critical, num_pairs - 1, shift)
    return float(upper + np.nan_to_num(lower))
