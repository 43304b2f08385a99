"""How long prompts are, before any is made: from texts and the sizes of cached frames alone."""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from strive.errors import DiskError
from strive.files import atomic_file
from strive.models.inputs import as_plain_text, policy_size, render_prompts
from strive.models.loading import OpenedModel
from strive.models.positions import PositionRule

_TEXTS_AT_ONCE = 1000
_WORTH_KEEPING = 1000
"""So many new counts are written for the next start; fewer take no time."""


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
    kept_in: Path | None = None,
) -> dict[int, int]:
    """Find the prompts of more than `limit` tokens: {place in `texts`: number of tokens}.

    `sizes` are height and width of each text's frames as cached. A byte-level tokenizer makes at
    most one token of a byte, so that only texts of more bytes than there is room for are tokenised:
    of a corpus of ordinary questions, none. Their counts are kept in the folder `kept_in`, so that
    a second start does not make them again.
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
    counts = _count_tokens(opened.processor.tokenizer, [text for _, text, _ in suspects], kept_in)
    totals = {place: others + n for (place, _, others), n in zip(suspects, counts, strict=True)}
    return {place: total for place, total in totals.items() if total > limit}


def _count_tokens(tokenizer: Any, texts: Sequence[str], kept_in: Path | None) -> list[int]:
    """Tokens of each text as it stands in a prompt, from what an earlier call kept if it can be."""
    digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    counts: dict[bytes, int] = {}
    file = None
    if kept_in is not None and len(texts) >= _WORTH_KEEPING:
        vocabulary = tokenizer.backend_tokenizer.to_str().encode()
        file = kept_in / f"{hashlib.blake2b(vocabulary, digest_size=8).hexdigest()}.parquet"
        with suppress(OSError, pa.ArrowException, KeyError):  # it only saves time
            table = pq.read_table(file)
            counts = dict(zip(*(table[name].to_pylist() for name in ("text", "n")), strict=True))
    by_digest = dict(zip(digests, texts, strict=True))
    missing = {digest: text for digest, text in by_digest.items() if digest not in counts}
    names = list(missing)
    for start in range(0, len(names), _TEXTS_AT_ONCE):
        batch = names[start : start + _TEXTS_AT_ONCE]
        plain = [as_plain_text(missing[name], tokenizer) for name in batch]
        rows = tokenizer(plain, add_special_tokens=False)["input_ids"]
        counts.update(zip(batch, map(len, rows), strict=True))
    if file is not None and len(missing) >= _WORTH_KEEPING:
        with suppress(DiskError), atomic_file(file) as temporary:  # a cache may be read-only
            pq.write_table(pa.table({"text": list(counts), "n": list(counts.values())}), temporary)
    return [counts[digest] for digest in digests]


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
    height, width = policy_size(processor, num_frames, *size, max_pixels=max_pixels)
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
