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
from safetensors import SafetensorError
from torch import Tensor

from strive.errors import ModelError, short_reason
from strive.files import expanded, file_digest
from strive.models.loading import DTYPES, go_offline_if_unreachable
from strive.scorers import ScorerRequest, TextLength
from strive.scorers.common import (
    ImageTowerScorer,
    PixelRule,
    pad_batch,
    tokenizer_digest,
    unit_rows,
)

DEFAULT_MODEL = "ViT-SO400M-16-SigLIP2-384"
DEFAULT_TAG = "webli"
QUESTION_BATCH_SIZE = 32
_LOAD_ERRORS = (RuntimeError, ValueError, KeyError, TypeError, AssertionError, SafetensorError)


class OpenClipScorer(ImageTowerScorer):
    """A two-tower model of open_clip, frozen: a name, NAME/TAG, `hf-hub:ID` or a folder.

    Raises:
        ModelError: the model cannot be found or loaded.
    """

    packages = ("open_clip_torch",)

    def __init__(self, request: ScorerRequest) -> None:
        super().__init__(request)
        self.long_text = request.long_text
        self.model_name = request.model or DEFAULT_MODEL
        source, weights = _resolve(self.model_name)
        self.model, self.tokenizer = _load(self.model_name, source, weights)
        # Before the cast, which would round the scale: 4.7 is 4.6875 in bfloat16, and its
        # exponential 108.6 instead of 109.9.
        scale, bias = self.model.logit_scale, getattr(self.model, "logit_bias", None)
        self.details = {
            "logit_scale": float(scale.exp()),
            "logit_bias": None if bias is None else float(bias),
        }
        self.model.to(device=self.device, dtype=DTYPES[self.dtype_name])
        files = [weights]  # of a hub's snapshot these alone
        if source.startswith("local-dir:"):
            folder = Path(source.removeprefix("local-dir:"))
            names = ("open_clip_config.json", "tokenizer.json", "tokenizer_config.json")
            files += [folder / name for name in names if (folder / name).is_file()]
        self.files = files
        self._weights_digest = file_digest(weights).hex()[:32]
        self.context_length = int(self.tokenizer.context_length)
        config = self.model.visual.preprocess_cfg
        size, mode = config["size"], config["resize_mode"]
        if mode not in ("squash", "shortest"):
            raise ModelError(f"resize_mode '{mode}' of this model is not squash or shortest")
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        mean, std = tuple(config["mean"]), tuple(config["std"])
        self.pixel_rule = PixelRule((height, width), mean, std, mode)

    def identity(self) -> dict[str, Any]:
        """Everything that changes the numbers."""
        is_folder = _as_folder(self.model_name) is not None
        if hasattr(getattr(self.tokenizer, "tokenizer", None), "backend_tokenizer"):
            text_digest = tokenizer_digest(self.tokenizer.tokenizer)
        else:  # open_clip's own, of CLIP
            text = json.dumps(sorted(self.tokenizer.encoder.items()))
            text_digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        return {
            "model": Path(self.model_name).name if is_folder else self.model_name,
            "weights_digest": self._weights_digest,
            "tokenizer_digest": text_digest,
            "backend": f"open_clip {version('open_clip_torch')}",
            "text_cleaning": getattr(self.tokenizer.clean_fn, "__name__", "default"),
            "long_text": self.long_text,
            "context_length": self.context_length,
            "pooling": "encode_image and encode_text",
            "dtype": self.dtype_name,
            "preprocess": self.pixel_rule.fields(),
        }

    def image_features(self, pixels_BCHW: Tensor) -> Tensor:
        """Run the image tower: [B, D]."""
        features: Tensor = self.model.encode_image(pixels_BCHW)
        return features

    @torch.inference_mode()
    def embed_questions(self, questions: Sequence[str]) -> np.ndarray:
        """Embed questions in batches that are padded to one size: float32 [Q, D], unit length.

        With `chunk-mean` a question longer than the context is the mean of its chunks' unit
        embeddings, scaled to length 1 again.
        """
        if self.long_text == "truncate":
            return self._embed_rows(self._tokens(questions)).numpy()
        rows = [self._chunks(question) for question in questions]
        chunks_ND = self._embed_rows(torch.cat(rows))
        means = [chunks_CD.mean(0) for chunks_CD in chunks_ND.split([len(row) for row in rows])]
        return unit_rows(torch.stack(means)).numpy()

    def text_lengths(self, questions: Sequence[str]) -> list[TextLength]:
        """Count each question's tokens as the model would see them without a limit."""
        lengths = [len(self._token_ids(question)) for question in questions]
        may_cut = self.long_text == "truncate"
        return [TextLength(n, may_cut and n > self.context_length) for n in lengths]

    def _embed_rows(self, tokens_NT: Tensor) -> Tensor:
        """Embed token rows [N, context], a padded batch at a time: [N, D] on the CPU."""
        parts = []
        for chunk in tokens_NT.split(QUESTION_BATCH_SIZE):
            features = self.model.encode_text(pad_batch(chunk, QUESTION_BATCH_SIZE).to(self.device))
            parts.append(unit_rows(features[: len(chunk)]).cpu())
        return torch.cat(parts)

    def _chunks(self, question: str) -> Tensor:
        """Token rows [C, context] that hold all of a question between the tokenizer's ends."""
        if len(self._token_ids(question)) <= self.context_length:
            return self._tokens([question])
        start, end, pad = self._frame_ids()
        ids = self._token_ids(question)
        ids = ids[len(start) : len(ids) - len(end)]
        room = self.context_length - len(start) - len(end)
        rows = [start + ids[i : i + room] + end for i in range(0, len(ids), room)]
        return torch.tensor([row + [pad] * (self.context_length - len(row)) for row in rows])

    def _frame_ids(self) -> tuple[list[int], list[int], int]:
        """Return the ids that the tokenizer puts before and after every text, and its padding."""
        if not hasattr(self.tokenizer, "tokenizer"):
            return [self.tokenizer.sot_token_id], [self.tokenizer.eot_token_id], 0
        encode = self.tokenizer.tokenizer
        bare = encode("a", add_special_tokens=False)["input_ids"]
        whole = list(encode("a")["input_ids"])
        size = len(whole) - len(bare)
        start = next(i for i in range(size + 1) if whole[i : i + len(bare)] == bare)
        return whole[:start], whole[start + len(bare) :], int(encode.pad_token_id)

    def _token_ids(self, question: str) -> list[int]:
        """Token ids of a question as the model would see them without a limit or padding."""
        if hasattr(self.tokenizer, "tokenizer"):
            encode = self.tokenizer.tokenizer
            cleaned = self.tokenizer.clean_fn(question)
            ids = encode(cleaned, padding=False, truncation=False, verbose=False)["input_ids"]
            return list(ids)
        start, end, _ = self._frame_ids()
        return start + list(self.tokenizer.encode(question)) + end

    def _tokens(self, questions: Sequence[str]) -> Tensor:
        """Tokenise to exactly the context length, and check that padding stands on the right."""
        tokens: Tensor = self.tokenizer(list(questions))
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


