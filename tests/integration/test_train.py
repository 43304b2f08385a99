"""Training end to end on the lab: real clips, the real cache, DeepSpeed, the lab's policies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from strive.configs.schema import TrainConfig
from strive.errors import CheckpointError, Interrupted
from strive.lab.models import lab_model_path
from strive.lab.world import build_world
from strive.pipeline.options import PrecomputeOptions
from strive.pipeline.run import precompute
from strive.train.loop import train

# Any policy has signal under this one, however far it has learned its answers.
VOWELS = """
def vowels(prompts, completions, **columns):
    return [sum(text.count(letter) for letter in "aeiou") / 10 for text in completions]
"""
SCRIPT = """
import json, sys
from pathlib import Path
from strive.configs.schema import TrainConfig
from strive.train.loop import train
config = TrainConfig(**json.loads(sys.argv[1]))
train(config, run_dir=Path(sys.argv[2]), resume="--resume" in sys.argv)
"""
METRICS = {
    "reward/mean",
    "reward/accuracy",
    "reward/format",
    "group/reward_std",
    "group/zero_std_fraction",
    "group/accuracy_zero_std_fraction",
    "group/between_variant_share",
    "group/all_correct_fraction",
    "group/all_wrong_fraction",
    "optim/grad_norm",
    "optim/learning_rate",
    "loss/total",
    "loss/policy",
    "loss/kl",
    "group/advantage_abs_max",
    "group/variant_agreement",
    "policy/clip_fraction",
    "policy/entropy",
    "completion/length_mean",
    "completion/truncated_fraction",
    "variants/frame_overlap",
    "variants/effective_frames",
    "variants/evidence_seen",
    "group/mixed_evidence_fraction",
    "time/step",
    "time/data",
    "time/rollout",
    "time/logprob",
    "time/backward",
    "memory/peak_bytes",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A cache of three training clips, and a module with a reward."""
    root = tmp_path_factory.mktemp("lab")
    world = build_world(root / "world", num_clips=5, seed=0)
    precompute(
        PrecomputeOptions(
            data=(world.records_file("train"),),
            video_root=root / "world",
            cache=root / "cache",
            scorer_models={"siglip2": str(lab_model_path("siglip2"))},
            frames=32,
        )
    )
    (root / "lab_rewards.py").write_text(VOWELS)
    (root / "run.py").write_text(SCRIPT)
    sys.path.insert(0, str(root))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield root
    torch.set_num_threads(threads)
    sys.path.remove(str(root))


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
            "tensorboard": False,
        } | changes

    return make


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def numbers(run_dir):
    """Everything of metrics.jsonl that a computation decides."""
    return [
        {key: value for key, value in line.items() if not key.startswith(("time/", "memory/"))}
        for line in lines(run_dir)
    ]


def completions(run_dir):
    return pl.read_parquet(run_dir / "completions.parquet").sort(
        "step", "question_id", "variant", "generation"
    )


def test_a_run_leaves_what_the_design_says(settings, lab, tmp_path, capsys):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    reports = []
    config = TrainConfig(**settings(tensorboard=True, keep_checkpoints=2))
    summary = train(config, run_dir=tmp_path / "run", on_step=reports.append)
    run_dir = tmp_path / "run"
    assert capsys.readouterr().out.startswith("train: importance variants, scores of siglip2; 12")

    wanted = {"step", "reward/lab_rewards:vowels"} | METRICS
    assert [set(line) for line in lines(run_dir)] == [wanted] * 6
    assert [line["step"] for line in lines(run_dir)] == [1, 2, 3, 4, 5, 6]
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert lines(run_dir)[-1]["loss/kl"] > 0

    table = completions(run_dir)
    assert len(table) == 6 * 4 * 2 * 4
    assert {"frame_index", "evidence_seen", "text", "advantage", "reward_accuracy"} <= set(
        table.columns
    )
    pools = table.group_by("step", "question_id").agg(pl.col("advantage").sum().abs())
    assert pools["advantage"].max() < 1e-6

    described = json.loads((run_dir / "config.json").read_text())
    assert described["config"] == config.model_dump(mode="json")
    assert described["data"]["scorer"] == "siglip2" and described["versions"]["deepspeed"]
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        "step-000004",
        "step-000006",
    ]
    assert list((run_dir / "tensorboard").iterdir())

    final = AutoModelForImageTextToText.from_pretrained(run_dir / "final")
    start = AutoModelForImageTextToText.from_pretrained(lab_model_path("qwen2_5_vl"))
    AutoProcessor.from_pretrained(run_dir / "final")
    moved = {
        name
        for (name, new), (_, old) in zip(
            final.named_parameters(), start.named_parameters(), strict=True
        )
        if (new.float() != old.float()).any()
    }
    assert any("merger" in name for name in moved) and any("language_model" in n for n in moved)
    assert not any("visual" in name and "merger" not in name for name in moved)
    assert (summary.num_steps, summary.num_questions, summary.scorer) == (6, 12, "siglip2")


