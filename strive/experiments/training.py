"""One training run with everything around it: the lab's defaults, held-out evaluation, progress."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strive.configs.load import load_train_config
from strive.configs.schema import TrainConfig
from strive.errors import CacheError, ConfigError
from strive.experiments.workspace import (
    LAB_PREFIX,
    Workspace,
    require_lab_cache,
    resolve_model,
)
from strive.progress import show_progress
from strive.variants import find_variant_kind

if TYPE_CHECKING:
    from strive.models.loading import Policy
    from strive.train.loop import TrainSummary

LAB_PRESETS = {"none": "lab_grpo"}


def runs_on_lab(options: Mapping[str, Any], overrides: Sequence[str], files: Sequence[str]) -> bool:
    """Tell whether a call named nothing of the user's own, so that the embedded lab is meant.

    One of the lab's models (`lab:NAME`) is not the user's own.
    """
    values = {key: str(options[key]) for key in ("data", "cache", "model") if options.get(key)}
    for text in overrides:
        key, _, value = text.partition("=")
        if key.strip() in ("data", "cache", "model"):
            values[key.strip()] = value.strip()
    if values.get("model", "").startswith(LAB_PREFIX):
        del values["model"]
    return not values and all(name.startswith("lab_") for name in files)


def resolve_config(
    workspace: Workspace,
    files: Sequence[str],
    overrides: Sequence[str],
    options: Mapping[str, Any],
) -> tuple[TrainConfig, bool]:
    """Return the configuration of a call and whether it runs on the embedded lab.

    With no data, cache or model of the user's, the lab's preset, records and cache are filled in;
    otherwise nothing of the lab is: a run never mixes the two silently.

    Raises:
        ConfigError: an unknown key or wrong value.
        CacheError: there is no cache yet; the message says which command makes it.
    """
    options = dict(options)
    on_lab = runs_on_lab(options, overrides, files)
    if on_lab:
        files = files or [LAB_PRESETS.get(str(options.get("variants")), "lab_strive")]
        options["cache"] = workspace.lab_cache
        options["data"] = (workspace.lab / "train.jsonl",)
        if not any(text.startswith("held_out=") for text in overrides):
            options["held_out"] = (workspace.lab / "held_out.jsonl",)
    config = load_train_config(files, overrides, options)
    find_variant_kind(config.variants)
    if on_lab:
        require_lab_cache(workspace)
        return config, True
    cache = config.cache or workspace.cache
    if not (cache / "cache.json").is_file():
        records = " ".join(f"--data {path}" for path in config.data) or "--data RECORDS"
        raise CacheError(
            f"no cache at {cache}; make it with: strive-cli precompute {records} --cache {cache} "
            f"--scorer {config.scorer or 'siglip2'}"
        )
    return config.model_copy(update={"cache": cache}), False


def run_name(config: TrainConfig) -> str:
    """Return the readable part of a run folder's name."""
    model = Path(config.model.removeprefix("lab:")).name.lower()
    return f"{model}-{config.variants.replace(':', '.')}"


def choose_run_dir(
    workspace: Workspace, config: TrainConfig, run_dir: Path | None, *, resume: bool
) -> Path:
    """Return the run folder: the named one, the newest of its name to resume, else the next free.

    Raises:
        ConfigError: several processes, which cannot agree on a free name by themselves.
    """
    if run_dir is not None:
        return run_dir
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"{os.environ['WORLD_SIZE']} processes were started and no run folder was named; "
            "give --run-dir, so that all of them write to the same one"
        )
    name = run_name(config)
    return workspace.newest_run(name) if resume else workspace.new_run(name)


def with_model_folder(config: TrainConfig) -> TrainConfig:
    """Replace `lab:NAME` by that model's folder."""
    return config.model_copy(update={"model": resolve_model(config.model)})


def held_out_callable(config: TrainConfig) -> Callable[["Policy"], dict[str, float]] | None:
    """Return what training calls every `evaluate_every` steps: greedy answers, uniform frames."""
    if not config.evaluate_every:
        return None
    from strive.cache.frames import FrameReader
    from strive.cache.layout import default_frames_key, open_cache
    from strive.evaluate.frames import CacheFrames, FrameChoice
    from strive.evaluate.runner import AskSettings, held_out_metrics
    from strive.records import read_records

    assert config.cache is not None
    layout = open_cache(config.cache)
    choice = FrameChoice(config.num_frames)
    source = CacheFrames(FrameReader(layout, default_frames_key(layout)), choice)
    records = read_records(config.held_out).records
    settings = AskSettings(
        template=config.prompt_template,
        max_new_tokens=config.max_new_tokens,
        max_pixels=config.max_pixels,
        grading=config.grading,
    )
    return lambda policy: held_out_metrics(
        policy, records, source, settings=settings, choice=choice
    )


def run_training(config: TrainConfig, *, run_dir: Path, resume: bool = False) -> "TrainSummary":
    """Train with progress on the terminal; every process of a run makes the same call."""
    from strive.train.loop import StepReport, train

    config = with_model_folder(config)
    with show_progress("train", config.steps, "steps") as progress:
        seen = 0

        def on_step(report: StepReport) -> None:
            nonlocal seen
            progress.advance(report.step - seen)
            seen = report.step
            progress.note(step_note(report.metrics, report.held_out))

        return train(
            config,
            run_dir=run_dir,
            resume=resume,
            evaluate_held_out=held_out_callable(config),
            on_step=on_step,
        )


def step_note(metrics: Mapping[str, float], held_out: Mapping[str, float] | None) -> str:
    """Return the figures that are watched while training runs."""
    text = (
        f"reward {metrics['reward/mean']:.2f}, zero-std "
        f"{metrics['group/zero_std_fraction']:.0%}, {metrics['completion/length_mean']:.0f} tokens"
    )
    if held_out:
        text += f", held-out {held_out['accuracy']:.1%}"
    return text
