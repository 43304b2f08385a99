"""Standard errors, paired differences, resampling and rank statistics, on scipy.

Values are per-sample scores (0 to 1, or any unit: the result has the same unit). "Clustered" means
that samples sharing a key (questions about one video) are not independent: the clusters are what is
resampled, or what the variance is summed over.

A "macro average" is a mean of group means. Each value has a path, the names of its groups from the
outside in: the average is the mean over the outer groups, each of which is the mean of its inner
groups or of its values. With the empty path for every value it is the plain mean.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

Floats = NDArray[np.float64]
GroupPath = tuple[str, ...]

_MAX_DRAWN = 1 << 22
"""Clusters drawn at a time by the bootstrap, which bounds its memory (8 bytes each, twice)."""


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


def _numbered(keys: Sequence[Hashable], num_values: int, what: str) -> tuple[NDArray[np.intp], int]:
    """Number the keys in order of appearance; returns each value's number, and how many."""
    if len(keys) != num_values:
        raise ValueError(f"{len(keys)} {what} for {num_values} values")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.intp)
    return index, len(numbers)


def binomial_standard_error(share: float, num_samples: int) -> float:
    """sqrt(p (1 - p) / n) of a share p in [0, 1] of n independent answers, right or wrong.

    Of grades in between (mean relative accuracy) it is the most that n independent ones can have.
    NaN for no samples.

    Raises:
        ValueError: the share is outside [0, 1].
    """
    if num_samples < 1:
        return float("nan")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must lie in [0, 1]")
    return float(np.sqrt(share * (1 - share) / num_samples))


def standard_error(values: ArrayLike) -> float:
    """std(ddof=1) / sqrt(n); NaN for fewer than two values."""
    array = _finite(values, "values")
    if len(array) < 2:
        return float("nan")
    return float(array.std(ddof=1) / np.sqrt(len(array)))


def clustered_standard_error(values: ArrayLike, clusters: Sequence[Hashable]) -> float:
    """Standard error of the mean when values that share a cluster key depend on each other.

    sqrt(C / (C - 1) * sum_c (sum_{i in c} (x_i - mean))^2) / n, with C clusters: equal to
    `standard_error` when every cluster holds one value. The factor C / (C - 1) is that of
    statsmodels' cluster-robust covariance of a constant, whose other factor (n - 1) / (n - 1) is 1.
    lmms-eval 0.7.2 has no such factor for the terms between values of a cluster. NaN for fewer than
    two clusters.
    """
    array = _finite(values, "values")
    if len(array) == 0:
        return float("nan")
    cluster_N, num_clusters = _numbered(clusters, len(array), "cluster keys")
    if num_clusters < 2:
        return float("nan")
    sums_C = np.bincount(cluster_N, weights=array - array.mean(), minlength=num_clusters)
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
    return float(special.stdtrit(num_units - 1, 0.5 + confidence / 2))


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
    interval = mean_interval(_differences(a, b), clusters=clusters, confidence=confidence)
    return _tested(interval)


def _differences(a: ArrayLike, b: ArrayLike) -> Floats:
    array_a, array_b = _finite(a, "a"), _finite(b, "b")
    if len(array_a) != len(array_b):
        raise ValueError(f"a has {len(array_a)} values and b {len(array_b)}; pairs are needed")
    return array_a - array_b