def _as_folder(model: str) -> Path | None:
    """Return the folder that a model string names, or None if it is a name or a hub id."""
    if model.startswith("local-dir:"):
        return Path(model.removeprefix("local-dir:"))
    if model.startswith("hf-hub:"):
        return None
    is_path = Path(model).is_dir() or model.startswith((".", "/", "~"))
    return expanded(Path(model)) if is_path else None


def _resolve(model: str) -> tuple[str, Path]:
    """Return open_clip's name of a model and its weights file, fetched from the hub if needed.

    open_clip itself only warns when weights are missing and goes on with random ones; so the file
    is found here, and a model without one is an error.
    """
    import open_clip
    import open_clip.factory as factory
    import open_clip.pretrained as pretrained

    folder = _as_folder(model)
    if folder is not None:
        if not (folder / "open_clip_config.json").is_file():
            raise ModelError(f"no open_clip_config.json in {folder}; see --scorer-model")
        found = factory._find_checkpoint_in_dir(folder)
        if found is None:
            raise ModelError(f"no weights (.safetensors) in {folder}; see --scorer-model")
        return f"local-dir:{folder.absolute()}", Path(found)
    name, _, tag = model.partition("/")
    if not model.startswith("hf-hub:"):
        if name not in open_clip.list_models():
            raise ModelError(
                f"'{name}' is no folder, no `hf-hub:` id and no model of open_clip; "
                "see `open_clip.list_models()` for the names that --scorer-model takes"
            )
        tags = pretrained.list_pretrained_tags_by_model(name)
        tag = tag or (str(tags[0]) if len(tags) == 1 else DEFAULT_TAG)
        if tag not in tags:
            raise ModelError(
                f"model '{name}' has the weights {', '.join(tags)}; name one as {name}/{tags[0]}"
            )
    go_offline_if_unreachable()
    try:
        if model.startswith("hf-hub:"):
            hub_id = model.removeprefix("hf-hub:")
            return model, Path(pretrained.download_pretrained_from_hf(hub_id))
        return name, Path(pretrained.download_pretrained(factory.get_pretrained_cfg(name, tag)))
    except (OSError, RuntimeError) as error:
        raise _not_reachable(model, error) from error


def _not_reachable(model: str, error: Exception) -> ModelError:
    return ModelError(
        f"model '{model}' is not in the local Hugging Face cache and cannot be fetched "
        f"({short_reason(error)}); give a folder with --scorer-model siglip2=DIR, or the lab's "
        "small model with --scorer-model siglip2=lab:siglip2"
    )


def _load(name: str, source: str, weights: Path) -> tuple[Any, Any]:
    import open_clip

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    pretrained = None if ":" in source else str(weights)
    try:
        model = open_clip.create_model(source, pretrained=pretrained, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(source)
    except OSError as error:
        raise _not_reachable(name, error) from error
    except _LOAD_ERRORS as error:
        raise ModelError(f"open_clip cannot load '{name}' ({short_reason(error)})") from error
    return model.eval().requires_grad_(False), tokenizer
