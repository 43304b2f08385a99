"""What FFmpeg's own program shows is what is decoded, picture for picture.

Every file is made here, and every expectation read from its frames' numbers.
"""

from fractions import Fraction
from pathlib import Path

import av
import ffmpeg
import numpy as np
import pytest

from strive.errors import DecodeError
from strive.video import source as source_module
from strive.video.decode import DECODERS, DecodedVideo, decode_frames
from strive.video.decoders import decode_runs, run_pictures
from strive.video.frame_plan import FramePlan
from strive.video.resize import matrix_orientation
from strive.video.whole import decode_whole, probe
from video.coded_clips import (
    FFMPEG,
    numbers_of,
    remux,
    shown_by_ffmpeg,
    write_audio,
    write_clip,
    write_moving,
)
from video.odd_clips import (
    transport_packets,
    with_edit_list,
    without_first_pictures,
    write_fields,
    write_packed,
)

ALL = FramePlan("uniform", 400)  # every frame of the clips here
NUM_FRAMES = 50


def decode(path: Path, **options: object) -> DecodedVideo:
    return decode_frames(path, ALL, decoders=("pyav",), **options)  # type: ignore[arg-type]


def assert_as_shown(video: DecodedVideo, path: Path, numbers: list[int]) -> None:
    """FFmpeg's program and we show the same numbers."""
    height, width = video.frames_FHWC.shape[1:3]
    assert numbers_of(shown_by_ffmpeg(path, height, width)) == numbers
    assert numbers_of(video.frames_FHWC) == numbers
    assert video.facts.source_num_frames == len(numbers)


def assert_times(video: DecodedVideo, step: float = 1 / 25) -> None:
    expected = np.arange(video.facts.source_num_frames) * step
    np.testing.assert_allclose(video.facts.pts_seconds_F, expected, atol=2e-3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("plain") / "plain.mp4", NUM_FRAMES, g=10)


# ---- Which way up


