import os
from pathlib import Path

import pyarrow as pa
import pytest
from clip_world import World

from cache.conftest import add_frames, add_scorer
from strive.cache.care import cache_info
from strive.cache.commit import commit_parquet, list_parts, read_part
from strive.cache.failures import FailureRow, commit_failures
from strive.cache.frames import FrameReader
from strive.cache.layout import CacheLayout
from strive.cache.scores import ScoreReader, find_scorer
from strive.cache.verify import check_videos, verify_cache
from strive.errors import CacheDamageError, CacheError, MissingInputError
from strive.pipeline.run import precompute


@pytest.fixture
def filled(layout: CacheLayout) -> CacheLayout:
    frames_key = add_frames(layout, "jpeg", "a", "b")
    add_scorer(layout, "siglip2", frames_key, "1@a", "2@b")
    commit_failures(
        layout, [FailureRow("c", "c", "decode", "damaged", "m", 1.0, frames_key)], writer="w"
    )
    return layout


def test_info_counts(filled: CacheLayout) -> None:
    info = cache_info(filled.root)
    (frames,) = info.frames
    assert (frames.num_videos, frames.num_frames) == (2, 10)
    (scorer,) = info.scorers
    assert (scorer.scorer.name, scorer.scorer.num_questions) == ("siglip2", 2)
    assert info.failed_by_error == {"damaged": 1}
    assert info.num_bytes == sum(p.stat().st_size for p in filled.root.rglob("*") if p.is_file())
    assert 0 < frames.num_bytes < info.num_bytes


def test_an_intact_cache_has_no_problems(filled: CacheLayout) -> None:
    assert verify_cache(filled.root) == []


def test_a_flipped_pixel_byte_is_found(filled: CacheLayout) -> None:
    shard = list_parts(filled.frames(filled.frames_keys()[0]), "frames", ".arrow")[0]
    data = bytearray(shard.read_bytes())
    middle = data.index(b"\xff\xd8\xff") + 200
    data[middle] ^= 1
    shard.write_bytes(data)
    (problem,) = verify_cache(filled.root)
    assert shard.name in problem and "'a'" in problem


@pytest.mark.parametrize("folder", ["frames", "embeddings", "scores", "failures.parquet"])
def test_a_cut_part_is_found(filled: CacheLayout, folder: str) -> None:
    part = next((filled.root / folder).rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-5])
    assert any(part.name in problem for problem in verify_cache(filled.root))


def test_missing_pixels_and_changed_settings_are_found(filled: CacheLayout) -> None:
    frames_key = filled.frames_keys()[0]
    list_parts(filled.frames(frames_key), "frames", ".arrow")[0].unlink()
    settings = filled.frames(frames_key) / "settings.json"
    settings.write_text(settings.read_text().replace("100", "200"))
    problems = verify_cache(filled.root)
    assert sum("is missing" in problem for problem in problems) == 2
    assert sum("does not belong to this key" in problem for problem in problems) == 1


@pytest.mark.parametrize("folder", ["frames", "embeddings", "scores"])
def test_a_flipped_byte_of_a_part_is_found(filled: CacheLayout, folder: str) -> None:
    part = next((filled.root / folder).rglob("*.parquet"))
    data = part.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    whole, found = read_part(part), []
    for place in range(4, footer, 5):
        part.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        try:
            assert read_part(part) == whole  # a byte of a page's header that says nothing
        except CacheDamageError:
            found.append(place)
    assert len(found) > (footer - 4) / 5 / 2
    place = found[len(found) // 2]
    part.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
    assert any(part.name in problem for problem in verify_cache(filled.root))


def test_a_part_that_lacks_a_column_is_one_problem(filled: CacheLayout) -> None:
    part = next((filled.root / "scores").rglob("*.parquet"))
    commit_parquet(part, read_part(part).drop_columns(["frames_checksum"]))
    (problem,) = verify_cache(filled.root)
    assert part.name in problem


NONSENSE = (
    *("{}", "[]", '{"fields": 3}', '{"fields": {}}'),
    '{"name": "a", "kind": "similarity", "fields": {"frames_key": "x"}}',
    '{"name": "a", "kind": "odd", "allowed_transforms": [], "fields": {"frames_key": "x"}}',
    '{"name": "a", "kind": "weight", "allowed_transforms": [], "fields": {"frames_key": "../x"}}',
)


@pytest.mark.parametrize("text", NONSENSE)
def test_settings_that_are_json_and_nonsense_are_named(filled: CacheLayout, text: str) -> None:
    settings = filled.scores(filled.scorer_keys()[0]) / "settings.json"
    settings.write_text(text)
    for read in (
        lambda: cache_info(filled.root),
        lambda: find_scorer(filled, None),
        lambda: ScoreReader(filled, filled.scorer_keys()[0]),
    ):
        with pytest.raises(CacheDamageError, match=r"settings\.json is damaged"):
            read()
    assert any("settings.json" in problem for problem in verify_cache(filled.root))


@pytest.mark.parametrize("text", ["[]", '{"fields": 3}', '{"fields": {"codec": {"name": "png"}}}'])
def test_frames_with_nonsense_for_settings_are_named(filled: CacheLayout, text: str) -> None:
    (key,) = filled.frames_keys()
    (filled.frames(key) / "settings.json").write_text(text)
    with pytest.raises(CacheDamageError, match=r"settings\.json is damaged"):
        FrameReader(filled, key)
    assert any("settings.json" in problem for problem in verify_cache(filled.root))


def test_rows_do_not_lead_out_of_the_cache(filled: CacheLayout, tmp_path: Path) -> None:
    (key,) = filled.frames_keys()
    (tmp_path / "secret").write_bytes(b"x" * 100_000)
    part = next(filled.frames(key).glob("videos-*"))
    table = read_part(part)
    place = table.schema.get_field_index("shard")
    elsewhere = pa.array(["../../../secret"] * len(table), pa.string())
    commit_parquet(part, table.set_column(place, table.schema.field(place), elsewhere))
    assert (filled.frames(key) / "../../../secret").is_file()
    with pytest.raises(CacheDamageError, match="lists the pixel file"):
        FrameReader(filled, key).read("a", [0])
    assert all("lists the pixel file" in problem for problem in verify_cache(filled.root))


def test_a_folder_without_a_cache_is_named(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no cache at"):
        verify_cache(tmp_path)


def test_changed_and_missing_videos_are_told_apart(world: World, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    precompute(world.options(cache))
    assert check_videos(cache, world.root).num_same == 4
    touched = world.root / "clip0.mp4"
    touched.write_bytes(touched.read_bytes())  # another time, the same content
    changed = world.root / "clip1.mp4"
    data = bytearray(changed.read_bytes())
    data[-1] ^= 1  # the same size
    changed.write_bytes(data)
    (world.root / "clip2.mp4").unlink()
    (world.root / "clip3.mp4").unlink()
    (world.root / "clip3.mp4").symlink_to(tmp_path / "records.jsonl")  # leaves the root
    check = check_videos(cache, world.root)
    assert (check.num_same, check.changed) == (1, ("clip1.mp4",))
    assert check.missing == ("clip2.mp4", "clip3.mp4")
    (world.root / "clip2.mp4").symlink_to("clip2.mp4")
    touched.unlink()
    os.mkfifo(touched)  # reading it would wait for ever
    missing = check_videos(cache, world.root).missing
    assert sorted(missing) == ["clip0.mp4", "clip2.mp4", "clip3.mp4"]
    with pytest.raises(MissingInputError, match="no folder at --video-root"):
        check_videos(cache, tmp_path / "nowhere")
