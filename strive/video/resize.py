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
    new_height, new_width = math.floor(height * scale), math.floor(width * scale)
    # A strip so thin that one side rounds to zero keeps one pixel there; the other side gives way.
    if new_height == 0:
        return 1, min(width, max_pixels)
    if new_width == 0:
        return min(height, max_pixels), 1
    return new_height, new_width


def resize_frame(frame_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize one uint8 RGB frame; a frame of that size comes back as it is."""
    if frame_HWC.shape[:2] == (height, width):
        return frame_HWC
    # Pillow's bicubic widens its kernel by the scale factor when it shrinks: that is the antialias.
    image = Image.fromarray(frame_HWC).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)
