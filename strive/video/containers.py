"""A file's kind, by its bytes, and opening it: no network, no other file, packets as they come.

FFmpeg's demuxers choose themselves by content, and some (HLS, DASH, concat) open other files and
network addresses; none says how many bytes a file should have, nor compares Matroska's checksums.
That is done here; all else they tell.
"""

import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.container
import av.error
import av.logging
from av.codec.context import Flags
from av.sidedata import sidedata
from av.stream import Disposition

from strive.errors import DecodeError, first_line

# Taken is what holds pictures that move in one local file. Refused is what opens other files or
# addresses (playlists, manifests, patterns of names), what is no file (devices, filters), still
# images, text drawn as pictures, raw pictures whose size a name would have to tell, and what holds
# sound or words alone; a test names all of those.
TAKEN = frozenset(
    """
    3g2 3gp 3dostr 4xm alp amv anm apng apv argo_brp argo_cvg asf asf_o av1 avi avs avs2 avs3
    bethsoftvid bfi bink bmv c93 cavsvideo cdg cdxl cine dcstr derf dfa dhav dirac dnxhd dsicin
    dv dxa ea ea_cdata evc film_cpk filmstrip flic flv frm gdv gif gxf h261 h263 h264 hevc hnm
    hxvs idcin iff ifv ingenient ipmovie ipu iss iv8 ivf ivr jpegxl_anim jv kux lmlm4 luodat lvf
    lxf m4v matroska webm mgsts mjpeg mjpeg_2000 mlv mm mods moflex mov mp4 m4a mj2 mpeg mpegts
    mpegvideo msnwctcp mtv mv mvi mxf mxg nc nsv nut nuv obu ogg paf pdv pmp psxstr pva r3d rl2
    rm roq rpl ser sga siff simbiosis_imx smjpeg smk smush swf thp tiertexseq tmv ty usm vc1
    vc1test vidc vividas vivo vmd vvc wc3movie wtv wsvqa xmd xmv yop yuv4mpegpipe webp_anim
    live_flv
    """.split()  # noqa: SIM905 - a list of 140 quoted names would not be read
)

# --- first bytes --------------------------------------------------------------------------------

_HEAD_BYTES = 1 << 16
_PROBED_BYTES = 1 << 20  # FFmpeg looks no further for what a file is
_PLAYLIST_PREFIXES = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"#EXTINF")
# DASH and Smooth Streaming are recognised by FFmpeg anywhere in the probed head.
_MANIFEST_MARKS = (b"<mpd", b"<smoothstreamingmedia", b"<asx", b"<smil")

_KNOWN_BEGINNINGS = (b"\x1a\x45\xdf\xa3", b"FLV", b"0&\xb2u\x8ef\xcf\x11", b"OggS")
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
IMAGE_ROWS = "a record of an image says data_type: image, and is passed over"
_STILL_BRANDS = (b"avif", b"heic", b"heix", b"mif1")  # of an MP4 that holds one picture


def check_first_bytes(path: Path) -> None:
    """Refuse files without a video in them, as far as their first bytes show.

    Raises:
        DecodeError: `missing`, `unreadable`, `empty_file`, `playlist` or `not_a_video`.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DecodeError("missing", f"no file at {path}") from None
    except (OSError, ValueError) as error:
        # A loop of links, a name that is too long, one with a NUL byte.
        reason = getattr(error, "strerror", None) or error
        raise DecodeError("missing", f"no file can be at {str(path)[:200]!r}: {reason}") from None
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
        raise DecodeError("not_a_video", f"{path} is not a regular file")
    try:
        with path.open("rb") as file:
            head = file.read(_PROBED_BYTES)
    except OSError as error:
        raise DecodeError("unreadable", f"{path}: {error.strerror}") from None
    if not head:
        raise DecodeError("empty_file", f"{path} has no bytes")
    # decord and torchcodec take no list of demuxers that may serve, so whatever begins like a
    # playlist or manifest is refused here, before any decoder opens it. In text, FFmpeg finds a
    # manifest however far behind the beginning; a NUL ends the text. The title of a video may hold
    # any of the marks.
    lowered = head.partition(b"\0")[0].lower()
    stripped = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if stripped.startswith(_PLAYLIST_PREFIXES) or any(mark in lowered for mark in _MANIFEST_MARKS):
        raise DecodeError(
            "playlist", f"{path} is a playlist or manifest, which may name other files or addresses"
        )
    if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS:
        raise DecodeError("not_a_video", f"{path} is a still image; {IMAGE_ROWS}")


def begins_like_a_video(path: Path) -> bool:
    """Whether a file that no demuxer opens begins like a container of video all the same."""
    with path.open("rb") as file:
        head = file.read(12)
    return head.startswith(_KNOWN_BEGINNINGS) or head[4:8] in _MP4_BOXES or head[8:12] == b"AVI "


# --- opening ------------------------------------------------------------------------------------

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
LOCAL_FILES_ONLY = {"protocol_whitelist": "file", "format_whitelist": ",".join(sorted(TAKEN))}

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

    Players do that, decoders do not.
    """
    # PyAV passes it on in FFmpeg's description of a file alone.
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


