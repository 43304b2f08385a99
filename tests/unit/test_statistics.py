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


def test_interval_covers_at_its_nominal_rate() -> None:
    rng = derive_rng(1, "coverage")
    hits = 0
    for _ in range(400):
        videos = rng.normal(0, 1, 25).repeat(3)
        interval = s.mean_interval(videos + rng.normal(0, 1, 75), clusters=np.arange(75) // 3)
        hits += interval.low <= 0 <= interval.high
    assert 0.92 <= hits / 400 <= 0.98


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.03, 0.04 -> 0.03, 0.06, 0.04 -> running maximum 0.03, 0.06, 0.06.
    assert s.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert s.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        s.holm([1.2])


def test_bootstrap_agrees_with_the_normal_theory_and_its_seed() -> None:
    values = derive_rng(2, "bootstrap data").normal(5, 2, 200)
    got = s.bootstrap_interval(values, rng=derive_rng(0, "bootstrap"))
    again = s.bootstrap_interval(values, rng=derive_rng(0, "bootstrap"))
    assert got == again
    assert got.standard_error == pytest.approx(s.standard_error(values), rel=0.1)
    median = s.bootstrap_interval(
        values, rng=derive_rng(0, "b"), statistic=lambda x: float(np.median(x)), num_resamples=200
    )
    assert median.low < float(np.median(values)) < median.high


def test_bootstrap_resamples_clusters() -> None:
    values = derive_rng(3, "b").normal(0, 1, 60)
    keys = list(range(60))
    plain = s.bootstrap_interval(values, rng=derive_rng(0, "b"), clusters=keys)
    copied = s.bootstrap_interval(np.tile(values, 4), rng=derive_rng(0, "b"), clusters=keys * 4)
    assert copied.standard_error == pytest.approx(plain.standard_error)


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


def test_non_finite_values_are_refused() -> None:
    with pytest.raises(ValueError, match="non-finite"):
        s.standard_error([1.0, float("nan")])
