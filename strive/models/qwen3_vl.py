"""Qwen3-VL: a timestamp before each slice, and deepstack features in the first text layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strive.models.family import MergedFeatures, MergerInputs
from strive.models.positions import Grid, PositionRule, qwen3_vl_positions


class Qwen3VL:
    """The family adapter of Qwen3-VL; see `family.Family`."""

    name = "qwen3_vl"

    def check(self, config: Any) -> None:
        """Every configuration of the family is supported."""

    def frame_pixel_limit(self, processor: Any, num_frames: int) -> int:
        """The even share of the processor's `longest_edge`, which counts a whole video's pixels."""
        step = processor.video_processor.temporal_patch_size
        padded = -(-num_frames // step) * step
        return int(processor.video_processor.size["longest_edge"]) // padded

    def position_ids(
        self,
        config: Any,
        video_mask_P: NDArray[np.bool_],
        grid_thw: Grid,
        seconds_per_slice: float,
        rule: PositionRule,
    ) -> NDArray[np.int64]:
        """Position ids [3, P]; both rules agree, and time is written in the prompt."""
        return qwen3_vl_positions(
            video_mask_P, grid_thw, merge_size=config.vision_config.spatial_merge_size
        )

    def expand_prompt(
        self,
        processor: Any,
        prompt: str,
        grid_thw: Grid,
        pts_seconds_K: NDArray[np.float64],
        rule: PositionRule,
    ) -> str:
        """Timestamps and placeholders of every slice, written by the processor.

        The processor computes a frame's time as index / fps. Indices in the file and the file's
        mean rate would give wrong times at a variable rate, so it is told of a video of one frame
        a second whose frame numbers are the pictures' times: index / 1.0 is that time to the bit.

        The published processor replaces `<|vision_start|><|video_pad|><|vision_end|>` as a whole,
        since every slice brings its own pair. transformers 5.23 replaces the pad alone, which
        leaves a second pair around all slices: a prompt that the weights were not trained with.
        """
        from transformers.video_utils import VideoMetadata

        seconds = pts_seconds_K.tolist()  # a list of its own: the processor extends an odd one
        metadata = VideoMetadata(total_num_frames=len(seconds), fps=1.0, frames_indices=seconds)
        video_inputs = {
            "video_grid_thw": torch.tensor([grid_thw]),
            "video_metadata": [metadata],
        }
        expanded = processor.replace_video_token(video_inputs, 0)
        pad = processor.video_token
        wrapped = f"{processor.vision_start_token}{pad}{processor.vision_end_token}"
        whole = rule == "published" and wrapped in prompt
        return prompt.replace(wrapped if whole else pad, expanded, 1)

    def encode(self, tower: Any, pixels_ND: Tensor, grid_V3: Tensor) -> list[Tensor]:
        """Last hidden states, then those of the deepstack layers."""
        with MergerInputs([tower.merger, *tower.deepstack_merger_list]) as mergers:
            tower(pixels_ND, grid_thw=grid_V3)
        return mergers.inputs

    def merge(self, tower: Any, layers: Sequence[Tensor]) -> MergedFeatures:
        """The tower's merger, and the deepstack mergers each on its own layer."""
        deepstack = tuple(
            merger(layer)
            for merger, layer in zip(tower.deepstack_merger_list, layers[1:], strict=True)
        )
        return MergedFeatures(embeds_NH=tower.merger(layers[0]), deepstack_SNH=deepstack)

    def mask_argument(self, mask: Tensor | None) -> Any:
        """The language model takes the mask as it is."""
        return mask

    def vision_arguments(self, video_mask_BT: Tensor, merged: MergedFeatures) -> dict[str, Any]:
        """Where the video tokens are, and what is added to them after the first layers."""
        return {
            "visual_pos_masks": video_mask_BT,
            "deepstack_visual_embeds": list(merged.deepstack_SNH),
        }

    def encoder_outputs(self, merged: MergedFeatures) -> Any:
        """The output object that the model's own forward takes in place of pixels."""
        from transformers.models.qwen3_vl.modeling_qwen3_vl import (
            BaseModelOutputWithDeepstackFeatures,
        )

        per_video: Any = [merged.embeds_NH]
        per_layer: Any = [[layer] for layer in merged.deepstack_SNH]
        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=per_video, deepstack_features=per_layer
        )
