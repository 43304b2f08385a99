import json
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from strive.configs.schema import TrainConfig
from strive.errors import CheckpointError, ConfigError, MissingInputError, NonFiniteError
from strive.models.qwen2_5_vl import Qwen25VL
from strive.train.engine import Engine, learning_rate_at, read_deepspeed_preset, set_trainable
from strive.train.processes import start_processes


def tiny_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def tiny_engine(preset="zero0", dtype=torch.float32, frozen=False, with_reference=False, **changes):
    model = tiny_model().to(dtype)
    model[0].requires_grad_(not frozen)
    policy = SimpleNamespace(model=model, dtype=dtype)
    config = TrainConfig(deepspeed=preset, **changes)
    return Engine(policy, start_processes(), config, with_reference=with_reference)


def weights(engine):
    with engine.gathered():
        return [parameter.detach().clone() for parameter in engine.policy.model.parameters()]


PRESETS = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")


INPUTS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def learn(engine, inputs, *, micro_batches=1, is_bad=False):
    parts = inputs.chunk(micro_batches)
    for number, part in enumerate(parts):
        factor = float("nan") if is_bad and number == 0 else 1.0
        loss = engine.forward(lambda x=part, f=factor: (engine.policy.model(x) ** 2).sum() / 6 * f)
        engine.backward(loss, is_last=number == len(parts) - 1, name=f"question {number}")
    return engine.step(0.01)


