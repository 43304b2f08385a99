"""One call of the offline stage with the lab's defaults filled in."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from strive.cache.layout import open_cache
from strive.cache.questions import read_questions
from strive.configs.load import Given, load_config
from strive.configs.schema import PrecomputeConfig, TrainConfig
from strive.errors import ConfigError
from strive.experiments.workspace import LAB_PREFIX, Workspace, ensure_lab, resolve_model
from strive.lab.models import lab_model_names
from strive.scorers import check_scorer_name
from strive.variants import NEEDS_SCORES, VARIANT_KINDS

LAB_SPLITS = ("train", "held_out")
# Scorers that read frames with a policy: `--policy` is the model of all of them.
POLICY_SCORERS = ("policy", "gradient")
LAB_POLICY = "lab:qwen2_5_vl"


def resolve(
    workspace: Workspace, given: Given, *, say_lab: Callable[[], None] = lambda: None
) -> PrecomputeConfig:
    """Return the whole configuration of a call; `say_lab` is called if it means the lab.

    Without records of the user's, the lab's stand in, with its models. With `for_config` it is what
    that training run will read.

    Raises:
        ConfigError: an unknown key, a wrong value, or options that contradict one another.
        MissingInputError: `--for-config` names neither a preset nor a file.
    """
    config = load_config(PrecomputeConfig, *given)
    given_keys = config.model_fields_set
    run = None
    if config.for_config is not None:
        for key in ("subset", "seed", "filters"):
            if key in given_keys:
                knob = f"--{key.removesuffix('s')}"
                raise ConfigError(
                    f"{knob} and --for-config {config.for_config} together: the configuration says "
                    "which records a run reads (num_questions, seed); leave one of the two out"
                )
        run = load_config(TrainConfig, [config.for_config])
    scorers = _choose_scorers(config, run)
    models = choose_models(config, scorers)
    data = config.data or (run.data if run is not None else ())
    on_lab = not data
    found: dict[str, Any] = {"data": data, "scorers": scorers, "scorer_models": models}
    if on_lab:
        if run is not None and not run.model.startswith(LAB_PREFIX):
            raise ConfigError(
                f"--for-config {config.for_config} names no records (its key data is empty); give "
                "those that the run will read with --data"
            )
        say_lab()
        if "video_root" in given_keys:
            raise ConfigError(f"--video-root {config.video_root} was given without --data")
        if "cache" in given_keys:
            _require_lab_questions(config.cache)
        world = ensure_lab(workspace)
        data = tuple(world.records_file(split) for split in LAB_SPLITS)
        known = {name: LAB_PREFIX + name for name in lab_model_names()}
        known |= dict.fromkeys(POLICY_SCORERS, LAB_POLICY)
        of_lab = {name: resolve_model(known[name]) for name in scorers if name in known}
        found |= {"data": data, "video_root": world.root, "scorer_models": of_lab | models}
    elif "video_root" not in given_keys:
        found["video_root"] = data[0].parent
    if "cache" not in given_keys:
        found["cache"] = workspace.lab_cache if on_lab else workspace.cache
    if run is not None:
        # On the lab a run trains on one split and is evaluated on the other.
        found |= {
            "data": data[:1] if on_lab else data,
            "held_out": data[1:] if on_lab else run.held_out_files,
            "subset": run.num_questions,
            "seed": run.seed,
            "skip_bad_records": config.skip_bad_records or run.skip_bad_records,
        }
    return config.model_copy(update=found)


def reads_scores(run: TrainConfig) -> bool:
    """Whether a run's variants are drawn by scores; those of a user's own may be."""
    return run.variants in NEEDS_SCORES or run.variants not in VARIANT_KINDS


def _choose_scorers(config: PrecomputeConfig, run: TrainConfig | None) -> tuple[str, ...]:
    """Return the scorers of a call; a run whose variants need none gets frames alone."""
    scorers = config.scorers
    if run is not None:
        reads = reads_scores(run)
        if "scorers" not in config.model_fields_set:
            scorers = ((run.scorer,) if run.scorer else scorers) if reads else ()
        elif reads and run.scorer is not None and run.scorer not in scorers:
            raise ConfigError(
                f"--for-config {config.for_config} reads scores of '{run.scorer}', which is not "
                f"among --scorer {', '.join(scorers)}; add it or leave --scorer out"
            )
    for name in scorers:
        check_scorer_name(name)
    return scorers


def choose_models(config: PrecomputeConfig, scorers: Sequence[str]) -> dict[str, str]:
    """Return each scorer's model as `--scorer-model` and `--policy` give them.

    Raises:
        ConfigError: `--policy` without a scorer that is a policy, or a model of no scorer.
    """
    models = {}
    if config.policy is not None:
        using = [name for name in scorers if name in POLICY_SCORERS]
        if not using:
            raise ConfigError(
                f"--policy {config.policy} is the model of the scorers "
                f"{' and '.join(POLICY_SCORERS)}, of which this call has none; add --scorer "
                f"{POLICY_SCORERS[0]}"
            )
        models = dict.fromkeys(using, resolve_model(config.policy))
    for name, model in config.scorer_models.items():
        if not name and len(scorers) != 1:
            raise ConfigError(
                f"--scorer-model '{model}' does not say whose it is; write NAME={model} "
                f"with one of: {', '.join(scorers)}"
            )
        models[name or scorers[0]] = resolve_model(model)
    return models


def _require_lab_questions(cache: Path) -> None:
    """Refuse to put the lab's questions beside the user's own.

    Raises:
        ConfigError: the cache holds questions that are not the lab's.
    """
    if not (cache / "cache.json").is_file():
        return
    own = [r for r in read_questions(open_cache(cache)) if not r.data_source.startswith("lab/")]
    if own:
        raise ConfigError(
            f"--cache {cache} holds {len(own)} questions that are not the lab's, and no --data was "
            "given; give the --data of that cache, or another --cache for the lab"
        )
