"""The objective of Eq. 1 of arXiv:2604.01824 as a loss to minimise, per token, on torch tensors.

Axes: N completions (those of one micro-batch), L completion tokens (padded; `mask_NL` marks the
real ones). How it departs from, or fixes, what Eq. 1 leaves open:

1. The ratio is per token (as TRL and the GRPO paper); `ratio="sequence"` is Eq. 1 as it reads, the
   product over the completion's tokens, which overflows or vanishes for long ones; `geometric` is
   its mean over tokens (GSPO, arXiv:2507.18071).
2. KL is the k3 estimator per token, inside the same normaliser.
3. The loss of a completion is a mean over its tokens (`grpo`), a sum over a constant length
   (`dr_grpo`), or all tokens of the step weigh the same (`dapo`): an entry of `OBJECTIVES`.
4. min(w A, clip(w) A) is one entry of `SURROGATES` (`clip`); the others are those of CISPO, SAPO
   and Reg-GRPO. With one optimiser step on each rollout the ratio is 1, and `clip`, `cispo` and
   `sapo` have the same gradient, whatever `ratio` says: -A times the objective's weight.

Every denominator is passed in and counts the whole step, over all micro-batches and processes, so
micro-batch losses add up to the step's loss.

TRL-compatible: values and gradients equal those of TRL 1.16 on the same tensors. Its `loss_type` is
our objective; `epsilon`, `epsilon_high` and `beta` are the same numbers; `use_bias_correction_kl`
is `correct_kl_bias` (on there, off here, because Eq. 1 has no such weight); `max_completion_length`
is `max_new_tokens`; all else stays at TRL's defaults. It averages `grpo` and `dr_grpo` over
micro-batches, so they are equal where its micro-batches hold equally many completions. Its
sequence-level ratio is our `geometric`; its `loss_type="cispo"` is our surrogate `cispo` under the
objective `dapo`, its `epsilon_high` then our `cispo_cap`; its `sapo` is ours under `grpo`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from strive.choices import Grouping, Ratio
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
"""Gain of each token [N, L], to be made larger, and where a bound holds it [N, L].

