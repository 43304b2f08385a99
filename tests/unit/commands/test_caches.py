"""`cache info`, `verify` and `prune` as typed."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from strive.cache.layout import CacheLayout, create_cache
from strive.cli import app
from strive.errors import ConfigError

# Helper modules of these tests are imported as `cache.conftest` and so on.
sys.path.insert(0, str(Path(__file__).parents[1]))

from cache.conftest import add_frames, add_scorer


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    layout = create_cache(tmp_path / "cache")
    frames_key = add_frames(layout, "jpeg", "a", "b")
    add_scorer(layout, "siglip2", frames_key, "1@a", "2@b")
    orphan = layout.frames(frames_key) / "frames-1-s0of1-a.arrow"
    orphan.write_bytes(b"x" * 2048)
    os.utime(orphan, (time.time() - 7200,) * 2)
    return layout


def run(*arguments: str, code: int = 0, text: str = "") -> str:
    result = CliRunner().invoke(app, ["cache", *arguments], input=text)
    if isinstance(result.exception, Exception):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


@pytest.mark.parametrize("width", ["80", "160"])
def test_info_fits_and_names_leftovers(
    layout: CacheLayout, width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    text = run("info", "--cache", str(layout.root))
    assert "1, 2.0 KiB: strive-cli cache prune" in text
    assert "2 with 10 frames" in text and "jpeg, quality 92" in text
    assert max(map(len, text.splitlines())) <= int(width)
    info = json.loads(run("info", "--json", "--cache", str(layout.root)))
    assert info["num_orphan_bytes"] == 2048


def test_prune_says_first_and_does_after(layout: CacheLayout) -> None:
    text = run("prune", "--dry-run", "--cache", str(layout.root))
    assert "frames-1-s0of1-a.arrow, 2.0 KiB" in text and "freed" not in text
    plan = json.loads(run("prune", "--dry-run", "--json", "--cache", str(layout.root)))
    assert (plan["num_bytes"], plan["freed_bytes"]) == (2048, 0)
    assert "freed 2.0 KiB" in run("prune", "--cache", str(layout.root))
    assert "nothing to remove" in run("prune", "--cache", str(layout.root))


def test_dropping_asks(layout: CacheLayout) -> None:
    arguments = ("prune", "--scorer", "siglip2", "--cache", str(layout.root))
    with pytest.raises(ConfigError, match="add --yes"):
        run(*arguments)
    assert len(layout.scorer_keys()) == 1
    assert "scores/siglip2-" in run(*arguments, "--yes")
    assert layout.scorer_keys() == []


def test_verify_exits_1_on_damage(layout: CacheLayout) -> None:
    assert "every part and frame is whole" in run("verify", "--cache", str(layout.root))
    part = next(layout.scores(layout.scorer_keys()[0]).glob("part-*"))
    part.write_bytes(part.read_bytes()[:-9])
    assert "damaged: " in run("verify", "--cache", str(layout.root), code=1)


def test_verify_lists_changed_videos(layout: CacheLayout, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a").write_bytes(b"another film")
    arguments = ("verify", "--cache", str(layout.root), "--video-root", str(tmp_path / "videos"))
    text = run(*arguments, code=1)
    assert "changed: a is not the file that was cached" in text
    assert "0 videos are as they were cached, 1 changed, 1 not there" in text
    found = json.loads(run(*arguments, "--json", code=1))
    assert found["problems"] == [] and found["videos"]["changed"] == ["a"]
    whole = json.loads(run("verify", "--cache", str(layout.root), "--json"))
    assert (whole["problems"], whole["videos"]) == ([], None)
