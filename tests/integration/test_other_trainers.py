"""The examples of docs/other-trainers.md, taken from the page and run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from strive.configs.schema import PrecomputeConfig
from strive.lab.models import lab_model_path
from strive.lab.world import build_world
from strive.pipeline.run import precompute

PAGE = Path(__file__).parents[2] / "docs" / "other-trainers.md"
# What TRL logged of the one step: the images of the four rows, as they reached the model.
TRL_CHECK = """
images = [[image.tobytes() for image in row] for row in trainer._logs["images"]]
wanted = [[frame.tobytes() for frame in row.video.frames_KHWC] for row in rows]
assert sorted(images) == sorted(wanted) and len(images) == 4
assert len({tuple(row) for row in images}) == config.num_variants
"""


def examples() -> dict[str, str]:
    blocks = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return dict(blocks)


def run(folder: Path, name: str, more: str = "") -> str:
    (folder / name).write_text(examples()[name] + more, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PAGE.parents[1])},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the lab's cache where the command line leaves it."""
    folder = tmp_path_factory.mktemp("others")
    world = build_world(folder / "world", num_clips=3, seed=0)
    precompute(
        PrecomputeConfig(
            data=(world.records_file("train"),),
            video_root=folder / "world",
            cache=folder / "strive-workspace" / "lab" / "cache",
            scorer_models={"siglip2": str(lab_model_path("siglip2"))},
            frames=32,
        )
    )
    return folder


@pytest.mark.long
def test_the_rows_example(folder: Path) -> None:
    printed = run(folder, "rows.py").splitlines()
    assert len(printed) == 9  # three lines for each of three steps
    assert [line.split()[0].split(":")[0] for line in printed[::3]] == ["0", "1", "2"]
    assert all(
        first.split("[")[1] != second.split("[")[1]
        for first, second in zip(printed[1::3], printed[2::3], strict=True)
    )


@pytest.mark.long
def test_the_trl_example(folder: Path) -> None:
    reward = float(run(folder, "trl_rows.py", TRL_CHECK).splitlines()[-1])
    assert 0 <= reward <= 1
