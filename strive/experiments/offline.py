"""One call of the offline stage with the lab's defaults filled in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strive.cache.layout import open_cache
from strive.cache.questions import read_questions
from strive.configs.load import load_train_config
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError
from strive.experiments.workspace import LAB_PREFIX, Workspace, ensure_lab, resolve_model
from strive.lab.models import lab_model_names
from strive.scorers import check_scorer_name
from strive.variants import NEEDS_SCORES, VARIANT_KINDS

LAB_SPLITS = ("train", "held_out")
DEFAULT_SCORER = "siglip2"
# Scorers that read frames with a policy: `--policy` is the model of all of them.
POLICY_SCORERS = ("policy", "gradient")
LAB_POLICY = "lab:qwen2_5_vl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a call says of its records, places and scorers, before the defaults."""

    data: tuple[Path, ...] = ()
    video_root: Path | None = None
    cache: Path | None = None
    filters: tuple[tuple[str, str], ...] = ()
    subset: int | None = None
    seed: int | None = None
    for_config: str | None = None
    scorers: tuple[str, ...] = ()
    scorer_models: tuple[str, ...] = ()
    policy: str | None = None


def resolve(
    workspace: Workspace, asked: Asked, *, say_lab: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Return the fields of `PrecomputeOptions` that follow from a call; `say_lab` if it is the lab.

    Raises:
        ConfigError: options that contradict one another.
        MissingInputError: `--for-config` names neither a preset nor a file.
    """
    config = _read_config(asked)
    scorers = _choose_scorers(asked, config)
    models = choose_models(asked.scorer_models, scorers, asked.policy)
    data = asked.data or (config.data if config is not None else ())
    on_lab = not data
    if on_lab:
        if config is not None and not config.model.startswith(LAB_PREFIX):
            raise ConfigError(
                f"--for-config {asked.for_config} names no records (its key data is empty); give "
                "those that the run will read with --data"
            )
        say_lab()
        models = lab_scorer_models(scorers, models)
    files, root, cache = choose_data(workspace, data, asked.video_root, asked.cache)
    found = {
        "data": files,
        "video_root": root,
        "cache": cache,
        "scorers": scorers,
        "scorer_models": models,
        "filters": asked.filters,
        "subset": asked.subset,
        "seed": asked.seed or 0,
    }
    if config is not None:
        # On the lab a run trains on one split and is evaluated on the other.
        held_out = tuple(files[1:]) if on_lab else tuple(config.held_out)
        found |= {
            "data": files[:1] if on_lab else files,
            "held_out": held_out,
            "for_config": asked.for_config,
            "training": config,
            "subset": config.num_questions,
            "seed": config.seed,
            "skip_bad_records": config.skip_bad_records,
        }
    return found


def _read_config(asked: Asked) -> TrainConfig | None:
    if asked.for_config is None:
        return None
    for knob, value in (
        ("--subset", asked.subset),
        ("--seed", asked.seed),
        ("--filter", asked.filters or None),
    ):
        if value is not None:
            raise ConfigError(
                f"{knob} and --for-config {asked.for_config} together: the configuration says "
                "which records a run reads (num_questions, seed); leave one of the two out"
            )
    return load_train_config([asked.for_config])


def _choose_scorers(asked: Asked, config: TrainConfig | None) -> tuple[str, ...]:
    """Return the scorers of a call; a run whose variants need none gets frames alone."""
    scorers = asked.scorers
    if config is not None:
        reads = config.variants in NEEDS_SCORES or config.variants not in VARIANT_KINDS
        wanted = config.scorer or (DEFAULT_SCORER if reads else None)
        if not scorers:
            scorers = (wanted,) if wanted and reads else ()
        elif reads and config.scorer is not None and config.scorer not in scorers:
            raise ConfigError(
                f"--for-config {asked.for_config} reads scores of '{config.scorer}', which is not "
                f"among --scorer {', '.join(scorers)}; add it or leave --scorer out"
            )
    else:
        scorers = scorers or (DEFAULT_SCORER,)
    for name in scorers:
        check_scorer_name(name)
    return scorers


def choose_models(
    texts: Sequence[str], scorers: Sequence[str], policy: str | None
) -> dict[str, str]:
    """Return each scorer's model as `--scorer-model` and `--policy` give them.

    Raises:
        ConfigError: `--policy` without a scorer that is a policy, or a text that fits no scorer.
    """
    models = {}
    if policy is not None:
        using = [name for name in scorers if name in POLICY_SCORERS]
        if not using:
            raise ConfigError(
                f"--policy {policy} is the model of the scorers {' and '.join(POLICY_SCORERS)}, "
                f"of which this call has none; add --scorer {POLICY_SCORERS[0]}"
            )
        models = dict.fromkeys(using, resolve_model(policy))
    return models | parse_scorer_models(texts, scorers)


def parse_scorer_models(texts: Sequence[str], scorers: Sequence[str]) -> dict[str, str]:
    """Read `NAME=ID_OR_DIR`, or `ID_OR_DIR` alone when one scorer is asked for.

    Raises:
        ConfigError: no name although several scorers are asked for.
    """
    models = {}
    for text in texts:
        name, separator, model = text.partition("=")
        if not separator:
            if len(scorers) != 1:
                raise ConfigError(
                    f"--scorer-model '{text}' does not say whose it is; write NAME={text} "
                    f"with one of: {', '.join(scorers)}"
                )
            name, model = scorers[0], text
        models[name] = resolve_model(model)
    return models


def parse_filters(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Read `field=value` pairs.

    Raises:
        ConfigError: a text without `=`.
    """
    pairs = []
    for text in texts:
        field, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"--filter '{text}' is not of the form field=value")
        pairs.append((field, value))
    return tuple(pairs)


def parse_shard(text: str) -> tuple[int, int]:
    """Read `i/n`.

    Raises:
        ConfigError: anything else.
    """
    index, separator, count = text.partition("/")
    # Not isdigit: that is true of superscripts, which int() refuses.
    if not separator or not index.isdecimal() or not count.isdecimal():
        raise ConfigError(f"--shard '{text}' is not of the form i/n, such as 0/4")
    return int(index), int(count)


def choose_data(
    workspace: Workspace, data: Sequence[Path], video_root: Path | None, cache: Path | None
) -> tuple[tuple[Path, ...], Path, Path]:
    """Return (records files, video root, cache) of a call; without data, the lab's."""
    if data:
        return tuple(data), video_root or data[0].parent, cache or workspace.cache
    if video_root is not None:
        raise ConfigError(f"--video-root {video_root} was given without --data")
    if cache is not None:
        _require_lab_questions(cache)
    world = ensure_lab(workspace)
    files = tuple(world.records_file(split) for split in LAB_SPLITS)
    return files, world.root, cache or workspace.lab_cache


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


def lab_scorer_models(scorers: Sequence[str], models: dict[str, str]) -> dict[str, str]:
    """Give every scorer without a model the lab's of the same name."""
    known = {name: LAB_PREFIX + name for name in lab_model_names()}
    known |= dict.fromkeys(POLICY_SCORERS, LAB_POLICY)
    return {name: resolve_model(known[name]) for name in scorers if name in known} | models
