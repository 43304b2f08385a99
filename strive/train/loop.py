"""The training loop: set-up, steps, checkpoints, held-out evaluation, and the run folder.

`metrics.jsonl` has one line a step; see `metrics.py`, `step.py` and here for who makes which names:
`group/ reward/ completion/ variants/` from the groups, `loss/ policy/ optim/` from the update,
`time/ memory/` here.
"""

import copy
import platform
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from strive import __version__
from strive.configs.schema import TrainConfig
from strive.errors import Interrupted
from strive.models.decoding import Decoder
from strive.models.language import require_gradient
from strive.models.loading import Policy, checkpoint_activations, load_policy
from strive.progress import say, show
from strive.records import Record
from strive.train.data import Prefetcher, TrainingData, step_share
from strive.train.engine import Engine, read_deepspeed_preset
from strive.train.loggers import MetricWriters, require_loggers
from strive.train.loss import load_loss
from strive.train.metrics import completion_rows
from strive.train.plan import explaining_out_of_memory
from strive.train.processes import (
    Processes,
    raising_at_sigterm,
    start_processes,
    stopping_at_signals,
)
from strive.train.rewards import RewardFunction, load_rewards
from strive.train.rollout import PreparedVariant, prepare_variants
from strive.train.run_folder import Best, RunFolder, checkpoint_name
from strive.train.saves import keep_if_best, write_checkpoint, write_policy
from strive.train.start import (
    comparable,
    comparable_cache,
    first_step_of,
    holding,
    make_trainable,
    preflight,
    records_digest,
    require_same_records,
    require_same_start,
    resume_notes,
    try_first_question,
    weights_digest,
)
from strive.train.step import StepResult, Trainer, train_step
from strive.train.timing import Stopwatch, peak_memory_bytes
from strive.train.watch import LearningWatch, first_step_warnings

# Held-out metrics of a policy, `accuracy` among them. All processes call it together; the main
# one's answer counts.
HeldOut = Callable[[Policy, Processes], Mapping[str, float]]
STEPS_BETWEEN_COMPLETION_PARTS = 50


@dataclass(frozen=True)
class StepReport:
    """What the caller's terminal view gets after every step."""

    step: int
    num_steps: int
    metrics: Mapping[str, float]
    held_out: Mapping[str, float] | None
    best: Best | None
    """What `best/` holds; None without held-out evaluation."""


@dataclass(frozen=True)
class TrainSummary:
    """What a finished run says about itself."""

    run_dir: Path
    final: Path
    num_steps: int
    first_step: int
    """Steps that were already done when this call began."""
    seconds: float
    scorer: str | None
    num_questions: int
    last_metrics: Mapping[str, Any]
    best: Best | None


