"""The memory table of docs/scaling.md, made again from the formula of `train --dry-run`."""

import json
import shutil
from pathlib import Path

import pytest

from strive.configs.load import load_config
from strive.configs.schema import TrainConfig
from strive.lab.models import lab_model_path
from strive.train.plan import dry_run

PAGE = Path(__file__).parents[3] / "docs" / "scaling.md"
ROWS = ((1, "zero0"), (8, "zero1"), (8, "zero2"), (8, "zero3"), (64, "zero2"), (64, "zero3"))
PARTS = ("weights", "gradients", "optimiser", "reference")
# Qwen/Qwen2.5-VL-7B-Instruct, as its config.json has them.
TEXT = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "layer_types": ["full_attention"] * 28,
    "tie_word_embeddings": False,
}
VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


@pytest.fixture
def seven_b(tmp_path: Path) -> Path:
    """A folder with the 7B model's shapes and the lab's processor; there are no weights in it."""
    folder = tmp_path / "qwen2_5_vl_7b"
    shutil.copytree(
        lab_model_path("qwen2_5_vl"), folder, ignore=shutil.ignore_patterns("*.safetensors")
    )
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= TEXT
    config["text_config"]["rope_parameters"]["mrope_section"] = [16, 24, 24]
    config["vision_config"] |= VISION
    config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_memory_table(seven_b: Path, new_cache) -> None:
    cache = new_cache(num_questions=64, num_frames=16, size=28)
    table = [f"| GPUs | `deepspeed` | {' | '.join(PARTS)} | together |", "|" + "---|" * 7]
    for processes, preset in ROWS:
        config = load_config(
            TrainConfig,
            ["strive_qwen2_5_vl_7b"],
            ["scorer=siglip2", "num_questions=64", "dtype=bfloat16", "questions_per_step=64"],
            {"model": str(seven_b), "cache": cache},
        ).model_copy(update={"deepspeed": preset})
        memory = dry_run(config, num_processes=processes)["memory"]
        # 8.29 billion parameters, as the model's page says.
        assert round(memory["inputs"]["P"] / 1e9, 2) == 8.29
        sizes = [memory["bytes_per_process"][part] / 1e9 for part in PARTS]
        cells = [*(f"{size:.1f}" for size in sizes), f"{sum(sizes):.0f}"]
        table.append(f"| {processes} | `{preset}` | {' | '.join(cells)} |")
    wanted = "\n".join(table)
    assert wanted in PAGE.read_text(encoding="utf-8"), f"docs/scaling.md should have:\n{wanted}"
