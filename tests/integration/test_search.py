"""Near-duplicates and text search on real clips with the lab's scorer, as typed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import ffmpeg
import imageio_ffmpeg
import pytest

from strive.configs.schema import PrecomputeConfig
from strive.lab.models import lab_model_path
from strive.lab.world import build_world
from strive.pipeline.run import precompute
from strive.records import Record, write_records

NUM_CLIPS = 10


def encode(source: Path, target: Path, scale: float, quality: int, **cut: float) -> None:
    stream = ffmpeg.input(str(source), **cut)
    stream = ffmpeg.filter(stream, "scale", f"trunc(iw*{scale}/2)*2", "-2")
    stream = ffmpeg.output(stream, str(target), vcodec="libx264", crf=quality, loglevel="error")
    ffmpeg.run(stream, cmd=imageio_ffmpeg.get_ffmpeg_exe(), overwrite_output=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten unrelated clips, and of the first two a copy coded anew at 3/4 size and a cut one."""
    root = tmp_path_factory.mktemp("videos")
    world = build_world(root / "world", num_clips=NUM_CLIPS, seed=11)
    clips = sorted((world.root / "clips").glob("*.mp4"))
    for number, clip in enumerate(clips):
        shutil.copy(clip, root / f"clip{number}.mp4")
    for number in (0, 1):
        encode(clips[number], root / f"small{number}.mp4", 0.75, 32)
        encode(clips[number], root / f"cut{number}.mp4", 1.0, 26, ss=2.0, t=5.0)
    names = sorted(path.name for path in root.glob("*.mp4"))
    data = root / "records.jsonl"
    records = [
        Record(str(n), name, "What is shown?", "free-form", (), "<answer>it</answer>")
        for n, name in enumerate(names)
    ]
    write_records(data, records)
    options = PrecomputeConfig(
        data=(data,), video_root=root, cache=root / "cache", workers=2,
        scorer_models={"siglip2": str(lab_model_path("siglip2"))},
    )  # fmt: skip
    assert precompute(options).num_ok == NUM_CLIPS + 4
    return root / "cache"


def run(cache: Path, *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "strive.cli", "search", *arguments, "--cache", str(cache), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_copies_are_found_and_nothing_else(cache: Path) -> None:
    page = cache.parent / "copies.html"
    report = run(cache, "--duplicates", "--html", str(page))
    assert "cut0.mp4" in page.read_text(encoding="utf-8")
    pairs = {frozenset((pair["first"], pair["second"])) for pair in report["pairs"]}  # type: ignore[attr-defined]
    wanted = (
        [{f"clip{n}.mp4", f"small{n}.mp4"} for n in (0, 1)]
        + [{f"clip{n}.mp4", f"cut{n}.mp4"} for n in (0, 1)]
        + [{f"small{n}.mp4", f"cut{n}.mp4"} for n in (0, 1)]
    )
    assert pairs == {frozenset(pair) for pair in wanted}
    for pair in report["pairs"]:  # type: ignore[attr-defined]
        if "cut" in pair["second"]:
            assert pair["offset_seconds"] == pytest.approx(2.0, abs=0.4)


@pytest.mark.long
def test_a_text_finds_frames_and_marks_their_copies(cache: Path) -> None:
    page = cache.parent / "found.html"
    result = run(cache, "a red square", "--top", "40", "--per-video", "3", "--html", str(page))
    assert "a red square" in page.read_text(encoding="utf-8")
    frames = result["frames"]
    assert isinstance(frames, list) and len(frames) == 40
    scores = [frame["score"] for frame in frames]
    assert scores == sorted(scores, reverse=True)
    marked = {frame["video_id"]: frame["duplicates"] for frame in frames}
    assert marked["clip0.mp4"] == ["cut0.mp4", "small0.mp4"]
    assert marked["clip5.mp4"] == []
