"""Runs a policy's vision tower and language model over batches of equal square videos.

The towers' own forward attends slice by slice in a loop; here all slices are one batch. A test
holds both to the same numbers.

Axis legend: B videos, K frames, S slices of all videos, N patches of a slice, D width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.vision_utils import get_vision_position_ids

from recipes.folders import PATCH_SIZE
from recipes.rows import Batch
from strive.models.family import MergedFeatures


def patchify(pixels: Tensor, patch: int) -> Tensor:
    """Cut normalised videos [B, K, C, H, W] into patches of two frames, [B*K/2*N, C*2*p*p].

    The order is that of the processors: slice, merged row, merged column, row and column in it.
    """
    videos, frames, channels, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    x = pixels.reshape(
        videos, frames // 2, 2, channels, rows // 2, 2, patch, columns // 2, 2, patch
    )
    x = x.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    return x.reshape(videos * (frames // 2) * rows * columns, channels * 2 * patch * patch)


def normalised(frames: Tensor, processor: Any) -> Tensor:
    """Turn frames [B, K, H, W, 3] in [0, 1] into normalised pixels [B, K, 3, H, W]."""
    mean = torch.tensor(processor.video_processor.image_mean)
    std = torch.tensor(processor.video_processor.image_std)
    return ((frames - mean) / std).permute(0, 1, 4, 2, 3)


def encode_square(policy: Any, frames: Tensor) -> MergedFeatures:
    """Video tokens of square videos [B, K, H, W, 3] in [0, 1], with graph."""
    tower = policy.model.model.visual
    patch = PATCH_SIZE[policy.family.name]
    patches = patchify(normalised(frames, policy.processor), patch)
    grid = torch.tensor([[1, frames.shape[2] // patch, frames.shape[3] // patch]])
    num_patches = int(grid.prod())
    hidden = tower.patch_embed(patches)
    hidden = hidden.view(-1, num_patches, hidden.shape[-1])
    if hasattr(tower, "pos_embed"):
        hidden = hidden + _slice_position_embeddings(tower, grid)
    cos, sin = tower.rotary_pos_emb(hidden, get_vision_position_ids(grid, 2))
    wanted = list(getattr(tower, "deepstack_visual_indexes", ()))
    deepstack: list[Tensor] = []
    for number, block in enumerate(tower.blocks):
        hidden = _block(block, hidden, cos, sin)
        if number in wanted:
            deepstack.append(hidden.flatten(0, 1))
    return policy.family.merge(tower, [hidden.flatten(0, 1), *deepstack])


def _block(block: Any, hidden_SND: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    attention = block.attn
    slices, patches, width = hidden_SND.shape
    qkv = attention.qkv(block.norm1(hidden_SND))
    q, k, v = qkv.view(slices, patches, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v)
    hidden_SND = hidden_SND + attention.proj(mixed.transpose(1, 2).reshape(slices, patches, width))
    return hidden_SND + block.mlp(block.norm2(hidden_SND))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def _slice_position_embeddings(tower: Any, grid: Tensor) -> Tensor:
    """Qwen3-VL's learned patch positions, interpolated as its tower does, [N, D]."""
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights

    indices, weights = get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=tower.num_grid_per_side,
        mode=tower.interpolation_mode,
        align_corners=tower.interpolation_align_corners,
        spatial_merge_size=2,
    )
    return (tower.pos_embed(indices) * weights[:, :, None]).sum(1)


def hidden_states(policy: Any, batch: Batch, merged: MergedFeatures | None) -> Tensor:
    """Last hidden states of the language model over a batch, [B, T, D]."""
    language_model = policy.model.model.language_model
    embeds = language_model.embed_tokens(batch.input_ids_BT)
    further: dict[str, Any] = {}
    if merged is not None:
        mask = batch.video_mask_BT[..., None].expand_as(embeds)
        embeds = embeds.masked_scatter(mask, merged.embeds_NH)
        further = policy.family.vision_arguments(batch.video_mask_BT, merged)
    return language_model(
        inputs_embeds=embeds,
        position_ids=batch.positions_3BT,
        attention_mask=policy.family.mask_argument(batch.allowed_BTT[:, None]),
        use_cache=False,
        **further,
    ).last_hidden_state


def learned_losses(policy: Any, batch: Batch, merged: MergedFeatures | None) -> Tensor:
    """Cross entropy of every learned token, in the batch's order."""
    hidden = hidden_states(policy, batch, merged)
    learn = batch.learn_BT[:, 1:]
    logits = policy.model.lm_head(hidden[:, :-1][learn])
    return functional.cross_entropy(logits, batch.input_ids_BT[:, 1:][learn], reduction="none")
