"""Rollout, policy and reference are one model before the first update, under every preset."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from strive.configs.schema import TrainConfig
from strive.errors import ModelError
from strive.lab.models import lab_model_path
from strive.models.loading import load_policy
from strive.train import loop
from strive.train.engine import PRESETS, Engine
from strive.train.processes import start_processes
from strive.train.watch import MISMATCH_BOUNDS

FAMILIES = ("qwen2_5_vl", "qwen3_vl")


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


# Three presets with one family, in turn; the others are left to the long run.
QUICK_PRESETS = ("zero0", "zero2", "zero3")
PRESETS_AND_FAMILIES = [
    pytest.param(
        preset,
        family,
        marks=() if preset in QUICK_PRESETS and (row + column) % 2 == 0 else pytest.mark.long,
    )
    for row, preset in enumerate(sorted(file.stem for file in PRESETS.glob("*.json")))
    for column, family in enumerate(FAMILIES)
]


@pytest.mark.parametrize(("preset", "family"), PRESETS_AND_FAMILIES)
def test_two_steps_in_bfloat16(settings, tmp_path, capsys, preset, family):
    changes = {"deepspeed": preset, "dtype": "bfloat16", "steps": 2, "beta": 0.04}
    changes["model"] = str(lab_model_path(family))
    loop.train(TrainConfig(**settings(**changes)), run_dir=tmp_path / "run")
    first, second = lines(tmp_path / "run")
    assert first["loss/kl"] == 0.0 < second["loss/kl"]
    said = capsys.readouterr().err
    assert "mismatch" not in said and "KL" not in said
    for line in (first, second):
        assert line["optim/grad_norm"] > 0
        # What the text of the bound says of these models; a wrong position would be far above.
        assert 0 < line["policy/rollout_mismatch"] < 2e-3 < MISMATCH_BOUNDS["bfloat16"] / 10
        assert line["policy/rollout_mismatch"] < line["policy/rollout_mismatch_max"] < 0.1


@pytest.mark.parametrize("preset", ["zero0", pytest.param("zero3", marks=pytest.mark.long)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_the_policy_bit_for_bit_or_refused(monkeypatch, preset, family):
    policy = load_policy(lab_model_path(family), dtype="bfloat16")
    frequencies = {
        name: buffer.dtype
        for name, buffer in policy.model.named_buffers()
        if name.endswith("inv_freq")
    }
    assert set(frequencies.values()) == {torch.float32} and len(frequencies) >= 2
    config = TrainConfig(deepspeed=preset)
    engine = Engine(policy, start_processes(), config, with_reference=True)
    for model in (engine.reference, policy.model):
        assert {n: b.dtype for n, b in model.named_buffers() if n in frequencies} == frequencies

    def rounded(model, *args):
        """What a copy that is cast as a whole has: rotary frequencies of eight bits."""
        other = deepcopy(model, *args)
        return other.to(torch.bfloat16) if isinstance(other, torch.nn.Module) else other

    deepcopy = copy.deepcopy
    monkeypatch.setattr(copy, "deepcopy", rounded)
    with pytest.raises(ModelError, match=r"tensors differ, such as '\S*inv_freq'; set beta=0"):
        Engine(
            load_policy(lab_model_path(family), dtype="bfloat16"),
            start_processes(),
            config,
            with_reference=True,
        )


def test_a_sampler_of_another_policy_and_another_reference_are_named(
    settings, tmp_path, capsys, monkeypatch
):
    build = loop.build_trainer

    def with_faults(*args):
        trainer = build(*args)
        for parameter in trainer.reference.lm_head.parameters():
            parameter.data.mul_(1.01)

        def hotter(*arguments, sampling, **options):
            sampling = replace(sampling, sampling_temperature=2.0)
            return trainer.sampler(*arguments, sampling=sampling, **options)

        return replace(trainer, sampler=hotter)

    monkeypatch.setattr(loop, "build_trainer", with_faults)
    config = TrainConfig(**settings(steps=2))
    loop.train(config, run_dir=tmp_path / "run")
    warned = [w for w in capsys.readouterr().err.splitlines() if w.startswith("warning:")]
    assert len(warned) == 2  # once each, in the first step
    assert "policy/rollout_mismatch" in warned[0] and "KL term" in warned[1]
    line = lines(tmp_path / "run")[0]
    assert line["policy/rollout_mismatch"] > 1e-3 and line["loss/kl"] > 0
