"""A folder of clips with questions about them, which tests of several rooms precompute."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from strive.configs.load import build_config
from strive.configs.schema import PrecomputeConfig
from strive.records import Record, write_records

TOY = "pipeline.toy_scorer:make"


@dataclass(frozen=True)
class World:
    """A folder of clips with a records file."""

    root: Path
    data: Path

    def options(self, cache: Path, **changes: Any) -> PrecomputeConfig:
        """Options for this world with the toy scorer and few frames."""
        values: dict[str, Any] = {
            "data": (self.data,),
            "video_root": self.root,
            "cache": cache,
            "scorers": (TOY,),
            "frames": 12,
            "workers": 2,
            "max_failure_fraction": 1.0,
        }
        return build_config(PrecomputeConfig, {**values, **changes})


def question(number: int, video_id: str, text: str | None = None) -> Record:
    return Record(
        str(number),
        video_id,
        text or f"What is shown {'very ' * (number % 4)}often?",
        "multiple choice",
        ("A. this", "B. that"),
        "<answer>A</answer>",
        "even" if number % 2 == 0 else "odd",
    )


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Not above: a bare GPU machine loads this file with every test, and has no FFmpeg.
    from video import coded_clips as clips

    root = tmp_path_factory.mktemp("world")
    for number, length in enumerate((30, 40, 50, 5)):
        clips.write_clip(root / f"clip{number}.mp4", length)
    return root


@pytest.fixture
def world(clip_folder: Path, tmp_path: Path) -> World:
    """Four good clips (one of five frames) with two questions each."""
    root = tmp_path / "videos"
    shutil.copytree(clip_folder, root)
    data = tmp_path / "records.jsonl"
    write_records(data, [question(n, f"clip{n // 2}.mp4") for n in range(8)])
    return World(root, data)
