import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.conftest import add_frames, encoded, pictures
from strive.cache.commit import list_parts
from strive.cache.frames import (
    FrameCodec,
    FrameReader,
    FrameWriter,
    read_video_states,
)
from strive.cache.layout import CacheLayout
from strive.errors import CacheDamageError, CacheError, UnknownNameError


def test_raw_round_trip_is_exact(layout: CacheLayout) -> None:
    key = add_frames(layout, "raw", "a.mp4", "b/ü.mp4")
    reader = FrameReader(layout, key)
    assert reader.video_ids == ["a.mp4", "b/ü.mp4"]
    for video_id in reader.video_ids:
        np.testing.assert_array_equal(reader.read(video_id, range(5)), pictures(video_id))


def test_jpeg_round_trip_is_close_and_repeatable(layout: CacheLayout) -> None:
    key = add_frames(layout, "jpeg", "a.mp4")
    reader = FrameReader(layout, key)
    frames = reader.read("a.mp4", range(5))
    assert np.abs(frames.astype(int) - pictures("a.mp4")).max() <= 8
    np.testing.assert_array_equal(frames, FrameReader(layout, key).read("a.mp4", range(5)))


def test_jpeg_keeps_colour_at_full_size() -> None:
    # Red and blue columns of one pixel: 4:2:0 would melt them into purple.
    frame = np.zeros((16, 16, 3), np.uint8)
    frame[:, ::2, 0], frame[:, 1::2, 2] = 255, 255
    codec = FrameCodec("jpeg")
    back = codec.decode(codec.encode(frame), 16, 16).astype(int)
    assert np.abs(back - frame).mean() < 12


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(indices=st.lists(st.integers(0, 4), max_size=12))
def test_any_indices_in_any_order(layout: CacheLayout, indices: list[int]) -> None:
    if not layout.frames_keys():
        add_frames(layout, "raw", "a.mp4")
    reader = FrameReader(layout, layout.frames_keys()[0])
    frames = reader.read("a.mp4", indices)
    assert frames.shape == (len(indices), 24, 32, 3) and frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, pictures("a.mp4")[indices])


def test_info_is_what_was_written(layout: CacheLayout) -> None:
    key = add_frames(layout, "jpeg", "a.mp4")
    info = FrameReader(layout, key).info("a.mp4")
    expected = encoded("a.mp4", FrameCodec("jpeg")).facts
    for name in ("source_index_F", "pts_seconds_F"):
        np.testing.assert_array_equal(getattr(info, name), getattr(expected, name))
        assert getattr(info, name).dtype == (np.int64 if "index" in name else np.float64)
    for name in ("num_frames", "source_fps", "duration_seconds", "height", "width", "decoder"):
        assert getattr(info, name) == getattr(expected, name)


def test_only_the_frames_asked_for_are_decoded(
    layout: CacheLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = FrameReader(layout, add_frames(layout, "jpeg", "a.mp4"))
    decoded = []
    real = FrameCodec.decode
    monkeypatch.setattr(
        FrameCodec,
        "decode",
        lambda *args: decoded.append(1) or real(*args),  # type: ignore[func-returns-value]
    )
    reader.read("a.mp4", [3, 1, 3, 3])
    assert len(decoded) == 2


def test_wrong_index_and_video_are_named(layout: CacheLayout) -> None:
    reader = FrameReader(layout, add_frames(layout, "jpeg", "a.mp4"))
    for index in (5, -1):
        with pytest.raises(IndexError, match=f"frame_index {index}.*its pool has 5"):
            reader.read("a.mp4", [0, index])
    with pytest.raises(CacheError, match=r"'b\.mp4' is not in .*precompute"):
        reader.read("b.mp4", [0])
    with pytest.raises(UnknownNameError, match="unknown frame codec 'png'"):
        FrameCodec("png")  # type: ignore[arg-type]


def test_pixels_without_a_committed_row_do_not_exist(layout: CacheLayout) -> None:
    key = add_frames(layout, "raw", "a.mp4")
    for path in layout.frames(key).glob("videos-*"):
        path.unlink()  # as if killed between the two commits
    assert len(list_parts(layout.frames(key), "frames", ".arrow")) == 1
    assert read_video_states(layout, key) == {}
    assert FrameReader(layout, key).video_ids == []


def test_the_later_row_of_a_video_wins(layout: CacheLayout) -> None:
    add_frames(layout, "raw", "a.mp4", num_frames=5)
    key = add_frames(layout, "raw", "a.mp4", num_frames=3)
    assert FrameReader(layout, key).info("a.mp4").num_frames == 3
    assert read_video_states(layout, key)["a.mp4"].num_frames == 3


def test_writers_do_not_meet(layout: CacheLayout) -> None:
    key = add_frames(layout, "raw", "a.mp4")
    writers = [FrameWriter(layout, key, writer=f"s{i}of2") for i in range(2)]
    for writer, name in zip(writers, ("x.mp4", "y.mp4"), strict=True):
        writer.add(encoded(name, FrameCodec("raw")))
    for writer in writers:
        writer.commit()
    assert FrameReader(layout, key).video_ids == ["a.mp4", "x.mp4", "y.mp4"]


def test_the_pixel_file_is_plain_arrow(layout: CacheLayout) -> None:
    key = add_frames(layout, "raw", "a.mp4")
    with pa.memory_map(str(list_parts(layout.frames(key), "frames", ".arrow")[0])) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    first = np.frombuffer(batch.column("frame")[0].as_py(), np.uint8).reshape(24, 32, 3)
    np.testing.assert_array_equal(first, pictures("a.mp4")[0])


def test_a_cut_pixel_file_is_damage(layout: CacheLayout) -> None:
    key = add_frames(layout, "raw", "a.mp4")
    shard = list_parts(layout.frames(key), "frames", ".arrow")[0]
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(CacheDamageError, match="is damaged"):
        FrameReader(layout, key).read("a.mp4", [4])
    shard.unlink()
    with pytest.raises(CacheDamageError, match="is damaged"):
        FrameReader(layout, key).read("a.mp4", [4])


def test_parts_from_before_a_column_existed_still_read(layout: CacheLayout) -> None:
    key = add_frames(layout, "jpeg", "a.mp4", "b.mp4")
    (part,) = layout.frames(key).glob("videos-*.parquet")
    old = pq.read_table(part).drop_columns(["modified_ns", "repaired"])
    pq.write_table(old, part)
    add_frames(layout, "jpeg", "c.mp4")
    reader = FrameReader(layout, key)
    assert [reader.info(name).repaired for name in ("a.mp4", "c.mp4")] == ["", ""]
    assert reader.read("a.mp4", [0]).shape == (1, 24, 32, 3)
    states = read_video_states(layout, key)
    assert list(states) == ["a.mp4", "b.mp4", "c.mp4"]
    assert states["a.mp4"].modified_ns is None
    assert states["a.mp4"].content_digest == "digest"
