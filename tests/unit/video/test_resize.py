import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from strive.video.resize import FrameScaler, as_progressive, fit_size, resize_frame


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


def coloured(height: int, width: int, fmt: str) -> av.VideoFrame:
    """A picture of soft colour spots, as a decoder would give it."""
    spots = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    rgb = np.asarray(Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC))
    return av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=fmt)


@pytest.mark.parametrize(
    "fmt", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "nv12", "gbrp", "yuva420p"]
)
@pytest.mark.parametrize("size", [(720, 1280), (97, 131), (1081, 33), (48, 64)])
def test_scaling_in_one_step_is_pillows_resize(fmt: str, size: tuple[int, int]) -> None:
    picture = coloured(*size, fmt)
    small = FrameScaler(6000).from_picture(picture, 1)
    full = FrameScaler(None).from_picture(picture, 1)
    expected = resize_frame(full, *fit_size(*size, 6000))
    assert small.shape == expected.shape
    difference = np.abs(small.astype(int) - expected)
    assert difference.mean() < 1 and difference.max() <= 12


def test_scaling_turns_and_keeps_the_first_size() -> None:
    scaler = FrameScaler(6000)
    upright = FrameScaler(6000).from_picture(coloured(120, 160, "yuv444p"), 1)
    turned = scaler.from_picture(coloured(120, 160, "yuv444p"), 8)
    assert turned.shape == (89, 67, 3)
    np.testing.assert_array_equal(np.rot90(upright), turned)
    # A stream that changes its size midway is brought to the size of its first picture.
    assert scaler.from_picture(coloured(240, 160, "yuv444p"), 1).shape == turned.shape
    assert scaler.from_rgb(upright).shape == turned.shape


def test_extreme_shrinking_works() -> None:
    assert FrameScaler(4).from_picture(coloured(1000, 1000, "yuv420p"), 1).shape == (2, 2, 3)
    assert FrameScaler(10).from_picture(coloured(8, 4000, "yuv420p"), 1).shape == (1, 10, 3)


def test_progressive_pictures_are_left_alone() -> None:
    picture = coloured(48, 64, "yuv420p")
    assert as_progressive(picture) is picture
