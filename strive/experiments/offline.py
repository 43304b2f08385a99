"""One call of the offline stage with the lab's defaults filled in."""

from collections.abc import Sequence
from pathlib import Path

from strive.cache.layout import open_cache
from strive.cache.questions import read_questions
from strive.errors import ConfigError
from strive.experiments.workspace import LAB_PREFIX, Workspace, ensure_lab, resolve_model
from strive.lab.models import lab_model_names

LAB_SPLITS = ("train", "held_out")


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
    if not separator or not index.isdigit() or not count.isdigit():
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
    known = set(lab_model_names())
    return {name: resolve_model(LAB_PREFIX + name) for name in scorers if name in known} | models
