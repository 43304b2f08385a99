import math
import re
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strive.choices import ObjectiveName, SurrogateName
from strive.configs.keys import config_keys
from strive.configs.load import load_config
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError, UnknownNameError
from strive.train.loss import (
    OBJECTIVES,
    SURROGATES,
    Denominators,
    LossRule,
    k3_divergence,
    load_loss,
    policy_loss,
)

ONE_TOKEN = Denominators(num_completions=1, num_tokens=1, max_new_tokens=1)


def one_token(ratio, advantage, **options):
    """Loss and gradient with respect to the log-prob, for one token of a given ratio."""
    logprobs_NL = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    loss, metrics = policy_loss(
        logprobs_NL,
        old_logprobs_NL=torch.zeros(1, 1, dtype=torch.float64),
        reference_logprobs_NL=None,
        advantages_N=torch.tensor([advantage], dtype=torch.float64),
        mask_NL=torch.ones(1, 1),
        denominators=ONE_TOKEN,
        rule=LossRule(**options),
    )
    loss.backward()
    return loss.item(), logprobs_NL.grad.item(), metrics["clipped_tokens"].item()


# -min(w A, clip(w, 0.8, 1.2) A); the gradient by log w is -w A where w A is the minimum, else 0.
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0),
        (1.5, 2.0, -2.4, 0.0, 1),  # good and already likelier: clipped at 1.2 * 2
        (0.5, 2.0, -1.0, -1.0, 0),  # good but less likely: pulled up
        (1.5, -2.0, 3.0, 3.0, 0),  # bad but likelier: pushed down
        (0.5, -2.0, 1.6, 0.0, 1),  # bad and already less likely: clipped at 0.8 * -2
    ],
)
def test_clip_at_both_signs(ratio, advantage, loss, gradient, clipped):
    assert one_token(ratio, advantage) == pytest.approx((loss, gradient, clipped))


def test_epsilon_high_widens_the_upper_side_only():
    assert one_token(1.5, 2.0, epsilon_high=0.6) == pytest.approx((-3.0, -3.0, 0))
    assert one_token(0.5, -2.0, epsilon_high=0.6) == pytest.approx((1.6, 0.0, 1))


