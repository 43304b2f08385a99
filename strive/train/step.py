"""One training step, in the order of the paper's algorithm (Sec. 3.2).

variants (drawn and read ahead, `data.py`) -> rollouts -> rewards -> joint advantages (Eq. 3)
-> for each part of the rollout: log-probs -> loss (Eq. 1) -> optimiser step

A process works on variants, and a question's variants may lie on several processes. Rewards see
whole groups: what was written is gathered, the process of a question's first variant judges it, and
its outcome is gathered again, so that advantages are joint over M x G wherever the variants lie.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strive.answers import extract_answer_or_text, extract_graded, is_parsed
from strive.configs.schema import TrainConfig
from strive.errors import RewardError
from strive.models.loading import Policy
from strive.models.logprobs import completion_logprobs_batch
from strive.models.lora import adapters_off
from strive.models.sampling import Sampler
from strive.models.vision import EncodeCount, count_encodes, encode_videos
from strive.train.advantages import AdvantageRule, is_zero_std, step_advantages
from strive.train.engine import Engine, learning_rate_at
from strive.train.loss import SURROGATES, Denominators, LossRule, policy_loss
from strive.train.metrics import GroupOutcome, summarise
from strive.train.nonfinite import keeping_batch, keeping_completions
from strive.train.processes import Processes
from strive.train.rewards import RewardFunction, compute_rewards, reward_columns
from strive.train.rollout import (
    MicroBatch,
    PreparedVariant,
    VariantRollout,
    contrasts_of,
    roll_out,
    same_length,
    sampling_of,
)
from strive.train.timing import Stopwatch

Replacing = Callable[[int, int, Sequence[int], Collection[str]], list[PreparedVariant]]
"""`f(step, round, places, used)`: a process's variants of other questions for some places of a
step, none of them among the ids `used`."""


@dataclass(frozen=True)
class Trainer:
    """Everything that a step needs and no step changes (but the weights and `std_averages`)."""

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
    std_averages: dict[str, float] = field(default_factory=dict)
    """Average std of the rewards of each problem type, with `std: ema_per_type`."""
    replace_questions: Replacing | None = None
    """Where groups are sampled again: other questions for some places of a step."""


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
    with counting_encodes(trainer) as encodes:
        # G completions of every variant, with the weights as they are, and their rewards.
        rollouts, contrasts = write(trainer, prepared, step, watch)
        judged = judge_groups(trainer, rollouts, contrasts, step, failed_reward_folder)
        rollouts, judged, counts = resample(
            trainer, rollouts, judged, step, watch, failed_reward_folder
        )
        # Advantages over each question's M x G pool (Eq. 3).
        outcomes = with_advantages(trainer, list(judged.values()))
        parts = split_rollout(config, rollouts, outcomes)
        # Of the parts whose turn comes after weights have moved; the first part's are its own.
        for part in parts[1:]:
            for batch in part.micro_batches:
                with watch.measure("time/logprob"), torch.no_grad():
                    batch.old_logprobs_NL = engine.forward(_logprobs, trainer, batch)

        sums_by_update: list[dict[str, float]] = []
        grad_norms, largest_mismatch = [], 0.0
        for update in range(config.updates_per_rollout):
            for part in parts:
                sums, mismatch = _learn(trainer, part, watch, is_first=update == 0)
                largest_mismatch = max(largest_mismatch, mismatch)
                learning_rate = learning_rate_at(
                    step * config.optimiser_steps_per_rollout + len(sums_by_update),
                    num_updates=config.steps * config.optimiser_steps_per_rollout,
                    peak=config.learning_rate,
                    warmup_steps=config.warmup_steps,
                    schedule=config.schedule,
                )
                with (
                    keeping_batch(
                        nonfinite_folder, part.micro_batches, part.outcomes, processes, step + 1
                    ),
                    watch.measure("time/backward"),
                ):
                    grad_norms.append(engine.step(learning_rate))
                sums_by_update.append(processes.sum(sums))

    metrics = {
        **summarise(outcomes),
        **_loss_metrics(sums_by_update, config),
        **_costs(trainer, prepared, parts, sum(count.videos for count in encodes), counts),
        "policy/rollout_mismatch_max": max(processes.gather(largest_mismatch)),
        "optim/grad_norm": float(np.mean(grad_norms)),
        "optim/learning_rate": learning_rate,
    }
    return StepResult(metrics, tuple(outcomes), sums_by_update[0]["kl"])


@contextmanager
def counting_encodes(trainer: Trainer) -> Iterator[list[EncodeCount]]:
    """Count the videos that pass through the towers of the policy and of a reference of its own."""
    models = [trainer.policy.model]
    if trainer.reference not in (None, trainer.policy.model):
        models.append(trainer.reference)
    with ExitStack() as stack:
        yield [stack.enter_context(count_encodes(model)) for model in models]


# --- what is written, and what it is worth -------------------------------------------------------


def write(
    trainer: Trainer, prepared: Sequence[PreparedVariant], step: int, watch: Stopwatch
) -> tuple[list[VariantRollout], dict[int, tuple[str, ...]]]:
    """Roll out this process's variants; the texts of their contrasts by the question's place."""
    config, sampling = trainer.config, sampling_of(trainer.config)
    others = contrasts_of(prepared)
    roll = partial(roll_out, trainer.policy, sampler=trainer.sampler, seed=config.seed, step=step)
    rollouts: list[VariantRollout] = []
    contrasts: dict[int, tuple[str, ...]] = {}
    with watch.measure("time/rollout"), trainer.engine.gathered():
        if prepared:
            rollouts = roll(prepared, sampling=sampling)
        if others:
            sampling = replace(sampling, num_generations=config.contrast_generations)
            written = roll(others, sampling=sampling)
            contrasts = {rollout.prepared.place: rollout.texts for rollout in written}
    return rollouts, contrasts


# One variant's texts, token ids and whether they were cut [G], on whichever process.
_Written = tuple[tuple[str, ...], list[list[int]], NDArray[np.bool_]]


def judge_groups(
    trainer: Trainer,
    rollouts: Sequence[VariantRollout],
    contrasts: Mapping[int, tuple[str, ...]],
    step: int,
    failed_folder: Path | None,
) -> dict[int, GroupOutcome]:
    """Outcomes of all groups, by the question's place in the step, on every process.

    Their advantages are still to come (`with_advantages`).
    """
    processes, num_variants = trainer.processes, trainer.config.num_variants
    own: dict[tuple[int, int], _Written] = {
        (r.prepared.place, r.prepared.variant): (r.texts, r.token_lists, r.truncated_G.numpy())
        for r in rollouts
    }
    written = {key: value for part in processes.gather(own) for key, value in part.items()}
    judged: dict[int, GroupOutcome] = {}
    with processes.together():
        for prepared in (rollout.prepared for rollout in rollouts):
            if prepared.variant == 0:
                place = prepared.place
                written_M = [written[place, variant] for variant in range(num_variants)]
                with keeping_completions(
                    failed_folder,
                    prepared,
                    [texts for texts, _, _ in written_M],
                    step=step + 1,
                    rank=processes.rank,
                ):
                    judged[place] = _judge(trainer, prepared, written_M, contrasts.get(place, ()))
    everywhere = {place: o for part in processes.gather(judged) for place, o in part.items()}
    return dict(sorted(everywhere.items()))


def _judge(
    trainer: Trainer,
    prepared: PreparedVariant,
    written_M: Sequence[_Written],
    contrast: Sequence[str],
) -> GroupOutcome:
    """Rewards of a group's completions."""
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
        columns=reward_columns(
            question.record,
            token_lists,
            grading=config.grading,
            contrast_completions=contrast,
            duration_seconds=question.duration_seconds,
            max_new_tokens=config.max_new_tokens,
        ),
    )
    rewards_MG, kind = totals_N.reshape(shape), question.record.problem_type
    if config.surrogate == "regression" and np.isnan(totals_N).any():
        raise RewardError(
            f"question '{question.record.question_id}': {int(np.isnan(totals_N).sum())} of "
            f"{totals_N.size} completions have no reward (every function gave None), and surrogate "
            "'regression' compares all of a group; name a reward that applies to each"
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
            [is_parsed(kind, extract_graded(kind, text)) for text in completions]
        ).reshape(shape),
        rewards_MG=rewards_MG,
        rewards_by_name={name: values.reshape(shape) for name, values in by_name.items()},
        advantages_MG=np.zeros_like(rewards_MG),
        measures={},
        problem_type=kind,
    )


