import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from strive import statistics as s
from strive.seeding import derive_rng

unit_floats = st.floats(0, 1, allow_nan=False)


def test_standard_error_by_hand() -> None:
    # 0, 0, 1, 1: variance with ddof 1 is 4 * 0.25 / 3 = 1/3; / 4 = 1/12.
    assert s.standard_error([0, 0, 1, 1]) == pytest.approx(math.sqrt(1 / 12))
    assert math.isnan(s.standard_error([1.0]))


def test_clustered_standard_error_by_hand() -> None:
    # mean 0.5; cluster a deviates +0.5 +0.5 = 1, b -1; 2/1 * (1 + 1) / 16 = 0.25.
    assert s.clustered_standard_error([1, 1, 0, 0], ["a", "a", "b", "b"]) == pytest.approx(0.5)
    assert math.isnan(s.clustered_standard_error([1, 0], ["a", "a"]))


@given(st.lists(st.tuples(unit_floats, st.integers(0, 4)), min_size=2, max_size=30))
def test_clustered_standard_error_against_plain_loop(rows: list[tuple[float, int]]) -> None:
    values, keys = [v for v, _ in rows], [k for _, k in rows]
    num_clusters = len(set(keys))
    got = s.clustered_standard_error(values, keys)
    if num_clusters < 2:
        assert math.isnan(got)
        return
    mean = sum(values) / len(values)
    total = 0.0
    for i, a in enumerate(keys):
        for j, b in enumerate(keys):
            if a == b:
                total += (values[i] - mean) * (values[j] - mean)
    expected = math.sqrt(max(0.0, num_clusters / (num_clusters - 1) * total)) / len(values)
    assert got == pytest.approx(expected, abs=1e-7)


@given(st.lists(unit_floats, min_size=2, max_size=30))
def test_one_value_a_cluster_is_the_plain_error(values: list[float]) -> None:
    clustered = s.clustered_standard_error(values, range(len(values)))
    assert clustered == pytest.approx(s.standard_error(values), abs=1e-12)


def test_paired_difference_is_the_paired_t_test() -> None:
    rng = derive_rng(0, "test paired")
    a, b = rng.normal(0.3, 1, 40), rng.normal(0, 1, 40)
    got = s.paired_difference(a, b)
    reference = stats.ttest_rel(a, b)
    interval = reference.confidence_interval(0.95)
    assert got.difference == pytest.approx(float(np.mean(a - b)))
    assert got.p_value == pytest.approx(reference.pvalue)
    assert (got.low, got.high) == pytest.approx((interval.low, interval.high))
    assert got.num_pairs == got.num_units == 40


def test_paired_difference_edges() -> None:
    assert s.paired_difference([1, 1], [1, 1]).p_value == 1.0
    assert s.paired_difference([1, 1], [0, 0]).p_value == 0.0
    assert math.isnan(s.paired_difference([1], [0]).p_value)
    with pytest.raises(ValueError, match="pairs are needed"):
        s.paired_difference([1, 2], [1])


def test_duplicating_questions_of_a_video_does_not_shrink_the_error() -> None:
    a, b = [1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 1, 0]
    single = s.paired_difference(a, b, clusters=list("uvwxyz"))
    tripled = s.paired_difference(a * 3, b * 3, clusters=list("uvwxyz") * 3)
    assert tripled.standard_error == pytest.approx(single.standard_error)
    assert tripled.p_value == pytest.approx(single.p_value)
    assert (tripled.num_pairs, tripled.num_units) == (18, 6)


def test_binomial_standard_error_by_hand() -> None:
    # 0.36 right of 2,700: sqrt(0.36 * 0.64 / 2700) = 0.009238.
    assert s.binomial_standard_error(0.36, 2700) == pytest.approx(0.0092376, abs=1e-7)
    assert s.binomial_standard_error(1.0, 5) == 0
    assert math.isnan(s.binomial_standard_error(0.5, 0))
    with pytest.raises(ValueError, match="share is 36"):
        s.binomial_standard_error(36, 2700)


