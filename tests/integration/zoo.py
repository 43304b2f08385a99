"""A folder of bad, odd and hostile video files, each with what is right for it.

Frames carry their number in the picture (`video.coded_clips.draw`), so that a test can tell whether
the frame it got is the one it asked for. Every entry is made by `ffmpeg` or by hand from its bytes.
"""

import os
import shutil
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ffmpeg
import numpy as np
from mp4_bytes import elsewhere, jpeg_resized, moved, png_resized, resized
from video.coded_clips import FFMPEG, draw, remux, write_audio, write_clip, write_vfr

N = 40  # frames of most clips
ANY_DECODE_FAILURE = frozenset(
    (
        *("undecodable", "damaged", "incomplete", "no_frames"),
        *("frames_missing", "frame_count", "wrong_picture"),
    )
)
NOT_A_VIDEO = frozenset(("not_a_video",))
PLAYLIST = frozenset(("playlist",))


@dataclass(frozen=True)
class Right:
    """What is right for a file: frames (`num_frames` > 0), one of some failures, or either.

    Frame `i` of the file shows the number `first + i`, turned by `turns` quarter turns
    counter-clockwise; a picture too small to be read (`readable`) is only counted.
    """

    num_frames: int = 0
    kinds: frozenset[str] = frozenset()
    first: int = 0
    turns: int = 0
    readable: bool = True


@dataclass(frozen=True)
class Entry:
    """One file of the zoo: its path as a record gives it, and what is right for it."""

    video_id: str
    right: Right


def good(num_frames: int = N, **changes: Any) -> Right:
    return Right(num_frames, **changes)


def bad(*kinds: str) -> Right:
    return Right(kinds=frozenset(kinds))


class Zoo:
    """The folder while it is filled; `outside` is a folder that nothing may read."""

    def __init__(self, root: Path, outside: Path, port: int) -> None:
        self.root, self.outside, self.port = root, outside, port
        self.entries: list[Entry] = []

    def put(self, video_id: str, right: Right) -> Path:
        """Note an entry, and return where its file belongs."""
        self.entries.append(Entry(video_id, right))
        return self.root / video_id

    def clip(self, video_id: str, right: Right | None = None, frames: int = N, **how: Any) -> Path:
        return write_clip(self.put(video_id, right or good(frames)), frames, **how)

    def copy(self, video_id: str, source: Path, right: Right, **inputs: Any) -> Path:
        return remux(source, self.put(video_id, right), **inputs)

    def bytes(self, video_id: str, right: Right, data: bytes) -> Path:
        path = self.put(video_id, right)
        path.write_bytes(data)
        return path


def build_zoo(root: Path, outside: Path, port: int) -> list[Entry]:
    """Fill a folder; `outside` lies outside it, and `port` is one that nothing may connect to."""
    zoo = Zoo(root, outside, port)
    plain = zoo.clip("plain.mp4", g=10)
    shutil.copy(plain, outside / "secret.mp4")
    _codecs(zoo)
    _pictures(zoo, plain)
    _times(zoo, plain)
    _structures(zoo, plain)
    _names(zoo, plain)
    _no_videos(zoo, plain)
    _broken(zoo, plain)
    _hostile(zoo, plain)
    _paths(zoo, plain)
    return zoo.entries


