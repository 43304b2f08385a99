"""One training step, in the order of the paper's algorithm (Sec. 3.2).

variants (drawn and read ahead, `data.py`) -> rollouts -> rewards -> joint advantages (Eq. 3)
-> log-probs -> loss (Eq. 1) -> optimiser step

What a process works on is variants, and a question's variants may lie on several. Rewards see whole
groups: what was written is gathered, the process of a question's first variant judges it, and its
outcome is gathered again, so that advantages are joint over M x G wherever the variants lie.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strive.answers import extract_answer, extract_answer_or_text, is_parsed
from strive.configs.schema import TrainConfig
from strive.errors import NonFiniteError, RewardError
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
from strive.train.nonfinite import BatchGroup, with_batch, with_completions
from strive.train.processes import Processes
from strive.train.rewards import RewardFunction, compute_rewards, record_columns
from strive.train.rollout import PreparedQuestion, VariantRollout, roll_out, sampling_of
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
    first_kl: float
    """The KL term of the rollout's first update: `loss/kl` where there is one."""


@dataclass(frozen=True)
class _Written:
    """What one variant's G completions say: what rewards see of them, on whichever process."""

    texts: tuple[str, ...]
    token_lists: list[list[int]]
    """The end token included."""
    truncated_G: NDArray[np.bool_]


@dataclass
class _MicroBatch:
    """Some variants whose log-probs are computed together, flattened to N completions."""

    rollouts: Sequence[VariantRollout]
    advantages_N: Tensor
    policy_logprobs_NL: Tensor | None = None
    """Of the last update, without a graph."""
    old_logprobs_NL: Tensor | None = None
    reference_logprobs_NL: Tensor | None = None

    @property
    def prompts(self) -> list[PromptInputs]:
        return [rollout.prompt for rollout in self.rollouts]

    def logprobs_by_variant(self) -> Iterator[dict[str, Tensor]]:
        """The log-probs [G, L] of each variant in turn, by name, as far as they were computed."""
        computed = {
            "policy": self.policy_logprobs_NL,
            "old": self.old_logprobs_NL,
            "reference": self.reference_logprobs_NL,
        }
        start = 0
        for rollout in self.rollouts:
            rows = slice(start, start + len(rollout.lengths_G))
            start = rows.stop
            yield {name: values[rows] for name, values in computed.items() if values is not None}

    @property
    def has_signal(self) -> bool:
        return bool((self.advantages_N != 0).any())

    @property
    def name(self) -> str:
        ids = dict.fromkeys(r.prepared.question.record.question_id for r in self.rollouts)
        return f"question {', '.join(ids)}"


def train_step(
    trainer: Trainer,
    prepared: Sequence[PreparedQuestion],
    step: int,
    watch: Stopwatch,
    *,
    nonfinite_folder: Path | None = None,
    failed_reward_folder: Path | None = None,
) -> StepResult:
    """Run one step on this process's variants; all processes call it together.

    Raises:
        NonFiniteError: before the optimiser step that a loss or gradient would have spoilt; the
            batch is then in `nonfinite_folder`.
        RewardError: a reward function failed; the group is then in `failed_reward_folder`.
    """
    config = trainer.config
    with watch.measure("time/rollout"), trainer.engine.gathered():
        rollouts = roll_out(
            trainer.policy,
            prepared,
            sampler=trainer.sampler,
            sampling=sampling_of(config),
            seed=config.seed,
            step=step,
        )
    outcomes = _judge_groups(trainer, rollouts, step, failed_reward_folder)
    advantages_VG = np.concatenate([outcome.advantages_MG for outcome in outcomes])
    first = trainer.processes.rank * len(rollouts)
    own_VG = torch.from_numpy(advantages_VG[first : first + len(rollouts)])
    size = config.questions_per_micro_batch * config.num_variants
    micro_batches = [
        _MicroBatch(rollouts[i : i + size], own_VG[i : i + size].flatten())
        for i in range(0, len(rollouts), size)
    ]
    try:
        losses, first_kl = _update(
            trainer, micro_batches, _denominators(config, outcomes), step, watch
        )
    except NonFiniteError as error:
        if nonfinite_folder is None:
            raise
        batch = _batch_groups(micro_batches, outcomes)
        rank = trainer.processes.rank
        kept = with_batch(error, nonfinite_folder, batch, step=step + 1, rank=rank)
        raise trainer.processes.told_once(kept) from error
    return StepResult({**summarise(outcomes), **losses}, tuple(outcomes), first_kl)


