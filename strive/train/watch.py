"""Notices a run that does not learn, from what its steps say, and tells once what to look at."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from strive.configs.schema import TrainConfig

NUM_STEPS = 20
"""Over so many last steps something must hold before it is said; at the end of a shorter run, over
all of its steps."""
NUM_FIRST_STEPS = 5
"""A prompt that the policy does not know shows sooner."""
# What follows from a cause by itself, and need not be said after it.
_FOLLOWS = {
    "unparsed": ("wrong", "zero-std"),
    "no reward": ("wrong", "zero-std"),
    "cut": ("unparsed", "wrong", "zero-std"),
}


class LearningWatch:
    """Takes each step's metrics and yields a line for every cause that is seen for the first time.

    What it looks for: completions without a reward, groups without a signal, accuracy that is
    always 0, completions that are all cut, answers that are never of the form asked for.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._last: deque[Mapping[str, float]] = deque(maxlen=NUM_STEPS)
        self._said: set[str] = set()

    def see(self, metrics: Mapping[str, float], *, is_last: bool) -> Iterator[str]:
        """Take a step; `is_last` of the whole run."""
        self._last.append(metrics)
        for cause, num_steps, holds in (
            ("no reward", NUM_STEPS, lambda step: math.isnan(step["reward/mean"])),
            ("cut", NUM_STEPS, lambda step: step["completion/truncated_fraction"] == 1),
            ("unparsed", NUM_FIRST_STEPS, self._is_unparsed),
            ("wrong", NUM_STEPS, lambda step: step.get("reward/accuracy") == 0),
            ("zero-std", NUM_STEPS, lambda step: step["group/zero_std_fraction"] == 1),
        ):
            if cause not in self._said and self._held(num_steps, holds, is_last):
                self._said |= {cause, *_FOLLOWS.get(cause, ())}
                yield self._text(cause, min(num_steps, len(self._last)))

    def _held(
        self, num_steps: int, holds: Callable[[Mapping[str, float]], bool], is_last: bool
    ) -> bool:
        steps = list(self._last)[-num_steps:]
        return (len(steps) == num_steps or is_last) and all(map(holds, steps))

    @staticmethod
    def _is_unparsed(step: Mapping[str, float]) -> bool:
        # Where accuracy is no reward, nobody asked for that form.
        return step.get("reward/accuracy") == 0 and step["completion/parsed_fraction"] == 0

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
