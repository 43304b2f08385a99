"""Functions compiled by torch as one graph or none, with failures as one line."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from strive.errors import ModelError

Backend = str | Callable[..., Any]
"""A backend of torch.compile: its name, or a function."""


def compile_whole(
    function: Callable[..., Any], backend: Backend, *, name: str, without: str, **options: Any
) -> Callable[..., Any]:
    """Compile a function as one graph: one that fell apart would be slow without a word.

    `name` says in an error what could not be compiled, `without` which setting does without it.

    Raises:
        ModelError: by the function, when it cannot be compiled, or not once more.
    """
    whole: Any = torch.compile(function, fullgraph=True, backend=backend, **options)

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        try:
            return whole(*arguments, **named)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise ModelError(f"torch cannot compile {name} here ({reason}); set {without}") from (
                error
            )

    return run
