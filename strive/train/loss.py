"""The objective of Eq. 1 of arXiv:2604.01824 as a loss to minimise, per token, on torch tensors.

Axes: N completions (those of one micro-batch), L completion tokens (padded; `mask_NL` marks the
real ones). How it departs from, or fixes, what Eq. 1 leaves open:

1. The ratio is per token (as TRL and the GRPO paper); `ratio="sequence"` is Eq. 1 as it reads, the
   product over the completion's tokens.
2. KL is the k3 estimator per token, inside the same normaliser.
3. The loss of a completion is a mean over its tokens (`grpo`), a sum over a constant length
   (`dr_grpo`), or all tokens of the step weigh the same (`dapo`).

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
from dataclasses import dataclass

import torch
from torch import Tensor

from strive.choices import Objective, Ratio
from strive.errors import unknown_name


@dataclass(frozen=True)
class Denominators:
    """What the step's losses are divided by, counted over all micro-batches and processes."""

    num_completions: int
    num_tokens: int
    max_new_tokens: int


def _weights_grpo(lengths_N: Tensor, step: Denominators) -> Tensor:
    """1 / (N |o_i|): mean over each completion's tokens, then over completions (Eq. 1)."""
    return 1.0 / (step.num_completions * lengths_N.clamp(min=1))


def _weights_dr_grpo(lengths_N: Tensor, step: Denominators) -> Tensor:
    """1 / (N L_max): a constant length, so that long wrong answers are not favoured (Dr.GRPO)."""
    return torch.full_like(lengths_N, 1.0 / (step.num_completions * step.max_new_tokens))


def _weights_dapo(lengths_N: Tensor, step: Denominators) -> Tensor:
    """1 / sum_i |o_i|: every token of the step weighs the same (DAPO)."""
    return torch.full_like(lengths_N, 1.0 / max(step.num_tokens, 1))


NORMALISERS: dict[str, Callable[[Tensor, Denominators], Tensor]] = {
    "grpo": _weights_grpo,
    "dr_grpo": _weights_dr_grpo,
    "dapo": _weights_dapo,
}


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
    objective: Objective = "grpo",
    ratio: Ratio = "token",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    beta: float = 0.0,
    correct_kl_bias: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 1, negated: - min(w A, clip(w, 1 - eps, 1 + eps_high) A) + beta k3.

    `correct_kl_bias` weighs k3 by w: on-policy the value stays, and the gradient becomes an
    unbiased one of the KL divergence (DeepSeek-V3.2, arXiv:2512.02556; TRL's default).

    Returns the micro-batch's share of the step's loss, with a graph even where the mask is empty,
    and detached scalars that add up over micro-batches and processes: `policy` and `kl` (their
    shares; loss = policy + beta kl), `clipped_tokens`, `tokens`.
    """
    if objective not in NORMALISERS:
        raise unknown_name("objective", objective, NORMALISERS)
    mask_NL = mask_NL.to(logprobs_NL.dtype)
    weights_N = NORMALISERS[objective](mask_NL.sum(dim=1), denominators)
    ratio_NL = policy_ratio(logprobs_NL, old_logprobs_NL, mask_NL, ratio)
    low, high = 1.0 - epsilon, 1.0 + (epsilon if epsilon_high is None else epsilon_high)
    advantages_N1 = advantages_N.to(logprobs_NL.dtype)[:, None]
    gain_NL = torch.minimum(ratio_NL * advantages_N1, ratio_NL.clamp(low, high) * advantages_N1)
    policy = -(weights_N * (gain_NL * mask_NL).sum(dim=1)).sum()

    kl = torch.zeros_like(policy)
    if beta > 0:
        assert reference_logprobs_NL is not None
        divergence_NL = k3_divergence(logprobs_NL, reference_logprobs_NL) * mask_NL
        if correct_kl_bias:
            divergence_NL = divergence_NL * ratio_NL
        kl = (weights_N * divergence_NL.sum(dim=1)).sum()
    # A token is clipped where the clip, not the ratio, decides the minimum and stops the gradient.
    clipped_NL = ((ratio_NL < low) & (advantages_N1 < 0)) | (
        (ratio_NL > high) & (advantages_N1 > 0)
    )
    metrics = {
        "policy": policy.detach(),
        "kl": kl.detach(),
        "clipped_tokens": (clipped_NL * mask_NL).sum().detach(),
        "tokens": mask_NL.sum().detach(),
    }
    return policy + beta * kl, metrics
