"""The language model over rows: its forward, and attention without a mask of all positions.

transformers lets a model name its attention function. The language model of a policy gets ours,
which is sdpa as ever until a forward pass hands in `segment_attention`: then that object attends.
So one forward pass over packed rows differs from the others by an argument alone, the recomputation
of a checkpointed layer gets the same one, and the vision tower never sees it.
"""

import functools
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import (
    pack_gqa,
    repeat_kv,
    sdpa_attention_forward,
    use_gqa_in_sdpa,
)
from transformers.masking_utils import sdpa_mask

from strive.choices import AttentionMode
from strive.errors import ConfigError, ModelError, short_reason, unknown_name
from strive.models.family import MergedFeatures
from strive.models.loading import Policy
from strive.models.rows import PADDING, PROMPT, Rows

Backend = str | Callable[..., Any]
"""A backend of torch.compile: its name, or a function."""
SegmentAttention = Callable[..., Tensor]
"""Attention over rows in which a position sees its prompt and its own completion: called with the
layer, queries [B, heads, T, D], keys and values [B, key heads, T, D] and `scale`; [B, T, heads, D].
"""
MODES: tuple[str, ...] = get_args(AttentionMode)
NAME = "strive_segments"
BLOCK = 128
"""Positions of a side of a block, flex-attention's own number."""
BLOCK_ROWS_AT_ONCE = 8
MOST_GRAPHS = 32
"""Graphs of one function that dynamo may make; its own limit of 8 is for functions of one shape."""


def language_forward(
    policy: Policy,
    model: Any,
    rows: Rows,
    merged: MergedFeatures,
    *,
    cache: Any = None,
    attention: AttentionMode = "sdpa",
) -> Tensor:
    """Hidden states [B, T, H] of the language model over rows with video features filled in.

    What comes out at padding means nothing, but is finite.
    """
    language_model = policy.family.language_model(model)
    embeds_BTH = model.get_input_embeddings()(rows.ids_BT)
    video_H = merged.embeds_NH.to(embeds_BTH.dtype)
    embeds_BTH = embeds_BTH.masked_scatter(rows.video_mask_BT[..., None], video_H)
    output = language_model(
        inputs_embeds=embeds_BTH,
        position_ids=rows.position_ids_3BT,
        attention_mask=policy.family.mask_argument(None),
        past_key_values=cache,
        use_cache=cache is not None,
        **segment_attention(language_model, rows, attention),
        **policy.family.vision_arguments(rows.video_mask_BT, merged),
    )
    return output.last_hidden_state


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
        backend = "inductor" if rows.ids_BT.is_cuda else None
        return {"segment_attention": FlexSegments(rows, backend)}
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
        # One query per row: the heads that share a key head are queries of it, and nothing is
        # copied. transformers does the same, but not within a compiled graph.
        packed: Any = pack_gqa(query, query.shape[1] // key.shape[1])
        output = nn.functional.scaled_dot_product_attention(
            packed, key, value, attn_mask=attention_mask, scale=scaling
        )
        return output.reshape(len(query), 1, query.shape[1], query.shape[3]), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **options
    )


class SplitSegments:
    """Attention by sdpa, one call for each prompt and each completion.

    A prompt is plainly causal. A completion attends to its prompt's keys and its own: no product
    is made that a mask would throw away, and no mask of [T, T] exists.
    """

    def __init__(self, rows: Rows) -> None:
        self.runs_B = rows.runs_B
        self.masks_B = []
        """Columns that position t of any completion may see: [1, 1, longest, prompt + longest]."""
        for runs in rows.runs_B:
            longest = max((length for segment, length in runs if segment > PROMPT), default=0)
            prompt = sum(length for segment, length in runs if segment == PROMPT)
            shape, device = (longest, prompt + longest), rows.ids_BT.device
            seen = torch.ones(shape, dtype=torch.bool, device=device)
            self.masks_B.append(seen.tril(prompt)[None, None])

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
    """Attention by flex-attention: one call for all rows, which skips blocks of unseen keys.

    `backend` is torch.compile's; without one, as on a CPU, every product of two positions is made.
    """

    def __init__(self, rows: Rows, backend: Backend | None = None) -> None:
        self.block_mask = segments_block_mask(rows.segments_BT)
        self._run: Any = flex_attention if backend is None else compiled_flex(backend)

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *, scale: float
    ) -> Tensor:
        """See `SegmentAttention`."""
        heads, groups = query.shape[1], query.shape[1] // key.shape[1]
        # As transformers: a number of heads that is no power of two shares no keys (7B: 28).
        shares = heads & (heads - 1) == 0
        if not shares:
            key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        output: Any = self._run(
            query,
            key,
            value,
            block_mask=self.block_mask,
            scale=scale,
            enable_gqa=shares and groups > 1,
        )
        return output.transpose(1, 2).contiguous()


