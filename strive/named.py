"""A thing by its name: in a dict, or of a user's own as `module:function`."""

import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from strive.errors import ConfigError, MissingInputError, short_reason, unknown_name


def check_name(what: str, name: str, known: Mapping[str, Any]) -> None:
    """Refuse a name that can be nothing, before any work is done.

    Raises:
        UnknownNameError: neither among the known ones nor of the form `module:function`.
    """
    if name not in known and ":" not in name:
        raise unknown_name(what, name, [*known, "module:function"])


def load_function(what: str, place: str, *, or_a: type | None = None) -> Callable[..., Any]:
    """Import what `module:function` names; modules of the working directory are found too.

    `what` names the thing in messages, such as `scorer 'x:y'`. A value of type `or_a` does as well.

    Raises:
        MissingInputError: there is no such module, or it imports what is not installed.
        ConfigError: the module cannot be imported or has no such function.
    """
    module_name, _, function_name = place.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # a user's own module lies where they call from
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise MissingInputError(
                f"{what} imports '{missing}', which is not installed here"
            ) from error
        hint = "; leave .py out, and write a.b for a/b" if module_name.endswith(".py") else ""
        raise MissingInputError(
            f"{what}: no module '{module_name}' in the working directory or on PYTHONPATH{hint}"
        ) from None
    # Whatever a user's file does when it is imported, sys.exit() included.
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{what} cannot be imported: {raised(error)}") from error
    function = getattr(module, function_name, None)
    if not callable(function) and not (or_a and isinstance(function, or_a)):
        place = getattr(module, "__file__", None) or "built in"
        found = (
            "has no"
            if function is None
            else f"names no function but a {type(function).__name__} by"
        )
        raise ConfigError(
            f"{what}: module '{module_name}' ({place}) {found} '{function_name}'"
            + (", which cannot be called" if function is not None else "")
        )
    loaded: Callable[..., Any] = function
    return loaded


def raised(error: BaseException) -> str:
    """Say in one line what a user's code raised: its kind, its message, its place in their file."""
    text = short_reason(error, 300, kind=True)
    others = (f"{Path(__file__).parent}{os.sep}", f"{sysconfig.get_path('stdlib')}{os.sep}", "<")
    theirs = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(others) and "site-packages" not in frame.filename
    ]
    return f"{text} ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else text
