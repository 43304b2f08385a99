"""One training step, in the order of the paper's algorithm (Sec. 3.2).

variants (drawn and read ahead, `data.py`) -> rollouts -> rewards -> joint advantages (Eq. 3)
-> log-probs -> loss (Eq. 1) -> optimiser step

A process works on variants, and a question's variants may lie on several processes. Rewards see
whole groups: what was written is gathered, the process of a question's first variant judges it, and
its outcome is gathered again, so that advantages are joint over M x G wherever the variants lie.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strive.answers import extract_answer, extract_answer_or_text, is_parsed
from strive.configs.schema import TrainConfig
from strive.models.loading import Policy
from strive.models.logprobs import completion_logprobs_batch
from strive.models.lora import adapters_off
from strive.models.sampling import Sampler
from strive.models.vision import encode_videos
from strive.train.advantages import group_advantages
from strive.train.engine import Engine, learning_rate_at
from strive.train.loss import Denominators, LossRule, policy_loss
from strive.train.metrics import GroupOutcome, summarise
from strive.train.nonfinite import keeping_batch, keeping_completions
from strive.train.processes import Processes
from strive.train.rewards import RewardFunction, compute_rewards, reward_columns
from strive.train.rollout import MicroBatch, PreparedVariant, VariantRollout, roll_out, sampling_of
from strive.train.timing import Stopwatch


@dataclass(frozen=True)
class Trainer:
    """Everything that a step needs and no step changes (but the weights)."""

    config: TrainConfig
    policy: Policy
    reference: Any
    """Model of the KL term: a frozen copy, or the policy's own, used with its adapters off; None
    when beta is 0."""
    engine: Engine
    processes: Processes
    reward_functions: dict[str, RewardFunction]
    loss_rule: LossRule
    sampler: Sampler
    """Writes the completions of a rollout with the weights as they are."""


@dataclass(frozen=True)
class StepResult:
    """Metrics of a step and the outcome of all its groups, the same on every process."""

    metrics: dict[str, float]
    outcomes: tuple[GroupOutcome, ...]
    first_kl: float
    """The KL term of the rollout's first update: `loss/kl` where there is one."""


