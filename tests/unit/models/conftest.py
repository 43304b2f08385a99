"""Tiny policies of both families, built from configs and opened through the Auto classes.

Small, but not degenerate: head_dim 16, a three-part mrope_section, grouped key-value heads, window
and full attention in the Qwen2.5-VL tower, two deepstack layers in the Qwen3-VL one. Weights are
larger than the default initialisation, so that errors in positions or masks show.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    GenerationConfig,
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

from strive.choices import DecodeMode
from strive.models.decoding import Decoder
from strive.models.family import VisionFeatures
from strive.models.inputs import PromptInputs, VideoFrames, prepare_prompts
from strive.models.language import Backend
from strive.models.loading import Policy, load_policy
from strive.models.sampling import Completions

torch.set_num_threads(1)

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, without merges: every text passes, one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
    )


def _text_config(**more: object) -> dict[str, object]:
    return {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 272,
        "max_position_embeddings": 4096, **more,
    }  # fmt: skip


def build_model(family: str, tokenizer: PreTrainedTokenizerFast) -> torch.nn.Module:
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{text}|>")
        for name, text in (
            ("image", "image_pad"), ("video", "video_pad"),
            ("vision_start", "vision_start"), ("vision_end", "vision_end"),
        )
    }  # fmt: skip
    ends = {
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    torch.manual_seed(7)
    if family == "qwen2_5_vl":
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
        config = Qwen2_5_VLConfig(
            text_config=_text_config(rope_parameters=rope, **ends),
            vision_config={
                **vision, "out_hidden_size": 64, "fullatt_block_indexes": [1],
                "window_size": 56, "patch_size": 14, "tokens_per_second": 2,
            },
            tie_word_embeddings=False, **ids,
        )  # fmt: skip
        model = Qwen2_5_VLForConditionalGeneration(config)
    else:
        rope = {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3],
            "mrope_interleaved": True,
        }  # fmt: skip
        config = Qwen3VLConfig(
            text_config=_text_config(rope_parameters=rope, head_dim=16, **ends),
            vision_config={
                **vision, "out_hidden_size": 64, "deepstack_visual_indexes": [0, 1],
                "num_position_embeddings": 16, "patch_size": 16,
            },
            tie_word_embeddings=True, **ids,
        )  # fmt: skip
        model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.12)
            elif "bias" in name:
                parameter.normal_(0.0, 0.05)
    model.generation_config = GenerationConfig(
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def build_folder(family: str, folder: Path) -> Path:
    """Save a tiny model of the family with its processor, as any policy folder."""
    tokenizer = build_tokenizer()
    size = {"shortest_edge": 16 * 16, "longest_edge": 256 * 256}
    if family == "qwen2_5_vl":
        processor = Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=size, patch_size=14),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(size=size, patch_size=14),
            chat_template=CHAT_TEMPLATE,
        )
    else:
        processor = Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=size, patch_size=16),
            tokenizer=tokenizer,
            video_processor=Qwen3VLVideoProcessor(
                size={"shortest_edge": 1024, "longest_edge": 16 * 256 * 256}, patch_size=16
            ),
            chat_template=CHAT_TEMPLATE,
        )
    build_model(family, tokenizer).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: build_folder(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


@pytest.fixture(scope="session")
def policies(folders: dict[str, Path]) -> dict[str, Policy]:
    return {
        name: load_policy(str(folder), dtype="float32", device="cpu")
        for name, folder in folders.items()
    }


@pytest.fixture(params=FAMILIES)
def policy(request: pytest.FixtureRequest, policies: dict[str, Policy]) -> Policy:
    return policies[request.param]


def generate(
    policy: Policy,
    prompts: list[PromptInputs],
    features: list[VisionFeatures] | None = None,
    *,
    decode_mode: DecodeMode = "auto",
    compile_backend: Backend | None = None,
    **options: Any,
) -> Completions:
    """Completions of prompts by a decoder of their own."""
    decoder = Decoder(policy, mode=decode_mode, backend=compile_backend)
    return decoder(prompts, features, **options)


def make_video(
    seed: int = 0, num_frames: int = 6, height: int = 64, width: int = 96, fps: float = 25.0
) -> VideoFrames:
    """Random frames at uneven source indices."""
    rng = np.random.default_rng(seed)
    source_index_K = np.sort(rng.choice(250, size=num_frames, replace=False)).astype(np.int64)
    return VideoFrames(
        frames_KHWC=rng.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8),
        pts_seconds_K=source_index_K / fps,
        source_index_K=source_index_K,
    )


QUESTIONS = ("What moved?", "Which colour did the big square have at last?", "How many?")


def make_prompts(policy: Policy, count: int = 3, **video: int) -> list[PromptInputs]:
    """Prompts of different text lengths and frame counts."""
    videos = [make_video(seed=i, **{"num_frames": 4 + 2 * i, **video}) for i in range(count)]
    return prepare_prompts(policy, [QUESTIONS[i % 3] for i in range(count)], videos)
