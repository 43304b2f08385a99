"""Recipe of `siglip2`: a two-tower scorer in open_clip's format, trained with the sigmoid loss.

The text tower follows SigLIP 2: 64 tokens, padded right, no causal mask, pooled at the last
position, text lower-cased and stripped of punctuation. Queries are questions without their options.
"""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import create_model_from_pretrained, get_tokenizer
from open_clip.model import CustomTextCLIP
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from recipes.contrastive import ContrastiveSettings, fit_contrastive
from recipes.frames import Log, make_bank
from recipes.measure import DecodedClip, scorer_quality
from recipes.queries import all_queries
from recipes.tokenizers import build_siglip_tokenizer, save_tokenizer
from strive.records import Record

IMAGE_SIZE = 56
CONTEXT_LENGTH = 64


def model_config() -> dict[str, Any]:
    """Return open_clip's `model_cfg`."""
    return {
        "embed_dim": 64,
        "init_logit_scale": 2.3026,
        "init_logit_bias": -5.0,
        "custom_text": True,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "patch_size": 14,
            "width": 128,
            "layers": 3,
            "head_width": 32,
            "mlp_ratio": 2.0,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": len(build_siglip_tokenizer()),
            "hf_tokenizer_name": "siglip2",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 128,
            "heads": 4,
            "layers": 2,
            "mlp_ratio": 2.0,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
        },
    }


def train_siglip2(
    out: Path, *, seed: int, log: Log, settings: ContrastiveSettings | None = None
) -> dict[str, Any]:
    """Train the scorer and save its folder; returns its recipe (metrics of training only)."""
    settings = settings or ContrastiveSettings()
    started = time.monotonic()
    torch.manual_seed(seed)
    _save_frame(out)
    tokenizer = get_tokenizer(f"local-dir:{out}")
    model = CustomTextCLIP(
        **{key: value for key, value in model_config().items() if key != "custom_text"}
    )
    bank = make_bank(settings.num_scenes, seed=seed, size=IMAGE_SIZE, log=log)
    queries = all_queries()
    tokens = tokenizer([query.text for query in queries])
    loss = fit_contrastive(
        bank,
        queries,
        lambda pixels: model.encode_image((pixels - 0.5) / 0.5),
        lambda picked: model.encode_text(tokens[picked]),
        lambda cosines: model.logit_scale.exp() * cosines + model.logit_bias,
        model.parameters(),
        settings,
        seed=seed,
        log=log,
    )
    _save_weights(model, out)
    return {
        "name": "siglip2",
        "seed": seed,
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": loss,
        "training_seconds": round(time.monotonic() - started, 1),
    }


def _save_frame(out: Path) -> None:
    """Write everything but the weights."""
    save_tokenizer(build_siglip_tokenizer(), out)
    mean = [0.5, 0.5, 0.5]
    preprocess = {
        "mean": mean,
        "std": mean,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    config = {"model_cfg": model_config(), "preprocess_cfg": preprocess}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=1))


def _save_weights(model: CustomTextCLIP, out: Path) -> None:
    state = {
        name: value.detach().to(torch.float16).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(state, out / "open_clip_model.safetensors", metadata={"format": "pt"})


def measure_siglip2(
    out: Path, records: list[Record], clips: dict[str, DecodedClip]
) -> dict[str, float]:
    """Open the saved folder as a user would and measure how well it finds evidence frames."""
    model, preprocess = create_model_from_pretrained(f"local-dir:{out}")
    model = model.float().eval()
    tokenizer = get_tokenizer(f"local-dir:{out}")
    embeddings: dict[str, np.ndarray] = {}
    for video, clip in clips.items():
        pixels = torch.stack([preprocess(Image.fromarray(frame)) for frame in clip.frames_F])
        with torch.no_grad():
            embeddings[video] = functional.normalize(model.encode_image(pixels), dim=-1).numpy()
    scores: list[np.ndarray] = []
    for record in records:
        with torch.no_grad():
            text = functional.normalize(
                model.encode_text(tokenizer([record.problem])), dim=-1
            ).numpy()
        scores.append(embeddings[record.video_id] @ text[0])
    return scorer_quality(scores, records, clips)
