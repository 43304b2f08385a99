from pathlib import Path

import pytest

from strive.errors import DecodeError
from strive.video.sniff import sniff_container


@pytest.mark.parametrize(
    ("name", "container"),
    [
        ("plain.mp4", "mov"),
        ("front.mp4", "mov"),
        ("odd.mkv", "matroska"),
        ("vp9.webm", "matroska"),
        ("mpeg4.avi", "avi"),
        ("stream.ts", "mpegts"),
    ],
)
def test_containers_are_known_by_content(media: Path, name: str, container: str) -> None:
    assert sniff_container(media / name) == container


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("zero.mp4", "empty_file"),
        ("text.mp4", "not_a_video"),
        ("page.mp4", "not_a_video"),
        ("playlist.mp4", "playlist"),
        ("concat.mp4", "playlist"),
        ("dash.mp4", "playlist"),
        ("polyglot.mp4", "playlist"),
        ("folder.mp4", "not_a_video"),
        ("absent.mp4", "missing"),
    ],
)
def test_others_are_refused(media: Path, name: str, kind: str) -> None:
    with pytest.raises(DecodeError) as caught:
        sniff_container(media / name)
    assert caught.value.kind == kind
