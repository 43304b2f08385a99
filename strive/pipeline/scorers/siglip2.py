"""The `siglip2` scorer: cosines of SigLIP2's image and text embeddings, through open_clip.

Any two-tower model that open_clip knows will do. What is pinned here, because libraries differ in
it and the numbers follow: the resize (tensor bicubic with antialias, straight from uint8), the text
cleaning (open_clip's own), right padding to exactly the context length (SigLIP pools the last
position, which for a short question is padding), and one fixed batch size.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from strive.errors import ModelError
from strive.pipeline.hub import go_offline_if_unreachable
from strive.pipeline.scorers import ScorerKind, ScorerRequest, TextLength

DEFAULT_MODEL = "ViT-SO400M-16-SigLIP2-384"
DEFAULT_TAG = "webli"
PREPROCESS_RULE = "uint8 -> float32 / 255 -> bicubic antialias -> clamp [0, 1] -> normalise"
QUESTION_BATCH_SIZE = 32
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_siglip2(request: ScorerRequest) -> "OpenClipScorer":
    """Make the scorer; `request.model` is an open_clip name, NAME/TAG, `hf-hub:ID` or a folder.

    Raises:
        ModelError: the model cannot be found or loaded.
    """
    return OpenClipScorer(request)


class OpenClipScorer:
    """A two-tower model of open_clip, frozen."""

    kind: ScorerKind = "similarity"
    packages = ("open_clip_torch",)

    def __init__(self, request: ScorerRequest) -> None:
        self.device = _pick_device(request.device)
        default_dtype = "float32" if self.device.type == "cpu" else "bfloat16"
        self.dtype_name = request.dtype or default_dtype
        if self.dtype_name not in _DTYPES:
            raise ModelError(f"dtype '{self.dtype_name}' is not one of {', '.join(_DTYPES)}")
        self.batch_size = request.batch_size
        self.model_name = request.model or DEFAULT_MODEL
        source, weights, tokenizer = _resolve(self.model_name)
        self.model, self.tokenizer = _load(self.model_name, source, weights, tokenizer)
        self.model.to(device=self.device, dtype=_DTYPES[self.dtype_name])
        self.files = _files_of(source, weights)
        self._weights_digest = _file_digest(weights)
        self.context_length = int(self.tokenizer.context_length)
        self.preprocess = _preprocess_config(self.model)
        scale, bias = self.model.logit_scale, getattr(self.model, "logit_bias", None)
        self.details = {
            "logit_scale": float(scale.exp()),
            "logit_bias": None if bias is None else float(bias),
        }

    def identity(self) -> dict[str, Any]:
        """Everything that changes the numbers."""
        return {
            "model": Path(self.model_name).name if self.files_are_local else self.model_name,
            "weights_digest": self._weights_digest,
            "tokenizer_digest": _tokenizer_digest(self.tokenizer),
            "backend": f"open_clip {version('open_clip_torch')}",
            "text_cleaning": getattr(self.tokenizer.clean_fn, "__name__", "default"),
            "long_text": "truncate",
            "context_length": self.context_length,
            "pooling": "encode_image and encode_text",
            "dtype": self.dtype_name,
            "preprocess": self.preprocess,
        }

    @property
    def files_are_local(self) -> bool:
        """Whether the model was given as a folder."""
        return _as_folder(self.model_name) is not None

    @torch.inference_mode()
    def embed_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """Embed frames in batches that are padded to one size: float32 [F, D], unit length."""
        parts = []
        for start in range(0, len(frames_FHWC), self.batch_size):
            chunk = torch.from_numpy(np.ascontiguousarray(frames_FHWC[start:][: self.batch_size]))
            pixels = self._pixels(chunk.to(self.device))
            padded = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, self.batch_size - len(chunk)))
            features = self.model.encode_image(padded.to(_DTYPES[self.dtype_name]))
            parts.append(F.normalize(features[: len(chunk)].float(), dim=-1).cpu())
        return torch.cat(parts).numpy()

    @torch.inference_mode()
    def embed_questions(self, questions: Sequence[str]) -> np.ndarray:
        """Embed questions in batches that are padded to one size: float32 [Q, D], unit length."""
        parts = []
        for start in range(0, len(questions), QUESTION_BATCH_SIZE):
            chunk = list(questions[start:][:QUESTION_BATCH_SIZE])
            tokens = self._tokens(chunk + [""] * (QUESTION_BATCH_SIZE - len(chunk)))
            features = self.model.encode_text(tokens.to(self.device))
            parts.append(F.normalize(features[: len(chunk)].float(), dim=-1).cpu())
        return torch.cat(parts).numpy()

    def text_lengths(self, questions: Sequence[str]) -> list[TextLength]:
        """Count each question's tokens as the model would see them without a limit."""
        lengths = [len(self._token_ids(question)) for question in questions]
        return [TextLength(n, n > self.context_length) for n in lengths]

    def _pixels(self, frames_BHWC: torch.Tensor) -> torch.Tensor:
        """Turn uint8 frames into the tower's input [B, 3, S, S]."""
        x = frames_BHWC.permute(0, 3, 1, 2).float() / 255.0
        size = self.preprocess["size"]
        if self.preprocess["resize_mode"] == "shortest":
            height, width = x.shape[-2:]
            scale = max(size[0] / height, size[1] / width)
            grown = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
            x = F.interpolate(x, size=grown, mode="bicubic", antialias=True)
            top, left = (grown[0] - size[0]) // 2, (grown[1] - size[1]) // 2
            x = x[..., top : top + size[0], left : left + size[1]]
        else:
            x = F.interpolate(x, size=tuple(size), mode="bicubic", antialias=True)
        mean, std = (
            torch.tensor(self.preprocess[name], device=x.device).view(1, 3, 1, 1)
            for name in ("mean", "std")
        )
        return (x.clamp(0.0, 1.0) - mean) / std

    def _token_ids(self, question: str) -> list[int]:
        if hasattr(self.tokenizer, "tokenizer"):
            encode = self.tokenizer.tokenizer
            cleaned = self.tokenizer.clean_fn(question)
            ids = encode(cleaned, padding=False, truncation=False, verbose=False)["input_ids"]
            return list(ids)
        start_and_end = 2
        return [0] * (len(self.tokenizer.encode(question)) + start_and_end)

    def _tokens(self, questions: list[str]) -> torch.Tensor:
        """Tokenise to exactly the context length, and check that padding stands on the right."""
        tokens = self.tokenizer(questions)
        if tokens.shape[1] != self.context_length:
            raise ModelError(
                f"the tokenizer of {self.model_name} pads to {tokens.shape[1]} tokens, "
                f"its text tower expects {self.context_length}"
            )
        if hasattr(self.tokenizer, "tokenizer"):
            for row, question in zip(tokens.tolist(), questions, strict=True):
                ids = self._token_ids(question)
                if len(ids) <= len(row) and row[: len(ids)] != ids:
                    raise ModelError(
                        f"the tokenizer of {self.model_name} does not pad on the right; "
                        "its pooled position would not be the one it was trained with"
                    )
        return tokens


