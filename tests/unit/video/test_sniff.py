from pathlib import Path

import pytest

from strive.errors import DecodeError
from strive.video.sniff import check_first_bytes
from video.coded_clips import write_clip


def test_what_may_be_a_video_passes(media: Path) -> None:
    for name in ("plain.mp4", "odd.mkv", "mpeg4.avi", "stream.ts", "text.mp4", "polyglot.mp4"):
        check_first_bytes(media / name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("zero.mp4", "empty_file"),
        ("playlist.mp4", "playlist"),
        ("concat.mp4", "playlist"),
        ("dash.mp4", "playlist"),
        ("folder.mp4", "not_a_video"),
        ("absent.mp4", "missing"),
    ],
)
def test_others_are_refused(media: Path, name: str, kind: str) -> None:
    with pytest.raises(DecodeError) as caught:
        check_first_bytes(media / name)
    assert caught.value.kind == kind


def test_a_manifest_far_behind_the_beginning_is_found(media: Path, tmp_path: Path) -> None:
    stream = (media / "stream.ts").read_bytes()
    for text in (b"x" * 9000 + b"<MPD xmlns='x'>", b"y" * 5000 + b"<SmoothStreamingMedia "):
        path = tmp_path / "two_faces.ts"
        path.write_bytes(text + stream)
        with pytest.raises(DecodeError) as caught:
            check_first_bytes(path)
        assert caught.value.kind == "playlist"
    path.write_bytes(stream + b"<MPD ")  # behind a NUL nobody looks for it
    check_first_bytes(path)


@pytest.mark.parametrize("title", ["<smil>", "my <MPD review>", "<ASX version='3.0'>"])
def test_a_title_is_no_manifest(tmp_path: Path, title: str) -> None:
    for name, how in (("a.mp4", {"movflags": "+faststart"}), ("a.mkv", {})):
        path = write_clip(tmp_path / name, 8, metadata=f"title={title}", **how)
        assert title.encode() in path.read_bytes()[:4096]
        check_first_bytes(path)
