"""A look at a file's first bytes before any decoder opens it.

FFmpeg-based decoders choose a demuxer by content, not by name, and some demuxers (HLS, DASH,
concat) open other files and network addresses. decord takes no protocol whitelist, so only files
that begin like a self-contained media container are let through.
"""

import stat
from pathlib import Path

from strive.errors import DecodeError

_HEAD_BYTES = 4096
_MP4_BOXES = (
    *(b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"),
    *(b"pnot", b"styp", b"uuid", b"pdin"),
)
_PREFIXES = (
    (b"\x1a\x45\xdf\xa3", "matroska"),
    (b"FLV", "flv"),
    (b"0&\xb2u\x8ef\xcf\x11", "asf"),
    (b"OggS", "ogg"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"\x00\x00\x01\xb3", "mpegvideo"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"YUV4MPEG2", "yuv4mpegpipe"),
)
_PLAYLIST_PREFIXES = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"#EXTINF")
# DASH and Smooth Streaming are recognised by FFmpeg anywhere in the probed head.
_MANIFEST_MARKS = (b"<mpd", b"<smoothstreamingmedia", b"<asx", b"<smil")


def sniff_container(path: Path) -> str:
    """Return FFmpeg's name of the container that a file's first bytes show.

    Raises:
        DecodeError: `missing`, `unreadable`, `empty_file`, `playlist` or `not_a_video`.
    """
    head = _first_bytes(path)
    if not head:
        raise DecodeError("empty_file", f"{path} has no bytes")
    lowered = head.lower()
    stripped = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if stripped.startswith(_PLAYLIST_PREFIXES) or any(mark in lowered for mark in _MANIFEST_MARKS):
        raise DecodeError(
            "playlist", f"{path} is a playlist or manifest, which may name other files or addresses"
        )
    container = _container_of(head)
    if container is None:
        raise DecodeError("not_a_video", f"{path} does not begin like any known video container")
    return container


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
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise DecodeError("unreadable", f"{path}: {error.strerror}") from None


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _container_of(head: bytes) -> str | None:
    if head[4:8] in _MP4_BOXES:
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    for prefix, container in _PREFIXES:
        if head.startswith(prefix):
            return container
    # MPEG-TS: a sync byte every 188 bytes (192 with the time code of Blu-ray's M2TS).
    for first, packet in ((0, 188), (4, 192)):
        marks = head[first : first + 5 * packet : packet]
        if len(marks) >= 3 and set(marks) == {0x47}:
            return "mpegts"
    return None
