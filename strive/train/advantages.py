"""Advantages of a group: Eq. 3 of arXiv:2604.01824 and its alternatives. Pure NumPy.

Axes: M variants, G completions of each. A group is the M x G pool of one question. What the paper
leaves open and is chosen here: ddof 1 and epsilon 1e-4 (as TRL); a pool whose rewards are all equal
gets advantage 0; a reward that no function could give (NaN) stays out of the mean and the std, and
its advantage is 0.

With the defaults, `joint` equals TRL 1.16's `scale_rewards="group"` with `num_generations` = M x G,
`per_variant` the same with `num_generations` = G; without `divide_by_std` (Dr.GRPO) both equal its
`scale_rewards="none"`.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from strive.choices import Grouping
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


def group_advantages(
    rewards_MG: FloatArray,
    *,
    grouping: Grouping = "joint",
    std_correction: int = 1,
    epsilon: float = 1e-4,
    divide_by_std: bool = True,
) -> tuple[FloatArray, dict[str, float]]:
    """Advantages of one question's completions, and the group's measures.

    `joint` pools all M x G rewards (Eq. 3), `per_variant` pools the G of each variant (Eq. 2, GRPO
    per variant), `hierarchical` is the sum of both (after R1-ShareVL).

    Metrics (always over the joint pool, so that groupings can be compared): `reward_std`,
    `zero_std` (0 or 1), `between_variant_share`, `advantage_abs_max`.
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
    }
    if grouping not in by_grouping:
        raise unknown_name("grouping", grouping, by_grouping)
    advantages_MG = by_grouping[grouping]
    is_zero, known = is_zero_std(rewards_MG), rewards_MG[np.isfinite(rewards_MG)]
    metrics = {
        "reward_std": 0.0 if is_zero else float(known.std(ddof=std_correction)),
        "zero_std": float(is_zero),
        "between_variant_share": between_variant_share(rewards_MG),
        "advantage_abs_max": float(np.abs(advantages_MG).max()),
    }
    return advantages_MG, metrics


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