def _judge_groups(
    trainer: Trainer, rollouts: Sequence[VariantRollout], step: int, failed_folder: Path | None
) -> list[GroupOutcome]:
    """Outcomes of all groups of the step, in order, on every process.

    Processes hold consecutive variants, equally many each.
    """
    num_variants = trainer.config.num_variants
    own = [
        _Written(rollout.texts, _token_lists(rollout), rollout.truncated_G.numpy())
        for rollout in rollouts
    ]
    written = [variant for part in trainer.processes.gather(own) for variant in part]
    rank = trainer.processes.rank
    first = rank * len(rollouts)

    def judge_own() -> list[GroupOutcome]:
        judged = []
        for i, rollout in enumerate(rollouts):
            if rollout.variant != 0:
                continue
            written_M = written[first + i : first + i + num_variants]
            try:
                judged.append(_judge(trainer, rollout.prepared, written_M))
            except RewardError as error:
                if failed_folder is None:
                    raise
                texts = [variant.texts for variant in written_M]
                raise with_completions(
                    error, failed_folder, rollout.prepared, texts, step=step + 1, rank=rank
                ) from error
        return judged

    judged = trainer.processes.together(judge_own)
    return [outcome for part in trainer.processes.gather(judged) for outcome in part]


def _judge(
    trainer: Trainer, prepared: PreparedQuestion, written_M: Sequence[_Written]
) -> GroupOutcome:
    """Rewards of a group's completions and their advantages over the group (Eq. 3)."""
    config = trainer.config
    question = prepared.question
    completions = [text for written in written_M for text in written.texts]
    token_lists = [tokens for written in written_M for tokens in written.token_lists]
    shape = (len(written_M), -1)
    totals_N, by_name = compute_rewards(
        trainer.reward_functions,
        config.rewards,
        prompts=[prepared.text] * len(completions),
        completions=completions,
        columns={
            **record_columns(question.record, len(completions), grading=config.grading),
            "completion_ids": token_lists,
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
    texts = tuple(written.texts for written in written_M)
    return GroupOutcome(
        question_id=question.record.question_id,
        frame_index_MK=question.frame_index_MK,
        frame_overlap=question.frame_overlap,
        effective_frames=question.effective_frames,
        evidence_seen_M=question.evidence_seen_M,
        texts=texts,
        answers=tuple(tuple(extract_answer_or_text(text) for text in row) for row in texts),
        lengths_MG=np.array([len(tokens) for tokens in token_lists]).reshape(shape),
        truncated_MG=np.stack([written.truncated_G for written in written_M]),
        parsed_MG=np.array(
            [is_parsed(question.record.problem_type, extract_answer(text)) for text in completions]
        ).reshape(shape),
        rewards_MG=rewards_MG,
        rewards_by_name={name: values.reshape(shape) for name, values in by_name.items()},
        advantages_MG=advantages_MG,
        measures=measures,
    )


def _batch_groups(
    micro_batches: Sequence[_MicroBatch], outcomes: Sequence[GroupOutcome]
) -> list[BatchGroup]:
    """This process's part of each group, with what has been computed of it."""
    by_id = {outcome.question_id: outcome for outcome in outcomes}
    pairs = [
        pair
        for batch in micro_batches
        for pair in zip(batch.rollouts, batch.logprobs_by_variant(), strict=True)
    ]
    return [
        BatchGroup(
            [rollout for rollout, _ in own],
            by_id[question_id],
            {name: torch.stack([values[name] for _, values in own]) for name in own[0][1]},
        )
        for question_id, group in groupby(
            pairs, key=lambda pair: pair[0].prepared.question.record.question_id
        )
        for own in [list(group)]
    ]


def _token_lists(rollout: VariantRollout) -> list[list[int]]:
    """Token ids of each of the G completions, the end token included."""
    rows = zip(rollout.tokens_GL.tolist(), rollout.lengths_G.tolist(), strict=True)
    return [row[:length] for row, length in rows]


def _update(
    trainer: Trainer,
    micro_batches: Sequence[_MicroBatch],
    denominators: Denominators,
    step: int,
    watch: Stopwatch,
) -> tuple[dict[str, float], float]:
    """Optimiser steps on one rollout; the loss and optimiser metrics, the first update's KL."""
    config, processes = trainer.config, trainer.processes
    sums: list[dict[str, float]] = []
    grad_norms = []
    largest_mismatch = 0.0
    for update in range(config.updates_per_rollout):
        sums.append({})
        for number, micro_batch in enumerate(micro_batches):
            is_last = number == len(micro_batches) - 1
            for name, value in _learn(trainer, micro_batch, denominators, is_last, watch).items():
                sums[update][name] = sums[update].get(name, 0.0) + value.item()
            if update == 0:
                # Before any weight has moved both are the same policy's.
                mismatch_NL = _mismatch(micro_batch)
                largest_mismatch = max(largest_mismatch, mismatch_NL.max().item())
                total = sums[0].get("mismatch", 0.0) + mismatch_NL.sum().item()
                sums[0]["mismatch"] = total
        learning_rate = learning_rate_at(
            step * config.updates_per_rollout + update,
            num_updates=config.steps * config.updates_per_rollout,
            peak=config.learning_rate,
            warmup_steps=config.warmup_steps,
            schedule=config.schedule,
        )
        with watch.measure("time/backward"):
            grad_norms.append(trainer.engine.step(learning_rate))
    sums = [processes.sum(of_update) for of_update in sums]
    totals = {name: sum(of_update.get(name, 0.0) for of_update in sums) for name in sums[0]}
    policy, kl = (totals[name] / config.updates_per_rollout for name in ("policy", "kl"))
    tokens = max(totals["tokens"], 1)
    metrics = {
        "loss/total": policy + config.beta * kl,
        "loss/policy": policy,
        "loss/kl": kl,
        "policy/clip_fraction": totals["clipped_tokens"] / tokens,
        "policy/entropy": totals["entropy"] / tokens,
        "policy/rollout_mismatch": totals["mismatch"] / max(sums[0]["tokens"], 1),
        "policy/rollout_mismatch_max": max(processes.gather(largest_mismatch)),
        "optim/grad_norm": float(np.mean(grad_norms)),
        "optim/learning_rate": learning_rate,
    }
    return metrics, sums[0]["kl"]


def _mismatch(micro_batch: _MicroBatch) -> Tensor:
    """|rollout log-prob - policy log-prob| of each token [N, L]; 0 past a length."""
    assert micro_batch.policy_logprobs_NL is not None
    rollout_NL = torch.cat([rollout.logprobs_GL for rollout in micro_batch.rollouts])
    return (rollout_NL - micro_batch.policy_logprobs_NL.cpu()).abs()


def _denominators(config: TrainConfig, outcomes: Sequence[GroupOutcome]) -> Denominators:
    """Counts over all groups of the step, zero-std groups included."""
    return Denominators(
        num_completions=sum(outcome.lengths_MG.size for outcome in outcomes),
        num_tokens=int(sum(outcome.lengths_MG.sum() for outcome in outcomes)),
        max_new_tokens=config.max_new_tokens,
    )


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
    features = [rollout.features for rollout in micro_batch.rollouts]
    if config.beta > 0 and micro_batch.reference_logprobs_NL is None:
        micro_batch.reference_logprobs_NL = _reference_logprobs(trainer, micro_batch, features)
    if config.trainable == "all":
        features = encode_videos(
            trainer.policy, micro_batch.prompts, with_graph=True, in_one_call=True
        )
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
    trainer: Trainer, micro_batch: _MicroBatch, features: Sequence[VisionFeatures]
) -> Tensor:
    """Log-probs [N, L] under the reference, which shares `features` unless the tower trains."""
    model = trainer.reference

    def compute() -> Tensor:
        seen = features
        if trainer.config.trainable == "all":
            # In one call, here and for the policy: at ZeRO-3 every process must call equally often.
            policy = replace(trainer.policy, model=model)
            seen = encode_videos(policy, micro_batch.prompts, in_one_call=True)
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
        micro_batch.prompts,
        features,
        torch.stack([rollout.tokens_GL for rollout in micro_batch.rollouts]),
        torch.stack([rollout.lengths_G for rollout in micro_batch.rollouts]),
        sampling_temperature=trainer.config.sampling_temperature,
        mode=trainer.config.logprobs,
        attention=trainer.config.attention,
        with_entropy=model is None,
        model=model,
    )
