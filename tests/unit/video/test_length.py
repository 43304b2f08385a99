"""What is missing of a file, by what its container states."""

import struct
from pathlib import Path

import av
import ffmpeg
import pytest

from strive.errors import ConfigError, DecodeError
from strive.video.decode import DecodedVideo, decode_frames
from strive.video.frame_plan import FramePlan
from strive.video.source import MaxMissing, parse_max_missing
from video.coded_clips import FFMPEG, numbers_of, write_audio, write_clip
from video.odd_clips import transport_packets

FRAGMENTS = "frag_keyframe+empty_moov+default_base_moof"
SECONDS = 6  # of most clips, at 25 frames a second
PLAN = FramePlan("uniform", 8)
KINDS: dict[str, dict[str, object]] = {
    "a.mp4": {"movflags": "+faststart", "g": 10},
    "a.mkv": {"g": 10},
    "a.webm": {"codec": "libvpx", "g": 10, "deadline": "realtime"},
    "a.avi": {"codec": "mpeg4", "qscale": 2},
    "a.wmv": {"codec": "wmv2", "qscale": 2},
    "a.flv": {"codec": "flv", "qscale": 2},
}


def clip(path: Path) -> bytes:
    return write_clip(path, 25 * SECONDS, **KINDS[path.name]).read_bytes()  # type: ignore[arg-type]


