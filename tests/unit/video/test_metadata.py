"""Malformed metadata that players pass over is no damage; damaged pictures beside it are."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from strive.errors import DecodeError
from strive.video import whole
from strive.video.decode import DecodedVideo, decode_frames
from strive.video.frame_plan import FramePlan
from video.coded_clips import numbers_of, shown_by_ffmpeg, write_clip
from video.odd_clips import with_packets

ALL = FramePlan("uniform", 400)
NUM_FRAMES = 40
CODECS: dict[str, dict[str, object]] = {
    "h264": {"codec": "libx264", "preset": "veryfast", "bf": 2, "g": 20},
    "hevc": {"codec": "libx265", "x265-params": "log-level=none:keyint=20:bframes=3"},
}
# Payloads of supplemental information, each with its kind and stated size in front.
MALFORMED = {
    "longer than its unit": b"\x04\xc8\xb5\x00\x31GA94\x03\x80",
    "captions that break off": b"\x04\x09\xb5\x00\x31GA94\x03\xff\x80",
    "no provider": b"\x04\x02\xb5\x00\x80",
    "user data without its name": b"\x05\x04abcd\x80",
    "a timing of no clock": b"\x00\x02\x05\x55\x80",
    "light without numbers": b"\x89\x01\x03\x01\x80",
    "a size without end": b"\xff" * 30,
    "nothing": b"",
}
OTHER_UNITS = {
    "h264": {"delimiter": b"\x09\xff\xff", "unknown": b"\x7f\xff\xff", "filler": b"\x0c\x01\x02"},
    "hevc": {"delimiter": b"\x46\x01\xff", "unknown": b"\x7e\x01abc", "filler": b"\x4c\x01\x02"},
}


def decode(path: Path, **options: object) -> DecodedVideo:
    return decode_frames(path, ALL, decoders=("pyav",), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    folder = tmp_path_factory.mktemp("metadata")

    def clip(codec: str, container: str) -> Path:
        path = folder / f"{codec}.{container}"
        return path if path.exists() else write_clip(path, NUM_FRAMES, **CODECS[codec])  # type: ignore[arg-type]

    return clip


def supplemental(codec: str, payload: bytes, *, after: bool = False) -> bytes:
    """Return a NAL unit of supplemental information; of HEVC there are two kinds."""
    return (b"\x06" if codec == "h264" else b"\x50\x01" if after else b"\x4e\x01") + payload


def in_front(unit: bytes, container: str) -> bytes:
    return (b"\0\0\0\1" if container == "ts" else struct.pack(">I", len(unit))) + unit


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("codec", CODECS)
def test_malformed_units(
    clips: Callable[[str, str], Path], tmp_path: Path, codec: str, container: str
) -> None:
    units = [supplemental(codec, payload) for payload in MALFORMED.values()]
    units += [supplemental("hevc", MALFORMED["captions that break off"], after=True)]
    ways = set()
    for unit in (*units, *OTHER_UNITS[codec].values()):
        front = in_front(unit, container)
        path = with_packets(
            clips(codec, container),
            tmp_path / f"a.{container}",
            lambda number, packet, front=front: front * (number % 7 == 0) + packet,
        )
        video = decode(path)
        assert numbers_of(video.frames_FHWC) == list(range(NUM_FRAMES))
        assert not {"damaged", "damaged_elsewhere"} & set(video.facts.notes)
        ways.add(video.facts.way)
    assert numbers_of(shown_by_ffmpeg(path)) == list(range(NUM_FRAMES))
    assert ways == {"index", "decode"}  # a decoder that reports damage did report some of it


@pytest.mark.parametrize("container", ["mp4", "ts"])
@pytest.mark.parametrize("codec", CODECS)
def test_damage_beside_malformed_units(
    clips: Callable[[str, str], Path], tmp_path: Path, codec: str, container: str
) -> None:
    """The same pictures count as damaged as without such units."""
    unit = supplemental(codec, MALFORMED["longer than its unit"])

    def hurt(number: int, packet: bytes) -> bytes:
        start = 16 if container == "ts" else 12
        return packet[:start] + bytes(len(packet) - start) if number == 22 else packet

    def hurt_beside(number: int, packet: bytes) -> bytes:
        return in_front(unit, container) * (number % 7 == 0) + hurt(number, packet)

    original = clips(codec, container)
    paths = [
        with_packets(original, tmp_path / f"{number}.{container}", change)
        for number, change in enumerate((hurt, hurt_beside))
    ]
    refusals = []
    for path in paths:
        with pytest.raises(DecodeError) as caught:
            decode(path)
        assert caught.value.kind == "damaged"
        refusals.append(str(caught.value))
    assert refusals[0] == refusals[1]
    assert "damaged" in decode(path, allow_damaged=True).facts.notes


def test_a_file_without_errors_is_decoded_once(
    clips: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = whole._decode_all

    def counted(*arguments: object, **options: object) -> object:
        calls.append(options)
        return original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(whole, "_decode_all", counted)
    whole.decode_whole(whole.probe(clips("h264", "mp4")))
    assert calls == [{"reports_damage": True}]


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


JUNK = bytes(range(7, 207))
BOXES = {
    "udta of junk": box(b"udta", JUNK),
    "a title longer than its file": box(b"udta", struct.pack(">I4s", 5000, b"\xa9nam") + JUNK),
    "a title of no alphabet": box(b"udta", box(b"\xa9nam", b"\xea\x60\0\0\xff\xfe\xff")),
    "meta of junk": box(b"meta", JUNK),
    "a cover of junk": box(b"udta", box(b"meta", bytes(4) + box(b"ilst", box(b"covr", JUNK)))),
    "chapters of junk": box(b"udta", box(b"chpl", JUNK)),
    "a box of nobody": box(b"uuid", JUNK),
}


@pytest.mark.parametrize("name", BOXES)
def test_malformed_boxes(clips: Callable[[str, str], Path], tmp_path: Path, name: str) -> None:
    data = bytearray(clips("h264", "mp4").read_bytes())
    at = data.rindex(b"moov") - 4
    (length,) = struct.unpack_from(">I", data, at)
    struct.pack_into(">I", data, at, length + len(BOXES[name]))
    assert at + length == len(data)
    path = tmp_path / "a.mp4"
    path.write_bytes(data + BOXES[name])
    assert_untouched(path)


@pytest.mark.parametrize("kind", [b"mvhd", b"tkhd", b"mdhd"])
def test_wrong_dates(clips: Callable[[str, str], Path], tmp_path: Path, kind: bytes) -> None:
    data = bytearray(clips("h264", "mp4").read_bytes())
    at = data.rindex(kind) + 8
    data[at : at + 8] = b"\xff" * 8
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    assert_untouched(path)


def assert_untouched(path: Path) -> None:
    video = decode(path)
    assert numbers_of(video.frames_FHWC) == list(range(NUM_FRAMES))
    assert (video.facts.way, video.facts.notes) == ("index", ())
    assert numbers_of(shown_by_ffmpeg(path)) == list(range(NUM_FRAMES))
