"""Options, places of a call and printing that all commands share."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from strive.progress import make_console, say, show

if TYPE_CHECKING:
    from strive.experiments.workspace import Workspace

WorkspaceOption = Annotated[
    Path | None,
    typer.Option(help="Folder for what is not given a place.  \\[default: ./strive-workspace]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
CacheOption = Annotated[
    Path | None, typer.Option(help="Cache folder.  \\[default: in the workspace]")
]
LAB = "embedded lab: synthetic clips and tiny models"
LAB_LINE = f"{LAB}; give --data for your own"


def listed(choices: Any) -> str:
    """Write the names of a dict, or the words of a Literal, as `a, b or c`."""
    *first, last = map(str, get_args(choices) or choices)
    return f"{', '.join(first)} or {last}" if first else last


__all__ = ["make_console", "say", "show"]  # one import of what commands print with


def print_json(value: Any) -> None:
    """Print a result for machines."""
    # JSON escapes all control characters but one.
    show(json.dumps(value, indent=1, allow_nan=False).replace("\x7f", "\\u007f"))


def find_workspace(option: Path | None) -> "Workspace":
    """Return the workspace of this call."""
    from strive.experiments.workspace import Workspace

    return Workspace.find(option)


def find_cache(cache: Path | None, workspace: "Workspace") -> Path:
    """Return `--cache`, else the workspace's: the lab's if it is there, else the user's own."""
    from strive.experiments.workspace import require_lab_cache

    if cache is not None:
        return cache
    if not (workspace.lab_cache / "cache.json").is_file():
        own = workspace.cache
        if (own / "cache.json").is_file():
            say(f"your own cache {own}")
            return own
    found = require_lab_cache(workspace)
    say(f"{LAB}; give --cache for your own (cache {found})")
    return found
