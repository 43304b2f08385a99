"""Qwen3-VL: a timestamp before each slice, and deepstack features in the first text layers."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from strive.errors import ModelError
from strive.models.family import (
    Family,
    MergedFeatures,
    MergerInputs,
    Segments,
    slice_of_rows,
    use_few_calls,
)
from strive.models.positions import Grid, PositionRule, grid_positions, runs_of


class Qwen3VL(Family):
    """Qwen3-VL."""

    name = "qwen3_vl"

    def mergers(self, tower: Any) -> list[nn.Module]:
        """The merger of the last layer, then those of the deepstack layers."""
        return [tower.merger, *tower.deepstack_merger_list]

    def position_ids(
        self,
        config: Any,
        video_mask_P: NDArray[np.bool_],
        grid_thw: Grid,
        seconds_per_slice: float,
        rule: PositionRule,
    ) -> NDArray[np.int64]:
        """Position ids [3, P]: each slice is a run of its own between timestamps.

        Both rules agree, since time is written in the prompt. Within a slice the time axis stands
        still; the text after it starts at the slice's start plus max(rows, columns), which is its
        maximum plus 1.
        """
        runs = runs_of(video_mask_P)
        merge_size = config.vision_config.spatial_merge_size
        slices, rows, columns = grid_thw[0], grid_thw[1] // merge_size, grid_thw[2] // merge_size
        if len(runs) != slices or any(end - start != rows * columns for start, end in runs):
            raise ModelError(
                f"the prompt holds {[end - start for start, end in runs]} video tokens in "
                f"{len(runs)} slices, but the frames make {slices} slices of {rows * columns} "
                "tokens; the processor and the frames disagree"
            )
        grid_3N = grid_positions(np.zeros(1, dtype=np.int64), rows, columns)
        positions_3P = np.empty((3, len(video_mask_P)), dtype=np.int64)
        cursor = position = 0
        for start, end in runs:
            positions_3P[:, cursor:start] = position + np.arange(start - cursor)
            position += start - cursor
            positions_3P[:, start:end] = position + grid_3N
            position += max(rows, columns)
            cursor = end
        positions_3P[:, cursor:] = position + np.arange(len(video_mask_P) - cursor)
        return positions_3P

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
        from transformers.vision_utils import (
            get_vision_interpolation_indices_and_weights,
            get_vision_position_ids,
        )

        use_few_calls(tower)
        device = pixels_ND.device
        slices = Segments(slice_of_rows(grid_V3), device)
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid_V3,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=tower.spatial_merge_size,
        )
        with MergerInputs(self.mergers(tower)) as mergers:
            tower(
                pixels_ND,
                grid_thw=grid_V3,
                position_ids=get_vision_position_ids(grid_V3, tower.spatial_merge_size).to(device),
                interp_indices=indices.to(device),
                interp_weights=weights.to(device),
                cu_seqlens=slices,
                max_seqlen=slices.longest,
            )
        return mergers.inputs

    def vision_arguments(self, video_mask_BT: Tensor, merged: MergedFeatures) -> dict[str, Any]:
        """Where the video tokens are, and what is added to them after the first layers."""
        return {
            "visual_pos_masks": video_mask_BT,
            "deepstack_visual_embeds": list(merged.deepstack_SNH),
        }

    def encoder_outputs(self, merged: MergedFeatures) -> Any:
        """See `Family.encoder_outputs`."""
        from transformers.models.qwen3_vl.modeling_qwen3_vl import (
            BaseModelOutputWithDeepstackFeatures,
        )

        per_video: Any = [merged.embeds_NH]
        per_layer: Any = [[layer] for layer in merged.deepstack_SNH]
        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=per_video, deepstack_features=per_layer
        )
