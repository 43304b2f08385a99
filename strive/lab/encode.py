"""Writes a scene as a real video file, with ffmpeg-python driving imageio-ffmpeg's own binary."""

import os
from pathlib import Path

import numpy as np

from strive.errors import DiskError
from strive.lab.render import render_slots
from strive.lab.scene import Scene

_CODEC_ARGUMENTS: dict[str, dict[str, str | int]] = {
    "h264": {"vcodec": "libx264", "preset": "veryfast", "crf": 18, "g": 48},
    "hevc": {
        "vcodec": "libx265",
        "preset": "ultrafast",
        "crf": 18,
        "tag:v": "hvc1",
        "x265-params": "log-level=none:pools=none:frame-threads=1",
    },
    "vp9": {"vcodec": "libvpx-vp9", "crf": 24, "b:v": 0, "deadline": "realtime", "cpu-used": 8},
    "av1": {
        "vcodec": "libsvtav1",
        "preset": 12,
        "crf": 24,
        "svtav1-params": "lp=1",
    },
}
_SUFFIX = {"h264": ".mp4", "hevc": ".mp4", "vp9": ".webm", "av1": ".mp4"}


def clip_file_name(scene: Scene) -> str:
    """Return the clip's file name, such as `000012.mp4`; VP9 clips are WebM files."""
    return f"{scene.clip:06d}{_SUFFIX[scene.codec]}"


def frame_rate_fraction(fps: float) -> str:
    """Return a frame rate as FFmpeg writes it exactly: `25` or `30000/1001`."""
    return str(int(fps)) if float(fps).is_integer() else f"{round(fps * 1001)}/1001"


def encode_clip(scene: Scene, path: Path) -> None:
    """Render the scene frame by frame and encode it to `path`, atomically.

    Raises:
        DiskError: FFmpeg could not write the file.
    """
    # Here, so that training on a world that is there needs no encoder.
    import ffmpeg
    import imageio_ffmpeg

    slots_N = scene.slot_of_frames()
    shown, look_N = np.unique(slots_N, return_inverse=True)
    looks_U = render_slots(scene, shown, height=scene.height, width=scene.width)
    pixels = looks_U[look_N].tobytes()
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    stream = ffmpeg.input(
        "pipe:",
        format="rawvideo",
        pix_fmt="rgb24",
        s=f"{scene.width}x{scene.height}",
        framerate=frame_rate_fraction(scene.fps),
    )
    stream = stream.output(
        str(temporary),
        pix_fmt="yuv420p",
        threads=1,
        map_metadata=-1,
        fflags="+bitexact",
        **{"flags:v": "+bitexact", **_CODEC_ARGUMENTS[scene.codec]},
    )
    stream = stream.global_args("-hide_banner", "-loglevel", "error")
    try:
        stream.run(
            cmd=imageio_ffmpeg.get_ffmpeg_exe(),
            input=pixels,
            capture_stdout=True,
            capture_stderr=True,
            overwrite_output=True,
        )
    except ffmpeg.Error as error:
        detail = (error.stderr or b"").decode(errors="replace").strip().splitlines()[-1:]
        temporary.unlink(missing_ok=True)
        raise DiskError(f"cannot encode {path}: {' '.join(detail) or error}") from None
    os.replace(temporary, path)
