"""The offline stage as processes: killed, interrupted, in shards, on clips of the lab's world."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from strive.cache.frames import FrameReader
from strive.cache.layout import open_cache
from strive.cache.scores import ScoreReader, find_scorer
from strive.cache.verify import verify_cache
from strive.lab.models import lab_model_path
from strive.lab.world import build_world

NUM_CLIPS = 12
SCRIPT = """
import sys
from pathlib import Path
from strive.errors import StriveError
from strive.pipeline import part
from strive.configs.schema import PrecomputeConfig
from strive.pipeline.run import precompute

part.MAX_VIDEOS = 2  # many commits, so that a kill falls between and into them
root, cache, shard, count = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:5])
try:
    summary = precompute(PrecomputeConfig(
        data=tuple(sorted(root.glob("*.jsonl"))), video_root=root, cache=cache,
        scorer_models={"siglip2": sys.argv[5]}, shard=(shard, count), workers=2,
    ))
except StriveError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
print(summary.num_ok, summary.num_decoded, summary.num_scored, flush=True)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    build_world(root, num_clips=NUM_CLIPS, seed=3)
    return root


def start(world: Path, cache: Path, shard: int = 0, count: int = 1) -> subprocess.Popen[str]:
    arguments = [str(world), str(cache), str(shard), str(count), str(lab_model_path("siglip2"))]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return process.returncode, out.strip()


def scores_of(cache: Path) -> dict[str, bytes]:
    layout = open_cache(cache)
    reader = ScoreReader(layout, find_scorer(layout, None).key)
    found = {name: reader.get(name) for name in sorted(reader.question_ids)}
    return {name: scores.scores_F.tobytes() for name, scores in found.items() if scores}


def workers_of(pid: int) -> list[int]:
    """Living decode workers that `pid` started."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if b"strive.video.worker" in command and f"STRIVE_PARENT_PID={pid}".encode() in environment:
            found.append(int(folder.name))
    return found


def wait_for(condition, seconds: float) -> bool:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def plain(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of one uninterrupted run."""
    cache = tmp_path_factory.mktemp("plain") / "cache"
    assert finish(start(world, cache)) == (0, f"{NUM_CLIPS} {NUM_CLIPS} {4 * NUM_CLIPS}")
    assert verify_cache(cache) == []
    return cache


@pytest.mark.long  # two kills of `test_kill_nine.py` run always
def test_kill_nine_and_again_gives_the_same_scores(
    world: Path, plain: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    process = start(world, cache)
    assert wait_for(lambda: list(cache.glob("scores/*/part-*")), 60)
    workers = workers_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 5)
    kept = len(scores_of(cache))
    assert verify_cache(cache) == []
    code, out = finish(start(world, cache))
    assert code == 0
    _, decoded, scored = map(int, out.split())
    assert scored == 4 * NUM_CLIPS - kept and decoded < NUM_CLIPS
    assert scores_of(cache) == scores_of(plain)
    assert verify_cache(cache) == []


@pytest.mark.long
def test_ctrl_c_stops_at_once_and_resumes(world: Path, plain: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = start(world, cache)
    assert wait_for(lambda: list(cache.glob("scores/*/part-*")), 60)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, out = finish(process)
    assert time.monotonic() - started < 30  # at once, on a busy machine too
    # A run that ends as if nothing had been asked of it ends with 0.
    assert code == 130 and "the same command goes on" in out
    assert workers_of(process.pid) == []
    assert finish(start(world, cache))[0] == 0
    assert scores_of(cache) == scores_of(plain)


@pytest.mark.long
def test_twenty_kills_at_random_moments(world: Path, plain: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    rng = np.random.default_rng(0)
    for _ in range(20):
        process = start(world, cache)
        try:
            process.communicate(timeout=float(rng.uniform(2, 12)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if (cache / "cache.json").is_file():
            assert verify_cache(cache) == []
        if list(cache.glob("scores/*/part-*")) and scores_of(cache) == scores_of(plain):
            shutil.rmtree(cache)  # done before the kill: begin again
    assert finish(start(world, cache))[0] == 0
    assert scores_of(cache) == scores_of(plain)


@pytest.mark.long
def test_four_shards_at_once_equal_one_run(world: Path, plain: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    runs = [start(world, cache, shard, 4) for shard in range(4)]
    assert [finish(run)[0] for run in runs] == [0] * 4
    assert scores_of(cache) == scores_of(plain)
    assert verify_cache(cache) == []


def test_a_moved_cache_serves_without_the_videos(world: Path, plain: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(plain, moved)
    layout = open_cache(moved)
    info = find_scorer(layout, "siglip2")
    frames = FrameReader(layout, info.frames_key)
    assert len(frames.video_ids) == NUM_CLIPS
    first = frames.read(frames.video_ids[0], [5, 0, 5])
    np.testing.assert_array_equal(first[0], first[2])
    assert scores_of(moved) == scores_of(plain)
