import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strive.errors import UnknownNameError
from strive.train.advantages import (
    AdvantageRule,
    batch_advantages,
    between_variant_share,
    ema_advantages,
    group_advantages,
    normalise_pool,
    step_advantages,
)

grids = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(2, 6)),
    elements=st.sampled_from([0.0, 0.25, 1.0, 2.0]),
)


def test_eq3_on_a_2x2_grid_by_hand():
    # Rewards 2, 1 / 0, 1: mean 1, deviations 1, 0, -1, 0; ddof 1 std = sqrt(2/3) = 0.816497.
    # A = 1 / (0.816497 + 1e-4) = 1.224595.
    advantages_MG, metrics = group_advantages(np.array([[2.0, 1.0], [0.0, 1.0]]))
    np.testing.assert_allclose(advantages_MG, [[1.224595, 0], [-1.224595, 0]], atol=1e-6)
    # Between variants: 2 * ((1.5-1)^2 + (0.5-1)^2) = 1 of a total of 2.
    assert metrics["reward_std"] == pytest.approx(0.816497, abs=1e-6)
    assert metrics["zero_std"] == 0
    assert metrics["between_variant_share"] == pytest.approx(0.5)
    assert metrics["advantage_abs_max"] == pytest.approx(1.224595, abs=1e-6)


def test_std_correction_and_epsilon():
    # ddof 0: std = sqrt(2/4) = 0.707107; epsilon 0.1: 1 / 0.807107 = 1.238993.
    advantages_MG, metrics = group_advantages(
        np.array([[2.0, 1.0], [0.0, 1.0]]), std_correction=0, epsilon=0.1
    )
    assert advantages_MG[0, 0] == pytest.approx(1.238993, abs=1e-6)
    assert metrics["reward_std"] == pytest.approx(0.707107, abs=1e-6)


def test_eq2_on_one_variant_by_hand():
    # Rewards 2, 1, 0, 0: mean 0.75, deviations 1.25, 0.25, -0.75, -0.75; ddof 1 std
    # = sqrt((1.5625 + 0.0625 + 0.5625 + 0.5625) / 3) = 0.957427. A = deviation / 0.957527.
    for grouping in ("joint", "per_variant"):
        advantages_MG, _ = group_advantages(np.array([[2.0, 1.0, 0.0, 0.0]]), grouping=grouping)
        wanted_MG = [[1.305446, 0.261089, -0.783268, -0.783268]]
        np.testing.assert_allclose(advantages_MG, wanted_MG, atol=1e-6)


def test_between_variant_share_by_hand():
    # Variants 1, 1, 0 and 0, 0, 1 and one unknown reward (out): means 2/3 and 1/2 (of 0, 1), pool
    # mean 3/5. Between: 3 (1/15)^2 + 2 (1/10)^2 = 1/30. Total: 3 (2/5)^2 + 2 (3/5)^2 = 6/5.
    share = between_variant_share(np.array([[1.0, 1.0, 0.0], [0.0, np.nan, 1.0]]))
    assert share == pytest.approx(1 / 36)
    # Equal means: nothing between. Constant variants: everything between.
    assert between_variant_share(np.array([[1.0, 0.0], [0.0, 1.0]])) == 0
    assert between_variant_share(np.array([[1.0, 1.0], [0.0, 0.0]])) == 1


def test_dr_grpo_centres_only():
    advantages_MG, _ = group_advantages(np.array([[2.0, 1.0], [0.0, 1.0]]), divide_by_std=False)
    assert advantages_MG.tolist() == [[1, 0], [-1, 0]]


def test_per_variant_and_hierarchical():
    rewards_MG = np.array([[2.0, 0.0], [1.0, 1.0]])
    # Row 0: std sqrt(2), A = +-1 / (1.414214 + 1e-4) = 0.707057; row 1 is zero-std.
    per_variant_MG, metrics = group_advantages(rewards_MG, grouping="per_variant")
    np.testing.assert_allclose(per_variant_MG, [[0.707057, -0.707057], [0, 0]], atol=1e-6)
    assert metrics["zero_std"] == 0  # the joint pool has signal
    joint_MG, _ = group_advantages(rewards_MG)
    both_MG, _ = group_advantages(rewards_MG, grouping="hierarchical")
    np.testing.assert_allclose(both_MG, joint_MG + per_variant_MG)