def _pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _as_folder(model: str) -> Path | None:
    """Return the folder that a model string names, or None if it is a name or a hub id."""
    if model.startswith("local-dir:"):
        return Path(model.removeprefix("local-dir:"))
    if model.startswith("hf-hub:"):
        return None
    is_path = Path(model).is_dir() or model.startswith((".", "/", "~"))
    return Path(model).expanduser() if is_path else None


def _resolve(model: str) -> tuple[str, Path, str]:
    """Return (open_clip source, weights file, tokenizer source), fetching from the hub if needed.

    open_clip itself only warns when weights are missing and goes on with random ones; so the file
    is found here, and a model without one is an error.
    """
    import open_clip.factory as factory
    from open_clip.pretrained import download_pretrained, download_pretrained_from_hf

    folder = _as_folder(model)
    if folder is not None:
        if not (folder / "open_clip_config.json").is_file():
            raise ModelError(f"no open_clip_config.json in {folder}; see --scorer-model")
        found = factory._find_checkpoint_in_dir(folder)
        if found is None:
            raise ModelError(f"no weights (.safetensors) in {folder}; see --scorer-model")
        source = f"local-dir:{folder.absolute()}"
        return source, Path(found), source
    name, _, tag = model.partition("/")
    if not model.startswith("hf-hub:"):
        tag = _known_tag(name, tag)
    go_offline_if_unreachable()
    try:
        if model.startswith("hf-hub:"):
            weights = download_pretrained_from_hf(model.removeprefix("hf-hub:"))
            return model, Path(weights), model
        config = factory.get_pretrained_cfg(name, tag)
        return name, Path(download_pretrained(config)), name
    except (OSError, RuntimeError) as error:
        raise _not_reachable(model, error) from error