# --- where the pictures end as stated -------------------------------------------------------------


def stated_bytes(path: Path, container: str) -> tuple[int, int | None] | None:
    """Return where the pictures of a file begin, and where they end as its header states.

    The end is None where this file does not state it. None for a container that never does.
    """
    if container not in _STATED_BYTES:
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        return _STATED_BYTES[container](file, size)


def _boxes_of(file: BinaryIO, size: int) -> list[tuple[bytes, int, int]]:
    """Return a file's top boxes while they follow one another: (kind, first byte, stated end)."""
    found, at = [], 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:  # to the end of the file
            length = size - at
        if length < 8:
            break
        found.append((kind, at, at + length))
        at += length
    return found


def _mov_bytes(file: BinaryIO, size: int) -> tuple[int, int | None]:
    """Return where the pictures begin and where they end as stated: None if nothing is stated.

    What is appended behind the last box of pictures is no concern; fragments state nothing.
    """
    boxes = _boxes_of(file, size)
    if any(kind == b"moof" for kind, _, _ in boxes):
        return 0, None
    return 0, max((end for kind, _, end in boxes if kind == b"mdat"), default=None)


def _matroska_bytes(file: BinaryIO, size: int) -> tuple[int, int | None]:
    bounds = _segment(file)
    return 0, None if bounds is None else bounds[1]


def _avi_bytes(file: BinaryIO, size: int) -> tuple[int, int | None]:
    """A long file has several lists of pictures, in one RIFF part each."""
    at, start, end = 0, 0, None
    while True:
        kind, length, form = _chunk(file, at)
        if kind != b"RIFF" or form not in (b"AVI ", b"AVIX") or not 0 < length < 0xFFFFFFFF:
            return start, end
        end, inner = at + 8 + length, at + 12
        while inner + 12 <= min(end, size):
            kind, inner_length, form = _chunk(file, inner)
            if kind == b"LIST" and form == b"movi":
                start = start or inner
                # Within its part: recorders write any size that they did not come to fill in.
                end = min(end, inner + 8 + inner_length) if inner_length > 4 else end
                break
            inner += 8 + inner_length + inner_length % 2
        at += 8 + length + length % 2


def _chunk(file: BinaryIO, at: int) -> tuple[bytes, int, bytes]:
    file.seek(at)
    head = file.read(12)
    return head[:4], int.from_bytes(head[4:8], "little"), head[8:]


# ASF's File Properties Object, and the flag of a broadcast (its sizes mean nothing).
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_BROADCAST = 1


def _asf_bytes(file: BinaryIO, size: int) -> tuple[int, int | None]:
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    at = head.find(_ASF_FILE_PROPERTIES)
    if at < 0 or at + 92 > len(head):
        return 0, None
    (header_bytes,) = struct.unpack_from("<Q", head, 16)
    (stated,) = struct.unpack_from("<Q", head, at + 40)
    (flags,) = struct.unpack_from("<I", head, at + 88)
    return header_bytes, None if flags & _ASF_BROADCAST else stated


def _flv_bytes(file: BinaryIO, size: int) -> tuple[int, int | None]:
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    at = head.find(b"filesize\x00")  # a number of the file's own metadata
    if at < 0 or at + 17 > len(head):
        return 0, None
    (stated,) = struct.unpack_from(">d", head, at + 9)
    return 0, int(stated) if 0 < stated < 2**53 else None


_STATED_BYTES: dict[str, Callable[[BinaryIO, int], tuple[int, int | None]]] = {
    "mov": _mov_bytes,
    "matroska": _matroska_bytes,
    "flv": _flv_bytes,
    "avi": _avi_bytes,
    "asf": _asf_bytes,
}