def train(
    config: TrainConfig,
    *,
    run_dir: Path,
    resume: bool = False,
    evaluate_held_out: HeldOut | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> TrainSummary:
    """Train a policy and leave a run folder; the first line printed names the scorer.

    `config.model` is a folder or hub id. Every process of the run makes the same call; `on_step`
    is called on the main one.

    Raises:
        ConfigError, CacheError, ModelError, CheckpointError: before anything is computed.
        NonFiniteError: before the optimiser step that it would have spoilt; it names the folder
            that holds the batch.
        RewardError: a reward function failed; it names the file that holds the completions.
        DiskError: a checkpoint or policy could not be written; nothing half is left of it.
        OutOfMemoryError: it names the settings that take less.
        Interrupted: after SIGINT or SIGTERM, with a checkpoint written.
    """
    started = time.perf_counter()
    processes = start_processes()
    data, rewards = processes.main_first(lambda: _open_data(config, processes))
    folder = RunFolder(run_dir)
    look = partial(first_step_of, folder, config, data, processes, resume)
    with holding(folder, look, processes) as first_step, ExitStack() as open_things:
        is_done = first_step == config.steps and processes.of_main(lambda: folder.has_final)
        if is_done and processes.is_main:
            say(f"train: {folder.root} already has all of its {first_step} steps; nothing to do")
        if not is_done:
            # Whatever is refused leaves the folder as it was: it is cut back last.
            start = _Start(config, data, rewards, processes, folder, first_step)
            loading = explaining_out_of_memory(config, processes, "loading the policy")
            with raising_at_sigterm(), loading:
                _check_start(start, resume)
                trainer, about = _open_trainer(start)
                prefetcher = open_things.enter_context(_StepReader(trainer, data))
                trainer = replace(trainer, replace_questions=prefetcher.others)
                if first_step < config.steps:
                    prefetcher.begin(first_step).result()
            opened = MetricWriters.opened(folder, config, processes, first_step)
            writers = open_things.enter_context(opened)
            processes.of_main(lambda: _begin_folder(start))
            run = _Run(trainer, prefetcher, folder, writers, about, evaluate_held_out)
            _run_steps(run, first_step, on_step)
    return TrainSummary(
        run_dir=folder.root,
        final=folder.final,
        num_steps=config.steps,
        first_step=first_step,
        seconds=time.perf_counter() - started,
        scorer=data.scorer_name,
        num_questions=len(data.records),
        last_metrics=folder.last_metrics(),
        best=folder.read_best(),
    )


def _open_data(
    config: TrainConfig, processes: Processes
) -> tuple[TrainingData, dict[str, RewardFunction]]:
    """The run's questions and its rewards, after what can be refused without reading any data."""
    require_loggers(config.loggers)
    require_gradient(config.attention, processes.device)
    read_deepspeed_preset(config.deepspeed)
    load_loss(config)
    rewards = load_rewards(list(config.rewards))
    step_share(config, 0, processes.world_size)
    return TrainingData(config), rewards


@dataclass(frozen=True)
class _Start:
    """The parts of a run that begins after `first_step` steps, before a model is loaded."""

    config: TrainConfig
    data: TrainingData
    rewards: dict[str, RewardFunction]
    processes: Processes
    folder: RunFolder
    first_step: int


def _check_start(start: _Start, resume: bool) -> None:
    """Refuse what can be refused before a model is loaded; say how the run begins."""
    config, data, processes = start.config, start.data, start.processes
    folder, first_step = start.folder, start.first_step
    lines = processes.main_first(lambda: preflight(config, data))
    processes.of_main(lambda: require_same_records(folder, first_step, data))
    processes.of_main(lambda: try_first_question(config, data, start.rewards, first_step))
    if processes.is_main:
        for text in resume_notes(folder, first_step) if resume else ():
            say(f"train: {text}")
        scorer = f"scores of {data.scorer_name}" if data.scorer_name else "no scores needed"
        show(
            f"train: {config.variants} variants, {scorer}; "
            f"{len(data.records)} questions of {data.layout.root}"
            f"; policy {config.model}, prompt {config.prompt_template}; "
            f"{config.questions_per_step} questions x {config.num_variants} variants x "
            f"{config.num_generations} completions a step; "
            f"{processes.world_size} {processes.device.type} process"
            + ("es" if processes.world_size > 1 else "")
            + (f"; continues after step {first_step}" if first_step else "")
        )
        for text in lines:
            say(text)


def _open_trainer(start: _Start) -> tuple[Trainer, dict[str, Any]]:
    """The policy and its engine after the steps that are done, and what its checkpoints say."""
    config, processes, first_step = start.config, start.processes, start.first_step
    policy = load_policy(
        config.model,
        dtype=config.dtype,
        device=processes.device,
        position_rule=config.position_rule,
    )
    start_digest = weights_digest(policy)
    if first_step:
        with processes.together():
            require_same_start(start.folder, first_step, start_digest, config.model)
    trainer = build_trainer(config, policy, processes, start.rewards)
    if first_step:
        trainer.engine.load(start.folder.checkpoint(first_step))
        # Runs that began before there were any have none.
        averages = start.folder.read_state(first_step).get("std_averages", {})
        trainer.std_averages.update(averages)
    about = {
        "config": comparable(config),
        "cache": comparable_cache(start.data),
        "start_digest": start_digest,
        "records_digest": records_digest(start.data.records),
    }
    return trainer, about


def build_trainer(
    config: TrainConfig, policy: Policy, processes: Processes, rewards: dict[str, Any]
) -> Trainer:
    """Put together what every step needs; the policy's weights become those that train."""
    with processes.together():
        make_trainable(policy, config)
    if config.gradient_checkpointing:
        checkpoint_activations(policy.model)
        policy.model.train()
    # With its adapters off an adapted model is its own reference.
    is_own_reference = config.beta > 0 and config.trainable == "lora"
    has_copy = config.beta > 0 and not is_own_reference
    engine = Engine(policy, processes, config, with_reference=has_copy)
    reference = policy.model if is_own_reference else engine.reference
    sampler = Decoder(policy, mode=config.decode)
    loss_rule = load_loss(config)
    return Trainer(config, policy, reference, engine, processes, rewards, loss_rule, sampler)


class _StepReader(Prefetcher[list[PreparedVariant]]):
    """Reads this process's variants of each step ahead, and those of other questions when asked."""

    def __init__(self, trainer: Trainer, data: TrainingData) -> None:
        # A tokenizer must not serve two threads: the reading one gets its own.
        processor = copy.deepcopy(trainer.policy.processor)
        self._policy = replace(trainer.policy, processor=processor, tokenizer=processor.tokenizer)
        self._config, self._data = trainer.config, data
        processes = trainer.processes
        self._share = step_share(trainer.config, processes.rank, processes.world_size)
        super().__init__(self._load, trainer.config.steps)

    def _load(self, step: int) -> list[PreparedVariant]:
        records = self._data.questions_of(step)
        return self._prepare(step, {place: records[place] for place, _ in self._share})

    def _prepare(self, step: int, record_of: Mapping[int, Record]) -> list[PreparedVariant]:
        own = {place: variants for place, variants in self._share if place in record_of}
        questions = [
            self._data.read(record_of[place], step, variants) for place, variants in own.items()
        ]
        if not questions:
            return []
        return prepare_variants(self._policy, questions, self._config, list(own))

    def others(
        self, step: int, round_number: int, places: Sequence[int], used: Collection[str]
    ) -> list[PreparedVariant]:
        """This process's variants of other questions for some places of a step."""
        record_of = self._data.replacements_of(step, round_number, places, used)
        return self.call(lambda: self._prepare(step, record_of))


def _begin_folder(start: _Start) -> None:
    """Cut the folder back to the steps that are done, and write what the run is made of."""
    folder = start.folder
    folder.begun = True
    folder.cut_back(start.first_step)
    packages = ("torch", "transformers", "deepspeed", "numpy")
    folder.write_config(
        {
            "config": start.config.model_dump(mode="json"),
            "data": start.data.describe(),
            "versions": {
                "strive": __version__,
                "python": platform.python_version(),
                **{package: version(package) for package in packages},
            },
            "num_processes": start.processes.world_size,
            "device": start.processes.device.type,
        }
    )


@dataclass(frozen=True)
class _Run:
    """An open run: everything that its steps use."""

    trainer: Trainer
    prefetcher: _StepReader
    folder: RunFolder
    writers: MetricWriters
    about: dict[str, Any]
    """What a checkpoint and a saved policy say of the run."""
    evaluate_held_out: HeldOut | None


def _run_steps(run: _Run, first_step: int, on_step: Callable[[StepReport], None] | None) -> None:
    """Evaluate, learn, write and save, step by step, and leave `final/`."""
    config, processes, folder = run.trainer.config, run.trainer.processes, run.folder
    learning = LearningWatch(config)
    with stopping_at_signals() as stop:
        if first_step == 0:
            _evaluate(run, 0)
        for step in range(first_step, config.steps):
            done = step + 1
            result, metrics = _timed_step(run, step)
            if processes.is_main:
                if step == first_step:
                    _warn(
                        first_step_warnings(
                            result.metrics,
                            first_kl=result.first_kl,
                            is_resumed=step > 0,
                            dtype=str(run.trainer.policy.dtype).removeprefix("torch."),
                            device_type=processes.device.type,
                        )
                    )
                for outcome in result.outcomes:
                    folder.add_completions(completion_rows(outcome, done))
            run.writers.metrics(done, metrics)
            if processes.is_main:
                _warn(learning.see(metrics, is_last=done == config.steps))
            held_out = _evaluate(run, done)
            if on_step is not None and processes.is_main:
                on_step(StepReport(done, config.steps, metrics, held_out, folder.read_best()))
            stopping = processes.any(stop.requested) and done < config.steps
            if stopping or _is_due(done, config.checkpoint_every, config.steps):
                write_checkpoint(run.trainer, folder, done, run.about)
            elif processes.is_main and done % STEPS_BETWEEN_COMPLETION_PARTS == 0:
                folder.flush_completions()
            if stopping:
                raise processes.told_once(
                    Interrupted(
                        f"interrupted after step {done} of {config.steps}; its checkpoint is in "
                        f"{folder.checkpoint(done)}; the same command with --resume continues"
                    )
                )
        # Before the loggers close, which may take as long as a network wants.
        write_policy(run.trainer, folder, run.about, config.steps)


def _warn(texts: Iterable[str]) -> None:
    for text in texts:
        say(f"warning: {text}")


def _timed_step(run: _Run, step: int) -> tuple[StepResult, dict[str, float]]:
    """Run a step; its metrics with times and memory."""
    config, processes = run.trainer.config, run.trainer.processes
    watch = Stopwatch(processes.device)
    name = checkpoint_name(step + 1)
    explaining = explaining_out_of_memory(
        config, processes, f"step {step + 1}", lambda: watch.broken_off
    )
    with explaining, watch.measure("time/step"):
        with watch.measure("time/data"):
            prepared = run.prefetcher.get(step)
        result = train_step(
            run.trainer,
            prepared,
            step,
            watch,
            nonfinite_folder=run.folder.nonfinite / name,
            failed_reward_folder=run.folder.failed_reward / name,
        )
    peak = peak_memory_bytes(processes.device)
    return result, {**result.metrics, **watch.seconds, "memory/peak_bytes": peak}


def _is_due(done: int, every: int, num_steps: int) -> bool:
    return done == num_steps or (every > 0 and done % every == 0)


def _evaluate(run: _Run, done: int) -> Mapping[str, float] | None:
    """Evaluate before the first step, every `evaluate_every` steps and last; keep the best."""
    trainer, evaluate = run.trainer, run.evaluate_held_out
    config, processes = trainer.config, trainer.processes
    every = config.evaluate_every
    if evaluate is None or every == 0 or not _is_due(done, every, config.steps):
        return None
    # Every process takes part, so that none waits idle, or longer than a collective may.
    with (
        explaining_out_of_memory(config, processes, f"the held-out evaluation after step {done}"),
        trainer.engine.gathered(),
    ):
        own = dict(evaluate(trainer.policy, processes))
    values = processes.gather(own)[0]
    run.writers.held_out(done, values)
    if config.keep_best:
        keep_if_best(trainer, run.folder, done, values, run.about)
    return values
