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
    path.write_bytes(data + b"and a tail that does no harm")
    check_complete(path, container)
    for length in (len(data) // 2, len(data) * 9 // 10):
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


@pytest.mark.parametrize("container", ["avi", "matroska", "asf", "flv", "mov", "mpegts"])
@pytest.mark.parametrize("data", [b"", b"\x1a", bytes(200), b"\xff" * 200, b"\x1a\x45\xdf\xa3\x80"])
def test_nonsense_is_left_to_the_demuxer(tmp_path: Path, container: str, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    check_complete(path, container)
