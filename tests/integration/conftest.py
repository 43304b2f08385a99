"""The lab's training set-up that tests of training share: a small cache, a reward, settings."""

import sys
from pathlib import Path

import pytest
import torch

from strive.configs.schema import PrecomputeConfig
from strive.lab.models import lab_model_path
from strive.lab.world import build_world
from strive.pipeline.run import precompute

# Helper modules of these tests are imported by their names.
sys.path.insert(0, str(Path(__file__).parent))

# Any policy has signal under the first, however far it has learned its answers; the second has it
# for the questions of some.json only.
REWARDS = """
import json
import os
from pathlib import Path


def vowels(prompts, completions, **columns):
    return [sum(text.count(letter) for letter in "aeiou") / 10 for text in completions]


def vowels_for_some(prompts, completions, *, question_id, **columns):
    some = json.loads(Path(__file__).with_name("some.json").read_text())
    values = vowels(prompts, completions)
    return [value if q in some else 0.0 for value, q in zip(values, question_id, strict=True)]


def fails_on_the_second(prompts, completions, **columns):
    if os.environ.get("RANK") == "1":
        raise RuntimeError("this process fails alone")
    return [0.0] * len(completions)
"""
SCRIPT = """
import json, sys
from pathlib import Path
from strive.configs.schema import TrainConfig
from strive.train.loop import train
config = TrainConfig(**json.loads(sys.argv[1]))
train(config, run_dir=Path(sys.argv[2]), resume="--resume" in sys.argv)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A cache of three training clips, and a module with a reward."""
    root = tmp_path_factory.mktemp("lab")
    world = build_world(root / "world", num_clips=5, seed=0)
    precompute(
        PrecomputeConfig(
            data=(world.records_file("train"),),
            video_root=root / "world",
            cache=root / "cache",
            scorer_models={"siglip2": str(lab_model_path("siglip2"))},
            frames=32,
        )
    )
    (root / "lab_rewards.py").write_text(REWARDS)
    (root / "run.py").write_text(SCRIPT)
    sys.path.insert(0, str(root))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield root
    torch.set_num_threads(threads)
    sys.path.remove(str(root))
    # The next file's fixture has a module of this name, too.
    sys.modules.pop("lab_rewards", None)


@pytest.fixture
def settings(lab):
    def make(**changes):
        return {
            "model": str(lab_model_path("qwen2_5_vl")),
            "cache": str(lab / "cache"),
            "prompt_template": "short",
            "num_frames": 8,
            "max_new_tokens": 8,
            "sampling_temperature": 3.0,
            "questions_per_step": 4,
            "questions_per_micro_batch": 2,
            "steps": 6,
            "checkpoint_every": 2,
            "learning_rate": 2e-4,
            "rewards": {"accuracy": 1.0, "format": 1.0, "lab_rewards:vowels": 1.0},
            "loggers": (),
        } | changes

    return make
