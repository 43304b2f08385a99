"""Rollouts: the policy sees every variant of every question once and writes G completions of each.

One vision encode and one prefill per variant; all of a process's completions decode together.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from strive.answers import build_question
from strive.choices import UpdateView
from strive.configs.schema import TrainConfig
from strive.groups import QuestionVariants
from strive.models.family import VisionFeatures
from strive.models.inputs import PromptInputs, prepare_prompts
from strive.models.loading import Policy
from strive.models.sampling import Sampler, Sampling
from strive.models.vision import encode_videos
from strive.seeding import derive_rng

CONTRAST = -1
"""The variant's number of a contrast."""


@dataclass(frozen=True)
class PreparedVariant:
    """One variant of a question as the policy reads it."""

    question: QuestionVariants
    variant: int
    """Its number in the question, from 0 to M - 1."""
    text: str
    """The question's part of the prompt."""
    prompt: PromptInputs
    place: int
    """The question's number in the step."""
    contrast: PromptInputs | None = None
    """The prompt about the contrast; of the first variant alone."""


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

    Their completions, G of each variant, are the N rows of all that is `_NL`. The model reads them
    in B rows, one for each prompt that log-probs are taken under.
    """

    rollouts: Sequence[VariantRollout]
    advantages_N: Tensor
    update_view: UpdateView = "own"
    policy_logprobs_NL: Tensor | None = None
    """Of the last update, without a graph."""
    old_logprobs_NL: Tensor | None = None
    reference_logprobs_NL: Tensor | None = None
    entropy_NL: Tensor | None = None
    """Entropy of each token's distribution under the policy of the last update."""
    num_passes: int = 0
    """Forward passes that its log-probs took, the reference's included."""

    @property
    def rows(self) -> list[list[VariantRollout]]:
        """Variants by the prompt that their log-probs are taken under, which is the first's."""
        if self.update_view == "own":
            return [[rollout] for rollout in self.rollouts]
        of_question = itertools.groupby(self.rollouts, key=lambda r: r.prepared.place)
        return [list(group) for _, group in of_question]

    @property
    def prompts(self) -> list[PromptInputs]:
        return [row[0].prepared.prompt for row in self.rows]

    @property
    def features(self) -> list[VisionFeatures]:
        return [row[0].features for row in self.rows]

    @property
    def tokens_BGL(self) -> Tensor:
        return torch.stack([torch.cat([r.tokens_GL for r in row]) for row in self.rows])

    @property
    def lengths_BG(self) -> Tensor:
        return torch.stack([torch.cat([r.lengths_G for r in row]) for row in self.rows])

    def mask_NL(self, *, mask_truncated: bool = False) -> Tensor:
        """True where there is a token; with `mask_truncated` not of a completion that was cut."""
        tokens_BGL = self.tokens_BGL
        mask_NL = (torch.arange(tokens_BGL.shape[2]) < self.lengths_BG[..., None]).flatten(0, 1)
        if not mask_truncated:
            return mask_NL
        return mask_NL & ~torch.cat([r.truncated_G for r in self.rollouts])[:, None]

    @property
    def mismatch_NL(self) -> Tensor:
        """|rollout log-prob - old log-prob| of each token; 0 past a length.

        0 of a completion, too, that was written under another prompt than it is learned under.
        """
        assert self.old_logprobs_NL is not None
        rollout_NL = torch.cat([rollout.logprobs_GL for rollout in self.rollouts])
        return (rollout_NL - self.old_logprobs_NL.cpu()).abs() * self.is_own_N[:, None]

    @property
    def is_own_N(self) -> Tensor:
        """True for completions that are learned under the prompt that they were written under."""
        return torch.cat(
            [torch.full((len(r.lengths_G),), r is row[0]) for row in self.rows for r in row]
        )

    @property
    def has_signal(self) -> bool:
        return bool((self.advantages_N != 0).any())

    @property
    def name(self) -> str:
        """The questions, as errors name them."""
        ids = dict.fromkeys(r.prepared.question.record.question_id for r in self.rollouts)
        return f"question {', '.join(ids)}"


def prepare_variants(
    policy: Policy,
    questions: Sequence[QuestionVariants],
    config: TrainConfig,
    places: Sequence[int] | None = None,
) -> list[PreparedVariant]:
    """Turn the variants of questions, whose frames were read, into model inputs, in their order.

    These are prompts, patches and positions, on the CPU. `places` are the questions' numbers in the
    step; not given: from 0.
    """
    numbers = range(len(questions)) if places is None else places
    owners = [
        (place, question, variant)
        for place, question in zip(numbers, questions, strict=True)
        for variant in question.variants
    ]
    videos = [video for question in questions for video in question.videos]
    # The contrasts behind them all, so that the processor's parts are called once.
    contrasts = {
        place: question.contrast for place, question, _ in owners if question.contrast is not None
    }
    of_place = {place: question for place, question, _ in owners}
    asked = [question for _, question, _ in owners] + [of_place[place] for place in contrasts]
    texts = [build_question(question.record, config.prompt_template) for question in asked]
    prompts = prepare_prompts(
        policy,
        texts,
        [*videos, *contrasts.values()],
        max_pixels=config.max_pixels,
        system_prompt=config.system_prompt,
    )
    contrast_of = dict(zip(contrasts, prompts[len(owners) :], strict=True))
    return [
        PreparedVariant(
            question,
            variant,
            text,
            prompt,
            place,
            contrast_of.get(place) if variant == 0 else None,
        )
        for (place, question, variant), text, prompt in zip(owners, texts, prompts, strict=False)
    ]


def contrasts_of(prepared: Sequence[PreparedVariant]) -> list[PreparedVariant]:
    """The contrasts of some variants, to be rolled out as variants of their own."""
    return [
        replace(each, variant=CONTRAST, prompt=each.contrast, contrast=None)
        for each in prepared
        if each.contrast is not None
    ]


def same_length(rollouts: Sequence[VariantRollout]) -> list[VariantRollout]:
    """Pad what several calls wrote to one length L."""
    longest = max(rollout.tokens_GL.shape[1] for rollout in rollouts)
    padded = []
    for rollout in rollouts:
        lack = (0, longest - rollout.tokens_GL.shape[1])
        padded.append(
            replace(
                rollout,
                tokens_GL=nn.functional.pad(rollout.tokens_GL, lack),
                logprobs_GL=nn.functional.pad(rollout.logprobs_GL, lack),
            )
        )
    return padded


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
