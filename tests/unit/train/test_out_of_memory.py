import numpy as np
import pytest
import torch

from strive.configs.load import load_config
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError, OutOfMemoryError
from strive.train.out_of_memory import explanation, is_out_of_memory, memory_knobs

GIB = 2**30
PARTS = {
    "weights": 14 * GIB,
    "gradients": 13 * GIB,
    "optimiser": 80 * GIB,
    "reference": 14 * GIB,
    "key_value_cache": 3 * GIB,
    "activations": 20 * GIB,
    "logits": GIB,
}


def most_of(part):
    return PARTS | {part: 1000 * GIB}


def test_what_is_out_of_memory():
    with pytest.raises(RuntimeError) as torch_error:
        torch.empty(2**60)
    assert is_out_of_memory(torch_error.value)
    with pytest.raises(MemoryError) as numpy_error:
        np.empty(2**50)
    assert is_out_of_memory(numpy_error.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ConfigError("not enough memory"))
    # Ours is not explained twice.
    assert not is_out_of_memory(OutOfMemoryError("out of memory in step 1"))


def test_the_knobs_follow_the_largest_part():
    config = TrainConfig(questions_per_micro_batch=4, max_pixels=100_352)
    assert memory_knobs(config, most_of("activations"), 1) == (
        "questions_per_micro_batch=1 (now 4)",
        "gradient_checkpointing=true (now false)",
        "a lower max_pixels (now 100352)",
    )
    assert memory_knobs(config, most_of("key_value_cache"), 1)[:2] == (
        "a lower questions_per_step (now 4)",
        "a lower max_new_tokens (now 768)",
    )
    assert memory_knobs(config, most_of("reference"), 8)[:2] == (
        "beta=0 (now 0.04)",
        "deepspeed=zero3 (now zero0)",
    )
    assert "deepspeed=zero3 (now zero0)" in memory_knobs(config, most_of("optimiser"), 8)


def test_a_knob_that_is_turned_is_not_named_again():
    config = TrainConfig(gradient_checkpointing=True, deepspeed="zero3", questions_per_step=8)
    knobs = memory_knobs(config, most_of("activations"), 8)
    assert len(knobs) == 3
    text = " ".join(knobs)
    assert "gradient_checkpointing" not in text and "questions_per_micro_batch" not in text
    assert "a lower max_pixels (now the processor's limit)" in knobs
    # One variant a process is the least: 8 questions x M=2 on 16.
    knobs = memory_knobs(config, most_of("key_value_cache"), 16)
    assert "questions_per_step" not in " ".join(knobs)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("num_processes", [1, 8])
def test_every_value_that_is_named_is_allowed(part, num_processes):
    config = TrainConfig(questions_per_micro_batch=4, dtype="float32", questions_per_step=64)
    for knob in memory_knobs(config, most_of(part), num_processes):
        setting = knob.split(" (")[0]
        if not setting.startswith("a lower "):
            load_config(TrainConfig, overrides=[setting.split(" or ")[0]])


def test_the_message_counts_what_was_alive():
    config = TrainConfig()
    memory = {"bytes_per_process": PARTS}
    rollout = explanation(config, memory, doing="step 3", phase="time/rollout", num_processes=1)
    assert rollout.startswith("out of memory in the rollout of step 3; what helps most: ")
    # 14 + 13 + 80 + 14 + 3 GiB; activations and logits come later in a step.
    assert "124.0 GiB (optimiser 80.0 GiB," in rollout and "activations" not in rollout
    backward = explanation(config, memory, doing="step 3", phase="time/backward", num_processes=1)
    assert "the backward pass or optimiser step of step 3" in backward
    assert "activations 20.0 GiB" in backward and "key value cache" not in backward
    loading = explanation(config, memory, doing="loading", phase=None, num_processes=1)
    assert loading.startswith("out of memory in loading; ") and "145.0 GiB" in loading
