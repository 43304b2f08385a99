from pathlib import Path

import pytest

from cache.conftest import add_frames
from strive.cache.commit import commit_json
from strive.cache.layout import (
    CacheLayout,
    create_cache,
    default_frames_key,
    ensure_settings,
    make_key,
    open_cache,
    require_fields,
)
from strive.errors import CacheDamageError, CacheError, StaleCacheError


def test_key_depends_on_every_field_and_on_nothing_else() -> None:
    fields = {"a": 1, "b": {"c": [1, 2]}}
    key = make_key("siglip2 ViT/B", fields)
    assert key.startswith("siglip2-ViT-B-")
    assert key == make_key("siglip2 ViT/B", {"b": {"c": [1, 2]}, "a": 1})
    assert key != make_key("siglip2 ViT/B", {"a": 1, "b": {"c": [2, 1]}})
    assert key != make_key("siglip2 ViT/B", {**fields, "d": None})


def test_absent_cache_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="strive-cli precompute"):
        open_cache(tmp_path / "nowhere")


def test_other_version_is_refused(tmp_path: Path) -> None:
    commit_json(tmp_path / "cache.json", {"format_version": 99})
    with pytest.raises(CacheError, match="format 99, this version reads 1"):
        open_cache(tmp_path)
    with pytest.raises(CacheError, match="format 99"):
        create_cache(tmp_path)


def test_damaged_version_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(CacheDamageError, match=r"cache\.json is damaged"):
        open_cache(tmp_path)


def test_stale_settings_show_the_differing_fields(layout: CacheLayout) -> None:
    folder = layout.frames("key")
    ensure_settings(folder, {"fields": {"max_pixels": 100, "codec": "jpeg"}})
    ensure_settings(folder, {"fields": {"max_pixels": 100, "codec": "jpeg"}})
    with pytest.raises(StaleCacheError) as caught:
        require_fields(folder, {"max_pixels": 200, "codec": "jpeg"})
    assert "max_pixels: the cache has 100, this call has 200" in str(caught.value)
    assert "codec" not in str(caught.value)


def test_default_frames_key(layout: CacheLayout) -> None:
    with pytest.raises(CacheError, match="holds no frames"):
        default_frames_key(layout)
    key = add_frames(layout, "jpeg", "a.mp4")
    assert default_frames_key(layout) == key
    other = add_frames(layout, "raw", "a.mp4")
    with pytest.raises(CacheError, match="several sets of frames") as caught:
        default_frames_key(layout)
    assert key in str(caught.value) and other in str(caught.value)