@functools.cache
def compiled_flex(backend: Backend) -> Callable[..., Tensor]:
    """Flex-attention as one kernel for all layers, steps and sizes.

    A graph depends on the number of heads, on whether a gradient is kept, and on whether there is
    one row or more; every size is a variable of it. As one graph or none: past its limit of graphs
    dynamo would run flex-attention as it is, which makes every product of two positions (4 GB a
    layer at 7B) without a word.

    Raises:
        ModelError: by the function, when it cannot be compiled, or once more.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
    return compile_whole(
        flex_attention, backend, name="flex-attention", without="attention=sdpa", dynamic=True
    )


def segments_block_mask(segments_BT: Tensor) -> BlockMask:
    """Which blocks of keys each block of queries sees, wholly or in part.

    The same as `create_block_mask` makes, which needs the mask of all positions or a compiler; here
    it exists for a few rows of blocks at a time.
    """
    batch, width = segments_BT.shape
    device = segments_BT.device
    sees = _sees(segments_BT)
    b = torch.arange(batch, device=device)[:, None, None]
    columns_T = torch.arange(width, device=device)
    num_blocks = -(-width // BLOCK)
    room = num_blocks * BLOCK - width
    counts = []
    for rows in columns_T.split(BLOCK * BLOCK_ROWS_AT_ONCE):
        seen = sees(b, b, rows[:, None], columns_T)
        seen = nn.functional.pad(seen, (0, room, 0, -len(rows) % BLOCK))
        blocks = seen.unflatten(2, (num_blocks, BLOCK)).unflatten(1, (-1, BLOCK))
        counts.append(blocks.sum(dim=(2, 4)))
    seen_BQK = torch.cat(counts, dim=1)[:, None]
    full_BQK = seen_BQK == BLOCK * BLOCK
    partial, full = (
        (blocks.sum(-1).int(), blocks.int().argsort(dim=-1, descending=True, stable=True).int())
        for blocks in ((seen_BQK > 0) & ~full_BQK, full_BQK)
    )
    return BlockMask.from_kv_blocks(
        *partial, *full, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(width, width)
    )


def _sees(segments_BT: Tensor) -> Any:
    """The rule of `rows.py` for flex-attention: whether position q sees position k.

    Padding sees padding, because a position that sees nothing gives NaN.
    """

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = segments_BT[b, k]
        return (k <= q) & ((seen == PROMPT) | (seen == segments_BT[b, q]))

    return sees


def compile_whole(
    function: Callable[..., Any], backend: Backend, *, name: str, without: str, **options: Any
) -> Callable[..., Any]:
    """Compile a function as one graph: one that fell apart would be slow without a word.

    `name` says in an error what could not be compiled, `without` which setting does without it.

    Raises:
        ModelError: by the function, when it cannot be compiled, or not once more.
    """
    whole: Any = torch.compile(function, fullgraph=True, backend=backend, **options)

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        try:
            return whole(*arguments, **named)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            reason = short_reason(error.__cause__ or error, 200)
            raise ModelError(f"torch cannot compile {name} here ({reason}); set {without}") from (
                error
            )

    return run


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
