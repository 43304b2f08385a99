import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strive import variants
from strive.errors import CacheError, ConfigError, MissingInputError, UnknownNameError
from strive.seeding import derive_rng

RULE = {field.name for field in dataclasses.fields(variants.DrawRule)}
KINDS = sorted(variants.VARIANT_KINDS)
frame_counts = st.integers(1, 80)
segment_counts = st.integers(1, 24)
# Sixteenths: sums and differences are exact, ties happen.
score_pools = hnp.arrays(
    np.float64, st.integers(1, 70), elements=st.integers(-16, 16).map(lambda n: n / 16)
)


def draw(kind="importance", *, num_frames=64, scores=None, **changes):
    options = {
        "num_variants": 2,
        "scores_F": np.linspace(0, 1, num_frames) if scores is None else scores,
        "seed": 0,
        "step": 3,
        "question_id": "q1",
    }
    rule = {name: changes.pop(name) for name in RULE if name in changes}
    drawn = variants.draw_variants(
        kind, variants.DrawRule(**rule), num_frames=num_frames, **(options | changes)
    )
    return drawn.frame_index_MK


def reversed_tail(request, rng):
    return np.arange(request.num_frames - 1, request.num_frames - 1 - request.num_segments, -1)


def out_of_range(request, rng):
    return np.full(request.num_segments, request.num_frames)


def wrong_shape(request, rng):
    return np.zeros(3)


@given(frame_counts, segment_counts)
def test_segments_partition_the_pool_in_nearly_equal_parts(num_frames, num_segments):
    bounds_K2 = variants.segment_bounds(num_frames, num_segments)
    assert bounds_K2[0, 0] == 0 and bounds_K2[-1, 1] == num_frames
    assert (bounds_K2[1:, 0] == bounds_K2[:-1, 1]).all()
    lengths_K = np.diff(bounds_K2, axis=1)
    assert lengths_K.max() - lengths_K.min() <= 1


def test_segments_of_a_pool_that_is_no_multiple_of_k():
    # 10 frames in 4 parts: edges floor(k * 10 / 4) = 0, 2, 5, 7, 10.
    assert variants.segment_bounds(10, 4).tolist() == [[0, 2], [2, 5], [5, 7], [7, 10]]


def test_segments_refuse_an_empty_pool():
    with pytest.raises(ConfigError, match="num_frames is 0"):
        variants.segment_bounds(0, 4)


def test_eq4_by_hand():
    # Two segments of two frames, tau 0.5. exp(0.2/0.5) / (exp(0.2/0.5) + exp(0.1/0.5))
    # = 1 / (1 + exp(-0.2)) = 0.549834; the second segment is flat.
    probabilities_F = variants.segment_probabilities(
        np.array([0.2, 0.1, 0.3, 0.3]), num_segments=2, frame_temperature=0.5
    )
    np.testing.assert_allclose(probabilities_F, [0.549834, 0.450166, 0.5, 0.5], atol=1e-6)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=70), segment_counts, st.floats(0.01, 10))
def test_eq4_equals_the_slow_definition(scores, num_segments, tau):
    fast_F = variants.segment_probabilities(
        np.array(scores), num_segments=num_segments, frame_temperature=tau
    )
    for start, end in variants.segment_bounds(len(scores), num_segments):
        powers = [np.exp(np.longdouble(s) / tau) for s in scores[start:end]]
        np.testing.assert_allclose(
            fast_F[start:end], [float(p / sum(powers)) for p in powers], rtol=1e-9, atol=1e-300
        )


def test_eq4_tends_to_argmax_and_to_uniform():
    scores_F = np.random.default_rng(0).normal(size=16)
    cold_F = variants.segment_probabilities(scores_F, num_segments=4, frame_temperature=1e-300)
    assert cold_F.reshape(4, 4).argmax(1).tolist() == scores_F.reshape(4, 4).argmax(1).tolist()
    assert cold_F.max() == 1 and cold_F.sum() == 4
    hot_F = variants.segment_probabilities(scores_F, num_segments=4, frame_temperature=1e12)
    np.testing.assert_allclose(hot_F, 0.25, atol=1e-9)