def test_one_variant_is_textbook_grpo_exactly():
    rewards_G = np.array([1.0, 0.0, 2.0, 1.0, 0.5])
    textbook_G = (rewards_G - rewards_G.mean()) / (rewards_G.std(ddof=1) + 1e-4)
    for grouping in ("joint", "per_variant"):
        advantages_MG, metrics = group_advantages(rewards_G[None], grouping=grouping)
        assert (advantages_MG[0] == textbook_G).all()
        assert metrics["between_variant_share"] == 0


@pytest.mark.parametrize("value", [0.0, 2.0, 0.1 + 0.2])
def test_zero_std_group_has_no_advantage_and_is_counted(value):
    for grouping in ("joint", "per_variant", "hierarchical"):
        advantages_MG, metrics = group_advantages(np.full((2, 4), value), grouping=grouping)
        assert (advantages_MG == 0).all()
        assert metrics["zero_std"] == 1 and metrics["reward_std"] == 0
        assert np.isnan(metrics["between_variant_share"])


def test_rounding_noise_is_no_signal():
    advantages_MG, metrics = group_advantages(np.array([[0.3, 0.1 + 0.2]]))
    assert (advantages_MG == 0).all() and metrics["zero_std"] == 1


def test_unknown_rewards_stay_out():
    # Of 2, 0 and one unknown: mean 1, std sqrt(2).
    advantages_MG, metrics = group_advantages(np.array([[2.0, np.nan], [0.0, np.nan]]))
    np.testing.assert_allclose(advantages_MG, [[0.707057, 0], [-0.707057, 0]], atol=1e-6)
    assert metrics["between_variant_share"] == pytest.approx(1)
    advantages_MG, metrics = group_advantages(np.array([[2.0, np.nan]]))
    assert (advantages_MG == 0).all() and metrics["zero_std"] == 1


@given(grids)
def test_advantages_sum_to_zero(rewards_MG):
    for grouping in ("joint", "per_variant", "hierarchical"):
        advantages_MG, _ = group_advantages(rewards_MG, grouping=grouping)
        assert advantages_MG.sum() == pytest.approx(0, abs=1e-9)


@given(grids, st.randoms(use_true_random=False))
def test_permuting_cells_permutes_advantages(rewards_MG, random):
    order = list(range(rewards_MG.size))
    random.shuffle(order)
    permuted_MG = rewards_MG.ravel()[order].reshape(rewards_MG.shape)
    original_MG, _ = group_advantages(rewards_MG)
    advantages_MG, _ = group_advantages(permuted_MG)
    np.testing.assert_allclose(advantages_MG.ravel(), original_MG.ravel()[order], atol=1e-12)


@given(grids, st.floats(0.5, 20), st.floats(-5, 5))
def test_scale_and_shift_leave_normalised_advantages_unchanged(rewards_MG, scale, shift):
    original_MG, _ = group_advantages(rewards_MG, epsilon=1e-12)
    advantages_MG, _ = group_advantages(rewards_MG * scale + shift, epsilon=1e-12)
    np.testing.assert_allclose(advantages_MG, original_MG, atol=1e-6)


@given(grids, st.floats(0.5, 20))
def test_scaling_rewards_changes_advantages_by_epsilon_only(rewards_MG, scale):
    # A = d / (s + e) turns into d / (s + e / scale): apart by |1 - 1 / scale| e / (s + e / scale).
    original_MG, metrics = group_advantages(rewards_MG)
    advantages_MG, _ = group_advantages(rewards_MG * scale)
    bound = abs(1 - 1 / scale) * 1e-4 / (metrics["reward_std"] + 1e-4 / scale) + 1e-9
    difference_MG = np.abs(advantages_MG - original_MG)
    assert (difference_MG <= bound * np.abs(original_MG) + 1e-12).all()
    # Without the std (Dr.GRPO) advantages scale with the rewards.
    centred_MG, _ = group_advantages(rewards_MG, divide_by_std=False)
    scaled_MG, _ = group_advantages(rewards_MG * scale, divide_by_std=False)
    np.testing.assert_allclose(scaled_MG, centred_MG * scale, atol=1e-9)


