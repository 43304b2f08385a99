"""Our training step for `bench.step` and `bench.growth`: `train_step` through the real engine."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bench.step_model import (
    FRAME_SIZE,
    PLAIN_TOKENS,
    PROMPT_TEMPLATE,
    Setup,
    make_question,
    vowels,
)
from strive.configs.schema import TrainConfig
from strive.groups import QuestionVariants
from strive.models.inputs import PromptInputs
from strive.models.loading import Policy, load_policy
from strive.models.logprobs import completion_logprobs_batch
from strive.models.vision import count_encodes, encode_videos
from strive.train.loop import build_trainer
from strive.train.processes import start_processes
from strive.train.rollout import prepare_variants
from strive.train.step import train_step
from strive.train.timing import Stopwatch

Mode = Literal["packed", "plain"]


class Ours:
    """Policy, reference and optimiser of one run, and its steps."""

    def __init__(
        self, config: TrainConfig, policy: Policy, frame_size: tuple[int, int] = FRAME_SIZE
    ) -> None:
        # No token ends a completion, so that all of them are of full length.
        self.policy = replace(policy, eos_ids=(policy.config.text_config.vocab_size,))
        self.trainer = build_trainer(config, self.policy, start_processes(), {"vowels": vowels})
        self.frame_size = frame_size

    @classmethod
    def of(cls, setup: Setup) -> "Ours":
        """Open the folder of a contender's set-up."""
        config = TrainConfig(
            model=setup.folder,
            variants="deterministic",
            num_variants=setup.num_variants,
            num_generations=setup.num_generations,
            questions_per_step=1,
            prompt_template=PROMPT_TEMPLATE,
            sampling_temperature=setup.sampling_temperature,
            top_p=setup.top_p,
            beta=setup.beta,
            learning_rate=setup.learning_rate,
            trainable=setup.trainable,  # type: ignore[arg-type]
            rewards={"vowels": 1.0},
        )
        return cls(config, load_policy(setup.folder))

    @property
    def num_parameters(self) -> dict[str, int]:
        """Numbers of the policy's parameters: all, in the tower, and those that train."""
        model = self.policy.model
        return {
            "all": _count(model.parameters()),
            "tower": _count(model.model.visual.parameters()),
            "trained": _count(p for p in model.parameters() if p.requires_grad),
        }

    def step(
        self, number: int, num_tokens: int, *, variants: int | None = None, generations: int = 0
    ) -> dict[str, Any]:
        """Make one whole step from frames in memory; returns seconds by part and counts."""
        config = self.trainer.config
        changes = {
            "max_new_tokens": num_tokens,
            "num_variants": variants or config.num_variants,
            "num_generations": generations or config.num_generations,
        }
        trainer = replace(self.trainer, config=config.model_copy(update=changes))
        questions = self._make_questions(number, changes["num_variants"])
        watch = Stopwatch(self.policy.device)
        with ExitStack() as stack:
            models = [self.policy.model]
            if trainer.reference not in (None, self.policy.model):
                models.append(trainer.reference)
            counts = [stack.enter_context(count_encodes(model)) for model in models]
            started = time.perf_counter()
            with watch.measure("inputs"):
                prepared = prepare_variants(self.policy, questions, trainer.config)
            result = train_step(trainer, prepared, number, watch)
            whole = time.perf_counter() - started
        lengths = [outcome.lengths_MG.tolist() for outcome in result.outcomes]
        if not (np.array(lengths) == num_tokens).all():
            raise SystemExit(f"completions of {lengths} tokens, not {num_tokens}")
        seconds = watch.seconds
        return {
            "seconds": {
                "inputs": seconds["inputs"],
                "rollout": seconds["time/rollout"],
                "logprob_backward": seconds["time/logprob"] + seconds["time/backward"],
                "step": whole,
            },
            "encodes": sum(count.videos for count in counts),
            "prompt_tokens": len(prepared[0].prompt.input_ids_P),
            "entropy": result.metrics["policy/entropy"],
            "rollout_mismatch": result.metrics["policy/rollout_mismatch"],
            "rollout_mismatch_max": result.metrics["policy/rollout_mismatch_max"],
            "first_kl": result.first_kl,
        }

    def _make_questions(self, number: int, num_variants: int) -> list[QuestionVariants]:
        count = self.trainer.config.questions_per_step
        return [
            make_question(number * count + i, num_variants, self.frame_size) for i in range(count)
        ]

    def logprobs(self, number: int, num_tokens: int) -> dict[str, float]:
        """Time the log-prob pass, forward and backward, over given completions, both ways.

        `packed` and `plain` get the same features where the tower is frozen; where it trains, both
        encode each variant once, with its graph.
        """
        config = self.trainer.config
        [question, *_] = self._make_questions(number, config.num_variants)
        prepared = prepare_variants(self.policy, [question], config)
        shape = (config.num_variants, config.num_generations, num_tokens)
        tokens = torch.from_numpy(np.random.default_rng(number).integers(0, PLAIN_TOKENS, shape))
        prompts = [variant.prompt for variant in prepared]
        return {mode: self._time_pass(prompts, tokens, mode) for mode in ("packed", "plain")}

    def _time_pass(self, prompts: list[PromptInputs], tokens: Tensor, mode: Mode) -> float:
        with_graph = self.trainer.config.trainable == "all"
        shared = [] if with_graph else encode_videos(self.policy, prompts)
        lengths = torch.full(tokens.shape[:2], tokens.shape[2])

        def run() -> None:
            features = shared or encode_videos(self.policy, prompts, with_graph=True)
            found = completion_logprobs_batch(
                self.policy, prompts, features, tokens, lengths, mode=mode
            )
            found.logprobs.sum().backward()

        return timed(run, self.policy.model)


def timed(run: Callable[[], None], model: Any) -> float:
    """Seconds of one call; the gradients that it leaves are dropped."""
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    model.zero_grad(set_to_none=True)
    return seconds


def _count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)
