"""One training step, in the order of the paper's algorithm (Sec. 3.2).

variants (drawn and read ahead, `data.py`) -> rollouts -> rewards -> joint advantages (Eq. 3)
-> log-probs -> loss (Eq. 1) -> optimiser step
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strive.answers import extract_answer_or_text
from strive.configs.schema import TrainConfig
from strive.errors import NonFiniteError
from strive.models.family import VisionFeatures
from strive.models.generate import Sampler
from strive.models.inputs import PromptInputs
from strive.models.loading import Policy
from strive.models.logprobs import LogProbs, completion_logprobs_batch
from strive.models.lora import adapters_off
from strive.models.vision import encode_videos
from strive.train.advantages import group_advantages
from strive.train.engine import Engine
from strive.train.loss import Denominators, policy_loss
from strive.train.metrics import GroupOutcome, summarise
from strive.train.nonfinite import BatchGroup, with_batch
from strive.train.processes import Processes
from strive.train.rewards import RewardFunction, compute_rewards, record_columns
from strive.train.rollout import PreparedQuestion, RolloutGroup, roll_out
from strive.train.schedule import learning_rate_at
from strive.train.timing import Stopwatch


@dataclass(frozen=True)
class Trainer:
    """What every step needs and no step changes (but the weights)."""

    config: TrainConfig
    policy: Policy
    reference: Any
    """Model of the KL term: a frozen copy, or the policy's own, used with its adapters off; None
    when beta is 0."""
    engine: Engine
    processes: Processes
    reward_functions: dict[str, RewardFunction]
    sampler: Sampler
    """Writes the completions of a rollout with the weights as they are."""


@dataclass(frozen=True)
class StepResult:
    """Metrics of a step and the outcome of all its groups, the same on every process."""

    metrics: dict[str, float]
    outcomes: tuple[GroupOutcome, ...]


@dataclass
class _MicroBatch:
    """Some groups whose log-probs are computed together, flattened to N completions."""

    groups: list[RolloutGroup]
    advantages_N: Tensor
    policy_logprobs_NL: Tensor | None = None
    """Of the last update, without a graph."""
    old_logprobs_NL: Tensor | None = None
    reference_logprobs_NL: Tensor | None = None

    def logprobs_by_group(self) -> Iterator[dict[str, Tensor]]:
        """The log-probs [M, G, L] of each group in turn, by name, as far as they were computed."""
        computed = {
            "policy": self.policy_logprobs_NL,
            "old": self.old_logprobs_NL,
            "reference": self.reference_logprobs_NL,
        }
        start = 0
        for group in self.groups:
            rows = slice(start, start + group.lengths_MG.numel())
            start = rows.stop
            yield {
                name: values_NL[rows].unflatten(0, tuple(group.lengths_MG.shape))
                for name, values_NL in computed.items()
                if values_NL is not None
            }

    @property
    def has_signal(self) -> bool:
        return bool((self.advantages_N != 0).any())

    @property
    def name(self) -> str:
        ids = [group.prepared.question.record.question_id for group in self.groups]
        return f"question {', '.join(ids)}"


def train_step(
    trainer: Trainer,
    prepared: Sequence[PreparedQuestion],
    step: int,
    watch: Stopwatch,
    *,
    nonfinite_folder: Path | None = None,
) -> StepResult:
    """Run one step on this process's questions; all processes call it together.

    Raises:
        NonFiniteError: before the optimiser step that a loss or gradient would have spoilt; the
            batch is then in `nonfinite_folder`.
    """
    config = trainer.config
    with watch.measure("time/rollout"), trainer.engine.gathered():
        groups = roll_out(
            trainer.policy,
            prepared,
            sampler=trainer.sampler,
            num_generations=config.num_generations,
            max_new_tokens=config.max_new_tokens,
            sampling_temperature=config.sampling_temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            seed=config.seed,
            step=step,
        )
    outcomes = [_judge(trainer, group) for group in groups]
    size = config.questions_per_micro_batch
    micro_batches = [
        _MicroBatch(list(groups[i : i + size]), _advantages(outcomes[i : i + size]))
        for i in range(0, len(groups), size)
    ]
    try:
        losses = _update(trainer, micro_batches, _denominators(trainer, outcomes), step, watch)
    except NonFiniteError as error:
        if nonfinite_folder is None:
            raise
        batch = _batch_groups(micro_batches, outcomes)
        rank = trainer.processes.rank
        raise with_batch(error, nonfinite_folder, batch, step=step + 1, rank=rank) from error
    everyone = tuple(o for part in trainer.processes.gather(outcomes) for o in part)
    return StepResult({**summarise(everyone), **losses}, everyone)


def _judge(trainer: Trainer, group: RolloutGroup) -> GroupOutcome:
    """Rewards of a group's completions and their advantages over the group (Eq. 3)."""
    config = trainer.config
    question = group.prepared.question
    shape = tuple(group.lengths_MG.shape)
    completions = [text for row in group.texts for text in row]
    totals_N, by_name = compute_rewards(
        trainer.reward_functions,
        config.rewards,
        prompts=[group.prepared.text] * len(completions),
        completions=completions,
        columns={
            **record_columns(question.record, len(completions), grading=config.grading),
            "completion_ids": _token_lists(group),
        },
    )
    rewards_MG = totals_N.reshape(shape)
    advantages_MG, measures = group_advantages(
        rewards_MG,
        grouping=config.grouping,
        std_correction=config.std_correction,
        epsilon=config.advantage_epsilon,
        divide_by_std=config.objective != "dr_grpo",
    )
    return GroupOutcome(
        question_id=question.record.question_id,
        frame_index_MK=question.frame_index_MK,
        frame_overlap=question.frame_overlap,
        effective_frames=question.effective_frames,
        evidence_seen_M=question.evidence_seen_M,
        texts=group.texts,
        answers=tuple(tuple(extract_answer_or_text(text) for text in row) for row in group.texts),
        lengths_MG=group.lengths_MG.numpy(),
        truncated_MG=group.truncated_MG.numpy(),
        rewards_MG=rewards_MG,
        rewards_by_name={name: values.reshape(shape) for name, values in by_name.items()},
        advantages_MG=advantages_MG,
        measures=measures,
    )


