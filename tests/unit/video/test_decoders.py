"""Savings in decoding are exact: every picture equals that of decoding the whole file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from strive.errors import DecodeError
from strive.video.containers import open_container, video_stream
from strive.video.decode import decode_frames
from strive.video.decoders import (
    NotExactError,
    Run,
    decode_pyav,
    decode_runs,
    has_one_temporal_layer,
    one_run,
    run_pictures,
    split_runs,
)
from strive.video.frame_plan import FramePlan
from strive.video.resize import FrameScaler, as_progressive
from strive.video.source import VideoSource
from strive.video.whole import pictures_at, probe
from video.coded_clips import remux, write_moving

NUM_FRAMES = 100
X265 = "log-level=none:keyint=20:bframes=4:b-pyramid=1"
# name -> (encoder and its options, whether frames that nobody refers to can be left out)
CLIPS: dict[str, tuple[dict[str, Any], bool]] = {
    "h264.mp4": ({"g": 20}, True),
    "h264.mkv": ({"g": 20}, True),
    "h264.ts": ({"g": 20}, True),
    "h264.flv": ({"g": 20}, True),
    "fragments.mp4": ({"g": 20, "movflags": "frag_keyframe+empty_moov"}, True),
    "pyramid.mp4": ({"g": 25, "bf": 7, "x264-params": "b-pyramid=normal:ref=5:b-adapt=2"}, True),
    "direct.mp4": ({"g": 25, "bf": 5, "x264-params": "b-pyramid=strict:direct=temporal"}, True),
    "intra.mp4": ({"g": 1}, False),
    "hevc.mp4": ({"codec": "libx265", "x265-params": X265 + ":open-gop=0"}, True),
    "hevc_open.mkv": ({"codec": "libx265", "x265-params": X265 + ":open-gop=1"}, True),
    "hevc_open.ts": ({"codec": "libx265", "x265-params": X265 + ":open-gop=1"}, False),
    "layers.mp4": ({"codec": "libx265", "x265-params": X265 + ":temporal-layers=3"}, False),
    "vp8.webm": ({"codec": "libvpx", "g": 20, "deadline": "realtime"}, False),
    "vp9.webm": ({"codec": "libvpx-vp9", "g": 20, "cpu-used": 5, "lag-in-frames": 16}, False),
    "av1.mp4": ({"codec": "libsvtav1", "g": 20, "preset": 11}, False),
    "av1.mkv": ({"codec": "libsvtav1", "g": 20, "preset": 11}, False),
    "mpeg4.mp4": ({"codec": "mpeg4", "g": 20, "bf": 2, "qscale": 4}, True),
    "quarter.mp4": ({"codec": "mpeg4", "g": 20, "bf": 2, "flags": "+qpel+mv4"}, True),
    "mpeg4.avi": ({"codec": "mpeg4", "g": 20, "qscale": 4}, False),
    "mpeg2.ts": ({"codec": "mpeg2video", "g": 15, "bf": 2, "qscale": 4}, True),
    "mpeg2.mkv": ({"codec": "mpeg2video", "g": 15, "bf": 2, "qscale": 4}, True),
    "mjpeg.mov": ({"codec": "mjpeg", "qscale": 4}, False),
}
# Keyframes at which decoding cannot start exactly, or not without an error of the decoder.
# Interlaced: a packet may hold a field, so the packets are not asked.
INTERLACED = {"g": 20, "flags": "+ildct+ilme", "x264-params": "tff=1"}
UNSEEKABLE: dict[str, dict[str, Any]] = {
    "open.mp4": {"g": 20, "x264-params": "open-gop=1:bframes=3"},
    "refresh.mp4": {"g": 20, "x264-params": "intra-refresh=1"},
    "program.mpg": {"codec": "mpeg2video", "g": 15, "bf": 2, "qscale": 4},
}


@pytest.fixture(scope="session")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("moving")


def clip(folder: Path, name: str) -> VideoSource:
    path = folder / name
    if not path.exists():
        if name == "cut.mp4":  # begins between keyframes: hidden frames come first
            clip(folder, "pyramid.mp4")
            remux(folder / "pyramid.mp4", path, ss=1.3)
        elif name.startswith("joined"):  # streams of other settings, one after another
            clip(folder, "pyramid.mp4")
            options = {"x264-params": "cabac=0:8x8dct=0:ref=3:weightp=0", "g": 20, "crf": 35}
            write_moving(folder / "other.mp4", 60, **options)
            (folder / "list.txt").write_text("file other.mp4\nfile pyramid.mp4\nfile other.mp4\n")
            remux(folder / "list.txt", path, f="concat")
        else:
            made_with = CLIPS[name][0] if name in CLIPS else UNSEEKABLE.get(name, INTERLACED)
            write_moving(path, NUM_FRAMES, **made_with)
    return probe(path)


def pictures(frames: Any) -> list[tuple[int, np.ndarray]]:
    return [(frame.pts, frame.to_ndarray()) for frame in frames]


def assert_same(
    got: list[tuple[int, np.ndarray]], full: list[tuple[int, np.ndarray]], indices: np.ndarray
) -> None:
    assert [pts for pts, _ in got] == [full[i][0] for i in indices]
    for (_, picture), index in zip(got, indices, strict=True):
        np.testing.assert_array_equal(picture, full[index][1])


def samples(num_frames: int) -> list[np.ndarray]:
    """Index sets: few and far apart, neighbours, the ends, all."""
    rng = np.random.default_rng(0)
    drawn = [np.sort(rng.choice(num_frames, size, replace=False)) for size in (1, 2, 3, 5, 9)]
    ends = np.array([0, num_frames - 1])
    return [*drawn, ends, np.arange(num_frames // 2, num_frames // 2 + 5), np.arange(num_frames)]


@pytest.mark.parametrize("name", [*CLIPS, "cut.mp4", "joined.mp4", "joined.ts"])
def test_runs_give_the_pictures_of_the_whole(moving: Path, name: str) -> None:
    source = clip(moving, name)
    full = pictures(pictures_at(source, np.arange(source.num_frames)))
    assert len(full) == source.num_frames
    for indices in samples(source.num_frames):
        for seek_packets in (1, 10_000):  # by seeking, and by reading on
            runs = decode_runs(source, indices)
            assert_same(
                pictures(run_pictures(source, runs, seek_packets=seek_packets)), full, indices
            )
        assert_same(pictures(run_pictures(source, one_run(source, indices))), full, indices)


@pytest.mark.parametrize("name", [*CLIPS, *UNSEEKABLE, "cut.mp4", "joined.mp4", "joined.ts"])
def test_several_threads_give_the_same_pictures(moving: Path, name: str) -> None:
    source = clip(moving, name)
    for indices in samples(source.num_frames):
        alone = list(decode_pyav(source, indices, FrameScaler(2000)))
        shared = list(decode_pyav(source, indices, FrameScaler(2000), threads=3))
        assert len(alone) == len(shared) == len(indices)
        for one, other in zip(alone, shared, strict=True):
            np.testing.assert_array_equal(one, other)


def test_runs_are_split_evenly() -> None:
    # Lengths 10, 10, 20, 10: of 50 packets the middles lie at 5, 15, 30, 45; halves of 25 packets
    # hold the first two and the last two, thirds of 16.7 the first two, the third, the last.
    bounds = [(0, 9), (20, 29), (40, 59), (80, 89)]
    runs = [Run(start, stop, None, None, (start,)) for start, stop in bounds]
    assert split_runs(runs, 1) == [runs]
    assert split_runs(runs, 2) == [runs[:2], runs[2:]]
    assert split_runs(runs, 3) == [runs[:2], runs[2:3], runs[3:]]
    assert split_runs(runs[:1], 4) == [runs[:1]]
    assert split_runs([], 2) == []


@pytest.mark.parametrize("name", [name for name in CLIPS if CLIPS[name][1]])
def test_some_frames_are_left_out_where_they_can_be(moving: Path, name: str) -> None:
    # Otherwise the test above would show nothing: the clip has frames that nobody refers to.
    source = clip(moving, name)
    with open_container(source.path) as opened:
        stream = video_stream(opened, name)
        stream.codec_context.skip_frame = "NONREF"
        stream.codec_context.thread_count = 1
        assert sum(1 for _ in opened.decode(stream)) < 0.8 * source.num_frames
        if source.codec == "hevc":
            assert has_one_temporal_layer(stream.codec_context.extradata)


def test_temporal_layers_are_seen(moving: Path) -> None:
    for name in ("layers.mp4", "hevc_open.ts"):
        source = clip(moving, name)
        with av.open(str(source.path)) as opened:
            # In MPEG-TS the parameter sets come as a byte stream, which is not looked into.
            assert not has_one_temporal_layer(opened.streams.video[0].codec_context.extradata)
    assert not has_one_temporal_layer(None)
    for tail in (b"\0", b"\xff", b"\x01\x21\xff\xff", b"\x02\x21\0\x01\0\x02\x42\x01"):  # cut short
        assert not has_one_temporal_layer(bytes([1] + [0] * 21) + tail)


@pytest.mark.parametrize("name", UNSEEKABLE)
def test_where_seeking_fails_the_whole_is_decoded(moving: Path, name: str) -> None:
    source = clip(moving, name)
    full = pictures(pictures_at(source, np.arange(source.num_frames)))
    indices = np.array([3, 47, 48, 95])
    with pytest.raises((NotExactError, DecodeError)):
        pictures(run_pictures(source, decode_runs(source, indices), seek_packets=1))
    assert_decoded(source, indices, full)


def assert_decoded(
    source: VideoSource, indices: np.ndarray, full: list[tuple[int, np.ndarray]]
) -> None:
    scaler, plain = FrameScaler(None), FrameScaler(None)
    frames = list(decode_pyav(source, indices, scaler))
    expected = [plain.from_picture(picture, 1) for picture in pictures_at(source, indices)]
    np.testing.assert_array_equal(np.stack(frames), np.stack(expected))
    assert len(full) == source.num_frames


@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mp4", "mpeg4.mp4", "vp9.webm"])
def test_a_container_that_calls_every_frame_a_keyframe_is_not_believed(
    moving: Path, name: str
) -> None:
    source = clip(moving, name)
    every = np.arange(source.num_frames)
    assert source.pts_N is not None
    liar = replace(source, keyframes_K=every, seek_stamps_K=source.pts_N)
    full = pictures(pictures_at(source, every))
    indices = np.array([7, 33, 61])
    with pytest.raises((NotExactError, DecodeError)):
        pictures(run_pictures(liar, decode_runs(liar, indices)))
    assert_decoded(liar, indices, full)


def test_damage_counts_only_where_it_is_decoded(moving: Path, tmp_path: Path) -> None:
    source = clip(moving, "h264.mp4")
    with av.open(str(source.path)) as opened:
        positions = [
            (packet.pos, packet.size)
            for packet in opened.demux(video=0)
            if packet.size and packet.is_keyframe
        ]
    data = bytearray(source.path.read_bytes())
    start, size = positions[2]  # the picture of frame 40
    data[start + 60 : start + size - 20] = bytes(size - 80)
    hurt = tmp_path / "hurt.mp4"
    hurt.write_bytes(data)
    damaged = probe(hurt)
    clean = list(decode_pyav(source, np.array([5, 85]), FrameScaler(None)))
    around = list(decode_pyav(damaged, np.array([5, 85]), FrameScaler(None)))
    np.testing.assert_array_equal(np.stack(around), np.stack(clean))
    with pytest.raises(NotExactError):
        list(decode_pyav(damaged, np.array([5, 45, 85]), FrameScaler(None)))
    with pytest.raises(DecodeError) as caught:
        decode_frames(hurt, FramePlan("uniform", 50))
    assert caught.value.kind == "damaged"


def made_up(ranks: list[int], keyframes: list[int]) -> VideoSource:
    """A source of ten ticks a frame; seek stamps five ticks before the keyframe's own."""
    keys = np.array(keyframes, np.int64)
    return VideoSource(
        path=Path("made_up.mp4"),
        container="mov",
        codec="h264",
        num_frames=len(ranks),
        pts_N=10 * np.arange(len(ranks)),
        decode_rank_N=np.array(ranks),
        keyframes_K=keys,
        seek_stamps_K=10 * keys - 5,
        seconds_per_tick=None,  # type: ignore[arg-type] # not looked at
    )


