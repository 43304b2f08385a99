"""Faults around a run: a full disk, a read-only cache, two at once, a slow model, broken models."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from strive.cache.layout import open_cache
from strive.cache.scores import ScoreReader, find_scorer
from strive.cache.verify import verify_cache
from strive.lab.models import lab_model_path
from strive.lab.world import build_world

NUM_CLIPS = 8
# Scorers of a user's own, without torch, so that a process starts quickly.
OWN_SCORERS = """
import time
from pathlib import Path
import numpy as np

class Fast:
    kind = "similarity"
    files = ()
    def identity(self): return {"model": "fast"}
    def embed_frames(self, frames): return frames[:, 20:22, 20:22].reshape(len(frames), -1) + 1.0
    def embed_questions(self, questions): return np.ones((len(questions), 12), np.float32)

class Slow:
    kind = "similarity"
    batch_size = 4
    def identity(self): return {"model": "slow"}
    def embed_frames(self, frames): return self.embed_prepared(self.prepare_frames(frames))
    def prepare_frames(self, frames): return frames[:, :2, :2].reshape(len(frames), -1).astype("f4")
    def embed_prepared(self, rows):
        Path("busy").touch()
        time.sleep(60)
        return rows
    def embed_questions(self, questions): return np.ones((len(questions), 12), np.float32)

def fast(request):
    return Fast()

def slow(request):
    return Slow()
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("world")
    build_world(root, num_clips=NUM_CLIPS, seed=5)
    (root / "own.py").write_text(OWN_SCORERS)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(root))
        yield root


def command(world: Path, cache: Path, *scorer: str) -> list[str]:
    files = [f"--data={path}" for path in sorted(world.glob("*.jsonl"))]
    options = [f"--video-root={world}", f"--cache={cache}", "--workers=2", "--frames=16"]
    python = [sys.executable, "-m", "strive.cli", "precompute"]
    return [*python, *files, *options, *(scorer or ("--scorer=own:fast",))]


def run(arguments: list[str], before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command, under a shell that sets limits first."""
    shell = ["bash", "-c", f'{before}\nexec "$@"', "--", *arguments]
    result = subprocess.run(shell, capture_output=True, text=True, timeout=250)
    assert "Traceback" not in result.stderr, result.stderr
    return result


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    return result.stderr.strip().splitlines()[-1]


def scores_of(cache: Path) -> dict[str, bytes]:
    layout = open_cache(cache)
    reader = ScoreReader(layout, find_scorer(layout, None).key)
    found = {name: reader.get(name) for name in sorted(reader.question_ids)}
    return {name: scores.scores_F.tobytes() for name, scores in found.items() if scores}


@pytest.fixture(scope="module")
def plain(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("plain") / "cache"
    assert run(command(world, cache)).returncode == 0
    return cache


@pytest.mark.long
def test_a_disk_that_fills_up_ends_the_run_and_nothing_committed_is_lost(
    world: Path, plain: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    # First a part that fits; then no file may grow beyond 64 KiB, as on a full disk.
    assert run([*command(world, cache), "--limit=1"]).returncode == 0
    kept = scores_of(cache)
    result = run(command(world, cache), before="ulimit -f 64; trap '' XFSZ")
    assert result.returncode == 1
    assert "cannot write" in last_line(result) and "committed before is intact" in last_line(result)
    assert verify_cache(cache) == [] and scores_of(cache) == kept
    assert not list(cache.rglob(".tmp-*"))
    assert run(command(world, cache)).returncode == 0
    assert scores_of(cache) == scores_of(plain)


def test_a_cache_that_cannot_be_written_is_one_line(world: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "cache" / "frames"
    blocked.parent.mkdir()
    blocked.touch()  # a file where a folder is needed: no user, root included, can write below it
    result = run(command(world, tmp_path / "cache"))
    assert result.returncode == 1 and "cannot write" in last_line(result)


def test_a_read_only_cache_serves_and_says_when_it_cannot(
    world: Path, plain: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(plain, cache)
    make_read_only(cache)
    try:
        assert "nothing to do" in run(command(world, cache)).stdout
        result = run([*command(world, cache), "--overwrite"])
        if os.geteuid() != 0:  # root writes everywhere
            assert result.returncode == 1 and "no permission" in last_line(result)
    finally:
        make_read_only(cache, undo=True)


def make_read_only(folder: Path, *, undo: bool = False) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755 if undo else 0o555)


@pytest.mark.long
def test_two_on_the_same_part_at_once(world: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    scorer = ("--scorer=own:slow",)
    first = subprocess.Popen(
        command(world, cache, *scorer), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(tmp_path / "busy")
        second = run(command(world, cache))
        assert second.returncode == 2
        for word in (f'"pid": {first.pid}', "wait", "--shard i/n"):
            assert word in last_line(second)
        other = run([*command(world, cache), "--shard=1/2", "--limit=1"])
        assert other.returncode == 0  # another part of the same cache
    finally:
        first.kill()
        first.communicate()
    assert run(command(world, cache)).returncode == 0  # the lock went with its process
    assert verify_cache(cache) == []


def wait_for(path: Path, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_does_not_wait_for_a_slow_model(world: Path, plain: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = subprocess.Popen(
        command(world, cache, "--scorer=own:slow"), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "busy")
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - started < 5
    assert process.returncode == 130 and "the same command goes on" in err
    assert verify_cache(cache) == []
    # What was decoded by then is kept.
    summary = json.loads(run([*command(world, cache), "--json"]).stdout)
    assert summary["num_decoded"] < NUM_CLIPS == summary["num_ok"]


@pytest.mark.long
@pytest.mark.parametrize("lacking", ["model.safetensors", "tokenizer.json"])
def test_a_model_folder_that_lacks_a_file_is_named(
    world: Path, tmp_path: Path, lacking: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(lab_model_path("siglip2"), model)
    for path in model.rglob(lacking.replace("model", "*")):
        path.unlink()
    result = run(command(world, tmp_path / "cache", "--scorer=siglip2", f"--scorer-model={model}"))
    assert result.returncode == 2
    assert str(model) in last_line(result)
    assert not (tmp_path / "cache").exists()


def test_a_key_folder_with_other_settings_is_refused(
    world: Path, plain: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(plain, cache)
    (settings,) = cache.glob("frames/*/settings.json")
    content = json.loads(settings.read_text())
    content["fields"]["max_pixels"] = 1
    settings.write_text(json.dumps(content))
    result = run([*command(world, cache), "--overwrite"])
    assert result.returncode == 2
    for word in ("other settings", "max_pixels", "--cache"):
        assert word in last_line(result)
