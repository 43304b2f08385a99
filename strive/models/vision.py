"""Videos through the vision tower, once; mergers applied apart, by each model for itself.

With a frozen tower, policy and reference share what comes out before the mergers, and a rollout
shares it with the log-probs. With a trained tower the features carry the graph: encode the videos
of one backward pass in one call, because a backward pass frees the graph of the whole call.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from strive.models.family import MergedFeatures, VisionFeatures
from strive.models.inputs import PromptInputs
from strive.models.loading import FAMILIES, Policy

PATCHES_PER_CALL = 2**16
"""Most patches in one call of the tower: sixteen 16-frame videos of 512 patches a slice."""


def encode_videos(
    policy: Policy,
    prompts: Sequence[PromptInputs],
    *,
    with_graph: bool = False,
    in_one_call: bool = False,
) -> list[VisionFeatures]:
    """Run the vision tower once over each video and return each prompt's features.

    Many videos share a call, all of them with `in_one_call`; prompts with the same `pixel_values`
    share their features. `with_graph` keeps what a gradient into the tower needs; without it
    nothing is recorded.
    """
    groups: list[list[PromptInputs]] = []
    patches = 0
    for prompt in {id(prompt.pixel_values): prompt for prompt in prompts}.values():
        count = math.prod(prompt.video_grid_thw)
        # Neighbours share a call as far as they fit into one; a long video goes alone.
        fits = in_one_call or patches + count <= PATCHES_PER_CALL
        if groups and fits:
            groups[-1].append(prompt)
            patches += count
        else:
            groups.append([prompt])
            patches = count
    tower = policy.family.tower(policy.model)
    features: dict[int, VisionFeatures] = {}
    with torch.set_grad_enabled(with_graph and torch.is_grad_enabled()):
        for group in groups:
            grids = [prompt.video_grid_thw for prompt in group]
            pixels_ND = _concatenate([prompt.pixel_values for prompt in group])
            pixels_ND = pixels_ND.to(device=policy.device, dtype=policy.dtype)
            layers = policy.family.encode(tower, pixels_ND, torch.tensor(grids, dtype=torch.long))
            sizes = [math.prod(grid) for grid in grids]
            per_layer = [layer.split(sizes) for layer in layers]
            for prompt, hidden_ND, *deepstack, grid in zip(group, *per_layer, grids, strict=True):
                features[id(prompt.pixel_values)] = VisionFeatures(
                    hidden_ND, tuple(deepstack), grid
                )
    return [features[id(prompt.pixel_values)] for prompt in prompts]


def merge_features(
    policy: Policy, features: Sequence[VisionFeatures], *, model: Any = None
) -> MergedFeatures:
    """Apply the mergers of `model` (the policy's own by default) to several videos at once."""
    tower = policy.family.tower(policy.model if model is None else model)
    rows = [(video.hidden_ND, *video.deepstack_SND) for video in features]
    layers = [_concatenate(layer) for layer in zip(*rows, strict=True)]
    return policy.family.merge(tower, layers)


@dataclass
class EncodeCount:
    """How often the tower ran, and over how many videos."""

    calls: int = 0
    videos: int = 0


@contextlib.contextmanager
def count_encodes(model: Any) -> Iterator[EncodeCount]:
    """Count the videos that pass through the tower of `model`, whoever sends them."""
    count = EncodeCount()

    def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        grid_V3 = named["grid_thw"] if "grid_thw" in named else arguments[1]
        count.calls += 1
        count.videos += len(grid_V3)

    tower = FAMILIES[model.config.model_type].tower(model)
    handle = tower.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


def _concatenate(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