@pytest.mark.parametrize("size", [1, 3])
def test_clustered_errors_are_those_of_a_regression_on_a_constant(size: int) -> None:
    from statsmodels.regression.linear_model import OLS

    # statsmodels' default small-sample factor: C / (C - 1) * (n - 1) / (n - k), with k = 1.
    rng = derive_rng(4, "regression", size)
    videos = rng.integers(0, 40, 120) if size > 1 else np.arange(120)
    a, b = ((rng.random(120) < 0.4 + 0.2 * (videos % 3)).astype(float) for _ in range(2))

    def regress(y: np.ndarray) -> tuple[float, float, list[float]]:
        fitted = OLS(y, np.ones(120)).fit(
            cov_type="cluster", cov_kwds={"groups": videos}, use_t=True
        )
        return fitted.bse[0], fitted.pvalues[0], fitted.conf_int()[0].tolist()

    error, _, interval = regress(a)
    got = s.mean_interval(a, clusters=videos.tolist())
    assert got.standard_error == pytest.approx(error)
    assert [got.low, got.high] == pytest.approx(interval)
    error, p_value, interval = regress(a - b)
    paired = s.paired_difference(a, b, clusters=videos.tolist())
    assert paired.standard_error == pytest.approx(error)
    assert paired.p_value == pytest.approx(p_value)
    assert [paired.low, paired.high] == pytest.approx(interval)


def answers(rng: np.random.Generator, num_draws: int, num_videos: int) -> np.ndarray:
    """Right or wrong, [num_draws, num_videos * 3]: 60 % right on average, correlated by 0.3.

    A video's chance is drawn from a beta distribution; the correlation of two answers about a video
    is 1 / (alpha + beta + 1) = 1 / (1.4 + 0.9333 + 1) = 0.3.
    """
    chances = rng.beta(1.4, 1.4 / 1.5, size=(num_draws, num_videos, 1))
    return (rng.random((num_draws, num_videos, 3)) < chances).reshape(num_draws, -1).astype(float)


