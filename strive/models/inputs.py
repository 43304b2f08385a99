"""From a question and K frames to what a policy reads: token ids, pixels, position ids.

The chat template, the placeholders and the pixel layout are the processor's own. Three things are
ours: frames are snapped to the patch grid here (never enlarged beyond the snap), each picture's own
time is given, and position ids are computed once.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from strive.errors import DiskError, ModelError
from strive.files import atomic_file
from strive.models.loading import OpenedModel, Policy
from strive.models.positions import Grid, PositionRule, mean_seconds_per_slice, next_position
from strive.records import VideoFrames

MOST_SLENDER = 200
"""Length of a frame over its breadth that processors take at most."""
_TEXTS_AT_ONCE = 1000
_WORTH_KEEPING = 1000
"""So many new counts are written for the next start; fewer take no time."""


@dataclass(frozen=True)
class PromptInputs:
    """One prompt (a question about one variant), ready for the model. Lives on the CPU."""

    input_ids_P: NDArray[np.int64]
    video_mask_P: NDArray[np.bool_]
    position_ids_3P: NDArray[np.int64]
    next_position: int
    """Position of the first completion token, on all three axes."""
    pixel_values: Tensor
    """Patches [slices x rows x columns, values], normalised."""
    video_grid_thw: Grid
    """Slices, rows and columns in patches, before merging."""
    seconds_per_slice: float
    text: str
    """The rendered prompt with one placeholder for the video."""


def prepare_prompt(
    policy: Policy,
    text: str,
    video: VideoFrames,
    *,
    max_pixels: int | None = None,
    system_prompt: str | None = None,
) -> PromptInputs:
    """Prepare one question about one video; see `prepare_prompts` for several at once."""
    [prompt] = prepare_prompts(
        policy, [text], [video], max_pixels=max_pixels, system_prompt=system_prompt
    )
    return prompt


def prepare_prompts(
    policy: Policy,
    texts: Sequence[str],
    videos: Sequence[VideoFrames],
    *,
    max_pixels: int | None = None,
    system_prompt: str | None = None,
) -> list[PromptInputs]:
    """Prepare several prompts with one call of each part of the processor.

    `max_pixels` limits a frame's pixels further than the processor does by itself. Prompts about
    one video (the same object) share their `pixel_values`. For `system_prompt` see
    `render_prompts`.
    """
    processor = policy.processor
    clips: list[torch.Tensor] = []
    places: dict[int, int] = {}
    for video in videos:
        if id(video) in places:
            continue
        places[id(video)] = len(clips)
        num_frames, height, width = video.frames_KHWC.shape[:3]
        if num_frames == 0:
            raise ModelError("a video of 0 frames cannot be asked about; at least 1 is needed")
        size = policy_size(processor, num_frames, height, width, max_pixels=max_pixels)
        clips.append(_resized(video.frames_KHWC, size))
    patches = processor.video_processor(
        videos=clips,
        do_resize=False,
        do_sample_frames=False,
        return_metadata=False,
        cap_pixels_per_frame=False,
        return_tensors="pt",
    )
    grids: list[Grid] = [tuple(grid) for grid in patches["video_grid_thw"].tolist()]
    pixels = patches["pixel_values_videos"].split([math.prod(grid) for grid in grids])
    grids = [grids[places[id(video)]] for video in videos]
    pixels = [pixels[places[id(video)]] for video in videos]
    rendered = render_prompts(processor, texts, system_prompt=system_prompt)
    expanded = [
        policy.family.expand_prompt(
            processor, prompt, grid, video.pts_seconds_K, policy.position_rule
        )
        for prompt, grid, video in zip(rendered, grids, videos, strict=True)
    ]
    ids = policy.tokenizer(expanded)["input_ids"]
    frames_per_slice = policy.config.vision_config.temporal_patch_size
    prompts = []
    for row, grid, pixel_values, video, text in zip(
        ids, grids, pixels, videos, rendered, strict=True
    ):
        input_ids_P = np.asarray(row, dtype=np.int64)
        video_mask_P = input_ids_P == policy.config.video_token_id
        seconds = mean_seconds_per_slice(video.pts_seconds_K, frames_per_slice)
        position_ids_3P = policy.family.position_ids(
            policy.config, video_mask_P, grid, seconds, policy.position_rule
        )
        prompts.append(
            PromptInputs(
                input_ids_P=input_ids_P,
                video_mask_P=video_mask_P,
                position_ids_3P=position_ids_3P,
                next_position=next_position(position_ids_3P),
                pixel_values=pixel_values,
                video_grid_thw=grid,
                seconds_per_slice=seconds,
                text=text,
            )
        )
    return prompts


def snapped_size(
    height: int, width: int, *, factor: int, pixel_limit: int | None
) -> tuple[int, int]:
    """Nearest size whose sides are multiples of `factor`, within `pixel_limit` pixels.

    The aspect ratio is kept as well as the grid allows. A frame within the limit moves to the
    nearest multiples (at most half a patch); a larger one shrinks; none is enlarged further.
    """
    rows, columns = max(1, round(height / factor)), max(1, round(width / factor))
    if pixel_limit is not None and rows * columns * factor**2 > pixel_limit:
        shrink = max(1.0, math.sqrt(height * width / pixel_limit))
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
        # A frame thinner than a patch is widened to one; its length then gives way.
        rows = min(rows, max(1, pixel_limit // factor**2 // columns))
        columns = min(columns, max(1, pixel_limit // factor**2 // rows))
    return rows * factor, columns * factor


def policy_size(
    processor: Any, num_frames: int, height: int, width: int, *, max_pixels: int | None = None
) -> tuple[int, int]:
    """Size at which a policy is shown a video's frames: what its processor would resize them to.

    The processor's own rule is asked, on a video without values, so that every limit of its
    settings and version holds. Two differences: a frame below its smallest size is not enlarged,
    and `max_pixels` limits a frame further.
    """
    processor = processor.video_processor
    factor = processor.patch_size * processor.merge_size
    size = snapped_size(height, width, factor=factor, pixel_limit=max_pixels)
    # It refuses what is thinner than a patch or than a 200th of its length; such a frame gives way.
    height, width = max(height, factor), max(width, factor)
    height, width = min(height, MOST_SLENDER * width), min(width, MOST_SLENDER * height)
    step = processor.temporal_patch_size
    theirs = processor.resize(
        videos=torch.empty(1, max(num_frames, step), 3, height, width, device="meta"),
        size=processor.size,
        resample=processor.resample,
        factor=factor,
        temporal_factor=step,
        cap_pixels_per_frame=getattr(processor, "cap_pixels_per_frame", None),
    )
    return min(size, (theirs.shape[-2], theirs.shape[-1]), key=math.prod)


def snap_frames(policy: Policy, frames_KHWC: NDArray[np.uint8], pixel_limit: int) -> Tensor:
    """Frames [K, 3, H, W] uint8 on the policy's patch grid, as pictures of their own."""
    vision = policy.config.vision_config
    factor = vision.patch_size * vision.spatial_merge_size
    height, width = frames_KHWC.shape[1:3]
    return _resized(
        frames_KHWC, snapped_size(height, width, factor=factor, pixel_limit=pixel_limit)
    )


