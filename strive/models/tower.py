"""The vision tower in a few large calls: attention by length of segment, patches by one product.

A tower attends within windows and within slices. With sdpa transformers calls it for each of them
(21,760 times for eight videos at Qwen2.5-VL-7B's shapes) and asks the device for their lengths in
every layer. Here one call has all segments of one length, and lengths are known from the grids.
The values are the same up to rounding; weights and their names are not touched.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "strive_flash_segments"
"""transformers hands all segments over in one call to a function whose name holds `flash`."""


class Segments:
    """Which rows of a call of the tower attend to each other, sorted by how many they are."""

    def __init__(self, segment_N: Tensor, device: torch.device) -> None:
        """Take the number of each row's segment [N], on the CPU."""
        sizes_S = torch.bincount(segment_N)
        distinct, kind_S, counts = sizes_S.unique(return_inverse=True, return_counts=True)
        rows_N = (kind_S[segment_N] * len(sizes_S) + segment_N).argsort(stable=True)
        self.shapes = list(zip(counts.tolist(), distinct.tolist(), strict=True))
        """How many segments there are of each length, in the order of `order_N`."""
        self.order_N: Tensor | None = None
        self.back_N: Tensor | None = None
        if not torch.equal(rows_N, torch.arange(len(rows_N))):
            self.order_N, self.back_N = rows_N.to(device), rows_N.argsort().to(device)

    @property
    def longest(self) -> int:
        """Rows of the longest segment."""
        return max(length for _, length in self.shapes)


def attend_by_length(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: Any,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function of a tower, [1, heads, N, D] to [1, N, heads, D], without a mask.

    `cu_seq_lens_q` is a `Segments`, or the boundaries that transformers makes without one.
    """
    segments = cu_seq_lens_q
    if isinstance(segments, Tensor):
        lengths_S = segments.diff().cpu().long()
        segments = Segments(repeated(lengths_S), query.device)
    rows = [heads[0].transpose(0, 1) for heads in (query, key, value)]
    if segments.order_N is not None:
        rows = [row.index_select(0, segments.order_N) for row in rows]
    sizes = [count * length for count, length in segments.shapes]
    outputs = []
    for shape, *parts in zip(segments.shapes, *(row.split(sizes) for row in rows), strict=True):
        q, k, v = (part.unflatten(0, shape).transpose(1, 2) for part in parts)
        output = nn.functional.scaled_dot_product_attention(q, k, v, scale=scaling)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    joined_NHD = torch.cat(outputs)
    if segments.back_N is not None:
        joined_NHD = joined_NHD.index_select(0, segments.back_N)
    return joined_NHD[None], None


def repeated(lengths_S: Tensor) -> Tensor:
    """The number of each row's segment [N], from the lengths of consecutive segments."""
    return torch.arange(len(lengths_S)).repeat_interleave(lengths_S)


def slice_of_rows(grid_V3: Tensor) -> Tensor:
    """The number of each patch's slice [N], counted through all videos; grids on the CPU."""
    return repeated((grid_V3[:, 1] * grid_V3[:, 2]).repeat_interleave(grid_V3[:, 0]))


class LinearPatches(nn.Conv3d):
    """A patch embedding, whose kernel is its stride: one matrix product, and no convolution."""

    def forward(self, input: Tensor) -> Tensor:
        """Patches [N, channels, frames, rows, columns] to [N, width, 1, 1, 1]."""
        output_NE = nn.functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return output_NE[..., None, None, None]


def use_few_calls(tower: Any) -> None:
    """Let a tower work as this page says, from now on.

    For good, because a checkpointed layer must be computed again as it was the first time.
    """
    if tower.config._attn_implementation != NAME:
        tower.config._attn_implementation = NAME
        tower.patch_embed.proj.__class__ = LinearPatches


AttentionInterface.register(NAME, attend_by_length)
