"""One training run with everything around it: the lab's defaults, held-out evaluation, progress."""

import math
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strive.configs.load import Given, build_config, merge_layers
from strive.configs.schema import EvaluateConfig, TrainConfig
from strive.errors import CacheError, ConfigError, RunInUseError
from strive.experiments.workspace import (
    LAB_PREFIX,
    LAB_TEMPLATE,
    Workspace,
    require_lab_cache,
    resolve_model,
)
from strive.progress import Progress, number_text, say, show_progress, size_text, time_text
from strive.train.rewards import load_rewards
from strive.variants import find_variant_kind

if TYPE_CHECKING:
    from strive.models.loading import Policy
    from strive.train.loop import StepReport, TrainSummary
    from strive.train.processes import Processes


LAB_PRESET = "lab"


def means_lab(files: Sequence[str], values: Mapping[str, Any]) -> bool:
    """Whether a training call means the embedded lab.

    It names no data, cache or model but the lab's, and no preset or file but the lab's own, or the
    preset `lab` beside them.

    Args:
        files: presets and YAML files of the call.
        values: what they and the call's own options set, by key.
    """
    own = values.keys() & {"data", "cache", "model"}
    if str(values.get("model")).startswith(LAB_PREFIX):
        own.discard("model")
    return not own and (
        LAB_PRESET in files or all(name.startswith(f"{LAB_PRESET}_") for name in files)
    )


def resolve_config(workspace: Workspace, given: Given) -> tuple[TrainConfig, bool]:
    """Return the configuration of a call and whether it runs on the embedded lab.

    With no data, cache or model of the user's, the lab's preset, records and cache are filled in;
    otherwise nothing of the lab is: a run never mixes the two silently.

    A model of the lab is replaced by its folder.

    Raises:
        ConfigError: an unknown key or wrong value.
        CacheError: there is no cache yet; the message says which command makes it.
    """
    values = merge_layers(TrainConfig, *given)
    on_lab = means_lab(given.files, values)
    if on_lab:
        preset = "lab_grpo" if values.get("variants") == "none" else "lab_strive"
        values = {
            "held_out": (workspace.lab / "held_out.jsonl",),
            **merge_layers(TrainConfig, given.files or [preset], *given[1:]),
            "data": (workspace.lab / "train.jsonl",),
            "cache": workspace.lab_cache,
        }
    config = build_config(TrainConfig, values)
    find_variant_kind(config.variants)
    load_rewards(list(config.rewards))
    if on_lab:
        require_lab_cache(workspace)
        return with_model_folder(config), True
    cache = config.cache or workspace.cache
    if not (cache / "cache.json").is_file():
        records = " ".join(f"--data {path}" for path in config.data) or "--data RECORDS"
        raise CacheError(
            f"no cache at {cache}; make it with: strive-cli precompute {records} --cache {cache} "
            f"--scorer {config.scorer or 'siglip2'}"
        )
    return with_model_folder(config.model_copy(update={"cache": cache})), False


def with_model_folder(config: TrainConfig) -> TrainConfig:
    """Replace `lab:NAME` by that model's folder; say where it is asked as it was not taught."""
    is_taught = config.prompt_template == LAB_TEMPLATE
    if config.model.startswith(LAB_PREFIX) and not is_taught and os.environ.get("RANK", "0") == "0":
        say(
            f"warning: the lab's models were taught prompt_template={LAB_TEMPLATE}, and are asked "
            f"with {config.prompt_template} (--set prompt_template={LAB_TEMPLATE})"
        )
    return config.model_copy(update={"model": resolve_model(config.model)})


def run_training(
    config: TrainConfig, workspace: Workspace, *, run_dir: Path | None = None, resume: bool = False
) -> "TrainSummary":
    """Train with progress on the terminal; every process of a run makes the same call.

    Where `run_dir` is not given, the run folder is the newest of its name to resume, else the next
    free one in the workspace.

    Raises:
        ConfigError: several processes, which cannot agree on a free name by themselves.
    """
    from strive.train.engine import read_deepspeed_preset
    from strive.train.loop import train

    if run_dir is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"{os.environ['WORLD_SIZE']} processes were started and no run folder was named; "
            "give --run-dir, so that all of them write to the same one"
        )
    read_deepspeed_preset(config.deepspeed)  # before any data is read
    name = f"{Path(config.model).name.lower()}-{config.variants.replace(':', '.')}"
    is_main = int(os.environ.get("RANK", "0")) == 0
    while True:
        folder = run_dir or (workspace.newest_run(name) if resume else workspace.new_run(name))
        held_out = held_out_callable(config)
        try:
            # One terminal, one view: the main process's.
            with show_progress("train", config.steps, "steps") if is_main else nullcontext() as bar:
                return train(
                    config,
                    run_dir=folder,
                    resume=resume,
                    evaluate_held_out=held_out,
                    on_step=TrainingView(bar).show if bar is not None else None,
                )
        except RunInUseError:
            # Another start took the free name in between: the next one is free.
            if run_dir is not None or resume:
                raise