def _known_tag(name: str, tag: str) -> str:
    import open_clip
    from open_clip.pretrained import list_pretrained_tags_by_model

    if name not in open_clip.list_models():
        raise ModelError(
            f"'{name}' is no folder, no `hf-hub:` id and no model of open_clip; "
            "see `open_clip.list_models()` for the names that --scorer-model takes"
        )
    tags = list_pretrained_tags_by_model(name)
    if tag and tag in tags:
        return tag
    if not tag and DEFAULT_TAG in tags:
        return DEFAULT_TAG
    if not tag and len(tags) == 1:
        return str(tags[0])
    raise ModelError(
        f"model '{name}' has the weights {', '.join(tags)}; name one as {name}/{tags[0]}"
    )


def _not_reachable(model: str, error: Exception) -> ModelError:
    line = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return ModelError(
        f"model '{model}' is not in the local Hugging Face cache and cannot be fetched ({line}); "
        "give a folder with --scorer-model siglip2=DIR, or the lab's small model with "
        "--scorer-model siglip2=lab:siglip2"
    )


def _load(name: str, source: str, weights: Path, tokenizer: str) -> tuple[Any, Any]:
    import open_clip

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    pretrained = None if ":" in source else str(weights)
    try:
        model = open_clip.create_model(source, pretrained=pretrained, require_pretrained=True)
        loaded_tokenizer = open_clip.get_tokenizer(tokenizer)
    except OSError as error:
        raise _not_reachable(name, error) from error
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"open_clip cannot load '{name}' ({line})") from error
    return model.eval().requires_grad_(False), loaded_tokenizer


def _preprocess_config(model: Any) -> dict[str, Any]:
    config = model.visual.preprocess_cfg
    size = config["size"]
    mode = config["resize_mode"]
    if mode not in ("squash", "shortest"):
        raise ModelError(f"resize_mode '{mode}' of this model is not squash or shortest")
    return {
        "rule": PREPROCESS_RULE,
        "size": list(size) if isinstance(size, (list, tuple)) else [size, size],
        "resize_mode": mode,
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }


def _files_of(source: str, weights: Path) -> tuple[Path, ...]:
    """Return the files that the numbers depend on (the weights alone for a hub snapshot)."""
    if not source.startswith("local-dir:"):
        return (weights,)
    folder = Path(source.removeprefix("local-dir:"))
    names = ("open_clip_config.json", "tokenizer.json", "tokenizer_config.json")
    return (weights, *(folder / name for name in names if (folder / name).is_file()))


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(getattr(tokenizer, "tokenizer", None), "backend_tokenizer", None)
    if backend is not None:
        # Padding and truncation are set by the last call; what text becomes which ids is the rest.
        state = json.loads(backend.to_str())
        state.pop("padding", None)
        state.pop("truncation", None)
        text = json.dumps(state, sort_keys=True)
    else:
        text = json.dumps(sorted(tokenizer.encoder.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