def test_the_same_call_gives_the_same_run(settings, tmp_path):
    for name in ("one", "two"):
        train(TrainConfig(**settings(steps=3)), run_dir=tmp_path / name)
    assert numbers(tmp_path / "one") == numbers(tmp_path / "two")
    assert completions(tmp_path / "one").equals(completions(tmp_path / "two"))


class Killed(Exception):  # noqa: N818 - an end, not a fault
    """Stands for the end of a process: nothing of ours runs after it."""


def test_resume_equals_never_having_stopped(settings, tmp_path):
    config = TrainConfig(**settings())
    train(config, run_dir=tmp_path / "whole")

    def die(report):
        if report.step == 5:
            raise Killed

    def ask_to_stop(report):
        if report.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Killed):
        train(config, run_dir=tmp_path / "killed", on_step=die)
    with pytest.raises(Interrupted, match=r"after step 3 of 6.*--resume") as interrupted:
        train(config, run_dir=tmp_path / "stopped", on_step=ask_to_stop)
    assert interrupted.value.exit_code == 130
    assert len(lines(tmp_path / "stopped")) == 3
    for name, first in (("killed", 4), ("stopped", 3)):
        summary = train(config, run_dir=tmp_path / name, resume=True)
        assert summary.first_step == first
        assert numbers(tmp_path / name) == numbers(tmp_path / "whole")
        assert completions(tmp_path / name).equals(completions(tmp_path / "whole"))


def test_resume_before_the_first_checkpoint_starts_over(settings, tmp_path):
    def die(report):
        raise Killed

    config = TrainConfig(**settings(steps=2, checkpoint_every=0))
    with pytest.raises(Killed):
        train(config, run_dir=tmp_path / "run", on_step=die)
    with pytest.raises(CheckpointError, match="already holds a run; add --resume"):
        train(config, run_dir=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"seed: the run has 0, this call has 1\)"):
        other = config.model_copy(update={"seed": 1})
        train(other, run_dir=tmp_path / "run", resume=True)
    train(config, run_dir=tmp_path / "run", resume=True)
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2]
    assert len(completions(tmp_path / "run")) == 2 * 4 * 2 * 4


def test_resume_refuses_another_configuration(settings, tmp_path):
    train(TrainConfig(**settings(steps=1)), run_dir=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"seed: the run has 0, this call has 1\)"):
        train(TrainConfig(**settings(steps=1, seed=1)), run_dir=tmp_path / "run", resume=True)
    state = tmp_path / "run/checkpoints/step-000001/state.json"
    began = json.loads(state.read_text())
    state.write_text(json.dumps(began | {"start_digest": "0123"}))
    with pytest.raises(CheckpointError, match=r"began from other weights \(0123\)"):
        train(TrainConfig(**settings(steps=1)), run_dir=tmp_path / "run", resume=True)
    state.write_text(json.dumps(began))
    # More steps at a constant rate are the same run, continued.
    summary = train(TrainConfig(**settings(steps=2)), run_dir=tmp_path / "run", resume=True)
    assert summary.first_step == 1 and len(lines(tmp_path / "run")) == 2