def held_out_callable(
    config: TrainConfig,
) -> Callable[["Policy", "Processes"], dict[str, float]] | None:
    """Return what training calls every `evaluate_every` steps: greedy answers to what is held out.

    Records are shown uniform frames of the cache; benchmarks are decoded and shown frames by Video-
    R1's rule. The questions are split over the processes.
    """
    if not config.evaluate_every:
        return None
    from strive.evaluate.asking import Asking, choose_part, open_benchmark
    from strive.evaluate.benchmarks import parse_spec
    from strive.evaluate.benchmarks.base import PlainRecords
    from strive.evaluate.frames import CacheFrames
    from strive.evaluate.items import Item
    from strive.evaluate.runner import held_out_metrics
    from strive.groups import held_out_records

    settings = EvaluateConfig(
        prompt_template=config.prompt_template,
        system_prompt=config.system_prompt,
        num_frames=config.num_frames,
        max_new_tokens=config.max_new_tokens,
        max_pixels=config.max_pixels,
        grading=config.grading,
        decode=config.decode,
    )
    records, frames, _ = held_out_records(config)
    items = tuple(Item.of(record) for record in records)
    source = CacheFrames(frames, settings)
    askings = [Asking("held_out", PlainRecords(), items, source, settings)]
    for text in config.held_out_benchmarks:
        askings.append(choose_part(open_benchmark(parse_spec(text), settings)))

    def evaluate(policy: "Policy", processes: "Processes") -> dict[str, float]:
        own = [asking.part(processes.rank, processes.world_size) for asking in askings]
        return held_out_metrics(policy, own, processes.gather)

    return evaluate


# --- the figures that are watched while a run goes ------------------------------------------------

NUM_STEPS_OF_MEAN = 20
_PARTS = {"data": "data", "rollout": "rollout", "logprob": "log-probs", "backward": "backward"}


class TrainingView:
    """Shows every step's report on a progress display, as lines of at most 80 columns."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seen: int | None = None
        self._rewards: deque[float] = deque(maxlen=NUM_STEPS_OF_MEAN)
        self._held_out = ""

    def show(self, report: "StepReport") -> None:
        """Count the step and replace the figures."""
        if self._seen is None:
            self._seen = report.step - 1
            self._progress.begin(self._seen, report.metrics["time/step"])
        if not math.isnan(report.metrics["reward/mean"]):
            self._rewards.append(report.metrics["reward/mean"])
        if report.held_out is not None or not self._held_out:
            self._held_out = held_out_line(report)
        mean = sum(self._rewards) / max(len(self._rewards), 1)
        lines = figure_lines(report.metrics, mean, len(self._rewards))
        self._progress.note(*lines, *filter(None, [self._held_out]))
        self._progress.advance(report.step - self._seen)
        self._seen = report.step


def figure_lines(metrics: Mapping[str, float], mean: float, num_steps: int) -> list[str]:
    """Write the last step's reward and its mean over `num_steps`, its lengths, its seconds."""
    rewards = [name for name in metrics if name.startswith("reward/") and name != "reward/mean"]
    parts = [f"{name.removeprefix('reward/')} {number_text(metrics[name])}" for name in rewards]
    of_several = f", {number_text(mean)} over {num_steps} steps" if num_steps > 1 else ""
    whole = metrics["time/step"]
    shares = [f"{shown} {metrics[f'time/{name}'] / whole:.0%}" for name, shown in _PARTS.items()]
    return [
        f"reward {number_text(metrics['reward/mean'])} ({', '.join(parts)}){of_several}; "
        f"zero-std {metrics['group/zero_std_fraction']:.0%}",
        f"{metrics['completion/length_mean']:.0f} tokens a completion, "
        f"{metrics['completion/truncated_fraction']:.0%} cut; "
        f"KL {number_text(metrics['loss/kl'], 4)}, "
        f"gradient norm {number_text(metrics['optim/grad_norm'], 3)}",
        f"step {time_text(whole)}: {', '.join(shares)}; "
        f"peak {size_text(metrics['memory/peak_bytes'])}",
    ]


def held_out_line(report: "StepReport") -> str:
    """The held-out accuracy after this step and the best one, as far as there are any."""
    parts = []
    if report.held_out is not None:
        accuracy = report.held_out.get("accuracy", float("nan"))
        parts.append(f"held-out {accuracy:.1%} after step {report.step}")
    if report.best is not None:
        parts.append(f"best held-out {report.best.value:.1%} after step {report.best.step}")
    return "; ".join(parts)
