"""What a GPU machine without a network is given beside the checkout, in two folders.

    build/gpu/wheels      packages that it lacks or has in another version, for its Python
    build/gpu/workspace   the lab's records and cache, so that it needs no decoder, open_clip, faiss

A machine for GPU work has torch with CUDA, torchvision, pyarrow, scipy, pytest and the like; what
of ours it lacks is listed here, with the versions of constraints.txt. Packages that are published
as sources alone are built here, where PyPI can be reached.

    python -m bench.gpu_bundle [--python 3.12]
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from strive.experiments.workspace import Workspace, ensure_lab

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "gpu"
MOST_BYTES = 45 * 10**6
"""Of each folder."""
NUM_CLIPS = 40
PUBLISHED = (
    "transformers",
    "peft",
    "pydantic",
    "pydantic_core",
    "annotated-types",
    "typing-inspection",
    "hjson",
    "jiwer",
    "rapidfuzz",
    "nltk",
    "defusedxml",
)
SOURCES = ("deepspeed", "rouge_score")
PLATFORMS = tuple(f"manylinux{age}_x86_64" for age in ("2014", "_2_17", "_2_24", "_2_27", "_2_28"))


def pinned(names: tuple[str, ...]) -> list[str]:
    """The names with the versions of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    versions = {line.partition("==")[0].lower().replace("_", "-"): line for line in lines}
    return [versions[name.lower().replace("_", "-")] for name in names]


def collect_wheels(folder: Path, python: str) -> None:
    """Download and build; the folder is made anew, so that it holds one version of each."""
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    target = ["--python-version", python, "--implementation", "cp", *platforms]
    only_wheels = ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    subprocess.run([*pip, "download", *only_wheels, *target, *pinned(PUBLISHED)], check=True)
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), *pinned(SOURCES)],
        check=True,
        # Nothing of DeepSpeed's is compiled: we hand it torch's optimiser.
        env=os.environ | {"DS_BUILD_OPS": "0"},
    )


def make_workspace(folder: Path) -> None:
    """A small lab with its cache; clips are of no use to training, and stay behind."""
    ensure_lab(Workspace(folder), num_clips=NUM_CLIPS, seed=0)
    precompute = ["precompute", "--scorer", "siglip2", "--workspace", str(folder)]
    subprocess.run([sys.executable, "-m", "strive.cli", *precompute], check=True)


def megabytes(folder: Path) -> float:
    """Size of all files of a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def main() -> None:
    """Make both folders and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default="3.12", help="the GPU machine's")
    asked = parser.parse_args()
    wheels, workspace = FOLDER / "wheels", FOLDER / "workspace"
    collect_wheels(wheels, asked.python)
    make_workspace(FOLDER / "made")
    shutil.rmtree(workspace, ignore_errors=True)
    shutil.copytree(
        FOLDER / "made", workspace, ignore=shutil.ignore_patterns("clips", "runs", "*.tmp")
    )
    for wheel in sorted(wheels.iterdir()):
        print(f"  {wheel.stat().st_size / 1e6:6.2f} MB  {wheel.name}")
    for folder in (wheels, workspace):
        size = megabytes(folder)
        print(f"{size:8.2f} MB  {folder.relative_to(ROOT)}")
        if size * 1e6 > MOST_BYTES:
            sys.exit(f"{folder} is larger than {MOST_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