def test_k3_by_hand():
    # reference - policy = ln 2: 2 - ln 2 - 1 = 0.306853; equal distributions give 0 and slope 0.
    logprobs = torch.tensor([0.0, -1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([math.log(2), -1.0], dtype=torch.float64)
    divergence = k3_divergence(logprobs, reference)
    assert divergence.tolist() == pytest.approx([0.306853, 0.0], abs=1e-6)
    divergence.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([-1.0, 0.0])  # 1 - exp(difference)


def test_a_corrected_kl_by_hand():
    # Ratio 1.5, reference - policy = ln 2, A = 0, beta 1: 1.5 * 0.306853 = 0.460279. The gradient
    # is the KL divergence's: w (k3 + 1 - 2) = w log(policy / reference) = -1.5 ln 2 = -1.039721.
    logprobs_NL = torch.tensor([[math.log(1.5)]], dtype=torch.float64, requires_grad=True)
    loss, metrics = policy_loss(
        logprobs_NL,
        old_logprobs_NL=torch.zeros(1, 1, dtype=torch.float64),
        reference_logprobs_NL=torch.tensor([[math.log(3)]], dtype=torch.float64),
        advantages_N=torch.zeros(1),
        mask_NL=torch.ones(1, 1),
        denominators=ONE_TOKEN,
        rule=LossRule(beta=1.0, correct_kl_bias=True),
    )
    loss.backward()
    assert loss.item() == metrics["kl"].item() == pytest.approx(0.460279, abs=1e-6)
    assert logprobs_NL.grad.item() == pytest.approx(-1.039721, abs=1e-6)


# Two completions of 1 and 3 tokens, advantages 2 and -1, ratio 1: the tokens' losses are -2 and
# 1, 1, 1. With at most 8 new tokens:
@pytest.mark.parametrize(
    ("objective", "loss"),
    [
        ("grpo", -0.5),  # (-2 / 1 + 3 / 3) / 2
        ("dr_grpo", 0.0625),  # (-2 + 3) / (2 * 8)
        ("dapo", 0.25),  # (-2 + 3) / 4
    ],
)
def test_normalisers_by_hand(objective, loss):
    got, _ = policy_loss(
        torch.full((2, 3), -0.7),
        old_logprobs_NL=torch.full((2, 3), -0.7),
        reference_logprobs_NL=None,
        advantages_N=torch.tensor([2.0, -1.0]),
        mask_NL=torch.tensor([[1, 0, 0], [1, 1, 1]]),
        denominators=Denominators(num_completions=2, num_tokens=4, max_new_tokens=8),
        rule=LossRule(OBJECTIVES[objective]),
    )
    assert got.item() == pytest.approx(loss)


def batch(seed=0, num_completions=5, length=7):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_completions, length)
    logprobs_NL, old_NL, reference_NL = (
        -torch.rand(shape, generator=generator, dtype=torch.float64) * 3 for _ in range(3)
    )
    lengths_N = torch.randint(0, length + 1, (num_completions,), generator=generator)
    mask_NL = torch.arange(length)[None] < lengths_N[:, None]
    advantages_N = torch.randn(num_completions, generator=generator, dtype=torch.float64)
    return logprobs_NL, old_NL, reference_NL, mask_NL, advantages_N


def slow_loss(
    data, *, objective, ratio, epsilon, epsilon_high, beta, correct_kl_bias, denominators
):
    """Eq. 1 with nested loops and Python floats."""
    logprobs_NL, old_NL, reference_NL, mask_NL, advantages_N = data
    total = 0.0
    for i in range(len(advantages_N)):
        tokens = [t for t in range(mask_NL.shape[1]) if mask_NL[i, t]]
        advantage = advantages_N[i].item()
        terms = []
        whole = math.exp(sum((logprobs_NL[i, t] - old_NL[i, t]).item() for t in tokens))
        for t in tokens:
            w = math.exp((logprobs_NL[i, t] - old_NL[i, t]).item()) if ratio == "token" else whole
            clipped = min(max(w, 1 - epsilon), 1 + (epsilon_high or epsilon))
            difference = (reference_NL[i, t] - logprobs_NL[i, t]).item()
            kl = (w if correct_kl_bias else 1.0) * (math.exp(difference) - difference - 1)
            terms.append(-min(w * advantage, clipped * advantage) + beta * kl)
        divisor = {
            "grpo": denominators.num_completions * max(1, len(tokens)),
            "dr_grpo": denominators.num_completions * denominators.max_new_tokens,
            "dapo": denominators.num_tokens,
        }[objective]
        total += sum(terms) / divisor
    return total


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["grpo", "dr_grpo", "dapo"]),
    st.sampled_from(["token", "sequence"]),
    st.sampled_from([0.0, 0.04, 1.0]),
    st.sampled_from([None, 0.5]),
    st.booleans(),
)
def test_equals_the_slow_definition(seed, objective, ratio, beta, epsilon_high, correct_kl_bias):
    data = batch(seed)
    options = {
        "ratio": ratio,
        "epsilon": 0.2,
        "epsilon_high": epsilon_high,
        "beta": beta,
        "correct_kl_bias": correct_kl_bias,
    }
    denominators = Denominators(11, max(1, int(data[3].sum())), 9)
    logprobs_NL, old_NL, reference_NL, mask_NL, advantages_N = data
    loss, metrics = policy_loss(
        logprobs_NL,
        old_logprobs_NL=old_NL,
        reference_logprobs_NL=reference_NL,
        advantages_N=advantages_N,
        mask_NL=mask_NL,
        denominators=denominators,
        rule=LossRule(OBJECTIVES[objective], **options),
    )
    slow = slow_loss(data, objective=objective, denominators=denominators, **options)
    assert loss.item() == pytest.approx(slow, rel=1e-9, abs=1e-12)
    assert loss.item() == pytest.approx((metrics["policy"] + beta * metrics["kl"]).item())


def loss_of_rows(data, rows, denominators, **options):
    logprobs_NL, old_NL, reference_NL, mask_NL, advantages_N = data
    loss, _ = policy_loss(
        logprobs_NL[rows],
        old_logprobs_NL=old_NL[rows],
        reference_logprobs_NL=reference_NL[rows],
        advantages_N=advantages_N[rows],
        mask_NL=mask_NL[rows],
        denominators=denominators,
        rule=LossRule(beta=0.04, **options),
    )
    return loss


