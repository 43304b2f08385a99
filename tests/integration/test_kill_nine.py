"""`kill -9` at random moments: the same command completes the run, and nothing differs by a bit."""

import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from strive.cache.frames import read_video_states
from strive.cache.layout import open_cache
from strive.cache.scores import ScoreReader, find_scorer
from strive.cache.verify import verify_cache
from strive.lab.models import lab_model_path
from strive.records import Record, write_records

SCRIPT = """
import sys
from pathlib import Path
from strive.pipeline import part
from strive.configs.schema import PrecomputeConfig
from strive.pipeline.run import precompute

part.MAX_VIDEOS = int(sys.argv[4])  # many commits, so that kills fall between and into them
summary = precompute(PrecomputeConfig(
    data=(Path(sys.argv[1]) / "records.jsonl",), video_root=Path(sys.argv[1]), frames=16,
    cache=Path(sys.argv[2]), scorer_models={"siglip2": sys.argv[3]}, embed_batch_size=64, workers=2,
))
print(summary.num_ok, summary.num_decoded, summary.num_scored, flush=True)
"""


VIDEOS_PER_COMMIT = 8


def make_world(root: Path, num_clips: int) -> Path:
    """Write small clips of 12 to 24 frames, each of its own noise, with one question each."""
    root.mkdir()
    for number in range(num_clips):
        rng = np.random.default_rng(number)
        with av.open(str(root / f"clip{number:03d}.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
            stream.width = stream.height = 64
            picture = rng.integers(0, 255, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            for _ in range(int(rng.integers(12, 25))):
                picture = np.roll(picture, 3, axis=1)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(stream.encode())
    write_records(
        root / "records.jsonl",
        [
            Record(str(n), f"clip{n:03d}.mp4", f"What is seen in {n}?", "free-form", (), "x")
            for n in range(num_clips)
        ],
    )
    return root


def start(root: Path, cache: Path) -> subprocess.Popen[str]:
    model = str(lab_model_path("siglip2"))
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root), str(cache), model, str(VIDEOS_PER_COMMIT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, int, int]:
    """Return (videos ok, decoded, scored) of a run that ends by itself."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-2000:]
    ok, decoded, scored = map(int, out.split())
    return ok, decoded, scored


def scores_of(cache: Path) -> dict[str, bytes]:
    layout = open_cache(cache)
    reader = ScoreReader(layout, find_scorer(layout, None).key)
    found = {name: reader.get(name) for name in sorted(reader.question_ids)}
    return {name: scores.scores_F.tobytes() for name, scores in found.items() if scores}


def num_cached(cache: Path) -> int:
    if not (cache / "cache.json").is_file():
        return 0
    layout = open_cache(cache)
    return sum(len(read_video_states(layout, key)) for key in layout.frames_keys())


def rows_written(cache: Path) -> int:
    """How many videos were ever committed, twice those that were made twice."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in cache.glob("frames/*/videos-*"))


def run_with_kills(tmp_path: Path, num_clips: int, num_kills: int, seed: int) -> None:
    root = make_world(tmp_path / "world", num_clips)
    plain = tmp_path / "plain"
    assert finish(start(root, plain)) == (num_clips, num_clips, num_clips)
    rng = np.random.default_rng(seed)
    cache = tmp_path / "cache"
    kills = 0
    while kills < num_kills:
        before = num_cached(cache)
        process = start(root, cache)
        # A moment in the run's work, not in its imports: from its first commit on, or before it.
        target = before + int(rng.integers(0, max(num_clips // num_kills, 2)))
        deadline = time.monotonic() + 300
        while process.poll() is None and num_cached(cache) < min(target, num_clips):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.3)))
        process.kill()
        process.communicate()
        kills += 1
        if (cache / "cache.json").is_file():
            assert verify_cache(cache) == []
        assert num_cached(cache) >= before  # nothing that was committed is lost
    committed = num_cached(cache)
    ok, decoded, _ = finish(start(root, cache))
    assert ok == num_clips and decoded == num_clips - committed
    assert rows_written(cache) == num_clips  # a committed video is never decoded again
    assert scores_of(cache) == scores_of(plain)
    assert len(scores_of(cache)) == num_clips
    assert verify_cache(cache) == []
    assert not list(cache.rglob(".tmp-*"))  # what the killed ones left behind is gone


@pytest.mark.long
def test_two_kills(tmp_path: Path) -> None:
    run_with_kills(tmp_path, num_clips=40, num_kills=2, seed=0)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_twenty_kills_of_three_hundred_clips(tmp_path: Path) -> None:
    run_with_kills(tmp_path, num_clips=300, num_kills=20, seed=1)
