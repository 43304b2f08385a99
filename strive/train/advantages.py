"""Advantages of a group: Eq. 3 of arXiv:2604.01824 and its alternatives. Pure NumPy.

Axes: M variants, G completions of each. A group is the M x G pool of one question. What the paper
leaves open and is chosen here: ddof 1 and epsilon 1e-4 (as TRL); a pool whose rewards are all equal
gets advantage 0; a reward that no function could give (NaN) stays out of the mean and the std, and
its advantage is 0.

`step_advantages` gives those of a whole step; what its groups are divided by is each group's own
std, the batch's, or an average of each problem type's.

With the defaults, `joint` equals TRL 1.16's `scale_rewards="group"` with `num_generations` = M x G,
`per_variant` the same with `num_generations` = G; without `divide_by_std` (Dr.GRPO) both equal its
`scale_rewards="none"`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from strive.choices import Grouping, StdOver
from strive.errors import unknown_name

FloatArray = NDArray[np.floating]
# Rewards closer than this are equal: sums of weights differ in their last bits.
EQUAL_WITHIN = 1e-9


def normalise_pool(
    rewards: FloatArray, *, std_correction: int, epsilon: float, divide_by_std: bool = True
) -> FloatArray:
    """Normalise one pool of rewards of any shape: Eq. 2 over a row, Eq. 3 over the M x G grid.

    A = (r - mean(r)) / (std(r) + epsilon); without `divide_by_std` (Dr.GRPO) A = r - mean(r).
    """
    advantages = np.zeros(np.shape(rewards), dtype=np.float64)
    if is_zero_std(rewards):
        return advantages
    known = np.isfinite(rewards)
    centred = rewards[known] - rewards[known].mean()
    scale = rewards[known].std(ddof=std_correction) + epsilon if divide_by_std else 1.0
    advantages[known] = centred / scale
    return advantages


def is_zero_std(rewards: FloatArray) -> bool:
    """Tell whether all known rewards of a pool are equal, so that it carries no signal."""
    known = rewards[np.isfinite(rewards)]
    return known.size < 2 or float(np.ptp(known)) <= EQUAL_WITHIN


def share_advantages(rewards_MG: FloatArray, *, epsilon: float) -> FloatArray:
    """Advantages of a variant's own completions in Share-GRPO (arXiv:2505.16673, its code).

    A_global + A_local, ddof 1. There each of the M prompts is paired with all M x G completions, so
    the global pool holds every reward M times: its mean is the pool's, its std that of the repeated
    rows, sqrt(M SS / (M^2 G - 1)), where SS sums the squared distances from the mean.
    """
    num_variants = rewards_MG.shape[0]
    repeated = np.tile(rewards_MG.reshape(-1), num_variants)
    normalise = partial(normalise_pool, std_correction=1, epsilon=epsilon)
    global_MG = normalise(repeated)[: rewards_MG.size].reshape(rewards_MG.shape)
    return global_MG + np.stack([normalise(row_G) for row_G in rewards_MG])


def group_advantages(
    rewards_MG: FloatArray,
    *,
    grouping: Grouping = "joint",
    std_correction: int = 1,
    epsilon: float = 1e-4,
    divide_by_std: bool = True,
) -> tuple[FloatArray, dict[str, float]]:
    """Advantages [M, G] of one question's completions, and the group's measures.

    `joint` pools all M x G rewards (Eq. 3), `per_variant` pools the G of each variant (Eq. 2, GRPO
    per variant), `hierarchical` is the sum of both (after R1-ShareVL), `share` is that sum as
    Share-GRPO's code has it (`share_advantages`).
    """
    rewards_MG = np.asarray(rewards_MG, dtype=np.float64)
    normalise = partial(
        normalise_pool, std_correction=std_correction, epsilon=epsilon, divide_by_std=divide_by_std
    )
    joint_MG = normalise(rewards_MG)
    per_variant_MG = np.stack([normalise(row_G) for row_G in rewards_MG])
    by_grouping = {
        "joint": joint_MG,
        "per_variant": per_variant_MG,
        "hierarchical": joint_MG + per_variant_MG,
        "share": share_advantages(rewards_MG, epsilon=epsilon),
    }
    if grouping not in by_grouping:
        raise unknown_name("grouping", grouping, by_grouping)
    advantages_MG = by_grouping[grouping]
    return advantages_MG, group_measures(rewards_MG, advantages_MG, std_correction=std_correction)


def group_measures(
    rewards_MG: FloatArray, advantages_MG: FloatArray, *, std_correction: int = 1
) -> dict[str, float]:
    """`reward_std`, `zero_std` (0 or 1), `between_variant_share`, `advantage_abs_max` of a group.

    The first three are always of the joint pool, so that groupings can be compared.
    """
    is_zero, known = is_zero_std(rewards_MG), rewards_MG[np.isfinite(rewards_MG)]
    return {
        "reward_std": 0.0 if is_zero else float(known.std(ddof=std_correction)),
        "zero_std": float(is_zero),
        "between_variant_share": between_variant_share(rewards_MG),
        "advantage_abs_max": float(np.abs(advantages_MG).max()),
    }


def between_variant_share(rewards_MG: FloatArray) -> float:
    """Share of the group's reward variance that lies between variants, in [0, 1].

    sum_i n_i (mean_i - mean)^2 / sum_ij (r_ij - mean)^2; NaN for a zero-std group, which has none.
    """
    if is_zero_std(rewards_MG):
        return float("nan")
    rows = [row[np.isfinite(row)] for row in rewards_MG]
    pool = np.concatenate(rows)
    between = sum(len(row) * (row.mean() - pool.mean()) ** 2 for row in rows if len(row))
    return float(between / ((pool - pool.mean()) ** 2).sum())


# --- a whole step --------------------------------------------------------------------------------


EMA_DECAY = 0.99
LARGEST_EMA_ADVANTAGE = 5.0
"""A group with a larger advantage under the average falls back to its own std (OneThinker)."""


def batch_advantages(rewards: Sequence[FloatArray], *, epsilon: float) -> list[FloatArray]:
    """(r - group mean) / (std of all rewards of the batch + epsilon), ddof 1, for each group.

    TRL's `scale_rewards="batch"`. Groups are [M, G]; a reward that is NaN has advantage 0.
    """
    known = np.concatenate([group[np.isfinite(group)] for group in rewards])
    scale = (float(known.std(ddof=1)) if known.size > 1 else 0.0) + epsilon
    return [_centred(group) / scale for group in rewards]


def ema_advantages(
    rewards: Sequence[FloatArray],
    problem_types: Sequence[str],
    averages: Mapping[str, float],
    *,
    epsilon: float,
) -> tuple[list[FloatArray], dict[str, float]]:
    """(r - group mean) / (average std of the problem type + epsilon), and the averages after it.

    After OneThinker: for each type the std (ddof 0) of the batch's rewards of that type joins an
    exponential average of decay 0.99, which begins with the first one and is used with this batch
    in it. A group with an |A| above 5 is divided by its own std, ddof 0, instead.
    """
    after = dict(averages)
    for name in sorted(set(problem_types)):
        of_type = [g for g, kind in zip(rewards, problem_types, strict=True) if kind == name]
        known = np.concatenate([group[np.isfinite(group)] for group in of_type])
        if known.size:
            now = float(known.std())
            after[name] = EMA_DECAY * after[name] + (1 - EMA_DECAY) * now if name in after else now
    advantages = []
    for group, name in zip(rewards, problem_types, strict=True):
        scaled = _centred(group) / (after.get(name, 0.0) + epsilon)
        if np.abs(scaled).max() > LARGEST_EMA_ADVANTAGE:
            scaled = normalise_pool(group, std_correction=0, epsilon=epsilon)
        advantages.append(scaled)
    return advantages, after


def _centred(rewards: FloatArray) -> FloatArray:
    return normalise_pool(rewards, std_correction=0, epsilon=0.0, divide_by_std=False)


@dataclass(frozen=True)
class AdvantageRule:
    """How a step's rewards become advantages; the fields are the configuration's."""

    grouping: Grouping = "joint"
    std: StdOver = "group"
    std_correction: int = 1
    epsilon: float = 1e-4
    divide_by_std: bool = True
    """The objective's."""


def step_advantages(
    rewards: Sequence[FloatArray],
    problem_types: Sequence[str],
    averages: Mapping[str, float],
    rule: AdvantageRule,
) -> tuple[list[tuple[FloatArray, dict[str, float]]], dict[str, float]]:
    """Advantages [M, G] and measures of all groups of a step, and the averages after it.

    `averages` are those of `ema_advantages` over the steps before; the other rules pass them on.
    """
    if rule.std == "group":
        one = partial(
            group_advantages,
            grouping=rule.grouping,
            std_correction=rule.std_correction,
            epsilon=rule.epsilon,
            divide_by_std=rule.divide_by_std,
        )
        return [one(group) for group in rewards], dict(averages)
    if rule.std == "batch":
        advantages, after = batch_advantages(rewards, epsilon=rule.epsilon), dict(averages)
    else:
        advantages, after = ema_advantages(rewards, problem_types, averages, epsilon=rule.epsilon)
    measured = [
        (scaled, group_measures(group, scaled, std_correction=rule.std_correction))
        for group, scaled in zip(rewards, advantages, strict=True)
    ]
    return measured, after
