"""The losses of GSPO, CISPO, SAPO, Reg-GRPO and the dual clip, worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strive.train.loss import (
    OBJECTIVES,
    SURROGATES,
    Denominators,
    LossRule,
    policy_loss,
    predicted_advantages,
)

# Two completions of 3 and 2 tokens with advantages 1 and -0.8; log-probs minus old ones are given
# by hand, and the old ones themselves, which CISPO reads.
OLD = ((-1.0, -0.5, -2.0), (-0.7, -1.2, 0.0))
MOVED = ((0.3, -0.1, 0.05), (-0.4, 0.2, 0.0))
ADVANTAGES = (1.0, -0.8)
MASK = torch.tensor([[True, True, True], [True, True, False]])
STEP = Denominators(num_completions=2, num_tokens=5, max_new_tokens=4)
CLIP = {"epsilon": 0.2, "epsilon_high": 0.28}


def loss_and_gradient(moved=MOVED, objective="grpo", surrogate="clip", **settings):
    old_NL = torch.tensor(OLD, dtype=torch.float64)
    logprobs_NL = (old_NL + torch.tensor(moved, dtype=torch.float64)).requires_grad_()
    loss, metrics = policy_loss(
        logprobs_NL,
        old_logprobs_NL=old_NL,
        reference_logprobs_NL=None,
        advantages_N=torch.tensor(ADVANTAGES, dtype=torch.float64),
        mask_NL=MASK,
        denominators=STEP,
        rule=LossRule(OBJECTIVES[objective], SURROGATES[surrogate], **settings),
    )
    loss.backward()
    return loss.item(), logprobs_NL.grad[MASK].tolist(), metrics


def same(values):
    return pytest.approx(values, abs=6e-7)


# Ratios exp(.3) = 1.349859, exp(-.1) = 0.904837, exp(.05) = 1.051271; exp(-.4) = 0.670320,
# exp(.2) = 1.221403. Geometric means: exp(.25 / 3) = 1.086904 and exp(-.2 / 2) = 0.904837.
@pytest.mark.parametrize(
    ("rule", "loss", "gradient"),
    [
        # grpo: 1 / (2 * 3) and 1 / (2 * 2) a token. 1.349859 is clipped at 1.28, 0.670320 at 0.8.
        (CLIP, -0.135071, [0, -0.150806, -0.175212, 0, 0.244281]),
        (CLIP | {"objective": "dapo"}, -0.323797, [0, -0.180967, -0.210254, 0, 0.195424]),
        (CLIP | {"objective": "dr_grpo"}, -0.202373, [0, -0.113105, -0.131409, 0, 0.122140]),
        # GSPO: -(1.0004 - 0.8 * 0.9997) / 2 = -0.100320 with both completions clipped.
        ({"ratio": "geometric", "epsilon": 3e-4, "epsilon_high": 4e-4}, -0.100320, [0.0] * 5),
        # -(1.086904 - 0.8 * 0.904837) / 2; a token's slope is that of its completion over |o|.
        (CLIP | {"ratio": "geometric"}, -0.181517, [-0.181151] * 3 + [0.180967] * 2),
        # The product over tokens: exp(.25) = 1.284025 is clipped at 1.28, exp(-.2) = 0.818731.
        (CLIP | {"ratio": "sequence"}, -0.312508, [0.0] * 3 + [0.327492] * 2),
        # CISPO: weights min(w, cap), gain weight * A * log-prob, all over 5 tokens.
        (
            {"surrogate": "cispo", "cispo_cap": 1.28, "objective": "dapo"},
            0.384375,
            [-0.256, -0.180967, -0.210254, 0.107251, 0.195424],
        ),
        (
            {"surrogate": "cispo", "cispo_cap": 5.0, "objective": "dapo"},
            0.394156,
            [-0.269972, -0.180967, -0.210254, 0.107251, 0.195424],
        ),
        (
            {"surrogate": "sapo"},
            -0.309715,
            [-0.218230, -0.150465, -0.175097, 0.130127, 0.241010],
        ),
    ],
)
def test_losses_by_hand(rule, loss, gradient):
    got_loss, got_gradient, _ = loss_and_gradient(**rule)
    assert got_loss == same(loss)
    assert got_gradient == same(gradient)


# With the ratio at 1: loss -(1 - 0.8) / 2 = -0.1. SAPO's is -(4 * 0.5 * 1 / 1 - 0.8 * 2 / 1.05) / 2
# = -0.238095. CISPO has none of interest: it is the log-probs' own.
@pytest.mark.parametrize(
    ("rule", "loss"),
    [
        ({}, -0.1),
        ({"ratio": "geometric", "epsilon": 3e-4, "epsilon_high": 4e-4}, -0.1),
        ({"surrogate": "sapo"}, -0.238095),
        ({"surrogate": "cispo"}, None),
    ],
)
def test_with_one_step_on_a_rollout_all_gradients_are_equal(rule, loss):
    got_loss, gradient, _ = loss_and_gradient(moved=((0.0,) * 3,) * 2, **rule)
    assert gradient == same([-0.166667] * 3 + [0.2] * 2)
    assert loss is None or got_loss == same(loss)


def test_what_a_bound_holds_is_counted():
    # Above 1.28 with A > 0 or below 0.8 with A < 0: one token of each completion.
    assert loss_and_gradient(**CLIP)[2]["clipped_tokens"] == 2
    assert loss_and_gradient(surrogate="cispo", cispo_cap=1.28)[2]["clipped_tokens"] == 1
    assert loss_and_gradient(surrogate="sapo")[2]["clipped_tokens"] == 0


def test_the_dual_clip_bounds_a_negative_advantage():
    # A = -0.8 at ratio exp(2) = 7.39: the loss 0.8 * 7.39 stops at 0.8 * 3, and so does its slope;
    # the other completion's advantage is positive, and nothing changes for it.
    moved = ((0.0, 0.0, 0.0), (2.0, 0.0, 0.0))
    free, free_gradient, _ = loss_and_gradient(moved)
    bound, gradient, metrics = loss_and_gradient(moved, dual_clip=3.0)
    assert free - bound == same((math.exp(2) - 3) * 0.8 / 4)
    assert free_gradient[3] == same(0.8 * math.exp(2) / 4)
    assert gradient == same([-1 / 6] * 3 + [0.0, 0.2])
    assert metrics["clipped_tokens"] == 1


def test_entropy_joins_under_the_objective_s_weights():
    # Entropies 1 and 3 with weights 1 / (2 * 1) and 1 / (2 * 2) a token: (1 + (3 + 3) / 2) / 2 = 2.
    entropy_NL = torch.tensor([[1.0, 9.0], [3.0, 3.0]], requires_grad=True)
    loss, metrics = policy_loss(
        torch.zeros(2, 2),
        old_logprobs_NL=torch.zeros(2, 2),
        reference_logprobs_NL=None,
        advantages_N=torch.zeros(2),
        mask_NL=torch.tensor([[True, False], [True, True]]),
        denominators=Denominators(2, 3, 2),
        rule=LossRule(entropy_weight=0.1),
        entropy_NL=entropy_NL,
    )
    loss.backward()
    assert loss.item() == same(-0.2)
    assert entropy_NL.grad.flatten().tolist() == same([-0.05, 0.0, -0.025, -0.025])
    assert metrics["entropy_bonus"].item() == same(2.0)
    assert metrics["entropy"].item() == same(7.0)


# --- Reg-GRPO -----------------------------------------------------------------------------------

RHO = (0.2, -0.1, 0.05, 0.4)
TARGET = 0.5 / (3**-0.5 + 1e-4)  # of rewards 1, 0, 0, 1: std sqrt(1 / 3), so 0.865875
TARGETS = (TARGET, -TARGET, -TARGET, TARGET)


def regression(rho, *, std_correction=1, epsilon=1e-4, targets=TARGETS, lengths=(1, 1, 1, 1)):
    """Loss and gradient by rho; each completion's rho lies on its first token."""
    rho_N = torch.tensor(rho, dtype=torch.float64, requires_grad=True)
    mask_NL = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    logprobs_NL = torch.nn.functional.pad(rho_N[:, None], (0, max(lengths) - 1))
    loss, _ = policy_loss(
        logprobs_NL,
        old_logprobs_NL=torch.zeros_like(logprobs_NL),
        reference_logprobs_NL=None,
        advantages_N=torch.tensor(targets, dtype=torch.float64),
        mask_NL=mask_NL,
        denominators=Denominators(4, sum(lengths), 4),
        rule=LossRule(
            surrogate=SURROGATES["regression"],
            predict=lambda rho_N, advantages_N: predicted_advantages(
                rho_N[None],
                advantages_N[None],
                grouping="joint",
                std_correction=std_correction,
                epsilon=epsilon,
            )[0],
        ),
    )
    loss.backward()
    return loss.item(), rho_N.grad.tolist()


