"""Caches of before there were orientations and ways: readable, and redone where they may err."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clip_world import World, question
from video import coded_clips as clips
from video.odd_clips import COLOUR, with_clap, with_pixel_crop

from strive.cache.care import cache_info
from strive.cache.frames import VIDEOS_SCHEMA, FrameReader
from strive.cache.layout import default_frames_key, open_cache
from strive.cache.verify import verify_cache
from strive.pipeline.run import precompute
from strive.records import write_records

NEW_COLUMNS = ("orientation", "way", "notes", "rotation")
# What the older rules made of each file: (degrees, repaired).
OLDER = {
    "plain.mp4": (0, ""),
    "turned.mp4": (90, ""),
    "mirrored.mp4": (180, ""),
    "upside_down.mp4": (0, ""),  # mirrored top to bottom: the angle alone is zero
    "sei.mkv": (270, ""),
    "plain.mkv": (0, "remuxed"),
    "edited.mp4": (0, "remuxed"),
    "clap.mp4": (0, ""),
    "cropped.mkv": (0, ""),
    "gone.mp4": (90, ""),
}
REDONE = sorted(set(OLDER) - {"plain.mp4", "plain.mkv", "gone.mp4"})


@pytest.fixture
def older(tmp_path: Path) -> tuple[World, Path]:
    """A cache whose rows are as they were written before."""
    root = tmp_path / "videos"
    root.mkdir()
    plain = clips.write_clip(root / "plain.mp4", 30, g=10, use_editlist=0)
    clips.remux(plain, root / "turned.mp4", display_rotation=90)
    clips.remux(plain, root / "mirrored.mp4", display_hflip=None)
    clips.remux(plain, root / "upside_down.mp4", display_vflip=None)
    shutil.copy(root / "turned.mp4", root / "gone.mp4")
    clips.remux(plain, root / "plain.mkv")
    shutil.copy(root / "plain.mkv", root / "sei.mkv")
    clips.write_clip(root / "edited.mp4", 30, g=10)
    smaller = with_clap(plain.read_bytes(), (100, 1), (80, 1), (0, 1), (0, 1))
    (root / "clap.mp4").write_bytes(smaller)
    coloured = clips.write_clip(root / "coloured.mkv", 30, **COLOUR)
    (root / "cropped.mkv").write_bytes(with_pixel_crop(coloured.read_bytes(), left=28, top=16))
    data = tmp_path / "records.jsonl"
    write_records(data, [question(number, name) for number, name in enumerate(sorted(OLDER))])
    world, cache = World(root, data), tmp_path / "cache"
    precompute(world.options(cache))
    for part in cache.glob("frames/*/videos-*.parquet"):
        table = pq.read_table(part)
        names = table.column("video_id").to_pylist()
        table = table.drop_columns(list(NEW_COLUMNS))
        rotation = pa.array([OLDER[name][0] for name in names], pa.int32())
        field = pa.field("rotation", pa.int32(), nullable=False)
        table = table.add_column(table.column_names.index("codec"), field, rotation)
        repaired = pa.array([OLDER[name][1] for name in names], pa.string())
        table = table.set_column(table.column_names.index("repaired"), "repaired", repaired)
        pq.write_table(table, part)
    (root / "gone.mp4").unlink()
    return world, cache


def test_older_rows_are_read(older: tuple[World, Path]) -> None:
    _, cache = older
    layout = open_cache(cache)
    reader = FrameReader(layout, default_frames_key(layout))
    assert sorted(reader.video_ids) == sorted(OLDER)
    found = {name: reader.info(name).orientation for name in OLDER}
    assert (found["plain.mp4"], found["turned.mp4"], found["mirrored.mp4"]) == (1, 8, 3)
    assert found["sei.mkv"] == 6
    assert reader.read("plain.mp4", [0, 3]).shape[0] == 2
    assert reader.info("plain.mp4").way == "" and reader.info("plain.mp4").notes == ()
    assert verify_cache(cache) == []
    assert cache_info(cache).frames[0].notes == {}


def test_only_what_may_be_wrong_is_redone(older: tuple[World, Path]) -> None:
    world, cache = older
    summary = precompute(world.options(cache))
    assert sorted(summary.redone) == REDONE
    assert summary.num_decoded == summary.num_scored == len(REDONE)
    layout = open_cache(cache)
    reader = FrameReader(layout, default_frames_key(layout))
    found = {name: reader.info(name).orientation for name in OLDER}
    assert found == {
        "plain.mp4": 1,
        "turned.mp4": 8,
        "mirrored.mp4": 2,
        "upside_down.mp4": 4,
        "sei.mkv": 1,
        "plain.mkv": 1,
        "edited.mp4": 1,
        "clap.mp4": 1,
        "cropped.mkv": 1,
        "gone.mp4": 8,  # not there any more: the cache serves without
    }
    again = precompute(world.options(cache))
    assert again.nothing_to_do and again.redone == []


def test_a_row_says_how_it_was_made(older: tuple[World, Path]) -> None:
    world, cache = older
    clips.write_clip(world.root / "stream.ts", 30)
    write_records(world.data, [question(100, "stream.ts")])
    summary = precompute(world.options(cache))
    assert summary.notes == {"no_stated_length": 1}
    layout = open_cache(cache)
    info = FrameReader(layout, default_frames_key(layout)).info("stream.ts")
    assert (info.way, info.notes, info.orientation) == ("index", ("no_stated_length",), 1)
    assert cache_info(cache).frames[0].notes == {"no_stated_length": 1}
    assert VIDEOS_SCHEMA.names[-4:] == list(NEW_COLUMNS)
