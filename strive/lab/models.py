"""The tiny models that ship with the package: their names, folders and what was measured of them.

Each is an ordinary folder that an ordinary loader opens. No torch here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strive.errors import MissingInputError, unknown_name

WEIGHTS_ROOT = Path(__file__).parent / "weights"
_ABOUT = {
    "siglip2": "SigLIP2-type two-tower scorer (open_clip local-dir folder)",
    "llava_ov": "LLaVA-OneVision-type scorer (transformers folder)",
    "qwen2_5_vl": "Qwen2.5-VL policy, 56x56 pixels a frame (transformers folder)",
    "qwen3_vl": "Qwen3-VL policy, 64x64 pixels a frame (transformers folder)",
}


@dataclass(frozen=True, slots=True)
class LabModel:
    """One shipped model.

    Args:
        name: what `lab:NAME` refers to.
        about: one line of description.
        path: its folder.
        size_bytes: of all its files.
        recipe: the content of its `recipe.json`: seed, hyper-parameters and measured metrics.
    """

    name: str
    about: str
    path: Path
    size_bytes: int
    recipe: dict[str, Any]


def lab_model_names() -> tuple[str, ...]:
    """Return the names that `lab:NAME` knows."""
    return tuple(_ABOUT)


def lab_model_path(name: str) -> Path:
    """Return the folder of a lab model.

    Raises:
        UnknownNameError: no such lab model.
        MissingInputError: the folder is not in this installation.
    """
    if name not in _ABOUT:
        raise unknown_name("lab model", name, _ABOUT)
    path = WEIGHTS_ROOT / name
    if not path.is_dir():
        raise MissingInputError(
            f"no weights of lab model '{name}' at {path}; make them with "
            f"`python -m recipes {name} --out {path}`"
        )
    return path


def describe() -> list[LabModel]:
    """Describe the lab models of this installation, in the order of `lab_model_names`."""
    models = []
    for name, about in _ABOUT.items():
        path = WEIGHTS_ROOT / name
        if not path.is_dir():
            continue
        recipe_file = path / "recipe.json"
        recipe = json.loads(recipe_file.read_text()) if recipe_file.is_file() else {}
        size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        models.append(LabModel(name, about, path, size_bytes, recipe))
    return models