def _tested(interval: Interval) -> PairedDifference:
    """Add the two-sided p-value of "no difference", by t with one degree fewer than units."""
    if interval.num_units < 2:
        p_value = float("nan")
    elif interval.standard_error == 0:
        p_value = float(interval.value == 0)
    else:
        t = interval.value / interval.standard_error
        p_value = float(2 * special.stdtr(interval.num_units - 1, -abs(t)))
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

    Sorted ascending, p_(i) becomes max over j <= i of min(1, (m - j) * p_(j)), j from 0. Tests of
    several tables that are read together belong into one call. NaN, where nothing was tested, stays
    NaN and does not count in m.
    """
    given = np.asarray(p_values, dtype=np.float64)
    is_test = ~np.isnan(given)
    p = _finite(given[is_test], "p_values")
    if ((p < 0) | (p > 1)).any():
        raise ValueError(f"p_values are {p.tolist()}; all must lie in [0, 1]")
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, (len(p) - np.arange(len(p))) * p[order])
    adjusted = np.full_like(given, np.nan)
    adjusted[np.flatnonzero(is_test)[order]] = np.maximum.accumulate(stepped)
    return adjusted


# --- macro averages ------------------------------------------------------------------------------


def macro_average(values: ArrayLike, paths: Sequence[GroupPath]) -> float:
    """Mean of group means, nested where a path is longer than one; NaN for no values."""
    array = _finite(values, "values")
    if len(array) == 0:
        return float("nan")
    leaf_N, num_leaves = _numbered(paths, len(array), "paths")
    sums_L = np.bincount(leaf_N, weights=array, minlength=num_leaves)
    means_L = sums_L / np.bincount(leaf_N, minlength=num_leaves)
    return float(_mean_of_means(means_L[None], list(dict.fromkeys(paths)))[0])


def macro_interval(
    values: ArrayLike,
    paths: Sequence[GroupPath],
    *,
    clusters: Sequence[Hashable],
    rng: np.random.Generator,
    confidence: float = 0.95,
    num_resamples: int = 2000,
) -> Interval:
    """Macro average with a standard error by the bootstrap over whole clusters, and its t interval.

    The standard error is sqrt(C / (C - 1)) times the deviation over the resamples, with C clusters:
    for one group it is `clustered_standard_error` but for the chance of the draws, a part of about
    1 / sqrt(2 * num_resamples). A group that a resample does not hold is left out of its average.
    """
    array = _finite(values, "values")
    if len(array) == 0:
        nan = float("nan")
        return Interval(nan, nan, nan, nan, 0, 0)
    cluster_N, num_clusters = _numbered(clusters, len(array), "cluster keys")
    leaf_N, num_leaves = _numbered(paths, len(array), "paths")
    leaves = list(dict.fromkeys(paths))
    # A resample holds each cluster so many times: its group sums are products with these tables.
    cell_N = cluster_N * num_leaves + leaf_N
    num_cells = num_clusters * num_leaves
    shape = (num_clusters, num_leaves)
    sums_CL = np.bincount(cell_N, weights=array, minlength=num_cells).reshape(shape)
    counts_CL = np.bincount(cell_N, minlength=num_cells).astype(np.float64).reshape(shape)
    value = macro_average(array, paths)
    if num_clusters < 2:
        nan = float("nan")
        return Interval(value, nan, nan, nan, len(array), num_clusters)
    resampled: list[Floats] = []
    most = max(1, _MAX_DRAWN // num_clusters)
    for start in range(0, num_resamples, most):
        rows = min(most, num_resamples - start)
        drawn_RC = rng.integers(num_clusters, size=(rows, num_clusters))
        drawn_RC += np.arange(rows)[:, None] * num_clusters
        counted = np.bincount(drawn_RC.ravel(), minlength=rows * num_clusters)
        times_RC = counted.astype(np.float64).reshape(rows, num_clusters)
        counts_RL = times_RC @ counts_CL
        means_RL = (times_RC @ sums_CL) / np.where(counts_RL > 0, counts_RL, np.nan)
        resampled.append(_mean_of_means(means_RL, leaves))
    deviation = float(np.concatenate(resampled).std(ddof=1))
    error = float(np.sqrt(num_clusters / (num_clusters - 1)) * deviation)
    half = _t_quantile(confidence, num_clusters) * error
    return Interval(value, error, value - half, value + half, len(array), num_clusters)


def macro_difference(
    a: ArrayLike,
    b: ArrayLike,
    paths: Sequence[GroupPath],
    *,
    clusters: Sequence[Hashable],
    rng: np.random.Generator,
    confidence: float = 0.95,
    num_resamples: int = 2000,
) -> PairedDifference:
    """Test the macro average of `a` minus that of `b`, over the same values, by paired bootstrap.

    Each resample takes the same clusters of both, so that the difference of their averages is the
    average of the differences.
    """
    differences = _differences(a, b)
    return _tested(
        macro_interval(
            differences,
            paths,
            clusters=clusters,
            rng=rng,
            confidence=confidence,
            num_resamples=num_resamples,
        )
    )


def _mean_of_means(means_RL: Floats, leaves: Sequence[GroupPath]) -> Floats:
    """Fold the means of the innermost groups outwards; NaN is a group that a row does not hold.

    Raises:
        ValueError: a group holds values and groups.
    """
    level = dict(zip(leaves, means_RL.T, strict=True))
    while set(level) != {()}:
        depth = max(map(len, level))
        inner: dict[GroupPath, list[Floats]] = {}
        for path in [path for path in level if len(path) == depth]:
            inner.setdefault(path[:-1], []).append(level.pop(path))
        for path, means in inner.items():
            if path in level:
                raise ValueError(f"group {path} holds values and groups; it must hold one of them")
            stacked = np.stack(means)
            is_there = ~np.isnan(stacked)
            num_there = is_there.sum(0)
            total = np.where(is_there, stacked, 0.0).sum(0)
            level[path] = total / np.where(num_there > 0, num_there, np.nan)
    return level[()]


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
    while paired_power(difference, deviation / num_pairs**0.5, num_pairs, alpha=alpha) < power:
        num_pairs += 1
    return num_pairs


def paired_power(
    difference: float, standard_error: float, num_units: int, *, alpha: float = 0.05
) -> float:
    """Probability that a two-sided paired t-test finds a true difference, in [0, 1].

    From the non-central t distribution with `num_units` - 1 degrees of freedom, shifted by
    difference / standard error (both in one unit; of clustered pairs, the clustered one).
    """
    shift = abs(difference) / standard_error
    critical = special.stdtrit(num_units - 1, 1 - alpha / 2)
    upper = stats.nct.sf(critical, num_units - 1, shift)
    lower = stats.nct.cdf(-critical, num_units - 1, shift)
    # Far in its tail the lower one is no number.
    return float(upper + np.nan_to_num(lower))


def detectable_difference(
    standard_error: float, num_units: int, *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Smallest true difference that a two-sided paired t-test finds with probability `power`."""

    def excess(difference: float) -> float:
        return paired_power(difference, standard_error, num_units, alpha=alpha) - power

    return float(optimize.brentq(excess, 0.0, 100 * standard_error))


def design_effect(cluster_size: float, correlation: float) -> float:
    """1 + (m - 1) * rho: how much larger the variance of a mean is than of independent values.

    m values a cluster, which correlate by rho with one another (Kish, Survey Sampling, 1965).
    """
    return 1 + (cluster_size - 1) * correlation
