"""What a language model's layers do with a row of segments, without a mask of all its positions.

transformers lets a model name its attention function. The language model of a policy gets ours,
which is sdpa as ever until a forward pass hands in `segment_attention`: then that object attends.
So one forward pass over packed rows differs from the others by an argument alone, the recomputation
of a checkpointed layer gets the same one, and the vision tower never sees it.
"""

import functools
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import (
    pack_gqa,
    repeat_kv,
    sdpa_attention_forward,
    use_gqa_in_sdpa,
)
from transformers.masking_utils import sdpa_mask

from strive.errors import ConfigError, ModelError, unknown_name
from strive.models.rows import PADDING, PROMPT, Rows

AttentionMode = Literal["auto", "sdpa", "flex"]
MODES: tuple[str, ...] = ("auto", "sdpa", "flex")
NAME = "strive_segments"


class SegmentAttention(Protocol):
    """Attention over rows in which a position sees its prompt and its own completion."""

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scale: float
    ) -> Tensor:
        """Queries [B, heads, T, D], keys and values [B, key heads, T, D] to [B, T, heads, D]."""


def segment_attention(
    language_model: Any, rows: Rows, mode: AttentionMode = "sdpa"
) -> dict[str, SegmentAttention]:
    """Arguments for one forward of `language_model` over `rows`; none for plainly causal rows.

    `auto` is flex-attention on a GPU, sdpa elsewhere.

    Raises:
        UnknownNameError: the mode is none of `MODES`.
        ConfigError: a gradient is wanted of flex-attention on a CPU, which has none.
    """
    if mode not in MODES:
        raise unknown_name("attention", mode, MODES)
    if torch.is_grad_enabled():
        require_gradient(mode, rows.ids_BT.device)
    use_segments(language_model)
    if rows.is_causal:
        return {}
    if mode == "flex" or (mode == "auto" and rows.ids_BT.is_cuda):
        return {"segment_attention": FlexSegments(rows)}
    return {"segment_attention": SplitSegments(rows)}


def require_gradient(mode: AttentionMode, device: torch.device) -> None:
    """Check that a mode can train on a device.

    Raises:
        ConfigError: it has no backward pass there.
    """
    if mode == "flex" and device.type == "cpu":
        raise ConfigError(
            "attention is 'flex', which has a backward pass on a GPU only; set attention=auto"
        )


def use_segments(language_model: Any) -> None:
    """Let a language model take `segment_attention`; without one it attends as sdpa does."""
    if language_model.config._attn_implementation != NAME:
        language_model.set_attn_implementation(NAME)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float,
    segment_attention: SegmentAttention | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function of a policy's language model, as transformers calls it."""
    if segment_attention is not None:
        if options.get("dropout", 0.0) > 0:
            raise ModelError(
                f"attention_dropout is {options['dropout']}; packed log-probs need 0: set it so in "
                "the model's config.json, or set logprobs=plain"
            )
        return segment_attention(module, query, key, value, scale=scaling), None
    if query.shape[2] == 1:
        return _attend_one(query, key, value, attention_mask, scaling), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **options
    )


def _attend_one(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """One query per row: the heads that share a key head are queries of it, and nothing is copied.

    transformers does the same, but not within a compiled graph.
    """
    packed: Any = pack_gqa(query, query.shape[1] // key.shape[1])
    output = nn.functional.scaled_dot_product_attention(
        packed, key, value, attn_mask=mask, scale=scale
    )
    return output.reshape(len(query), 1, query.shape[1], query.shape[3])


class SplitSegments:
    """Attention by sdpa, one call for each prompt and each completion.

    A prompt is plainly causal. A completion attends to its prompt's keys and its own: no product
    is made that a mask would throw away, and no mask of [T, T] exists.
    """

    def __init__(self, rows: Rows) -> None:
        self.runs_B = rows.runs_B
        self.masks_B = [_completion_mask(runs, rows.ids_BT.device) for runs in rows.runs_B]

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scale: float
    ) -> Tensor:
        """See `SegmentAttention`; padding gets zeros."""
        parts = zip(query.split(1), key.split(1), value.split(1), strict=True)
        rows = [
            torch.cat(self._row(row, *tensors, scale=scale), dim=2)
            for row, tensors in enumerate(parts)
        ]
        return torch.cat(rows).transpose(1, 2).contiguous()

    def _row(
        self, row: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float
    ) -> list[Tensor]:
        sizes = [length for _, length in self.runs_B[row]]
        queries, keys, values = (x.split(sizes, dim=2) for x in (query, key, value))
        outputs: list[Tensor] = []
        for run, (segment, length) in enumerate(self.runs_B[row]):
            own_key, own_value, mask = keys[run], values[run], None
            if segment == PADDING:
                outputs.append(torch.zeros_like(queries[run]))
                continue
            if segment == PROMPT:
                prompt_key, prompt_value = own_key, own_value
            else:
                own_key = torch.cat([prompt_key, own_key], dim=2)
                own_value = torch.cat([prompt_value, own_value], dim=2)
                mask = self.masks_B[row][:, :, :length, : own_key.shape[2]]
            outputs.append(_sdpa(queries[run], own_key, own_value, mask, scale))
        return outputs


def _completion_mask(runs: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """What position t of any completion may see: [1, 1, longest, prompt + longest]."""
    longest = max((length for segment, length in runs if segment > PROMPT), default=0)
    prompt = sum(length for segment, length in runs if segment == PROMPT)
    seen = torch.ones(longest, prompt + longest, dtype=torch.bool, device=device)
    return seen.tril(prompt)[None, None]


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Causal without a mask. Key heads are copied only where sdpa has no kernel that shares them.

    transformers' rule for that copies on a CPU as well, whose kernel needs no copies.
    """
    groups = query.shape[1] // key.shape[1]
    shares = query.device.type == "cpu" or use_gqa_in_sdpa(mask, key, value)
    if not shares:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    return nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and query.shape[2] > 1,
        scale=scale,
        enable_gqa=shares and groups > 1,
    )


class FlexSegments:
    """Attention by flex-attention: one call for all rows, which skips blocks of unseen keys."""

    def __init__(self, rows: Rows) -> None:
        segments_BT = rows.segments_BT
        batch, width = segments_BT.shape
        # Compiled, the mask of all positions never exists; on a CPU that would need a compiler.
        self.block_mask = create_block_mask(
            _sees(segments_BT),
            batch,
            None,
            width,
            width,
            device=segments_BT.device,
            _compile=segments_BT.is_cuda,
        )

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scale: float
    ) -> Tensor:
        """See `SegmentAttention`."""
        heads, groups = query.shape[1], query.shape[1] // key.shape[1]
        # As transformers: a number of heads that is no power of two shares no keys (7B: 28).
        shares = heads & (heads - 1) == 0
        if not shares:
            key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        run = _compiled_flex() if query.is_cuda else flex_attention
        output: Any = run(
            query,
            key,
            value,
            block_mask=self.block_mask,
            scale=scale,
            enable_gqa=shares and groups > 1,
        )
        return output.transpose(1, 2).contiguous()


@functools.cache
def _compiled_flex() -> Any:
    """One kernel for all layers and steps; uncompiled, every product of two positions is made."""
    return torch.compile(flex_attention)


def _sees(segments_BT: Tensor) -> Any:
    """The rule of `rows.py` for flex-attention: whether position q sees position k.

    Padding sees padding, because a position that sees nothing gives NaN.
    """

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = segments_BT[b, k]
        return (k <= q) & ((seen == PROMPT) | (seen == segments_BT[b, q]))

    return sees


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