@pytest.mark.parametrize("objective", ["grpo", "dr_grpo", "dapo"])
def test_micro_batched_gradient_equals_full_batch(objective):
    data = batch(3)
    logprobs_NL = data[0].requires_grad_()
    denominators = Denominators(5, int(data[3].sum()), 7)
    loss_of_rows(data, slice(None), denominators, objective=OBJECTIVES[objective]).backward()
    full_NL = logprobs_NL.grad.clone()
    logprobs_NL.grad = None
    for rows in ([0, 1], [2], [3, 4]):
        loss_of_rows(data, rows, denominators, objective=OBJECTIVES[objective]).backward()
    torch.testing.assert_close(logprobs_NL.grad, full_NL, rtol=1e-12, atol=1e-15)


def test_on_policy_gradient_is_the_policy_gradient():
    # Ratio 1 everywhere: d loss / d logprob = -A / (N |o_i|), with no clipping.
    logprobs_NL, _, _, mask_NL, advantages_N = batch(1)
    logprobs_NL.requires_grad_()
    loss, metrics = policy_loss(
        logprobs_NL,
        old_logprobs_NL=logprobs_NL.detach(),
        reference_logprobs_NL=None,
        advantages_N=advantages_N,
        mask_NL=mask_NL,
        denominators=Denominators(5, 1, 1),
    )
    loss.backward()
    lengths_N1 = mask_NL.sum(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(
        logprobs_NL.grad, -advantages_N[:, None] * mask_NL / (5 * lengths_N1)
    )
    assert metrics["clipped_tokens"] == 0


def test_sequence_ratio_reads_as_eq1():
    # One completion of 2 tokens, ratios 1.1 and 1.05: whole ratio 1.155, A = 1 -> loss -1.155.
    logprobs_NL = torch.tensor([[math.log(1.1), math.log(1.05)]])
    loss, _ = policy_loss(
        logprobs_NL,
        old_logprobs_NL=torch.zeros(1, 2),
        reference_logprobs_NL=None,
        advantages_N=torch.ones(1),
        mask_NL=torch.ones(1, 2),
        denominators=ONE_TOKEN,
        rule=LossRule(ratio="sequence"),
    )
    assert loss.item() == pytest.approx(-1.155)


def test_an_empty_mask_gives_zero_with_a_graph():
    logprobs_NL = torch.zeros(2, 3, requires_grad=True)
    loss, _ = policy_loss(
        logprobs_NL,
        old_logprobs_NL=torch.zeros(2, 3),
        reference_logprobs_NL=torch.zeros(2, 3),
        advantages_N=torch.ones(2),
        mask_NL=torch.zeros(2, 3),
        denominators=Denominators(2, 0, 3),
        rule=LossRule(OBJECTIVES["dapo"], beta=0.1),
    )
    loss.backward()
    assert loss.item() == 0 and (logprobs_NL.grad == 0).all()


def test_padding_of_any_value_changes_nothing():
    data = batch(5)
    garbage = [tensor.masked_fill(~data[3], -50.0) for tensor in data[:3]]
    denominators = Denominators(5, 9, 7)
    clean = loss_of_rows(data, slice(None), denominators)
    dirty = loss_of_rows((*garbage, *data[3:]), slice(None), denominators)
    assert dirty.item() == pytest.approx(clean.item(), rel=1e-12)


def named(objective, surrogate, beta=0.0):
    # Unchecked, as the configuration refuses unknown names itself.
    return TrainConfig().model_copy(
        update={"objective": objective, "surrogate": surrogate, "beta": beta}
    )


def test_unknown_names_list_the_known():
    with pytest.raises(UnknownNameError, match="dapo, dr_grpo, grpo"):
        load_loss(named("ppo", "clip"))
    with pytest.raises(UnknownNameError, match="cispo, clip, module:function, regr"):
        load_loss(named("grpo", "clipped"))
    with pytest.raises(UnknownNameError, match="geometric, sequence, token"):
        loss_of_rows(batch(), slice(None), ONE_TOKEN, ratio="arithmetic")


def test_the_config_refuses_unknown_names_without_torch():
    """The words that it knows are the dicts' keys; a user's own function passes unread."""
    assert get_args(ObjectiveName) == tuple(OBJECTIVES)
    assert get_args(SurrogateName) == tuple(SURROGATES)
    types = {key.name: key.type for key in config_keys(TrainConfig)}
    assert types["objective"] == "grpo | dr_grpo | dapo | module:function"
    assert types["surrogate"] == "clip | cispo | sapo | regression | module:function"
    for key, wrong, said in (
        ("objective", "grop", "grpo, dr_grpo, dapo or module:function is wanted (did you mean 'gr"),
        (
            "objective",
            "sapo",
            "grpo, dr_grpo, dapo or module:function is wanted; sapo is surrogate=",
        ),
        ("surrogate", "nope", "clip, cispo, sapo, regression or module:function is wanted"),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"'{key}' is '{wrong}': {said}")):
            load_config(TrainConfig, [], [f"{key}={wrong}"])
        assert getattr(load_config(TrainConfig, [], [f"{key}=absent:f"]), key) == "absent:f"


