"""Base classes of scorers with a model: device and dtype, pixels, fixed batches, digests of files.

Their numbers must not depend on how videos are batched: batches are padded to one size.
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from strive.errors import ModelError
from strive.files import expanded, file_digest
from strive.models.loading import DTYPES, pick_device, pick_dtype
from strive.scorers import BatchedScorer, Scorer, ScorerRequest, TextLength

PREPROCESS_RULE = "uint8 -> float32 / 255 -> bicubic antialias -> clamp [0, 1] -> normalise"
FRAMES_PER_RESIZE = {"cpu": 8}
"""Frames that exist at full size as floats at once; a GPU takes a whole pool in one copy."""

_WEIGHTS = ("*.safetensors", "*.bin")
_CONFIGS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True, slots=True)
class PixelRule:
    """Turns uint8 frames into an image tower's input; its fields go into the scorer key."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_mode: Literal["squash", "shortest"] = "squash"

    def fields(self) -> dict[str, Any]:
        """The rule as JSON values."""
        return {
            "rule": PREPROCESS_RULE,
            "size": list(self.size),
            "resize_mode": self.resize_mode,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    def apply(self, frames_BHWC: Tensor) -> Tensor:
        """Turn uint8 frames [B, H, W, 3] into float32 pixels [B, 3, S, S] on their device."""
        x = frames_BHWC.permute(0, 3, 1, 2).float() / 255.0
        if self.resize_mode == "shortest":
            height, width = x.shape[-2:]
            scale = max(self.size[0] / height, self.size[1] / width)
            grown = (
                max(self.size[0], round(height * scale)),
                max(self.size[1], round(width * scale)),
            )
            x = F.interpolate(x, size=grown, mode="bicubic", antialias=True)
            top, left = (grown[0] - self.size[0]) // 2, (grown[1] - self.size[1]) // 2
            x = x[..., top : top + self.size[0], left : left + self.size[1]]
        else:
            x = F.interpolate(x, size=self.size, mode="bicubic", antialias=True)
        mean, std = (
            torch.tensor(values, device=x.device).view(1, 3, 1, 1)
            for values in (self.mean, self.std)
        )
        return (x.clamp(0.0, 1.0) - mean) / std

    def prepare(
        self, frames_FHWC: np.ndarray, *, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Prepare all frames of a video, a few at a time: [F, 3, S, S] on `device`."""
        prepared = torch.empty((len(frames_FHWC), 3, *self.size), dtype=dtype, device=device)
        size = FRAMES_PER_RESIZE.get(device.type, 64)
        for start in range(0, len(frames_FHWC), size):
            chunk = np.ascontiguousarray(frames_FHWC[start:][:size])
            pixels = self.apply(torch.from_numpy(chunk).to(device))
            prepared[start : start + len(chunk)] = pixels.to(dtype)
        return prepared


class TorchScorer(Scorer):
    """A scorer whose model computes on one device in one dtype."""

    def __init__(self, request: ScorerRequest) -> None:
        self.device = pick_device(request.device)
        self.device_type = self.device.type
        self.dtype_name = pick_dtype(request.dtype, self.device)
        self.batch_size = request.batch_size


class ImageTowerScorer(TorchScorer, BatchedScorer):
    """A scorer whose frames go through an image tower of one size, in batches of one size."""

    pixel_rule: PixelRule

    @abstractmethod
    def image_features(self, pixels_BCHW: Tensor) -> Tensor:
        """Embed the tower's input: [B, D] of any length."""

    @torch.inference_mode()
    def prepare_frames(self, frames_FHWC: np.ndarray) -> Tensor:
        """Resize and normalise uint8 frames: the tower's input [F, 3, S, S] on the device."""
        dtype = DTYPES[self.dtype_name]
        return self.pixel_rule.prepare(frames_FHWC, device=self.device, dtype=dtype)

    @torch.inference_mode()
    def embed_prepared(self, prepared_B: Tensor) -> np.ndarray:
        """Embed at most `batch_size` prepared frames: float32 [B, D], unit length."""
        pixels = pad_batch(prepared_B.to(self.device, non_blocking=True), self.batch_size)
        return unit_rows(self.image_features(pixels)[: len(prepared_B)]).cpu().numpy()


class TransformersScorer(TorchScorer):
    """A scorer with a model of transformers, of a hub id or a folder; no question is ever cut off.

    A subclass opens `model_name`, sets `tokenizer` and calls `digest_files`.
    """

    packages = ("transformers",)
    default_model: str
    tokenizer: Any

    def __init__(self, request: ScorerRequest) -> None:
        super().__init__(request)
        name = request.model or self.default_model
        folder = expanded(Path(name))
        self.model_name = str(folder.absolute()) if folder.is_dir() else name

    def digest_files(self) -> None:
        """Find and digest the files of the model, which has just been opened."""
        self.files = model_files(self.model_name)
        self._files_digest = files_digest(self.files)

    def identity(self) -> dict[str, Any]:
        """Everything of the model that changes the numbers; a folder counts by its last part."""
        is_folder = Path(self.model_name).is_dir()
        return {
            "model": Path(self.model_name).name if is_folder else self.model_name,
            "files_digest": self._files_digest,
            "tokenizer_digest": tokenizer_digest(self.tokenizer),
            "backend": f"transformers {version('transformers')}",
            "dtype": self.dtype_name,
        }

    def text_lengths(self, questions: Sequence[str]) -> list[TextLength]:
        """Count each question's tokens."""
        return [TextLength(len(token_ids(self.tokenizer, text)), False) for text in questions]


def pad_batch(rows: Tensor, batch_size: int) -> Tensor:
    """Pad rows [B, ...] with zeros to `batch_size`."""
    # Kernels are chosen by the batch's size, and another kernel gives other last bits.
    missing = batch_size - len(rows)
    return rows if missing == 0 else torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])


