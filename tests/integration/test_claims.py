"""The lab's test end to end on few clips and steps: kept, stopped, gone on with, and equal."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strive.errors import ConfigError
from strive.evaluate.samples import read_samples
from strive.experiments.children import INTERRUPTED
from strive.experiments.claims.plan import Cell
from strive.experiments.claims.results import RunResult, read_runs
from strive.experiments.claims.runs import freeze, prepare_scores, run_cell
from strive.experiments.evaluating import evaluate_on_lab
from strive.experiments.workspace import Workspace
from strive.lab.models import lab_model_path

pytestmark = pytest.mark.long
CLIPS, STEPS = 100, 4


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claims") / "lab-results"
    # The second warm-up stands for itself: the shipped weights under another digest do not matter.
    (folder / "warmup-1").mkdir(parents=True)
    for file in lab_model_path("qwen2_5_vl").iterdir():
        (folder / "warmup-1" / file.name).symlink_to(file)
    return folder


@pytest.fixture(scope="module")
def workspace(results: Path) -> Path:
    return results.parent / "workspace"


def command(results: Path, workspace: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "strive.cli", "lab", "claims", "--results", str(results),
        "--page", str(results.with_suffix(".md")), "--workspace", str(workspace),
        "--clips", str(CLIPS), "--steps", str(STEPS), *more,
    ]  # fmt: skip


def numbers(result: RunResult) -> dict[str, Any]:
    """All of a result that must not depend on how it came about."""
    return {key: value for key, value in asdict(result).items() if key not in ("seconds", "about")}


def test_runs_add_up_over_calls_and_kills(results: Path, workspace: Path) -> None:
    # Killed with a run or two kept; the same command goes on, two at a time.
    process = subprocess.Popen(command(results, workspace, "--runs=5"), start_new_session=True)
    until = time.monotonic() + 600
    while time.monotonic() < until and len(list(results.glob("runs/*.json"))) < 3:
        time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = read_runs(results)
    assert 3 <= len(kept) < 5
    stamps = {path: path.stat().st_mtime_ns for path in results.glob("runs/*.json")}
    subprocess.run(command(results, workspace, f"--runs={5 - len(kept)}"), check=True)
    found = read_runs(results)
    order = [Cell("untrained", 0, 0), Cell("untrained", 1, 0), Cell("grpo", 0, 0)]
    assert sorted(found) == sorted([*order, Cell("grpo_random", 0, 0), Cell("importance_m1", 0, 0)])
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    # The two warm-ups hold the same weights here.
    first, second = (numbers(found[Cell("untrained", w, 0)]) for w in (0, 1))
    assert {**second, "warmup": 0} == first
    assert "| primary | 7 | 3 of 112 |" in results.with_suffix(".md").read_text()


def test_ctrl_c_lets_nothing_more_begin(results: Path, workspace: Path) -> None:
    doses = command(results, workspace, "--stage=dose", "--runs=4")
    process = subprocess.Popen(doses, start_new_session=True, stderr=subprocess.PIPE, text=True)
    until, has_begun = time.monotonic() + 600, False
    while time.monotonic() < until and not has_begun:
        time.sleep(0.05)
        has_begun = any(workspace.glob("claims/runs/*_gap_*"))
    assert has_begun
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.strip().endswith(INTERRUPTED)
    kept = [cell for cell in read_runs(results) if "_gap_" in cell.arm]
    # Two at a time; what ended before its first step is no run yet.
    assert len(list(workspace.glob("claims/runs/*_gap_*"))) <= len(kept) + 2 < 4
    subprocess.run(
        command(results, workspace, "--stage=dose", f"--runs={4 - len(kept)}"), check=True
    )
    order = [
        Cell(f"{arm}_gap_{gap}", 0, 0) for gap in (0.03, 0.1) for arm in ("strive", "permuted")
    ]
    found = read_runs(results)
    assert sorted(cell for cell in found if "_gap_" in cell.arm) == sorted(order)
    assert all(len(found[cell].curve("reward/mean")) == STEPS for cell in order)


def test_a_run_alone_is_the_run_of_the_plan(
    results: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = freeze(Workspace(workspace / "claims"), results, num_clips=CLIPS, steps=STEPS)
    cell = Cell("grpo", 0, 0)
    # In this process, into another folder, after another run.
    other = Workspace(tmp_path)
    tmp_path.joinpath("lab").symlink_to(lab.workspace.lab)
    alone = replace(lab, workspace=other)
    prepare_scores(alone, [cell])
    run_cell(Cell("untrained", 0, 0), alone)
    result = run_cell(cell, alone)
    assert numbers(result) == json.loads(json.dumps(numbers(read_runs(results)[cell])))
    assert result.about["clips"] and result.about["world"] != result.about["clips"]
    # `evaluate` gives the same grades.
    outs = evaluate_on_lab(tmp_path / "runs" / cell.name / "final", other, tmp_path / "out",
                           ["uniform", "blank"])  # fmt: skip
    for mode, accuracy in (("uniform", result.accuracy), ("blank", result.blind_accuracy)):
        samples = read_samples(outs[mode] / "samples.jsonl")
        assert np.mean([sample.score for sample in samples]) == pytest.approx(accuracy, abs=1e-12)


def test_another_plan_is_refused_before_a_world_is_built(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"froze num_clips={CLIPS} and this call has"):
        freeze(Workspace(tmp_path), results, num_clips=CLIPS + 1, steps=STEPS)
    assert not any(tmp_path.iterdir())
