import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from strive.errors import ConfigError, DecodeError, UnknownNameError
from strive.video.decode import (
    DECODERS,
    DecodedVideo,
    decode_frames,
    decoder_order,
    decoder_versions,
)
from strive.video.decoders import decode_torchcodec, torchcodec_import_error
from strive.video.frame_plan import FramePlan
from strive.video.resize import FrameScaler
from strive.video.whole import pictures_at, probe
from video.coded_clips import numbers_of, write_clip, write_moving

PLAN = FramePlan("uniform", 16)
# torchcodec may be there without the FFmpeg libraries that it needs; then it must say so (below).
USABLE = [name for name in DECODERS if name != "torchcodec" or not torchcodec_import_error()]


def decode(path: Path, decoder: str, plan: FramePlan = PLAN) -> DecodedVideo:
    return decode_frames(path, plan, decoders=(decoder,))


@pytest.mark.parametrize("decoder", USABLE)
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
    try:
        video = decode(media / name, decoder)
    except DecodeError as error:
        # Where the others are not exact they must refuse: torchcodec does not find the first frame
        # of MPEG-TS, and decord errs among the B-frames of AVI and MPEG streams.
        assert (decoder, name, error.kind) in (
            ("torchcodec", "stream.ts", "wrong_picture"),
            ("decord", "stream.ts", "unsupported"),
            ("decord", "mpeg4.avi", "unsupported"),
        )
        return
    expected = [(2 * i + 1) * num_frames // 32 for i in range(16)]
    assert video.facts.source_index_F.tolist() == sorted(set(expected))
    assert numbers_of(video.frames_FHWC) == video.facts.source_index_F.tolist()
    assert video.facts.source_num_frames == num_frames
    assert (video.facts.decoder, video.facts.codec, video.facts.orientation) == (decoder, codec, 1)


@pytest.mark.parametrize("decoder", [name for name in ["auto", *USABLE] if name != "decord"])
@pytest.mark.parametrize(("name", "turns"), [("90", 1), ("180", 2), ("270", 3)])
def test_rotation_is_applied(media: Path, decoder: str, name: str, turns: int) -> None:
    # ffmpeg's display_rotation turns counter-clockwise, as np.rot90 does; undo it to read.
    path = media / f"rotated{name}.mp4"
    video = decode_frames(path, PLAN, decoders=decoder_order(decoder))
    upright = np.rot90(video.frames_FHWC, -turns, axes=(1, 2))
    assert numbers_of(upright) == video.facts.source_index_F.tolist()
    assert video.facts.orientation == {1: 8, 2: 3, 3: 6}[turns]


def test_decord_turns_right_or_refuses(media: Path) -> None:
    # decord reads some turned pictures with a wrong line length (128x96 gets four channels).
    for turns in (1, 2, 3):
        try:
            video = decode(media / f"rotated{90 * turns}.mp4", "decord")
        except DecodeError as error:
            assert error.kind == "wrong_picture"
            continue
        upright = np.rot90(video.frames_FHWC, -turns, axes=(1, 2))
        assert numbers_of(upright) == video.facts.source_index_F.tolist()


def test_vfr_stamps_are_true(media: Path) -> None:
    video = decode(media / "vfr.mp4", "pyav", FramePlan("uniform", 80))
    # 40 frames at 25 a second, then 40 at 10 a second.
    expected = [i / 25 if i < 40 else 1.6 + (i - 40) / 10 for i in range(80)]
    np.testing.assert_allclose(video.facts.pts_seconds_F, expected, atol=2e-3)
    assert video.facts.duration_seconds == pytest.approx(5.5 * 80 / 79, abs=0.02)


@pytest.mark.parametrize("fps", [10, 12, 24, 30])
def test_stamps_of_a_constant_rate_are_exact(tmp_path: Path, fps: int) -> None:
    """To the bit, so that a time half-way between two tenths is rounded as index / fps is."""
    source = probe(write_clip(tmp_path / "clip.mp4", 60, fps=fps))
    index_F = np.arange(60)
    assert source.pts_seconds(index_F).tolist() == (index_F / fps).tolist()


def test_cut_between_keyframes_starts_at_zero(media: Path) -> None:
    for decoder in ("auto", "pyav"):
        video = decode_frames(media / "cut.mp4", PLAN, decoders=decoder_order(decoder))
        assert video.facts.pts_seconds_F[0] >= 0
        numbers = np.array(numbers_of(video.frames_FHWC))
        assert (np.diff(numbers) > 0).all()
        # Frame 25 is the first after the cut at 1 s, whatever the edit list hides before it.
        shift = numbers - video.facts.source_index_F
        assert (shift == shift[0]).all()


@pytest.mark.parametrize("decoder", ["auto", *USABLE])
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("audio.mp4", {"no_video_stream"}),
        ("truncated.mp4", {"incomplete"}),
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
        first, *others = (decode(media / name, decoder) for decoder in USABLE)
        for other in others:
            difference = np.abs(first.frames_FHWC.astype(int) - other.frames_FHWC)
            assert difference.max() <= 2, (name, other.facts.decoder)


def test_torchcodec_gives_what_pyav_gives_or_says_how_to_get_it(tmp_path: Path) -> None:
    if problem := torchcodec_import_error():
        with pytest.raises(ConfigError, match=r"--decoder torchcodec.*install") as caught:
            decoder_order("torchcodec")
        assert problem in str(caught.value)
        return
    assert decoder_order("torchcodec") == ("torchcodec",)
    clip = write_moving(tmp_path / "colour.mp4", 60, g=20)
    indices = np.array([0, 7, 31, 59])
    ours = probe(clip)
    frames = list(decode_torchcodec(ours, indices, FrameScaler(None)))
    expected = [picture.to_ndarray(format="rgb24") for picture in pictures_at(ours, indices)]
    difference = np.abs(np.stack(frames).astype(int) - np.stack(expected))
    assert difference.max() <= 1  # the same pictures; the conversions of two FFmpeg versions
    resized = decode_frames(clip, PLAN, max_pixels=4000, decoders=("torchcodec",))
    plain = decode_frames(clip, PLAN, max_pixels=4000, decoders=("pyav",))
    assert resized.frames_FHWC.shape == plain.frames_FHWC.shape
    # Pillow from repeated chroma against swscale from the planes.
    assert np.abs(resized.frames_FHWC.astype(int) - plain.frames_FHWC).mean() < 4


def test_without_torchcodec_the_fix_is_told_and_auto_serves(
    media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)  # importing it now fails
    torchcodec_import_error.cache_clear()
    try:
        with pytest.raises(ConfigError, match=r"--decoder torchcodec.*pip install torchcodec"):
            decoder_order("torchcodec")
        with pytest.raises(DecodeError) as caught:
            decode(media / "plain.mp4", "torchcodec")
        assert caught.value.kind == "unavailable"
        both = decode_frames(media / "plain.mp4", PLAN, decoders=("torchcodec", "decord"))
        assert both.facts.decoder == "decord"
    finally:
        torchcodec_import_error.cache_clear()


def test_a_decoder_that_counts_or_stamps_otherwise_is_refused(tmp_path: Path) -> None:
    clip = probe(write_moving(tmp_path / "clip.mp4", 30, g=10))
    assert clip.pts_N is not None
    longer = replace(clip, num_frames=31)
    shifted = replace(clip, pts_N=clip.pts_N + 512)
    for name in USABLE:
        if name == "pyav":
            continue
        with pytest.raises(DecodeError) as caught:
            next(DECODERS[name](longer, np.array([5]), FrameScaler(None)))
        assert caught.value.kind == "frame_count"
    if "torchcodec" in USABLE:
        with pytest.raises(DecodeError) as caught:
            next(DECODERS["torchcodec"](shifted, np.array([5]), FrameScaler(None)))
        assert caught.value.kind in ("wrong_picture", "frames_missing")


def test_decoders_by_index_refuse_files_without_stamps(media: Path) -> None:
    unstamped = replace(probe(media / "plain.mp4"), pts_N=None)
    for name in USABLE:
        if name != "pyav":
            with pytest.raises(DecodeError) as caught:
                next(DECODERS[name](unstamped, np.array([5]), FrameScaler(None)))
            assert caught.value.kind == "unsupported"


def test_versions_of_every_decoder_are_told() -> None:
    assert decoder_versions().keys() == DECODERS.keys()


def test_max_pixels_holds_and_keeps_the_picture(media: Path) -> None:
    video = decode_frames(media / "plain.mp4", PLAN, max_pixels=3000)
    assert video.frames_FHWC.shape[1:3] == (47, 63)
    assert numbers_of(video.frames_FHWC) == video.facts.source_index_F.tolist()


def test_names_that_look_like_protocols_stay_files(media: Path, tmp_path: Path) -> None:
    odd = tmp_path / "concat:x|y.mp4"
    odd.write_bytes((media / "short.mp4").read_bytes())
    for decoder in USABLE:
        assert decode(odd, decoder).facts.source_num_frames == 5


def test_damaged_picture_data_is_an_error_where_it_is_wanted(media: Path, tmp_path: Path) -> None:
    # Packets 16 to 23 are gone; the next, frame 24, is a keyframe. All 90 frames want what is hurt.
    data = bytearray((media / "bframes.mp4").read_bytes())
    start = data.index(b"mdat") + 1200  # past the first picture's headers
    data[start : start + 300] = bytes(300)
    hurt = tmp_path / "hurt.mp4"
    hurt.write_bytes(data)
    with pytest.raises(DecodeError, match="--allow-damaged") as caught:
        decode_frames(hurt, FramePlan("uniform", 90))
    assert caught.value.kind == "damaged"
    allowed = decode_frames(hurt, FramePlan("uniform", 90), allow_damaged=True)
    assert "damaged" in allowed.facts.notes
    # None of these 16 builds on what is hurt: right pictures at their right times.
    around = decode_frames(hurt, PLAN)
    assert "damaged_elsewhere" in around.facts.notes and around.facts.way == "decode"
    np.testing.assert_allclose(
        around.facts.pts_seconds_F, np.array(numbers_of(around.frames_FHWC)) / 25, atol=1e-9
    )


def test_unknown_decoder_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown decoder 'pyavv'.*did you mean 'pyav'"):
        decoder_order("pyavv")
