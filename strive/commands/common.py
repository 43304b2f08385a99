"""Options, places of a call and printing that all commands share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console

from strive.files import plain_json
from strive.progress import make_console, say, show

if TYPE_CHECKING:
    from strive.experiments.workspace import Workspace

__all__ = ["make_console", "say", "show"]  # one import of what commands print with

LAB = "embedded lab: synthetic clips and tiny models"
LAB_LINE = f"{LAB}; give --data for your own"


def option(about: str, *names: str, default: str = "", **settings: Any) -> Any:
    """Return an option of typer's; `default` says in its help what holds where it is not given."""
    return typer.Option(
        *names, help=f"{about}  \\[default: {default}]" if default else about, **settings
    )


WorkspaceOption = Annotated[
    Path | None,
    option("Folder for what is not given a place.", default="./strive-workspace"),
]
JsonOption = Annotated[bool, option("Print JSON instead of tables.", "--json")]
CacheOption = Annotated[Path | None, option("Cache folder.", default="in the workspace")]


def listed(choices: Any) -> str:
    """Write the names of a dict, or the words of a Literal, as `a, b or c`."""
    *first, last = map(str, get_args(choices) or choices)
    return f"{', '.join(first)} or {last}" if first else last


def print_json(value: Any) -> None:
    """Print a result for machines."""
    # JSON escapes all control characters but one.
    show(json.dumps(value, indent=1, allow_nan=False).replace("\x7f", "\\u007f"))


def print_result(result: Any, view: Callable[[Any, Console], None], *, as_json: bool) -> None:
    """Print a result for machines, or as `view` shows it on a terminal."""
    if as_json:
        print_json(plain_json(result))
    else:
        view(result, make_console())


def find_workspace(given: Path | None) -> "Workspace":
    """Return the workspace of this call."""
    from strive.experiments.workspace import Workspace

    return Workspace.find(given)


def find_cache(cache: Path | None, workspace: Path | None) -> Path:
    """Return `--cache`, else the workspace's: the lab's if it is there, else the user's own."""
    from strive.experiments.workspace import require_lab_cache

    if cache is not None:
        return cache
    place = find_workspace(workspace)
    if not (place.lab_cache / "cache.json").is_file():
        own = place.cache
        if (own / "cache.json").is_file():
            say(f"your own cache {own}")
            return own
    found = require_lab_cache(place)
    say(f"{LAB}; give --cache for your own (cache {found})")
    return found