# --- a user's own -------------------------------------------------------------------------------

PAGE = Path(__file__).parents[3] / "docs" / "own-rewards.md"
WRONG = """
import torch

def of_all(lengths_N, step):
    return torch.ones(())

def ragged(ratio_NL, advantages_N1, **others):
    return ratio_NL.sum(dim=1), ratio_NL > 1

def fails(lengths_N, step):
    return lengths_N / step.nothing

def infinite(lengths_N, step):
    return 1 / (lengths_N - 1)

def listed(lengths_N, step):
    return [0.5, 0.5]

def silent(*tensors, **others):
    return None

def nan(ratio_NL, advantages_N1, **others):
    return ratio_NL * advantages_N1 * float("nan"), ratio_NL > 1

def steep(ratio_NL, advantages_N1, **others):
    return (ratio_NL - 1).abs().sqrt() * advantages_N1, ratio_NL > 1

def detached(ratio_NL, advantages_N1, **others):
    return ratio_NL.detach() * advantages_N1, ratio_NL > 1

def gain_alone(ratio_NL, advantages_N1, **others):
    return ratio_NL * advantages_N1
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The page's example and one that is wrong, in the working directory."""
    [code] = re.findall(r"```python\n# my_loss\.py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "my_loss.py").write_text(code)
    (tmp_path / "wrong.py").write_text(WRONG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_loss", "wrong"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_an_own_surrogate_and_objective(own):
    rule = load_loss(named("my_loss:square_root", "my_loss:cispo"))
    assert not rule.objective.divide_by_std
    as_function = load_loss(named("my_loss:by_square_root", "clip")).objective
    assert as_function.divide_by_std and as_function.weights is rule.objective.weights
    # One completion of 4 tokens, weight 1 / (1 * 2); ratios e^0.3 (capped at 1.2), e^-0.1, 1, 1:
    # gradient -min(w, 1.2) A / 2.
    logprobs_NL = torch.tensor([[0.3, -0.1, 0.0, 0.0]], requires_grad=True)
    loss, metrics = policy_loss(
        logprobs_NL,
        old_logprobs_NL=torch.zeros(1, 4),
        reference_logprobs_NL=None,
        advantages_N=torch.tensor([2.0]),
        mask_NL=torch.ones(1, 4),
        denominators=Denominators(num_completions=1, num_tokens=4, max_new_tokens=8),
        rule=rule,
    )
    loss.backward()
    assert logprobs_NL.grad[0].tolist() == pytest.approx([-1.2, -0.904837, -1.0, -1.0], abs=1e-6)
    assert metrics["clipped_tokens"] == 1


@pytest.mark.parametrize(
    ("objective", "surrogate", "said"),
    [
        ("wrong:of_all", "clip", r"weights of the objective: shape \(\) where \(2,\) is due"),
        ("grpo", "wrong:ragged", r"gain of the surrogate: shape \(2,\) where \(2, 3\)"),
        ("wrong:fails", "clip", r"AttributeError: .*wrong.py, line 11"),
        ("wrong:infinite", "clip", "objective 'wrong:infinite' cannot be used: the loss .* is inf"),
        ("wrong:listed", "clip", r"a list of 2 where a tensor of shape \(2,\) is due"),
        ("wrong:silent", "clip", "weights of the objective: None where a tensor"),
        ("grpo", "wrong:nan", "surrogate 'wrong:nan' cannot be used: the loss .* is nan, which"),
        ("grpo", "wrong:steep", "surrogate 'wrong:steep' .* the gradient .* is not finite"),
        ("grpo", "wrong:detached", "surrogate 'wrong:detached' .* no gradient reaches"),
        ("grpo", "wrong:gain_alone", "the surrogate returned one Tensor where a pair is due"),
        ("grpo", "wrong:silent", "the surrogate returned None where a pair is due"),
        ("wrong:absent", "clip", "has no 'absent'"),
        ("wrong:torch", "clip", "names no function but a module"),
    ],
)
def test_an_own_one_that_cannot_be_used(own, objective, surrogate, said):
    with pytest.raises(ConfigError, match=said) as error:
        load_loss(named(objective, surrogate, beta=0.04))
    assert "\n" not in str(error.value)
