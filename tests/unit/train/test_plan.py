"""`train --dry-run`: what a run would do, its bytes and seconds, and what out-of-memory says."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from strive.commands.training import print_training_plan
from strive.configs.load import load_config
from strive.configs.schema import TrainConfig
from strive.errors import CacheError, ConfigError, ModelError, OutOfMemoryError
from strive.lab.models import lab_model_path
from strive.models.inputs import prepare_prompts
from strive.models.loading import load_policy
from strive.models.logprobs import completion_logprobs_batch
from strive.models.vision import encode_videos
from strive.records import VideoFrames
from strive.train.engine import set_trainable
from strive.train.plan import (
    Hardware,
    dry_run,
    estimate_cost,
    explanation,
    is_out_of_memory,
    memory_knobs,
    open_architecture,
    saved_by_layer,
)


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


# --- activations ----------------------------------------------------------------------------------

# As their config.json have them.
QWEN2_5_VL_7B = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
    "num_key_value_heads": 4, "head_dim": 128,
}  # fmt: skip
QWEN3_VL_8B = {
    "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
LAYER = ("layers.0.mlp.gate_proj.weight", "layers.0.self_attn.q_proj.weight")


def test_hidden_sized_values_of_a_token_and_layer():
    two, three = SimpleNamespace(**QWEN2_5_VL_7B), SimpleNamespace(**QWEN3_VL_8B)
    with_norms = (*LAYER, "layers.0.self_attn.q_norm.weight")
    # 8 of norms, 3 of queries, keys and values, 2 of attention's output, 4 * 18944 / 3584.
    assert saved_by_layer(two, LAYER, 2) == pytest.approx(13 + 4 * 18944 / 3584)
    assert round(saved_by_layer(two, LAYER, 2)) == 34
    # 3 * (1 + 8/32) more of the norms of queries and keys.
    assert saved_by_layer(three, with_norms, 2) == pytest.approx(13 + 12 + 3.75)
    assert round(saved_by_layer(three, with_norms, 2)) == 29


def saved_values(model_name, dtype, mode):
    """Hidden-sized values a token (a patch) that autograd saves in all layers together."""
    policy = load_policy(lab_model_path(model_name), dtype=dtype)
    set_trainable(policy, "all")
    video = VideoFrames(
        frames_KHWC=np.zeros((8, 112, 112, 3), np.uint8),
        pts_seconds_K=np.linspace(0.0, 7.0, 8),
        source_index_K=np.arange(8),
    )
    [prompt] = prepare_prompts(policy, ["What?"], [video])
    stacks = {
        "layers": policy.model.model.language_model.layers,
        "blocks": policy.model.model.visual.blocks,
    }
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    running, saved, kept = [], {"layers": {}, "blocks": {}}, []
    for name, stack in stacks.items():
        for layer in stack:
            layer.register_forward_pre_hook(lambda *_, name=name: running.append(name))
            layer.register_forward_hook(lambda *_: running.clear())

    def pack(tensor):
        storage = tensor.untyped_storage()
        if running and storage.data_ptr() not in weights:
            kept.append(tensor)
            saved[running[0]][storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = encode_videos(policy, [prompt], with_graph=True, in_one_call=True)
        tokens_BGL = torch.randint(0, 100, (1, 4, 32))
        lengths_BG = torch.full((1, 4), 32)
        completion_logprobs_batch(
            policy, [prompt], features, tokens_BGL, lengths_BG, mode=mode, attention="sdpa"
        )
    num_prompt, size = len(prompt.input_ids_P), policy.dtype.itemsize
    counts = {
        "layers": 4 * (num_prompt + 32) if mode == "plain" else num_prompt + 4 * 32,
        "blocks": int(np.prod(prompt.video_grid_thw)),
    }
    widths = {
        "layers": policy.config.text_config.hidden_size,
        "blocks": policy.config.vision_config.hidden_size,
    }
    return policy, {
        name: sum(saved[name].values()) / (counts[name] * widths[name] * size) for name in saved
    }


@pytest.mark.parametrize("mode", ["plain", "packed"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_the_estimate_of_activations_is_what_autograd_saves(name, dtype, mode):
    policy, measured = saved_values(name, dtype, mode)
    for stack, part, config in (
        ("layers", "language_model", policy.config.text_config),
        ("blocks", "visual", policy.config.vision_config),
    ):
        names = [n for n, _ in policy.model.named_parameters() if f".{part}." in n]
        num_layers = len(policy.model.model.get_submodule(part).get_submodule(stack))
        estimate = num_layers * saved_by_layer(config, names, policy.dtype.itemsize)
        # A CPU's kernel shares keys, and copies a packed row's prompt for each completion.
        assert measured[stack] == pytest.approx(estimate, rel=0.13), stack


def test_a_trained_tower_and_checkpointing_in_the_estimate(lab_config):
    def learning(**changes):
        memory = dry_run(lab_config(**changes))["memory"]
        return memory["inputs"], memory["phases"]["learning"]

    inputs, parts = learning(trainable="all")
    text, vision = (
        json.loads((lab_model_path("qwen2_5_vl") / "config.json").read_text())[f"{name}_config"]
        for name in ("text", "vision")
    )
    token, patch = (4 * sizes["hidden_size"] for sizes in (text, vision))
    layer, block = inputs["saved_by_layer"], inputs["saved_by_tower_layer"]
    assert parts["activations"] == int(inputs["tokens"] * token * 4 * layer)
    assert parts["tower_activations"] == int(inputs["patches"] * patch * 3 * block)
    assert inputs["T"] == inputs["P"] and parts["optimiser"] == 8 * inputs["P"]
    assert learning()[1]["tower_activations"] == 0
    _, again = learning(trainable="all", gradient_checkpointing=True)
    assert again["activations"] == int(inputs["tokens"] * token * (4 + layer))
    assert again["tower_activations"] == int(inputs["patches"] * patch * (3 + block))


def test_at_start_up_the_reference_is_a_copy_beside_the_whole_policy(lab_config):
    memory = dry_run(lab_config(deepspeed="zero3"), num_processes=2)["memory"]
    whole = memory["inputs"]["P"] * 4
    assert memory["phases"]["start_up"] == {"weights": whole, "reference": whole}
    assert memory["bytes_per_process"]["reference"] == whole // 2
    peaks = [sum(parts.values()) for parts in memory["phases"].values()]
    assert memory["peak_bytes_per_process"] == max(peaks)
    lora = dry_run(lab_config(trainable="lora"))["memory"]
    assert lora["phases"]["start_up"]["reference"] == 0


@pytest.mark.parametrize("width", [80, 160])
def test_the_tables_fit_and_say_the_sums(lab_config, width):
    plan = dry_run(
        lab_config(deepspeed="zero3_offload", trainable="all"),
        num_processes=2,
        hardware=Hardware(tflops=312.0),
    )
    console = Console(width=width, record=True, file=io.StringIO())
    print_training_plan(plan, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width and "\u2026" not in text
    plain = " ".join(text.translate({0x2502: " ", 0x2503: " "}).split())
    for words in (
        "start-up rollout learning on the host",
        "together",
        "tower activations",
        "Time of a step in each process, by formula",
        "sums: docs/scaling.md",
    ):
        assert words in plain, words


# --- seconds --------------------------------------------------------------------------------------

# One process, one question a step, M=2, G=4; sizes that make the sums easy.
PLAN = {
    "config": {
        "dtype": "auto",
        "max_new_tokens": 100,
        "questions_per_step": 1,
        "num_variants": 2,
        "updates_per_rollout": 1,
        "trainable": "language",
        "gradient_checkpointing": False,
        "beta": 0.04,
        "steps": 3600,
    },
    "num_processes": 1,
    "completions_per_step": 8,
    "parameters": {
        "layers": 1_000_000,
        "head": 100_000,
        "vision": 500_000,
        "trained_language": 1_100_000,
        "trained_vision": 0,
    },
    "tokens": {
        "prompt": 50,
        "video_patches": 40,
        "prefill_per_step": 100,
        "completion_per_step_at_most": 800,
        "logprob_per_step_at_most": 900,
    },
    "vision_encodes": {"per_step": 2},
    "memory": {"inputs": {"layers": 4, "kv_width": 16}},
}
GPU = Hardware(tflops=1e-6, utilisation=0.5, bandwidth_gb=1e-3)
"""F = 500,000 operations a second, B = 1,000,000 bytes a second."""


def changed(**changes):
    config = PLAN["config"] | changes
    return PLAN | {"config": config}


def test_each_part_of_the_formula():
    cost = estimate_cost(PLAN, GPU)
    seconds = cost["seconds_per_step"]
    # 2 * 500,000 parameters * 40 patches * 2 encodes / F
    assert seconds["vision"] == pytest.approx(160)
    # 2 * 1,000,000 * 100 tokens / F
    assert seconds["prefill"] == pytest.approx(400)
    # By bandwidth a token takes (1,100,000 * 2 bytes + 8 rows * (50 + 100/2) * 2*4*16*2) / B =
    # (2,200,000 + 204,800) / B = 2.4048 s; by operations 2 * 1,100,000 * 8 / F = 35.2 s, which is
    # more; 100 tokens.
    assert seconds["decode"] == pytest.approx(3520)
    # 900 tokens * (4 * 1,000,000 + 2 * 1,000,000) + 800 * 8 * 100,000 = 5.4e9 + 0.64e9
    assert seconds["policy"] == pytest.approx(12_080)
    # 900 * 2 * 1,000,000 + 800 * 2 * 100,000 = 1.8e9 + 0.16e9
    assert seconds["reference"] == pytest.approx(3920)
    assert seconds["total"] == pytest.approx(160 + 400 + 3520 + 12_080 + 3920)
    # 3,600 steps are as many hours as a step has seconds.
    assert cost["gpu_hours"] == pytest.approx(seconds["total"])


def test_decoding_of_few_rows_is_bound_by_the_bandwidth():
    fast = Hardware(tflops=1.0, utilisation=1.0, bandwidth_gb=1e-3)
    assert estimate_cost(PLAN, fast)["seconds_per_step"]["decode"] == pytest.approx(240.48)


def test_what_the_settings_change():
    before = estimate_cost(PLAN, GPU)["seconds_per_step"]

    def seconds(**changes):
        return estimate_cost(changed(**changes), GPU)["seconds_per_step"]

    assert seconds(beta=0.0)["reference"] == 0
    # One more forward through the layers: 900 * 2 * 1,000,000 / F
    assert seconds(gradient_checkpointing=True)["policy"] == pytest.approx(before["policy"] + 3600)
    assert seconds(updates_per_rollout=2)["policy"] == pytest.approx(2 * before["policy"])
    assert seconds(trainable="all")["vision"] == pytest.approx(3 * before["vision"])


def test_several_gpus_share_a_step_and_count_each():
    two = PLAN | {"num_processes": 2}
    one_cost, two_cost = estimate_cost(PLAN, GPU), estimate_cost(two, GPU)
    assert two_cost["seconds_per_step"]["policy"] * 2 == one_cost["seconds_per_step"]["policy"]
    # Decoding by operations halves as well, so the hours of all GPUs together stay.
    assert two_cost["gpu_hours"] == pytest.approx(one_cost["gpu_hours"])


# --- out of memory --------------------------------------------------------------------------------

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
    late = ("activations", "logits")
    phases = {
        "rollout": {name: size for name, size in PARTS.items() if name not in late},
        "learning": {name: size for name, size in PARTS.items() if name != "key_value_cache"},
    }
    memory = {"bytes_per_process": PARTS, "phases": phases}
    rollout = explanation(config, memory, doing="step 3", phase="time/rollout", num_processes=1)
    assert rollout.startswith("out of memory in the rollout of step 3; what helps most: ")
    # 14 + 13 + 80 + 14 + 3 GiB; activations and logits come later in a step.
    assert "124.0 GiB (optimiser 80.0 GiB," in rollout and "activations" not in rollout
    backward = explanation(config, memory, doing="step 3", phase="time/backward", num_processes=1)
    assert "the backward pass or optimiser step of step 3" in backward
    assert "activations 20.0 GiB" in backward and "key value cache" not in backward
    loading = explanation(config, memory, doing="loading", phase=None, num_processes=1)
    assert loading.startswith("out of memory in loading; ") and "145.0 GiB" in loading


# --- the table of docs/scaling.md -----------------------------------------------------------------

PAGE = Path(__file__).parents[3] / "docs" / "scaling.md"
ROWS = ((1, "zero0"), (8, "zero1"), (8, "zero2"), (8, "zero3"), (64, "zero2"), (64, "zero3"))
HELD = ("weights", "gradients", "optimiser", "reference")
# Qwen/Qwen2.5-VL-7B-Instruct, as its config.json has them.
TEXT = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "layer_types": ["full_attention"] * 28,
    "tie_word_embeddings": False,
}
VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


@pytest.fixture
def seven_b(tmp_path: Path) -> Path:
    """A folder with the 7B model's shapes and the lab's processor; there are no weights in it."""
    folder = tmp_path / "qwen2_5_vl_7b"
    shutil.copytree(
        lab_model_path("qwen2_5_vl"), folder, ignore=shutil.ignore_patterns("*.safetensors")
    )
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= TEXT
    config["text_config"]["rope_parameters"]["mrope_section"] = [16, 24, 24]
    config["vision_config"] |= VISION
    config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_memory_table(seven_b: Path, new_cache) -> None:
    cache = new_cache(num_questions=64, num_frames=16, size=28)
    table = [f"| GPUs | `deepspeed` | {' | '.join(HELD)} | together |", "|" + "---|" * 7]
    for processes, preset in ROWS:
        config = load_config(
            TrainConfig,
            ["strive_qwen2_5_vl_7b"],
            ["scorer=siglip2", "num_questions=64", "dtype=bfloat16", "questions_per_step=64"],
            {"model": str(seven_b), "cache": cache},
        ).model_copy(update={"deepspeed": preset})
        memory = dry_run(config, num_processes=processes)["memory"]
        # 8.29 billion parameters, as the model's page says.
        assert round(memory["inputs"]["P"] / 1e9, 2) == 8.29
        sizes = [memory["bytes_per_process"][part] / 1e9 for part in HELD]
        cells = [*(f"{size:.1f}" for size in sizes), f"{sum(sizes):.0f}"]
        table.append(f"| {processes} | `{preset}` | {' | '.join(cells)} |")
    wanted = "\n".join(table)
    assert wanted in PAGE.read_text(encoding="utf-8"), f"docs/scaling.md should have:\n{wanted}"


# --- the table of docs/reproduce.md ---------------------------------------------------------------

REPRODUCE = PAGE.with_name("reproduce.md")
ARMS = (("GRPO", "grpo_qwen2_5_vl_7b", 4), ("STRIVE", "strive_qwen2_5_vl_7b", 8))


def test_the_hours_of_both_arms(seven_b: Path, new_cache) -> None:
    # 308 x 308 is the largest square within the presets' 100,352 pixels: 8 x 11 x 11 tokens.
    # The lab's processor would make frames smaller.
    processor = json.loads((seven_b / "processor_config.json").read_text())
    processor["video_processor"]["size"]["longest_edge"] = 602_112
    (seven_b / "processor_config.json").write_text(json.dumps(processor))
    cache = new_cache(num_questions=8, num_frames=16, size=308)
    table = ["| arm | GPUs | seconds a step | hours of 1,000 steps | GPU-hours | GB at most |"]
    table.append("|" + "---|" * 6)
    for arm, preset, processes in ARMS:
        changes = ["scorer=siglip2", "num_questions=8", "dtype=bfloat16"]
        options = {"model": str(seven_b), "cache": cache}
        config = load_config(TrainConfig, [preset], changes, options)
        plan = dry_run(config, num_processes=processes)
        assert plan["tokens"]["video"] == 968 and plan["config"]["steps"] == 1000
        seconds, hours = plan["cost"]["seconds_per_step"]["total"], plan["cost"]["gpu_hours"]
        peak = plan["memory"]["peak_bytes_per_process"] / 1e9
        table.append(
            f"| {arm} | {processes} | {seconds:.1f} | {hours / processes:.1f} | {hours:.1f} "
            f"| {peak:.0f} |"
        )
    wanted = "\n".join(table)
    assert wanted in REPRODUCE.read_text(encoding="utf-8"), f"the page should have:\n{wanted}"
