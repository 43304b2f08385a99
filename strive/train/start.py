"""Where a run begins: anew, or after a checkpoint of the very same run.

The reference model and all that is frozen come from the starting folder again on resume, so another
model under the same name must not slip in: its weights are told apart by a digest.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from strive.answers import build_question
from strive.configs.schema import TrainConfig
from strive.errors import CheckpointError
from strive.models.loading import Policy
from strive.models.lora import add_adapters, base_parameters
from strive.train.card import records_digest
from strive.train.data import TrainingData
from strive.train.engine import set_trainable
from strive.train.processes import Processes
from strive.train.rewards import RewardFunction, try_rewards
from strive.train.run_folder import RunFolder, checkpoint_name, require_same_config

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
_VALUES_PER_TENSOR = 64


@contextmanager
def holding(folder: RunFolder, look: Callable[[], int], processes: Processes) -> Iterator[int]:
    """Keep other runs out of a folder; gives what `look` finds there: the steps already done.

    The main process looks and holds for all; where it refuses, so does every other. Left before
    the run began, the folder is as it was.

    Raises:
        CheckpointError, DiskError: what `look` raises; the folder is in use or cannot be.
    """

    def claim() -> int:
        # Before anything is made. Where a run is or was, its lock is asked first: it may just run.
        if not folder.lock.left_by_a_run():
            look()
        folder.lock.take()
        return look()

    try:
        yield processes.of_main(claim)
    finally:
        folder.release()


def first_step_of(
    folder: RunFolder, config: TrainConfig, data: TrainingData, processes: Processes, resume: bool
) -> int:
    """How many steps the newest whole checkpoint of the run folder has done; 0 for a new run.

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
    steps, damaged = folder.whole_checkpoint_steps(), folder.damaged_checkpoints()
    if damaged and not steps:
        listed = "; ".join(f"{checkpoint_name(step)}: {why}" for step, why in damaged.items())
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


def how_it_goes_on(folder: RunFolder, first_step: int) -> Iterator[str]:
    """What a user who said --resume should know: a line each."""
    missing = set(range(1, first_step + 1)) - folder.logged_steps()
    if missing:
        yield (
            f"{folder.metrics_file} lacks {len(missing)} of its {first_step} steps (first: "
            f"{min(missing)}); the run goes on, its curves will not have them"
        )
    for step, reason in folder.damaged_checkpoints().items():
        if step > first_step:
            yield (
                f"{folder.checkpoint(step)} is damaged ({reason}); the run goes on from step "
                f"{first_step}, the newest whole checkpoint"
            )
    if first_step == 0:
        yield f"{folder.root} holds no checkpoint to resume from; the run begins at its first step"


def try_first_question(
    config: TrainConfig,
    data: TrainingData,
    rewards: Mapping[str, RewardFunction],
    first_step: int,
) -> None:
    """Draw the first question's variants and call the rewards once, before a model is loaded.

    What a user's own functions do wrong shows in seconds, and not after minutes of loading.

    Raises:
        ConfigError: a kind of variant or a reward cannot be used.
    """
    record = data.questions_of(first_step)[0]
    data.read(record, first_step, [0])
    if config.check_rewards:
        try_rewards(
            rewards,
            config.rewards,
            record,
            prompt=build_question(record, config.prompt_template),
            num_completions=config.num_variants * config.num_generations,
            grading=config.grading,
        )


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


def comparable(config: TrainConfig) -> dict[str, Any]:
    """The settings that a resumed run must share."""
    values = config.model_dump(mode="json")
    # With a constant rate more steps leave the earlier ones as they were; a cosine depends on them.
    free = (*_FREE_KEYS, "steps") if config.schedule == "constant" else _FREE_KEYS
    return {key: value for key, value in values.items() if key not in free}


def comparable_cache(data: TrainingData) -> dict[str, Any]:
    """What of the cache a resumed run must share."""
    described = data.describe()
    return {key: described[key] for key in ("frames_key", "scorer_key", "num_questions")}


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
    """Refuse to resume from another starting model.

    Raises:
        CheckpointError: the model's weights are not those that the run began with.
    """
    found = folder.read_state(step)["start_digest"]
    if found != start_digest:
        raise CheckpointError(
            f"{folder.checkpoint(step)} began from other weights ({found}) than model {model} has "
            f"now ({start_digest}); restore that model to resume, or start anew with another "
            "--run-dir"
        )