def test_equal_maxima_share_at_a_cold_temperature():
    # Segment 1 has two maxima, segment 2 one.
    cold_F = variants.segment_probabilities(
        np.array([0.5, 0.1, 0.5, 0.2, 0.3, 0.1]), num_segments=2, frame_temperature=1e-9
    )
    assert cold_F.tolist() == [0.5, 0, 0.5, 0, 1, 0]


@given(score_pools, segment_counts, st.floats(0.01, 10), st.integers(-8, 8))
def test_probabilities_of_every_segment_sum_to_one(scores_F, num_segments, tau, shift):
    rule = variants.DrawRule(num_segments, tau)
    weights = dataclasses.replace(rule, score_kind="weight")
    similarity_F = variants.draw_probabilities(scores_F, rule)
    weight_F = variants.draw_probabilities(np.abs(scores_F), weights)
    for probabilities_F in (similarity_F, weight_F):
        assert (probabilities_F >= 0).all()
        for start, end in variants.segment_bounds(len(scores_F), num_segments):
            assert probabilities_F[start:end].sum() == pytest.approx(float(end > start))
    # A softmax does not see a shift, shares do not see a scale.
    shifted_F = variants.draw_probabilities(scores_F + shift, rule)
    np.testing.assert_allclose(shifted_F, similarity_F, rtol=1e-9)
    scaled_F = variants.draw_probabilities(np.abs(scores_F) * 7.3, weights)
    np.testing.assert_allclose(scaled_F, weight_F, rtol=1e-12)


def test_weights_are_used_as_they_are():
    # 1 : 3 within the first segment; the second is all zero, hence uniform.
    probabilities_F = variants.segment_weight_probabilities(
        np.array([1.0, 3.0, 0.0, 0.0]), num_segments=2
    )
    assert probabilities_F.tolist() == [0.25, 0.75, 0.5, 0.5]
    tiny_F = variants.segment_weight_probabilities(np.full(4, 5e-324), num_segments=1)
    assert tiny_F.tolist() == [0.25] * 4
    with pytest.raises(CacheError, match="must be 0 or more"):
        variants.segment_weight_probabilities(np.array([1.0, -1.0]), num_segments=1)


def test_transforms():
    scores_F = np.array([0.1, 0.3])
    assert variants.transform_scores(scores_F, "none").tolist() == [0.1, 0.3]
    np.testing.assert_allclose(variants.transform_scores(scores_F, "zscore"), [-1, 1])
    np.testing.assert_allclose(variants.transform_scores(scores_F, "minmax"), [0, 1])
    np.testing.assert_allclose(variants.transform_scores(scores_F, "logit"), [10, 30])
    for transform in ("zscore", "minmax"):
        flat_F = np.full(7, np.float32(0.1))
        assert variants.transform_scores(flat_F, transform).tolist() == [0] * 7
    with pytest.raises(UnknownNameError, match="zscore"):
        variants.transform_scores(scores_F, "zscor")


def test_transforms_of_three_scores_by_hand():
    # Mean 0.3, std (ddof 0) sqrt((0.04 + 0.01 + 0.09) / 3) = 0.216025; range 0.1 to 0.6.
    scores_F = np.array([0.1, 0.2, 0.6])
    zscores_F = variants.transform_scores(scores_F, "zscore")
    np.testing.assert_allclose(zscores_F, [-0.925820, -0.462910, 1.388730], atol=1e-6)
    np.testing.assert_allclose(variants.transform_scores(scores_F, "minmax"), [0, 0.2, 1])
    logits_F = variants.transform_scores(scores_F, "logit", logit_scale=14.0)
    np.testing.assert_allclose(logits_F, [1.4, 2.8, 8.4])
    # Eq. 4 on the minmax scores at 0.4: exp(0), exp(0.5), exp(2.5) = 1, 1.648721, 12.182494.
    probabilities_F = variants.draw_probabilities(
        scores_F, variants.DrawRule(1, 0.4, score_transform="minmax")
    )
    np.testing.assert_allclose(probabilities_F, [0.067425, 0.111166, 0.821409], atol=1e-6)


