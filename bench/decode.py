"""64 frames of a long clip: ours against the readers that people use, and FFmpeg's full decode.

Two clips of camera content (`bench.clips`, x264's defaults, 1280x720, 30 a second): (a) one minute
in groups of 250 pictures, (b) ten minutes in groups of 60. All contenders run in turns, each from
the opening of the file to 64 RGB frames within 128*28*28 pixels (FFmpeg: to the end of the file,
pictures thrown away). Ours with one thread, which is what each of many workers has, and with two;
the others with as many as they take by themselves. Plain decord and PyAV stop at 64 full-size RGB
frames: no resize is counted.

    python -m bench.decode [--repeats 3] [--long-repeats 2] [--quick]
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import decord
import numpy as np
from qwen_vl_utils import vision_process

from bench.clips import FFMPEG, make_clip
from bench.harness import BUILD, Timing, time_in_turns, write_result
from strive.video.decode import decode_frames
from strive.video.frame_plan import DEFAULT_MAX_PIXELS, FramePlan
from strive.video.whole import probe

FRAMES = 64
MAX_PIXELS = DEFAULT_MAX_PIXELS["uniform"]
OURS = ("ours uniform", "ours keyframe", "ours uniform, 2 threads", "ours keyframe, 2 threads")
ONE_THREAD, THREADS = "ffmpeg 1 thread", "ffmpeg"
PACKAGES = ("av", "decord2", "torchcodec", "qwen-vl-utils", "imageio-ffmpeg", "torch")


def ours(path: Path, kind: str, threads: int = 1) -> int:
    """Decode and resize: on one thread as a worker of the offline stage, on more as evaluation."""
    plan = FramePlan(kind, FRAMES)
    return len(decode_frames(path, plan, max_pixels=MAX_PIXELS, threads=threads).frames_FHWC)


def qwen(path: Path, backend: str) -> int:
    """Read through qwen-vl-utils with one of its backends: its own threads and resize."""
    # The module reads the variable FORCE_QWENVL_VIDEO_READER into this name when it is imported.
    vision_process.FORCE_QWENVL_VIDEO_READER = backend
    video = {"video": str(path), "nframes": FRAMES, "max_pixels": MAX_PIXELS}
    return len(vision_process.fetch_video(video))


def plain_decord(path: Path) -> np.ndarray:
    """`get_batch` of the segment midpoints, decord's own number of threads."""
    reader = decord.VideoReader(str(path))
    index_F = (2 * np.arange(FRAMES) + 1) * len(reader) // (2 * FRAMES)
    return reader.get_batch(index_F.tolist()).asnumpy()


def wrong_pictures(path: Path) -> int:
    """Count decord's pictures that are not the ones asked for.

    It passes over frames in a loop that gives up after 10,000 looks at its decoding thread, and
    then returns the next frame that comes: the busier the machine, the more often.
    """
    right = decode_frames(path, FramePlan("uniform", FRAMES)).frames_FHWC
    pairs = zip(plain_decord(path), right, strict=True)
    return sum(float(np.abs(a.astype(np.int16) - b).mean()) > 3 for a, b in pairs)


def plain_pyav(path: Path, threads: int | None) -> int:
    """Decode from start to end and convert every n-th frame; None: PyAV's own threads."""
    with av.open(str(path)) as opened:
        stream = opened.streams.video[0]
        if threads is not None:
            stream.codec_context.thread_count = threads
        index_F = (2 * np.arange(FRAMES) + 1) * stream.frames // (2 * FRAMES)
        wanted = set(index_F.tolist())
        frames = [
            frame.to_ndarray(format="rgb24")
            for number, frame in enumerate(opened.decode(stream))
            if number in wanted
        ]
    return len(frames)


def ffmpeg_all(path: Path, threads: int | None) -> int:
    """Decode the whole file and drop it, as `ffmpeg -i FILE -f null -` does."""
    options = [] if threads is None else ["-threads", str(threads)]
    command = [FFMPEG, "-v", "error", *options, "-i", str(path), "-f", "null", "-"]
    subprocess.run(command, check=True)
    return FRAMES


