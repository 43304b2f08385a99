"""How long prompts are, before any is made: from texts and the sizes of cached frames alone."""

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from strive.models.inputs import as_plain_text, render_prompts, snapped_size
from strive.models.loading import OpenedModel
from strive.models.positions import PositionRule

_TEXTS_AT_ONCE = 1000


def long_prompts(
    opened: OpenedModel,
    texts: Sequence[str],
    sizes: Iterable[tuple[int, int]],
    *,
    limit: int,
    num_frames: int,
    longest_seconds: float,
    max_pixels: int | None,
    position_rule: PositionRule,
) -> dict[int, int]:
    """Find the prompts of more than `limit` tokens: {place in `texts`: number of tokens}.

    `sizes` are height and width of each text's frames as cached. A byte-level tokenizer makes at
    most one token of a byte, so that only texts of more bytes than there is room for are tokenised:
    of a corpus of ordinary questions, none.
    """
    around: dict[tuple[int, int], int] = {}
    suspects: list[tuple[int, str, int]] = []
    for place, (text, size) in enumerate(zip(texts, sizes, strict=True)):
        if size not in around:
            around[size] = _tokens_around(
                opened, size, num_frames, longest_seconds, max_pixels, position_rule
            )
        room = limit - around[size]
        if len(text) <= room and len(unicodedata.normalize("NFC", text).encode()) <= room:
            continue
        suspects.append((place, text, around[size]))
    found: dict[int, int] = {}
    tokenizer = opened.processor.tokenizer
    for start in range(0, len(suspects), _TEXTS_AT_ONCE):
        batch = suspects[start : start + _TEXTS_AT_ONCE]
        plain = [as_plain_text(text, tokenizer) for _, text, _ in batch]
        rows = tokenizer(plain, add_special_tokens=False)["input_ids"]
        for (place, _, others), row in zip(batch, rows, strict=True):
            if others + len(row) > limit:
                found[place] = others + len(row)
    return found


def _tokens_around(
    opened: OpenedModel,
    size: tuple[int, int],
    num_frames: int,
    longest_seconds: float,
    max_pixels: int | None,
    position_rule: PositionRule,
) -> int:
    """Tokens of a prompt without its question: the turn, the video, and its times if written."""
    processor, vision = opened.processor, opened.config.vision_config
    limit = opened.family.frame_pixel_limit(processor, num_frames)
    height, width = snapped_size(
        *size,
        factor=vision.patch_size * vision.spatial_merge_size,
        pixel_limit=limit if max_pixels is None else min(limit, max_pixels),
    )
    grid = (
        -(-num_frames // vision.temporal_patch_size),
        height // vision.patch_size,
        width // vision.patch_size,
    )
    [rendered] = render_prompts(processor, [""])
    expanded = opened.family.expand_prompt(
        processor, rendered, grid, np.linspace(0.0, longest_seconds, num_frames), position_rule
    )
    return len(processor.tokenizer(expanded)["input_ids"])
