"""A thing by its name: in a dict, or of a user's own as `module:function`."""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from strive.errors import ConfigError, MissingInputError, unknown_name


def check_name(what: str, name: str, known: Mapping[str, Any]) -> None:
    """Refuse a name that can be nothing, before any work is done.

    Raises:
        UnknownNameError: neither among the known ones nor of the form `module:function`.
    """
    if name not in known and ":" not in name:
        raise unknown_name(what, name, [*known, "module:function"])


def load_function(what: str, place: str) -> Callable[..., Any]:
    """Import what `module:function` names; modules of the working directory are found too.

    `what` names the thing in messages, such as `scorer 'x:y'`.

    Raises:
        MissingInputError: there is no such module, or it imports what is not installed.
        ConfigError: the module has no such function.
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
        raise MissingInputError(
            f"{what}: no module '{module_name}' in the working directory or on PYTHONPATH"
        ) from None
    except ImportError as error:
        raise ConfigError(f"{what} cannot be imported: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{what}: module '{module_name}' has no '{function_name}'")
    loaded: Callable[..., Any] = function
    return loaded
