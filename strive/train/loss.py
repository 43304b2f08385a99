"""The objective of Eq. 1 of arXiv:2604.01824 as a loss to minimise, per token, on torch tensors.

Axes: N completions (those of one micro-batch), L completion tokens (padded; `mask_NL` marks the
real ones). How it departs from, or fixes, what Eq. 1 leaves open:

1. The ratio is per token (as TRL and the GRPO paper); `ratio="sequence"` is Eq. 1 as it reads, the
   product over the completion's tokens.
2. KL is the k3 estimator per token, inside the same normaliser.
3. The loss of a completion is a mean over its tokens (`grpo`), a sum over a constant length
   (`dr_grpo`), or all tokens of the step weigh the same (`dapo`): an entry of `OBJECTIVES`.
4. min(w A, clip(w) A) is one entry of `SURROGATES` (`clip`).

Every denominator is passed in and counts the whole step, over all micro-batches and processes, so
micro-batch losses add up to the step's loss.

TRL-compatible: values and gradients equal those of TRL 1.16 on the same tensors. Its `loss_type` is
our objective; `epsilon`, `epsilon_high` and `beta` are the same numbers; `use_bias_correction_kl`
is `correct_kl_bias` (on there, off here, because Eq. 1 has no such weight); `max_completion_length`
is `max_new_tokens`; all else stays at TRL's defaults. It averages `grpo` and `dr_grpo` over
micro-batches, so they are equal where its micro-batches hold equally many completions. Its
sequence-level ratio is the geometric mean over tokens (GSPO), which `ratio="sequence"` is not.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from strive.choices import Ratio
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError, unknown_name
from strive.named import check_name, load_function, raised


@dataclass(frozen=True)
class Denominators:
    """What the step's losses are divided by, counted over all micro-batches and processes."""

    num_completions: int
    num_tokens: int
    max_new_tokens: int


@dataclass(frozen=True)
class Objective:
    """How much a token counts in the loss, and whether a group's std divides its advantages."""

    weights: Callable[[Tensor, Denominators], Tensor]
    """Weight of each completion's tokens [N], from its length [N] in tokens."""
    divide_by_std: bool = True


def grpo_weights(lengths_N: Tensor, step: Denominators) -> Tensor:
    """1 / (N |o_i|): mean over each completion's tokens, then over completions (Eq. 1)."""
    return 1.0 / (step.num_completions * lengths_N.clamp(min=1))


def dr_grpo_weights(lengths_N: Tensor, step: Denominators) -> Tensor:
    """1 / (N L_max): a constant length, so that long wrong answers are not favoured (Dr.GRPO)."""
    return torch.full_like(lengths_N, 1.0 / (step.num_completions * step.max_new_tokens))


def dapo_weights(lengths_N: Tensor, step: Denominators) -> Tensor:
    """1 / sum_i |o_i|: every token of the step weighs the same (DAPO)."""
    return torch.full_like(lengths_N, 1.0 / max(step.num_tokens, 1))


OBJECTIVES: dict[str, Objective] = {
    "grpo": Objective(grpo_weights),
    "dr_grpo": Objective(dr_grpo_weights, divide_by_std=False),
    "dapo": Objective(dapo_weights),
}

Surrogate = Callable[..., tuple[Tensor, Tensor]]
"""Gain of each token [N, L], to be made larger, and where a bound stops its gradient [N, L].

Called by keyword as `f(ratio_NL, advantages_N1, logprobs_NL, mask_NL, low, high)`; a function takes
`**others` for what it does not use. `ratio_NL` is that of `ratio`, [low, high] the clip range."""


