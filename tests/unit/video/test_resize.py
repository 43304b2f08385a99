import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from strive.video.resize import fit_size, resize_frame


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 200_000))
def test_fit_keeps_budget_and_aspect(height: int, width: int, max_pixels: int) -> None:
    new_height, new_width = fit_size(height, width, max_pixels)
    assert 1 <= new_height <= height and 1 <= new_width <= width
    assert new_height * new_width <= max_pixels or (height * width <= max_pixels)
    if min(new_height, new_width) >= 50:
        assert abs(new_height / new_width - height / width) < 0.05 * height / width


def test_small_frames_are_left_alone() -> None:
    assert fit_size(100, 200, 20_000) == (100, 200)
    assert fit_size(100, 200, None) == (100, 200)
    frame = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert resize_frame(frame, 4, 5) is frame


def test_golden_size() -> None:
    # 1280x720 into 100352: scale sqrt(100352 / 921600) = 0.32998, 422.4 x 237.6
    assert fit_size(720, 1280, 100_352) == (237, 422)


def test_shrinking_is_antialiased() -> None:
    # A checkerboard of single pixels is grey at half size; without antialias it would alias.
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    frame = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    small = resize_frame(frame, 16, 16)[2:-2, 2:-2]
    assert np.abs(small.astype(int) - 127).max() <= 3
