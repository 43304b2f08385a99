"""What a container says to leave out of its pictures is left out, as FFmpeg's program does it."""

from pathlib import Path

import ffmpeg
import numpy as np
import pytest

from strive.errors import DecodeError
from strive.video.decode import DECODERS, decode_frames
from strive.video.decoders import decode_pyav
from strive.video.frame_plan import FramePlan
from strive.video.resize import FrameScaler
from strive.video.whole import decode_whole, probe
from video.coded_clips import remux, shown_by_ffmpeg, write_clip
from video.odd_clips import COLOUR, with_clap, with_pixel_crop

ALL = FramePlan("uniform", 100)
NUM_FRAMES, HEIGHT, WIDTH = 12, 90, 150  # the codec itself crops them, from 96x160
# Noise in the brightness alone: a shift shows, and two conversions of colour agree.
NOISY = {"g": 6, "qp": 10, "vf": "format=yuv420p,noise=c0s=60:c0f=t"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cropping")
    write_clip(folder / "plain.mp4", NUM_FRAMES, size=(HEIGHT, WIDTH), **NOISY)
    write_clip(folder / "plain.mkv", NUM_FRAMES, size=(HEIGHT, WIDTH), **NOISY, **COLOUR)
    for name, how in (("90", {"display_rotation": 90}), ("flip", {"display_hflip": None})):
        remux(folder / "plain.mp4", folder / f"{name}.mp4", **how)
    return folder


def whole(*numbers: int) -> tuple[tuple[int, int], ...]:
    return tuple((number, 1) for number in numbers)


CLAPS = {
    "middle": ("plain", whole(100, 60, 0, 0), (60, 100)),
    "aside": ("plain", whole(100, 60, 10, -6), (60, 100)),
    "to an edge": ("plain", whole(100, 60, -25, 15), (60, 100)),
    "odd": ("plain", whole(101, 61, 3, 1), (60, 100)),
    "fractions": ("plain", ((201, 2), (121, 2), (1, 2), (-1, 2)), (60, 100)),
    "turned": ("90", whole(100, 60, 10, -6), (100, 60)),
    "mirrored": ("flip", whole(100, 60, 10, -6), (60, 100)),
    "wider than the picture": ("plain", whole(200, 60, 0, 0), (HEIGHT, WIDTH)),
    "outside of it": ("plain", whole(100, 60, 26, 0), (HEIGHT, WIDTH)),
    "no width": ("plain", whole(0, 60, 0, 0), (HEIGHT, WIDTH)),
    "divided by zero": ("plain", ((100, 0), *whole(60, 0, 0)), (HEIGHT, WIDTH)),
    "all of it": ("plain", whole(WIDTH, HEIGHT, 0, 0), (HEIGHT, WIDTH)),
}
PIXEL_CROPS: dict[str, tuple[dict[str, int], tuple[int, int]]] = {
    "two sides": ({"top": 10, "left": 20}, (80, 130)),
    "four sides": ({"bottom": 4, "top": 8, "left": 16, "right": 2}, (78, 132)),
    "odd": ({"top": 11, "right": 21}, (78, 128)),
    "nearly all": ({"left": 148, "top": 88}, (2, 2)),
    "nothing": ({"left": 0}, (HEIGHT, WIDTH)),
}


def assert_as_shown(path: Path, height: int, width: int) -> None:
    """FFmpeg's program shows the same, whichever way and however many threads decode."""
    video = decode_frames(path, ALL, decoders=("pyav",))
    assert video.facts.way == "index" and video.frames_FHWC.shape == (NUM_FRAMES, height, width, 3)
    shown = shown_by_ffmpeg(path, height, width)
    assert np.abs(video.frames_FHWC.astype(int) - shown).mean() < 1  # by a pixel off: over 10
    threaded = decode_frames(path, ALL, decoders=("pyav",), threads=2)
    np.testing.assert_array_equal(threaded.frames_FHWC, video.frames_FHWC)
    source = decode_whole(probe(path))
    scaler = FrameScaler(None, source.cropping)
    frames = list(decode_pyav(source, np.arange(NUM_FRAMES), scaler))
    np.testing.assert_array_equal(np.stack(frames), video.frames_FHWC)


@pytest.mark.parametrize("name", CLAPS)
def test_clap(folder: Path, tmp_path: Path, name: str) -> None:
    original, numbers, size = CLAPS[name]
    path = tmp_path / "clap.mp4"
    path.write_bytes(with_clap((folder / f"{original}.mp4").read_bytes(), *numbers))
    assert_as_shown(path, *size)


@pytest.mark.parametrize("name", PIXEL_CROPS)
def test_pixel_crop(folder: Path, tmp_path: Path, name: str) -> None:
    sides, size = PIXEL_CROPS[name]
    path = tmp_path / "crop.mkv"
    path.write_bytes(with_pixel_crop((folder / "plain.mkv").read_bytes(), **sides))
    assert_as_shown(path, *size)


def test_resizing_comes_after_cropping(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "crop.mkv"
    path.write_bytes(with_pixel_crop((folder / "plain.mkv").read_bytes(), top=30, left=30))
    video = decode_frames(path, ALL, max_pixels=1800)
    assert video.frames_FHWC.shape[1:3] == (30, 60)  # of 60x120


@pytest.mark.parametrize("sides", [{"left": 149}, {"top": 45, "bottom": 45}, {"right": 200}])
def test_where_nothing_is_left_nothing_is_shown(
    folder: Path, tmp_path: Path, sides: dict[str, int]
) -> None:
    path = tmp_path / "crop.mkv"
    path.write_bytes(with_pixel_crop((folder / "plain.mkv").read_bytes(), **sides))
    with pytest.raises(ffmpeg.Error):
        shown_by_ffmpeg(path)
    with pytest.raises(DecodeError) as caught:
        decode_frames(path, ALL)
    assert caught.value.kind == "undecodable"


@pytest.mark.parametrize("decoder", [name for name in DECODERS if name != "pyav"])
def test_other_decoders_leave_it_alone(folder: Path, tmp_path: Path, decoder: str) -> None:
    path = tmp_path / "clap.mp4"
    path.write_bytes(with_clap((folder / "plain.mp4").read_bytes(), *whole(100, 60, 0, 0)))
    with pytest.raises(DecodeError) as caught:
        decode_frames(path, ALL, decoders=(decoder,))
    assert caught.value.kind in ("unsupported", "unavailable")


def test_words_of_a_title_crop_nothing(tmp_path: Path) -> None:
    path = tmp_path / "title.mkv"
    title = "Stream #0:0\n  Stream #0:0: Video\n      Frame Cropping: 9/9/9/9\n"
    write_clip(path, 2, **{"metadata:s:v:0": f"title={title}"})
    assert probe(path).cropping is None