Called by keyword as `f(ratio_NL, advantages_N1, logprobs_NL, old_NL, mask_NL, low, high,
dual_clip, cap, temperatures, predict)`; a function takes `**others` for what it does not use.
`ratio_NL` is that of `ratio`, [low, high] the clip range, the last four are those of `LossRule`."""


def clip_surrogate(
    ratio_NL: Tensor,
    advantages_N1: Tensor,
    *,
    low: float,
    high: float,
    dual_clip: float | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """min(w A, clip(w, low, high) A): the surrogate of Eq. 1.

    With `dual_clip` the gain of a negative advantage is at least dual_clip A (arXiv:1912.09729).
    """
    gain_NL = torch.minimum(ratio_NL * advantages_N1, ratio_NL.clamp(low, high) * advantages_N1)
    # A token is clipped where the clip, not the ratio, decides the minimum and stops the gradient.
    clipped_NL = ((ratio_NL < low) & (advantages_N1 < 0)) | (
        (ratio_NL > high) & (advantages_N1 > 0)
    )
    if dual_clip is not None:
        is_bound_NL = (advantages_N1 < 0) & (ratio_NL > dual_clip)
        gain_NL = torch.where(is_bound_NL, dual_clip * advantages_N1, gain_NL)
        clipped_NL = clipped_NL | is_bound_NL
    return gain_NL, clipped_NL


def cispo_surrogate(
    ratio_NL: Tensor, advantages_N1: Tensor, *, logprobs_NL: Tensor, cap: float, **others: Any
) -> tuple[Tensor, Tensor]:
    """sg(min(w, cap)) A log pi: the ratio is a weight without gradient (CISPO, arXiv:2506.13585).

    There is no lower bound, as in practice there. A capped token still learns.
    """
    weight_NL = ratio_NL.detach().clamp(max=cap)
    return weight_NL * advantages_N1 * logprobs_NL, ratio_NL > cap


def sapo_surrogate(
    ratio_NL: Tensor, advantages_N1: Tensor, *, temperatures: tuple[float, float], **others: Any
) -> tuple[Tensor, Tensor]:
    """(4 / tau) sigmoid(tau (w - 1)) A: a soft gate in the clip's place (SAPO, arXiv:2511.20347).

    `temperatures` are tau for A > 0 and for all other A. Nothing is ever clipped.
    """
    above, below = temperatures
    tau_N1 = torch.where(advantages_N1 > 0, above, below)
    gate_NL = torch.sigmoid(tau_N1 * (ratio_NL - 1.0)) * (4.0 / tau_N1)
    return gate_NL * advantages_N1, torch.zeros_like(ratio_NL, dtype=torch.bool)


def predicted_advantages(
    rho_MG: Tensor,
    advantages_MG: Tensor,
    *,
    grouping: Grouping,
    std_correction: int,
    epsilon: float,
) -> Tensor:
    """Advantages [..., M, G] that log pi - log pi_old predicts: rho, normalised as rewards are.

    Where a pool has no advantages there is nothing to predict, and they are 0 without a gradient.

    Eq. 7 of Reg-GRPO (arXiv:2506.07464), over the pool of `grouping` in place of its one group. Its
    ddof and epsilon are not given there; ours are those of the rewards.
    """

    def normalise(dims: tuple[int, ...]) -> Tensor:
        rho = rho_MG * (advantages_MG != 0).any(dim=dims, keepdim=True)
        centred = rho - rho.mean(dim=dims, keepdim=True)
        count = math.prod(rho.shape[dim] for dim in dims) - std_correction
        variance = centred.square().sum(dim=dims, keepdim=True) / max(count, 1)
        # The root of 0 has no gradient; a constant there gives that of centred / epsilon.
        std = torch.where(variance > 0, variance, 1.0).sqrt() * (variance > 0)
        return centred / (std + epsilon)

    if grouping == "joint":
        return normalise((-2, -1))
    if grouping == "per_variant":
        return normalise((-1,))
    raise ConfigError(
        f"grouping is '{grouping}' with surrogate 'regression', which has no such prediction; "
        "set grouping=joint or per_variant"
    )


def regression_surrogate(
    ratio_NL: Tensor,
    advantages_N1: Tensor,
    *,
    logprobs_NL: Tensor,
    old_NL: Tensor,
    mask_NL: Tensor,
    predict: Callable[[Tensor, Tensor], Tensor],
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """-(A - A_hat)^2 of each completion, on all of its tokens (Reg-GRPO, arXiv:2506.07464, Eq. 8).

    A_hat is `predict` of rho [N], the completion's sum of log pi - log pi_old, and of A: `N` rows
    are whole groups, and a pool without any advantage is left out. Under the objective `grpo` the
    loss is its mean over completions. Only the direction of rho is trained, so it differs from GRPO
    from the second optimiser step on a rollout only, where the first one's gradient is that of
    A rho, times 2 / epsilon before clipping.
    """
    rho_N = ((logprobs_NL - old_NL) * mask_NL).sum(dim=1)
    predicted_N = predict(rho_N, advantages_N1[:, 0])
    error_N1 = (advantages_N1 - predicted_N[:, None]).square()
    gain_NL = -(error_N1 * mask_NL)
    return gain_NL, torch.zeros_like(ratio_NL, dtype=torch.bool)


SURROGATES: dict[str, Surrogate] = {
    "clip": clip_surrogate,
    "cispo": cispo_surrogate,
    "sapo": sapo_surrogate,
    "regression": regression_surrogate,
}


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
    dual_clip: float | None = None
    cispo_cap: float = 5.0
    sapo_temperatures: tuple[float, float] = (1.0, 1.05)
    entropy_weight: float = 0.0
    predict: Callable[[Tensor, Tensor], Tensor] = lambda rho_N, advantages_N: predicted_advantages(
        rho_N[None], advantages_N[None], grouping="joint", std_correction=1, epsilon=1e-4
    )[0]
    """Reg-GRPO's predicted advantages [N] of rho [N] and A [N] of whole groups; here of one."""


def k3_divergence(logprobs: Tensor, reference: Tensor) -> Tensor:
    """k3 estimate of KL(policy || reference) per token: exp(r - l) - (r - l) - 1, at least 0."""
    difference = reference - logprobs
    return torch.exp(difference) - difference - 1.0


def policy_ratio(logprobs_NL: Tensor, old_NL: Tensor, mask_NL: Tensor, ratio: Ratio) -> Tensor:
    """pi / pi_old per token [N, L], or of the whole completion, repeated over its tokens.

    `sequence` is the product over tokens, `geometric` its |o|-th root (GSPO).
    """
    difference_NL = (logprobs_NL - old_NL) * mask_NL
    if ratio == "token":
        return torch.exp(difference_NL)
    if ratio not in get_args(Ratio):
        raise unknown_name("ratio", ratio, get_args(Ratio))
    whole_N1 = difference_NL.sum(dim=1, keepdim=True)
    if ratio == "geometric":
        whole_N1 = whole_N1 / mask_NL.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.exp(whole_N1).expand_as(difference_NL)