@pytest.mark.parametrize("mirrored", ["", "hflip", "vflip"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_eight_orientations(plain: Path, tmp_path: Path, degrees: int, mirrored: str) -> None:
    options: dict[str, object] = {"display_rotation": degrees}
    if mirrored:
        options[f"display_{mirrored}"] = None
    path = remux(plain, tmp_path / "turned.mp4", **options)
    sides = (128, 96) if degrees % 180 else (96, 128)
    shown = shown_by_ffmpeg(path, *sides)
    video = decode(path)
    assert video.frames_FHWC.shape == shown.shape
    difference = np.abs(video.frames_FHWC.astype(int) - shown)
    assert difference.mean() < 3  # two conversions of colour; another way up differs by over 60
    assert video.facts.way == "index"


def test_every_orientation_was_met() -> None:
    turn = {0: (1, 0, 0, 1), 90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), 270: (0, 1, -1, 0)}
    found = set()
    for a, b, c, d in turn.values():
        for sign in (1, -1):
            matrix = (sign * a, b, 0, sign * c, d, 0, 0, 0, 1 << 30)
            found.add(matrix_orientation((*(65536 * value for value in matrix[:8]), 1 << 30))[0])
    assert found == set(range(1, 9))
    assert matrix_orientation((46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30)) == (1, False)
    assert matrix_orientation((0,) * 9) == (1, True)


@pytest.mark.parametrize("container", ["mp4", "ts"])
def test_an_orientation_in_keyframes_alone_holds_for_all(
    plain: Path, tmp_path: Path, container: str
) -> None:
    path = tmp_path / f"sei.{container}"
    bsf = "h264_metadata=rotate=90:display_orientation=insert"
    remux_with(plain, path, **{"bsf:v": bsf})
    video = decode(path)
    assert video.facts.orientation == 8
    upright = np.rot90(video.frames_FHWC, -1, axes=(1, 2))
    assert numbers_of(upright) == list(range(NUM_FRAMES))
    # FFmpeg's program says the same of the first.
    assert numbers_of(np.rot90(shown_by_ffmpeg(path, 128, 96), -1, axes=(1, 2)))[0] == 0


def remux_with(source: Path, path: Path, **output: object) -> Path:
    stream = ffmpeg.input(str(source)).output(str(path), c="copy", **output)
    stream.overwrite_output().global_args("-loglevel", "error").run(cmd=FFMPEG)
    return path


# ---- Edit lists


@pytest.mark.parametrize(
    ("entries", "numbers"),
    [
        ([(1000, 0)], range(25)),  # the end is hidden
        ([(1000, 10 * 512)], range(10, 35)),  # a whole group, and the end
        ([(800, 7 * 512)], range(7, 27)),  # within a group
        ([(400, 0), (400, 30 * 512)], [*range(10), *range(30, 40)]),  # the middle
    ],
)
def test_edit_lists_hide_what_they_hide(
    plain: Path, tmp_path: Path, entries: list[tuple[int, int]], numbers: list[int]
) -> None:
    path = tmp_path / "edited.mp4"
    path.write_bytes(with_edit_list(plain.read_bytes(), entries))
    video = decode(path)
    assert_as_shown(video, path, list(numbers))
    assert video.facts.way == "index"
    assert_times(video)


def test_a_cut_without_encoding(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "long.mkv", 300, preset="medium", g=50)
    path = tmp_path / "cut.mp4"
    stream = ffmpeg.input(str(clip), ss=5.28).output(str(path), c="copy", t=4)
    stream.global_args("-loglevel", "error").run(cmd=FFMPEG)
    shown = numbers_of(shown_by_ffmpeg(path))
    assert shown[0] == 132
    assert_as_shown(decode(path), path, shown)


# ---- Packets and pictures


def test_vp8_hides_frames_that_others_refer_to(tmp_path: Path) -> None:
    path, log = tmp_path / "alt_ref.webm", str(tmp_path / "log")
    two_pass = {"b:v": "300k", "auto-alt-ref": 1, "lag-in-frames": 16, "arnr-maxframes": 5}
    for number in (1, 2):
        how = {"cpu-used": 1, "pass": number, "passlogfile": log, **two_pass}
        write_clip(path, NUM_FRAMES, codec="libvpx", **how)
    with av.open(str(path)) as opened:
        assert sum(1 for packet in opened.demux(video=0) if packet.size) > NUM_FRAMES
    video = decode(path)
    assert_as_shown(video, path, list(range(NUM_FRAMES)))
    assert video.facts.way == "decode"
    assert_times(video)


def test_b_frames_packed_with_others(tmp_path: Path) -> None:
    path = write_packed(tmp_path / "packed.avi", 41)
    video = decode(path)
    assert_as_shown(video, path, list(range(41)))
    assert video.facts.way == "decode"
    assert_times(video)


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
def test_two_packets_a_picture(tmp_path: Path, container: str) -> None:
    path = write_fields(tmp_path / "fields.bin", container, 16)
    video = decode(path)
    assert_as_shown(video, path, list(range(16)))
    assert video.facts.way == "decode"
    assert_times(video)


def test_a_codec_that_nobody_vouches_for_is_decoded_whole(tmp_path: Path) -> None:
    for name, codec in (("a.mpg", "mpeg1video"), ("a.wmv", "wmv2"), ("a.ogv", "libtheora")):
        path = write_clip(tmp_path / name, NUM_FRAMES, codec=codec, qscale=2)
        video = decode(path)
        assert_as_shown(video, path, list(range(NUM_FRAMES)))
        assert video.facts.way == "decode"


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mov", "prores_ks", "yuv422p10le"),
        ("b.mov", "png", "rgb24"),
        ("c.mov", "mjpeg", "yuvj420p"),
        ("d.avi", "rawvideo", "bgr24"),
    ],
)
def test_where_every_packet_is_a_picture_any_can_be_had(
    tmp_path: Path, name: str, codec: str, pix_fmt: str
) -> None:
    source = probe(write_clip(tmp_path / name, NUM_FRAMES, codec=codec, pix_fmt=pix_fmt))
    assert source.way == "index"
    indices = np.array([3, 20, 49])
    pictures = list(run_pictures(source, decode_runs(source, indices), seek_packets=1))
    assert numbers_of(np.stack([p.to_ndarray(format="rgb24") for p in pictures])) == [3, 20, 49]


def test_interlaced_pictures_are_counted_by_decoding(tmp_path: Path) -> None:
    path = tmp_path / "interlaced.mp4"
    write_clip(path, NUM_FRAMES, flags="+ilme+ildct", **{"x264-params": "tff=1"})
    video = decode(path)
    assert_as_shown(video, path, list(range(NUM_FRAMES)))
    assert video.facts.way == "decode"


