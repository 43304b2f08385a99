"""Draws scenes with numpy: no codec, no torch. The lab's files and its training data share it.

Axis legend: K frames, U distinct looks, H height, W width, N sprites.
"""

import numpy as np

from strive.lab.scene import GLYPHS, Scene, Sprite

# 5 x 7 bitmaps, top row first, one bit a column.
_BITMAPS: dict[str, tuple[int, ...]] = {
    "A": (0b01110, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001),
    "E": (0b11111, 0b10000, 0b10000, 0b11110, 0b10000, 0b10000, 0b11111),
    "H": (0b10001, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001),
    "K": (0b10001, 0b10010, 0b10100, 0b11000, 0b10100, 0b10010, 0b10001),
    "L": (0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b11111),
    "T": (0b11111, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100),
    "X": (0b10001, 0b10001, 0b01010, 0b00100, 0b01010, 0b10001, 0b10001),
    "Z": (0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b10000, 0b11111),
}


def render_slots(scene: Scene, slots_K: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Draw the frames that the scene shows in the given slots.

    Slots with the same visible sprites look alike, so each look is drawn once.

    Args:
        scene: what to draw.
        slots_K: slot numbers in [0, 64).
        height: pixels.
        width: pixels.

    Returns:
        uint8 RGB frames [K, H, W, 3].
    """
    slots_K = np.asarray(slots_K)
    visible_KN = np.stack([sprite.visible_at(slots_K) for sprite in scene.sprites], axis=1)
    looks_UN, look_of_K = np.unique(visible_KN, axis=0, return_inverse=True)
    background = draw_background(scene.background_seed, height=height, width=width)
    frames_U = np.repeat(background[None], len(looks_UN), axis=0)
    for number, sprite in enumerate(scene.sprites):
        shown_U = looks_UN[:, number]
        if not shown_U.any():
            continue
        mask = sprite_mask(sprite, height=height, width=width)[..., None]
        colour = np.asarray(sprite.rgb, dtype=np.float32)
        frames_U[shown_U] += mask * (colour - frames_U[shown_U])
    return np.round(frames_U * 255).astype(np.uint8)[look_of_K.reshape(-1)]


def draw_background(seed: int, *, height: int, width: int) -> np.ndarray:
    """Draw a dim, faintly tinted gradient with coarse blotches, float32 [H, W, 3] in [0, 1]."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0.05, 0.40, size=(4, 1)) + rng.uniform(-0.05, 0.05, size=(4, 3))
    blotches = rng.uniform(-0.05, 0.05, size=(8, 8, 1))
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :, None]
    top = corners[0] * (1 - x) + corners[1] * x
    bottom = corners[2] * (1 - x) + corners[3] * x
    rows = (np.arange(height) * 8) // height
    columns = (np.arange(width) * 8) // width
    image = top * (1 - y) + bottom * y + blotches[rows][:, columns]
    return np.clip(image, 0.0, 1.0).astype(np.float32)


def sprite_mask(sprite: Sprite, *, height: int, width: int) -> np.ndarray:
    """Return how much of each pixel the sprite covers, float32 [H, W] in [0, 1]."""
    short_side = min(height, width)
    radius_pixels = sprite.radius * short_side
    x = ((np.arange(width) + 0.5 - sprite.centre_x * width) / radius_pixels)[None, :]
    y = ((np.arange(height) + 0.5 - sprite.centre_y * height) / radius_pixels)[:, None]
    if sprite.is_glyph:
        return _glyph_mask(GLYPHS[sprite.glyph], x, y)
    inside = _INSIDE[sprite.shape](x, y)
    return np.clip(inside * radius_pixels + 0.5, 0.0, 1.0).astype(np.float32)


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.95 - np.hypot(x, y)


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.85 - np.maximum(np.abs(x), np.abs(y))


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(0.8 - y, (y + 1.0 - 1.8 * np.abs(x)) / 2.06)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    upright = np.minimum(0.30 - np.abs(x), 1.0 - np.abs(y))
    level = np.minimum(1.0 - np.abs(x), 0.30 - np.abs(y))
    return np.maximum(upright, level)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle = (np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5
    tip = 1.0 - 1.65 * np.abs(angle) / (np.abs(angle) + 0.65)
    return (np.maximum(tip, 0.4) - np.hypot(x, y)) * 0.7


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 0.21 - np.abs(np.hypot(x, y) - 0.78)


_INSIDE = (_circle, _square, _triangle, _cross, _star, _ring)
"""Signed distances to the outline in radii, positive inside, in the order of `SHAPES`."""


def _glyph_mask(character: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    bits = np.array(
        [[row >> (4 - column) & 1 for column in range(5)] for row in _BITMAPS[character]]
    )
    columns = np.floor((x / 0.72 + 1) * 2.5).astype(np.int64)
    rows = np.floor((y + 1) * 3.5).astype(np.int64)
    inside = (columns >= 0) & (columns < 5) & (rows >= 0) & (rows < 7)
    values = bits[np.clip(rows, 0, 6), np.clip(columns, 0, 4)]
    return (values * inside).astype(np.float32)