def contenders(path: Path) -> dict[str, Callable[[], int]]:
    """Return every way to get the frames of one clip."""
    ways: dict[str, Callable[[], int]] = {
        "ours uniform": lambda: ours(path, "uniform"),
        "ours keyframe": lambda: ours(path, "keyframe"),
        "ours uniform, 2 threads": lambda: ours(path, "uniform", 2),
        "ours keyframe, 2 threads": lambda: ours(path, "keyframe", 2),
        "qwen-vl-utils torchcodec": lambda: qwen(path, "torchcodec"),
        "qwen-vl-utils decord": lambda: qwen(path, "decord"),
        "decord": lambda: len(plain_decord(path)),
        "pyav": lambda: plain_pyav(path, None),
        "pyav 1 thread": lambda: plain_pyav(path, 1),
        THREADS: lambda: ffmpeg_all(path, None),
        ONE_THREAD: lambda: ffmpeg_all(path, 1),
    }

    def checked(name: str) -> Callable[[], int]:
        def run() -> int:
            count = ways[name]()
            if count != FRAMES:
                raise SystemExit(f"{name} gave {count} of {FRAMES} frames of {path.name}")
            return count

        return run

    return {name: checked(name) for name in ways}


def measure(path: Path, repeats: int) -> dict[str, Any]:
    """Time all contenders on one clip, in turns."""
    timings = time_in_turns(contenders(path), repeats=repeats)
    source = probe(path)
    figures = {
        "clip": path.name,
        "frames_in_file": source.num_frames,
        "keyframes": len(source.keyframes_K),
        "bytes": path.stat().st_size,
        "repeats": repeats,
        "seconds": {name: timing.wall for name, timing in timings.items()},
        "cpu_seconds": {name: timing.cpu for name, timing in timings.items()},
    }
    show(path, timings)
    num_wrong = wrong_pictures(path)
    print(f"decord's get_batch gave {num_wrong} of {FRAMES} pictures that were not asked for")
    return figures | {"ratios": ratios(timings), "wrong_pictures_of_decord": num_wrong}


def ratios(timings: dict[str, Timing]) -> dict[str, float]:
    """Return how many times as fast as another each of ours is, by wall clock and by CPU."""
    found = {}
    readers = [name for name in timings if name not in (*OURS, THREADS, ONE_THREAD)]
    for mine in OURS:
        for measured in ("wall_seconds", "cpu_seconds"):
            seconds = {name: getattr(timing, measured) for name, timing in timings.items()}
            unit = measured.removesuffix("_seconds")
            best = min(seconds[name] for name in readers)
            found[f"{mine} / fastest other reader ({unit})"] = best / seconds[mine]
            found[f"{mine} / ffmpeg 1 thread ({unit})"] = seconds[ONE_THREAD] / seconds[mine]
            found[f"{mine} / ffmpeg ({unit})"] = seconds[THREADS] / seconds[mine]
    return found


def show(path: Path, timings: dict[str, Timing]) -> None:
    """Print one clip's table."""
    print(f"\n{path.name:28} {'seconds':>8} {'CPU s':>8}")
    for name, timing in sorted(timings.items(), key=lambda item: item[1].wall_seconds):
        print(f"{name:28} {timing.wall_seconds:8.2f} {timing.cpu_seconds:8.2f}")


def main() -> None:
    """Measure both clips and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="of clip (a)")
    parser.add_argument("--long-repeats", type=int, default=2, help="of clip (b)")
    parser.add_argument("--quick", action="store_true", help="clips a tenth as long; no result")
    arguments = parser.parse_args()
    part = 0.1 if arguments.quick else 1.0
    suffix = "-quick" if arguments.quick else ""
    folder = BUILD / "decode"
    minute = make_clip(folder / f"minute-gop250{suffix}.mp4", seconds=60 * part)
    long = make_clip(folder / f"ten-minutes-gop60{suffix}.mp4", seconds=600 * part, gop=60)
    # Once over a short clip, untimed: imports and first-use tables are nobody's decoding.
    for run in contenders(make_clip(folder / "warm-up.mp4", seconds=4)).values():
        run()
    figures = {
        "a": measure(minute, arguments.repeats),
        "b": measure(long, arguments.long_repeats),
    }
    against_ffmpeg = figures["a"]["ratios"]["ours uniform / ffmpeg 1 thread (wall)"]
    pair = "/ fastest other reader (wall)"
    against_readers = {
        name: figures["b"]["ratios"][f"ours keyframe{name} {pair}"] for name in ("", ", 2 threads")
    }
    for name, clip in figures.items():
        print(f"\nclip ({name}):")
        for pair, ratio in clip["ratios"].items():
            print(f"  {pair:48} {ratio:6.2f}")
    print(f"\n(a) uniform over ffmpeg's full decode, one thread each: {against_ffmpeg:.2f}", end="")
    print(" (at least 0.85 is wanted)")
    for name, ratio in against_readers.items():
        print(f"(b) keyframe{name} over the fastest other reader (its own threads): {ratio:.2f}")
    print("    (at least 5 is wanted)")
    if not arguments.quick:
        print(f"wrote {write_result('decode', figures, packages=PACKAGES)}", file=sys.stderr)


if __name__ == "__main__":
    main()
