import json

import pytest
import torch

from strive.errors import CacheError, ConfigError, ModelError
from strive.lab.models import lab_model_path
from strive.train.plan import dry_run, open_architecture


@pytest.fixture
def lab_config(make_config):
    return lambda **changes: make_config(**({"model": str(lab_model_path("qwen2_5_vl"))} | changes))


def test_what_a_run_would_do(lab_config):
    plan = dry_run(lab_config(steps=6))
    json.dumps(plan)
    assert plan["data"]["num_questions"] == 6 and plan["epochs"] == 2
    assert plan["completions_per_step"] == 2 * 2 * 4
    assert plan["vision_encodes"] == {"per_step": 4, "in_all": 24}
    # 56 x 56 pixels are 4 x 4 patches and 2 x 2 merged tokens, 8 frames 4 slices.
    assert (plan["tokens"]["video"], plan["tokens"]["video_patches"]) == (16, 64)
    sizes = plan["parameters"]
    # The head is the embedding's own weight: 647 words of 128 values.
    assert sizes["head"] == 647 * 128
    assert sizes["layers"] + sizes["head"] + sizes["vision"] == plan["memory"]["inputs"]["P"]
    assert 0 < sizes["trained_vision"] < sizes["vision"]
    assert sizes["trained_language"] == sizes["layers"] + sizes["head"]
    tokens = plan["tokens"]
    assert tokens["logprob_row_at_most"] == tokens["prompt"] + 4 * 8
    inputs, parts = plan["memory"]["inputs"], plan["memory"]["bytes_per_process"]
    assert parts["weights"] == parts["reference"] == inputs["P"] * 4
    assert parts["gradients"] == inputs["T"] * 4 and 0 < inputs["T"] < inputs["P"]


def test_zero_stages_divide(lab_config):
    alone = dry_run(lab_config())["memory"]["bytes_per_process"]
    shared = dry_run(lab_config(deepspeed="zero2"), num_processes=2)["memory"]["bytes_per_process"]
    assert shared["weights"] == alone["weights"]
    assert shared["gradients"] == alone["gradients"] // 2
    assert shared["optimiser"] == alone["optimiser"] // 2


def test_lora_counts_its_adapters_and_needs_no_reference(lab_config):
    plain = dry_run(lab_config())["memory"]
    rank = 4
    lora = dry_run(lab_config(trainable="lora", lora_rank=rank))["memory"]
    text = json.loads((lab_model_path("qwen2_5_vl") / "config.json").read_text())["text_config"]
    hidden, wide, heads = (
        text[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    keys = hidden // heads * text["num_key_value_heads"]
    # q and o, k and v, gate and up and down: an adapter has rank * (inputs + outputs) weights.
    layer = 2 * (hidden + hidden) + 2 * (hidden + keys) + 3 * (hidden + wide)
    assert lora["inputs"]["T"] == rank * layer * text["num_hidden_layers"]
    assert lora["inputs"]["P"] == plain["inputs"]["P"] + lora["inputs"]["T"]
    parts = lora["bytes_per_process"]
    assert parts["reference"] == 0 and parts["optimiser"] == 8 * lora["inputs"]["T"]
    assert lora["peak_bytes_per_process"] < plain["peak_bytes_per_process"]


def test_offloading_moves_to_the_host(lab_config):
    here = dry_run(lab_config(deepspeed="zero3"), num_processes=2)["memory"]
    assert here["offloaded_bytes_per_process"] == {}
    moved = dry_run(lab_config(deepspeed="zero3_offload"), num_processes=2)["memory"]
    names = ("weights", "reference", "optimiser", "gradients")
    assert moved["offloaded_bytes_per_process"] == {
        name: here["bytes_per_process"][name] for name in names
    }
    parts = moved["bytes_per_process"]
    assert parts["weights"] == parts["reference"] == parts["optimiser"] == 0
    # One bucket of gradients stays; here all of them fit into it.
    assert parts["gradients"] == moved["inputs"]["T"] * 4
    # A rollout holds whole weights on every process, whatever the stage.
    assert parts["gathered_weights"] == moved["inputs"]["P"] * 4
    only = dry_run(lab_config(deepspeed="zero2_offload"))["memory"]
    assert set(only["offloaded_bytes_per_process"]) == {"optimiser", "gradients"}
    assert only["bytes_per_process"]["weights"] > 0


def test_a_trained_tower_encodes_again(lab_config):
    assert dry_run(lab_config(trainable="all"))["vision_encodes"]["per_step"] == 12
    assert dry_run(lab_config(trainable="all", beta=0))["vision_encodes"]["per_step"] == 8


def test_stops_where_training_would(lab_config, tmp_path):
    with pytest.raises(CacheError, match="precompute"):
        dry_run(lab_config(cache=tmp_path / "none"))
    with pytest.raises(ModelError, match="cannot be opened as a model"):
        dry_run(lab_config(model=str(tmp_path)))
    with pytest.raises(ConfigError, match="which 16 processes cannot share"):
        dry_run(lab_config(), num_processes=16)


def test_an_architecture_draws_from_no_gpu_that_it_is_not_made_on(lab_config, monkeypatch):
    before = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    # With eight GPUs there, torch would save and so wake up the state of each.
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: pytest.fail("a GPU was asked"))
    for device in ("meta", "cpu"):
        open_architecture(lab_config(), device=device)
    assert torch.equal(torch.get_rng_state(), before)