def _codecs(zoo: Zoo) -> None:
    zoo.clip("hevc.mp4", codec="libx265", preset="ultrafast", **{"x265-params": "log-level=none"})
    zoo.clip("av1.mp4", codec="libaom-av1", g=10, **{"cpu-used": 8})
    zoo.clip("vp8.webm", codec="libvpx", deadline="realtime")
    zoo.clip("vp9.webm", codec="libvpx-vp9", deadline="realtime")
    zoo.clip("mpeg1.mpg", codec="mpeg1video", qscale=2)
    zoo.clip("mpeg2.vob", codec="mpeg2video", qscale=2, f="vob")
    zoo.clip("mpeg2.ts", codec="mpeg2video", qscale=2)
    zoo.clip("blu_ray.m2ts", mpegts_m2ts_mode=1)
    zoo.clip("sorenson.flv", codec="flv", qscale=2)
    zoo.clip("h264.flv")
    zoo.clip("windows.wmv", codec="wmv2", qscale=2)
    zoo.clip("theora.ogv", codec="libtheora", qscale=10)
    zoo.clip("mjpeg.avi", codec="mjpeg", qscale=2, pix_fmt="yuvj420p")
    zoo.clip("xvid.avi", codec="mpeg4", qscale=2, bf=2)
    zoo.clip("raw_rgb.avi", codec="rawvideo", pix_fmt="bgr24")
    zoo.clip("ffv1.mkv", codec="ffv1", pix_fmt="gbrp")
    zoo.clip("pipe.y4m", codec="wrapped_avframe", f="yuv4mpegpipe")
    zoo.clip("animation.gif", codec="gif", pix_fmt="rgb8")
    zoo.clip("palette.mov", codec="qtrle", pix_fmt="gray")


