"""Warnings of a run that is not right: in its first step, and of one that does not learn.

Before any weight has moved, rollout, policy and reference are one model, so that their log-probs
agree as far as rounding lets them. A wrong position, kernel, sampler or reference shows there.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping

from strive.configs.schema import TrainConfig

# Over so many last steps something must hold before it is said; at the end of a shorter run, over
# all of its steps.
NUM_STEPS = 20
# A prompt that the policy does not know shows sooner.
NUM_FIRST_STEPS = 5
# What follows from a cause by itself, and need not be said after it.
_FOLLOWS = {
    "unparsed": ("wrong", "zero-std"),
    "no reward": ("wrong", "zero-std"),
    "cut": ("unparsed", "wrong", "zero-std"),
}
# Largest mean of `policy/rollout_mismatch` that rounding explains, with room. In bfloat16 it was
# below 2e-3 on the lab's models; 0.02 to 0.04 on 8 layers of random weights, where two right ways
# to compute the same log-probs are as far apart; 0.17 on 28 such layers, which make the most of
# rounding. In float32 all that ran were below 1e-5.
MISMATCH_BOUNDS = {"float32": 1e-3, "bfloat16": 1e-1}
# Largest KL of the first update. On a GPU policy and reference may run other kernels: one keeps
# what a gradient needs.
KL_BOUNDS = {"cpu": 0.0, "cuda": 1e-6}


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


class LearningWatch:
    """Takes each step's metrics and yields a line for every cause that is seen for the first time.

    It looks for completions without a reward, groups without a signal, accuracy that is
    always 0, completions that are all cut, answers that are never of the form asked for.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._last: deque[dict[str, bool]] = deque(maxlen=NUM_STEPS)
        self._said: set[str] = set()

    def see(self, metrics: Mapping[str, float], *, is_last: bool) -> Iterator[str]:
        """Take a step; `is_last` of the whole run."""
        # Absent where accuracy is no reward: then nobody asked for an answer of that form either.
        is_wrong = metrics.get("reward/accuracy") == 0
        self._last.append(
            {
                "no reward": math.isnan(metrics["reward/mean"]),
                "cut": metrics["completion/truncated_fraction"] == 1,
                "unparsed": is_wrong and metrics["completion/parsed_fraction"] == 0,
                "wrong": is_wrong,
                "zero-std": metrics["group/zero_std_fraction"] == 1,
            }
        )
        for cause in self._last[-1]:
            num_steps = NUM_FIRST_STEPS if cause == "unparsed" else NUM_STEPS
            steps = list(self._last)[-num_steps:]
            is_enough = len(steps) == num_steps or is_last
            if cause not in self._said and is_enough and all(step[cause] for step in steps):
                self._said |= {cause, *_FOLLOWS.get(cause, ())}
                yield self._text(cause, len(steps))

    def _text(self, cause: str, num_steps: int) -> str:
        config = self._config
        over = f"over the last {num_steps} step{'s' if num_steps > 1 else ''}"
        look = "look at some texts (strive-cli report, or completions.parquet in the run folder)"
        return {
            "unparsed": (
                f"no completion {over} holds an answer that can be read: the policy may not know "
                f"prompt_template={config.prompt_template} (the lab's models were taught 'short'); "
                f"{look}"
            ),
            "no reward": (
                f"no completion {over} had a reward: every reward function gave None, so nothing "
                f"is learned; look at what {', '.join(config.rewards)} return"
            ),
            "cut": (
                f"every completion {over} was cut at max_new_tokens={config.max_new_tokens}: none "
                "came to its end; raise max_new_tokens, or look whether the policy knows "
                f"prompt_template={config.prompt_template}"
            ),
            "wrong": (
                f"no completion {over} was right (accuracy 0): {look} beside the solutions, and at "
                f"grading={config.grading}"
            ),
            "zero-std": (
                f"no group {over} had a signal: the rewards within each were all equal, so nothing "
                "is learned from them; questions may be too hard or too easy, or completions too "
                "alike (sampling_temperature, num_generations)"
            ),
        }[cause]
