import sys
from pathlib import Path

import pytest

# Helper modules of these tests are imported as `video.coded_clips` and so on.
sys.path.insert(0, str(Path(__file__).parents[1]))

from video import coded_clips as clips


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small real files, good and bad."""
    root = tmp_path_factory.mktemp("media")
    plain = clips.write_clip(root / "plain.mp4", 200, g=50)
    clips.write_clip(root / "short.mp4", 5)
    clips.write_clip(root / "one.mp4", 1)
    clips.write_clip(root / "odd.mkv", 20, size=(97, 131), pix_fmt="yuv444p")
    clips.write_clip(root / "bframes.mp4", 90, preset="medium", bf=3, g=30)
    clips.write_clip(root / "vp9.webm", 40, codec="libvpx-vp9", deadline="realtime")
    clips.write_clip(root / "mpeg4.avi", 60, codec="mpeg4", qscale=2)
    clips.write_clip(root / "stream.ts", 60)
    clips.write_clip(root / "ten_bit.mp4", 30, pix_fmt="yuv420p10le")
    clips.write_vfr(root / "vfr.mp4", 80)
    for degrees in (90, 180, 270):
        clips.remux(plain, root / f"rotated{degrees}.mp4", display_rotation=degrees)
    # Begins between keyframes: the edit list hides what is decoded before the cut.
    clips.remux(plain, root / "cut.mp4", ss=1.0)
    clips.write_audio(root / "audio.m4a").rename(root / "audio.mp4")
    front = clips.write_clip(root / "front.mp4", 200, movflags="+faststart", g=50)
    (root / "truncated.mp4").write_bytes(front.read_bytes()[: front.stat().st_size // 2])
    (root / "no_index.mp4").write_bytes(plain.read_bytes()[: plain.stat().st_size // 2])
    (root / "zero.mp4").touch()
    (root / "text.mp4").write_text("This is not a video.\n" * 100)
    (root / "page.mp4").write_text("<!DOCTYPE html><html><body>404</body></html>")
    (root / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n")
    (root / "concat.mp4").write_text("ffconcat version 1.0\nfile plain.mp4\n")
    (root / "dash.mp4").write_text("<?xml version='1.0'?><MPD xmlns='x'></MPD>")
    # A mark of DASH behind NULs, where FFmpeg does not look for it.
    (root / "polyglot.mp4").write_bytes(b"\0\0\0\x18ftypisom" + b"\0" * 40 + b"<MPD xmlns='x'>")
    (root / "folder.mp4").mkdir()
    return root
