"""`presets`, the list of keys behind `--keys`, and the options that are keys."""

import inspect
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer
from annotated_types import Ge
from pydantic.fields import FieldInfo

from strive.commands.common import JsonOption, listed, make_console, option, print_json
from strive.configs.keys import option_of
from strive.configs.load import Given
from strive.configs.schema import Config, Option
from strive.errors import ConfigError
from strive.files import plain_json

if TYPE_CHECKING:
    from rich.console import Console

    from strive.configs.catalogue import PresetKind


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Also print what this one sets.", show_default="list all"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the presets that --config takes: methods, models, the lab, runs."""
    from strive.configs.catalogue import method_changes, preset_about, presets_by_kind
    from strive.configs.load import read_config_file
    from strive.errors import UnknownNameError, nearest

    by_kind = presets_by_kind()
    kinds = {each: kind for kind, names in by_kind.items() for each in names}
    if name is not None and name not in kinds:
        raise UnknownNameError(
            f"unknown preset '{name}'{nearest(name, kinds)}; strive-cli presets lists them"
        )
    if as_json:
        found = {
            each: {"kind": kind, "about": preset_about(each), "sets": read_config_file(each)}
            | ({"changes": method_changes(each)} if kind == "method" else {})
            for each, kind in kinds.items()
            if name in (None, each)
        }
        print_json(found)
    elif name is not None:
        print_preset(name, make_console(), is_method=kinds[name] == "method")
    else:
        print_presets(by_kind, make_console())


_PRESET_GROUPS: dict["PresetKind", str] = {
    "method": "Methods, as --config METHOD --config MODEL; below each what it changes of grpo",
    "model": "Models",
    "lab": "The lab, as --config METHOD --config lab, or alone; minutes on 2 cores",
    "run": "Runs, a method and a model in one: the paper's, by its tables",
}


def print_presets(by_kind: Mapping["PresetKind", Sequence[str]], console: "Console") -> None:
    """Print presets by their kind, each with its first line; below a method what it changes."""
    from rich.table import Table
    from rich.text import Text

    from strive.configs.catalogue import method_changes, preset_about

    for number, (kind, names) in enumerate(by_kind.items()):
        console.print(Text("\n" * bool(number) + _PRESET_GROUPS[kind], style="bold"))
        listed_names = Table.grid(padding=(0, 2, 0, 0))
        listed_names.add_column(no_wrap=True)
        listed_names.add_column(overflow="fold")
        room = console.width - max(map(len, names)) - 2
        for each in names:
            listed_names.add_row(Text(each), Text(preset_about(each)))
            if kind == "method" and (changes := method_changes(each)):
                listed_names.add_row("", Text(_changes_text(changes, room), style="dim"))
        console.print(listed_names)


def print_preset(name: str, console: "Console", *, is_method: bool) -> None:
    """Print all that a preset sets, of a method first what it changes of `grpo`."""
    from strive.configs.catalogue import BASE_METHOD, method_changes, preset_about
    from strive.configs.load import PRESETS, read_config_file

    sets = read_config_file(name)
    changes = method_changes(name) if is_method else {}
    lines = [f"{name}  {preset_about(name)}"]
    lines += [f"  {key}: {_value_text(value)}" for key, value in changes.items()]
    lines += [f"as {BASE_METHOD}:"] if changes else []
    lines += [f"  {key}: {_value_text(sets[key])}" for key in sets if key not in changes]
    lines += [f"{PRESETS / f'{name}.yaml'} says where each comes from"]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


_GLUE = "\xa0"
"""A space at which a line does not end."""
_LONGEST_VALUE = 40


