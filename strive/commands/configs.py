"""`presets`, and the list of keys behind `train --keys`."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from strive.commands.common import JsonOption, make_console, print_json

if TYPE_CHECKING:
    from rich.console import Console


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Also print what this one sets.", show_default="list all"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the presets that --config takes, a line each."""
    from strive.configs.load import preset_about, preset_names, read_config_file
    from strive.errors import UnknownNameError, nearest

    names = preset_names()
    if name is not None:
        if name not in names:
            raise UnknownNameError(
                f"unknown preset '{name}'{nearest(name, names)}; strive-cli presets lists them"
            )
        names = [name]
    about = {each: preset_about(each) for each in names}
    sets = {each: read_config_file(each) for each in names}
    if as_json:
        print_json({each: {"about": about[each], "sets": sets[each]} for each in names})
        return
    console = make_console()
    width = max(map(len, names))
    for each in names:
        console.print(f"{each:<{width}}  {about[each]}", markup=False, soft_wrap=True)
    if name is not None:
        for key, value in sets[name].items():
            text = value if isinstance(value, str) else json.dumps(value)
            console.print(f"  {key}: {text}", markup=False, soft_wrap=True)


def print_keys(word: str | None, console: "Console", *, as_json: bool) -> None:
    """Print all config keys, or those with a word in their names or meanings.

    Raises:
        UnknownNameError: the word is in no key and no other trainer's name.
    """
    from rich.padding import Padding
    from rich.text import Text

    from strive.configs.keys import config_keys, find_keys
    from strive.errors import UnknownNameError, nearest

    keys, others = find_keys(word) if word else (config_keys(), {})
    if not keys and not others:
        names = [key.name for key in config_keys()]
        raise UnknownNameError(
            f"no config key has '{word}' in its name or meaning{nearest(str(word), names)}; "
            "strive-cli train --keys lists them all"
        )
    if as_json:
        print_json(
            {
                "keys": [dataclasses.asdict(key) for key in keys],
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