def clip_surrogate(
    ratio_NL: Tensor, advantages_N1: Tensor, *, low: float, high: float, **others: Any
) -> tuple[Tensor, Tensor]:
    """min(w A, clip(w, low, high) A): the surrogate of Eq. 1."""
    gain_NL = torch.minimum(ratio_NL * advantages_N1, ratio_NL.clamp(low, high) * advantages_N1)
    # A token is clipped where the clip, not the ratio, decides the minimum and stops the gradient.
    clipped_NL = ((ratio_NL < low) & (advantages_N1 < 0)) | (
        (ratio_NL > high) & (advantages_N1 > 0)
    )
    return gain_NL, clipped_NL


SURROGATES: dict[str, Surrogate] = {"clip": clip_surrogate}


@dataclass(frozen=True)
class LossRule:
    """How the loss of a step is made; the fields are the configuration's."""

    objective: Objective = OBJECTIVES["grpo"]
    surrogate: Surrogate = clip_surrogate
    ratio: Ratio = "token"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    beta: float = 0.0
    correct_kl_bias: bool = False
    """Weigh k3 by the ratio: on-policy the value stays, and the gradient becomes an unbiased one of
    the KL divergence (DeepSeek-V3.2, arXiv:2512.02556; TRL's default)."""


def k3_divergence(logprobs: Tensor, reference: Tensor) -> Tensor:
    """k3 estimate of KL(policy || reference) per token: exp(r - l) - (r - l) - 1, at least 0."""
    difference = reference - logprobs
    return torch.exp(difference) - difference - 1.0


def policy_ratio(logprobs_NL: Tensor, old_NL: Tensor, mask_NL: Tensor, ratio: Ratio) -> Tensor:
    """pi / pi_old per token [N, L], or of the whole completion, repeated over its tokens."""
    difference_NL = (logprobs_NL - old_NL) * mask_NL
    if ratio == "token":
        return torch.exp(difference_NL)
    if ratio == "sequence":
        return torch.exp(difference_NL.sum(dim=1, keepdim=True)).expand_as(difference_NL)
    raise unknown_name("ratio", ratio, ("token", "sequence"))