def _changes_text(changes: Mapping[str, Any], width: int) -> str:
    """Write `key: value, ...` in lines of a width that do not part a key from its value."""
    parts = []
    for key, value in changes.items():
        if isinstance(value, dict):
            pairs = ", ".join(f"{name}:{_GLUE}{weight}" for name, weight in value.items())
            text = f"{{{pairs}}}"
        elif isinstance(value, list):
            text = f"[{f',{_GLUE}'.join(map(str, value))}]"
        else:
            text = textwrap.shorten(_value_text(value), _LONGEST_VALUE, placeholder=" ...")
        parts.append(f"{key}:{_GLUE}{text}")
    lines = textwrap.wrap(", ".join(parts), width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace(_GLUE, " ")


def configured(
    schema: type[Config],
    options: Mapping[Any, str],
    *,
    beside: tuple[type[Config], str] | None = None,
    choices: Mapping[str, str] | None = None,
    config_help: str = "YAML file. Repeatable, later ones win.  \\[default: none]",
    word_help: str = "With --keys: a word.",
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command `--config`, `--set`, `--keys` and the options that are keys of its schema.

    The command is called with a `Given`, what this call says of its configuration, and with its own
    options by name; `workspace` is the last of them, and `as_json` is one. Options of a schema
    `beside` its own stand among the `options` of the `Given`.

    Args:
        schema: the configuration of the command.
        options: the keys that are options, in the order of the help, by panel (None: the first).
        beside: a schema of another command that this one calls, and keys of it that are options.
        choices: stands for `{choices}` in the help of a key whose names are entries of a dict.
        config_help: the help of `--config`.
        word_help: the help of the argument that goes with `--keys`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        keys = [
            _key_parameter(schema, key, panel, (choices or {}).get(key, ""))
            for panel, names in options.items()
            for key in names.split()
        ]
        if beside is not None:
            other, names = beside
            panel = f"Handed to {other.command}"
            keys += [
                _key_parameter(other, key, panel, (choices or {}).get(key, ""))
                for key in names.split()
            ]
        _, *own, workspace = inspect.signature(command, eval_str=True).parameters.values()

        def call(
            context: typer.Context,
            word: Annotated[
                str | None,
                typer.Argument(metavar="WORD", help=word_help, show_default="all keys"),
            ] = None,
            config: Annotated[list[str] | None, option(config_help)] = None,
            overrides: Annotated[
                list[str] | None,
                option(
                    "key=value of any config key (--keys). Repeatable.", "--set", default="none"
                ),
            ] = None,
            list_keys: Annotated[
                bool,
                option(
                    "List the config keys, or with --keys WORD those about WORD, then stop.",
                    "--keys",
                ),
            ] = False,
            **arguments: Any,
        ) -> None:
            if list_keys:
                print_keys(schema, word, make_console(), as_json=arguments["as_json"])
                return
            if word is not None:
                raise ConfigError(
                    f"{command.__name__} takes no '{word}': options begin with --, and --keys "
                    "looks it up"
                )
            values = {key.name: arguments.pop(key.name) for key in keys}
            # What was not typed must not win over --config and --set.
            typed = {
                key: value
                for key, value in values.items()
                if str(context.get_parameter_source(key)).endswith("COMMANDLINE")
            }
            command(Given(config or (), overrides or (), typed), **arguments)

        *first, keys_flag, _ = inspect.signature(call).parameters.values()
        parameters = [*first, *keys, *own, keys_flag, workspace]
        parameters = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {each.name: each.annotation for each in parameters}
        call.__name__, call.__doc__ = command.__name__, command.__doc__
        return call

    return decorate


def _key_parameter(schema: type[Config], key: str, panel: str | None, choices: str) -> Parameter:
    """Return the parameter of typer's that gives one key."""
    field = schema.model_fields[key]
    declared = next(item for item in field.metadata if isinstance(item, Option))
    parsed, rules = _plain_type(field)
    lowest: Any = next((rule.ge for rule in rules if isinstance(rule, Ge)), None)
    words = declared.default
    default = None if words else field.default
    if isinstance(default, tuple):
        words, default = ", ".join(default), None
    about = declared.help or " ".join(str(field.description).split())
    if "{choices}" in about:
        about = about.replace("{choices}", choices or listed(parsed))
    return Parameter(
        key,
        Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[
            (declared.parsed or parsed) | None if default is None else parsed,  # type: ignore[operator]
            option(
                about,
                str(option_of(schema, key)),
                default=words,
                metavar=declared.metavar,
                min=lowest if parsed is int else None,
                rich_help_panel=panel,
            ),
        ],
    )


def _plain_type(field: FieldInfo) -> tuple[Any, list[Any]]:
    """Return the type that the command line reads for a key, and the rules of its values."""
    annotation: Any = field.annotation
    rules = list(field.metadata)
    if type(None) in get_args(annotation):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        rules += [rule for each in inner for rule in getattr(each, "metadata", ())]
    if get_origin(annotation) is tuple:
        item = get_args(annotation)[0]
        annotation = list[get_args(item)[0] if get_origin(item) is Annotated else item]  # type: ignore[misc]
    return annotation, rules


def print_keys(
    schema: type[Config], word: str | None, console: "Console", *, as_json: bool
) -> None:
    """Print all keys of a configuration, or those with a word in their names or meanings.

    Raises:
        UnknownNameError: the word is in no key and no other trainer's name.
    """
    from rich.padding import Padding
    from rich.text import Text

    from strive.configs.keys import config_keys, find_keys
    from strive.errors import UnknownNameError, nearest

    keys, others = find_keys(word, schema) if word else (config_keys(schema), {})
    if not keys and not others:
        names = [key.name for key in config_keys(schema)]
        raise UnknownNameError(
            f"no config key has '{word}' in its name or meaning{nearest(str(word), names)}; "
            f"strive-cli {schema.command} --keys lists them all"
        )
    if as_json:
        print_json(
            {
                "keys": plain_json(keys),
                "other_trainers": {name: str(meant) for name, meant in others.items()},
            }
        )
        return
    for key in keys:
        console.print(
            Text.assemble((key.name, "bold"), f"  {key.type}, ", (f"default {key.default}", "dim"))
        )
        console.print(Padding(Text(key.meaning), (0, 0, 0, 4), expand=False))
    for ours in dict.fromkeys(others.values()):
        theirs = ", ".join(name for name, meant in others.items() if meant == ours)
        console.print(f"{theirs} of other trainers; here: {ours}", markup=False)