def test_the_first_packets_must_decode_to_what_is_predicted(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were VP8's hidden frames, packed frames and fields unknown, this would find them."""
    assert probe(plain).way == "index"

    def one_late(self: source_module._Packets, packet: av.Packet | None) -> None:
        for picture in self.stream.codec_context.decode(packet):
            self.first = self.first or picture
            self.checked.append(picture.pts + 512)

    monkeypatch.setattr(source_module._Packets, "_check", one_late)
    found = probe(plain)
    assert (found.way, found.num_frames) == ("decode", NUM_FRAMES)


def test_a_stamp_that_does_not_come_later_is_noticed(tmp_path: Path) -> None:
    """The first packets are right; then one picture cannot be decoded, and no packet says so."""
    path = write_clip(tmp_path / "late.mp4", 150, g=30)
    with av.open(str(path)) as opened:
        packets = [(p.pos, p.size) for p in opened.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    start, size = packets[119]  # the last of its group: nothing builds on it
    data[start : start + size] = bytes(size)
    path.write_bytes(data)
    video = decode(path)
    assert video.facts.way == "decode"
    assert_as_shown(video, path, [n for n in range(150) if n != 119])
    assert "damaged_elsewhere" in video.facts.notes


def test_other_decoders_leave_such_files_alone(tmp_path: Path) -> None:
    path = write_packed(tmp_path / "packed.avi", 41)
    for name in DECODERS:
        if name != "pyav":
            with pytest.raises(DecodeError) as caught:
                decode_frames(path, ALL, decoders=(name,))
            assert caught.value.kind in ("unsupported", "unavailable")


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4", "libvpx-vp9"])
def test_both_ways_give_the_same(tmp_path: Path, codec: str) -> None:
    path = write_moving(tmp_path / "moving.mkv", 80, codec=codec, g=20)
    source = probe(path)
    whole = decode_whole(source)
    assert (source.way, whole.way) == ("index", "decode")
    assert source.pts_N is not None and whole.pts_N is not None
    np.testing.assert_array_equal(source.pts_N, whole.pts_N)
    assert (source.fps, source.duration_seconds) == (whole.fps, whole.duration_seconds)


# ---- Beginnings


def test_a_recording_that_begins_within_a_group(tmp_path: Path) -> None:
    how = {"preset": "veryfast", "bf": 2, "g": 40, "sc_threshold": 0}
    whole = write_clip(tmp_path / "whole.ts", 200, **how)
    path = tmp_path / "late.ts"
    path.write_bytes(without_first_pictures(whole.read_bytes(), 25))
    video = decode(path)
    assert_as_shown(video, path, list(range(40, 200)))
    assert video.facts.way == "index" and "late_start" in video.facts.notes
    assert "damaged_elsewhere" not in video.facts.notes
    assert_times(video)


def test_a_late_start_beside_another_fault(tmp_path: Path) -> None:
    how = {"codec": "mpeg2video", "qscale": 2, "g": 20, "flags": "+ilme+ildct"}
    whole = write_clip(tmp_path / "whole.ts", 100, **how)
    path = tmp_path / "late.ts"
    path.write_bytes(without_first_pictures(whole.read_bytes(), 8))
    video = decode_frames(path, FramePlan("uniform", 8))
    assert video.facts.way == "decode" and "late_start" in video.facts.notes
    shown = numbers_of(video.frames_FHWC)
    first = shown[0] - video.facts.source_index_F[0]
    assert shown == [first + int(index) for index in video.facts.source_index_F]


# ---- Times


def shifted(path: Path, first: int, seconds: float) -> bytes:
    """Return a transport stream of 25 frames from number `first`, its clock set to some time."""
    clip = write_clip(path.with_suffix(".whole.ts"), first + 25, g=25, bf=0, sc_threshold=0)
    part = path.with_suffix(".part.ts")
    stream = ffmpeg.input(str(clip), ss=first / 25).output(
        str(part), c="copy", output_ts_offset=seconds, muxdelay=0
    )
    stream.overwrite_output().global_args("-loglevel", "error").run(cmd=FFMPEG)
    return part.read_bytes()


@pytest.mark.parametrize("clocks", [(100.0, 40.0), (10.0, 3600.0)])
def test_a_clock_that_is_set_goes_on_at_the_mean_rate(
    tmp_path: Path, clocks: tuple[float, float]
) -> None:
    path = tmp_path / "joined.ts"
    first, second = (
        shifted(tmp_path / "part", first=25 * part, seconds=clock)
        for part, clock in enumerate(clocks)
    )
    path.write_bytes(first + second)
    video = decode(path)
    assert_as_shown(video, path, list(range(50)))
    assert "times_mended" in video.facts.notes
    assert_times(video)


def test_a_raw_stream_is_counted(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "raw.h264", NUM_FRAMES, f="h264", preset="medium", bf=2)
    video = decode(path)
    assert_as_shown(video, path, list(range(NUM_FRAMES)))
    assert "no_stated_length" in video.facts.notes
    assert_times(video)


def test_stamps_of_a_container_of_stamps_are_kept(tmp_path: Path) -> None:
    """Not mended: a Matroska file whose pictures are half a minute apart says just that."""
    path = write_clip(tmp_path / "slow.mkv", 10, fps=1 / 30)
    video = decode(path)
    assert video.facts.way == "index" and "times_mended" not in video.facts.notes
    assert_times(video, step=30.0)


# ---- What else a file may hold


def test_one_picture_over_sound(plain: Path, tmp_path: Path) -> None:
    sound = write_audio(tmp_path / "sound.m4a")
    one = write_clip(tmp_path / "one.mp4", 1)
    path = tmp_path / "song.mp4"
    inputs = [ffmpeg.input(str(one)), ffmpeg.input(str(sound))]
    ffmpeg.output(*inputs, str(path), c="copy").global_args("-loglevel", "error").run(cmd=FFMPEG)
    video = decode(path)
    assert "one_picture" in video.facts.notes and numbers_of(video.frames_FHWC) == [0]


def test_a_cover_alone_is_no_video(tmp_path: Path) -> None:
    sound = write_audio(tmp_path / "sound.m4a")
    cover = write_clip(tmp_path / "cover.png", 1, codec="png", pix_fmt="rgb24")
    path = tmp_path / "song.mp4"
    inputs = [ffmpeg.input(str(cover)), ffmpeg.input(str(sound))]
    output = ffmpeg.output(*inputs, str(path), c="copy", **{"disposition:v:0": "attached_pic"})
    output.global_args("-loglevel", "error").run(cmd=FFMPEG)
    with pytest.raises(DecodeError) as caught:
        decode(path)
    assert caught.value.kind == "no_video_stream"


def test_wide_pixels_are_noted_and_left(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "wide.mp4", 10, vf="setsar=2")
    video = decode(path)
    assert "anamorphic" in video.facts.notes and video.frames_FHWC.shape[1:3] == (96, 128)


def test_a_transport_stream_that_lost_packets(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "lost.ts", 100, g=20, qp=1, size=(192, 256))
    packets = transport_packets(path.read_bytes())
    pictures = [
        number
        for number, packet in enumerate(packets)
        if int.from_bytes(packet[1:3], "big") & 0x1FFF == 0x100
    ]
    del packets[pictures[len(pictures) // 2]]
    path.write_bytes(b"".join(packets))
    with pytest.raises(DecodeError) as caught:
        decode(path)
    assert caught.value.kind == "damaged"
    assert "damaged" in decode(path, allow_damaged=True).facts.notes
    elsewhere = decode_frames(path, FramePlan("uniform", 2))
    assert (
        numbers_of(elsewhere.frames_FHWC)[0] == 24 and "damaged_elsewhere" in elsewhere.facts.notes
    )


def test_recordings_joined_end_to_end_are_whole(tmp_path: Path) -> None:
    """The counters of a transport stream jump where the second begins; nothing is lost."""
    first = write_clip(tmp_path / "a.ts", 50, preset="medium", bf=2)
    second = shifted(tmp_path / "part", first=50, seconds=3.5)
    path = tmp_path / "joined.ts"
    path.write_bytes(first.read_bytes() + second)
    video = decode(path)
    assert numbers_of(video.frames_FHWC) == list(range(75))
    assert "damaged_elsewhere" not in video.facts.notes


def test_a_whole_picture_lost_from_a_transport_stream_is_noted(tmp_path: Path) -> None:
    """Counters are of packets; a picture of one packet that is lost leaves a gap in the times."""
    path = write_clip(tmp_path / "lost.ts", 60, codec="mjpeg", pix_fmt="yuvj420p", f="matroska")
    with av.open(str(path)) as opened, av.open(str(tmp_path / "gap.ts"), "w") as out:
        stream = out.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number, frame in enumerate(opened.decode(video=0)):
            if number != 30:
                frame.pts, frame.time_base = number, Fraction(1, 25)
                out.mux(stream.encode(frame.reformat(format="yuv420p")))
        out.mux(stream.encode(None))
    video = decode(tmp_path / "gap.ts")
    assert numbers_of(video.frames_FHWC) == [n for n in range(60) if n != 30]
    assert "gaps" in video.facts.notes