def policy_loss(
    logprobs_NL: Tensor,
    *,
    old_logprobs_NL: Tensor,
    reference_logprobs_NL: Tensor | None,
    advantages_N: Tensor,
    mask_NL: Tensor,
    denominators: Denominators,
    rule: LossRule = LossRule(),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 1, negated: - surrogate(w, A) + beta k3, over tokens weighted by the objective.

    Returns the micro-batch's share of the step's loss, with a graph even where the mask is empty,
    and detached scalars that add up over micro-batches and processes: `policy` and `kl` (their
    shares; loss = policy + beta kl), `clipped_tokens`, `tokens`.
    """
    mask_NL = mask_NL.to(logprobs_NL.dtype)
    lengths_N = mask_NL.sum(dim=1)
    weights_N = rule.objective.weights(lengths_N, denominators)
    ratio_NL = policy_ratio(logprobs_NL, old_logprobs_NL, mask_NL, rule.ratio)
    epsilon_high = rule.epsilon if rule.epsilon_high is None else rule.epsilon_high
    pair: Any = rule.surrogate(
        ratio_NL=ratio_NL,
        advantages_N1=advantages_N.to(logprobs_NL.dtype)[:, None],
        logprobs_NL=logprobs_NL,
        mask_NL=mask_NL,
        low=1.0 - rule.epsilon,
        high=1.0 + epsilon_high,
    )
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ConfigError(
            f"the surrogate returned {_kind(pair)} where a pair is due: the gain of each token and "
            f"where a bound stops its gradient, tensors of shape {tuple(mask_NL.shape)}"
        )
    gain_NL, clipped_NL = pair
    # A shape that broadcasts would be a silent other loss.
    for what, found, wanted in (
        ("weights of the objective", weights_N, lengths_N),
        ("gain of the surrogate", gain_NL, mask_NL),
        ("clipped of the surrogate", clipped_NL, mask_NL),
    ):
        if not isinstance(found, Tensor):
            raise ConfigError(
                f"{what}: {_kind(found)} where a tensor of shape {tuple(wanted.shape)} is due"
            )
        if found.shape != wanted.shape:
            raise ConfigError(
                f"{what}: shape {tuple(found.shape)} where {tuple(wanted.shape)} is due"
            )
    policy = -(weights_N * (gain_NL * mask_NL).sum(dim=1)).sum()

    kl = torch.zeros_like(policy)
    if rule.beta > 0:
        assert reference_logprobs_NL is not None
        divergence_NL = k3_divergence(logprobs_NL, reference_logprobs_NL) * mask_NL
        if rule.correct_kl_bias:
            divergence_NL = divergence_NL * ratio_NL
        kl = (weights_N * divergence_NL.sum(dim=1)).sum()
    metrics = {
        "policy": policy.detach(),
        "kl": kl.detach(),
        "clipped_tokens": (clipped_NL * mask_NL).sum().detach(),
        "tokens": mask_NL.sum().detach(),
    }
    return policy + rule.beta * kl, metrics


def _kind(found: object) -> str:
    """Name what a user's function returned by its type."""
    if isinstance(found, (tuple, list)):
        return f"a {type(found).__name__} of {len(found)}"
    return "None" if found is None else f"one {type(found).__name__}"


def load_loss(config: TrainConfig) -> LossRule:
    """Look up a run's objective and surrogate; a user's own are imported by `module:function`.

    An own objective is an `Objective`, or a function that gives its weights. Both are tried on two
    completions, so that mistakes show before a model is loaded.

    Raises:
        UnknownNameError, MissingInputError, ConfigError: no such name, or it cannot be used.
    """
    objective, surrogate = config.objective, config.surrogate
    check_name("objective", objective, OBJECTIVES)
    check_name("surrogate", surrogate, SURROGATES)
    weighing = OBJECTIVES.get(objective) or load_function(
        f"objective '{objective}'", objective, or_a=Objective
    )
    if not isinstance(weighing, Objective):
        weighing = Objective(weighing)
    rule = LossRule(
        weighing,
        SURROGATES.get(surrogate) or load_function(f"surrogate '{surrogate}'", surrogate),
        config.ratio,
        config.epsilon,
        config.epsilon_high,
        config.beta,
        config.correct_kl_bias,
    )
    # Each beside our own of the other, so that the one that fails is the one named.
    _try_loss(f"objective '{objective}'", replace(rule, surrogate=clip_surrogate))
    _try_loss(f"surrogate '{surrogate}'", replace(rule, objective=OBJECTIVES["grpo"]))
    return rule


def _try_loss(what: str, rule: LossRule) -> None:
    """Refuse a rule whose loss on two completions fails, is not finite or has no gradient."""
    logprobs_NL = torch.full((2, 3), -1.0, requires_grad=True)
    try:
        loss, _ = policy_loss(
            logprobs_NL,
            old_logprobs_NL=torch.full((2, 3), -1.0),
            reference_logprobs_NL=None,
            advantages_N=torch.tensor([1.0, -1.0]),
            mask_NL=torch.tensor([[True, True, True], [True, False, False]]),
            denominators=Denominators(num_completions=2, num_tokens=4, max_new_tokens=8),
            rule=replace(rule, beta=0.0),  # the KL term would hide a gain without gradient
        )
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        if not loss.isfinite():
            raise ConfigError(f"the loss of a trial with it is {loss.item()}, which is not finite")
        if logprobs_NL.grad is None:
            raise ConfigError(
                "no gradient reaches the log-probs, so nothing would be learned; leave ratio_NL or "
                "logprobs_NL in the gain undetached"
            )
        if not logprobs_NL.grad.isfinite().all():
            raise ConfigError("the gradient of a trial with it is not finite")
    except Exception as error:  # whatever a user's function does
        reason = str(error) if isinstance(error, ConfigError) else raised(error)
        raise ConfigError(f"{what} cannot be used: {reason}") from error
