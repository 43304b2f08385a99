"""When pictures are shown: stamps that fall or lack, by hand and against FFmpeg's own program."""

import subprocess
from io import BytesIO
from pathlib import Path

import ffmpeg
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from strive.video.decode import DecodedVideo, decode_frames
from strive.video.frame_plan import FramePlan
from strive.video.whole import chosen_stamps, mended_times
from video.coded_clips import FFMPEG, draw, numbers_of, remux, write_clip
from video.odd_clips import without_first_pictures, write_packed

ALL = FramePlan("uniform", 400)


def decode(path: Path) -> DecodedVideo:
    return decode_frames(path, ALL, decoders=("pyav",))


def num_shown(path: Path) -> int:
    """How many pictures FFmpeg's program shows."""
    command = [FFMPEG, "-hide_banner", "-nostdin", "-i", f"file:{path}", "-an"]
    command += ["-fps_mode", "passthrough", "-vf", "showinfo=checksum=0", "-f", "null", "-"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return said.count(" pts_time:")


def test_which_stamps_are_believed() -> None:
    rising = [(0, -1), (1, 0), (3, 1)]
    assert chosen_stamps(rising) == [0, 1, 3]
    # What a container counts in the order of storage falls where pictures are shown in another.
    counted = [(0, 0), (2, 1), (1, 2), (3, None)]
    assert chosen_stamps(counted) == [0, 1, 2, None]
    assert chosen_stamps([(0, None), (None, None), (2, None)]) == [0, None, 2]
    # Both fall. Bad so far (pts, dts): (0, 0) takes 5; (0, 0) takes 6; (1, 0) takes the dts, 3;
    # (1, 1) takes 7.
    assert chosen_stamps([(5, 1), (6, 2), (4, 3), (7, 2)]) == [5, 6, 3, 7]


def test_times_are_mended() -> None:
    def mended(stamps: list[int | None], most: int | None = None) -> list[int]:
        times_N = mended_times(stamps, most)
        assert times_N is not None
        return times_N.tolist()

    assert mended([0, None, None, 6, 8]) == [0, 2, 4, 6, 8]  # evenly between what is known
    assert mended([None, 2, 4, 6, None]) == [0, 2, 4, 6, 8]  # and on at the usual rate
    assert mended([0, 3, 2, 5, 4, 7, 6, 9]) == [0, 2, 3, 4, 5, 6, 7, 9]  # a slight disorder
    assert mended([0, 1, 3, 3, 4, 5]) == [0, 1, 2, 3, 4, 5]  # the second 3 is where 3 should be
    assert mended([0, 1, 1, 3, 4, 5]) == [0, 1, 2, 3, 4, 5]  # here the first 1 is
    # A clock is set back by 20, and forth by 100 of which 10 may be: the rate goes on.
    assert mended([*range(40, 60), *range(20, 40)]) == list(range(40))
    assert mended([*range(20), *range(120, 140)], 10) == list(range(40))
    assert mended([*range(20), *range(120, 140)]) == [*range(20), *range(120, 140)]
    assert mended_times([None, None]) is None
    assert mended_times([7, 7, 7]) is None
    assert mended_times([7]) is None


@given(st.lists(st.one_of(st.none(), st.integers(-500, 500)), max_size=60))
def test_mended_times_never_fall(stamps: list[int | None]) -> None:
    times_N = mended_times(stamps, 100)
    if times_N is not None:
        assert len(times_N) == len(stamps)
        assert (np.diff(times_N) >= 0).all()


@pytest.mark.parametrize(
    "name", ["a.avi", "a.asf", "a.mxf", "mpeg4.avi", "packed.mp4", "packed.mov"]
)
def test_copies_into_containers_that_lose_the_order(tmp_path: Path, name: str) -> None:
    """B-frames of MPEG-4 and H.264 behind `ffmpeg -c copy`: AVI and ASF count what they store."""
    if name.startswith("packed"):
        source = write_packed(tmp_path / "packed.avi", 41)
    elif name.startswith("mpeg4"):
        source = write_clip(tmp_path / "source.mp4", 60, codec="mpeg4", bf=2, qscale=3)
    else:
        how = {"preset": "veryfast", "bf": 3, "g": 30}
        source = write_clip(tmp_path / "source.mp4", 60, **how)
    path = remux(source, tmp_path / name)
    video = decode(path)
    # FFmpeg's program leaves holes where it changes its mind about which stamps to believe.
    np.testing.assert_allclose(
        video.facts.pts_seconds_F, np.arange(num_shown(path)) / 25, atol=0.041
    )
    assert 24.5 < video.facts.source_fps < 25.7


def test_a_late_start_has_the_rate_of_what_is_shown(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "a.ts", 100, g=25, preset="veryfast", bf=2)
    path = tmp_path / "late.ts"
    path.write_bytes(without_first_pictures(whole.read_bytes(), 10))
    video = decode(path)
    assert "late_start" in video.facts.notes and video.facts.way == "index"
    assert video.facts.source_fps == pytest.approx(25)
    assert video.facts.duration_seconds == pytest.approx(video.facts.source_num_frames / 25)


@pytest.mark.parametrize("orientation", [1, 6])
def test_jpeg_pictures_with_exif(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = BytesIO()
    for number in range(12):
        Image.fromarray(draw(number, 96, 128)).save(stream, "JPEG", quality=95, exif=exif)
    path = tmp_path / "a.mkv"
    output = ffmpeg.input("pipe:", format="mjpeg", framerate=25).output(str(path), c="copy")
    output.global_args("-loglevel", "error").run(cmd=FFMPEG, input=stream.getvalue())
    frames_FHWC = decode(path).frames_FHWC
    if orientation == 6:  # turned clockwise when it is shown
        assert frames_FHWC.shape[1:3] == (128, 96)
        frames_FHWC = np.rot90(frames_FHWC, axes=(1, 2))
    assert numbers_of(frames_FHWC) == list(range(12))


@pytest.mark.parametrize("sides", [{"crop_left": 16}, {"crop_left": 2, "crop_right": 6}])
def test_a_codec_crops_on_the_left_too(tmp_path: Path, sides: dict[str, int]) -> None:
    filters = "h264_metadata=" + ":".join(f"{side}={pixels}" for side, pixels in sides.items())
    path = write_clip(tmp_path / "a.mp4", 8, size=(96, 160), **{"bsf:v": filters})
    frames_FHWC = decode(path).frames_FHWC
    left, right = sides["crop_left"], 160 - sides.get("crop_right", 0)
    assert frames_FHWC.shape[2] == right - left
    expected = np.stack([draw(number, 96, 160)[:, left:right] for number in range(8)])
    assert np.abs(frames_FHWC.astype(int) - expected).mean() < 6
