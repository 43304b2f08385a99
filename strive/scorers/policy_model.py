"""A policy as a scorer opens it: what the `policy` and `gradient` scorers share."""

from importlib.metadata import version
from typing import Any

import torch

from strive.errors import MissingInputError, ModelError
from strive.models.loading import Policy, load_policy, pick_dtype
from strive.scorers import ScorerRequest
from strive.scorers.common import (
    files_digest,
    model_files,
    model_label,
    model_source,
    tokenizer_digest,
)

DEFAULT_MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"


class ScoringPolicy:
    """A frozen Qwen2.5-VL or Qwen3-VL with what identifies it."""

    def __init__(self, request: ScorerRequest, device: torch.device) -> None:
        self.dtype_name = pick_dtype(request.dtype, device)
        self.model_name = model_source(request, DEFAULT_MODEL)
        self.policy = _open(self.model_name, self.dtype_name, device)
        self.policy.model.requires_grad_(False)
        self.files = model_files(self.model_name)
        self._files_digest = files_digest(self.files)

    def identity(self) -> dict[str, Any]:
        """What of the policy changes the numbers."""
        return {
            "model": model_label(self.model_name),
            "family": self.policy.family.name,
            "files_digest": self._files_digest,
            "tokenizer_digest": tokenizer_digest(self.policy.tokenizer),
            "backend": f"transformers {version('transformers')}",
            "dtype": self.dtype_name,
        }


def _open(name: str, dtype: str, device: torch.device) -> Policy:
    try:
        return load_policy(name, dtype=dtype, device=device)
    except MissingInputError as error:
        raise MissingInputError(_with_our_options(error)) from error
    except ModelError as error:
        raise ModelError(_with_our_options(error)) from error


def _with_our_options(error: Exception) -> str:
    """The loader's line, with the option of `precompute` that names a scorer's policy."""
    return str(error).replace("--model", "--policy")
