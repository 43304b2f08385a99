"""Checks of a start, before anything is changed: the run folder, the records, the policy.

A start is new, or goes on after a checkpoint of the very same run. What makes learning impossible
is an error, what makes it worse is a line. Most of it is known from the configuration, the cache
and the policy's small files, before weights load.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from strive.answers import build_question
from strive.cache.frames import FrameReader
from strive.configs.schema import TrainConfig
from strive.errors import CheckpointError, ConfigError
from strive.groups import VariantReader, held_out_records
from strive.models.inputs import long_prompts
from strive.models.loading import OpenedModel, Policy, open_model, require_trainable
from strive.models.lora import add_adapters, base_parameters
from strive.records import Record
from strive.train.data import TrainingData
from strive.train.engine import set_trainable
from strive.train.processes import Processes
from strive.train.rewards import RewardFunction, try_rewards
from strive.train.run_folder import RunFolder, checkpoint_name
from strive.unmatched import find_unmatched

# A resumed run may change these: they decide what is kept and shown, not what is learned. The cache
# may have moved: its keys are compared instead.
_FREE_KEYS = (
    "cache",
    "check_rewards",
    "checkpoint_every",
    "evaluate_every",
    "held_out",
    "keep_best",
    "keep_checkpoints",
    "loggers",
    "wandb_project",
    "wandb_run_name",
)
# Rewards by what they read: solutions, intervals, the contrast's completions.
INTERVAL_REWARDS = ("grounding_iou", "grounding_iou_timed", "clue_iou")
INTERVAL_TYPES = {"grounding", "grounded multiple choice"}
GRADING_REWARDS = (
    "accuracy", "accuracy_untagged", "accuracy_first", "accuracy_second", *INTERVAL_REWARDS,
)  # fmt: skip
CONTRAST_REWARDS = ("temporal", "temporal_strict", "reverse")
_VALUES_PER_TENSOR = 64


# --- the folder ----------------------------------------------------------------------------------


@contextmanager
def holding(folder: RunFolder, look: Callable[[], int], processes: Processes) -> Iterator[int]:
    """Keep other runs out of a folder, and yield the number of steps that `look` finds done.

    The main process looks and locks for all; where it refuses, so does every other. If the block
    ends before the run began, the folder is as it was.

    Raises:
        CheckpointError, DiskError: what `look` raises; the folder is in use or cannot be.
    """

    def claim() -> int:
        # Before anything is made. Where a run is or was, its lock is asked first: it may just run.
        if not folder.lock.left_by_a_run():
            look()
        folder.lock.acquire()
        return look()

    try:
        yield processes.of_main(claim)
    finally:
        folder.release()


def first_step_of(
    folder: RunFolder, config: TrainConfig, data: TrainingData, processes: Processes, resume: bool
) -> int:
    """Steps that the newest whole checkpoint of the run folder has done; 0 for a new run.

    Raises:
        CheckpointError: there is a run and no `resume`, or it was another run, or something else,
            or what it left is damaged, or has more steps than are asked for.
    """
    folder.require_ours()
    if not resume:
        if folder.exists:
            raise CheckpointError(
                f"{folder.root} already holds a run; add --resume to continue it, or give another "
                "--run-dir"
            )
        return 0
    folder.read_best()
    damage = folder.checkpoint_damage()
    steps = [step for step, reason in damage.items() if reason is None]
    if damage and not steps:
        listed = "; ".join(f"{checkpoint_name(step)}: {why}" for step, why in damage.items())
        raise CheckpointError(
            f"no checkpoint in {folder.checkpoints} is whole ({listed}); move that folder away to "
            "train from the start again, or give another --run-dir"
        )
    folder.surviving(steps[-1] if steps else 0)
    if not steps:
        if folder.has_config and folder.final.is_dir():
            raise CheckpointError(
                f"{folder.root} holds a finished run (final/) and no checkpoint to go on from; "
                "give another --run-dir, or move final/ away to train from the start again"
            )
        if folder.has_config:
            began = folder.read_config()
            require_same_config(began["config"], comparable(config), folder.root)
            require_same_config(began["data"], comparable_cache(data), folder.root)
        return 0
    if steps[-1] > config.steps:
        raise CheckpointError(
            f"{folder.root} already has {steps[-1]} steps, and steps is {config.steps}; nothing "
            f"was changed (--steps {steps[-1]} writes final/ from them, more goes on; or give "
            "another --run-dir)"
        )
    state = folder.read_state(steps[-1])
    require_same_config(state["config"], comparable(config), folder.checkpoint(steps[-1]))
    require_same_config(state["cache"], comparable_cache(data), folder.checkpoint(steps[-1]))
    if state["zero_stage"] > 0 and state["world_size"] != processes.world_size:
        raise CheckpointError(
            f"{folder.checkpoint(steps[-1])} was written by {state['world_size']} processes, each "
            f"with its part of the optimiser (ZeRO {state['zero_stage']}), and cannot be read by "
            f"{processes.world_size}; start the same number (a run at deepspeed=zero0 resumes on "
            "any)"
        )
    return steps[-1]


def require_same_config(found: Mapping[str, Any], wanted: Mapping[str, Any], where: Path) -> None:
    """Refuse to continue a run under another configuration, showing the keys that differ.

    Raises:
        CheckpointError: some differ.
    """
    # A run that began before a key existed did what the key's default is.
    found = {**TrainConfig().model_dump(mode="json"), **found}
    differing = [
        f"{key}: the run has {json.dumps(found.get(key))}, this call has {json.dumps(value)}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if differing:
        raise CheckpointError(
            f"{where} was written with another configuration ({'; '.join(differing)}); use the "
            "same one to resume, or another --run-dir to start anew"
        )


def comparable(config: TrainConfig) -> dict[str, Any]:
    """The settings that a resumed run must share."""
    values = config.model_dump(mode="json")
    # More steps leave the earlier ones as they were, but for a cosine and for noise that fades.
    fades = config.noise_schedule == "sigmoid" and "noise" in (*config.views_M, config.contrast)
    depends = config.schedule != "constant" or fades
    free = _FREE_KEYS if depends else (*_FREE_KEYS, "steps")
    return {key: value for key, value in values.items() if key not in free}


def comparable_cache(data: TrainingData) -> dict[str, Any]:
    """Keys and size of the cache, which a resumed run must share."""
    described = data.describe()
    return {key: described[key] for key in ("frames_key", "scorer_key", "num_questions")}


def resume_notes(folder: RunFolder, first_step: int) -> Iterator[str]:
    """Lines for a user who said --resume: gaps in the log, damaged checkpoints, nothing there."""
    missing = set(range(1, first_step + 1)) - folder.logged_steps()
    if missing:
        yield (
            f"{folder.metrics_file} lacks {len(missing)} of its {first_step} steps (first: "
            f"{min(missing)}); the run goes on, its curves will not have them"
        )
    for step, reason in folder.checkpoint_damage().items():
        if step > first_step and reason is not None:
            yield (
                f"{folder.checkpoint(step)} is damaged ({reason}); the run goes on from step "
                f"{first_step}, the newest whole checkpoint"
            )
    if first_step == 0:
        yield f"{folder.root} holds no checkpoint to resume from; the run begins at its first step"


# --- records and rewards -------------------------------------------------------------------------


def preflight(config: TrainConfig, data: VariantReader) -> list[str]:
    """Refuse a run that cannot learn; leave out prompts that are too long; return what to say.

    Every process of a run gets the same result.

    Raises:
        ModelError, MissingInputError: the policy cannot be opened, or its weights not be trained.
        CacheError: held-out records are not in the cache.
        ConfigError: no solution can be earned, prompts are too long, or held-out files are empty.
    """
    opened = open_model(config.model)
    require_trainable(opened)
    lines: list[str] = []
    # Without a reward that grades nobody does.
    if any(config.rewards.get(name) for name in GRADING_REWARDS):
        unmatched = find_unmatched(data.records, config.grading)
        if unmatched is not None and unmatched.is_hopeless:
            raise ConfigError(
                f"{unmatched.text()}; a run without them takes "
                f"{', '.join(repr(name) for name in config.rewards if name in GRADING_REWARDS)} "
                "out of rewards"
            )
        if unmatched is not None:
            lines.append(f"warning: {unmatched.text()}")
    in_time = [name for name in config.rewards if name in INTERVAL_REWARDS]
    kinds = {record.problem_type for record in data.records}
    if in_time and not kinds & INTERVAL_TYPES:
        lines.append(
            f"warning: {', '.join(in_time)} in rewards grade intervals, and no question has one "
            f"(problem types: {', '.join(sorted(kinds))})"
        )
    if config.contrast != "none" and not any(
        name in CONTRAST_REWARDS or ":" in name for name in config.rewards
    ):
        lines.append(
            f"warning: contrast={config.contrast} writes {config.contrast_generations} completions "
            f"a question that no reward reads ({', '.join(CONTRAST_REWARDS)}, or your own)"
        )
    too_long = _too_long(config, opened, data.records, data.frames, "questions")
    data.leave_out(frozenset(too_long))
    if config.evaluate_every:
        records, frames, num_failed = held_out_records(config, data.frames)
        if num_failed:
            lines.append(f"held out: {num_failed} left out, their video failed offline")
        _too_long(config, opened, records, frames, "held-out questions", may_skip=False)
        unmatched = find_unmatched(records, config.grading)
        if unmatched is not None:
            lines.append(f"warning: held out: {unmatched.text()}")
        trained = {record.question_id for record in data.records}
        num_trained = sum(record.question_id in trained for record in records)
        if num_trained:
            lines.append(
                f"warning: {num_trained} of {len(records)} held-out questions are trained on, too: "
                "their accuracy says nothing of other questions"
            )
    return [*start_lines(config, data), *lines]


def _too_long(
    config: TrainConfig,
    opened: OpenedModel,
    records: Sequence[Record],
    frames: FrameReader,
    what: str,
    *,
    may_skip: bool = True,
) -> list[str]:
    """Return the ids of records whose prompts are too long.

    Raises:
        ConfigError: there are some, and they may not be left out or `skip_long_prompts` is not set.
    """
    context = opened.config.text_config.max_position_embeddings
    limit = config.max_prompt_tokens or context - config.max_new_tokens
    if not 0 < limit <= context - config.max_new_tokens:
        prompt = f"max_prompt_tokens={limit} and " if config.max_prompt_tokens else "a prompt and "
        raise ConfigError(
            f"{prompt}max_new_tokens={config.max_new_tokens} do not fit into the {context:,} "
            f"positions of '{opened.name}'; lower what is too large"
        )
    sizes, longest = frames.sizes([record.video_id for record in records])
    found = long_prompts(
        opened,
        [build_question(record, config.prompt_template) for record in records],
        sizes,
        limit=limit,
        num_frames=config.num_frames,
        longest_seconds=longest,
        max_pixels=config.max_pixels,
        position_rule=config.position_rule,
        kept_in=frames.folder.parents[1] / "prompt-tokens",
        system_prompt=config.system_prompt,
    )
    if found and not (may_skip and config.skip_long_prompts):
        longest_index = max(found, key=lambda index: found[index])
        longest_id, longest_tokens = records[longest_index].question_id, found[longest_index]
        room = (
            f"max_prompt_tokens={limit:,}"
            if config.max_prompt_tokens
            else f"{limit:,} tokens, the {context:,} positions of '{opened.name}' less "
            f"max_new_tokens={config.max_new_tokens}"
        )
        way_out = (
            "shorten them, or add --set skip_long_prompts=true to leave them out"
            if may_skip
            else "shorten them, or take them out of held_out"
        )
        raise ConfigError(
            f"prompts of {len(found)} of {len(records)} {what} are longer than {room} (the "
            f"longest: '{longest_id}' with {longest_tokens:,}); {way_out}"
        )
    return [records[index].question_id for index in found]


def start_lines(config: TrainConfig, data: VariantReader) -> list[str]:
    """Lines about a surrogate without effect; questions left out, changed, noted; the draws."""
    lines = []
    if config.surrogate in ("cispo", "sapo") and config.optimiser_steps_per_rollout == 1:
        lines.append(
            f"surrogate '{config.surrogate}' with one optimiser step on a rollout learns as GRPO "
            "does, since the ratio is 1; minibatches_per_rollout above 1 sets them apart"
        )
    if data.left_out.total():
        lines.append(f"left out: {data.left_out_text()}")
    if data.num_changed:
        fields = ", ".join(f"{name} {count}" for name, count in data.changed_fields.most_common())
        lines.append(
            f"{data.num_changed} records of --data differ from the cache's ({fields}); those of "
            "--data are asked and graded"
        )
    notes = data.notes()
    if notes:
        counted = ", ".join(f"{count} {note}" for note, count in notes.most_common())
        lines.append(f"notes of their videos: {counted} (docs/files.md)")
    peak = data.peak()
    if peak is not None:
        way_out = (
            "; find a temperature with strive-cli inspect-scores --suggest-temperature "
            f"--num-segments {config.num_frames}"
        ) * peak.is_flat
        lines.append(
            "warning: " * peak.is_flat + f"importance at frame_temperature "
            f"{config.frame_temperature:g}, score_transform {config.score_transform}: "
            f"{peak.text} (median of {peak.num_questions} questions){way_out}"
        )
    return lines


def try_first_question(
    config: TrainConfig, data: TrainingData, rewards: Mapping[str, RewardFunction], first_step: int
) -> None:
    """Draw the first question's variants and call the rewards once, before a model is loaded.

    Raises:
        ConfigError: a kind of variant or a reward cannot be used.
    """
    # A mistake in a user's own function then shows in seconds, not after minutes of loading.
    record = data.questions_of(first_step)[0]
    data.read(record, first_step, [0])
    if config.check_rewards:
        try_rewards(rewards, config, record)


def records_digest(records: Iterable[Record]) -> str:
    """Hash the questions of a run in their order: the same for the same data in any form."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(asdict(record), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:32]