def resample(
    trainer: Trainer,
    rollouts: list[VariantRollout],
    outcomes: dict[int, GroupOutcome],
    step: int,
    watch: Stopwatch,
    failed_folder: Path | None,
) -> tuple[list[VariantRollout], dict[int, GroupOutcome], dict[str, float]]:
    """Replace groups that are all right or all wrong by other questions', in rounds (DAPO).

    Judged by the reward `accuracy`: that of the format alone must not save a group. A group that is
    mixed takes the place of one that is not; what stays uniform after the last round is kept.
    Returns this process's rollouts, all outcomes, and counts: `rounds`, and `groups_thrown_away`.
    """
    if not trainer.config.resample_rounds:
        return rollouts, outcomes, {}
    assert trainer.replace_questions is not None
    used = {outcome.question_id for outcome in outcomes.values()}
    counts = {"rounds": 0.0, "groups_thrown_away": 0.0}
    for number in range(trainer.config.resample_rounds):
        places = [place for place, outcome in outcomes.items() if _is_uniform(outcome)]
        prepared = trainer.replace_questions(step, number, places, used) if places else []
        more, contrasts = write(trainer, prepared, step, watch)
        judged = judge_groups(trainer, more, contrasts, step, failed_folder)
        if not judged:
            break
        used |= {outcome.question_id for outcome in judged.values()}
        mixed = {place: o for place, o in judged.items() if not _is_uniform(o)}
        outcomes = outcomes | mixed
        kept = [r for r in rollouts if r.prepared.place not in mixed]
        kept += [r for r in more if r.prepared.place in mixed]
        rollouts = sorted(kept, key=lambda r: (r.prepared.place, r.prepared.variant))
        counts["rounds"] += 1
        counts["groups_thrown_away"] += len(judged)
    return same_length(rollouts), outcomes, counts


