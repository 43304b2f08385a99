"""Measures of P(t) and of ranks: many questions against each alone, and what each promises."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from strive import statistics, variants
from strive.errors import CacheError, ConfigError, UnknownNameError
from strive.seeding import derive_rng
from strive.variants import DrawRule, draw_probabilities

SIZES = [(64, 16), (61, 16), (16, 16), (9, 16), (64, 1), (61, 4)]
# Few distinct values: ties happen.
SCORES = arrays(np.float64, (3, 20), elements=st.integers(-6, 6).map(lambda n: n / 8))
FLAGS = arrays(np.bool_, (3, 20))


def rows(num_frames: int, label: str = "rows") -> np.ndarray:
    scores_QF = derive_rng(num_frames, label).normal(0.2, 0.05, (5, num_frames))
    scores_QF[3] = 0.7  # flat
    scores_QF[4] = np.round(scores_QF[4], 2)  # ties
    return scores_QF


@pytest.mark.parametrize("transform", variants.SCORE_TRANSFORMS)
@pytest.mark.parametrize(("num_frames", "k"), SIZES)
def test_many_questions_have_the_probabilities_of_each(
    num_frames: int, k: int, transform: str
) -> None:
    rule = DrawRule(k, 0.1, transform, logit_scale=14.0)  # type: ignore[arg-type]
    scores_QF = rows(num_frames)
    weights_QF = np.maximum(rows(num_frames, "weights") - 0.2, 0.0)
    weights_QF[2] = 0.0
    for values_QF, kind in ((scores_QF, rule), (weights_QF, DrawRule(k, score_kind="weight"))):
        got_QF = draw_probabilities(values_QF, kind)
        # To the last bit: inspection draws what training draws.
        assert (got_QF == np.stack([draw_probabilities(v_F, kind) for v_F in values_QF])).all()


@pytest.mark.parametrize(("num_frames", "k"), SIZES)
def test_many_questions_have_the_measures_of_each(num_frames: int, k: int) -> None:
    scores_QF = rows(num_frames)
    evidence_QF = scores_QF > 0.22
    p_QF = draw_probabilities(scores_QF, DrawRule(k, 0.05))
    measures = (
        lambda q: variants.effective_frames(p_QF[q], k),
        lambda q: variants.expected_overlap(p_QF[q], k),
        lambda q: np.stack(variants.segment_peak(p_QF[q], k), axis=-1),
        lambda q: variants.evidence_lift(p_QF[q], evidence_QF[q], k),
        lambda q: variants.evidence_chance(p_QF[q], evidence_QF[q], k),
        lambda q: statistics.roc_auc(scores_QF[q], evidence_QF[q]),
        lambda q: statistics.recall_at(scores_QF[q], evidence_QF[q], 5),
        lambda q: statistics.spearman(scores_QF[q], p_QF[q]),
        lambda q: statistics.correlation(scores_QF[q], p_QF[q]),
        lambda q: statistics.top_jaccard(scores_QF[q], p_QF[q], 5),
    )
    for measure in measures:
        each = [measure(q) for q in range(len(scores_QF))]
        np.testing.assert_allclose(measure(slice(None)), each, rtol=1e-12)


def test_measures_of_segments_that_hold_no_frame() -> None:
    # F = 9, K = 16: nine segments of one frame, the others are empty and count for nothing.
    p_F = draw_probabilities(rows(9)[0], DrawRule(16))
    assert variants.effective_frames(p_F, 16).tolist() == [1.0] * 9
    assert variants.segment_lengths(9, 16).tolist() == [1] * 9
    assert variants.expected_overlap(p_F, 16) == 1.0
    other_F = draw_probabilities(rows(9)[1], DrawRule(16))
    assert variants.expected_overlap(p_F, 16, other_F) == 1.0


def test_what_eq4_refuses_is_refused() -> None:
    with pytest.raises(ConfigError, match="frame_temperature is 0"):
        DrawRule(frame_temperature=0.0)
    with pytest.raises(ConfigError, match="num_segments is 0"):
        DrawRule(0)
    with pytest.raises(UnknownNameError, match="score_transform"):
        DrawRule(score_transform="zscor")  # type: ignore[arg-type]
    with pytest.raises(CacheError, match="weights hold -1"):
        draw_probabilities(np.array([[1.0, 2.0], [-1.0, 3.0]]), DrawRule(1, score_kind="weight"))
    with pytest.raises(CacheError, match=r"not finite at 1 of 2 frames \(first: frame 1 is inf"):
        draw_probabilities(np.array([[1.0, 2.0], [1.0, np.inf]]), DrawRule(1))


def slow_auc(scores_F: np.ndarray, evidence_F: np.ndarray) -> float:
    """Every pair of an evidence frame and another one: 1 for a win, 1/2 for a tie."""
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in scores_F[evidence_F]
        for b in scores_F[~evidence_F]
    ]
    return sum(pairs) / len(pairs) if pairs else math.nan


@given(SCORES, FLAGS)
def test_auc_against_all_pairs(scores_QF: np.ndarray, flags_QF: np.ndarray) -> None:
    got_Q = statistics.roc_auc(scores_QF, flags_QF)
    for scores_F, flags_F, got in zip(scores_QF, flags_QF, got_Q, strict=True):
        assert got == pytest.approx(slow_auc(scores_F, flags_F), abs=1e-12, nan_ok=True)


@given(SCORES, FLAGS)
def test_ranks_do_not_change_under_monotone_maps(
    scores_QF: np.ndarray, flags_QF: np.ndarray
) -> None:
    for mapped_QF in (np.exp(scores_QF), 100 * scores_QF - 7, np.arctan(scores_QF)):
        for measure in (
            statistics.roc_auc,
            lambda s, e: statistics.recall_at(s, e, 7),
            lambda s, e: statistics.recall_at(s, e, e.sum(axis=1)),
        ):
            np.testing.assert_allclose(measure(mapped_QF, flags_QF), measure(scores_QF, flags_QF))
    # Turned over, every win is a loss.
    turned_Q = statistics.roc_auc(-scores_QF, flags_QF)
    np.testing.assert_allclose(turned_Q, 1 - statistics.roc_auc(scores_QF, flags_QF))


@given(FLAGS, st.floats(-3, 3), st.sampled_from([1, 4, 16, 20, 32]))
def test_flat_scores_say_nothing(flags_QF: np.ndarray, level: float, k: int) -> None:
    scores_QF = np.full(flags_QF.shape, level)
    p_QF = draw_probabilities(scores_QF, DrawRule(k, 0.4))
    some_Q = flags_QF.any(axis=1)
    np.testing.assert_allclose(variants.evidence_lift(p_QF, flags_QF, k)[some_Q], 1.0)
    assert np.isnan(variants.evidence_lift(p_QF, flags_QF, k)[~some_Q]).all()
    both_Q = some_Q & ~flags_QF.all(axis=1)
    np.testing.assert_allclose(statistics.roc_auc(scores_QF, flags_QF)[both_Q], 0.5)
    # A random choice of 5 of 20 frames holds 5/20 of the evidence.
    num_Q = flags_QF.sum(axis=1)[some_Q]
    wanted_Q = 5 / 20 * num_Q / np.minimum(5, num_Q)
    np.testing.assert_allclose(statistics.recall_at(scores_QF, flags_QF, 5)[some_Q], wanted_Q)


@given(FLAGS, st.sampled_from([1, 4, 16, 20, 32]))
@settings(max_examples=50)
def test_an_oracle_is_perfect(flags_QF: np.ndarray, k: int) -> None:
    both_Q = flags_QF.any(axis=1) & ~flags_QF.all(axis=1)
    scores_QF, flags_QF = flags_QF[both_Q].astype(np.float64), flags_QF[both_Q]
    if not len(scores_QF):
        return
    assert (statistics.roc_auc(scores_QF, flags_QF) == 1).all()
    assert (statistics.recall_at(scores_QF, flags_QF, 5) == 1).all()
    p_QF = draw_probabilities(scores_QF, DrawRule(k, 0.4))
    uniform_QF = np.broadcast_to(variants.uniform_probabilities(20, k), p_QF.shape)
    assert (variants.evidence_lift(p_QF, flags_QF, k) >= 1 - 1e-12).all()
    seen_Q = variants.evidence_chance(p_QF, flags_QF, k)
    assert (seen_Q >= variants.evidence_chance(uniform_QF, flags_QF, k) - 1e-12).all()


def test_measures_by_hand() -> None:
    # Eight frames, two segments of four; frames 2 and 3 (and, in row 1, 4) are evidence.
    weights_QF = np.array([[1.0, 1, 2, 4, 1, 1, 1, 1], [0, 0, 0, 0, 3, 1, 0, 0]])
    evidence_QF = np.array([[0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0, 0]], dtype=bool)
    p_QF = draw_probabilities(weights_QF, DrawRule(2, score_kind="weight"))
    # Row 0: segment 1 sums to 8, segment 2 to 4. Row 1: segment 1 has no weight, so it is uniform.
    wanted = [
        [1 / 8, 1 / 8, 2 / 8, 4 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 4],
        [1 / 4, 1 / 4, 1 / 4, 1 / 4, 3 / 4, 1 / 4, 0, 0],
    ]
    np.testing.assert_allclose(p_QF, wanted)
    # Row 0: mass 6/8 against 2/4. Row 1: 2/4 + 3/4 against 2/4 + 1/4.
    np.testing.assert_allclose(
        variants.evidence_lift(p_QF, evidence_QF, 2), [(6 / 8) / (2 / 4), (5 / 4) / (3 / 4)]
    )
    # Row 0: only segment 1 can show it. Row 1: missed with 1/2 * 1/4.
    np.testing.assert_allclose(variants.evidence_chance(p_QF, evidence_QF, 2), [6 / 8, 1 - 1 / 8])
    # Row 0, top 1 is frame 3 (a hit; 1 is the most that 1 frame can hold), top 3 are frames 3, 2
    # and one of the six others. Row 1, top 1 is frame 4; top 3 are frames 4, 5 and one of the six
    # zeros, of which two are evidence: 1 + 2/6 of at most 3.
    np.testing.assert_allclose(statistics.recall_at(weights_QF, evidence_QF, 1), [1, 1])
    np.testing.assert_allclose(
        statistics.recall_at(weights_QF, evidence_QF, 3), [1, (1 + 1 / 3) / 3]
    )
    # Row 0: both beat all six others. Row 1: frame 4 beats five of five; the zeros (two) beat none,
    # lose to frame 5 and tie with four: (5 + 2 * 4 / 2) / 15.
    np.testing.assert_allclose(statistics.roc_auc(weights_QF, evidence_QF), [1, (5 + 4) / 15])


def test_spans_are_half_open() -> None:
    pts_seconds_F = np.array([0.0, 0.5, 1.0, 1.5, 2.0])
    mask_F = variants.evidence_mask(pts_seconds_F, ((0.5, 1.0), (2.0, 9.0)))
    assert mask_F.tolist() == [False, True, False, False, True]


def test_the_peak_by_hand() -> None:
    # 7 frames in 2 segments, [0, 3) and [3, 7). Best over uniform: 0.4 / (1/3) = 1.2 and
    # 0.28 / (1/4) = 1.12, so the first segment is the most peaked; then 0.34 * 3 = 1.02 < 0.7 * 4.
    p_QF = np.array(
        [[0.4, 0.3, 0.3, 0.28, 0.24, 0.24, 0.24], [0.34, 0.33, 0.33, 0.1, 0.1, 0.1, 0.7]]
    )
    best_Q, uniform_Q = variants.segment_peak(p_QF, 2)
    assert best_Q.tolist() == [0.4, 0.7] and uniform_Q.tolist() == [1 / 3, 1 / 4]


def test_a_short_segments_frame_is_no_peak_because_it_has_few_others() -> None:
    # 5 frames in 2 segments, [0, 2) and [2, 5). Best over uniform: 0.5 * 2 = 1, which is uniform
    # and the larger P, and 0.45 * 3 = 1.35.
    best, uniform = variants.segment_peak(np.array([0.5, 0.5, 0.45, 0.3, 0.25]), 2)
    assert (best, uniform) == (0.45, 1 / 3)


@given(SCORES, st.integers(1, 12), st.sampled_from([0.05, 0.4, 3.0]))
def test_the_peak_lies_between_uniform_and_one(
    scores_QF: np.ndarray, k: int, temperature: float
) -> None:
    p_QF = draw_probabilities(scores_QF, DrawRule(k, temperature))
    best_Q, uniform_Q = variants.segment_peak(p_QF, k)
    assert (best_Q >= uniform_Q - 1e-12).all() and (best_Q <= 1 + 1e-12).all()


def gap_scores(gap: float, num_frames: int = 8) -> np.ndarray:
    """The first frame scores `gap` above all others."""
    return np.array([gap] + [0.0] * (num_frames - 1))


def typical(scores: list[np.ndarray], tau: float, k: int = 2) -> variants.Peak | None:
    return variants.typical_peak(scores, DrawRule(k, tau))


def test_a_real_scorers_cosines_are_flat_at_the_papers_temperature() -> None:
    # Segments of four, gap 0.02: P = e^0.05 / (e^0.05 + 3) = 0.2595.
    found = typical([gap_scores(0.02)] * 3, 0.4)
    assert found is not None and found.is_flat and found.num_questions == 3
    assert found.probability == pytest.approx(0.2595, abs=1e-4) and found.uniform == 0.25
    assert "P 0.26, uniform 0.25: within 10 % of it" in found.text
    # Gap 0.1: e^0.25 / (e^0.25 + 3) = 0.2997, more than 1.1 / 4.
    sharper = typical([gap_scores(0.1)], 0.4)
    assert sharper is not None and not sharper.is_flat
    # Overlap: the mean of 0.2997^2 + 3 * 0.2334^2 = 0.2533 and 4 / 16.
    assert sharper.overlap == pytest.approx((0.2533 + 0.25) / 2, abs=1e-4)


def test_what_leaves_no_choice_is_not_measured() -> None:
    flat = np.full(64, np.nan)
    assert typical([gap_scores(1.0, 2), flat], 0.4) is None and typical([], 0.4) is None
    mixed = typical([gap_scores(1.0, 2), gap_scores(0.02)], 0.4)
    assert mixed is not None and mixed.num_questions == 1


def test_the_suggested_temperature_by_hand() -> None:
    # e^(gap / tau) = 3 where P is 0.5: tau = 0.02 / ln 3 = 0.0182; of three questions the median.
    scores = [gap_scores(gap) for gap in (0.01, 0.02, 0.5)]
    found = variants.suggest_temperature(scores, DrawRule(2))
    assert found is not None
    tau, peak = found
    assert tau == 0.018 and peak.probability == pytest.approx(0.5, abs=0.01)
    assert peak.num_questions == 3


def test_nothing_is_suggested_where_no_temperature_helps() -> None:
    assert variants.suggest_temperature([np.zeros(8)], DrawRule(2)) is None
    assert variants.suggest_temperature([gap_scores(1.0, 2)], DrawRule(2)) is None
    # Segments of two frames: uniform is 0.5 already.
    assert variants.suggest_temperature([gap_scores(1.0, 4)], DrawRule(2)) is None
