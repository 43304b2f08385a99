"""docs/methods.md: its own method as it stands there, and what it says of the presets."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from strive.configs.catalogue import method_changes, presets_by_kind
from strive.configs.load import load_config
from strive.configs.schema import TrainConfig
from strive.lab.models import lab_model_path
from strive.train.loop import train
from strive.train.rewards import load_rewards
from strive.train.views import VIEWS, FrameViews

PAGE = Path(__file__).parents[3] / "docs" / "methods.md"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The page's two files in the working directory, and its first command."""
    text = PAGE.read_text(encoding="utf-8")
    files = re.findall(r"```(?:python|yaml)\n# (\w+\.\w+)\n(.*?)```", text, re.DOTALL)
    assert [name for name, _ in files] == ["my_motion.py", "my_motion.yaml"]
    for name, content in files:
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    [command] = re.findall(r"^strive-cli (train --config my_motion.yaml .* lab)$", text, re.M)
    words = shlex.split(command)
    return load_config(TrainConfig, [words[i + 1] for i, w in enumerate(words) if w == "--config"])


def test_it_is_short():
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) < 30


def test_its_configuration_is_what_it_says(example):
    assert (example.contrast, example.contrast_generations) == ("my_motion:still", 4)
    assert example.rewards == {"accuracy": 1.0, "format": 1.0, "my_motion:moves": 0.3}
    base = load_config(TrainConfig, ["grpo", "lab"]).model_dump()
    changed = {key for key, value in example.model_dump().items() if value != base[key]}
    # 4 generations of the contrast are the default.
    assert changed == {"contrast", "rewards"}


def test_its_view_shows_the_middle_frame_at_all_times(example):
    frames_KHWC = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    seen = FrameViews(example).contrast(frames_KHWC, step=0, question_id="7")
    assert (seen == frames_KHWC[2]).all() and seen.shape == frames_KHWC.shape


@pytest.mark.parametrize(
    ("of_still", "wanted"),
    [
        # Gold is B. One of four right from the still picture: right answers earn it.
        ("BAAC", [1.0, 0.0, 1.0, 0.0]),
        ("AACA", [1.0, 0.0, 1.0, 0.0]),
        # Half of them, or all: the picture gives the answer away.
        ("BBAC", [0.0] * 4),
        ("BBBB", [0.0] * 4),
    ],
)
def test_its_reward_does_what_it_says(example, of_still, wanted):
    reward = load_rewards(["my_motion:moves"])["my_motion:moves"]
    completions = [f"<think>x</think><answer>{letter}</answer>" for letter in "BAB"] + ["B"]
    columns = {
        "contrast_completions": [[f"<answer>{letter}</answer>" for letter in of_still]] * 4,
        "problem_type": ["multiple choice"] * 4,
        "solution": ["<answer>B</answer>"] * 4,
        "grading": ["video_r1"] * 4,
        "question_id": ["7"] * 4,
    }
    assert reward(prompts=["Which?"] * 4, completions=completions, **columns) == wanted


def test_a_run_with_it(example, make_config, tmp_path):
    """One step: the contrast is written, and the reward joins the others by its weight."""
    config = make_config(
        model=str(lab_model_path("qwen2_5_vl")),
        contrast=example.contrast,
        contrast_generations=example.contrast_generations,
        rewards=example.rewards,
        steps=1,
        loggers=(),
    )
    train(config, run_dir=tmp_path / "run")
    [line] = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").open()]
    # M x G of each question, and 4 more of its still picture.
    assert line["cost/completions"] == config.num_variants * config.num_generations + 4
    rows = pl.read_parquet(tmp_path / "run" / "completions.parquet")
    parts = [weight * rows[f"reward_{name}"] for name, weight in example.rewards.items()]
    np.testing.assert_allclose(rows["reward"], sum(parts))
    assert set(rows["reward_my_motion:moves"]) <= {0.0, 1.0}


def test_the_page_has_every_method_and_every_view():
    text = PAGE.read_text(encoding="utf-8")
    methods = presets_by_kind()["method"]
    assert set(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == set(methods)
    [table] = re.findall(r"\| view \| what is seen.*?\n\n", text, re.DOTALL)
    names = " ".join(row.split("|")[1] for row in table.strip().splitlines())
    assert set(re.findall(r"`(\w+)`", names)) == set(VIEWS)
    for marker in ("costs", "lab"):
        assert text.count(f"<!-- {marker} -->") == text.count(f"<!-- /{marker} -->") == 1


def test_the_table_of_hooks_names_who_uses_them():
    """A method that sets a hook's key, in a way of its own, stands in its row."""
    text = PAGE.read_text(encoding="utf-8")
    rows = [row.split("|") for row in text.splitlines() if row.startswith("|")]
    used = {row[1].split(":")[0].strip(): row[3] for row in rows if len(row) == 5}
    for key, hook in (
        ("variants", "rollout"),
        ("views", "rollout"),
        ("contrast", "contrast"),
        ("grouping", "advantage"),
        ("std", "advantage"),
        ("surrogate", "update"),
        ("ratio", "update"),
        ("update_view", "update"),
    ):
        for method in presets_by_kind()["method"]:
            if key in method_changes(method):
                assert f"`{method}`" in used[hook], (method, key)
