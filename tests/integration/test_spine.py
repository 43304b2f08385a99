"""The commands as a user types them, end to end on real video files, in an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from strive.records import read_records, write_records


def strive_cli(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", "strive.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "100"},
        timeout=250,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder in which the lab has been built small and precomputed."""
    root = tmp_path_factory.mktemp("spine")
    strive_cli("lab", "build", "--clips", "10", cwd=root)
    result = strive_cli("precompute", "--scorer", "siglip2", cwd=root)
    assert "embedded lab" in result.stderr.splitlines()[0]
    return root


def test_precompute_leaves_the_designs_cache(folder: Path) -> None:
    cache = folder / "strive-workspace" / "lab" / "cache"
    assert json.loads((cache / "cache.json").read_text())
    for pattern in (
        "questions/part-*.parquet",
        "frames/*/settings.json",
        "frames/*/videos-*.parquet",
        "frames/*/frames-*.arrow",
        "embeddings/siglip2-*/part-*.parquet",
        "scores/siglip2-*/settings.json",
        "scores/siglip2-*/part-*.parquet",
    ):
        assert list(cache.glob(pattern)), pattern
    again = strive_cli("precompute", "--scorer", "siglip2", cwd=folder)
    assert "nothing to do" in again.stdout


def test_train_leaves_the_designs_run_folder(folder: Path) -> None:
    strive_cli("train", "--variants", "importance", "--steps", "2", cwd=folder)
    [run] = (folder / "strive-workspace" / "runs").glob("qwen2_5_vl-importance-*")
    for name in ("config.json", "metrics.jsonl", "completions.parquet", "tensorboard",
                 "checkpoints/step-000002", "final/model.safetensors"):  # fmt: skip
        assert (run / name).exists(), name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    # The policy has something to learn and from: it answers in the taught form, not always right.
    assert lines[0]["reward/format"] > 0.8
    assert 0 < lines[0]["reward/accuracy"] < 1
    assert lines[0]["group/zero_std_fraction"] < 1
    assert lines[0]["optim/grad_norm"] > 0
    config = json.loads((run / "config.json").read_text())["config"]
    assert (config["num_variants"], config["num_generations"]) == (2, 4)

    page = folder / "report.html"
    strive_cli("report", str(run), "--html", str(page), cwd=folder)
    assert "Group reward std" in page.read_text()


@pytest.mark.long
def test_grpo_is_one_view_with_eight_answers(folder: Path) -> None:
    plan = strive_cli("train", "--variants", "none", "--dry-run", "--json", cwd=folder)
    config = json.loads(plan.stdout)["config"]
    assert (config["num_variants"], config["num_generations"]) == (1, 8)


@pytest.mark.long
def test_a_dry_run_is_a_table_of_what_a_run_would_need(folder: Path) -> None:
    runs = folder / "strive-workspace" / "runs"
    before = sorted(runs.glob("*")) if runs.is_dir() else []
    text = strive_cli(
        "train", "--dry-run", "--processes", "2", "--gpu-tflops", "312", "--set", "steps=7",
        cwd=folder,
    ).stdout  # fmt: skip
    assert max(len(line) for line in text.splitlines()) <= 100
    plain = " ".join(text.replace("\u2502", " ").split())
    for words in (
        "steps 7 *",
        "12 questions x 2 variants x 4 completions = 96 completions, on 2 processes",
        "24 a step, 168 in the run",
        "at the peak of each process",
        "writing, every completion at its full length",
        "a GPU of 312 TFLOP/s at 40%, 3,350 GB/s",
        "Time of a step in each process, by formula",
    ):
        assert words in plain, words
    assert (sorted(runs.glob("*")) if runs.is_dir() else []) == before
    wrong = strive_cli("train", "--json", cwd=folder, code=2)
    assert "--processes and --gpu-... belong to --dry-run" in wrong.stderr


def test_inspect_scores_in_all_its_forms(folder: Path) -> None:
    assert "Scorer siglip2" in strive_cli("inspect-scores", cwd=folder).stdout
    summary = json.loads(strive_cli("inspect-scores", "--json", cwd=folder).stdout)
    assert summary["scorers"][0]["evidence_auc"] > 0.85
    page, picture = folder / "scores.html", folder / "scores.png"
    strive_cli(
        "inspect-scores", "--sample", "2", "--html", str(page), "--png", str(picture), cwd=folder
    )
    assert "data:image/jpeg;base64," in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (
        "no question is truncated"
        in strive_cli("inspect-scores", "--worst", "truncated", cwd=folder).stdout
    )


def test_cache_commands(folder: Path) -> None:
    assert "siglip2" in strive_cli("cache", "info", cwd=folder).stdout
    assert "whole" in strive_cli("cache", "verify", cwd=folder).stdout


@pytest.mark.long
def test_own_records_run_through_every_stage(folder: Path, tmp_path: Path) -> None:
    world = folder / "strive-workspace" / "lab"
    mine = tmp_path / "mine.jsonl"
    write_records(mine, read_records([world / "test.jsonl"]).records[:5])
    strive_cli(
        "precompute", "--data", str(mine), "--video-root", str(world),
        "--scorer-model", "lab:siglip2", cwd=tmp_path,
    )  # fmt: skip
    strive_cli(
        "train", "--data", str(mine), "--model", "lab:qwen3_vl", "--steps", "1",
        "--set", "questions_per_step=2", "--set", "max_new_tokens=16", cwd=tmp_path,
    )  # fmt: skip
    # No lab in this workspace: looking finds the user's own cache and says so.
    assert "your own cache" in strive_cli("inspect-scores", cwd=tmp_path).stderr


@pytest.mark.long
def test_demo_makes_one_page_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = strive_cli("demo", "--clips", "10", "--steps", "2", cwd=tmp_path)
    page = tmp_path / "strive-workspace" / "demo" / "report.html"
    text = page.read_text()
    assert "says nothing about 7B accuracy" in " ".join(text.split())
    assert "STRIVE" in first.stdout and "GRPO" in first.stdout
    runs = tmp_path / "strive-workspace" / "demo"
    before = (runs / "strive" / "metrics.jsonl").stat().st_mtime_ns
    strive_cli("demo", "--clips", "10", "--steps", "2", cwd=tmp_path)
    assert (runs / "strive" / "metrics.jsonl").stat().st_mtime_ns == before
    wrong = strive_cli("demo", "--clips", "10", "--steps", "3", cwd=tmp_path, code=2)
    assert "steps=2" in wrong.stderr and "steps=3" in wrong.stderr
