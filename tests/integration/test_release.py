"""What leaves the house: the wheel, and the files that say how to cite, build and run it."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from strive import __version__

ROOT = Path(__file__).parents[2]


def test_what_says_a_version_says_this_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert "2604.01824" in citation["preferred-citation"]["url"]


def test_continuous_integration_calls_the_script_that_is_here() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    runs = [step.get("run", "") for step in workflow["jobs"]["test"]["steps"]]
    assert ".ci/run" in runs and (ROOT / ".ci" / "run").stat().st_mode & 0o111
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {run.removeprefix("make ") for run in runs if run.startswith("make ")} <= targets


def test_the_image_copies_what_there_is() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for name in line.split()]
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert copied and all((ROOT / name).exists() and f"!{name}" in kept for name in copied)


@pytest.mark.long
def test_a_wheel_runs_the_demonstration_by_itself(tmp_path: Path) -> None:
    """In a new environment whose only STRIVE is the wheel's; torch and the like are borrowed."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("strive_rl-*.whl")
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "strive").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("strive/")}
    assert inside == files

    home = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    borrowed = Path(torch.__file__).parents[1]
    (packages / "borrowed.pth").write_text(f"{borrowed}\n")  # reads no .pth of that folder
    python = [home / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*python, "install", "--no-index", "--no-deps", wheel], check=True)

    def run(*arguments: str) -> str:
        return subprocess.run(
            [home / "bin" / "strive-cli", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    where = "import strive; print(strive.__file__)"
    found = subprocess.run(
        [home / "bin" / "python", "-c", where],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(packages)
    assert "lab_strive" in json.loads(run("presets", "--json"))
    assert "STRIVE" in run("demo", "--steps", "2", "--clips", "10", "--workspace", "space")
    page = (tmp_path / "space" / "demo" / "report.html").read_text(encoding="utf-8")
    assert "</html>" in page and "data:image" in page
