"""Training pictures without a codec: every look of many scenes, at the models' sizes.

Axis legend: L looks (distinct pictures, all scenes together), S slots of a clip (64), H height and
width of the square pictures, B batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from strive.lab.render import render_slots
from strive.lab.scene import NUM_SLOTS, SQUARE_SIZE, Difficulty, Scene, draw_scene
from strive.seeding import derive_seed

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SceneBank:
    """Scenes and their pictures.

    Args:
        scenes: the scenes, all square.
        looks_L: uint8 RGB pictures [L, H, H, 3].
        look_of_slot: for every scene and slot the row of `looks_L`, [len(scenes), 64].
    """

    scenes: tuple[Scene, ...]
    looks_L: Tensor
    look_of_slot: np.ndarray

    def __repr__(self) -> str:
        return f"SceneBank({len(self.scenes)} scenes, looks {tuple(self.looks_L.shape)})"


def make_bank(num_scenes: int, *, seed: int, size: int, log: Log | None = None) -> SceneBank:
    """Draw and render scenes that no world of the same seed contains."""
    difficulty = Difficulty(other_size_share=0.0, typical_share=0.0)
    base = derive_seed("lab-recipe-scenes", seed) % 2**31
    scenes = tuple(draw_scene(base, clip, difficulty) for clip in range(num_scenes))
    height, width = SQUARE_SIZE
    parts: list[Tensor] = []
    look_of_slot = np.zeros((num_scenes, NUM_SLOTS), dtype=np.int64)
    num_looks = 0
    for number, scene in enumerate(scenes):
        slots = np.arange(NUM_SLOTS)
        visible = np.stack([sprite.visible_at(slots) for sprite in scene.sprites], axis=1)
        _, first, inverse = np.unique(visible, axis=0, return_index=True, return_inverse=True)
        frames = render_slots(scene, slots[first], height=height, width=width)
        parts.append(shrink(chroma_subsampled(torch.from_numpy(frames)), size))
        look_of_slot[number] = num_looks + inverse.reshape(-1)
        num_looks += len(first)
        if log is not None and (number + 1) % 1000 == 0:
            log(f"rendered {number + 1} of {num_scenes} scenes")
    return SceneBank(scenes, torch.cat(parts), look_of_slot)


def chroma_subsampled(frames: Tensor) -> Tensor:
    """Lose half of the colour resolution each way, as 4:2:0 video does. uint8 [B, H, W, 3]."""
    x = frames.permute(0, 3, 1, 2).float()
    luma = (0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])[:, None]
    chroma = functional.avg_pool2d(x - luma, 2)
    chroma = functional.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    return (luma + chroma).clamp(0, 255).round().byte().permute(0, 2, 3, 1)


def shrink(frames: Tensor, size: int) -> Tensor:
    """Resize square frames with antialiased bicubic filtering, uint8 [B, size, size, 3]."""
    x = frames.permute(0, 3, 1, 2).float()
    x = functional.interpolate(x, size=(size, size), mode="bicubic", antialias=True)
    return x.clamp(0, 255).round().byte().permute(0, 2, 3, 1)


def noisy(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Add codec-like noise, brightness and contrast jitter; any shape [..., 3] to [0, 1]."""
    x = frames.float() / 255
    lead = (x.shape[0],) + (1,) * (x.dim() - 1)
    gain = 1 + 0.08 * (2 * torch.rand(lead, generator=generator) - 1)
    shift = 0.03 * (2 * torch.rand(lead, generator=generator) - 1)
    noise = 0.02 * torch.randn(x.shape, generator=generator)
    return (x * gain + shift + noise).clamp(0, 1)
