"""Resizing once, into a pixel budget: bicubic, antialiased, aspect kept, never upscaled."""

import math

import numpy as np
from PIL import Image

RESIZE_RULE = "bicubic antialias, aspect kept, never upscaled (Pillow)"


def fit_size(height: int, width: int, max_pixels: int | None) -> tuple[int, int]:
    """Return the largest (height, width) of the same aspect with at most `max_pixels` pixels."""
    if max_pixels is None or height * width <= max_pixels:
        return height, width
    scale = math.sqrt(max_pixels / (height * width))
    # A strip so thin that one side rounds to zero keeps one pixel there; the other side gives way.
    new_height = max(1, math.floor(height * scale))
    new_width = max(1, math.floor(width * scale))
    return min(new_height, max_pixels // new_width), min(new_width, max_pixels // new_height)


def resize_frame(frame_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize one uint8 RGB frame; a frame of that size comes back as it is."""
    if frame_HWC.shape[:2] == (height, width):
        return frame_HWC
    # Pillow's bicubic widens its kernel by the scale factor when it shrinks: that is the antialias.
    image = Image.fromarray(frame_HWC).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)
