"""Qwen2.5-VL: one grid of video tokens, absolute time as a float interval, windowed tower."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strive.errors import ModelError
from strive.models.family import MergedFeatures, MergerInputs
from strive.models.positions import Grid, PositionRule, qwen2_5_vl_positions


class Qwen25VL:
    """The family adapter of Qwen2.5-VL; see `family.Family`."""

    name = "qwen2_5_vl"

    def check(self, config: Any) -> None:
        """Refuse sliding-window layers: the packed row's mask does not know them."""
        if "sliding_attention" in (config.text_config.layer_types or ()):
            raise ModelError(
                "this Qwen2.5-VL has sliding-window layers, which are not supported; "
                "set use_sliding_window to false in its config.json"
            )

    def frame_pixel_limit(self, processor: Any, num_frames: int) -> int:
        """The processor's `longest_edge`, which counts pixels per frame here."""
        return int(processor.video_processor.size["longest_edge"])

    def position_ids(
        self,
        config: Any,
        video_mask_P: NDArray[np.bool_],
        grid_thw: Grid,
        seconds_per_slice: float,
        rule: PositionRule,
    ) -> NDArray[np.int64]:
        """Position ids [3, P]; see `positions.qwen2_5_vl_positions`."""
        return qwen2_5_vl_positions(
            video_mask_P,
            grid_thw,
            merge_size=config.vision_config.spatial_merge_size,
            tokens_per_second=config.vision_config.tokens_per_second,
            seconds_per_slice=seconds_per_slice,
            rule=rule,
        )

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
        """Last hidden states, put back from window order into the order of the pixels."""
        from transformers.vision_utils import get_vision_window_index

        with MergerInputs([tower.merger]) as merger:
            tower(pixels_ND, grid_thw=grid_V3)
        window_index, _ = get_vision_window_index(
            grid_V3, tower.spatial_merge_size, tower.window_size, tower.patch_size
        )
        unit = tower.spatial_merge_unit
        hidden = merger.inputs[0].reshape(-1, unit, merger.inputs[0].shape[-1])
        hidden = hidden[torch.argsort(window_index)]
        return [hidden.reshape(-1, hidden.shape[-1])]

    def merge(self, tower: Any, layers: Sequence[Tensor]) -> MergedFeatures:
        """The tower's merger, four neighbouring patches to one token."""
        return MergedFeatures(embeds_NH=tower.merger(layers[0]), deepstack_SNH=())

    def mask_argument(self, mask: Tensor | None) -> Any:
        """The language model takes one mask per layer type."""
        return {"full_attention": mask}

    def vision_arguments(self, video_mask_BT: Tensor, merged: MergedFeatures) -> dict[str, Any]:
        """None: vision enters through the embeddings alone."""
        return {}

    def encoder_outputs(self, merged: MergedFeatures) -> Any:
        """The output object that the model's own forward takes in place of pixels."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        per_video: Any = [merged.embeds_NH]
        return BaseModelOutputWithPooling(pooler_output=per_video)