def test_regression_by_hand():
    rho_1G = torch.tensor([RHO], dtype=torch.float64)
    predicted = predicted_advantages(
        rho_1G, torch.ones(1, 4), grouping="joint", std_correction=1, epsilon=1e-4
    )
    assert predicted[0].tolist() == same([0.292466, -1.111371, -0.409452, 1.228357])
    loss, gradient = regression(RHO)
    assert loss == same(0.182195)
    assert gradient == same([-1.424576, -0.259168, 1.184041, 0.499703])
    # ddof 0 without epsilon: 2 (1 - correlation of 0.878459).
    loss, _ = regression(RHO, std_correction=0, epsilon=1e-300, targets=(1, -1, -1, 1))
    assert loss == same(0.243083)


def test_regression_at_its_first_step_is_the_policy_gradient_enlarged():
    # rho = 0: -2 A / (4 * 1e-4) of each, 4329.377149.
    _, gradient = regression((0.0,) * 4)
    assert gradient == pytest.approx([-4329.377149, 4329.377149, 4329.377149, -4329.377149])


def test_regression_does_not_see_lengths():
    assert regression(RHO, lengths=(1, 3, 2, 1)) == regression(RHO)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-2, 2).filter(lambda x: abs(x) > 1e-3), min_size=4, max_size=4))
