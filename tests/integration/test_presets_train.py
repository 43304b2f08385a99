"""Every method's preset learns on the lab: resumed as uninterrupted, on two processes as on one."""

import json
import shutil

import pytest
from several import several_processes

from strive.configs.catalogue import presets_by_kind
from strive.configs.load import load_config
from strive.configs.schema import TrainConfig
from strive.lab.models import lab_model_path
from strive.train.loop import train

METHODS = (
    "grpo", "strive", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "t_grpo", "reverse_reward",
    "reg_grpo", "share_advantage", "noisy_rollout", "ema_std", "time_r1", "video_auto_r1",
    "strive+gspo", "strive+dapo", "strive+t_grpo",
)  # fmt: skip
QUICK = ("noisy_rollout", "strive+gspo")  # views, the first one's update, parts, ratios


def listed(names, *, families=("qwen2_5_vl", "qwen3_vl")):
    """Those of QUICK with the first family in every run of the tests, all in the long ones."""
    return [
        pytest.param(
            name, family, marks=() if name in QUICK and family == families[0] else pytest.mark.long
        )
        for name in names
        for family in families
    ]


@pytest.fixture
def preset_settings(settings):
    """A preset over the lab, small, with a reward that gives any policy signal."""

    def make(preset, family="qwen2_5_vl", **changes):
        small = settings(model=str(lab_model_path(family)), steps=3, checkpoint_every=1)
        del small["rewards"], small["questions_per_micro_batch"]
        small |= {"keep_checkpoints": 3, "questions_per_micro_batch": 1, "warmup_steps": 0}
        small |= {"scorer": "siglip2"}
        config = load_config(
            TrainConfig,
            [*preset.split("+"), "lab"],
            ["rewards.lab_rewards:vowels=1.0"],
            small | changes,
        )
        settings_of = config.model_dump(mode="json")
        # So that two processes share each part's questions whole.
        parts = min(config.minibatches_per_rollout, 2)
        return settings_of | {"minibatches_per_rollout": parts}

    return make


def numbers(run_dir):
    """Everything of metrics.jsonl that a computation decides."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not key.startswith(("time/", "memory/"))}
        for line in lines
    ]


def test_every_method_is_among_the_tested():
    alone = [name for name in METHODS if "+" not in name]
    assert sorted(alone) == sorted(presets_by_kind()["method"])


@pytest.mark.parametrize(("preset", "family"), listed(METHODS))
def test_three_steps_resumed_in_the_middle(preset_settings, tmp_path, preset, family):
    config = TrainConfig(**preset_settings(preset, family))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(config, run_dir=whole)
    found = numbers(whole)
    assert len(found) == 3
    assert all(line["optim/grad_norm"] > 0 for line in found)
    # As it was after the first step.
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "final")
    for step in (2, 3):
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:06d}")
    train(config, run_dir=resumed, resume=True)
    assert numbers(resumed) == found
    one, other = ((run / "final" / "model.safetensors").read_bytes() for run in (whole, resumed))
    assert one == other


@pytest.mark.parametrize(("preset", "family"), listed(METHODS, families=("qwen2_5_vl",)))
def test_two_processes_as_one(preset_settings, lab, tmp_path, preset, family):
    changes = {"top_p": 1.0, "checkpoint_every": 0}
    several_processes(lab, tmp_path / "two", {preset: preset_settings(preset, family, **changes)})
    config = TrainConfig(**preset_settings(preset, family, **changes))
    train(config, run_dir=tmp_path / "one")
    one, two = numbers(tmp_path / "one"), numbers(tmp_path / "two" / preset)
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for name in ("loss/total", "reward/mean", "optim/grad_norm", "cost/completions"):
            assert second[name] == pytest.approx(first[name], rel=1e-3, abs=1e-4), name