def decode(path: Path, max_missing: str | None = None) -> DecodedVideo:
    missing = parse_max_missing(max_missing)
    return decode_frames(path, PLAN, decoders=("pyav",), max_missing=missing)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_ends_before_its_header_says(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = clip(path)
    assert decode(path).facts.notes == ()
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(DecodeError, match="--max-missing") as caught:
        decode(path)
    assert caught.value.kind == "incomplete"
    for allowed in ("5.5s", "95%", "any"):
        video = decode(path, allowed)
        assert "ends_early" in video.facts.notes
        # The first part, each picture at its time.
        expected = [round(25 * float(second)) for second in video.facts.pts_seconds_F]
        assert numbers_of(video.frames_FHWC) == expected


@pytest.mark.parametrize("name", [name for name in KINDS if name != "a.flv"])
def test_a_little_may_be_missing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = clip(path)
    path.write_bytes(data[: len(data) * 97 // 100])
    video = decode(path)
    assert numbers_of(video.frames_FHWC) == video.facts.source_index_F.tolist()


@pytest.mark.parametrize("name", KINDS)
def test_what_is_appended_is_no_concern(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(clip(path) + b"and a tail that does no harm")
    assert decode(path).facts.source_num_frames == 25 * SECONDS


def test_an_index_after_the_pictures_of_an_avi_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    data = clip(path)
    path.write_bytes(data[: data.rindex(b"idx1")])
    assert decode(path).facts.source_num_frames == 25 * SECONDS


@pytest.mark.parametrize("wrong", [-70, 8, 40])
def test_writers_that_count_their_bytes_wrong(tmp_path: Path, wrong: int) -> None:
    path = tmp_path / "a.avi"
    data = bytearray(clip(path))
    for at in (4, data.index(b"movi") - 4):
        (size,) = struct.unpack_from("<I", data, at)
        struct.pack_into("<I", data, at, size + wrong)
    path.write_bytes(data)
    video = decode(path)
    assert video.facts.source_num_frames == 25 * SECONDS
    assert numbers_of(video.frames_FHWC) == video.facts.source_index_F.tolist()


def test_a_list_of_pictures_of_no_stated_size(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    data = bytearray(clip(path))
    struct.pack_into("<I", data, data.index(b"movi") - 4, 0)
    path.write_bytes(data)
    assert decode(path).facts.source_num_frames == 25 * SECONDS


def test_a_header_that_speaks_of_minutes_too_many(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    data = bytearray(clip(path))
    at = data.index(b"\x44\x89\x88") + 3
    (milliseconds,) = struct.unpack_from(">d", data, at)
    assert milliseconds == 1000 * SECONDS
    struct.pack_into(">d", data, at, milliseconds + 300_000)
    path.write_bytes(data)
    of_matroska = decode(path)
    path = tmp_path / "a.avi"
    data = bytearray(clip(path))
    for at in (data.index(b"avih") + 24, data.index(b"strh") + 40):
        struct.pack_into("<I", data, at, 9000)
    path.write_bytes(data)
    for video in (of_matroska, decode(path)):
        assert video.facts.source_num_frames == 25 * SECONDS
        assert "stated_longer" in video.facts.notes


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.ts", {}),
        ("a.h264", {"f": "h264"}),
        ("a.mp4", {"movflags": FRAGMENTS, "g": 10}),
        ("a.mpg", {"codec": "mpeg2video", "qscale": 2}),
    ],
)
def test_where_nothing_is_stated_a_part_is_a_video(
    tmp_path: Path, name: str, how: dict[str, object]
) -> None:
    path = write_clip(tmp_path / name, 25 * SECONDS, **how)  # type: ignore[arg-type]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 41])
    video = decode(path)
    assert 25 < video.facts.source_num_frames < 25 * SECONDS
    assert numbers_of(video.frames_FHWC) == video.facts.source_index_F.tolist()
    assert "no_stated_length" in video.facts.notes


def test_a_recording_that_ends_within_a_picture(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.ts", 40, g=1, size=(192, 256), codec="mpeg2video", qscale=1)
    packets = transport_packets(path.read_bytes())
    begins = [
        number
        for number, packet in enumerate(packets)
        if int.from_bytes(packet[1:3], "big") & 0x5FFF == 0x4100
    ]
    assert begins[21] - begins[20] > 3
    path.write_bytes(b"".join(packets[: begins[20] + 2]) + packets[begins[20] + 2][:88])
    video = decode_frames(path, FramePlan("uniform", 64))
    assert "ends_abruptly" in video.facts.notes
    assert numbers_of(video.frames_FHWC) == list(range(20))


@pytest.mark.parametrize(("codec", "step"), [("libx264", 192), ("libx265", 188)])
def test_what_is_shown_of_a_recording_that_breaks_off(
    tmp_path: Path, codec: str, step: int
) -> None:
    """HEVC does not tell that a picture lacks its end; the file does."""
    how = {"libx264": {"bf": 2, "g": 30}, "libx265": {"x265-params": "log-level=none:bframes=2"}}
    noise = "format=yuv420p,noise=c0s=40:c0f=t"
    shape = {"mpegts_m2ts_mode": int(step == 192), "f": "mpegts", "vf": noise, "qp": 20}
    whole = write_clip(tmp_path / "whole.ts", 90, codec=codec, **how[codec], **shape)
    data, pid = whole.read_bytes(), 0x1011 if step == 192 else 0x100
    with av.open(str(whole)) as opened:
        stamps = [packet.pts for packet in opened.demux(video=0) if packet.size]
    begins = [
        (at, int.from_bytes(data[at + 1 : at + 3], "big") & 0x4000)
        for at in range(step - 188, len(data), step)
        if int.from_bytes(data[at + 1 : at + 3], "big") & 0x1FFF == pid
    ]
    path = tmp_path / "a.ts"
    firsts = [number for number, (_, is_first) in enumerate(begins) if is_first]
    for picture in (70, 71, 72, 73):  # some of them B-frames
        assert firsts[picture + 1] - firsts[picture] > 3
        # Within its third packet: it is left out, and what is shown after it.
        path.write_bytes(data[: begins[firsts[picture] + 2][0] + 88])
        shown = sum(stamp < stamps[picture] for stamp in stamps[:picture])
        for plan in (PLAN, FramePlan("uniform", 64)):
            video = decode_frames(path, plan)
            assert "ends_abruptly" in video.facts.notes and video.facts.source_num_frames == shown
            assert numbers_of(video.frames_FHWC) == video.facts.source_index_F.tolist()
        # Within its first packet: nothing of it is there, and all before it.
        path.write_bytes(data[: begins[firsts[picture]][0] + 88])
        video = decode_frames(path, PLAN)
        assert "ends_abruptly" in video.facts.notes and video.facts.source_num_frames == picture
    for end in (0, step, 5 * step):
        path.write_bytes(data[: len(data) - end])
        assert "ends_abruptly" not in decode_frames(path, PLAN).facts.notes


def test_a_stream_written_live_states_nothing(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", 50)
    data = bytearray(path.read_bytes())
    segment = data.index(b"\x18\x53\x80\x67") + 4
    data[segment : segment + 8] = b"\x01" + b"\xff" * 7
    duration = data.index(b"\x44\x89\x88")
    data[duration : duration + 3] = b"\xec\x40\x08"  # nothing, in an element of the same length
    path.write_bytes(data)
    video = decode(path)
    assert video.facts.source_num_frames == 50 and "no_stated_length" in video.facts.notes


def test_longer_sound_is_not_missing_video(tmp_path: Path) -> None:
    """A header that states the length of all streams is met by all streams together."""
    sound = write_audio(tmp_path / "sound.m4a")
    short = write_clip(tmp_path / "short.mp4", 5)
    path = tmp_path / "both.mkv"
    inputs = [ffmpeg.input(str(short)), ffmpeg.input(str(sound), stream_loop=5)]
    ffmpeg.output(*inputs, str(path), c="copy").global_args("-loglevel", "error").run(cmd=FFMPEG)
    video = decode(path)
    assert video.facts.source_num_frames == 5 and "stated_longer" not in video.facts.notes


def test_max_missing() -> None:
    assert parse_max_missing(None) == MaxMissing(1.0, 0.02)
    assert parse_max_missing("5s").allows(5.0, 1000.0)
    assert not parse_max_missing("5s").allows(5.1, 1000.0)
    assert parse_max_missing("10%").allows(100.0, 1000.0)
    assert not parse_max_missing("10%").allows(0.2, 1.0)
    assert parse_max_missing("any").allows(1e9, 1.0)
    assert parse_max_missing(None).allows(20.0, 1000.0)
    for wrong in ("", "5", "-1s", "s", "nan%", "infs", "all"):
        with pytest.raises(ConfigError, match="--max-missing"):
            parse_max_missing(wrong)