def require_same_records(folder: RunFolder, first_step: int, data: TrainingData) -> None:
    """Refuse to go on with other records than those that the steps before were trained on.

    Raises:
        CheckpointError: texts, options, solutions or their order differ.
    """
    digest = records_digest(data.records)
    if first_step and folder.read_state(first_step).get("records_digest", digest) != digest:
        raise CheckpointError(
            f"{folder.checkpoint(first_step)} was trained on other records than are given now "
            "(their texts, options or solutions differ); give those of before, or another --run-dir"
        )


# --- the policy ----------------------------------------------------------------------------------


def make_trainable(policy: Policy, config: TrainConfig) -> None:
    """Choose what of a policy learns, in place: the same on every process and after every resume.

    Raises:
        ConfigError: `lora_targets` matches no layer of this model, or one that it must not.
    """
    if config.trainable == "lora":
        add_adapters(
            policy,
            targets=config.lora_targets,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            seed=config.seed,
        )
    else:
        set_trainable(policy, config.trainable)


def weights_digest(policy: Policy) -> str:
    """Hash every tensor's name, shape and a few values spread over it: cheap at any size.

    Adapters are no part of it.
    """
    digest = hashlib.sha256()
    for name, parameter in base_parameters(policy.model):
        flat = parameter.detach().reshape(-1)
        few = flat[:: max(1, flat.numel() // _VALUES_PER_TENSOR)].float().cpu().numpy()
        digest.update(f"{name}:{tuple(parameter.shape)}:".encode())
        digest.update(few.tobytes())
    return digest.hexdigest()[:16]


def require_same_start(folder: RunFolder, step: int, start_digest: str, model: str) -> None:
    """Refuse to resume from another starting model under the same name.

    Raises:
        CheckpointError: the model's weights are not those that the run began with.
    """
    # The reference model and all that is frozen come from the starting folder again.
    found = folder.read_state(step)["start_digest"]
    if found != start_digest:
        raise CheckpointError(
            f"{folder.checkpoint(step)} began from other weights ({found}) than model {model} has "
            f"now ({start_digest}); restore that model to resume, or start anew with another "
            "--run-dir"
        )
