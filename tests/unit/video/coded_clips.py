"""Real video files whose frames carry their own number, so that a test can read back which it got.

A frame is a 4x4 grid of grey squares: 12 bits of the frame number (white or black), and a top row
of known squares that tells which way is up.
"""

from pathlib import Path
from typing import Any

import ffmpeg
import imageio_ffmpeg
import numpy as np

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
NUM_BITS = 12
# The top row of the grid: white, black, black, grey. No rotation or mirror image looks the same.
TOP_ROW = (255, 0, 0, 128)


def draw(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Draw one frame."""
    bits = [255 if number >> bit & 1 else 0 for bit in range(NUM_BITS)]
    grid_44 = np.array([*TOP_ROW, *bits], np.uint8).reshape(4, 4)
    rows = np.arange(height) * 4 // height
    columns = np.arange(width) * 4 // width
    return np.repeat(grid_44[rows][:, columns, None], 3, axis=2)


def number_of(frame_HWC: np.ndarray) -> int:
    """Read a frame's number; fails if the picture is not upright."""
    height, width = frame_HWC.shape[:2]
    grid_44 = np.empty((4, 4))
    for row in range(4):
        for column in range(4):
            # The middle half of each square, clear of blur at its edges.
            top, left = (4 * row + 1) * height // 16, (4 * column + 1) * width // 16
            bottom, right = (4 * row + 3) * height // 16, (4 * column + 3) * width // 16
            square = frame_HWC[top : max(bottom, top + 1), left : max(right, left + 1)]
            grid_44[row, column] = square.mean()
    assert np.abs(grid_44[0] - TOP_ROW).max() < 50, f"not upright: {grid_44[0]}"
    bits = grid_44[1:].ravel() > 127
    return int(sum(1 << bit for bit in range(NUM_BITS) if bits[bit]))


def numbers_of(frames_FHWC: np.ndarray) -> list[int]:
    """Read the numbers of several frames."""
    return [number_of(frame) for frame in frames_FHWC]


def write_clip(
    path: Path,
    num_frames: int,
    *,
    fps: float = 25,
    size: tuple[int, int] = (96, 128),
    codec: str = "libx264",
    **output: Any,
) -> Path:
    """Encode a clip of numbered frames; `output` are further options of ffmpeg."""
    height, width = size
    frames = np.stack([draw(number, height, width) for number in range(num_frames)])
    output = {"pix_fmt": "yuv420p", "vcodec": codec, "threads": 1, **output}
    if codec == "libx264":
        output = {"preset": "ultrafast", **output}
    (
        ffmpeg.input(
            "pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=fps
        )
        .output(str(path), **output)
        .overwrite_output()
        .global_args("-loglevel", "error")
        .run(cmd=FFMPEG, input=frames.tobytes())
    )
    return path


def remux(source: Path, path: Path, *arguments: str, **inputs: object) -> Path:
    """Copy a clip's streams into another file, with input options such as `display_rotation`."""
    (
        ffmpeg.input(str(source), **inputs)
        .output(str(path), c="copy")
        .overwrite_output()
        .global_args("-loglevel", "error", *arguments)
        .run(cmd=FFMPEG)
    )
    return path


def write_vfr(path: Path, num_frames: int) -> Path:
    """Encode a clip of a variable frame rate: 25 a second in its first half, then 10."""
    half = num_frames / 2
    stamp = f"if(lt(N,{half}),N/25,{half}/25+(N-{half})/10)/TB"
    output = {"vf": f"settb=1/1000,setpts='{stamp}'", "fps_mode": "vfr", "enc_time_base": "1/1000"}
    return write_clip(path, num_frames, **output)


def write_audio(path: Path) -> Path:
    """Write a file with sound alone."""
    (
        ffmpeg.input("sine=frequency=440:duration=1", f="lavfi")
        .output(str(path))
        .overwrite_output()
        .global_args("-loglevel", "error")
        .run(cmd=FFMPEG)
    )
    return path


def write_moving(path: Path, num_frames: int, *, codec: str = "libx264", **output: Any) -> Path:
    """Encode pictures of which no two are alike, in colour: a zoom into a fractal, with noise."""
    (
        ffmpeg.input("mandelbrot=s=160x96:r=25", f="lavfi")
        .filter("noise", alls=8, allf="t")
        .output(
            str(path),
            vframes=num_frames,
            **{"vcodec": codec, "pix_fmt": "yuv420p", "threads": 1, **output},
        )
        .overwrite_output()
        .global_args("-loglevel", "error")
        .run(cmd=FFMPEG, capture_stderr=True)  # an encoder's banner ignores -loglevel
    )
    return path


def shown_by_ffmpeg(path: Path, height: int = 96, width: int = 128) -> np.ndarray:
    """Decode all of a file with FFmpeg's own program: what it shows, uint8 [N, H, W, 3]."""
    output = ffmpeg.input(f"file:{path}").output(
        "pipe:", format="rawvideo", pix_fmt="rgb24", fps_mode="passthrough", map="0:v:0"
    )
    out, _ = output.global_args("-loglevel", "quiet").run(cmd=FFMPEG, capture_stdout=True)
    frame_bytes = height * width * 3
    whole = len(out) // frame_bytes * frame_bytes
    return np.frombuffer(out[:whole], np.uint8).reshape(-1, height, width, 3)