@given(score_pools)
def test_transforms_keep_the_order_and_reach_their_range(scores_F):
    zscores_F, minmax_F, logits_F = (
        variants.transform_scores(scores_F, name) for name in ("zscore", "minmax", "logit")
    )
    for values_F in (zscores_F, minmax_F, logits_F):
        assert (np.argsort(values_F, kind="stable") == np.argsort(scores_F, kind="stable")).all()
    if np.ptp(scores_F) > 0:
        assert minmax_F.min() == 0 and minmax_F.max() == 1
        assert zscores_F.mean() == pytest.approx(0, abs=1e-9)
        assert zscores_F.std() == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
@given(frame_counts, segment_counts, st.integers(1, 4))
def test_draws_are_ordered_indices_of_the_pool(kind, num_frames, num_segments, num_variants):
    indices_MK = draw(
        kind, num_frames=num_frames, num_segments=num_segments, num_variants=num_variants
    )
    assert indices_MK.shape == (num_variants, num_segments) and indices_MK.dtype == np.int64
    assert indices_MK.min() >= 0 and indices_MK.max() < num_frames
    assert (np.diff(indices_MK, axis=1) >= 0).all()
    if num_frames <= num_segments:
        assert all(set(row) == set(range(num_frames)) for row in indices_MK.tolist())
    elif kind in ("none", "stochastic", "random", "importance"):
        assert all(len(set(row)) == num_segments for row in indices_MK.tolist())


@pytest.mark.parametrize("kind", ["random", "importance"])
@given(frame_counts, segment_counts)
def test_one_frame_of_each_segment(kind, num_frames, num_segments):
    indices_MK = draw(kind, num_frames=num_frames, num_segments=num_segments)
    bounds_K2 = variants.segment_bounds(num_frames, num_segments)
    if num_frames >= num_segments:
        assert (indices_MK >= bounds_K2[:, 0]).all() and (indices_MK < bounds_K2[:, 1]).all()


def test_few_frames_repeat_in_temporal_order():
    # F=3, K=5: floor(k * 3 / 5) = 0, 0, 1, 1, 2.
    assert draw(num_frames=3, num_segments=5)[0].tolist() == [0, 0, 1, 1, 2]
    assert draw("stochastic", num_frames=1, num_segments=4).tolist() == [[0] * 4] * 2


def test_none_is_uniform_with_both_ends():
    # round(linspace(0, 9, 4)) = 0, 3, 6, 9.
    assert draw("none", num_frames=10, num_segments=4, num_variants=1).tolist() == [[0, 3, 6, 9]]


def test_deterministic_offsets_cover_the_video_together():
    # F=8, M=2, K=4: variant i takes i, i+2, i+4, i+6.
    indices_MK = draw("deterministic", num_frames=8, num_segments=4)
    assert indices_MK.tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    # F=16, M=2, K=4: of the 8 strided frames those at round(linspace(0, 7, 4)) = 0, 2, 5, 7.
    indices_MK = draw("deterministic", num_frames=16, num_segments=4)
    assert indices_MK.tolist() == [[0, 4, 10, 14], [1, 5, 11, 15]]


def test_deterministic_offset_beyond_the_pool_wraps_around():
    # F=5, M=7, K=2: offset 4 shows frame 4 alone, offsets 5 and 6 are 0 and 1 again.
    indices_MK = draw("deterministic", num_frames=5, num_segments=2, num_variants=7)
    assert indices_MK[4:].tolist() == [[4, 4], [0, 0], [1, 1]]


@given(frame_counts, segment_counts, st.integers(1, 6))
def test_deterministic_variants_keep_to_their_offset(num_frames, num_segments, num_variants):
    indices_MK = draw(
        "deterministic",
        num_frames=num_frames,
        num_segments=num_segments,
        num_variants=num_variants,
    )
    if num_frames > max(num_segments, num_variants):
        assert (indices_MK % num_variants == np.arange(num_variants)[:, None]).all()


