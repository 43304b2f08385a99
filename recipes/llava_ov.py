"""Recipe of `llava_ov`: a LLaVA-OneVision scorer without a text tower of its own.

A frame's relevance is the cosine of the mean of its projected visual tokens and the mean of the
question's input embeddings (the paper's Sec. 3.3, read literally), so only the vision tower, the
projector and the embedding table are trained; the language model above them stays as it began.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
)

from recipes.contrastive import ContrastiveSettings, SigmoidHead, fit_contrastive
from recipes.frames import Log, make_bank
from recipes.measure import DecodedClip, scorer_quality
from recipes.queries import all_queries
from recipes.tokenizers import CHAT_TEMPLATE, build_policy_tokenizer, save_tokenizer
from strive.records import Record

IMAGE_SIZE = 56
_WIDTH = 96
_TEMPLATE = CHAT_TEMPLATE.replace(
    "<|vision_start|><|video_pad|><|vision_end|>", "<video>\n"
).replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>\n")


def train_llava_ov(
    out: Path, *, seed: int, log: Log, settings: ContrastiveSettings | None = None
) -> dict[str, Any]:
    """Train the scorer and save its folder; returns its recipe (metrics of training only)."""
    settings = settings or ContrastiveSettings(num_steps=600)
    started = time.monotonic()
    tokenizer = _tokenizer()
    model = _new_model(tokenizer, seed=seed)
    bank = make_bank(settings.num_scenes, seed=seed, size=IMAGE_SIZE, log=log)
    queries = all_queries()
    ids = [
        torch.tensor(tokenizer(query.text, add_special_tokens=False)["input_ids"])
        for query in queries
    ]
    table = model.get_input_embeddings()
    head = SigmoidHead()
    trained = [
        *model.model.vision_tower.parameters(),
        *model.model.multi_modal_projector.parameters(),
        *table.parameters(),
        *head.parameters(),
    ]
    loss = fit_contrastive(
        bank,
        queries,
        lambda pixels: frame_means(model, (pixels - 0.5) / 0.5),
        lambda picked: torch.stack([table(ids[q]).mean(0) for q in picked.tolist()]),
        head,
        trained,
        settings,
        seed=seed,
        log=log,
    )
    _save(model, tokenizer, out)
    return {
        "name": "llava_ov",
        "seed": seed,
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": loss,
        "training_seconds": round(time.monotonic() - started, 1),
    }


def frame_means(model: Any, pixels: Tensor) -> Tensor:
    """Mean of each frame's projected visual tokens; normalised pixels [B, 3, H, W] to [B, D]."""
    hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    return model.model.multi_modal_projector(hidden).mean(1)


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = build_policy_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    return tokenizer


def _new_model(
    tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> LlavaOnevisionForConditionalGeneration:
    torch.manual_seed(seed)
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": _WIDTH,
            "intermediate_size": 3 * _WIDTH,
            "patch_size": 14,
            "image_size": IMAGE_SIZE,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": _WIDTH,
            "intermediate_size": 2 * _WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "initializer_range": 0.1,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        image_token_index=int(tokenizer.vocab["<image>"]),
        video_token_index=int(tokenizer.vocab["<video>"]),
        image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]],
        tie_word_embeddings=True,
    )
    return LlavaOnevisionForConditionalGeneration(config)


def _save(
    model: LlavaOnevisionForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path
) -> None:
    """Save weights (float16 safetensors), processor and tokenizer."""
    save_tokenizer(tokenizer, out)
    shared: dict[str, Any] = {
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(**shared, image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]]),
        tokenizer,
        LlavaOnevisionVideoProcessor(**shared, do_sample_frames=False),
        num_image_tokens=(IMAGE_SIZE // 14) ** 2,
        vision_feature_select_strategy="full",
        chat_template=_TEMPLATE,
    )
    processor.save_pretrained(out)
    state = {name: value.to(torch.float16) for name, value in model.state_dict().items()}
    model.config.dtype = torch.float16
    model.save_pretrained(out, state_dict=state)
    GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(out)


def measure_llava_ov(
    out: Path, records: list[Record], clips: dict[str, DecodedClip]
) -> dict[str, float]:
    """Open the saved folder as a user would and measure how well it finds evidence frames."""
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(out)
    table = model.get_input_embeddings()
    means: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for video, clip in clips.items():
            pixels = processor.video_processor(
                videos=[torch.from_numpy(clip.frames_F).permute(0, 3, 1, 2)], return_tensors="pt"
            )["pixel_values_videos"][0]
            means[video] = functional.normalize(frame_means(model, pixels), dim=-1).numpy()
        scores: list[np.ndarray] = []
        for record in records:
            ids = processor.tokenizer(record.problem, return_tensors="pt")["input_ids"][0]
            text = functional.normalize(table(ids).mean(0), dim=-1).numpy()
            scores.append(means[record.video_id] @ text)
    return scorer_quality(scores, records, clips)
