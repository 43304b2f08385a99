"""Loading a configuration: defaults < YAML files, left to right < `--set a.b=c` < options.

An unknown key is an error that names the nearest known one. Presets are the YAML files beside this
module; `--config NAME` finds them by name, `--config FILE` reads any other.

A YAML file may say `extends: NAME_OR_FILE`, or a list of them: their keys come first, its own win.
However many files of a call extend a file, it counts once, where it comes first (`layer_files`).
The key ends here; what a run computes and writes down is the resolved configuration.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import ValidationError

from strive.configs.keys import option_of, other_name
from strive.configs.schema import Config, TrainConfig
from strive.errors import ConfigError, MissingInputError, nearest
from strive.files import expanded

PRESETS = Path(__file__).parent / "presets"
EXTENDS = "extends"
# The form that is wanted, where pydantic names Python's types.
_FORMS = {
    "tuple_type": "a list is wanted, such as [first, second], or [] for none",
    "dict_type": "names with values are wanted, such as {siglip2: ID_OR_DIR}",
    "path_type": "a path is wanted",
}
_REWARDS_FORM = "names with numbers are wanted, such as {accuracy: 1.0, format: 0.5}"

AnyConfig = TypeVar("AnyConfig", bound=Config)


class Given(NamedTuple):
    """The layers of a configuration that a call gives; later ones win."""

    files: Sequence[str] = ()
    """Presets or YAML files; each counts once (`layer_files`)."""
    overrides: Sequence[str] = ()
    """`key=value` texts of `--set`."""
    options: Mapping[str, Any] = {}
    """Values of the command's own options, by key."""


