"""The example of docs/own-scorer.md, taken from the page and run as a user runs it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from strive.cache.layout import open_cache
from strive.cache.questions import read_questions
from strive.cache.scores import ScoreReader
from strive.lab.world import build_world

PAGE = Path(__file__).parents[2] / "docs" / "own-scorer.md"


def example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return code


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "strive.cli", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    build_world(folder / "world", num_clips=4, seed=5)
    (folder / "colour_scorer.py").write_text(example(), encoding="utf-8")
    return folder


def test_the_example_is_short() -> None:
    code = [line for line in example().splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= 22


def test_the_example_runs_from_the_command_line(folder: Path) -> None:
    data = [
        word
        for path in sorted((folder / "world").glob("*.jsonl"))
        for word in ("--data", str(path))
    ]
    arguments = [
        "precompute", *data, "--video-root", "world", "--cache", "cache",
        "--scorer", "colour_scorer:make",
    ]  # fmt: skip
    done = run(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    layout = open_cache(folder / "cache")
    (key,) = layout.scorer_keys()
    settings = json.loads((layout.scores(key) / "settings.json").read_text())
    assert settings["name"] == "colour_scorer:make" and settings["split"]
    scores = ScoreReader(layout, key)
    records = read_questions(layout)
    assert records and {record.question_id for record in records} == set(scores.question_ids)
    names = ("red", "green", "blue", "yellow", "purple", "cyan")
    naming = [record for record in records if any(name in record.problem for name in names)]
    rows = [scores.get(record.question_id) for record in naming]
    assert rows and all(row is not None and np.isfinite(row.scores_F).all() for row in rows)
    assert np.median([np.ptp(row.scores_F) for row in rows if row is not None]) > 0.1
    # The same call again knows the scorer by its files, and has nothing to do.
    again = run(folder, *arguments, "--json")
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads(again.stdout)["num_decoded"] == 0