def test_held_out_evaluation(settings, lab, tmp_path):
    held_out = (str(lab / "world" / "held_out.jsonl"),)
    config = TrainConfig(**settings(steps=3, evaluate_every=2, held_out=held_out))
    seen = []

    def evaluate(policy):
        seen.append(policy.device)
        return {"held_out/accuracy": len(seen) / 10}

    train(config, run_dir=tmp_path / "run", evaluate_held_out=evaluate)
    rows = [json.loads(row) for row in (tmp_path / "run/held_out.jsonl").read_text().splitlines()]
    assert rows == [
        {"step": 0, "held_out/accuracy": 0.1},
        {"step": 2, "held_out/accuracy": 0.2},
        {"step": 3, "held_out/accuracy": 0.3},
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"variants": "none", "num_variants": 1, "num_generations": 8},
        {"variants": "deterministic", "objective": "dapo", "logprobs": "plain"},
        {"variants": "stochastic", "spatial": True, "objective": "dr_grpo"},
        {"variants": "random", "grouping": "hierarchical", "trainable": "all"},
        {"score_transform": "zscore", "grouping": "per_variant", "gradient_checkpointing": True},
        {"model": "qwen3_vl", "ratio": "sequence", "updates_per_rollout": 2},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_every_choice_runs(settings, tmp_path, changes):
    if "model" in changes:
        changes = changes | {"model": str(lab_model_path(changes["model"]))}
    train(TrainConfig(**settings(steps=2, **changes)), run_dir=tmp_path / "run")
    assert all(np.isfinite(line["loss/total"]) for line in lines(tmp_path / "run"))
    assert all(line["optim/grad_norm"] > 0 for line in lines(tmp_path / "run"))


def command(lab, settings, run_dir, *, processes=1, launcher="torchrun"):
    launchers = {
        "torchrun": [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
        ],
        "deepspeed": [
            "-m",
            "deepspeed.launcher.runner",
            "--no_local_rank",
            f"--num_accelerators={processes}",
            "--master_port=29735",
        ],
    }
    start = launchers[launcher] if processes > 1 else []
    return [sys.executable, *start, str(lab / "run.py"), json.dumps(settings), str(run_dir)]


def environment(lab):
    return os.environ | {
        "PYTHONPATH": f"{lab}{os.pathsep}{Path(__file__).parents[2]}",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }


@pytest.mark.long
@pytest.mark.parametrize(
    ("launcher", "preset"),
    [
        ("torchrun", "zero0"),
        ("torchrun", "zero1"),
        ("torchrun", "zero2"),
        ("torchrun", "zero3"),
        ("deepspeed", "zero0"),
    ],
)
def test_two_processes_equal_one(settings, lab, tmp_path, launcher, preset):
    train(TrainConfig(**settings(steps=4)), run_dir=tmp_path / "one")
    call = command(
        lab, settings(steps=4, deepspeed=preset), tmp_path / "two", processes=2, launcher=launcher
    )
    subprocess.run(call, env=environment(lab), check=True, timeout=240)
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        for name in ("loss/total", "loss/policy", "loss/kl", "reward/mean", "optim/grad_norm"):
            assert two[name] == pytest.approx(one[name], abs=1e-4), name


@pytest.mark.long
def test_kill_minus_nine_and_resume(settings, lab, tmp_path):
    options = settings(steps=8, checkpoint_every=3)
    train(TrainConfig(**options), run_dir=tmp_path / "whole")
    call = command(lab, options, tmp_path / "killed")
    process = subprocess.Popen(call, env=environment(lab))
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.is_file() or metrics.read_text().count("\n") < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    subprocess.run([*call, "--resume"], env=environment(lab), check=True, timeout=240)
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    assert completions(tmp_path / "killed").equals(completions(tmp_path / "whole"))
