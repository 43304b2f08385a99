"""Policies for the scorers' tests: the lab's, and random ones of both families."""

from pathlib import Path

import numpy as np
from models.conftest import build_folder

from strive.lab.models import lab_model_path

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
KINDS = [(family, source) for family in FAMILIES for source in ("lab", "random")]


def policy_folder(family: str, source: str, folder: Path) -> Path:
    """Return the folder of a policy; a random one is built in `folder`."""
    return lab_model_path(family) if source == "lab" else build_folder(family, folder)


def frames(num_frames: int, height: int = 90, width: int = 120, seed: int = 0) -> np.ndarray:
    """Coarse random pictures."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num_frames, 9, 12, 3), dtype=np.uint8)
    return coarse.repeat(height // 9, axis=1).repeat(width // 12, axis=2)
