"""Which containers are taken: what FFmpeg opens, less what is no single file of moving pictures."""

import zlib
from pathlib import Path

import av
import pytest
from av.format import ContainerFormat

from strive.errors import DecodeError
from strive.video.containers import TAKEN, check_first_bytes
from strive.video.decode import DecodedVideo, decode_frames
from strive.video.frame_plan import FramePlan
from video.coded_clips import numbers_of, write_clip
from video.odd_clips import transport_packets

NUM_FRAMES = 40
# What a build may open and we do not.
REFUSED_BY_KIND = {
    "open other files or addresses": """
        concat dash hls hds imf sdp rtp rtsp sap redir applehttp smoothstreaming
        webm_dash_manifest mpjpeg
    """,
    "still images": """
        image2 image2pipe alias_pix brender_pix bmp_pipe cri_pipe dds_pipe dpx_pipe exr_pipe
        gem_pipe gif_pipe hdr_pipe ico j2k_pipe jpeg_pipe jpegls_pipe jpegxl_pipe
        jpegxs_pipe pam_pipe pbm_pipe pcx_pipe pfm_pipe pgm_pipe pgmyuv_pipe pgx_pipe
        phm_pipe photocd_pipe pictor_pipe png_pipe ppm_pipe psd_pipe qdraw_pipe qoi_pipe
        sgi_pipe sunrast_pipe svg_pipe svs tiff_pipe txd vbn_pipe webp_pipe xbm_pipe
        xpm_pipe xwd_pipe fits msp
    """,
    "devices and filters": """
        alsa fbdev kmsgrab lavfi oss pulse sndio video4linux2 v4l2 x11grab xcbgrab jack
        openal dshow gdigrab avfoundation bktr decklink iec61883 libcdio libdc1394 vfwcap
        android_camera audiotoolbox
    """,
    "text drawn, raw pictures of unknown size, discs, scripts": """
        adf bin idf tty xbin rawvideo bitpacked v210 v210x mpegtsraw data ffmetadata vobsub
        dvdvideo bluray avisynth vapoursynth s337m
    """,
    "sound alone": """
        aa aac aax ac3 ac4 ace acm act adp ads adx aea afc aiff aix alaw amr amrnb amrwb
        apac apc ape apm aptx aptx_hd argo_asf ast au avr bfstm bit boa bonk brstm caf
        codec2 codec2raw daud dfpwm dsf dss dts dtshd eac3 epaf f32be f32le f64be f64le flac
        fsb fwse g722 g723_1 g726 g726le g728 g729 genh gsm hca hcom iamf ilbc ircam kvag
        laf lc3 loas mca mlp mmf mp3 mpc mpc8 msf mtaf mulaw musx binka nistsphere nsp oma
        osq pp_bnk pvf qcp qoa redspark rka rsd rso s16be s16le s24be s24le s32be s32le s8
        sbc sbg scd sdns sdr2 sds sdx shn sln smus sol sox spdif svag tak truehd tta u16be
        u16le u24be u24le u32be u32le u8 vag voc vpk vqf w64 wady wav wavarc wsaud wsd wv
        wve xa xvag xwma libgme libmodplug libopenmpt
    """,
    "words alone": """
        aqtitle ass dvbsub dvbtxt jacosub lrc mcc microdvd mpl2 mpsub pjs rcwt realtext sami
        scc srt stl subviewer subviewer1 sup tedcaptions vplayer webvtt
    """,
}
REFUSED = frozenset(" ".join(REFUSED_BY_KIND.values()).split())


def demuxers() -> set[str]:
    """All names of this build's demuxers; one may have several."""
    found = set()
    for name in av.formats_available:
        try:
            ContainerFormat(name, "r")
        except ValueError:
            continue  # it writes only
        found.update(name.split(","))
    return found


def decode(path: Path) -> DecodedVideo:
    return decode_frames(path, FramePlan("uniform", 64), decoders=("pyav",))


