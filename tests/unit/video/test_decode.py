from pathlib import Path

import numpy as np
import pytest

from strive.errors import DecodeError, UnknownNameError
from strive.video.decode import DECODERS, DecodedVideo, decode_frames, decoder_order
from strive.video.frame_plan import FramePlan
from video.coded_clips import numbers_of

PLAN = FramePlan("uniform", 16)


def decode(path: Path, decoder: str, plan: FramePlan = PLAN) -> DecodedVideo:
    return decode_frames(path, plan, decoders=(decoder,))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("name", "num_frames", "codec"),
    [
        ("plain.mp4", 200, "h264"),
        ("short.mp4", 5, "h264"),
        ("one.mp4", 1, "h264"),
        ("odd.mkv", 20, "h264"),
        ("bframes.mp4", 90, "h264"),
        ("vp9.webm", 40, "vp9"),
        ("mpeg4.avi", 60, "mpeg4"),
        ("stream.ts", 60, "h264"),
        ("ten_bit.mp4", 30, "h264"),
        ("vfr.mp4", 80, "h264"),
    ],
)
def test_frames_carry_the_numbers_asked_for(
    media: Path, decoder: str, name: str, num_frames: int, codec: str
) -> None:
    video = decode(media / name, decoder)
    expected = [(2 * i + 1) * num_frames // 32 for i in range(16)]
    assert video.source_index_F.tolist() == sorted(set(expected))
    assert numbers_of(video.frames_FHWC) == video.source_index_F.tolist()
    assert video.source_num_frames == num_frames
    assert (video.decoder, video.codec, video.rotation) == (decoder, codec, 0)


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
@pytest.mark.parametrize(("name", "turns"), [("90", 1), ("180", 2), ("270", 3)])
def test_rotation_is_applied(media: Path, decoder: str, name: str, turns: int) -> None:
    # ffmpeg's display_rotation turns counter-clockwise, as np.rot90 does; undo it to read.
    path = media / f"rotated{name}.mp4"
    video = decode_frames(path, PLAN, decoders=decoder_order(decoder))
    upright = np.rot90(video.frames_FHWC, -turns, axes=(1, 2))
    assert numbers_of(upright) == video.source_index_F.tolist()
    assert video.rotation == 90 * turns


def test_decord_turns_right_or_refuses(media: Path) -> None:
    # decord reads some turned pictures with a wrong line length (128x96 gets four channels).
    for turns in (1, 2, 3):
        try:
            video = decode(media / f"rotated{90 * turns}.mp4", "decord")
        except DecodeError as error:
            assert error.kind == "wrong_picture"
            continue
        upright = np.rot90(video.frames_FHWC, -turns, axes=(1, 2))
        assert numbers_of(upright) == video.source_index_F.tolist()


def test_vfr_stamps_are_true(media: Path) -> None:
    video = decode(media / "vfr.mp4", "pyav", FramePlan("uniform", 80))
    # 40 frames at 25 a second, then 40 at 10 a second.
    expected = [i / 25 if i < 40 else 1.6 + (i - 40) / 10 for i in range(80)]
    np.testing.assert_allclose(video.pts_seconds_F, expected, atol=2e-3)
    assert video.duration_seconds == pytest.approx(5.5 * 80 / 79, abs=0.02)


def test_cut_between_keyframes_starts_at_zero(media: Path) -> None:
    for decoder in ("auto", "pyav"):
        video = decode_frames(media / "cut.mp4", PLAN, decoders=decoder_order(decoder))
        assert video.pts_seconds_F[0] >= 0
        numbers = np.array(numbers_of(video.frames_FHWC))
        assert (np.diff(numbers) > 0).all()
        # Frame 25 is the first after the cut at 1 s, whatever the edit list hides before it.
        shift = numbers - video.source_index_F
        assert (shift == shift[0]).all()


@pytest.mark.parametrize("decoder", ["auto", *DECODERS])
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("audio.mp4", {"no_video_stream"}),
        ("truncated.mp4", {"truncated"}),
        ("no_index.mp4", {"undecodable"}),
        ("zero.mp4", {"empty_file"}),
        ("playlist.mp4", {"playlist"}),
    ],
)
def test_bad_files_raise_their_kind(media: Path, decoder: str, name: str, kinds: set[str]) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_frames(media / name, PLAN, decoders=decoder_order(decoder))
    assert caught.value.kind in kinds


def test_decoders_agree_on_pixels(media: Path) -> None:
    for name in ("plain.mp4", "bframes.mp4", "odd.mkv"):
        first, second = (decode(media / name, decoder) for decoder in DECODERS)
        difference = np.abs(first.frames_FHWC.astype(int) - second.frames_FHWC)
        assert difference.max() <= 2, name


def test_max_pixels_holds_and_keeps_the_picture(media: Path) -> None:
    video = decode_frames(media / "plain.mp4", PLAN, max_pixels=3000)
    assert video.frames_FHWC.shape[1:3] == (47, 63)
    assert numbers_of(video.frames_FHWC) == video.source_index_F.tolist()


def test_names_that_look_like_protocols_stay_files(media: Path, tmp_path: Path) -> None:
    odd = tmp_path / "concat:x|y.mp4"
    odd.write_bytes((media / "short.mp4").read_bytes())
    for decoder in DECODERS:
        assert decode(odd, decoder).source_num_frames == 5


def test_damaged_picture_data_is_an_error(media: Path, tmp_path: Path) -> None:
    data = bytearray((media / "bframes.mp4").read_bytes())
    start = data.index(b"mdat") + 1200  # past the first picture's headers
    data[start : start + 300] = bytes(300)
    hurt = tmp_path / "hurt.mp4"
    hurt.write_bytes(data)
    with pytest.raises(DecodeError) as caught:
        decode_frames(hurt, PLAN)
    assert caught.value.kind == "damaged"


def test_unknown_decoder_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown decoder 'pyavv'.*did you mean 'pyav'"):
        decoder_order("pyavv")
