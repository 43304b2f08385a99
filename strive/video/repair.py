"""Repair of a file that no decoder opens: its packets copied into a fresh container, or re-encoded.

Only on the user's explicit wish (`--repair`), and never in place. A repair does not invent: a file
that was cut in half becomes a video of its first half. Re-encoding leaves out the pictures that
FFmpeg reports as damaged and may show a trace of the damage in those that build on them, up to the
next keyframe; the row of such a video says `transcoded`.
"""

import functools
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import ffmpeg
import imageio_ffmpeg

from strive.errors import DecodeError
from strive.video.containers import LOCAL_FILES_ONLY, MAX_SOURCE_PIXELS, check_first_bytes
from strive.video.worker import die_with_parent

# What a fresh container or encoding may cure. Not a file that is no video at all, lies outside the
# root, names other files, or took too long or too much memory.
REPAIRABLE_KINDS = frozenset(
    (
        *("undecodable", "damaged", "incomplete", "frames_missing", "frame_count"),
        *("wrong_picture", "no_frames"),
    )
)
DEFAULT_TIMEOUT_SECONDS = 3600.0  # the limit on the whole job usually ends it earlier
# A transcode larger than this is given up: about two hours of 1080p.
MAX_REPAIR_BYTES = 16 << 30


def repaired_copies(
    path: Path, folder: Path, *, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
) -> Iterator[tuple[Path, str]]:
    """Yield repaired copies of a video's picture stream, the gentler first: (file, how).

    `how` is `remuxed` (the same pictures in a fresh container), then `transcoded` (H.264 4:4:4 at
    high quality; every frame that decodes once, with its stamp). The next is only made when the
    caller asks for it, and then the one before is removed; the caller removes `folder`.

    Raises:
        DecodeError: `timeout`; or the first bytes are no container's (as `check_first_bytes`).
    """
    check_first_bytes(path)
    for how, copy, command_for in (
        ("remuxed", folder / "remuxed.mkv", _remux),
        ("transcoded", folder / "transcoded.mp4", _transcode),
    ):
        command = command_for(path, copy)
        if _run(command, folder, timeout_seconds) and copy.is_file():
            yield copy, how
        copy.unlink(missing_ok=True)


def _remux(path: Path, copy: Path) -> list[str]:
    with path.open("rb") as file:
        is_avi = file.read(12)[8:] == b"AVI "
    source = _input(path, fflags="+genpts+ignidx" if is_avi else "+genpts")
    return _command(source, copy, "matroska", vcodec="copy")


def _transcode(path: Path, copy: Path) -> list[str]:
    source = _input(path, fflags="+genpts", err_detect="explode", threads=1)
    return _command(
        *(source, copy, "mp4"),
        vcodec="libx264",
        preset="veryfast",
        crf=12,
        pix_fmt="yuv444p",  # odd sizes too, and no colour is lost
        threads=1,
        fps_mode="passthrough",  # no frame twice, none left out
        enc_time_base="demux",
        video_track_timescale=90000,
    )


def _input(path: Path, **options: object) -> ffmpeg.nodes.FilterableStream:
    # Local files alone: nothing that a file says opens others.
    return ffmpeg.input(
        f"file:{path.absolute()}", **LOCAL_FILES_ONLY, max_pixels=MAX_SOURCE_PIXELS, **options
    )


def _command(
    source: ffmpeg.nodes.FilterableStream, copy: Path, container: str, **options: object
) -> list[str]:
    output = source.output(
        f"file:{copy}", format=container, an=None, sn=None, dn=None, map_metadata=-1, **options
    )
    arguments = ("-nostdin", "-hide_banner", "-loglevel", "error", "-y")
    return list(output.global_args(*arguments).compile(cmd=imageio_ffmpeg.get_ffmpeg_exe()))


def _run(command: list[str], folder: Path, timeout_seconds: float) -> bool:
    """Run ffmpeg; it ends with this process, or when the time is over."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        preexec_fn=functools.partial(_limit_child, os.getpid()),
    )
    try:
        return process.wait(timeout_seconds) == 0
    except subprocess.TimeoutExpired:
        raise DecodeError("timeout", f"repair took over {timeout_seconds:g} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _limit_child(parent_pid: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_REPAIR_BYTES, MAX_REPAIR_BYTES))
    die_with_parent(parent_pid)
