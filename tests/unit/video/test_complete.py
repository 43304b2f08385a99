from pathlib import Path

import pytest

from strive.errors import DecodeError
from strive.video.complete import check_complete
from strive.video.sniff import sniff_container
from video.coded_clips import write_clip

FRAGMENTS = "frag_keyframe+empty_moov+default_base_moof"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.avi", {"codec": "mpeg4"}),
        ("a.mkv", {}),
        ("a.webm", {"codec": "libvpx"}),
        ("a.wmv", {"codec": "wmv2"}),
        ("a.flv", {"codec": "flv"}),
        ("a.ts", {}),
        ("a.mp4", {"movflags": FRAGMENTS, "g": 10}),
    ],
)
def test_a_file_that_ends_before_its_header_says(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    path = write_clip(tmp_path / name, 60, **options)  # type: ignore[arg-type]
    container = sniff_container(path)
    check_complete(path, container)
    data = path.read_bytes()
    if name not in ("a.ts", "a.mp4"):
        path.write_bytes(data + b"and a tail that does no harm")
        check_complete(path, container)
    for length in (len(data) // 2 + 1, len(data) * 9 // 10 + 1):
        path.write_bytes(data[:length])
        with pytest.raises(DecodeError, match="truncated"):
            check_complete(path, container)


def test_a_stream_of_unknown_length_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", 30)
    data = bytearray(path.read_bytes())
    segment = data.index(b"\x18\x53\x80\x67") + 4
    data[segment : segment + 8] = b"\x01" + b"\xff" * 7
    path.write_bytes(data[: len(data) // 2])
    check_complete(path, "matroska")


@pytest.mark.parametrize("container", ["avi", "matroska", "asf", "flv", "mov"])
@pytest.mark.parametrize("data", [b"", b"\x1a", bytes(200), b"\xff" * 200, b"\x1a\x45\xdf\xa3\x80"])
def test_nonsense_is_left_to_the_demuxer(tmp_path: Path, container: str, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    check_complete(path, container)


def test_a_cluster_with_any_byte_changed_is_damaged(tmp_path: Path) -> None:
    # FFmpeg begins each cluster of a Matroska file with its CRC-32.
    path = write_clip(tmp_path / "a.mkv", 30)
    data = path.read_bytes()
    pictures = data.index(b"\x1f\x43\xb6\x75") + 12
    cues = data.rindex(b"\x1c\x53\xbb\x6b")
    for position in range(pictures, cues, 13):
        changed = bytearray(data)
        changed[position] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(DecodeError, match="damaged"):
            check_complete(path, "matroska")


def test_a_web_file_with_a_piece_lost_is_damaged(tmp_path: Path) -> None:
    # WebM has no checksums: its sizes must chain.
    path = write_clip(tmp_path / "a.webm", 60, codec="libvpx")
    data = path.read_bytes()
    for start in range(data.index(b"\x1f\x43\xb6\x75") + 20, len(data) - 200, 97):
        path.write_bytes(data[:start] + data[start + 50 :] + bytes(50))
        with pytest.raises(DecodeError, match="damaged"):
            check_complete(path, "matroska")


def test_a_transport_stream_that_lost_a_packet_is_damaged(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.ts", 60, g=20)
    data = path.read_bytes()
    starts = range(0, len(data), 188)
    pictures = [s for s in starts if int.from_bytes(data[s + 1 : s + 3], "big") & 0x1FFF == 0x100]
    begins_keyframe = [
        bool(data[s + 1] & 0x40 and data[s + 3] & 0x20 and data[s + 5] & 0x40) for s in pictures
    ]
    lost = [
        start
        for start, here, following in zip(
            pictures[1:], begins_keyframe[1:], begins_keyframe[2:], strict=False
        )
        if not here and not following  # where streams may be joined
    ]
    assert len(lost) > 50
    for start in lost:
        path.write_bytes(data[:start] + data[start + 188 :])
        with pytest.raises(DecodeError, match="damaged"):
            check_complete(path, "mpegts")
    path.write_bytes(data + data)  # joined streams are whole
    check_complete(path, "mpegts")
    path.write_bytes(data[: 188 * 20] + b"\0" + data[188 * 20 + 1 :])
    with pytest.raises(DecodeError, match="damaged"):
        check_complete(path, "mpegts")


def test_a_lost_chunk_header_of_an_avi_is_damage(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", 60, codec="mpeg4", qscale=2)
    data = path.read_bytes()
    pictures = [i for i in range(len(data)) if data.startswith(b"00dc", i)][:60]
    for start in pictures[1::7]:
        path.write_bytes(data[:start] + bytes(8) + data[start + 8 :])
        with pytest.raises(DecodeError, match="damaged"):
            check_complete(path, "avi")


@pytest.mark.parametrize("box", [b"moof", b"traf", b"trun"])
def test_a_box_of_a_fragment_that_nobody_knows_is_damage(tmp_path: Path, box: bytes) -> None:
    path = write_clip(tmp_path / "a.mp4", 60, g=12, movflags=FRAGMENTS)
    data = bytearray(path.read_bytes())
    start = data.index(box, data.index(box) + 4)
    data[start : start + 4] = b"what"
    path.write_bytes(data)
    with pytest.raises(DecodeError, match="damaged"):
        check_complete(path, "mov")