def test_intervals_cover_at_their_nominal_rate() -> None:
    scores = answers(derive_rng(1, "coverage"), 2000, 60)
    videos = (np.arange(180) // 3).tolist()
    intervals = [s.mean_interval(row, clusters=videos) for row in scores]
    assert 0.93 <= np.mean([i.low <= 0.6 <= i.high for i in intervals]) <= 0.97
    # Taken for independent, the same answers are told too surely.
    plain = [s.mean_interval(row) for row in scores[:500]]
    assert np.mean([i.low <= 0.6 <= i.high for i in plain]) < 0.92


def test_intervals_of_differences_cover_at_their_nominal_rate() -> None:
    rng = derive_rng(2, "coverage")
    a, b = answers(rng, 2000, 60), answers(rng, 2000, 60)
    videos = (np.arange(180) // 3).tolist()
    found = [s.paired_difference(x, y, clusters=videos) for x, y in zip(a, b, strict=True)]
    assert 0.93 <= np.mean([d.low <= 0 <= d.high for d in found]) <= 0.97
    # A p-value under 0.05 is an interval without 0.
    assert [d.p_value < 0.05 for d in found] == [not d.low <= 0 <= d.high for d in found]


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.03, 0.04 -> 0.03, 0.06, 0.04 -> running maximum 0.03, 0.06, 0.06.
    assert s.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert s.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        s.holm([1.2])


@pytest.mark.long
def test_holm_is_statsmodels_of_what_was_tested() -> None:
    from statsmodels.stats.multitest import multipletests

    rng = derive_rng(10, "holm")
    for num_tests in range(1, 12):
        p_values = rng.random(num_tests).round(2) ** 3  # some of them equal
        expected = multipletests(p_values, method="holm")[1]
        assert s.holm(p_values) == pytest.approx(expected)
        # What was not tested takes no part.
        with_gap = s.holm([math.nan, *p_values, math.nan])
        assert with_gap[1:-1] == pytest.approx(expected) and np.isnan(with_gap[[0, -1]]).all()
    assert len(s.holm([])) == 0


def test_macro_average_by_hand() -> None:
    values = [1, 0, 0, 1, 1, 0.5]
    paths = [("a",), ("a",), ("b", "x"), ("b", "x"), ("b", "y"), ("b", "y")]
    # a: 0.5; b: mean of x 0.5 and y 0.75 = 0.625; their mean 0.5625 (the plain mean is 0.5833).
    assert s.macro_average(values, paths) == pytest.approx(0.5625)
    assert s.macro_average(values, [()] * 6) == pytest.approx(3.5 / 6)
    assert math.isnan(s.macro_average([], []))
    with pytest.raises(ValueError, match="holds values and groups"):
        s.macro_average([1, 0], [("a",), ("a", "x")])
    with pytest.raises(ValueError, match="1 paths for 2 values"):
        s.macro_average([1, 0], [("a",)])


def test_macro_error_of_one_group_is_the_clustered_one() -> None:
    rng = derive_rng(3, "macro")
    videos = rng.integers(0, 50, 200).tolist()
    values = rng.random(200) + 0.5 * (np.array(videos) % 2)
    got = s.macro_interval(values, [()] * 200, clusters=videos, rng=derive_rng(0, "b"))
    # 2,000 resamples: the deviation is known to a part of 1 / sqrt(4000) = 0.016.
    assert got.standard_error == pytest.approx(
        s.clustered_standard_error(values, videos), rel=4 * 0.016
    )
    assert (got.num_samples, got.num_units) == (200, len(set(videos)))
    again = s.macro_interval(values, [()] * 200, clusters=videos, rng=derive_rng(0, "b"))
    assert got == again
    assert s.macro_interval(values[:1], [()], clusters=[1], rng=rng).value == values[0]
    assert math.isnan(s.macro_interval(values[:1], [()], clusters=[1], rng=rng).standard_error)


def test_macro_error_of_groups_that_share_videos() -> None:
    # Each video has one question of either group, with the same score: the groups' means are one
    # number, and so is its error. Of other videos each, they would have 1 / sqrt(2) of it.
    scores = derive_rng(5, "macro").random(80)
    both = np.concatenate([scores, scores])
    paths = [("a",)] * 80 + [("b",)] * 80
    videos = [*range(80), *range(80)]
    got = s.macro_interval(both, paths, clusters=videos, rng=derive_rng(0, "b"))
    assert got.standard_error == pytest.approx(s.standard_error(scores), rel=4 * 0.016)
    apart = s.macro_interval(both, paths, clusters=range(160), rng=derive_rng(0, "b"))
    assert apart.standard_error == pytest.approx(
        s.standard_error(scores) / math.sqrt(2), rel=4 * 0.016
    )


def test_macro_average_leaves_out_what_a_resample_does_not_hold() -> None:
    # Group b lies in one of three videos: 8 of 27 resamples do not hold it, and are a's mean, 1.
    got = s.macro_interval(
        [1, 1, 0], [("a",), ("a",), ("b",)], clusters="uvw", rng=derive_rng(0, "b")
    )
    assert got.value == 0.5
    # Shares of the resampled averages: 1 with 8/27, 0 with 1/27 (b alone), 0.5 else: variance
    # 8/27 + 18/27 / 4 - (17/27)^2 = 0.06653; times 3/2, its root is 0.3159.
    assert got.standard_error == pytest.approx(0.3159, rel=0.05)


def test_macro_difference() -> None:
    rng = derive_rng(6, "macro")
    a, b = answers(rng, 2, 60)
    videos = (np.arange(180) // 3).tolist()
    paths = [("numeric",) if i % 3 else ("choice",) for i in range(180)]

    def differ(x: np.ndarray, y: np.ndarray) -> s.PairedDifference:
        return s.macro_difference(x, y, paths, clusters=videos, rng=derive_rng(0, "b"))

    got = differ(a, b)
    assert got.difference == pytest.approx(s.macro_average(a, paths) - s.macro_average(b, paths))
    back = differ(b, a)
    assert (back.difference, back.low, back.high) == pytest.approx(
        (-got.difference, -got.high, -got.low)
    )
    assert back.p_value == pytest.approx(got.p_value)
    itself = differ(a, a)
    assert (itself.difference, itself.low, itself.high, itself.p_value) == (0, 0, 0, 1)


def test_macro_intervals_cover_at_their_nominal_rate() -> None:
    scores = answers(derive_rng(7, "coverage"), 500, 60)
    videos = (np.arange(180) // 3).tolist()
    # Two groups of unequal sizes that share the videos; both are right 60 % of the time.
    paths = [("numeric",) if i % 3 else ("choice",) for i in range(180)]
    rng = derive_rng(8, "coverage")
    hits = 0
    for row in scores:
        found = s.macro_interval(row, paths, clusters=videos, rng=rng, num_resamples=300)
        hits += found.low <= 0.6 <= found.high
    # 500 draws: a standard error of 1 %.
    assert 0.92 <= hits / 500 <= 0.98


VALUES = arrays(np.float64, (4, 12), elements=st.integers(-4, 4).map(lambda n: n / 4))


@given(VALUES, VALUES)
def test_spearman(a_QF: np.ndarray, b_QF: np.ndarray) -> None:
    assert s.spearman([1, 2, 3, 4], [10, 100, 1000, 10000]) == pytest.approx(1)
    assert s.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert math.isnan(s.spearman([1, 1, 1], [1, 2, 3]))
    for a_F, b_F, got in zip(a_QF, b_QF, s.spearman(a_QF, b_QF), strict=True):
        if np.ptp(a_F) == 0 or np.ptp(b_F) == 0:
            assert math.isnan(got)
        else:
            assert got == pytest.approx(stats.spearmanr(a_F, b_F).statistic, abs=1e-9)
            assert s.spearman(a_F, 2 * a_F + 1) == pytest.approx(1)


@given(VALUES, VALUES)
def test_top_jaccard(a_QF: np.ndarray, b_QF: np.ndarray) -> None:
    for a_F, b_F, got in zip(a_QF, b_QF, s.top_jaccard(a_QF, b_QF, 5), strict=True):
        tops = [set(np.argsort(-x_F, kind="stable")[:5].tolist()) for x_F in (a_F, b_F)]
        assert got == len(tops[0] & tops[1]) / len(tops[0] | tops[1])


def test_ranks_refuse_what_they_cannot_pair() -> None:
    with pytest.raises(ValueError, match="pairs are needed"):
        s.spearman([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="1 non-finite"):
        s.correlation([1, math.nan], [1, 2])
    with pytest.raises(ValueError, match="shape"):
        s.roc_auc([1, 2], [True])


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=25))
def test_roc_auc_against_all_pairs(rows: list[tuple[int, bool]]) -> None:
    positive = [score for score, label in rows if label]
    negative = [score for score, label in rows if not label]
    got = s.roc_auc([r[0] for r in rows], [r[1] for r in rows])
    if not positive or not negative:
        assert math.isnan(got)
        return
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert got == pytest.approx(wins / (len(positive) * len(negative)))


def test_log_deviation_ignores_scale() -> None:
    # logs of 1, e, e^2: deviation 1.
    assert s.log_deviation([1, math.e, math.e**2]) == pytest.approx(1)
    assert s.log_deviation([7, 7 * math.e, 7 * math.e**2]) == pytest.approx(1)
    assert math.isnan(s.log_deviation([0.0, 1.0]))


def test_pairs_needed_matches_tables() -> None:
    # Cohen: d = 0.5, two-sided 0.05, power 0.8 takes 34 pairs; d = 0.8 takes 15.
    assert s.pairs_needed(1.0, 0.5) == 34
    assert s.pairs_needed(1.0, -0.8) == 15
    with pytest.raises(ValueError, match="deviation"):
        s.pairs_needed(0.0, 1.0)


@pytest.mark.parametrize(("effect", "num_pairs"), [(0.5, 34), (0.1, 900), (-1.2, 4), (0.0, 20)])
def test_power_is_that_of_statsmodels(effect: float, num_pairs: int) -> None:
    from statsmodels.stats.power import TTestPower

    power = s.paired_power(effect, 1 / math.sqrt(num_pairs), num_pairs)
    expected = TTestPower().power(abs(effect), num_pairs, 0.05, alternative="two-sided")
    assert power == pytest.approx(expected, abs=1e-9)


def test_detectable_difference_has_the_power_asked_for() -> None:
    found = s.detectable_difference(0.9, 900, power=0.9)
    assert s.paired_power(found, 0.9, 900) == pytest.approx(0.9)
    # Many units: (1.960 + 1.282) standard errors.
    assert found == pytest.approx(3.2415 * 0.9, rel=0.003)


def test_power_with_clusters_is_the_rate_at_which_a_difference_is_found() -> None:
    # 200 videos of 3 questions; differences of deviation 1 that correlate by 0.25 in a video.
    rng = derive_rng(9, "power")
    num_draws, shift = 1000, 0.12
    shared = math.sqrt(0.25) * rng.normal(size=(num_draws, 200, 1))
    own = math.sqrt(0.75) * rng.normal(size=(num_draws, 200, 3))
    rows = (shared + own + shift).reshape(num_draws, 600)
    videos = (np.arange(600) // 3).tolist()
    found = np.mean([s.paired_difference(r, 0 * r, clusters=videos).p_value < 0.05 for r in rows])
    # sqrt((1 + 2 * 0.25) / 600) = 0.05: a shift of 2.4 standard errors.
    error = math.sqrt(s.design_effect(3, 0.25) / 600)
    assert error == pytest.approx(0.05)
    assert found == pytest.approx(s.paired_power(shift, error, 200), abs=0.05)


def test_non_finite_values_are_refused() -> None:
    with pytest.raises(ValueError, match="non-finite"):
        s.standard_error([1.0, float("nan")])