def breaks_off(path: Path, pid: int) -> tuple[bool, bool]:
    """Whether a transport stream ends within a packet, and within a picture of its stream `pid`.

    Packets lie 188, 192 or 204 bytes apart and begin with 0x47, whatever lies in front of them all.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 9 * 204))
        tail = file.read()
    for at in range(len(tail) - 1, max(len(tail) - 188, 7 * 204), -1):
        if any(set(tail[at - 7 * step : at + 1 : step]) == {0x47} for step in (188, 192, 204)):
            head = int.from_bytes(tail[at : at + 4].ljust(4, b"\0"), "big")
            # It is of that stream, begins nothing new, and holds something.
            return True, (head >> 8 & 0x1FFF, head & 0x400010) == (pid, 0x10)
    return False, False


# --- Matroska and WebM (RFC 9559): sizes that chain, and checksums -------------------------------

# A file is an EBML header and a segment; a segment is a row of elements, most of them clusters of
# frames. An element is an id, a size and its content, and may begin with a CRC-32 of its rest.
_EBML = 0x1A45DFA3
_SEGMENT = 0x18538067
_CLUSTER = 0x1F43B675
_CRC_32 = 0xBF
_MAX_CHECKED_BYTES = 64 << 20  # of one element; FFmpeg's clusters have 5 MiB at most


def damaged_ranges(path: Path) -> tuple[tuple[int, int], ...]:
    """Return the clusters whose content differs from their checksum: (first byte, end)."""
    found = []
    with path.open("rb") as file:
        at, end = _segment(file) or (0, 0)
        end = min(end, path.stat().st_size)
        while at < end:
            file.seek(at)
            element = _header(file.read(12), 0)
            kind, length, header_bytes = element or (0, None, 0)
            if length is None:
                break  # written live, or lost: nothing after this can be followed
            start, at = at + header_bytes, at + header_bytes + length
            if kind == _CLUSTER and length <= _MAX_CHECKED_BYTES and at <= end:
                file.seek(start)
                if not _agrees(file.read(length)):
                    found.append((start, at))
    return tuple(found)


def _segment(file: BinaryIO) -> tuple[int, int] | None:
    """Return where the segment's content begins and ends; None if unknown."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    ebml = _header(head, 0)
    if ebml is None or ebml[0] != _EBML or ebml[1] is None:
        return None
    at = ebml[2] + ebml[1]
    segment = _header(head, at)
    if segment is None or segment[0] != _SEGMENT or segment[1] is None:
        return None
    return at + segment[2], at + segment[2] + segment[1]


def _header(data: bytes, at: int) -> tuple[int, int | None, int] | None:
    """Return an element's id, size (None: unknown) and bytes of both; None if there is none."""
    if at >= len(data) or data[at] < 0x10:
        return None
    id_bytes = 9 - data[at].bit_length()
    kind = int.from_bytes(data[at : at + id_bytes], "big")
    at += id_bytes
    if at >= len(data) or data[at] == 0:
        return None
    num_bytes = 9 - data[at].bit_length()
    mask = (1 << 7 * num_bytes) - 1
    length = int.from_bytes(data[at : at + num_bytes], "big") & mask
    return kind, (None if length == mask else length), id_bytes + num_bytes


def _agrees(data: bytes) -> bool:
    """Whether an element agrees with the checksum at its beginning, if it has one."""
    first = _header(data, 0)
    if first is None or first[0] != _CRC_32 or first[1] != 4:
        return True
    stated = int.from_bytes(data[first[2] : first[2] + 4], "little")
    return zlib.crc32(memoryview(data)[first[2] + 4 :]) == stated


# --- rows of before orientations and cropping were known ----------------------------------------

_MOVIE_HEAD_BYTES = 1 << 20  # headers of tracks come before their tables, mostly
_IDENTITY = (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
# Where the matrix lies behind a box's name, by the box's version.
_MATRIX_AT = {b"mvhd": (36, 48), b"tkhd": (40, 52)}
_PIXEL_CROP = re.compile(rb"\x54[\xaa\xbb\xcc\xdd][\x81-\x88]")  # four ids, with a size


def may_crop(path: Path) -> bool:
    """Whether a file is a Matroska file whose head may say to crop its pictures."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).partition(_CLUSTER.to_bytes(4, "big"))[0]
    return head.startswith(_EBML.to_bytes(4, "big")) and bool(_PIXEL_CROP.search(head))


def has_matrix(path: Path) -> bool:
    """Whether a file is an MP4 or QuickTime file whose pictures are turned, mirrored or moved."""
    head = _movie_head(path)
    for name, offsets in _MATRIX_AT.items():
        at = -1
        while (at := head.find(name, at + 1)) >= 0:
            start = at + 4 + offsets[head[at + 4 : at + 5] == b"\1"]
            if start + 36 <= len(head) and struct.unpack_from(">9i", head, start) != _IDENTITY:
                return True
    return False


def names_box(path: Path, name: bytes) -> bool:
    """Whether a file is an MP4 or QuickTime file whose head names a box, such as `elst`."""
    return name in _movie_head(path)


def _movie_head(path: Path) -> bytes:
    with path.open("rb") as file:
        for kind, start, end in _boxes_of(file, path.stat().st_size):
            if kind == b"moov":
                file.seek(start)
                return file.read(min(end - start, _MOVIE_HEAD_BYTES))
    return b""
