"""A model family: a class with everything that is special about one architecture.

The base class holds what families share; a family's own file (`qwen2_5_vl.py`, `qwen3_vl.py`)
subclasses it, and nothing outside these files asks which family a policy is of. To add one: write
its file and list its class in `loading.FAMILIES` by its `config.model_type`.

Towers run in a few large calls: attention by length of segment, patches by one product. A tower
attends within windows and within slices. With sdpa transformers calls it for each of them (21,760
times for eight videos at Qwen2.5-VL-7B's shapes) and asks the device for their lengths in every
layer. Here one call has all segments of one length, and lengths are known from the grids. The
values are the same up to rounding; weights and their names are not touched.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface

from strive.models.positions import Grid, PositionRule

TOWER_ATTENTION = "strive_flash_segments"
"""transformers hands all segments over in one call to a function whose name holds `flash`."""


@dataclass(frozen=True)
class VisionFeatures:
    """The vision tower's output for one video, from before the mergers.

    Hidden states are in the order of `pixel_values` (four patches of a merged token stand side by
    side), so that one video is one slice of rows. `deepstack_SND` holds those of the layers that
    Qwen3-VL also feeds to its language model (empty for other families).
    """

    hidden_ND: Tensor
    deepstack_SND: tuple[Tensor, ...]
    grid_thw: Grid


@dataclass(frozen=True)
class MergedFeatures:
    """Video tokens in the language model's width: what replaces the placeholders."""

    embeds_NH: Tensor
    deepstack_SNH: tuple[Tensor, ...]


_LANGUAGE_LAYERS = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
_PROJECTOR = r"model\.visual\.\w*merger\w*\..+"


class Family(ABC):
    """One model architecture, as the rest of the package sees it.

    The parts of a model are found as transformers' image-text-to-text models of today name them; a
    family that names them otherwise overrides the methods.
    """

    name: str

    adapter_targets: ClassVar[dict[str, str]] = {
        "language": _LANGUAGE_LAYERS,
        "language+projector": f"{_LANGUAGE_LAYERS}|{_PROJECTOR}",
    }
    """Patterns of the full names of the linear layers that get adapters, by the config's name: all
    of the language model's blocks (q, k, v, o, gate, up, down), or these and the mergers."""
    # Features from before the mergers are shared by policy and reference, and the head's weight is
    # used without its layer.
    may_have_adapters: str = rf"model\.language_model\..+|{_PROJECTOR}"

    # --- parts of a model ---

    def tower(self, model: Any) -> Any:
        """The vision tower, mergers included."""
        return model.model.visual

    def language_model(self, model: Any) -> Any:
        """The language model without its head."""
        return model.model.language_model

    @abstractmethod
    def mergers(self, tower: Any) -> list[nn.Module]:
        """The modules that project into the language model's width, in the order of `encode`."""

    def projector_parameters(self, model: Any) -> Iterator[nn.Parameter]:
        """Parameters of the mergers: the paper's projector."""
        for merger in self.mergers(self.tower(model)):
            yield from merger.parameters()

    def drop_language_layers(self, model: Any) -> None:
        """Free the layers of a model of which only the tower and the embedding table are used."""
        self.language_model(model).layers = nn.ModuleList()

    # --- prompts ---

    def check(self, config: Any) -> None:  # noqa: B027 - most families support every one
        """Raise `ModelError` for a configuration of this family that is not supported."""

    @abstractmethod
    def position_ids(
        self,
        config: Any,
        video_mask_P: NDArray[np.bool_],
        grid_thw: Grid,
        seconds_per_slice: float,
        rule: PositionRule,
    ) -> NDArray[np.int64]:
        """Position ids [3, P] of a prompt with one video.

        `grid_thw` counts patches (slices, rows, columns) before merging; `seconds_per_slice` is the
        time between two slices of two frames each.

        Raises:
            ModelError: the mask and the grid disagree.
        """

    @abstractmethod
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

    # --- vision ---

    @abstractmethod
    def encode(self, tower: Any, pixels_ND: Tensor, grid_V3: Tensor) -> list[Tensor]:
        """Run the tower over several videos; last hidden states, then those for deepstack.

        `grid_V3` is on the CPU: how the tower attends follows from it without asking a device.
        """

    def merge(self, tower: Any, layers: Sequence[Tensor]) -> MergedFeatures:
        """Apply the tower's mergers to the layers that `encode` returned, each to its own."""
        embeds_NH, *deepstack = (
            merger(layer) for merger, layer in zip(self.mergers(tower), layers, strict=True)
        )
        return MergedFeatures(embeds_NH, tuple(deepstack))

    # --- the language model ---

    def mask_argument(self, mask: Tensor | None) -> Any:
        """A 4-D attention mask in the form that the language model takes."""
        return mask

    def vision_arguments(self, video_mask_BT: Tensor, merged: MergedFeatures) -> dict[str, Any]:
        """Further arguments of the language model that carry vision features."""
        return {}

    @abstractmethod
    def encoder_outputs(self, merged: MergedFeatures) -> Any:
        """Merged features in the form that the whole model's own forward takes for its pixels."""


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
            merger.register_forward_pre_hook(functools.partial(self._keep, index))
            for index, merger in enumerate(self.mergers)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, index: int, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.inputs[index] = arguments[0]


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
    """Let a tower attend by length and take its patches as one product, from now on.

    For good, because a checkpointed layer must be computed again as it was the first time.
    """
    if tower.config._attn_implementation != TOWER_ATTENTION:
        tower.config._attn_implementation = TOWER_ATTENTION
        tower.patch_embed.proj.__class__ = LinearPatches


AttentionInterface.register(TOWER_ATTENTION, attend_by_length)