def test_stochastic_by_hand():
    # This generator gives a crop of 14 of 20 frames (10 to 20), a start of 3 (0 to 6) and a phase
    # of 0.3433. Four strides of 3.5: 1.20, 4.70, 8.20, 11.70, rounded down and moved by 3.
    rng = np.random.default_rng(6)
    assert (rng.integers(10, 21), rng.integers(0, 7), round(rng.random(), 4)) == (14, 3, 0.3433)
    request = variants.DrawRequest(
        num_frames=20,
        num_segments=4,
        num_variants=1,
        variant=0,
        probabilities_F=None,
        scores_F=None,
    )
    indices_K = variants.find_variant_kind("stochastic")(request, np.random.default_rng(6))
    assert indices_K.tolist() == [4, 7, 11, 14]


@given(st.integers(2, 80), st.integers(2, 24), st.integers(0, 50))
def test_stochastic_strides_are_equal(num_frames, num_segments, step):
    """Frames of one stride apart, up to rounding, and of no more than the pool's own stride."""
    if num_frames > num_segments:
        strides = np.diff(
            draw("stochastic", num_frames=num_frames, num_segments=num_segments, step=step), axis=1
        )
        assert (np.ptp(strides, axis=1) <= 1).all()
        assert strides.min() >= 1 and strides.max() <= np.ceil(num_frames / num_segments)


def test_stochastic_crops_half_or_more():
    spans = [np.ptp(draw("stochastic", step=step), axis=1) for step in range(200)]
    assert 24 < np.min(spans) < 36 and np.max(spans) > 56


def test_importance_frequencies_follow_the_probabilities():
    scores_F = np.array([0.0, 0.5, 1.0, 0.2, 0.2, 0.2])
    expected_F = variants.segment_probabilities(scores_F, num_segments=2, frame_temperature=0.4)
    counts_F = np.zeros(6)
    for step in range(1000):
        np.add.at(counts_F, draw(num_frames=6, num_segments=2, scores=scores_F, step=step), 1)
    np.testing.assert_allclose(counts_F / 2000, expected_F, atol=0.04)


def test_importance_never_draws_a_frame_of_weight_zero():
    weights_F = np.array([0.0, 1.0, 0.0, 0.0, 0.0, 2.0])
    for step in range(50):
        indices_MK = draw(
            num_frames=6, num_segments=2, scores=weights_F, score_kind="weight", step=step
        )
        assert indices_MK.tolist() == [[1, 5], [1, 5]]


def test_draws_depend_on_their_own_keys_only():
    assert (draw() == draw()).all()
    assert (draw(num_variants=4)[:2] == draw()).all()
    for change in ({"step": 4}, {"seed": 1}, {"question_id": "q2"}):
        assert (draw(**change) != draw()).any()
    assert (draw()[0] != draw()[1]).any()


def test_bad_scores_are_clear_errors():
    with pytest.raises(CacheError, match=r"question 'q1' has none.*precompute --scorer"):
        variants.draw_variants(
            "importance",
            variants.DrawRule(2),
            num_frames=4,
            num_variants=1,
            seed=0,
            step=0,
            question_id="q1",
        )
    with pytest.raises(CacheError, match=r"not finite at 1 of 4 frames.*frame 2 is nan"):
        draw(num_frames=4, num_segments=2, scores=np.array([0, 0, np.nan, 0]))
    with pytest.raises(CacheError, match="3 scores for 4 frames"):
        draw(num_frames=4, num_segments=2, scores=np.zeros(3))
    with pytest.raises(ConfigError, match="score_transform is 'zscore'"):
        draw(score_kind="weight", score_transform="zscore")
    with pytest.raises(ConfigError, match="frame_temperature is 0"):
        draw(frame_temperature=0)


def test_flat_scores_are_uniform():
    assert (draw(scores=np.full(64, 0.3)) == draw(scores=np.zeros(64))).all()