def _batch_groups(
    micro_batches: Sequence[_MicroBatch], outcomes: Sequence[GroupOutcome]
) -> list[BatchGroup]:
    """All groups of a step with what has been computed of them."""
    pairs = [
        pair
        for batch in micro_batches
        for pair in zip(batch.groups, batch.logprobs_by_group(), strict=True)
    ]
    return [
        BatchGroup(group, outcome, logprobs)
        for (group, logprobs), outcome in zip(pairs, outcomes, strict=True)
    ]


def _token_lists(group: RolloutGroup) -> list[list[int]]:
    """Token ids of each of the M x G completions, the end token included."""
    rows = group.tokens_MGL.flatten(0, 1).tolist()
    return [row[:n] for row, n in zip(rows, group.lengths_MG.flatten().tolist(), strict=True)]


def _update(
    trainer: Trainer,
    micro_batches: Sequence[_MicroBatch],
    denominators: Denominators,
    step: int,
    watch: Stopwatch,
) -> dict[str, float]:
    """Optimiser steps on one rollout; returns the loss and optimiser metrics."""
    config, processes = trainer.config, trainer.processes
    totals: dict[str, float] = {}
    grad_norms = []
    for update in range(config.updates_per_rollout):
        for number, micro_batch in enumerate(micro_batches):
            is_last = number == len(micro_batches) - 1
            for name, value in _learn(trainer, micro_batch, denominators, is_last, watch).items():
                totals[name] = totals.get(name, 0.0) + value.item()
        learning_rate = learning_rate_at(
            step * config.updates_per_rollout + update,
            num_updates=config.steps * config.updates_per_rollout,
            peak=config.learning_rate,
            warmup_steps=config.warmup_steps,
            schedule=config.schedule,
        )
        with watch.measure("time/backward"):
            grad_norms.append(trainer.engine.step(learning_rate))
    totals = processes.sum(totals)
    policy, kl = (totals[name] / config.updates_per_rollout for name in ("policy", "kl"))
    tokens = max(totals["tokens"], 1)
    return {
        "loss/total": policy + config.beta * kl,
        "loss/policy": policy,
        "loss/kl": kl,
        "policy/clip_fraction": totals["clipped_tokens"] / tokens,
        "policy/entropy": totals["entropy"] / tokens,
        "optim/grad_norm": float(np.mean(grad_norms)),
        "optim/learning_rate": learning_rate,
    }


def _denominators(trainer: Trainer, outcomes: Sequence[GroupOutcome]) -> Denominators:
    """Counts over all processes, zero-std groups included."""
    counts = trainer.processes.sum(
        {
            "completions": float(sum(outcome.lengths_MG.size for outcome in outcomes)),
            "tokens": float(sum(outcome.lengths_MG.sum() for outcome in outcomes)),
        }
    )
    return Denominators(
        num_completions=int(counts["completions"]),
        num_tokens=int(counts["tokens"]),
        max_new_tokens=trainer.config.max_new_tokens,
    )


