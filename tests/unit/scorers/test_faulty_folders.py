"""Model folders with something missing or broken: one line that says what, never random numbers."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from strive.errors import ModelError
from strive.lab.models import lab_model_path
from strive.scorers import ScorerRequest, load_scorer

MODELS = {"siglip2": "siglip2", "llava_ov": "llava_ov", "policy": "qwen2_5_vl"}


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def drop_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def drop_weights(folder: Path) -> None:
    weights_of(folder).unlink()


def cut_weights(folder: Path) -> None:
    path = weights_of(folder)
    path.write_bytes(path.read_bytes()[:5000])


def drop_one_tensor(folder: Path) -> None:
    # transformers only warns of this, and goes on with a random tensor in its place.
    state = load_file(weights_of(folder))
    del state[next(name for name in state if "patch_embed" in name or "conv1" in name)]
    save_file(state, weights_of(folder), metadata={"format": "pt"})


def break_config(folder: Path) -> None:
    for name in ("config.json", "open_clip_config.json"):
        if (folder / name).is_file():
            (folder / name).write_text("{")


def widen_model(folder: Path) -> None:
    for name, old, new in (
        ("config.json", '"hidden_size": 1', '"hidden_size": 2'),
        ("config.json", '"hidden_size": 96', '"hidden_size": 80'),
        ("open_clip_config.json", '"width": 128', '"width": 96'),
    ):
        if (folder / name).is_file():
            text = (folder / name).read_text()
            (folder / name).write_text(text.replace(old, new))


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize(
    "fault",
    [drop_tokenizer, drop_weights, cut_weights, drop_one_tensor, break_config, widen_model],
)
def test_a_faulty_folder_is_one_line(
    name: str, fault: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(lab_model_path(MODELS[name]), folder)
    fault(folder)
    with pytest.raises(ModelError) as caught:
        load_scorer(name, ScorerRequest(model=str(folder)))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_parts_that_are_never_run_may_be_missing(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(lab_model_path("llava_ov"), folder)
    state = load_file(weights_of(folder))
    kept = {
        name: value
        for name, value in state.items()
        if "language_model" not in name or "embed_tokens" in name
    }
    assert len(kept) < len(state)
    save_file(kept, weights_of(folder), metadata={"format": "pt"})
    load_scorer("llava_ov", ScorerRequest(model=str(folder)))
