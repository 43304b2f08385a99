"""Qwen2.5-VL: one grid of video tokens, absolute time as a float interval, windowed tower."""

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
    repeated,
    slice_of_rows,
    use_few_calls,
)
from strive.models.positions import Grid, PositionRule, check_rule, grid_positions, runs_of


class Qwen25VL(Family):
    """Qwen2.5-VL."""

    name = "qwen2_5_vl"

    def check(self, config: Any) -> None:
        """Refuse sliding-window layers: the packed row's mask does not know them."""
        if "sliding_attention" in (config.text_config.layer_types or ()):
            raise ModelError(
                "this Qwen2.5-VL has sliding-window layers, which are not supported; "
                "set use_sliding_window to false in its config.json"
            )

    def mergers(self, tower: Any) -> list[nn.Module]:
        """The one merger: four neighbouring patches to one token."""
        return [tower.merger]

    def position_ids(
        self,
        config: Any,
        video_mask_P: NDArray[np.bool_],
        grid_thw: Grid,
        seconds_per_slice: float,
        rule: PositionRule,
    ) -> NDArray[np.int64]:
        """Position ids [3, P]: text, one run of video tokens, text; the two rules differ."""
        runs = runs_of(video_mask_P)
        if len(runs) != 1:
            raise ModelError(
                f"the prompt holds {len(runs)} runs of video tokens where one is expected; text "
                "with a video placeholder in it cannot be used"
            )
        [(start, end)] = runs
        merge_size = config.vision_config.spatial_merge_size
        slices, rows, columns = grid_thw[0], grid_thw[1] // merge_size, grid_thw[2] // merge_size
        if slices * rows * columns != end - start:
            raise ModelError(
                f"the prompt holds {end - start} video tokens, but the frames make {slices} x "
                f"{rows} x {columns}; the processor and the frames disagree"
            )
        rate = config.vision_config.tokens_per_second
        times_T = slice_time_positions(slices, seconds_per_slice, rate, rule)
        positions_3P = np.empty((3, len(video_mask_P)), dtype=np.int64)
        positions_3P[:, :start] = np.arange(start)
        positions_3P[:, start:end] = start + grid_positions(times_T, rows, columns)
        after = start + max(rows, columns)
        if rule == "published":
            after = int(positions_3P[:, start:end].max()) + 1
        positions_3P[:, end:] = after + np.arange(len(video_mask_P) - end)
        return positions_3P

    def expand_prompt(
        self,
        processor: Any,
        prompt: str,
        grid_thw: Grid,
        pts_seconds_K: NDArray[np.float64],
        rule: PositionRule,
    ) -> str:
        """Repeat the placeholder once per merged token, as the processor does."""
        video_inputs = {"video_grid_thw": torch.tensor([grid_thw])}
        expanded = processor.replace_video_token(video_inputs, 0)
        return prompt.replace(processor.video_token, expanded, 1)

    def encode(self, tower: Any, pixels_ND: Tensor, grid_V3: Tensor) -> list[Tensor]:
        """Last hidden states, put back from window order into the order of the pixels.

        Windows stand by size, so that those of one size are one slice of rows in every layer.
        """
        from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

        use_few_calls(tower)
        unit, device = tower.spatial_merge_unit, pixels_ND.device
        window_index, boundaries = get_vision_window_index(
            grid_V3, tower.spatial_merge_size, tower.window_size, tower.patch_size
        )
        lengths_W = boundaries.diff().long()
        windows = window_index.split((lengths_W // unit).tolist())
        by_length_W = lengths_W.argsort(stable=True)
        window_index = torch.cat([windows[window] for window in by_length_W.tolist()])
        places_N = (window_index[:, None] * unit + torch.arange(unit)).flatten()
        slices = Segments(slice_of_rows(grid_V3)[places_N], device)
        in_windows = Segments(repeated(lengths_W[by_length_W]), device)
        with MergerInputs(self.mergers(tower)) as merger:
            tower(
                pixels_ND,
                grid_thw=grid_V3,
                position_ids=get_vision_position_ids(grid_V3, tower.spatial_merge_size).to(device),
                window_index=window_index.to(device),
                cu_seqlens=slices,
                max_seqlen=slices.longest,
                cu_window_seqlens=in_windows,
                max_window_seqlen=in_windows.longest,
            )
        return [merger.inputs[0].index_select(0, places_N.argsort().to(device))]

    def mask_argument(self, mask: Tensor | None) -> Any:
        """The language model takes one mask per layer type."""
        return {"full_attention": mask}

    def encoder_outputs(self, merged: MergedFeatures) -> Any:
        """See `Family.encoder_outputs`."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        per_video: Any = [merged.embeds_NH]
        return BaseModelOutputWithPooling(pooler_output=per_video)


def slice_time_positions(
    num_slices: int, seconds_per_slice: float, tokens_per_second: float, rule: PositionRule
) -> NDArray[np.int64]:
    """Time position of each slice: floor(slice x seconds_per_slice x tokens_per_second).

    The interval stays a float until after the product: cast earlier, anything under one second
    would put all slices at time 0. The product is taken in float32 and in the order of the code
    that each rule names, so that a value on the edge of an integer falls to the same side.
    """
    check_rule(rule)
    slices_T = np.arange(num_slices, dtype=np.float32)
    seconds, rate = np.float32(seconds_per_slice), np.float32(tokens_per_second)
    times_T = slices_T * (seconds * rate) if rule == "transformers" else slices_T * seconds * rate
    return times_T.astype(np.int64)