def _is_uniform(outcome: GroupOutcome) -> bool:
    return is_zero_std(outcome.rewards_by_name["accuracy"])


def with_advantages(trainer: Trainer, outcomes: Sequence[GroupOutcome]) -> list[GroupOutcome]:
    """Advantages of all groups of a step, and their measures, put into their outcomes.

    With `std: ema_per_type` the trainer's `std_averages` move on to this step.
    """
    config = trainer.config
    rule = AdvantageRule(
        grouping=config.grouping,
        std=config.std,
        std_correction=config.std_correction,
        epsilon=config.advantage_epsilon,
        divide_by_std=trainer.loss_rule.objective.divide_by_std,
    )
    pairs, averages = step_advantages(
        [outcome.rewards_MG for outcome in outcomes],
        [outcome.problem_type for outcome in outcomes],
        trainer.std_averages,
        rule,
    )
    trainer.std_averages.update(averages)
    return [
        replace(outcome, advantages_MG=advantages_MG, measures=measures)
        for outcome, (advantages_MG, measures) in zip(outcomes, pairs, strict=True)
    ]


# --- what is learned of it -----------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One of the disjoint parts of a rollout, for an optimiser step of its own."""

    micro_batches: list[MicroBatch]
    """This process's."""
    outcomes: list[GroupOutcome]
    """Of all groups of the part."""
    denominators: Denominators


def split_rollout(
    config: TrainConfig, rollouts: Sequence[VariantRollout], outcomes: Sequence[GroupOutcome]
) -> list[Part]:
    """Split a step's questions into `minibatches_per_rollout` parts of consecutive places."""
    size = config.questions_per_step // config.minibatches_per_rollout
    batch_size = config.questions_per_micro_batch * config.num_variants
    parts = []
    for first in range(0, config.questions_per_step, size):
        groups = list(outcomes[first : first + size])
        own = [r for r in rollouts if first <= r.prepared.place < first + size]
        advantages_VG = [
            torch.from_numpy(outcomes[r.prepared.place].advantages_MG[r.prepared.variant])
            for r in own
        ]
        # Counted over all groups of the part, zero-std groups included.
        counted = [
            group.lengths_MG * ~(group.truncated_MG & config.mask_truncated) for group in groups
        ]
        parts.append(
            Part(
                [
                    MicroBatch(
                        own[i : i + batch_size],
                        torch.cat(advantages_VG[i : i + batch_size]),
                        config.update_view,
                    )
                    for i in range(0, len(own), batch_size)
                ],
                groups,
                Denominators(
                    num_completions=sum(group.lengths_MG.size for group in groups),
                    num_tokens=int(sum(lengths_MG.sum() for lengths_MG in counted)),
                    max_new_tokens=config.max_new_tokens,
                ),
            )
        )
    return parts


