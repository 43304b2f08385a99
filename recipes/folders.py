"""Builds the tiny policies' folders: real architectures, tiny sizes, real processors."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from recipes.tokenizers import CHAT_TEMPLATE, save_tokenizer

FRAME_SIZE = {"qwen2_5_vl": 56, "qwen3_vl": 64}
"""Height and width in pixels of a square frame as the policy sees it."""
PATCH_SIZE = {"qwen2_5_vl": 14, "qwen3_vl": 16}
_WIDTH = 128


def new_policy(family: str, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> PreTrainedModel:
    """Make an untrained policy of family `qwen2_5_vl` or `qwen3_vl`, float32."""
    torch.manual_seed(seed)
    ids: dict[str, Any] = {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": _WIDTH,
        "intermediate_size": 3 * _WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.04,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    vision: dict[str, Any] = {
        "depth": 3,
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_heads": 4,
        "out_hidden_size": _WIDTH,
        "patch_size": PATCH_SIZE[family],
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "initializer_range": 0.04,
    }
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [4, 6, 6],
    }
    if family == "qwen2_5_vl":
        vision |= {"window_size": 112, "fullatt_block_indexes": [2], "tokens_per_second": 4}
        return Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(
                text_config={**text, "rope_parameters": rope},
                vision_config=vision,
                tie_word_embeddings=True,
                **ids,
            )
        )
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    text |= {"head_dim": 32, "rope_parameters": {**rope, "mrope_interleaved": True}}
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    )


def new_processor(family: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Make the family's processor; a 112x112 frame becomes `FRAME_SIZE` squared by its limits."""
    frame_pixels = FRAME_SIZE[family] ** 2
    smallest = (2 * PATCH_SIZE[family]) ** 2
    shared: dict[str, Any] = {
        "patch_size": PATCH_SIZE[family],
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": smallest, "longest_edge": frame_pixels},
    }
    image_processor = Qwen2VLImageProcessor(**shared)
    if family == "qwen2_5_vl":
        return Qwen2_5_VLProcessor(
            image_processor,
            tokenizer,
            Qwen2VLVideoProcessor(**shared, do_sample_frames=False, cap_pixels_per_frame=False),
            chat_template=CHAT_TEMPLATE,
        )
    # Qwen3-VL's limit counts the whole video: up to 32 frames at this size.
    shared["size"] = {"shortest_edge": smallest, "longest_edge": 32 * frame_pixels}
    video_processor = Qwen3VLVideoProcessor(
        **shared, do_sample_frames=False, cap_pixels_per_frame=True, max_video_tokens=4
    )
    return Qwen3VLProcessor(
        image_processor, tokenizer, video_processor, chat_template=CHAT_TEMPLATE
    )


def save_policy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, family: str, folder: Path
) -> None:
    """Save weights (float16 safetensors), processor, tokenizer and generation settings."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder)
    new_processor(family, tokenizer).save_pretrained(folder)
    state = {name: value.to(torch.float16) for name, value in model.state_dict().items()}
    model.config.dtype = torch.float16
    model.save_pretrained(folder, state_dict=state)
    GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    model.config.dtype = torch.float32
