"""What the first step must show of a run that is right, and a warning where it does not.

Before any weight has moved, rollout, policy and reference are one model, so that their log-probs
agree as far as rounding lets them. A wrong position, kernel, sampler or reference shows here.
"""

from collections.abc import Iterator, Mapping

MISMATCH_BOUNDS = {"float32": 1e-3, "bfloat16": 1e-1}
"""Largest mean of `policy/rollout_mismatch` that rounding explains, with room. In bfloat16 it was
below 2e-3 on the lab's models; 0.02 to 0.04 on 8 layers of random weights, where two right ways to
compute the same log-probs are as far apart; 0.17 on 28 such layers, which make the most of
rounding. In float32 all that ran were below 1e-5."""
KL_BOUNDS = {"cpu": 0.0, "cuda": 1e-6}
"""Largest KL of the first update. On a GPU policy and reference may run other kernels: one keeps
what a gradient needs."""


def first_step_warnings(
    metrics: Mapping[str, float],
    *,
    first_kl: float,
    is_resumed: bool,
    dtype: str,
    device_type: str,
) -> Iterator[str]:
    """Yield a line for each figure of a call's first step that should not be.

    `first_kl` is the KL term of the step's first update; after a resume it may be anything.
    """
    mismatch, bound = metrics["policy/rollout_mismatch"], MISMATCH_BOUNDS[dtype]
    # A comparison that NaN fails as well.
    if not mismatch <= bound:
        yield (
            f"policy/rollout_mismatch is {mismatch:.2g} in the first step, above {bound:g}: the "
            f"log-probs that completions were drawn with are not the policy's in {dtype}; likely "
            "causes: a sampler with other weights, positions or precision, or a kernel that is "
            "wrong here (compare --set decode=dynamic, --set attention=sdpa, --set logprobs=plain)"
        )
    bound = KL_BOUNDS.get(device_type, max(KL_BOUNDS.values()))
    if not is_resumed and not first_kl <= bound:
        yield (
            f"the KL term is {first_kl:.2g} before the first update, above {bound:g}: the "
            "reference does not compute what the policy does; likely causes: dropout in the "
            "model's config.json, or a kernel that gives other values with a gradient (compare "
            "--set attention=sdpa)"
        )