def test_a_users_own_kind():
    indices_MK = draw(f"{__name__}:reversed_tail", num_frames=8, num_segments=4)
    assert indices_MK.tolist() == [[4, 5, 6, 7]] * 2
    with pytest.raises(ConfigError, match=r"indices 64 to 64.*\[0, 64\)"):
        draw(f"{__name__}:out_of_range")
    with pytest.raises(ConfigError, match=r"float64 of shape \(3,\)"):
        draw(f"{__name__}:wrong_shape")
    with pytest.raises(MissingInputError, match="no module 'no_such_module'"):
        draw("no_such_module:draw")
    with pytest.raises(UnknownNameError, match="did you mean 'importance'"):
        draw("importence")


def test_effective_frames():
    # exp(entropy): 4 for a uniform segment, 1 for a certain one.
    np.testing.assert_allclose(
        variants.effective_frames(np.array([0.25] * 4 + [0, 1, 0, 0]), 2), [4, 1]
    )
    # P = 1/2, 1/4, 1/4, 0: entropy 1.5 ln 2, 2^1.5 = 2.828427. P = 0.9, 0.1: entropy 0.325083,
    # exp 1.384145.
    np.testing.assert_allclose(
        variants.effective_frames(np.array([0.5, 0.25, 0.25, 0, 0.9, 0.1, 0, 0]), 2),
        [2.828427, 1.384145],
        atol=1e-6,
    )
    # F=2, K=3: the first segment, [0, 0), is empty and left out.
    assert variants.effective_frames(np.array([1.0, 1.0]), 3).tolist() == [1, 1]


@given(score_pools, segment_counts, st.floats(0.05, 10))
def test_effective_frames_lie_between_one_and_the_segment(scores_F, num_segments, tau):
    probabilities_F = variants.segment_probabilities(
        scores_F, num_segments=num_segments, frame_temperature=tau
    )
    effective_K = variants.effective_frames(probabilities_F, num_segments)
    lengths_K = variants.segment_lengths(len(scores_F), num_segments)
    assert (effective_K >= 1 - 1e-9).all()
    assert (effective_K <= lengths_K + 1e-9).all()
    # The chance of a shared frame lies between that of a uniform draw and certainty.
    overlap = variants.expected_overlap(probabilities_F, num_segments)
    assert np.mean(1 / lengths_K) - 1e-9 <= overlap <= 1 + 1e-9


def test_expected_overlap_is_the_mean_observed_one():
    probabilities_F = np.array([0.25] * 4 + [0, 1, 0, 0])
    # (4 * 1/16 + 1) / 2 = 0.625
    assert variants.expected_overlap(probabilities_F, 2) == pytest.approx(0.625)
    weights = {"scores": probabilities_F, "score_kind": "weight", "num_segments": 2}
    observed = [
        variants.frame_overlap(draw(num_frames=8, step=step, **weights)) for step in range(800)
    ]
    assert np.mean(observed) == pytest.approx(0.625, abs=0.03)


def test_frame_overlap():
    # Pairs: {0,1}&{1,2} share 1 of 2, {0,1}&{0,1} all, {1,2}&{0,1} 1 of 2 -> mean 2/3.
    assert variants.frame_overlap(np.array([[0, 1], [1, 2], [0, 1]])) == pytest.approx(2 / 3)
    assert np.isnan(variants.frame_overlap(np.array([[0, 1]])))


def test_evidence_seen_counts_spans_as_half_open():
    indices_MK = np.array([[0, 2], [1, 3]])
    pts_F = np.array([0.0, 1.0, 2.0, 3.0])
    assert variants.evidence_seen(indices_MK, pts_F, ((1.0, 2.0),)).tolist() == [False, True]
    assert variants.evidence_seen(indices_MK, pts_F, ((1.5, 2.0),)).tolist() == [False, False]
    assert variants.evidence_seen(indices_MK, pts_F, ((2.9, 9.0), (0, 0.1))).tolist() == [True] * 2


def test_random_draws_come_from_the_derived_generator():
    rng = derive_rng(0, "frames", 3, "q1", 1)
    bounds_K2 = variants.segment_bounds(64, 16)
    expected_K = rng.integers(bounds_K2[:, 0], bounds_K2[:, 1])
    assert draw("random")[1].tolist() == expected_K.tolist()