def unit_rows(x: Tensor) -> Tensor:
    """Scale rows [N, D] to length 1, in float32."""
    return F.normalize(x.float(), dim=-1)


def mean_token_embeddings(table: Any, tokenizer: Any, questions: Sequence[str]) -> np.ndarray:
    """Average each bare question's token embeddings (Sec. 3.3): float32 [Q, D], unit length.

    Without a chat template and without special tokens. A question without any token gives NaN.
    """
    rows = []
    for question in questions:
        ids = torch.tensor(token_ids(tokenizer, question), dtype=torch.long)
        rows.append(unit_rows(table(ids.to(table.weight.device)).float().mean(0)).cpu().numpy())
    return np.stack(rows) if rows else np.empty((0, table.weight.shape[1]), np.float32)


def token_ids(tokenizer: Any, question: str) -> list[int]:
    """Token ids of the bare question."""
    return list(tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"])


def model_files(name: str) -> tuple[Path, ...]:
    """Return weights and settings of a transformers model that has just been opened.

    Raises:
        ModelError: neither a folder nor the local hub cache holds them.
    """
    folder = Path(name)
    if not folder.is_dir():
        from transformers.utils.hub import cached_file

        found = cached_file(name, "config.json", local_files_only=True)
        folder = Path(str(found)).parent
    for pattern in _WEIGHTS:
        weights = sorted(folder.glob(pattern))
        if weights:
            configs = [folder / file for file in _CONFIGS if (folder / file).is_file()]
            return (*weights, *configs)
    raise ModelError(f"no weights ({' or '.join(_WEIGHTS)}) in {folder}")


def files_digest(files: Sequence[Path]) -> str:
    """Hash files by name and content: the same in whatever folder they lie."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + file_digest(path))
    return digest.hexdigest()[:32]


def tokenizer_digest(tokenizer: Any) -> str:
    """Hash what decides which text becomes which ids."""
    # Padding and truncation are set by the last call; they are no part of it.
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.pop("padding", None)
    state.pop("truncation", None)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:32]