def test_runs_by_hand() -> None:
    # Shown:         0   1   2   3  |  4   5   6   7     (0 and 5 are keyframes; 4 is shown before
    # stored as:     0   2   1   3  |  5   4   7   6      keyframe 5 but stored after it)
    source = made_up([0, 2, 1, 3, 5, 4, 7, 6], keyframes=[0, 5])
    # Frame 1 needs all that is stored up to its place 2; frame 6 starts at keyframe 5.
    assert decode_runs(source, np.array([1, 6])) == [
        Run(0, 2, None, None, (10,)),
        Run(4, 7, 50, 45, (60,)),
    ]
    # Frame 4 is shown before keyframe 5 and belongs to the group before: the runs touch.
    assert decode_runs(source, np.array([4, 6])) == [Run(0, 7, None, None, (40, 60))]
    # The keyframe itself is one frame to decode.
    assert decode_runs(source, np.array([5])) == [Run(4, 4, 50, 45, (50,))]
    assert one_run(source, np.array([1, 5])) == [Run(0, 4, None, None, (10, 50))]


def test_keyframe_plan_decodes_one_frame_for_each(moving: Path) -> None:
    path = moving / "long.mp4"
    write_moving(path, 600, g=10, preset="ultrafast")
    source = probe(path)
    indices = FramePlan("keyframe", 12).indices(source)
    assert len(indices) == 12 and set(indices) <= set(source.keyframes_K)
    runs = decode_runs(source, indices)
    assert sum(run.stop_rank - run.start_rank + 1 for run in runs) == 12
    got = pictures(run_pictures(source, runs))
    full = pictures(pictures_at(source, np.arange(600)))
    assert_same(got, full, indices)


def test_interlaced_pictures_are_scaled_as_one(moving: Path) -> None:
    source = clip(moving, "interlaced.mp4")
    picture = next(pictures_at(source, np.array([30])))
    assert picture.interlaced_frame
    progressive = as_progressive(picture)
    assert not progressive.interlaced_frame
    np.testing.assert_array_equal(progressive.to_ndarray(), picture.to_ndarray())
    # The same planes in a picture that never was interlaced, nor says where its colours sit.
    plain = av.VideoFrame.from_ndarray(picture.to_ndarray(), "yuv420p")
    scaled = FrameScaler(2000).from_picture(picture, 1).astype(int)
    expected = FrameScaler(2000).from_picture(plain, 1)
    assert np.abs(scaled - expected).mean() < 3  # as two fields: over 5