@given(hnp.arrays(np.float64, st.integers(2, 9), elements=st.sampled_from([0.0, 0.5, 1.0, np.nan])))
def test_with_one_variant_joint_is_per_variant(rewards_G):
    joint_MG, _ = group_advantages(rewards_G[None])
    per_variant_MG, _ = group_advantages(rewards_G[None], grouping="per_variant")
    assert (joint_MG == per_variant_MG).all() and np.isfinite(joint_MG).all()


@given(grids)
def test_equals_the_slow_definition(rewards_MG):
    values = rewards_MG.ravel().tolist()
    mean = sum(values) / len(values)
    std = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    slow = [(value - mean) / (std + 1e-4) for value in values]
    fast = normalise_pool(rewards_MG, std_correction=1, epsilon=1e-4).ravel()
    np.testing.assert_allclose(fast, slow, atol=1e-9)


@given(grids)
def test_between_variant_share_is_a_share(rewards_MG):
    share = between_variant_share(rewards_MG)
    assert np.isnan(share) or -1e-12 <= share <= 1 + 1e-12


def test_unknown_grouping_lists_the_known():
    with pytest.raises(UnknownNameError, match="hierarchical, joint, per_variant"):
        group_advantages(np.eye(2), grouping="global")


def test_noisy_rollout_by_hand():
    # One pool of [[1, 1, 0, 1], [0, 1, 0, 0]]: mean 0.5, std sqrt(8 * 0.25 / 7) = 0.534522.
    rewards_MG = np.array([[1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    advantages_MG, _ = group_advantages(rewards_MG)
    assert np.abs(advantages_MG) == pytest.approx(np.full((2, 4), 0.935239), abs=1e-6)


# --- Share-GRPO ---------------------------------------------------------------------------------


def test_share_by_hand():
    # Every reward counts twice in the global pool of [[1, 0, 0], [1, 1, 0]], 12 values:
    # mean 0.5, SS 6 * 2 * 0.25 = 3, std sqrt(3 / 11) = 0.522233, so 0.5 / 0.522234 = 0.957425.
    # Locally [1, 0, 0]: mean 1 / 3, std 0.577350: 1.154699 and -0.577349.
    rewards_MG = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    advantages_MG, _ = group_advantages(rewards_MG, grouping="share", epsilon=1e-6)
    expected = [[2.112124, -1.534775, -1.534775], [1.534775, 1.534775, -2.112124]]
    assert advantages_MG == pytest.approx(np.array(expected), abs=1e-6)
    # The sum over pools that hold each reward once, under the default epsilon.
    both_MG, _ = group_advantages(rewards_MG, grouping="hierarchical")
    expected = [[2.067205, -1.489955, -1.489955], [1.489955, 1.489955, -2.067205]]
    assert both_MG == pytest.approx(np.array(expected), abs=1e-6)
    near_MG, _ = group_advantages(rewards_MG, grouping="hierarchical", epsilon=1e-6)
    assert near_MG[0, :2] == pytest.approx([2.067568, -1.490219], abs=1e-6)


def test_share_where_variants_are_all_right_and_all_wrong():
    rewards_MG = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    advantages_MG, _ = group_advantages(rewards_MG, grouping="share", epsilon=1e-6)
    assert advantages_MG == pytest.approx(np.array([[0.957425] * 3, [-0.957425] * 3]), abs=1e-6)
    ours_MG, _ = group_advantages(rewards_MG)
    assert ours_MG[:, 0] == pytest.approx([0.912704, -0.912704], abs=1e-6)


@given(rewards=st.lists(st.floats(0, 2), min_size=6, max_size=6))
def test_share_s_global_pool_is_ours_but_for_the_repetition(rewards):
    rewards_MG = np.array(rewards).reshape(2, 3)
    if np.ptp(rewards_MG) < 1e-3:
        return
    share_MG, _ = group_advantages(rewards_MG, grouping="share", epsilon=1e-12)
    local_MG, _ = group_advantages(rewards_MG, grouping="per_variant", epsilon=1e-12)
    joint_MG, _ = group_advantages(rewards_MG, epsilon=1e-12)
    # sqrt((Q N - 1) / (Q (N - 1))) with Q = 2 variants and N = 6 rewards; 1 / 0.953463.
    assert share_MG - local_MG == pytest.approx(joint_MG / 0.953463, rel=1e-5, abs=1e-6)


# --- a std of more than the group ---------------------------------------------------------------


def test_batch_std_by_hand():
    # All rewards 1, 0, 1, 1: mean 0.75, SS 0.75, std sqrt(0.75 / 3) = 0.5; group means 0.5 and 1.
    first, second = batch_advantages([np.array([[1.0, 0.0]]), np.ones((1, 2))], epsilon=0.5)
    assert first.tolist() == [[0.5, -0.5]]
    assert second.tolist() == [[0.0, 0.0]]


def test_the_average_std_of_a_type_by_hand():
    # Type a: rewards 1, 0 of std 0.5 begin the average. Then 1, 1, 1, 0: mean 0.75, std 0.433013,
    # average 0.99 * 0.5 + 0.01 * 0.433013 = 0.499330. Group 1, 1: 0. Group 1, 0: 0.5 / 0.499330.
    one, averages = ema_advantages([np.array([[1.0, 0.0]])], ["a"], {}, epsilon=0.0)
    assert averages == {"a": 0.5}
    assert one[0].tolist() == [[1.0, -1.0]]
    groups = [np.array([[1.0, 1.0]]), np.array([[1.0, 0.0]]), np.array([[3.0, 1.0]])]
    both, averages = ema_advantages(groups, ["a", "a", "b"], averages, epsilon=0.0)
    assert averages == pytest.approx({"a": 0.499330, "b": 1.0}, abs=1e-6)
    assert both[0].tolist() == [[0.0, 0.0]]
    assert both[1][0] == pytest.approx([1.001341, -1.001341], abs=1e-6)
    assert both[2].tolist() == [[1.0, -1.0]]


def test_a_group_beyond_five_falls_back_to_its_own_std():
    # Average 0.1 stays near 0.104: 0.5 / 0.104 = 4.8 passes; of rewards 2, 0 it would be 9.2, so
    # the group is divided by its own std, 1.
    near, _ = ema_advantages([np.array([[1.0, 0.0]])], ["a"], {"a": 0.1}, epsilon=0.0)
    assert near[0][0, 0] == pytest.approx(0.5 / 0.104)
    far, _ = ema_advantages([np.array([[2.0, 0.0]])], ["a"], {"a": 0.1}, epsilon=0.0)
    assert far[0].tolist() == [[1.0, -1.0]]


def test_a_type_without_any_spread_has_no_advantages():
    groups = [np.ones((2, 2)), np.array([[np.nan, np.nan]])]
    advantages, averages = ema_advantages(groups, ["a", "b"], {}, epsilon=1e-4)
    assert [group.tolist() for group in advantages] == [[[0.0, 0.0]] * 2, [[0.0, 0.0]]]
    assert averages == {"a": 0.0}


def test_a_step_of_groups_is_each_group_s_own():
    rewards = [np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 0.0]])]
    pairs, averages = step_advantages(rewards, ["a", "b"], {"c": 1.0}, AdvantageRule())
    assert averages == {"c": 1.0}
    for (advantages_MG, measures), group in zip(pairs, rewards, strict=True):
        expected_MG, expected = group_advantages(group)
        assert (advantages_MG == expected_MG).all()
        assert measures == expected
    for std in ("batch", "ema_per_type"):
        pairs, _ = step_advantages(rewards, ["a", "b"], {}, AdvantageRule(std=std))
        assert pairs[0][1]["reward_std"] == pytest.approx(
            group_advantages(rewards[0])[1]["reward_std"]
        )
        assert pairs[0][1]["advantage_abs_max"] == np.abs(pairs[0][0]).max()