@pytest.mark.parametrize("preset", PRESETS)
def test_equals_plain_torch(preset):
    engine = tiny_engine(preset, weight_decay=0.1, max_grad_norm=0.5)
    plain = tiny_model()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        norm = learn(engine, INPUTS, micro_batches=3)
        ((plain(INPUTS) ** 2).sum() / 6).backward()
        expected = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        assert norm == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(weights(engine), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_bfloat16_learns_on_float32_masters(preset):
    engine = tiny_engine(preset, torch.bfloat16, max_grad_norm=0.5)
    model, inputs = tiny_model().bfloat16(), INPUTS.bfloat16()
    masters = [parameter.detach().float() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(masters, weight_decay=0.0)

    def step(rate):
        loss = engine.forward(lambda: (engine.policy.model(inputs).float() ** 2).sum())
        engine.backward(loss, is_last=True, name="question 0")
        engine.step(rate)
        (model(inputs).float() ** 2).sum().backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        nn.utils.clip_grad_norm_(masters, 0.5)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            parameter.data.copy_(master)

    # Adam's first step is as long as the rate, 0.01; bfloat16 has 8 bits of precision.
    step(0.01)
    for ours, theirs in zip(weights(engine), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-8, atol=2e-4)
    # Steps of 5e-4 are below what it tells apart at 0.4 (2e-3): without float32 copies the weights
    # would stay. They move by about 8 steps.
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(8):
        step(0.0005)
    for ours, theirs, first in zip(weights(engine), model.parameters(), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-8, atol=1e-3)
        assert (ours - first).abs().float().mean() > 2e-3


def test_not_finite_stops_before_the_step_and_names_the_record():
    engine = tiny_engine()
    learn(engine, INPUTS)
    before = [parameter.clone() for parameter in engine.policy.model.parameters()]
    with pytest.raises(NonFiniteError, match=r"not finite for question 0; .* not taken"):
        learn(engine, INPUTS, micro_batches=2, is_bad=True)
    after = list(engine.policy.model.parameters())
    assert all((old == new).all() for old, new in zip(before, after, strict=True))


def test_a_gradient_that_is_not_finite_under_a_finite_loss():
    engine = tiny_engine()
    weight = engine.policy.model[0].weight
    # d sqrt(x) / dx is infinite at 0, where the loss itself is 0.
    loss = engine.forward(lambda: (weight - weight.detach()).sum().abs().sqrt())
    engine.backward(loss, is_last=True, name="question 7")
    with pytest.raises(NonFiniteError, match="question 7"):
        engine.step(0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_checkpoint_restores_weights_and_moments(preset, dtype, tmp_path):
    first = tiny_engine(preset, dtype)
    inputs = INPUTS.to(dtype)
    learn(first, inputs)
    first.save(tmp_path / "checkpoint")
    learn(first, inputs)
    second = tiny_engine(preset, dtype)
    second.load(tmp_path / "checkpoint")
    learn(second, inputs)
    assert all((a == b).all() for a, b in zip(weights(first), weights(second), strict=True))


@pytest.mark.parametrize("preset", ["zero0", "zero1", "zero2", "zero3"])
def test_a_checkpoint_leaves_out_what_is_frozen(preset, tmp_path):
    first = tiny_engine(preset, frozen=True)
    learn(first, INPUTS)
    first.save(tmp_path / "checkpoint")
    [states] = (tmp_path / "checkpoint").rglob("*model_states.pt")
    saved = torch.load(states, weights_only=False)
    assert set(saved["module"]) == {"model.2.weight", "model.2.bias"}
    assert not saved.get("frozen_param_fragments")
    second = tiny_engine(preset, frozen=True)
    second.load(tmp_path / "checkpoint")
    assert all((a == b).all() for a, b in zip(weights(first), weights(second), strict=True))
    # What is trained must all be in it.
    with pytest.raises(CheckpointError, match=r"no complete .*'model.0.bias' is missing"):
        tiny_engine(preset).load(tmp_path / "checkpoint")


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        tiny_engine().load(tmp_path)
    engine = tiny_engine()
    engine.save(tmp_path / "cut")
    [states] = (tmp_path / "cut").rglob("*.pt")
    states.write_bytes(states.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        engine.load(tmp_path / "cut")


def test_an_optimiser_on_the_cpu_needs_no_compiler():
    engine = tiny_engine("zero2_offload")
    assert engine._engine.basic_optimizer.defaults["fused"]
    assert engine._engine.zero_cpu_offload()


def test_the_reference_does_not_move():
    engine = tiny_engine(with_reference=True)
    reference = engine.reference
    start = [parameter.clone() for parameter in reference.parameters()]
    learn(engine, INPUTS)
    assert all((a == b).all() for a, b in zip(start, reference.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    moved = zip(reference.parameters(), engine.policy.model.parameters(), strict=True)
    assert any((a != b).any() for a, b in moved)


def test_language_freezes_the_tower_up_to_its_mergers():
    tower = nn.ModuleDict({"blocks": nn.Linear(2, 2), "merger": nn.Linear(2, 2)})
    model = nn.Module()
    model.model = nn.ModuleDict({"visual": tower, "language_model": nn.Linear(2, 2)})
    policy = SimpleNamespace(model=model, family=Qwen25VL())
    set_trainable(policy, "language")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-2] for name in trained} == {"merger", "language_model"}
    set_trainable(policy, "all")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_presets(tmp_path):
    for name in PRESETS:
        assert read_deepspeed_preset(name)["zero_optimization"]["stage"] == int(name[4])
    (tmp_path / "own.json").write_text('{"zero_optimization": {"stage": 1}}')
    assert read_deepspeed_preset(str(tmp_path / "own.json"))["zero_optimization"]["stage"] == 1
    with pytest.raises(MissingInputError, match=r"did you mean 'zero2'\?.*zero0, zero1"):
        read_deepspeed_preset("zero_2")
    (tmp_path / "taken.json").write_text('{"train_batch_size": 8, "optimizer": {}}')
    with pytest.raises(ConfigError, match="sets train_batch_size, optimizer, which the training"):
        read_deepspeed_preset(str(tmp_path / "taken.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_deepspeed_preset(str(tmp_path / "bad.json"))


def test_tasks_of_srun_without_a_launcher_are_refused(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match=r"8 tasks without a launcher.*torchrun"):
        start_processes()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert start_processes().world_size == 1


def test_one_process_talks_to_itself():
    processes = start_processes()
    assert (processes.rank, processes.world_size, processes.is_main) == (0, 1, True)
    assert processes.sum({"a": 1.5}) == {"a": 1.5} and processes.gather("x") == ["x"]
    assert processes.any(True) and not processes.any(False)


def test_rewards_and_advantages_load_no_torch():
    code = (
        "import sys, strive.train.rewards, strive.train.advantages, strive.train.metrics\n"
        "assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class FetchCounter:
    """Stands in for the profiler of DeepSpeed's parameter fetching: how often it did what."""

    def __init__(self):
        self.counts = Counter()

    def start_event(self, name): ...
    def reset_events(self): ...
    def log_events(self): ...

    def stop_event(self, name, num_elements):
        self.counts[name] += num_elements > 0


def test_weights_are_fetched_ahead_after_a_rollout_held_them_whole(tmp_path):
    # Layers of 4,160 values, fetched ahead up to 9,000 values: two at a time, none kept for good.
    zero = {
        "stage": 3,
        "stage3_prefetch_bucket_size": 9000,
        "stage3_param_persistence_threshold": 0,
    }
    (tmp_path / "own.json").write_text(json.dumps({"zero_optimization": zero}))
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(6)])
    policy = SimpleNamespace(model=model, dtype=torch.float32)
    config = TrainConfig(deepspeed=str(tmp_path / "own.json"))
    engine = Engine(policy, start_processes(), config)
    coordinator = engine._engine.optimizer.parameter_offload.get_param_coordinator()
    counter = coordinator._PartitionedParameterCoordinator__profiler = FetchCounter()
    inputs = torch.randn(3, 64)
    seen = []
    for _ in range(4):
        with engine.gathered(), torch.no_grad():
            assert all(weight.numel() for weight in model.parameters())
            written = model(inputs)
            # Nothing partitioned a layer after its forward.
            assert torch.equal(model(inputs), written)
        counter.counts.clear()
        learn(engine, inputs)
        seen.append((counter.counts["forward_prefetch_submit"], gathers(counter.counts)))
        assert not any(weight.numel() for weight in model.parameters())
    # The first pass records the order: every layer by itself, forward and back. From then on three
    # gathers of two layers, which stay for the backward pass.
    assert seen == [(0, 12), (3, 3), (3, 3), (3, 3)]


def gathers(counts):
    return counts["forward_all_gather"] + counts["backward_all_gather"]


# --- the learning rate ----------------------------------------------------------------------------


def rates(count, **options):
    defaults = {"num_updates": 10, "peak": 1.0, "warmup_steps": 0, "schedule": "constant"}
    return [learning_rate_at(update, **(defaults | options)) for update in range(count)]


def test_constant():
    assert rates(3) == [1.0, 1.0, 1.0]


def test_warm_up_never_starts_at_zero():
    # 4 steps of warm-up: 1/5, 2/5, 3/5, 4/5, then the peak.
    assert rates(6, warmup_steps=4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_cosine_reaches_half_in_the_middle_and_zero_after_the_end():
    values = rates(11, schedule="cosine")
    assert values[0] == 1.0 and values[5] == pytest.approx(0.5) and values[10] == pytest.approx(0)
    assert values == sorted(values, reverse=True)
    # With warm-up the cosine runs over what is left.
    assert rates(11, schedule="cosine", warmup_steps=2)[6] == pytest.approx(0.5)


def test_cosine_by_hand():
    # 2 steps of warm-up to a peak of 4: 4/3, 8/3. Then 8 steps of cosine: 2 (1 + cos(pi n / 8)) at
    # n = 0, 2, 4, 6 is 4, 2 (1 + 0.707107), 2, 2 (1 - 0.707107).
    values = rates(10, peak=4.0, schedule="cosine", warmup_steps=2)
    assert values[:2] == pytest.approx([4 / 3, 8 / 3])
    assert values[2::2] == pytest.approx([4, 3.414214, 2, 0.585786], abs=1e-6)


@given(
    st.integers(1, 40),
    st.integers(0, 20),
    st.floats(1e-8, 1.0),
    st.sampled_from(["constant", "cosine"]),
)
def test_rises_to_the_peak_and_never_again(num_updates, warmup_steps, peak, schedule):
    values = rates(
        num_updates,
        num_updates=num_updates,
        peak=peak,
        warmup_steps=warmup_steps,
        schedule=schedule,
    )
    assert all(0 < value <= peak for value in values)
    rising, falling = values[: warmup_steps + 1], values[warmup_steps:]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    if num_updates > warmup_steps:
        assert values[warmup_steps] == peak