def test_regression_trains_the_direction_of_rho_alone(rho):
    # Up to epsilon its gradient sums to zero and is orthogonal to rho.
    if max(rho) - min(rho) < 0.1:
        return
    _, gradient = regression(rho, epsilon=1e-300)
    size = max(map(abs, gradient))
    assert sum(gradient) == pytest.approx(0.0, abs=1e-9 * max(size, 1))
    dot = sum(g * r for g, r in zip(gradient, rho, strict=True))
    assert dot == pytest.approx(0.0, abs=1e-9 * max(size, 1))


def test_predictions_follow_the_grouping():
    rho_MG, ones_MG = torch.tensor([[0.0, 1.0], [10.0, 11.0]]), torch.ones(2, 2)
    settings = {"std_correction": 1, "epsilon": 1e-4}
    of_rows = predicted_advantages(rho_MG, ones_MG, grouping="per_variant", **settings)
    # Each row: mean 0.5, std 0.707107, so -0.5 / 0.707207 = -0.707007.
    assert of_rows.tolist() == [same([-0.707007, 0.707007])] * 2
    of_all = predicted_advantages(rho_MG, ones_MG, grouping="joint", **settings)
    assert of_all.mean().item() == same(0.0)
    assert of_all[0, 1] < of_all[1, 0]


def test_a_pool_without_advantages_has_nothing_to_predict():
    # However small rho is, where epsilon would make its gradient large.
    _, gradient = regression((2e-4, -1e-4, 0.0, 1e-4), targets=(0.0,) * 4)
    assert gradient == [0.0] * 4
    rho_MG = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    advantages_MG = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    of_rows = predicted_advantages(
        rho_MG, advantages_MG, grouping="per_variant", std_correction=1, epsilon=1e-4
    )
    assert of_rows.tolist() == [[0.0, 0.0], same([-0.707007, 0.707007])]