def train_step(
    trainer: Trainer,
    prepared: Sequence[PreparedVariant],
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
    config, engine, processes = trainer.config, trainer.engine, trainer.processes

    # G completions of every variant, with the weights as they are.
    with watch.measure("time/rollout"), engine.gathered():
        rollouts = roll_out(
            trainer.policy,
            prepared,
            sampler=trainer.sampler,
            sampling=sampling_of(config),
            seed=config.seed,
            step=step,
        )

    # Rewards, and advantages over each question's M x G pool (Eq. 3).
    outcomes = judge_groups(trainer, rollouts, step, failed_reward_folder)
    advantages_VG = np.concatenate([outcome.advantages_MG for outcome in outcomes])
    first = processes.rank * len(rollouts)
    own_VG = torch.from_numpy(advantages_VG[first : first + len(rollouts)])
    size = config.questions_per_micro_batch * config.num_variants
    micro_batches = [
        MicroBatch(rollouts[i : i + size], own_VG[i : i + size].flatten())
        for i in range(0, len(rollouts), size)
    ]
    # Counted over all groups of the step, zero-std groups included.
    denominators = Denominators(
        num_completions=sum(outcome.lengths_MG.size for outcome in outcomes),
        num_tokens=int(sum(outcome.lengths_MG.sum() for outcome in outcomes)),
        max_new_tokens=config.max_new_tokens,
    )

    sums_by_update: list[dict[str, float]] = []
    grad_norms, largest_mismatch = [], 0.0
    for update in range(config.updates_per_rollout):
        sums: dict[str, float] = defaultdict(float)
        for batch in micro_batches:
            is_last = batch is micro_batches[-1]
            # Without signal and without a KL term the gradient is zero: the forward alone feeds
            # the metrics.
            learns = batch.has_signal or config.beta > 0
            needs_backward = learns or is_last or not engine.may_skip_backward
            with watch.measure("time/logprob"), torch.set_grad_enabled(needs_backward):
                logprobs_NL = engine.forward(_logprobs, trainer, batch)
                batch.policy_logprobs_NL = logprobs_NL.detach()
                if batch.old_logprobs_NL is None:
                    # No weight has moved since the rollout: with one update the ratio is exactly 1.
                    batch.old_logprobs_NL = batch.policy_logprobs_NL
                loss, measures = policy_loss(
                    logprobs_NL,
                    old_logprobs_NL=batch.old_logprobs_NL,
                    reference_logprobs_NL=batch.reference_logprobs_NL,
                    advantages_N=batch.advantages_N.to(logprobs_NL.device),
                    mask_NL=batch.mask_NL.to(logprobs_NL.device),
                    denominators=denominators,
                    rule=trainer.loss_rule,
                )
            if needs_backward:
                with watch.measure("time/backward"):
                    engine.backward(loss, is_last=is_last, name=batch.name)
            for name, value in (measures | {"entropy": batch.entropy}).items():
                sums[name] += value.item()
            if update == 0:
                # Before any weight has moved the rollout's log-probs are the same policy's.
                mismatch_NL = batch.mismatch_NL
                sums["mismatch"] += mismatch_NL.sum().item()
                largest_mismatch = max(largest_mismatch, mismatch_NL.max().item())
        learning_rate = learning_rate_at(
            step * config.updates_per_rollout + update,
            num_updates=config.steps * config.updates_per_rollout,
            peak=config.learning_rate,
            warmup_steps=config.warmup_steps,
            schedule=config.schedule,
        )
        with (
            keeping_batch(nonfinite_folder, micro_batches, outcomes, processes, step + 1),
            watch.measure("time/backward"),
        ):
            grad_norms.append(engine.step(learning_rate))
        sums_by_update.append(processes.sum(sums))

    metrics = {
        **summarise(outcomes),
        **_loss_metrics(sums_by_update, config.beta),
        "policy/rollout_mismatch_max": max(processes.gather(largest_mismatch)),
        "optim/grad_norm": float(np.mean(grad_norms)),
        "optim/learning_rate": learning_rate,
    }
    return StepResult(metrics, tuple(outcomes), sums_by_update[0]["kl"])


def _loss_metrics(sums_by_update: Sequence[Mapping[str, float]], beta: float) -> dict[str, float]:
    """Means over a rollout's updates, from each update's sums over all processes."""
    first = sums_by_update[0]
    totals = {name: sum(sums.get(name, 0.0) for sums in sums_by_update) for name in first}
    policy, kl = (totals[name] / len(sums_by_update) for name in ("policy", "kl"))
    tokens = max(totals["tokens"], 1)
    return {
        "loss/total": policy + beta * kl,
        "loss/policy": policy,
        "loss/kl": kl,
        "policy/clip_fraction": totals["clipped_tokens"] / tokens,
        "policy/entropy": totals["entropy"] / tokens,
        "policy/rollout_mismatch": first["mismatch"] / max(first["tokens"], 1),
    }


# One variant's texts, token ids and whether they were cut [G], on whichever process.
_Written = tuple[tuple[str, ...], list[list[int]], NDArray[np.bool_]]


def judge_groups(
    trainer: Trainer, rollouts: Sequence[VariantRollout], step: int, failed_folder: Path | None
) -> list[GroupOutcome]:
    """Outcomes of all groups of the step, in order, on every process.

    Processes hold consecutive variants, equally many each.
    """
    processes, num_variants = trainer.processes, trainer.config.num_variants
    own: list[_Written] = [(r.texts, r.token_lists, r.truncated_G.numpy()) for r in rollouts]
    written = [variant for part in processes.gather(own) for variant in part]
    judged = []
    with processes.together():
        for place, rollout in enumerate(rollouts, start=processes.rank * len(rollouts)):
            if rollout.prepared.variant == 0:
                written_M = written[place : place + num_variants]
                texts_M = [texts for texts, _, _ in written_M]
                with keeping_completions(
                    failed_folder, rollout.prepared, texts_M, step=step + 1, rank=processes.rank
                ):
                    judged.append(_judge(trainer, rollout.prepared, written_M))
    return [outcome for part in processes.gather(judged) for outcome in part]


def _judge(
    trainer: Trainer, prepared: PreparedVariant, written_M: Sequence[_Written]
) -> GroupOutcome:
    """Rewards of a group's completions and their advantages over the group (Eq. 3)."""
    config, question = trainer.config, prepared.question
    texts_MG, tokens_MG, truncated_M = zip(*written_M, strict=True)
    completions = [text for texts in texts_MG for text in texts]
    token_lists = [tokens for variant in tokens_MG for tokens in variant]
    shape = (len(written_M), -1)
    totals_N, by_name = compute_rewards(
        trainer.reward_functions,
        config.rewards,
        prompts=[prepared.text] * len(completions),
        completions=completions,
        columns=reward_columns(question.record, token_lists, grading=config.grading),
    )
    rewards_MG = totals_N.reshape(shape)
    advantages_MG, measures = group_advantages(
        rewards_MG,
        grouping=config.grouping,
        std_correction=config.std_correction,
        epsilon=config.advantage_epsilon,
        divide_by_std=trainer.loss_rule.objective.divide_by_std,
    )
    return GroupOutcome(
        question_id=question.record.question_id,
        frame_index_MK=question.frame_index_MK,
        frame_overlap=question.frame_overlap,
        effective_frames=question.effective_frames,
        evidence_seen_M=question.evidence_seen_M,
        texts=texts_MG,
        answers=tuple(tuple(extract_answer_or_text(text) for text in row) for row in texts_MG),
        lengths_MG=np.array([len(tokens) for tokens in token_lists]).reshape(shape),
        truncated_MG=np.stack(truncated_M),
        parsed_MG=np.array(
            [is_parsed(question.record.problem_type, extract_answer(text)) for text in completions]
        ).reshape(shape),
        rewards_MG=rewards_MG,
        rewards_by_name={name: values.reshape(shape) for name, values in by_name.items()},
        advantages_MG=advantages_MG,
        measures=measures,
    )


def _logprobs(trainer: Trainer, batch: MicroBatch, reference: Any = None) -> Tensor:
    """Log-probs [N, L] of the policy, with a graph where gradients are on, or of the reference.

    Runs inside the engine's forward. The reference's are computed once a rollout, before the
    policy's, and kept in `batch`.
    """
    config, is_policy = trainer.config, reference is None
    if is_policy and config.beta > 0 and batch.reference_logprobs_NL is None:
        # First: DeepSpeed counts on a module's last forward before a backward pass being the one
        # with a graph, which matters where policy and reference are one model.
        with torch.no_grad(), adapters_off(trainer.reference):
            batch.reference_logprobs_NL = trainer.engine.reference_forward(
                _logprobs, trainer, batch, trainer.reference
            )
    features = [rollout.features for rollout in batch.rollouts]
    if config.trainable == "all":
        # A tower that trains sees the videos again; else policy and reference share what it saw.
        # In one call: at ZeRO-3 every process must call equally often.
        seen_by = trainer.policy if is_policy else replace(trainer.policy, model=reference)
        features = encode_videos(seen_by, batch.prompts, with_graph=is_policy, in_one_call=True)
    result = completion_logprobs_batch(
        trainer.policy,
        batch.prompts,
        features,
        batch.tokens_BGL,
        batch.lengths_BG,
        sampling_temperature=config.sampling_temperature,
        mode=config.logprobs,
        attention=config.attention,
        with_entropy=is_policy,
        model=reference,
    )
    if is_policy:
        batch.entropy = result.entropy.sum()
    return result.logprobs.flatten(0, 1)
