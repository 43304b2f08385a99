"""A user's DeepSpeed file: one meaning in training, in the plan and in what out-of-memory says."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from strive.configs.schema import TrainConfig
from strive.errors import ConfigError, OutOfMemoryError
from strive.lab.models import lab_model_path
from strive.train.engine import Engine, read_deepspeed_preset
from strive.train.loop import train
from strive.train.plan import dry_run, explaining_out_of_memory
from strive.train.processes import start_processes

# As transformers' examples have them.
AUTOS = {
    2: {"overlap_comm": True, "sub_group_size": 1e9, "reduce_bucket_size": "auto"},
    3: {
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "reduce_bucket_size": "auto",
        "offload_optimizer": {"device": "cpu", "pin_memory": "auto"},
        "offload_param": {"device": "none"},
    },
}


@pytest.fixture
def own_file(tmp_path):
    def write(settings):
        path = tmp_path / "own.json"
        path.write_text(json.dumps(settings))
        return str(path)

    return write


@pytest.mark.parametrize("stage", [2, 3])
def test_auto_is_deepspeeds_default_everywhere(own_file, make_config, stage):
    file = own_file({"zero_optimization": {"stage": stage, **AUTOS[stage]}, "steps_per_print": 100})
    zero = read_deepspeed_preset(file)["zero_optimization"]
    assert "auto" not in json.dumps(zero)
    assert ("offload_optimizer" in zero, "offload_param" in zero) == (stage == 3, False)
    config = make_config(model=str(lab_model_path("qwen2_5_vl")), deepspeed=file)
    memory = dry_run(config, num_processes=2)["memory"]
    # DeepSpeed's default, 5e8 values.
    assert (memory["inputs"]["zero_stage"], memory["inputs"]["bucket"]) == (stage, 500_000_000)
    assert set(memory["offloaded_bytes_per_process"]) == (
        {"optimiser", "gradients"} if stage == 3 else set()
    )
    with (
        pytest.raises(OutOfMemoryError, match=r"out of memory in step 1; what helps most"),
        explaining_out_of_memory(config, start_processes(), "step 1"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    model = nn.Linear(4, 2)
    policy = SimpleNamespace(model=model, dtype=torch.float32)
    engine = Engine(policy, start_processes(), TrainConfig(deepspeed=file))
    loss = engine.forward(lambda: (model(torch.ones(3, 4)) ** 2).sum())
    engine.backward(loss, is_last=True, name="question 0")
    assert engine.stage == stage and engine.step(0.01) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"zero_optimisation": {"stage": 2}, "steps_per_prind": 5},
            r"'zero_optimisation' \(did you mean 'zero_optimization'\?\), 'steps_per_prind' "
            r"\(did you mean 'steps_per_print'\?\) is no setting of DeepSpeed",
        ),
        (
            {"zero_optimization": {"stage": 3, "stage3_prefetch_buket_size": 1}},
            r"'stage3_prefetch_buket_size' is .* \(did you mean 'stage3_prefetch_bucket_size'\?\)",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin": 1}}},
            r"'pin' is no setting of DeepSpeed",
        ),
        ({"zero_optimization": {"stage": 5}}, r"stage is 5: Input should be 0, 1, 2, 3"),
        ({"zero_optimization": {"reduce_bucket_size": "5e8"}}, r"reduce_bucket_size is '5e8'"),
        ({"zero_optimization": True}, r"zero_optimization is true; an object is expected"),
        ({"zero_optimization": {"stage": "auto"}}, r"zero_optimization.stage is 'auto'"),
        (
            {"activation_checkpointing": {"number_checkpoints": "auto"}, "steps_per_print": "auto"},
            r"activation_checkpointing.number_checkpoints, steps_per_print is 'auto'",
        ),
        ({"communication_data_type": "fp8"}, r"DeepSpeed does not take it: .*fp8"),
        ({"amp": {"enabled": True}}, r"DeepSpeed does not take it: .*'torch_autocast'"),
    ],
)
def test_what_deepspeed_would_pass_over_or_stop_at_is_one_line(
    own_file, make_config, tmp_path, settings, message
):
    file = own_file(settings)
    config = make_config(model=str(lab_model_path("qwen2_5_vl")), deepspeed=file)
    for stop in (
        lambda: read_deepspeed_preset(file),
        lambda: dry_run(config),
        lambda: train(config, run_dir=tmp_path / "run"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            stop()
        assert "\n" not in str(caught.value) and "own.json" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_settings_that_deepspeed_knows_pass(own_file):
    known = {
        "zero_optimization": {"stage": 1, "cpu_offload": True},
        "steps_per_print": 100, "wall_clock_breakdown": False, "prescale_gradients": False,
        "communication_data_type": "fp32", "flops_profiler": {"enabled": False},
        "activation_checkpointing": {"partition_activations": False}, "tensorboard": {},
        "comms_logger": {"enabled": False}, "data_types": {}, "checkpoint": {}, "aio": {},
        "zero_allow_untested_optimizer": True, "torch_autocast": {"enabled": False},
    }  # fmt: skip
    read = read_deepspeed_preset(own_file(known))
    assert set(read) == set(known)
    # The older name of the same.
    assert read["zero_optimization"] == {"stage": 1, "offload_optimizer": {"device": "cpu"}}