def assert_whole(path: Path) -> DecodedVideo:
    video = decode(path)
    assert numbers_of(video.frames_FHWC) == list(range(NUM_FRAMES))
    return video


def test_every_demuxer_was_looked_at() -> None:
    assert len(demuxers()) > 300
    assert demuxers() - TAKEN - REFUSED == set()
    assert not TAKEN & REFUSED
    for name in ("concat", "hls", "dash", "image2", "png_pipe", "sdp", "rtsp", "lavfi", "tty"):
        assert name in REFUSED


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.nut", {}),
        ("a.mxf", {"codec": "mpeg2video", "qscale": 2}),
        ("a.ivf", {"codec": "libvpx", "deadline": "realtime"}),
        ("a.rm", {"codec": "rv10", "qscale": 2}),
        ("a.apng", {"codec": "apng", "pix_fmt": "rgb24"}),
        ("a.m2v", {"codec": "mpeg2video", "qscale": 2}),
        ("a.hevc", {"codec": "libx265", "x265-params": "log-level=none"}),
        ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        ("a.y4m", {"codec": "wrapped_avframe", "f": "yuv4mpegpipe"}),
    ],
)
def test_uncommon_containers(tmp_path: Path, name: str, how: dict[str, object]) -> None:
    assert_whole(write_clip(tmp_path / name, NUM_FRAMES, **how))  # type: ignore[arg-type]


def test_dv(tmp_path: Path) -> None:
    how = {"codec": "dvvideo", "pix_fmt": "yuv420p", "fps": 25}
    path = write_clip(tmp_path / "a.dv", 10, size=(576, 720), **how)  # type: ignore[arg-type]
    assert numbers_of(decode(path).frames_FHWC) == list(range(10))


@pytest.mark.parametrize("before", [bytes(100), b"\x47" + bytes(90), b"noise" * 50])
def test_bytes_before_the_first_packet(tmp_path: Path, before: bytes) -> None:
    path = write_clip(tmp_path / "a.ts", NUM_FRAMES)
    path.write_bytes(before + path.read_bytes())
    assert_whole(path)


