from pathlib import Path

import pytest

from cache.conftest import add_frames, add_scorer
from strive.cache.audit import cache_info, verify_cache
from strive.cache.failures import FailureRow, commit_failures
from strive.cache.frames import frame_shards
from strive.cache.layout import CacheLayout
from strive.errors import CacheError


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
    shard = frame_shards(filled, filled.frames_keys()[0])[0]
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
    frame_shards(filled, frames_key)[0].unlink()
    settings = filled.frames(frames_key) / "settings.json"
    settings.write_text(settings.read_text().replace("100", "200"))
    problems = verify_cache(filled.root)
    assert sum("is missing" in problem for problem in problems) == 2
    assert sum("does not belong to this key" in problem for problem in problems) == 1


def test_a_folder_without_a_cache_is_named(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no cache at"):
        verify_cache(tmp_path)
