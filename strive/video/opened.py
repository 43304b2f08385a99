"""Opening a local file with PyAV: no network, no other file, and packets as they come."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
import av.logging
from av.codec.context import Flags
from av.sidedata import sidedata
from av.stream import Disposition

from strive.errors import DecodeError, first_line
from strive.video.containers import FORMAT_WHITELIST, IMAGE_ROWS, begins_like_a_video

# FFmpeg's own messages would go to the terminal past the progress bar; errors come as exceptions.
av.logging.set_level(av.logging.PANIC)


def _unknown_side_data(cls: type[sidedata.Type], value: Any) -> sidedata.Type:
    member = object.__new__(cls)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return member


# Side data of a kind that PyAV has no name for (EXIF of JPEG) would else keep a picture from being
# asked for any: not even for the matrix that turns it.
sidedata.Type._missing_ = classmethod(_unknown_side_data)  # type: ignore[assignment]

MAX_SOURCE_PIXELS = 8192 * 8192
# No network, no playlists, no data: URLs; file is the only protocol that may be opened, by none but
# the demuxers that were found to open nothing else.
LOCAL_FILES_ONLY = {"protocol_whitelist": "file", "format_whitelist": FORMAT_WHITELIST}

Cropping = tuple[int, ...]
"""Pixels to leave out of a stored picture: left, right, top, bottom."""


@contextmanager
def open_container(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a local file.

    Raises:
        DecodeError: `not_a_video`, no demuxer that is taken knows it; `undecodable`.
    """
    try:
        # "file:" keeps a name such as `concat:a|b` from being read as a protocol.
        opened = av.open(
            f"file:{path.absolute()}", options=LOCAL_FILES_ONLY, metadata_errors="replace"
        )
    except (av.error.ArgumentError, av.error.InvalidDataError) as error:
        if begins_like_a_video(path):
            raise DecodeError(
                "undecodable",
                f"{path.name} begins like a video, but its index or header cannot be read "
                f"({error_text(error)})",
            ) from None
        raise DecodeError(
            "not_a_video",
            f"{path.name} opens as none of the containers of video that are taken; {IMAGE_ROWS}",
        ) from None
    except (av.error.FFmpegError, UnicodeError) as error:
        raise DecodeError("undecodable", f"{path.name}: {error_text(error)}") from None
    with opened:
        try:
            yield opened
        except (av.error.FFmpegError, UnicodeError) as error:
            raise DecodeError("undecodable", f"{path.name}: {error_text(error)}") from None


def error_text(error: BaseException) -> str:
    """Return an error's first line without the path that FFmpeg appends."""
    return first_line(error).split("; last error log")[0].split(": 'file:")[0]


def video_stream(opened: av.container.InputContainer, name: str) -> av.VideoStream:
    """Return the stream that FFmpeg calls best, its decoder set to one thread.

    Raises:
        DecodeError: `no_video_stream`, `undecodable` (no decoder) or `too_large`.
    """
    stream = opened.streams.best("video")
    if not isinstance(stream, av.VideoStream):
        raise DecodeError("no_video_stream", f"{name} has no video stream")
    if stream.disposition & Disposition.attached_pic:
        raise DecodeError("no_video_stream", f"{name} has a cover picture and no video stream")
    context = stream.codec_context
    if context is None:
        raise DecodeError("undecodable", f"{name}: no decoder for its codec")
    if context.width * context.height > MAX_SOURCE_PIXELS:
        raise DecodeError(
            "too_large",
            f"{name} is {context.width}x{context.height}; "
            f"at most {MAX_SOURCE_PIXELS} pixels a frame are decoded",
        )
    # Many processes, one thread each; with one thread a packet is decoded before the next is read,
    # so that `skip_frame` applies to the packet for which it was set.
    context.thread_count = 1
    context.copy_opaque = True  # each picture tells the packet that it came from
    context.flags |= Flags.unaligned  # crop to the pixel, also on the left
    context.options = {"max_pixels": str(MAX_SOURCE_PIXELS)}  # whatever the container says
    return stream


def stated_cropping(opened: av.container.InputContainer, stream: av.VideoStream) -> Cropping | None:
    """Return how a container (Matroska's `PixelCrop...`, MP4's `clap`) has pictures cropped.

    Players do that, decoders do not. PyAV passes it on in FFmpeg's description of a file alone.
    """
    av.logging.set_level(av.logging.INFO)
    text = opened.dumps_format()  # type: ignore[attr-defined] # its stubs lack it
    av.logging.set_level(av.logging.PANIC)
    own = rf"^ +Stream #0:{stream.index}\b(?:(?!^ +Stream #).)*?"
    sides = r"^ +Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)$"
    found = re.search(own + sides, text, re.MULTILINE | re.DOTALL)
    return None if found is None else tuple(map(int, found.groups()))


def report_damage(stream: av.VideoStream) -> None:
    """Have damaged picture data be an error; FFmpeg would conceal it with what is around it."""
    context = stream.codec_context
    context.options = {**context.options, "err_detect": "explode"}


def packets_of(
    opened: av.container.InputContainer, *streams: av.stream.Stream
) -> Iterator[av.Packet]:
    """Yield packets of some streams (none: of all) from where the container stands, as stored.

    Raises:
        av.error.FFmpegError: the file cannot be read on.
    """
    has_read = True
    while has_read:
        has_read = False
        try:
            for packet in opened.demux(*streams):
                has_read = True
                if packet.size:  # not the empty ones that PyAV adds at the end
                    yield packet
            return
        except IndexError:
            continue  # a packet of a stream that began late, which PyAV does not know