def _resized(frames_KHWC: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """Frames [K, 3, H, W] uint8 of another size, as a processor resizes."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as transforms

    frames = torch.from_numpy(np.ascontiguousarray(frames_KHWC)).permute(0, 3, 1, 2)
    if size == frames.shape[2:]:
        return frames
    return transforms.resize(frames, list(size), InterpolationMode.BICUBIC, antialias=True)


def render_prompts(
    processor: Any, texts: Sequence[str], *, system_prompt: str | None = None
) -> list[str]:
    """The processor's chat template: one user turn, the video before the text.

    `system_prompt` is the text of a system turn before it; without one the template's own rule
    holds (Qwen2.5-VL's writes "You are a helpful assistant.", Qwen3-VL's writes none).
    """
    system_turns = []
    if system_prompt is not None:
        text = as_plain_text(system_prompt, processor.tokenizer)
        system_turns = [{"role": "system", "content": [{"type": "text", "text": text}]}]
    conversations = [
        [
            *system_turns,
            {
                "role": "user",
                "content": [
                    {"type": "video"},
                    {"type": "text", "text": as_plain_text(text, processor.tokenizer)},
                ],
            },
        ]
        for text in texts
    ]
    rendered: list[str] = processor.apply_chat_template(
        conversations, tokenize=False, add_generation_prompt=True
    )
    return rendered


def as_plain_text(text: str, tokenizer: Any) -> str:
    """Keep a question from writing control tokens (`<|im_end|>`, `<|video_pad|>`, ...).

    A space after the first character takes their meaning away. Tags such as `<think>` are part of
    prompt templates and stay.
    """
    special = [token for token in tokenizer.all_special_tokens if token]
    special += [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    if not any(token in text for token in special):
        return text
    pattern = "|".join(re.escape(token) for token in sorted(set(special), key=len, reverse=True))
    return re.sub(pattern, lambda found: f"{found[0][0]} {found[0][1:]}", text)


# --- how long prompts are, before any is made ----------------------------------------------------


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
    system_prompt: str | None = None,
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
                opened, size, num_frames, longest_seconds, max_pixels, position_rule, system_prompt
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
    system_prompt: str | None,
) -> int:
    """Tokens of a prompt without its question: the turns, the video, and its times if written."""
    processor, vision = opened.processor, opened.config.vision_config
    height, width = policy_size(processor, num_frames, *size, max_pixels=max_pixels)
    grid = (
        -(-num_frames // vision.temporal_patch_size),
        height // vision.patch_size,
        width // vision.patch_size,
    )
    [rendered] = render_prompts(processor, [""], system_prompt=system_prompt)
    expanded = opened.family.expand_prompt(
        processor, rendered, grid, np.linspace(0.0, longest_seconds, num_frames), position_rule
    )
    return len(processor.tokenizer(expanded)["input_ids"])