def test_a_program_stream_behind_zeros(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.vob", NUM_FRAMES, codec="mpeg2video", qscale=2, f="vob")
    path.write_bytes(bytes(64) + path.read_bytes())
    assert_whole(path)


def test_packets_of_204_bytes(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.ts", NUM_FRAMES)
    path.write_bytes(b"".join(p + bytes(16) for p in transport_packets(path.read_bytes())))
    assert_whole(path)


def test_a_time_code_that_looks_like_a_packet(tmp_path: Path) -> None:
    """Blu-ray packets have four bytes before each; the first may be the mark of a packet."""
    path = write_clip(tmp_path / "a.m2ts", NUM_FRAMES, mpegts_m2ts_mode=1)
    data = bytearray(path.read_bytes())
    data[0::192] = b"\x47" * len(data[0::192])
    path.write_bytes(data)
    assert_whole(path)


@pytest.mark.parametrize("tail", [b"\n", b"\0\0\0\x10udta\0\0\0\x08what", b"\0\0\0\x0cnoneABCD"])
def test_boxes_of_their_own_behind_fragments(tmp_path: Path, tail: bytes) -> None:
    fragments = "frag_keyframe+empty_moov+default_base_moof"
    path = write_clip(tmp_path / "a.mp4", NUM_FRAMES, g=10, movflags=fragments)
    path.write_bytes(path.read_bytes() + tail)
    assert_whole(path)


def test_malformed_words_about_a_file_are_no_damage(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", NUM_FRAMES, metadata="title=a long title of this clip")
    data = path.read_bytes()
    at = data.index(b"ilst")
    for changed in (
        data.replace(b"a long title", b"\xff\xfe\x80 broken "),
        data[: at + 4] + b"\xff" * 4 + data[at + 8 :],
        data.replace(b"udta", b"what"),
    ):
        path.write_bytes(changed)
        assert assert_whole(path).facts.notes == ()


def test_a_damaged_index_or_title_of_matroska_is_no_damage(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", NUM_FRAMES, metadata="title=a long title of this clip")
    data = bytearray(path.read_bytes())
    data[data.index(b"a long title") + 3] ^= 0x10
    cues = data.rindex(b"\x1c\x53\xbb\x6b")
    data[cues + 8] ^= 0x10  # its checksum
    path.write_bytes(data)
    assert_whole(path)


def test_pictures_of_matroska_with_any_byte_changed(tmp_path: Path) -> None:
    """FFmpeg begins each cluster with its CRC-32: what differs from it is not shown unsaid."""
    path = write_clip(tmp_path / "a.mkv", NUM_FRAMES)
    data = path.read_bytes()
    cluster = data.index(b"\x1f\x43\xb6\x75") + 12
    for position in range(cluster + 12, data.rindex(b"\x1c\x53\xbb\x6b"), 47):
        changed = bytearray(data)
        changed[position] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(DecodeError):
            decode(path)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("a.png", "png", "rgb24"), ("a.jpg", "mjpeg", "yuvj420p"), ("a.bmp", "bmp", "bgr24")],
)
def test_a_still_image_is_sent_to_its_own_records(
    tmp_path: Path, name: str, codec: str, pix_fmt: str
) -> None:
    path = write_clip(tmp_path / name, 1, codec=codec, pix_fmt=pix_fmt)
    with pytest.raises(DecodeError, match="data_type") as caught:
        decode(path)
    assert caught.value.kind == "not_a_video"


def test_names_do_not_choose_what_opens_a_file(tmp_path: Path) -> None:
    """FFmpeg takes some demuxers by the name's end alone; none of those is taken."""
    for name in ("a.txt", "a.yuv", "a.sub", "a.nfo", "a.%d.png", "a.rgb"):
        path = tmp_path / name
        path.write_bytes(zlib.compress(bytes(range(256))) * 40)
        with pytest.raises(DecodeError) as caught:
            decode(path)
        assert caught.value.kind in ("not_a_video", "no_video_stream", "undecodable", "no_frames")


def test_what_may_be_a_video_passes(media: Path) -> None:
    for name in ("plain.mp4", "odd.mkv", "mpeg4.avi", "stream.ts", "text.mp4", "polyglot.mp4"):
        check_first_bytes(media / name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("zero.mp4", "empty_file"),
        ("playlist.mp4", "playlist"),
        ("concat.mp4", "playlist"),
        ("dash.mp4", "playlist"),
        ("folder.mp4", "not_a_video"),
        ("absent.mp4", "missing"),
    ],
)
def test_others_are_refused(media: Path, name: str, kind: str) -> None:
    with pytest.raises(DecodeError) as caught:
        check_first_bytes(media / name)
    assert caught.value.kind == kind


def test_a_manifest_far_behind_the_beginning_is_found(media: Path, tmp_path: Path) -> None:
    stream = (media / "stream.ts").read_bytes()
    for text in (b"x" * 9000 + b"<MPD xmlns='x'>", b"y" * 5000 + b"<SmoothStreamingMedia "):
        path = tmp_path / "two_faces.ts"
        path.write_bytes(text + stream)
        with pytest.raises(DecodeError) as caught:
            check_first_bytes(path)
        assert caught.value.kind == "playlist"
    path.write_bytes(stream + b"<MPD ")  # behind a NUL nobody looks for it
    check_first_bytes(path)


@pytest.mark.parametrize("title", ["<smil>", "my <MPD review>", "<ASX version='3.0'>"])
def test_a_title_is_no_manifest(tmp_path: Path, title: str) -> None:
    for name, how in (("a.mp4", {"movflags": "+faststart"}), ("a.mkv", {})):
        path = write_clip(tmp_path / name, 8, metadata=f"title={title}", **how)
        assert title.encode() in path.read_bytes()[:4096]
        check_first_bytes(path)
