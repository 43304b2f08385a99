"""Rollouts: the policy sees every variant of every question once and writes G completions of each.

One vision encode and one prefill per variant; all of a process's completions decode together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from strive.answers import build_question
from strive.configs.schema import TrainConfig
from strive.groups import QuestionVariants
from strive.models.family import VisionFeatures
from strive.models.inputs import PromptInputs, prepare_prompts
from strive.models.loading import Policy
from strive.models.sampling import Sampler, Sampling
from strive.models.vision import encode_videos
from strive.seeding import derive_rng


@dataclass(frozen=True)
class PreparedVariant:
    """One variant of a question as the policy reads it."""

    question: QuestionVariants
    variant: int
    """Its number in the question, from 0 to M - 1."""
    text: str
    """The question's part of the prompt."""
    prompt: PromptInputs


@dataclass(frozen=True)
class VariantRollout:
    """The G completions of one variant. L is shared by all variants of one call."""

    prepared: PreparedVariant
    features: VisionFeatures
    """From before the mergers, without a graph."""
    tokens_GL: Tensor
    lengths_G: Tensor
    truncated_G: Tensor
    logprobs_GL: Tensor
    """What the sampler drew each token with, at the sampling temperature; 0 past a length."""
    texts: tuple[str, ...]

    @property
    def token_lists(self) -> list[list[int]]:
        """Token ids of each of the G completions, the end token included."""
        rows = zip(self.tokens_GL.tolist(), self.lengths_G.tolist(), strict=True)
        return [row[:length] for row, length in rows]


@dataclass
class MicroBatch:
    """Variants whose log-probs are computed together, and what has been computed of them so far.

    Their B x G completions are the N rows of all that is `_NL`.
    """

    rollouts: Sequence[VariantRollout]
    advantages_N: Tensor
    policy_logprobs_NL: Tensor | None = None
    """Of the last update, without a graph."""
    old_logprobs_NL: Tensor | None = None
    reference_logprobs_NL: Tensor | None = None
    entropy: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Sum over all tokens, under the policy of the last update."""

    @property
    def prompts(self) -> list[PromptInputs]:
        return [rollout.prepared.prompt for rollout in self.rollouts]

    @property
    def tokens_BGL(self) -> Tensor:
        return torch.stack([rollout.tokens_GL for rollout in self.rollouts])

    @property
    def lengths_BG(self) -> Tensor:
        return torch.stack([rollout.lengths_G for rollout in self.rollouts])

    @property
    def mask_NL(self) -> Tensor:
        """True where there is a token."""
        tokens_BGL = self.tokens_BGL
        return (torch.arange(tokens_BGL.shape[2]) < self.lengths_BG[..., None]).flatten(0, 1)

    @property
    def mismatch_NL(self) -> Tensor:
        """|rollout log-prob - policy log-prob| of each token; 0 past a length."""
        assert self.policy_logprobs_NL is not None
        rollout_NL = torch.cat([rollout.logprobs_GL for rollout in self.rollouts])
        return (rollout_NL - self.policy_logprobs_NL.cpu()).abs()

    @property
    def has_signal(self) -> bool:
        return bool((self.advantages_N != 0).any())

    @property
    def name(self) -> str:
        """The questions, as errors name them."""
        ids = dict.fromkeys(r.prepared.question.record.question_id for r in self.rollouts)
        return f"question {', '.join(ids)}"


def prepare_variants(
    policy: Policy, questions: Sequence[QuestionVariants], config: TrainConfig
) -> list[PreparedVariant]:
    """Turn the variants of questions, whose frames were read, into model inputs, in their order.

    These are prompts, patches and positions, on the CPU.
    """
    owners = [(question, variant) for question in questions for variant in question.variants]
    texts = [build_question(question.record, config.prompt_template) for question, _ in owners]
    videos = [video for question in questions for video in question.videos]
    prompts = prepare_prompts(policy, texts, videos, max_pixels=config.max_pixels)
    return [
        PreparedVariant(question, variant, text, prompt)
        for (question, variant), text, prompt in zip(owners, texts, prompts, strict=True)
    ]


def sampling_of(config: TrainConfig) -> Sampling:
    """How a run's completions are drawn."""
    return Sampling(
        num_generations=config.num_generations,
        max_new_tokens=config.max_new_tokens,
        sampling_temperature=config.sampling_temperature,
        top_p=config.top_p,
        top_k=config.top_k,
    )


def roll_out(
    policy: Policy,
    prepared: Sequence[PreparedVariant],
    *,
    sampler: Sampler,
    sampling: Sampling,
    seed: int,
    step: int,
    features: Sequence[VisionFeatures] | None = None,
) -> list[VariantRollout]:
    """Sample G completions of every variant; `sampler` writes them.

    Without `features` the videos are encoded here.

    Completion j of variant i depends on (seed, step, question, i, j) and the weights alone.
    """
    prompts = [each.prompt for each in prepared]
    keys = [
        (seed, "text", step, each.question.record.question_id, each.variant) for each in prepared
    ]
    uniforms_RGL = np.stack(
        [
            [
                derive_rng(*key, generation).random(sampling.max_new_tokens)
                for generation in range(sampling.num_generations)
            ]
            for key in keys
        ]
    )
    if features is None:
        features = encode_videos(policy, prompts)
    completions = sampler(prompts, features, sampling=sampling, uniforms_RGL=uniforms_RGL)
    return [
        VariantRollout(
            prepared=each,
            features=features[row],
            tokens_GL=completions.tokens_RGL[row],
            lengths_G=completions.lengths_RG[row],
            truncated_G=completions.truncated_RG[row],
            logprobs_GL=completions.logprobs_RGL[row],
            texts=tuple(completions.texts[row]),
        )
        for row, each in enumerate(prepared)
    ]
