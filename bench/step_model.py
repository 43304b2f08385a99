"""The model and the question that `bench.step` and `bench.growth` run on: built here, no download.

A Qwen2.5-VL with random weights in the proportions of the 7B one (a tenth of its widths, 8 of its
28 layers): head_dim 64, a three-part mrope_section, grouped key-value heads, windowed and full
attention in a tower of head_dim 80, embeddings not tied to the head. Its head is scaled so that
the next token's entropy is 1 to 2 nats, as a trained model's: a flat distribution would make top-p
look at the whole vocabulary. Weights do not change how long anything else takes.
"""

import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import BUILD
from strive.groups import QuestionVariants
from strive.models.inputs import VideoFrames
from strive.records import Record

NUM_FRAMES = 16
FRAME_SIZE = (168, 280)
"""Height and width of a frame: 6 x 10 merged tokens a slice, 8 slices a video."""
SECONDS_PER_FRAME, SOURCE_FPS = 4.0, 30.0
PLAIN_TOKENS = 600
"""Ids below this are ordinary words; vision and end tokens come after them."""
PROMPT_TEMPLATE = "video_r1"
TEXT: dict[str, Any] = {
    "hidden_size": 384,
    "intermediate_size": 2032,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1000000.0,
        "mrope_section": [8, 12, 12],
    },
}
VISION: dict[str, Any] = {
    "depth": 8,
    "hidden_size": 160,
    "intermediate_size": 427,
    "num_heads": 2,
    "out_hidden_size": 384,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [3, 7],
    "tokens_per_second": 2,
}
LOGIT_STD = 8.0
"""Of a random head: the next token's entropy is then 1 to 2 nats at either vocabulary."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a contender is told: the model, the group's shape and what trains."""

    folder: str
    trainable: str
    """`language`: the tower is frozen up to its merger; `all`: it trains."""
    num_variants: int
    num_generations: int
    num_threads: int = 2
    learning_rate: float = 1e-6
    beta: float = 0.04
    sampling_temperature: float = 1.0
    top_p: float = 0.95


def model_folder(vocabulary: int) -> Path:
    """Build the model with its processor, once, as a folder that any tool opens."""
    facts = json.dumps([TEXT, VISION, FRAME_SIZE, LOGIT_STD], sort_keys=True)
    digest = hashlib.sha256(facts.encode()).hexdigest()[:8]
    folder = BUILD / "step" / f"qwen2_5_vl-{vocabulary}-{digest}"
    if folder.is_dir():
        return folder
    temporary = folder.with_suffix(".part")
    shutil.rmtree(temporary, ignore_errors=True)
    _build(temporary, vocabulary)
    temporary.rename(folder)
    return folder


def _build(folder: Path, vocabulary: int) -> None:
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    tokenizer = build_tokenizer(vocabulary)
    config = build_config(tokenizer, vocabulary, TEXT, VISION)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    sharpen_head(model)
    model.save_pretrained(folder)
    build_processor(tokenizer, FRAME_SIZE).save_pretrained(folder)


def sharpen_head(model: Any) -> None:
    """Give a random head logits of a trained one's spread."""
    import torch

    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head.normal_(0.0, LOGIT_STD / math.sqrt(head.shape[1]))


def build_config(
    tokenizer: Any, vocabulary: int, text: dict[str, Any], vision: dict[str, Any]
) -> Any:
    """Put a configuration together from the widths of both parts."""
    from transformers import Qwen2_5_VLConfig

    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{text}|>")
        for name, text in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    ends = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    return Qwen2_5_VLConfig(
        text_config={**text, **ends, "vocab_size": vocabulary, "tie_word_embeddings": False},
        vision_config=vision,
        tie_word_embeddings=False,
        **ids,
    )


def build_tokenizer(vocabulary: int) -> Any:
    """The lab's tokenizer with its vocabulary filled up to size by words that no text has."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from recipes.tokenizers import build_policy_tokenizer

    content = json.loads(build_policy_tokenizer().backend_tokenizer.to_str())
    words = content["model"]["vocab"]
    words |= {token["content"]: token["id"] for token in content["added_tokens"]}
    words |= {f"Ġfiller{i}": i for i in range(len(words), vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: Any, frame_size: tuple[int, int]) -> Any:
    """Make a processor that leaves frames of this size as they are."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    from recipes.tokenizers import CHAT_TEMPLATE

    size = {"shortest_edge": 56 * 56, "longest_edge": frame_size[0] * frame_size[1]}
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=size, patch_size=VISION["patch_size"]),
        tokenizer,
        Qwen2VLVideoProcessor(size=size, patch_size=VISION["patch_size"], do_sample_frames=False),
        chat_template=CHAT_TEMPLATE,
    )


def make_question(
    number: int, num_variants: int, frame_size: tuple[int, int] = FRAME_SIZE
) -> QuestionVariants:
    """A question of one step: M variants of 16 frames, evenly spaced, each with its own offset."""
    rng = np.random.default_rng(number)
    stride = round(SECONDS_PER_FRAME * SOURCE_FPS)
    offset_M = [variant * stride // num_variants for variant in range(num_variants)]
    videos = tuple(_video(rng, offset, stride, frame_size) for offset in offset_M)
    record = Record(
        question_id=str(number),
        video_id=f"{number}.mp4",
        problem=f"What is the colour of the shape that leaves in part {number}?",
        problem_type="multiple choice",
        options=("A. red", "B. green", "C. blue", "D. yellow"),
        solution="<answer>B</answer>",
        data_source="bench",
        evidence_spans_seconds=None,
    )
    return QuestionVariants(
        record=record,
        frame_index_MK=np.tile(np.arange(NUM_FRAMES), (num_variants, 1)),
        variants=tuple(range(num_variants)),
        videos=videos,
        frame_overlap=0.0,
        effective_frames=float("nan"),
        evidence_seen_M=None,
    )


def _video(
    rng: np.random.Generator, offset: int, stride: int, frame_size: tuple[int, int]
) -> VideoFrames:
    index_K = offset + stride * np.arange(NUM_FRAMES)
    return VideoFrames(
        frames_KHWC=rng.integers(0, 256, (NUM_FRAMES, *frame_size, 3), dtype=np.uint8),
        pts_seconds_K=index_K / SOURCE_FPS,
        source_index_K=index_K,
    )


def vowels(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """A reward that differs between completions, so that every group carries a signal."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [sum(text.count(letter) for letter in "aeiou") / 100 for text in texts]