def _learn(
    trainer: Trainer, part: Part, watch: Stopwatch, *, is_first: bool
) -> tuple[dict[str, float], float]:
    """Add up a part's gradients; sums over this process's tokens, and the largest mismatch.

    `is_first`: before any of the part's log-probs were learned from.
    """
    config, engine = trainer.config, trainer.engine
    sums: dict[str, float] = defaultdict(float)
    largest_mismatch = 0.0
    for batch in part.micro_batches:
        is_last = batch is part.micro_batches[-1]
        # Without signal and without another term the gradient is zero, but for what a surrogate of
        # the user's own may do: the forward alone feeds the metrics.
        learns = batch.has_signal or config.beta > 0 or config.entropy_weight != 0
        learns = learns or config.surrogate not in SURROGATES
        needs_backward = learns or is_last or not engine.may_skip_backward
        with watch.measure("time/logprob"), torch.set_grad_enabled(needs_backward):
            logprobs_NL = engine.forward(_logprobs, trainer, batch)
            batch.policy_logprobs_NL = logprobs_NL.detach()
            if batch.old_logprobs_NL is None:
                # No weight has moved since the rollout: with one update the ratio is exactly 1.
                batch.old_logprobs_NL = batch.policy_logprobs_NL
            mask_NL = batch.mask_NL(mask_truncated=config.mask_truncated)
            loss, measures = policy_loss(
                logprobs_NL,
                old_logprobs_NL=batch.old_logprobs_NL,
                reference_logprobs_NL=batch.reference_logprobs_NL,
                advantages_N=batch.advantages_N.to(logprobs_NL.device),
                mask_NL=mask_NL.to(logprobs_NL.device),
                denominators=part.denominators,
                rule=trainer.loss_rule,
                entropy_NL=batch.entropy_NL,
            )
        if needs_backward:
            with watch.measure("time/backward"):
                engine.backward(loss, is_last=is_last, name=batch.name)
        for name, value in measures.items():
            sums[name] += value.item()
        if is_first:
            # The rollout's log-probs are the same policy's as the old ones.
            mismatch_NL = batch.mismatch_NL
            sums["mismatch"] += mismatch_NL.sum().item()
            sums["compared_tokens"] += batch.mask_NL()[batch.is_own_N].sum().item()
            largest_mismatch = max(largest_mismatch, mismatch_NL.max().item())
        batch.entropy_NL = None  # its graph is used up
    return sums, largest_mismatch


def _loss_metrics(
    sums_by_update: Sequence[Mapping[str, float]], config: TrainConfig
) -> dict[str, float]:
    """Means over a rollout's optimiser steps, from each one's sums over all processes."""
    names = sums_by_update[0].keys()
    totals = {name: sum(sums.get(name, 0.0) for sums in sums_by_update) for name in names}
    policy, kl, bonus = (
        totals[name] / len(sums_by_update) for name in ("policy", "kl", "entropy_bonus")
    )
    tokens = max(totals["tokens"], 1)
    return {
        "loss/total": policy + config.beta * kl - config.entropy_weight * bonus,
        "loss/policy": policy,
        "loss/kl": kl,
        "policy/clip_fraction": totals["clipped_tokens"] / tokens,
        "policy/entropy": totals["entropy"] / tokens,
        "policy/rollout_mismatch": totals["mismatch"] / max(totals["compared_tokens"], 1),
    }


def _costs(
    trainer: Trainer,
    prepared: Sequence[PreparedVariant],
    parts: Sequence[Part],
    num_encodes: int,
    resampled: Mapping[str, float],
) -> dict[str, float]:
    """What the step took: per question, per completion that is learned from, and in all."""
    config = trainer.config
    batches = [batch for part in parts for batch in part.micro_batches]
    rows = [(batch.num_passes, len(batch.advantages_N)) for batch in batches]
    sums = trainer.processes.sum(
        {
            "encodes": float(num_encodes),
            "contrasts": float(len(contrasts_of(prepared))),
            "rows": float(sum(size for _, size in rows)),
            "passes": float(sum(passes * size for passes, size in rows)),
        }
    )
    num_groups = config.questions_per_step + resampled.get("groups_thrown_away", 0)
    group_size = config.num_variants * config.num_generations
    if sums["contrasts"]:
        group_size += config.contrast_generations
    return {
        "cost/vision_encodes": sums["encodes"] / config.questions_per_step,
        "cost/completions": num_groups * group_size / config.questions_per_step,
        "cost/logprob_passes": sums["passes"] / sums["rows"],
        "cost/optimiser_steps": float(config.optimiser_steps_per_rollout),
        **{f"resample/{name}": value for name, value in resampled.items()},
    }


def _logprobs(trainer: Trainer, batch: MicroBatch, reference: Any = None) -> Tensor:
    """Log-probs [N, L] of the policy, with a graph where gradients are on, or of the reference.

    Runs inside the engine's forward. The reference's are computed once a rollout, before the
    policy's, and kept in `batch`.
    """
    config, is_policy = trainer.config, reference is None
    batch.num_passes += 1
    if is_policy and config.beta > 0 and batch.reference_logprobs_NL is None:
        # First: DeepSpeed counts on a module's last forward before a backward pass being the one
        # with a graph, which matters where policy and reference are one model.
        with torch.no_grad(), adapters_off(trainer.reference):
            batch.reference_logprobs_NL = trainer.engine.reference_forward(
                _logprobs, trainer, batch, trainer.reference
            )
    features = batch.features
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
        entropy_learns=config.entropy_weight != 0,
        model=reference,
    )
    if is_policy:
        batch.entropy_NL = result.entropy.reshape(len(batch.advantages_N), -1)
    return result.logprobs.reshape(len(batch.advantages_N), -1)
