"""Notes when chosen functions of any program run: named `sitecustomize`, it works from outside.

`bench.evaluate` copies this file as `sitecustomize.py` into a folder, puts the folder on
`PYTHONPATH` and names the functions in `BENCH_CALLS`, `{"NAME": "module:function"}` (a method as
`module:Class.method`). Each call of one adds a line to the file `BENCH_CALLS_TO`: what, where, when
and how large. Child processes inherit it. Standard library only: it runs in other environments.
"""

import functools
import importlib.abc
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

TARGETS: dict[str, str] = json.loads(os.environ.get("BENCH_CALLS", "{}"))
"""What to note, by the name that the notes use."""


def note(name: str, started: float, value: Any) -> None:
    """Append one call; a single write, so that processes can share the file and be killed."""
    line = {
        "name": name,
        "process": os.getpid(),
        "started": started,
        "ended": time.time(),
        "shape": shape_of(value),
    }
    file = os.open(os.environ["BENCH_CALLS_TO"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, (json.dumps(line) + "\n").encode())
    finally:
        os.close(file)


def shape_of(value: Any) -> list[int] | None:
    """Shape of a tensor or array, or of the first one inside of what a function returned."""
    for name in (None, "tokens_RGL", "frames_FHWC", "last_hidden_state"):
        found = value if name is None else getattr(value, name, None)
        if hasattr(found, "shape"):
            return list(found.shape)
    if isinstance(value, (tuple, list)) and value:
        return shape_of(value[0])
    return None


def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that its calls are noted."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        started = time.time()
        value = function(*args, **kwargs)
        note(name, started, value)
        return value

    return wrapper


def wrap(module: ModuleType) -> None:
    """Wrap the targets of a module that has just been imported."""
    for name, target in TARGETS.items():
        where, _, path = target.partition(":")
        if where != module.__name__:
            continue
        *outer, last = path.split(".")
        owner = functools.reduce(getattr, outer, module)
        found = vars(owner)[last]
        if isinstance(found, classmethod):
            setattr(owner, last, classmethod(noted(name, found.__func__)))
        else:
            setattr(owner, last, noted(name, found))


def then_wrap(run: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
    """Load a module as its loader does, then wrap its targets."""

    def exec_module(module: ModuleType) -> None:
        run(module)
        wrap(module)

    return exec_module


class Finder(importlib.abc.MetaPathFinder):
    """Finds the targets' modules where everybody else does, and wraps them once they are loaded."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Let the other finders find it; wrap afterwards."""
        if name not in {target.partition(":")[0] for target in TARGETS.values()}:
            return None
        for finder in sys.meta_path:
            if finder is self or (spec := finder.find_spec(name, path, target)) is None:
                continue
            if spec.loader is not None:
                spec.loader.exec_module = then_wrap(spec.loader.exec_module)  # type: ignore
            return spec
        return None


if TARGETS:
    sys.meta_path.insert(0, Finder())
