"""A look at a file's first bytes before any decoder opens it.

FFmpeg-based decoders choose a demuxer by content, and some demuxers (HLS, DASH, concat) open other
files and network addresses. decord and torchcodec take no list of those that may serve, so whatever
begins like a playlist or manifest is refused here.
"""

import stat
from pathlib import Path

from strive.errors import DecodeError

_PROBED_BYTES = 1 << 20  # FFmpeg looks no further for what a file is
_PLAYLIST_PREFIXES = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"#EXTINF")
# DASH and Smooth Streaming are recognised by FFmpeg anywhere in the probed head.
_MANIFEST_MARKS = (b"<mpd", b"<smoothstreamingmedia", b"<asx", b"<smil")

_KNOWN_BEGINNINGS = (b"\x1a\x45\xdf\xa3", b"FLV", b"0&\xb2u\x8ef\xcf\x11", b"OggS")
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
IMAGE_ROWS = "a record of an image says data_type: image, and is passed over"
_STILL_BRANDS = (b"avif", b"heic", b"heix", b"mif1")  # of an MP4 that holds one picture


def check_first_bytes(path: Path) -> None:
    """Refuse what is no file with a video in it, as far as its first bytes show.

    Raises:
        DecodeError: `missing`, `unreadable`, `empty_file`, `playlist` or `not_a_video`.
    """
    head = _first_bytes(path)
    if not head:
        raise DecodeError("empty_file", f"{path} has no bytes")
    # In text, FFmpeg finds a manifest however far behind the beginning; a NUL ends the text. The
    # title of a video may hold any of the marks.
    lowered = head.partition(b"\0")[0].lower()
    stripped = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if stripped.startswith(_PLAYLIST_PREFIXES) or any(mark in lowered for mark in _MANIFEST_MARKS):
        raise DecodeError(
            "playlist", f"{path} is a playlist or manifest, which may name other files or addresses"
        )
    if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS:
        raise DecodeError(
            "not_a_video",
            f"{path} is a still image; {IMAGE_ROWS}",
        )


def begins_like_a_video(path: Path) -> bool:
    """Whether a file that no demuxer opens begins like a container of video all the same."""
    with path.open("rb") as file:
        head = file.read(12)
    return head.startswith(_KNOWN_BEGINNINGS) or head[4:8] in _MP4_BOXES or head[8:12] == b"AVI "


def _first_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DecodeError("missing", f"no file at {path}") from None
    except (OSError, ValueError) as error:
        # A loop of links, a name that is too long, one with a NUL byte.
        shown = f"{path!s:.200}"
        raise DecodeError("missing", f"no file can be at {shown!r}: {_reason(error)}") from None
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
        raise DecodeError("not_a_video", f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            return file.read(_PROBED_BYTES)
    except OSError as error:
        raise DecodeError("unreadable", f"{path}: {error.strerror}") from None


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
