"""Spatial augmentation of a variant (Sec. 4.2): colour jitter and a small affine map.

One draw per variant, the same for all of its frames: nothing moves that did not move before.
The paper gives 0.4 for "color jittering": brightness, contrast and saturation here; hue stays,
because questions ask about colours.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from strive.seeding import derive_rng

JITTER = 0.4
MAX_ROTATION_DEGREES = 5.0
MAX_TRANSLATION = 0.05
MIN_SCALE, MAX_SCALE = 0.95, 1.05

_JITTERS: dict[str, Any] = {
    "brightness": transforms.adjust_brightness,
    "contrast": transforms.adjust_contrast,
    "saturation": transforms.adjust_saturation,
}


@dataclass(frozen=True)
class Augmentation:
    """One draw: jitter factors in the order in which they apply, and an affine map.

    Translations are fractions of width and height, the scale is a factor.
    """

    jitter: tuple[tuple[str, float], ...]
    rotation_degrees: float
    translation_x: float
    translation_y: float
    scale: float


def draw_augmentation(rng: np.random.Generator) -> Augmentation:
    """Draw one variant's augmentation."""
    names = rng.permutation(sorted(_JITTERS))
    factors = rng.uniform(1 - JITTER, 1 + JITTER, size=len(names))
    translation_xy = rng.uniform(-MAX_TRANSLATION, MAX_TRANSLATION, size=2)
    return Augmentation(
        jitter=tuple(
            (str(name), float(factor)) for name, factor in zip(names, factors, strict=True)
        ),
        rotation_degrees=float(rng.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES)),
        translation_x=float(translation_xy[0]),
        translation_y=float(translation_xy[1]),
        scale=float(rng.uniform(MIN_SCALE, MAX_SCALE)),
    )


def augment_variant(
    frames_KHWC: NDArray[np.uint8], *, seed: int, step: int, question_id: str, variant: int
) -> NDArray[np.uint8]:
    """Draw a variant's augmentation from its own keys and apply it to all of its frames."""
    rng = derive_rng(seed, "augment", step, question_id, variant)
    return augment_frames(frames_KHWC, draw_augmentation(rng))


def augment_frames(frames_KHWC: NDArray[np.uint8], augmentation: Augmentation) -> NDArray[np.uint8]:
    """Apply one augmentation to all frames of a variant; size and type stay."""
    # In floats: of whole numbers each of torchvision's blends would cut its result down.
    given_KHWC = torch.from_numpy(np.ascontiguousarray(frames_KHWC))
    frames_KCHW: Tensor = given_KHWC.permute(0, 3, 1, 2).contiguous().float().div_(255)
    for name, factor in augmentation.jitter:
        frames_KCHW = _JITTERS[name](frames_KCHW, factor)
    height, width = frames_KCHW.shape[-2:]
    frames_KCHW = transforms.affine(
        frames_KCHW,
        angle=augmentation.rotation_degrees,
        translate=[augmentation.translation_x * width, augmentation.translation_y * height],
        scale=augmentation.scale,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    whole_KCHW = frames_KCHW.mul_(255).round_().to(torch.uint8)
    return whole_KCHW.permute(0, 2, 3, 1).contiguous().numpy()
