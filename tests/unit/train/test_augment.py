import random

import numpy as np
import torch

from strive.seeding import derive_rng
from strive.train.augment import (
    JITTER,
    MAX_ROTATION_DEGREES,
    MAX_TRANSLATION,
    Augmentation,
    augment_frames,
    draw_augmentation,
)


def draw(variant=0, step=0):
    return draw_augmentation(derive_rng(1, "augment", step, "q", variant))


def frames(num_frames=3, height=20, width=30):
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), np.uint8)


def test_same_keys_same_pixels():
    assert draw() == draw()
    assert draw(variant=1) != draw() and draw(step=1) != draw()
    first, second = (augment_frames(frames(), draw()) for _ in range(2))
    assert (first == second).all()
    assert first.shape == frames().shape and first.dtype == np.uint8


def test_all_frames_of_a_variant_change_alike():
    still = np.repeat(frames(1), 4, axis=0)
    moved = augment_frames(still, draw())
    assert (moved == moved[0]).all() and (moved != still).any()


def test_bounds():
    draws = [draw(variant) for variant in range(200)]
    factors = [factor for one in draws for _, factor in one.jitter]
    assert 1 - JITTER <= min(factors) < 0.65 and 1.35 < max(factors) <= 1 + JITTER
    assert {name for name, _ in draws[0].jitter} == {"brightness", "contrast", "saturation"}
    assert len({tuple(name for name, _ in one.jitter) for one in draws}) == 6
    assert max(abs(one.rotation_degrees) for one in draws) <= MAX_ROTATION_DEGREES
    assert max(abs(one.translation_x) for one in draws) <= MAX_TRANSLATION
    assert all(0.95 <= one.scale <= 1.05 for one in draws)


def test_the_neutral_draw_changes_nothing():
    neutral = Augmentation((("brightness", 1.0),), 0.0, 0.0, 0.0, 1.0)
    assert (augment_frames(frames(), neutral) == frames()).all()


def test_translation_is_a_fraction_of_the_size():
    pixels = np.zeros((1, 20, 40, 3), np.uint8)
    pixels[0, 10, 20] = 200
    moved = augment_frames(pixels, Augmentation((), 0.0, 0.05, -0.05, 1.0))
    # 5 % of 40 is 2 columns to the right, 5 % of 20 is 1 row up.
    assert moved[0, 9, 22].tolist() == [200] * 3 and moved.sum() == 600


def test_no_global_random_state_is_touched():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    augment_frames(frames(), draw())
    assert (torch.get_rng_state() == states[0]).all()
    assert (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]