def preset_names() -> list[str]:
    """Names that `--config` accepts besides files."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def find_config(name_or_file: str, named_in: Path | None = None) -> Path:
    """Return the YAML file of a preset or path; one that a file extends lies beside that file.

    Raises:
        MissingInputError: neither a preset nor a file.
    """
    preset = PRESETS / f"{name_or_file}.yaml"
    if preset.is_file():
        return preset
    path = expanded(Path(name_or_file))
    told = f"--config '{name_or_file}' is neither a file nor a preset"
    if named_in is not None:
        path = named_in.parent / path
        told = f"{named_in}: {EXTENDS} '{name_or_file}' is neither a preset nor a file beside it"
    if not path.is_file():
        hint = nearest(name_or_file, preset_names())
        raise MissingInputError(f"{told}{hint}; strive-cli presets lists them")
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigError: not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a mapping of keys is expected, found {type(values).__name__}")
    return values


def read_config_file(name_or_file: str) -> dict[str, Any]:
    """Read a preset or YAML file with everything that it extends: `layer_files` of one."""
    return layer_files([name_or_file])


def layer_files(names: Sequence[str]) -> dict[str, Any]:
    """Read presets or YAML files with everything that they extend; later ones win, key by key.

    Every file counts once, at its first occurrence, after all that it extends: where A and B extend
    C, the layers of [A, B] are C, A, B, so that what A changes of C stays. A file (not a preset)
    that `extends` names is looked for beside the file that names it.

    Raises:
        MissingInputError: one of them, or of what they extend, is neither a preset nor a file.
        ConfigError: not YAML, not a mapping, `extends` is no text and no list of texts, or files
            extend one another.
    """
    layers: dict[Path, dict[str, Any]] = {}

    def add(path: Path, extended_by: tuple[Path, ...]) -> None:
        place = path.resolve()
        if place in extended_by:
            presets = PRESETS.resolve()
            links = (*extended_by, place)
            shown = " -> ".join(p.stem if p.parent == presets else str(p) for p in links)
            raise ConfigError(f"{path}: {EXTENDS} goes in a circle ({shown}); break it in one")
        if place in layers:
            return
        values = read_yaml(path)
        for name in _extended(values.pop(EXTENDS, None), path):
            add(find_config(name, path), (*extended_by, place))
        layers[place] = values

    for name in names:
        add(find_config(name), ())
    return {key: value for values in layers.values() for key, value in values.items()}


def _extended(named: Any, path: Path) -> list[str]:
    """The presets and files that a file extends, in their order."""
    names = [] if named is None else named if isinstance(named, list) else [named]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{path}: {EXTENDS} is {named!r}; the name of one preset or file is allowed, or a list "
            "of such names"
        )
    return names


def parse_override(text: str) -> tuple[list[str], Any]:
    """Split `a.b=c` into its key path and its value, which is read as YAML (`1e-6`, `[a, b]`).

    Keys go one level deep: what follows the first dot is one name, such as `package.module:name`.
    """
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set '{text}' is not of the form key=value")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set '{text}': {' '.join(str(error).split())}") from None
    return key.strip().split(".", 1), parsed


def load_config(
    schema: type[AnyConfig],
    files: Sequence[str] = (),
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> AnyConfig:
    """Merge presets, files, `--set` overrides and command line options into one checked config.

    Args:
        schema: the configuration of one of the commands.
        files: presets or YAML files, later ones win; each counts once (`layer_files`).
        overrides: `key=value` texts, later ones win.
        options: values of dedicated command line options; they win over everything.

    Raises:
        ConfigError: an unknown key or a value outside its range, one line per problem; or a preset
            given to another command than train.
        MissingInputError: a file that does not exist.
    """
    return build_config(schema, merge_layers(schema, files, overrides, options))


# `load_config` of a training run, as programs outside this package call it.
load_train_config = partial(load_config, TrainConfig)


def merge_layers(
    schema: type[Config],
    files: Sequence[str] = (),
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the values of `load_config` before they are checked."""
    for name in files:
        if schema is not TrainConfig:
            # The presets are those of train.
            if name in preset_names():
                takes_it = "for_config" in schema.model_fields
                raise ConfigError(
                    f"--config '{name}' is a preset of train, not of {schema.command}"
                    + (f"; give it as --for-config {name}" if takes_it else "")
                )
            if not expanded(Path(name)).is_file():
                raise MissingInputError(f"--config '{name}' is no file")
    values = layer_files(files)
    for text in overrides:
        path, value = parse_override(text)
        if path == [EXTENDS]:
            raise ConfigError(
                f"--set {text}: {EXTENDS} is for YAML files; name both files with --config instead"
            )
        if len(path) > 1 and path[0] in schema.model_fields and path[0] not in values:
            default = schema.model_fields[path[0]].default
            values |= {path[0]: dict(default)} if isinstance(default, dict) else {}
        inner = values
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {'.'.join(path)}: '{name}' is not a group of keys")
        inner[path[-1]] = value
    values.update({key: value for key, value in (options or {}).items() if value is not None})
    return values


def build_config(schema: type[AnyConfig], values: Mapping[str, Any]) -> AnyConfig:
    """Check plain values against a schema.

    Raises:
        ConfigError: see `load_config`.
    """
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        # A default that is made from another key fails with that key, whose own error says why.
        items = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
        raise ConfigError("; ".join(_explain(schema, item) for item in items)) from None


def _explain(schema: type[Config], item: Any) -> str:
    """Write one of pydantic's errors as key, option, value and what is allowed."""
    key = ".".join(str(part) for part in item["loc"])
    value = item["input"]
    if item["type"] == "extra_forbidden":
        # A dotted key of another trainer stands there as mappings inside one another.
        while isinstance(value, dict) and len(value) == 1:
            (name, value), *_ = value.items()
            key = f"{key}.{name}"
        if there := other_name(key, schema):
            return f"unknown config key '{key}'; here: {there}"
        hint = nearest(key, schema.model_fields)
        return f"unknown config key '{key}'{hint}; strive-cli {schema.command} --keys lists them"
    message = _FORMS.get(item["type"]) or item["msg"].removeprefix("Value error, ")
    if key == "rewards" and item["type"] == "dict_type":
        message = _REWARDS_FORM
    if item["type"] == "literal_error":
        message += nearest(str(value), re.findall(r"'(.*?)'", item["ctx"]["expected"]))
    if not key:
        return message
    option = option_of(schema, str(item["loc"][0]))
    return f"config key '{key}'{f' ({option})' if option else ''} is {value!r}: {message}"