def policy_loss(
    logprobs_NL: Tensor,
    *,
    old_logprobs_NL: Tensor,
    reference_logprobs_NL: Tensor | None,
    advantages_N: Tensor,
    mask_NL: Tensor,
    denominators: Denominators,
    rule: LossRule = LossRule(),
    entropy_NL: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 1, negated: - surrogate(w, A) + beta k3, over tokens weighted by the objective.

    With `entropy_weight` - entropy_weight H joins it, weighted alike. Returns the micro-batch's
    share of the step's loss, with a graph even where the mask is empty, and detached scalars that
    add up over micro-batches and processes: `policy`, `kl` and `entropy_bonus` (their shares; loss
    = policy + beta kl - entropy_weight entropy_bonus), `clipped_tokens`, `tokens`, and `entropy`,
    its sum over tokens.
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
        old_NL=old_logprobs_NL,
        mask_NL=mask_NL,
        low=1.0 - rule.epsilon,
        high=1.0 + epsilon_high,
        dual_clip=rule.dual_clip,
        cap=rule.cispo_cap,
        temperatures=rule.sapo_temperatures,
        predict=rule.predict,
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
    entropy_N = torch.zeros_like(lengths_N)
    if entropy_NL is not None:
        entropy_N = (entropy_NL * mask_NL).sum(dim=1)
    bonus = (weights_N * entropy_N).sum()
    metrics = {
        "policy": policy.detach(),
        "kl": kl.detach(),
        "entropy_bonus": bonus.detach(),
        "entropy": entropy_N.sum().detach(),
        "clipped_tokens": (clipped_NL * mask_NL).sum().detach(),
        "tokens": mask_NL.sum().detach(),
    }
    loss = policy + rule.beta * kl
    return (loss - rule.entropy_weight * bonus if rule.entropy_weight else loss), metrics


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
    if not weighing.divide_by_std and (config.std != "group" or config.grouping == "share"):
        key, value = ("std", config.std) if config.std != "group" else ("grouping", config.grouping)
        raise ConfigError(
            f"{key} '{value}' with objective '{objective}', which does not divide by a std; set "
            "std=group and another grouping, or another objective"
        )
    group_shape = (config.num_variants, config.num_generations)

    def predict(rho_N: Tensor, advantages_N: Tensor) -> Tensor:
        return predicted_advantages(
            rho_N.unflatten(0, (-1, *group_shape)),
            advantages_N.unflatten(0, (-1, *group_shape)),
            grouping=config.grouping,
            std_correction=config.std_correction,
            epsilon=config.advantage_epsilon,
        ).flatten()

    rule = LossRule(
        weighing,
        SURROGATES.get(surrogate) or load_function(f"surrogate '{surrogate}'", surrogate),
        config.ratio,
        config.epsilon,
        config.epsilon_high,
        config.beta,
        config.correct_kl_bias,
        config.dual_clip,
        config.cispo_cap,
        config.sapo_temperatures,
        config.entropy_weight,
        predict,
    )
    # Each beside our own of the other, so that the one that fails is the one named.
    size = math.prod(group_shape) if surrogate == "regression" else 2
    _try_loss(f"objective '{objective}'", replace(rule, surrogate=clip_surrogate), size)
    _try_loss(f"surrogate '{surrogate}'", replace(rule, objective=OBJECTIVES["grpo"]), size)
    return rule


def _try_loss(what: str, rule: LossRule, group_size: int) -> None:
    """Refuse a rule whose loss on one group fails, is not finite or has no gradient."""
    logprobs_NL = torch.full((group_size, 3), -1.0, requires_grad=True)
    row_N1 = torch.arange(group_size)[:, None]
    try:
        loss, _ = policy_loss(
            logprobs_NL,
            old_logprobs_NL=torch.full((group_size, 3), -1.0),
            reference_logprobs_NL=None,
            advantages_N=1.0 - 2.0 * (row_N1[:, 0] % 2),
            mask_NL=torch.arange(3) < 3 - 2 * (row_N1 % 2),
            denominators=Denominators(group_size, 2 * group_size, max_new_tokens=8),
            # The other terms would hide a gain without gradient.
            rule=replace(rule, beta=0.0, entropy_weight=0.0),
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