def _advantages(outcomes: Sequence[GroupOutcome]) -> Tensor:
    return torch.from_numpy(np.concatenate([o.advantages_MG.ravel() for o in outcomes]))


def _learn(
    trainer: Trainer,
    micro_batch: _MicroBatch,
    denominators: Denominators,
    is_last: bool,
    watch: Stopwatch,
) -> dict[str, Tensor]:
    """Log-probs, loss and backward pass of one micro-batch; returns sums for the metrics."""
    config = trainer.config
    metrics: dict[str, Tensor] = {}

    def compute() -> Tensor:
        loss, sums = _loss(trainer, micro_batch, denominators)
        metrics.update(sums)
        return loss

    # Without signal and without a KL term the gradient is zero: the forward alone feeds metrics.
    learns = micro_batch.has_signal or config.beta > 0
    needs_backward = learns or is_last or not trainer.engine.may_skip_backward
    with watch.measure("time/logprob"), torch.set_grad_enabled(needs_backward):
        loss = trainer.engine.forward(compute)
    if needs_backward:
        with watch.measure("time/backward"):
            trainer.engine.backward(loss, is_last=is_last, name=micro_batch.name)
    return metrics


def _loss(
    trainer: Trainer, micro_batch: _MicroBatch, denominators: Denominators
) -> tuple[Tensor, dict[str, Tensor]]:
    config = trainer.config
    prompts = [prompt for group in micro_batch.groups for prompt in group.prepared.prompts]
    features = [video for group in micro_batch.groups for video in group.features]
    if config.beta > 0 and micro_batch.reference_logprobs_NL is None:
        micro_batch.reference_logprobs_NL = _reference_logprobs(
            trainer, micro_batch, prompts, features
        )
    if config.trainable == "all":
        features = encode_videos(trainer.policy, prompts, with_graph=True, in_one_call=True)
    policy = _logprobs(trainer, micro_batch, features)
    logprobs_NL = policy.logprobs.flatten(0, 1)
    micro_batch.policy_logprobs_NL = logprobs_NL.detach()
    # With one update the policy of the rollout is the policy that learns: the ratio is exactly 1.
    if micro_batch.old_logprobs_NL is None:
        micro_batch.old_logprobs_NL = micro_batch.policy_logprobs_NL
    loss, metrics = policy_loss(
        logprobs_NL,
        old_logprobs_NL=micro_batch.old_logprobs_NL,
        reference_logprobs_NL=micro_batch.reference_logprobs_NL,
        advantages_N=micro_batch.advantages_N.to(logprobs_NL.device),
        mask_NL=policy.mask.flatten(0, 1),
        denominators=denominators,
        objective=config.objective,
        ratio=config.ratio,
        epsilon=config.epsilon,
        epsilon_high=config.epsilon_high,
        beta=config.beta,
        correct_kl_bias=config.correct_kl_bias,
    )
    return loss, metrics | {"entropy": (policy.entropy * policy.mask).sum()}


def _reference_logprobs(
    trainer: Trainer,
    micro_batch: _MicroBatch,
    prompts: Sequence[PromptInputs],
    features: Sequence[VisionFeatures],
) -> Tensor:
    """Log-probs [N, L] under the reference, which shares `features` unless the tower trains."""
    model = trainer.reference

    def compute() -> Tensor:
        seen = features
        if trainer.config.trainable == "all":
            # In one call, here and for the policy: at ZeRO-3 every process must call equally often.
            seen = encode_videos(replace(trainer.policy, model=model), prompts, in_one_call=True)
        return _logprobs(trainer, micro_batch, seen, model=model).logprobs.flatten(0, 1)

    with torch.no_grad(), adapters_off(model):
        return trainer.engine.reference_forward(compute)


def _logprobs(
    trainer: Trainer,
    micro_batch: _MicroBatch,
    features: Sequence[VisionFeatures],
    model: Any = None,
) -> LogProbs:
    return completion_logprobs_batch(
        trainer.policy,
        [prompt for group in micro_batch.groups for prompt in group.prepared.prompts],
        features,
        torch.cat([group.tokens_MGL for group in micro_batch.groups]),
        torch.cat([group.lengths_MG for group in micro_batch.groups]),
        sampling_temperature=trainer.config.sampling_temperature,
        mode=trainer.config.logprobs,
        attention=trainer.config.attention,
        with_entropy=model is None,
        model=model,
    )
