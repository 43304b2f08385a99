"""Training end to end on the lab: real clips, the real cache, DeepSpeed, the lab's policies."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from strive.configs.schema import TrainConfig
from strive.errors import CheckpointError, ConfigError, Interrupted, NonFiniteError
from strive.experiments.training import held_out_callable
from strive.lab.models import lab_model_path
from strive.records import read_records
from strive.train.loop import train
from strive.train.run_folder import Best, RunFolder

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
    "policy/rollout_mismatch",
    "policy/rollout_mismatch_max",
    "completion/length_mean",
    "completion/truncated_fraction",
    "completion/parsed_fraction",
    "variants/frame_overlap",
    "variants/effective_frames",
    "variants/evidence_seen",
    "group/mixed_evidence_fraction",
    "cost/vision_encodes",
    "cost/completions",
    "cost/logprob_passes",
    "cost/optimiser_steps",
    "time/step",
    "time/data",
    "time/rollout",
    "time/logprob",
    "time/backward",
    "memory/peak_bytes",
}


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
    config = TrainConfig(**settings(loggers=("tensorboard",), keep_checkpoints=2))
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


def test_a_run_that_learns_nothing_says_why_once(settings, tmp_path, capsys):
    # One token is no answer: none can be read or is right, and all rewards are equal.
    nothing = {"max_new_tokens": 1, "rewards": {"accuracy": 1.0}}
    config = TrainConfig(**settings(steps=2, questions_per_step=1, checkpoint_every=0, **nothing))
    train(config, run_dir=tmp_path / "run")
    # All of that follows from one cause: answers that cannot be read, or are all cut.
    [said] = [line for line in capsys.readouterr().err.splitlines() if "over the last" in line]
    assert said.startswith("warning: ")
    assert "over the last 2 steps holds an answer" in said or "was cut at max_new_tokens=1" in said
    assert lines(tmp_path / "run")[-1]["completion/parsed_fraction"] == 0


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


def test_an_attention_without_gradients_here_is_refused_first(settings, tmp_path):
    with pytest.raises(ConfigError, match="on a GPU only; set attention=auto"):
        train(TrainConfig(**settings(attention="flex")), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resume_refuses_another_configuration(settings, tmp_path):
    train(TrainConfig(**settings(steps=1)), run_dir=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"seed: the run has 0, this call has 1\)"):
        train(TrainConfig(**settings(steps=1, seed=1)), run_dir=tmp_path / "run", resume=True)
    state = tmp_path / "run/checkpoints/step-000001/state.json"
    began = json.loads(state.read_text())
    state.write_text(json.dumps(began | {"start_digest": "0123"}))
    with pytest.raises(CheckpointError, match=r"began from other weights \(0123\)"):
        train(TrainConfig(**settings(steps=2)), run_dir=tmp_path / "run", resume=True)
    state.write_text(json.dumps(began))
    # More steps at a constant rate are the same run, continued.
    summary = train(TrainConfig(**settings(steps=2)), run_dir=tmp_path / "run", resume=True)
    assert summary.first_step == 1 and len(lines(tmp_path / "run")) == 2


def held_out_rows(run_dir):
    return [json.loads(row) for row in (run_dir / "held_out.jsonl").read_text().splitlines()]


@pytest.fixture
def held_out(lab):
    """Settings of a run that evaluates every 2 steps."""
    return {"evaluate_every": 2, "held_out": (str(lab / "world" / "train.jsonl"),)}


def evaluation(*accuracies):
    """Held-out accuracies as they come; the policy that gave each is told by its weights."""
    left = list(accuracies)

    def evaluate(policy, processes):
        return {"accuracy": left.pop(0), "weights": weight_sum(policy.model)}

    return evaluate


def weight_sum(model):
    return sum(float(p.detach().double().abs().sum()) for p in model.parameters())


def weights_of(folder):
    from transformers import AutoModelForImageTextToText

    return weight_sum(AutoModelForImageTextToText.from_pretrained(folder))


def test_held_out_evaluation_keeps_the_best_policy(settings, held_out, tmp_path):
    config = TrainConfig(**settings(steps=5, checkpoint_every=0, **held_out))
    reports = []
    summary = train(
        config,
        run_dir=tmp_path / "run",
        evaluate_held_out=evaluation(0.1, 0.4, 0.4, 0.3),
        on_step=reports.append,
    )
    rows = held_out_rows(tmp_path / "run")
    assert [(row["step"], row["accuracy"]) for row in rows] == [
        (0, 0.1),
        (2, 0.4),
        (4, 0.4),
        (5, 0.3),
    ]
    # Of equals the earliest.
    assert summary.best == Best(2, "accuracy", 0.4)
    assert [report.best.step for report in reports] == [0, 2, 2, 2, 2]
    best, final = tmp_path / "run" / "best", tmp_path / "run" / "final"
    assert weights_of(best) == rows[1]["weights"] != rows[-1]["weights"]
    assert weights_of(final) == rows[-1]["weights"]
    of_best = {path.name for path in best.iterdir()}
    assert of_best == {path.name for path in final.iterdir()} | {"best.json"}
    assert not (tmp_path / "run" / "checkpoints" / "best").exists()


def test_no_best_unless_it_is_wanted_and_there_is_an_evaluation(settings, held_out, tmp_path):
    evaluate = evaluation(0.1, 0.2)
    wanted = TrainConfig(**settings(steps=1, keep_best=False, **held_out))
    train(wanted, run_dir=tmp_path / "unwanted", evaluate_held_out=evaluate)
    assert len(held_out_rows(tmp_path / "unwanted")) == 2
    summary = train(TrainConfig(**settings(steps=1)), run_dir=tmp_path / "none")
    assert summary.best is None
    assert not list(tmp_path.glob("*/best"))
    with pytest.raises(ConfigError, match=r"goes by held-out 'accuracy', .* gives loss; set keep"):
        train(
            TrainConfig(**settings(steps=1, **held_out)),
            run_dir=tmp_path / "other",
            evaluate_held_out=lambda policy, processes: {"loss": 1.0},
        )


def test_benchmarks_are_held_out_beside_records(settings, held_out, lab, tmp_path):
    own = {"held_out": (*held_out["held_out"], f"lab:{lab / 'world'}@2"), "keep_best": False}
    config = TrainConfig(**settings(steps=1, **{**held_out, **own}))
    assert config.held_out_benchmarks == (str(own["held_out"][1]),)
    train(config, run_dir=tmp_path / "run", evaluate_held_out=held_out_callable(config))
    [_, row] = held_out_rows(tmp_path / "run")
    num_records = len(read_records(config.held_out_files).records)
    assert row["num_questions"] == num_records + 2 and row["num_failed"] == 0
    # Two questions: none, one or both are right.
    assert row["lab/accuracy"] in (0.0, 0.5, 1.0)


@pytest.mark.long
def test_a_best_from_after_the_checkpoint_does_not_stay(settings, held_out, tmp_path):
    """Evaluations at 0, 2, 4, 6; checkpoints at 3 and 6; killed at 5, after a better one at 4."""
    config = TrainConfig(**settings(checkpoint_every=3, **held_out))
    accuracies = (0.1, 0.3, 0.5, 0.2)
    train(config, run_dir=tmp_path / "whole", evaluate_held_out=evaluation(*accuracies))

    def die(report):
        if report.step == 5:
            raise Killed

    run = tmp_path / "killed"
    with pytest.raises(Killed):
        train(config, run_dir=run, evaluate_held_out=evaluation(*accuracies), on_step=die)
    assert RunFolder(run).read_best() == Best(4, "accuracy", 0.5)

    seen = []

    def look(report):
        seen.append((report.step, report.best))
        if report.step == 5:
            raise Killed

    # Another outcome than the first time: what the checkpoint saw is what counts.
    with pytest.raises(Killed):
        train(config, run_dir=run, resume=True, evaluate_held_out=evaluation(0.25), on_step=look)
    assert seen == [(4, Best(2, "accuracy", 0.3)), (5, Best(2, "accuracy", 0.3))]
    assert weights_of(run / "best") == held_out_rows(run)[1]["weights"]

    train(config, run_dir=run, resume=True, evaluate_held_out=evaluation(0.5, 0.2))
    assert held_out_rows(run) == held_out_rows(tmp_path / "whole")
    assert RunFolder(run).read_best() == Best(4, "accuracy", 0.5)
    assert weights_of(run / "best") == weights_of(tmp_path / "whole" / "best")


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


def test_two_updates_per_rollout_leave_the_clip_range(settings, tmp_path):
    config = TrainConfig(**settings(steps=3, updates_per_rollout=2, learning_rate=5e-3))
    train(config, run_dir=tmp_path / "run")
    clipped = [line["policy/clip_fraction"] for line in lines(tmp_path / "run")]
    assert max(clipped) > 0
    once = config.model_copy(update={"updates_per_rollout": 1})
    train(once, run_dir=tmp_path / "once")
    assert {line["policy/clip_fraction"] for line in lines(tmp_path / "once")} == {0.0}


@pytest.mark.long
def test_weights_and_biases_offline(settings, tmp_path, monkeypatch):
    """The logger itself, without a network: its files, and one run id for a run that resumes."""
    import wandb

    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_CACHE_DIR": tmp_path / "cache",
        "WANDB_CONFIG_DIR": tmp_path / "config",
        "WANDB_DATA_DIR": tmp_path / "data",
    }.items():
        monkeypatch.setenv(name, str(value))

    def die(report):
        raise Killed

    config = TrainConfig(**settings(steps=2, checkpoint_every=1, loggers=("wandb",)))
    run_dir = tmp_path / "run"
    with pytest.raises(Killed):
        train(config, run_dir=run_dir, on_step=die)
    train(config, run_dir=run_dir, resume=True)
    wandb.teardown()
    run_id = json.loads((run_dir / "wandb.json").read_text())["run_id"]
    logs = sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in logs] == [f"run-{run_id}.wandb"] * 2
    for path in logs:
        text = path.read_bytes()
        assert b"reward/lab_rewards:vowels" in text and b"learning_rate" in text
    assert [line["step"] for line in lines(run_dir)] == [1, 2]
    assert not (run_dir / "tensorboard").exists()


def test_a_step_that_is_not_finite_leaves_its_batch(settings, tmp_path):
    weights = {"accuracy": 1.0, "lab_rewards:vowels": 1e100}
    config = TrainConfig(**settings(steps=1, objective="dr_grpo", rewards=weights))
    folder = tmp_path / "run" / "nonfinite" / "step-000001"
    with pytest.raises(NonFiniteError, match=f"the batch is in {folder}") as error:
        train(config, run_dir=tmp_path / "run")
    assert error.value.exit_code == 1
    groups = json.loads((folder / "rank-0.json").read_text())["groups"]
    assert len(groups) == 4 and all(group["question_id"] in str(error.value) for group in groups)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


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
