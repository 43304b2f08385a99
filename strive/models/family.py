"""What differs between model families, as one protocol, and what they share.

A family file (`qwen2_5_vl.py`, `qwen3_vl.py`) holds everything that is special about one
architecture; nothing outside those files asks which family a policy is of. To add one: write a
file with a class of this shape and list it in `loading.FAMILIES` by its `config.model_type`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from strive.models.positions import Grid, PositionRule


@dataclass(frozen=True)
class VisionFeatures:
    """What the vision tower makes of one video, from before the mergers.

    Hidden states are in the order of `pixel_values` (four patches of a merged token stand side by
    side), so that one video is one slice of rows. `deepstack_SND` holds those of the layers that
    Qwen3-VL also feeds to its language model (empty for other families).
    """

    hidden_ND: Tensor
    deepstack_SND: tuple[Tensor, ...]
    grid_thw: Grid

    def detach(self) -> "VisionFeatures":
        """The same values without the graph, for a rollout or a reference model."""
        deepstack = tuple(layer.detach() for layer in self.deepstack_SND)
        return VisionFeatures(self.hidden_ND.detach(), deepstack, self.grid_thw)


@dataclass(frozen=True)
class MergedFeatures:
    """Video tokens in the language model's width: what replaces the placeholders."""

    embeds_NH: Tensor
    deepstack_SNH: tuple[Tensor, ...]


class Family(Protocol):
    """One model architecture, as the rest of the package sees it."""

    name: str

    def check(self, config: Any) -> None:
        """Raise `ModelError` for a configuration of this family that is not supported."""

    def frame_pixel_limit(self, processor: Any, num_frames: int) -> int:
        """Most pixels per frame that the family's video processor allows."""

    def position_ids(
        self,
        config: Any,
        video_mask_P: NDArray[np.bool_],
        grid_thw: Grid,
        seconds_per_slice: float,
        rule: PositionRule,
    ) -> NDArray[np.int64]:
        """Position ids [3, P] of a prompt."""

    def expand_prompt(
        self,
        processor: Any,
        prompt: str,
        grid_thw: Grid,
        pts_seconds_K: NDArray[np.float64],
        rule: PositionRule,
    ) -> str:
        """Replace the one video placeholder of a rendered prompt by as many as there are tokens.

        `pts_seconds_K` are the frames' own times, for a family that writes them in the prompt.
        """

    def encode(self, tower: Any, pixels_ND: Tensor, grid_V3: Tensor) -> list[Tensor]:
        """Run the tower over several videos; last hidden states, then those for deepstack."""

    def merge(self, tower: Any, layers: Sequence[Tensor]) -> MergedFeatures:
        """Apply the tower's mergers to what `encode` returned."""

    def mask_argument(self, mask: Tensor | None) -> Any:
        """A 4-D attention mask in the form that the language model takes."""

    def vision_arguments(self, video_mask_BT: Tensor, merged: MergedFeatures) -> dict[str, Any]:
        """Further arguments of the language model that carry vision features."""

    def encoder_outputs(self, merged: MergedFeatures) -> Any:
        """Merged features in the form that the whole model's own forward takes."""


class MergerInputs:
    """Collects what a tower gives its mergers, by hooks, while the tower runs.

    That is the tower's result before merging, whatever the tower does inside; so the tower's own
    forward runs unchanged and stays exact, sharded parameters and checkpointing included.
    """

    def __init__(self, mergers: Sequence[nn.Module]) -> None:
        self.mergers = mergers
        self.inputs: list[Tensor] = []

    def __enter__(self) -> "MergerInputs":
        self.inputs = [torch.empty(0)] * len(self.mergers)
        self._handles = [
            merger.register_forward_pre_hook(self._keep(index))
            for index, merger in enumerate(self.mergers)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, index: int) -> Any:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self.inputs[index] = arguments[0]

        return hook
