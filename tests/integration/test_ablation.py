"""`ablate` end to end on a small lab: killed in the middle and finished; two jobs of an array."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from strive.evaluate.samples import read_samples
from strive.lab.world import build_world

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]
CELLS = ("table2_grpo", "table2_importance_sim_spatial", "table5_m4_g2")


def start(workspace: Path, *options: str) -> subprocess.Popen[str]:
    """Start Table 5 with two seeds of 20 steps."""
    command = [sys.executable, "-m", "strive.cli", "ablate", "--table", "5", "--seeds", "2"]
    command += ["--steps", "20", "--workspace", str(workspace)]
    # Four questions a step, not twelve: a third of the time.
    command += ["--set", "questions_per_step=4", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate()
    assert process.returncode == 0, err[-3000:]
    return out


def processes_of(workspace: Path) -> list[str]:
    """Command lines of the processes that work in a workspace."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has just ended
            continue
        if str(workspace) in line:
            found.append(line)
    return found


def small_lab(folder: Path) -> Path:
    build_world(folder / "lab", num_clips=20, seed=0)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose table was killed while runs trained, interrupted, and then finished."""
    workspace = small_lab(tmp_path_factory.mktemp("whole"))
    killed = start(workspace)
    while not list(workspace.glob("ablate/*/seed-*/run/metrics.jsonl")):
        assert killed.poll() is None, killed.communicate()[1][-3000:]
        time.sleep(0.1)
    killed.kill()
    killed.communicate()
    while processes_of(workspace):  # nothing is left behind
        time.sleep(0.1)
    assert not list(workspace.glob("ablate/*/seed-*/answers/results.json"))
    interrupted = start(workspace)
    while not any(" train --config " in line for line in processes_of(workspace)):
        assert interrupted.poll() is None, interrupted.communicate()[1][-3000:]
        time.sleep(0.1)
    interrupted.send_signal(signal.SIGINT)
    _, err = interrupted.communicate()
    assert interrupted.returncode == 130, err[-3000:]
    assert "the same command goes on" in err.splitlines()[-1]
    assert not processes_of(workspace)
    text = finish(start(workspace))
    assert "M=4, G=2" in text and "missing" not in text
    return workspace


def test_a_killed_table_is_finished_by_the_same_command(finished: Path) -> None:
    out = finished / "ablate"
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(CELLS)
    found = json.loads((out / "table5.json").read_text())
    assert found["num_missing"] == 0
    assert [cell["seeds"] for cell in found["cells"]] == [[0, 1]] * 3
    assert found["cells"][1]["difference"]["num_pairs"] == 2
    for suffix in ("md", "tex"):
        assert "M=2, G=4" in (out / f"table5.{suffix}").read_text()
    # Nothing is left to do.
    before = (out / CELLS[0] / "seed-0" / "log.txt").read_bytes()
    assert json.loads(finish(start(finished, "--json"))) == found
    assert (out / CELLS[0] / "seed-0" / "log.txt").read_bytes() == before
    listed = json.loads(finish(start(finished, "--list", "--json")))
    assert all(row["done"] for row in listed)


def test_two_jobs_of_an_array_at_once_give_the_same_numbers(finished: Path, tmp_path: Path) -> None:
    workspace = small_lab(tmp_path)
    jobs = [start(workspace, "--cell", cell, "--json") for cell in ("0", "1")]
    for index, job in enumerate(jobs):
        (row,) = json.loads(finish(job))
        assert row["done"] and row["index"] == index
        one, other = (
            read_samples(place / "ablate" / CELLS[index] / "seed-0" / "answers" / "samples.jsonl")
            for place in (workspace, finished)
        )
        assert {s.question_id: s.output for s in one} == {s.question_id: s.output for s in other}
    text = finish(start(workspace, "--list"))
    assert text.count("yes") == 2 and text.count("no") >= 4


def test_another_configuration_is_refused_in_its_folder(finished: Path) -> None:
    process = start(finished, "--set", "beta=0.5")
    _, err = process.communicate()
    assert process.returncode == 2 and "beta: there 0.04, here 0.5" in err.splitlines()[-1]
