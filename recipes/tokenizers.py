"""Small tokenizers: common lab words are one token each, any other text falls back to bytes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from strive.answers import build_question
from strive.lab.questions import draw_questions, to_record
from strive.lab.scene import Difficulty, draw_scene

VOCABULARY_SIZE = 768
_TEXT_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# How Qwen cuts text into words before the byte pairs are looked up; every digit stands alone.
_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    # Qwen's, without a system turn.
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'video' or 'video' in item %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif item['type'] == 'image' or 'image' in item %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in item %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def lab_corpus(num_clips: int = 400, seed: int = 0) -> list[str]:
    """Return texts as the lab's models read them: prompts, answers, timestamps, roles."""
    lines: list[str] = []
    rng = np.random.default_rng(seed)
    for clip in range(num_clips):
        scene = draw_scene(seed, clip, Difficulty())
        for question in draw_questions(scene, rng):
            record = to_record(scene, question, problem_id=0, video_id="x.mp4")
            lines.append(f"user\n{build_question(record, 'short')}")
            lines += [f"It is {question.answer}", question.answer]
            if clip % 20 == 0:
                lines.append(build_question(record, "video_r1"))
        lines.append(f"<{rng.uniform(0, 16):.1f} seconds>")
    return [*lines, *["assistant\n"] * 100, *["user\n"] * 100]


def build_policy_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Make the policies' tokenizer: byte-level pairs, Qwen's special tokens, short answer tags.

    The tags are ordinary (not special) tokens, so that decoding keeps them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = len(_SPECIAL_TOKENS) + len(_TEXT_TAGS)
    _train(tokenizer, lab_corpus(seed=seed), VOCABULARY_SIZE - added, specials=())
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in _SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in _TEXT_TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )


def build_siglip_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Make the scorer's tokenizer: lower-cased byte-level pairs, `<eos>`, padding right."""
    from tokenizers import normalizers, processors

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, lab_corpus(seed=seed), 640, specials=("<pad>", "<eos>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", tokenizer.token_to_id("<eos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="right",
        truncation_side="right",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def _train(
    tokenizer: Tokenizer, texts: Sequence[str], vocabulary_size: int, specials: Sequence[str]
) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(specials),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a tokenizer so that `AutoTokenizer` opens the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
