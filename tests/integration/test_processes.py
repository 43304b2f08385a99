"""What must not depend on the number of processes, the ZeRO stage or the micro-batches."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from several import several_processes

from strive.configs.schema import TrainConfig
from strive.errors import CheckpointError
from strive.train.data import TrainingData, shard
from strive.train.loop import train

SAME = ("loss/total", "loss/policy", "loss/kl", "reward/mean", "optim/grad_norm")


@pytest.fixture
def settings(settings):
    def make(**changes):
        return settings(
            **{
                "num_generations": 2,
                # The last bits of weights differ between stages. At the edge of a nucleus, where
                # one token more or less shifts all others, that is now and then another draw.
                "top_p": 1.0,
                "questions_per_step": 8,
                "questions_per_micro_batch": 1,
                "steps": 5,
                "checkpoint_every": 0,
                "rewards": {"lab_rewards:vowels": 1.0},
                "loggers": ("tensorboard",),
            }
            | changes
        )

    return make


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def numbers(run_dir):
    """Everything of metrics.jsonl that a computation decides."""
    return [
        {key: value for key, value in line.items() if not key.startswith(("time/", "memory/"))}
        for line in lines(run_dir)
    ]


def assert_same(one_dir, two_dir, *, learns=True):
    one, two = lines(one_dir), lines(two_dir)
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        for name in SAME:
            assert second[name] == pytest.approx(first[name], abs=1e-4), (two_dir.name, name)
    assert all((line["optim/grad_norm"] > 0) == learns for line in one)


@pytest.mark.long
def test_stages_processes_and_micro_batches_give_the_same_losses(settings, lab, tmp_path):
    partitioned = str(tmp_path / "two" / "all_partitioned.json")
    presets = ["zero0", "zero1", "zero2", "zero3", partitioned]
    offloads = ["zero2_offload", "zero3_offload"]

    def name(preset, *more):
        return "-".join([Path(preset).stem, *more])

    two = {
        # 8 questions are 4 a process.
        name(preset, f"accumulation_{4 // size}"): settings(
            deepspeed=preset, questions_per_micro_batch=size
        )
        for preset in presets
        for size in (4, 1)
    }
    two |= {name(preset): settings(deepspeed=preset, questions_per_micro_batch=2)
            for preset in offloads}  # fmt: skip
    lora = {"trainable": "lora", "lora_rank": 4, "learning_rate": 1e-3}
    two |= {
        name(preset, "lora"): settings(deepspeed=preset, questions_per_micro_batch=2, **lora)
        for preset in ("zero0", "zero3", partitioned, "zero3_offload")
    }
    all_parts = {"trainable": "all", "steps": 2, "gradient_checkpointing": True}
    two |= {name(partitioned, "all"): settings(deepspeed=partitioned, **all_parts)}
    several_processes(lab, tmp_path / "two", two)

    one = tmp_path / "one"
    train(TrainConfig(**settings(questions_per_micro_batch=8)), run_dir=one / "full")
    train(TrainConfig(**settings(questions_per_micro_batch=2)), run_dir=one / "full-accumulation_4")
    train(TrainConfig(**settings(**lora)), run_dir=one / "lora")
    train(TrainConfig(**settings(**all_parts)), run_dir=one / "all")
    for preset in presets[1:4]:
        train(TrainConfig(**settings(deepspeed=preset, questions_per_micro_batch=2)),
              run_dir=one / preset)  # fmt: skip
        assert_same(one / "full", one / preset)
    assert_same(one / "full", one / "full-accumulation_4")
    assert lines(one / "full")[-1]["loss/kl"] > 1e-3 < lines(one / "lora")[-1]["loss/kl"]
    for run in two:
        kind = run.rpartition("-")[2]
        assert_same(one / (kind if kind in ("lora", "all") else "full"), tmp_path / "two" / run)
    # The frozen model is the reference's and the merged one's base, whatever holds it.
    plain = pl.read_parquet(one / "lora" / "completions.parquet")["text"].sort()
    assert plain.equals(
        pl.read_parquet(tmp_path / "two" / "zero3-lora" / "completions.parquet")["text"].sort()
    )
    assert (tmp_path / "two" / "other_lengths").is_file()
    # Each process of ZeRO 1 and above holds its own part of the optimiser.
    config = TrainConfig(**two["zero1-accumulation_1"])
    with pytest.raises(CheckpointError, match=r"written by 2 processes, .* cannot be read by 1"):
        train(config, run_dir=tmp_path / "two" / "zero1-accumulation_1", resume=True)
    longer = TrainConfig(**(two["zero0-accumulation_4"] | {"steps": 6}))
    run_dir = tmp_path / "two" / "zero0-accumulation_4"
    assert train(longer, run_dir=run_dir, resume=True).first_step == 5
    assert len(lines(run_dir)) == 6


@pytest.mark.long
def test_a_process_without_any_signal_takes_part(settings, lab, tmp_path):
    base = settings(
        questions_per_step=4,
        questions_per_micro_batch=1,
        steps=3,
        beta=0.0,
        updates_per_rollout=2,
        rewards={"lab_rewards:vowels_for_some": 1.0},
    )
    # Of each step's two questions of the first process only the second has signal, so that it
    # leaves out a backward pass; the other process has none at all.
    data = TrainingData(TrainConfig(**base))
    per_step = [shard(data.questions_of(step), 2, 0, 2) for step in range(3)]
    some = [questions[1][0].question_id for questions in per_step]
    assert (
        len({record.question_id for step in range(3) for record in data.questions_of(step)}) == 12
    )
    (lab / "some.json").write_text(json.dumps(some))
    presets = ["zero0", "zero1", "zero2", "zero3", str(tmp_path / "two" / "all_partitioned.json")]
    several_processes(
        lab, tmp_path / "two", {Path(p).stem: base | {"deepspeed": p} for p in presets}
    )
    train(TrainConfig(**base), run_dir=tmp_path / "one")
    assert [line["group/zero_std_fraction"] for line in lines(tmp_path / "one")] == [0.75] * 3
    for preset in presets:
        assert_same(tmp_path / "one", tmp_path / "two" / Path(preset).stem)


@pytest.mark.long
def test_a_questions_variants_may_lie_on_several_processes(settings, lab, tmp_path):
    """4 questions of M=2 on 1, 2, 4 and 8 processes: one question, then one variant a process."""
    presets = ["zero0", str(tmp_path / "2" / "all_partitioned.json")]
    base = settings(questions_per_step=4, num_variants=2, variants="importance", spatial=True)
    runs = {Path(preset).stem: base | {"deepspeed": preset} for preset in presets}
    train(TrainConfig(**base), run_dir=tmp_path / "1" / "zero0")
    one = tmp_path / "1" / "zero0"
    assert all(line["group/between_variant_share"] > 0 for line in lines(one))
    texts = pl.read_parquet(one / "completions.parquet").sort(
        "step", "question_id", "variant", "generation"
    )
    for count in (2, 4, 8):
        several_processes(lab, tmp_path / str(count), runs, count)
        for name in runs:
            run_dir = tmp_path / str(count) / name
            assert_same(one, run_dir)
            print(count, name, [line["loss/total"] for line in lines(run_dir)])
            rows = pl.read_parquet(run_dir / "completions.parquet")
            rows = rows.sort("step", "question_id", "variant", "generation")
            for column in ("frame_index", "text", "reward", "advantage"):
                assert rows[column].equals(texts[column]), (count, name, column)


class Killed(Exception):  # noqa: N818 - an end, not a fault
    """Stands for the end of a process: nothing of ours runs after it."""


@pytest.mark.parametrize("preset", ["zero0", pytest.param("zero3_offload", marks=pytest.mark.long)])
def test_lora_resumes_and_leaves_a_plain_folder(settings, tmp_path, preset):
    from transformers import AutoModelForImageTextToText

    options = settings(questions_per_step=2, steps=4, checkpoint_every=2, deepspeed=preset)
    config = TrainConfig(**options | {"trainable": "lora", "lora_rank": 4, "learning_rate": 1e-3})
    train(config, run_dir=tmp_path / "whole")

    def die(report):
        if report.step == 3:
            raise Killed

    with pytest.raises(Killed):
        train(config, run_dir=tmp_path / "killed", on_step=die)
    assert train(config, run_dir=tmp_path / "killed", resume=True).first_step == 2
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    assert lines(tmp_path / "whole")[-1]["loss/kl"] > 0

    start = AutoModelForImageTextToText.from_pretrained(config.model).state_dict()
    finals = [
        AutoModelForImageTextToText.from_pretrained(tmp_path / run / "final").state_dict()
        for run in ("whole", "killed")
    ]
    for final in finals:
        assert list(final) == list(start)
        moved = {name for name in start if (final[name] != start[name]).any()}
        assert moved and all("_proj.weight" in name for name in moved)
    assert all((finals[0][name] == finals[1][name]).all() for name in start)
    for states in (tmp_path / "whole" / "checkpoints").rglob("*model_states.pt"):
        saved = torch.load(states, weights_only=False)["module"]
        assert saved and all(".lora_" in name for name in saved)  # nothing of the frozen model
    # The digest of the starting weights does not know of adapters.
    train(TrainConfig(**settings(questions_per_step=2, steps=1)), run_dir=tmp_path / "other")
    digests = {
        json.loads(state.read_text())["start_digest"]
        for state in tmp_path.rglob("checkpoints/*/state.json")
    }
    assert len(digests) == 1