def _pictures(zoo: Zoo, plain: Path) -> None:
    for degrees in (90, 180, 270):
        turned = good(turns=degrees // 90)
        zoo.copy(f"turned{degrees}.mp4", plain, turned, display_rotation=degrees)
    zoo.clip("ten_bit.mp4", pix_fmt="yuv420p10le")
    zoo.clip("ten_bit_422.mov", codec="prores_ks", pix_fmt="yuv422p10le")
    zoo.clip("odd_size.mp4", size=(95, 127), pix_fmt="yuv444p")
    zoo.clip("two_by_two.mp4", good(readable=False), size=(2, 2))
    tiny = Right(N, ANY_DECODE_FAILURE, readable=False)
    zoo.clip("one_by_one.mkv", tiny, size=(1, 1), codec="ffv1", pix_fmt="gbrp")
    zoo.clip("thin.mp4", good(readable=False), size=(2, 1000))
    zoo.clip("alpha.webm", codec="libvpx-vp9", pix_fmt="yuva420p", deadline="realtime")
    zoo.clip("alpha_prores.mov", codec="prores_ks", profile="4444", pix_fmt="yuva444p10le")
    zoo.clip("alpha_png.mov", codec="png", pix_fmt="rgba")
    zoo.clip("interlaced.mp4", flags="+ilme+ildct", **{"x264-params": "tff=1"})
    zoo.clip("interlaced.ts", codec="mpeg2video", qscale=2, flags="+ilme+ildct", vf="setfield=tff")
    zoo.clip("grey.mp4", pix_fmt="gray")
    zoo.clip("wide_pixels.mp4", vf="setsar=2")
    zoo.clip("full_range.mp4", pix_fmt="yuvj420p")
    # A stream whose pictures grow midway, as broadcast does.
    path = zoo.put("resized.ts", good(2 * N))
    small = write_clip(zoo.outside / "small.ts", N)
    large = _numbered(zoo.outside / "large.ts", N, 2 * N, size=(192, 256), output_ts_offset=1.6)
    path.write_bytes(small.read_bytes() + large.read_bytes())


def _times(zoo: Zoo, plain: Path) -> None:
    write_vfr(zoo.put("variable_rate.mp4", good()), N)
    zoo.clip("one_frame.mp4", frames=1)
    zoo.clip("two_frames.mp4", frames=2)
    zoo.clip("fast.mp4", fps=1000)
    zoo.clip("slow.mp4", fps=1, frames=12)
    zoo.clip(
        "open_gop.mp4", frames=90, preset="medium", g=30, bf=3, **{"x264-params": "open-gop=1"}
    )
    closed = "log-level=none:open-gop=1:keyint=20:bframes=3"
    zoo.clip(
        "open_gop_hevc.mp4", frames=90, codec="libx265", preset="fast", **{"x265-params": closed}
    )
    # 1 s in: 25 frames are cut off; the edit list hides those since the keyframe before.
    zoo.copy("edit_list.mp4", plain, good(N - 25, first=25), ss=1.0)
    negative = zoo.put("negative_times.mkv", good())
    remux(plain, negative, "-avoid_negative_ts", "disabled", itsoffset=-0.4)
    zoo.clip("late_start.mkv", output_ts_offset=100)
    # H.264 with B-frames in AVI: no presentation times.
    zoo.clip("no_times.avi", preset="medium", bf=2, g=20)
    twice = Right(N, ANY_DECODE_FAILURE)
    zoo.clip("same_time_twice.mkv", twice, **{"bsf:v": "setts=ts=floor(N/2)*80"})
    zoo.clip("backwards.ts", twice, **{"bsf:v": "setts=pts=PTS-mod(N\\,3)*7200"})


def _structures(zoo: Zoo, plain: Path) -> None:
    fragments = "frag_keyframe+empty_moov+default_base_moof"
    zoo.clip("fragmented.mp4", movflags=fragments, g=10)
    front = zoo.clip("index_first.mp4", movflags="+faststart", g=10)
    zoo.bytes("trailing_bytes.mp4", good(), front.read_bytes() + b"\x5a" * 5000)
    data = plain.read_bytes()
    zoo.bytes(
        "free_first.mp4", good(), moved(data, struct.pack(">I4s", 1008, b"free") + bytes(1000))
    )
    # FFmpeg's best of two streams, for every decoder: the one of the higher bit rate.
    two = zoo.put("two_streams.mp4", good(first=1000))
    second = _numbered(zoo.outside / "second.mp4", 1000, 1000 + N)
    _run(_merged(two, plain, second))
    sound = write_audio(zoo.outside / "sound.m4a")
    _run(_merged(zoo.put("sound.mp4", good()), plain, sound))
    _run(_merged(zoo.put("sound_first.mkv", good()), sound, plain))
    cover = _numbered(zoo.outside / "cover.png", 77, 78, codec="png", pix_fmt="rgb24")
    art = {"disposition:v:1": "attached_pic"}
    _run(_merged(zoo.put("cover_and_video.mp4", good()), plain, cover, **art))
    song = bad("no_video_stream")  # a cover is no video
    _run(_merged(zoo.put("song.mp4", song), sound, cover, **{"disposition:v:0": "attached_pic"}))
    subtitles = zoo.outside / "words.srt"
    subtitles.write_text("1\n00:00:00,000 --> 00:00:01,000\nfile:///etc/passwd\n")
    _run(_merged(zoo.put("subtitles.mkv", good()), plain, subtitles, scodec="srt"))
    zoo.clip("chapter.mov", timecode="10:00:00:00", metadata="comment=http://127.0.0.1/")
    # 300 frames in both headers of 40.
    lying = write_clip(zoo.outside / "lying.avi", N, codec="mpeg4", qscale=2)
    lie = bytearray(lying.read_bytes())
    for at in (lie.index(b"avih") + 24, lie.index(b"strh") + 40):
        lie[at : at + 4] = struct.pack("<I", 300)
    zoo.bytes("lying_header.avi", good(), lie)
    no_index = lying.read_bytes()
    at = no_index.rindex(b"idx1")
    # Its pictures are all there: players make an index of their own.
    zoo.bytes("no_index.avi", good(), no_index[:at])
    zoo.bytes("zero_index.avi", good(), no_index[: at + 8] + bytes(len(no_index) - at - 8))


def _names(zoo: Zoo, plain: Path) -> None:
    (zoo.root / "sub folder").mkdir()
    for name in (
        *("an mp4.mkv", "no_extension", "sub folder/\u00fc \u65e5\u672c.mp4", "'\"`$(x);&.mp4"),
        *("two\nlines.mp4", "-y.mp4", "%03d.mp4", "concat:a|b.mp4", "[red].mp4", "back\\slash.mp4"),
        *("file:x.mp4", "http:", "\u202efi.4pm", "x" * 250 + ".mp4", "emoji \U0001f3ac.mp4"),
    ):
        # The records' reader takes a backslash for a Windows separator.
        right = bad("missing") if "\\" in name else good()
        shutil.copy(plain, zoo.put(name, right))
    shutil.copy(zoo.root / "vp9.webm", zoo.put("a_webm.mp4", good()))
    shutil.copy(zoo.root / "mpeg2.ts", zoo.put("a_stream.avi", good()))


def _no_videos(zoo: Zoo, plain: Path) -> None:
    zoo.bytes("empty.mp4", bad("empty_file"), b"")
    zoo.bytes("text.mp4", bad("not_a_video"), b"This is not a video.\n" * 100)
    zoo.bytes("page.mp4", bad("not_a_video"), b"<!DOCTYPE html><html>404</html>")
    zoo.bytes("script.mp4", bad("not_a_video"), b"#!/bin/sh\ntouch /tmp/owned\n")
    zoo.bytes("archive.mp4", bad("not_a_video"), b"PK\x03\x04" + bytes(100))
    zoo.bytes("zeros.mp4", bad("not_a_video"), bytes(100_000))
    zoo.bytes("one_byte.mp4", bad("not_a_video"), b"\x00")
    for name, codec in (("picture.png", "png"), ("picture.jpg", "mjpeg")):
        picture = _numbered(zoo.outside / name, 5, 6, codec=codec, pix_fmt="yuvj420p")
        shutil.copy(picture, zoo.put(f"{name}.mp4", bad("not_a_video")))
    # A raw stream states neither times nor length: its pictures are counted, at 25 a second.
    zoo.clip("elementary.h264", f="h264")
    write_audio(zoo.put("sound_only.m4a", bad("no_video_stream")))
    write_audio(zoo.put("sound_only.mka", bad("no_video_stream")))
    write_audio(zoo.put("sound_only.oga", bad("no_video_stream")))
    write_audio(zoo.put("sound_only.wav", bad("not_a_video")))
    _run(_merged(zoo.put("words_only.mkv", bad("no_video_stream")), zoo.outside / "words.srt"))
    no_frames = zoo.put("no_frames.mp4", bad("no_frames", "no_video_stream", "undecodable"))
    _run(_merged(no_frames, plain, **{"frames:v": 0}))


def _broken(zoo: Zoo, plain: Path) -> None:
    data = plain.read_bytes()
    front = (zoo.root / "index_first.mp4").read_bytes()
    half = len(data) // 2
    zoo.bytes("cut_index_first.mp4", bad("incomplete"), front[: len(front) * 2 // 3])
    zoo.bytes("cut_no_index.mp4", bad(*ANY_DECODE_FAILURE), data[:half])
    index = data.index(b"moov") - 4
    zoo.bytes("index_missing.mp4", bad(*ANY_DECODE_FAILURE), data[:index])
    # A third of 1.6 s is within the second that may be missing: their first part, with a note.
    for name in ("ffv1.mkv", "vp9.webm", "mpeg2.vob", "windows.wmv", "h264.flv", "fragmented.mp4"):
        part = (zoo.root / name).read_bytes()
        zoo.bytes(f"cut_{name}", Right(-1, ANY_DECODE_FAILURE), part[: len(part) * 2 // 3])
    frames = write_clip(zoo.outside / "frames.mp4", 90, preset="medium", bf=3, g=30)
    hurt = bytearray(frames.read_bytes())
    start = hurt.index(b"mdat") + 1200
    hurt[start : start + 300] = bytes(300)
    zoo.bytes("zeros_in_the_middle.mp4", bad(*ANY_DECODE_FAILURE), hurt)
    moved = bytearray(data)
    at = data.index(b"stco") + 12
    moved[at : at + 4] = struct.pack(">I", len(data) - 300)
    zoo.bytes("index_points_nowhere.mp4", bad(*ANY_DECODE_FAILURE), moved)
    rng = np.random.default_rng(7)
    noise = rng.integers(0, 256, 50_000, np.uint8).tobytes()
    head = struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 0, b"isom")
    zoo.bytes("noise.mp4", bad(*ANY_DECODE_FAILURE), head + noise)
    zoo.bytes("noise.mkv", bad(*ANY_DECODE_FAILURE), b"\x1a\x45\xdf\xa3" + noise)
    zoo.bytes(
        "noise.ts",
        bad(*ANY_DECODE_FAILURE, "no_video_stream"),
        b"\x47".join([b"", *(noise[i : i + 187] for i in range(0, 40_000, 187))]),
    )
    key = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "00112233445566778899aabbccddeeff",
    }
    locked = zoo.put("encrypted.mp4", bad(*ANY_DECODE_FAILURE))
    _run(_merged(locked, plain, encryption_kid="a7e61c373e219033c21091fa607bf3b8", **key))


def _hostile(zoo: Zoo, plain: Path) -> None:
    secret = (zoo.outside / "secret.mp4").absolute()
    address = f"http://127.0.0.1:{zoo.port}/a.ts"
    for name, text in (
        ("hls_address.mp4", f"#EXTM3U\n#EXTINF:10,\n{address}\n"),
        ("hls_file.mp4", f"#EXTM3U\n#EXTINF:10,\nfile://{secret}\n"),
        ("hls_late.mp4", f"\ufeff \n\n#EXTM3U\n#EXTINF:10,\n{address}\n"),
        ("dash.mp4", f"<?xml version='1.0'?><MPD><BaseURL>{address}</BaseURL></MPD>"),
        ("smooth.mp4", f"<SmoothStreamingMedia Url='{address}'/>"),
        ("concat.mp4", f"ffconcat version 1.0\nfile '{secret}'\n"),
        ("radio.mp4", f"[playlist]\nFile1={address}\n"),
        ("asx.mp4", f"<asx><entry><ref href='{address}'/></entry></asx>"),
    ):
        zoo.bytes(name, bad("playlist"), text.encode())
    for name, text in (
        (
            "session.mp4",
            "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        ),
        ("data_url.mp4", "data:video/mp4;base64,AAAAIGZ0eXBpc29t"),
        ("concat_plain.mp4", f"file '{secret}'\n"),
        ("redirect.mp4", f"[Reference]\nRef1={address}\n"),
    ):
        zoo.bytes(name, bad("not_a_video"), text.encode())
    manifest = f"<MPD xmlns='x'><BaseURL>{address}</BaseURL></MPD>".encode()
    # Behind a NUL nobody looks for a manifest.
    zoo.bytes("two_faces.mp4", bad("undecodable"), b"\0\0\0\x18ftypisom" + b"\0" * 40 + manifest)
    inside = remux(plain, zoo.outside / "inside.mov").read_bytes()
    own = Right(N, ANY_DECODE_FAILURE | {"no_frames"})  # its own pictures, or none
    zoo.bytes("elsewhere.mov", own, elsewhere(inside, secret, b"url "))
    zoo.bytes("elsewhere_alias.mov", own, elsewhere(inside, secret, b"alis"))
    linked = zoo.put("next_segment.mkv", good())
    _run(_merged(linked, plain, metadata=f"next_filename={secret}"))
    data = plain.read_bytes()
    # The container lies and the stream itself tells the truth.
    zoo.bytes("huge_picture.mp4", good(), resized(data, 30_000))
    huge = bad("too_large", "out_of_memory", *ANY_DECODE_FAILURE)
    bomb = (zoo.root / "mjpeg.avi").read_bytes()
    zoo.bytes("bomb.avi", huge, jpeg_resized(bomb, 65_500))
    pictures = (zoo.root / "alpha_png.mov").read_bytes()
    zoo.bytes("bomb_png.mov", huge, png_resized(pictures, 30_000))
    zoo.bytes("huge.y4m", huge, b"YUV4MPEG2 W30000 H30000 F25:1 C420\nFRAME\n" + bytes(100))
    zoo.bytes("huge.gif", huge, b"GIF89a\xff\xff\xff\xff" + bytes(50))
    many = bytearray(data)
    at = data.index(b"stsz") + 8
    many[at : at + 8] = struct.pack(">II", 1, 0xFFFFFFF0)
    zoo.bytes(
        "billions_of_frames.mp4", bad(*ANY_DECODE_FAILURE, "no_frames", "out_of_memory"), many
    )
    with zoo.put("hole.mp4", bad("not_a_video")).open("wb") as file:
        file.truncate(1 << 40)  # 1 TiB that takes no room
    shutil.copy(plain, zoo.put("mostly_hole.mp4", good()))
    with (zoo.root / "mostly_hole.mp4").open("r+b") as file:
        file.truncate(256 << 20)


def _paths(zoo: Zoo, plain: Path) -> None:
    secret = zoo.outside / "secret.mp4"
    zoo.put("link_out.mp4", bad("outside_root")).symlink_to(secret)
    (zoo.root / "folder_out").symlink_to(zoo.outside)
    zoo.put("folder_out/secret.mp4", bad("outside_root"))
    zoo.put("link_device.mp4", bad("outside_root")).symlink_to("/dev/zero")
    zoo.put("link_in.mp4", good()).symlink_to("plain.mp4")
    loop = zoo.put("loop.mp4", bad("missing"))
    loop.symlink_to(loop)
    zoo.put("dangling.mp4", bad("missing")).symlink_to("nothing.mp4")
    zoo.entries.append(Entry(f"../{zoo.outside.name}/secret.mp4", bad("outside_root")))
    zoo.entries.append(Entry("sub folder/../plain.mp4", good()))
    zoo.entries.append(Entry(str(secret.absolute()), bad("outside_root")))
    zoo.entries.append(Entry("nul\0byte.mp4", bad("missing")))
    zoo.entries.append(Entry("y" * 5000 + ".mp4", bad("missing")))
    zoo.entries.append(Entry("d/" * 3000 + "x.mp4", bad("missing")))
    zoo.entries.append(Entry("absent.mp4", bad("missing")))
    zoo.entries.append(Entry("plain.mp4/inside.mp4", bad("missing")))
    zoo.entries.append(Entry("http://127.0.0.1/a.mp4", bad("missing")))
    zoo.put("folder.mp4", bad("not_a_video")).mkdir()
    os.mkfifo(zoo.put("pipe.mp4", bad("not_a_video")))
    _bind(zoo.put("socket.mp4", bad("not_a_video")))
    private = zoo.put("private.mp4", good() if os.geteuid() == 0 else bad("unreadable"))
    shutil.copy(plain, private)
    private.chmod(0)


def _numbered(
    path: Path, first: int, last: int, size: tuple[int, int] = (96, 128), **how: Any
) -> Path:
    """As `write_clip`, with frames numbered from `first`."""
    height, width = size
    frames = b"".join(draw(number, height, width).tobytes() for number in range(first, last))
    source = ffmpeg.input(
        "pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=25
    )
    options = {"vcodec": how.pop("codec", "libx264"), "pix_fmt": "yuv420p", "threads": 1, **how}
    _run(source.output(str(path), **options), frames)
    return path


def _merged(path: Path, *sources: Path, **output: Any) -> Any:
    inputs = [ffmpeg.input(f"file:{source}") for source in sources]
    return ffmpeg.output(*inputs, f"file:{path}", c="copy", **output)


def _run(stream: Any, data: bytes | None = None) -> None:
    quiet = stream.overwrite_output().global_args("-loglevel", "error")
    quiet.run(cmd=FFMPEG, input=data)


def _bind(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's address has room for about a hundred bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)
