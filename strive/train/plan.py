"""What a run would do and need, without loading weights or computing a step (`train --dry-run`).

Memory is a formula whose inputs are returned beside it. What it leaves out is said in its text:
activations inside a layer depend on the attention kernel and are estimated by one factor.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from strive.configs.schema import TrainConfig
from strive.models.inputs import PromptInputs
from strive.models.loading import (
    DTYPES,
    Policy,
    make_policy,
    open_model,
    pick_device,
    pick_dtype,
)
from strive.models.logprobs import LOGITS_PER_CHUNK
from strive.train.data import TrainingData, shard
from strive.train.engine import read_deepspeed_preset
from strive.train.preflight import preflight
from strive.train.rewards import load_rewards
from strive.train.rollout import prepare_questions
from strive.train.start import make_trainable, try_first_question

# Hidden-sized values kept per token and layer for the backward pass of a gated transformer layer
# (inputs, norms, q, k, v, attention output, and three of the MLP's width, which is about 4 wide).
_KEPT_PER_LAYER = 20
MEMORY_FORMULA = (
    "weights P*b + gradients T*b/g + optimiser T*(8 + 4 if b < 4)/o + reference P*b (none under "
    "LoRA or without beta) + the larger of rollout and learning: key-value cache "
    "2*layers*kv_width*b*rows*(prompt + new) + gathered weights P*b at ZeRO 3, or activations "
    f"tokens*hidden*b*(layers*{_KEPT_PER_LAYER}, or layers with gradient checkpointing) + logits "
    f"3*4*{LOGITS_PER_CHUNK} + gathered head vocabulary*hidden*b at ZeRO 3, twice with a copy; "
    "P and reference are divided by the processes at ZeRO 3, g and o are the processes from ZeRO 2 "
    "and 1 on; an offloaded optimiser leaves one bucket of gradients; fragmentation, kernels' work "
    "space and a layer's gathered weights are not in it"
)


def dry_run(
    config: TrainConfig, *, num_processes: int = 1, try_rewards: bool = False
) -> dict[str, Any]:
    """Resolve a configuration against its cache and model, and estimate what a step needs.

    With `try_rewards` the user's own functions are called once, as a start does.

    Raises:
        ConfigError, CacheError, ModelError: what `train` would stop at.
    """
    read_deepspeed_preset(config.deepspeed)
    data = TrainingData(config)
    shard(range(config.questions_per_step), config.num_variants, 0, num_processes)
    lines = preflight(config, data)
    if try_rewards:
        try_first_question(config, data, load_rewards(list(config.rewards)), 0)
    policy = open_architecture(config)
    make_trainable(policy, config)
    first = data.read(data.questions_of(0)[0], 0)
    [prepared] = prepare_questions(
        policy, [first], prompt_template=config.prompt_template, max_pixels=config.max_pixels
    )
    tokens = _tokens(config, prepared.prompts[0])
    return {
        "config": config.model_dump(mode="json"),
        "data": data.describe(),
        "notes": lines,
        "num_processes": num_processes,
        "epochs": config.steps * config.questions_per_step / len(data.records),
        "completions_per_step": _completions(config),
        "parameters": _parameters(policy),
        "tokens": tokens,
        "vision_encodes": _vision_encodes(config),
        "memory": _memory(config, policy, tokens, num_processes),
    }


def open_architecture(
    config: TrainConfig, *, device: str = "meta", dtype: torch.dtype = torch.float32
) -> Policy:
    """The policy's architecture and processor without its weights: none on the device `meta`, else
    random ones.

    Raises:
        ModelError: there is no such model.
    """
    from transformers import AutoModelForImageTextToText

    opened = open_model(config.model)
    # Nothing is drawn on a GPU that the model is not made on; all would be woken up otherwise.
    drawn_on = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=drawn_on), torch.device(device):
        model = AutoModelForImageTextToText.from_config(
            opened.config, dtype=dtype, trust_remote_code=False
        )
    return make_policy(model.eval(), opened.processor, position_rule=config.position_rule)


def _parameters(policy: Policy) -> dict[str, int]:
    """Parameters by what they cost: the input embedding is a table and costs nothing."""
    sizes = {"layers": 0, "head": 0, "vision": 0, "trained_language": 0, "trained_vision": 0}
    head = policy.model.get_output_embeddings().weight
    table = policy.model.get_input_embeddings().weight
    for name, parameter in policy.model.named_parameters():
        in_tower = ".visual." in name
        if parameter is table and parameter is not head:
            continue
        part = "vision" if in_tower else "head" if parameter is head else "layers"
        sizes[part] += parameter.numel()
        if parameter.requires_grad:
            sizes["trained_vision" if in_tower else "trained_language"] += parameter.numel()
    return sizes


def _completions(config: TrainConfig) -> int:
    return config.questions_per_step * config.num_variants * config.num_generations


def _tokens(config: TrainConfig, prompt: PromptInputs) -> dict[str, int]:
    """Counts for the first question of the first step; others differ by their text and size."""
    rows = config.questions_per_step * config.num_variants
    new = config.num_generations * config.max_new_tokens
    prompt_tokens = len(prompt.input_ids_P)
    packed = prompt_tokens + new
    plain = config.num_generations * (prompt_tokens + config.max_new_tokens)
    return {
        "prompt": prompt_tokens,
        "video": int(prompt.video_mask_P.sum()),
        "video_patches": math.prod(prompt.video_grid_thw),
        "logprob_row_at_most": packed if config.logprobs == "packed" else plain,
        "prefill_per_step": rows * prompt_tokens,
        "completion_per_step_at_most": rows * new,
        "logprob_per_step_at_most": rows * (packed if config.logprobs == "packed" else plain),
    }


def _vision_encodes(config: TrainConfig) -> dict[str, int]:
    """Videos through the tower: one per variant, and again for every graph when it trains."""
    variants = config.questions_per_step * config.num_variants
    passes = 1
    if config.trainable == "all":
        passes += config.updates_per_rollout + (1 if config.beta > 0 else 0)
    return {"per_step": variants * passes, "in_all": variants * passes * config.steps}


def _memory(
    config: TrainConfig, policy: Policy, tokens: Mapping[str, int], num_processes: int
) -> dict[str, Any]:
    text = policy.config.text_config
    zero = read_deepspeed_preset(config.deepspeed).get("zero_optimization", {})
    size = DTYPES[pick_dtype(config.dtype, pick_device("auto"))].itemsize
    parameters = list(policy.model.parameters())
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    # Variants whose log-probs are computed together.
    together = min(
        config.questions_per_micro_batch * config.num_variants,
        config.questions_per_step * config.num_variants // num_processes,
    )
    inputs = {
        "P": sum(parameter.numel() for parameter in parameters),
        "T": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "b": size,
        "zero_stage": int(zero.get("stage", 0)),
        "num_processes": num_processes,
        "layers": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "kv_width": text.num_key_value_heads * head_width,
        "rows": _completions(config) // num_processes,
        "prompt": tokens["prompt"],
        "new": config.max_new_tokens,
        "tokens": tokens["logprob_row_at_most"] * together,
        "bucket": int(zero.get("reduce_bucket_size", 5e8)),
    }
    # An adapted model with its adapters off is its own reference.
    has_copy = config.beta > 0 and config.trainable != "lora"
    held = _held_bytes(inputs, has_copy)
    offloaded = _offloaded_bytes(inputs, zero, held)
    parts = held | {name: 0 for name in offloaded if name in held}
    if "gradients" in offloaded:
        parts["gradients"] = size * min(inputs["T"], inputs["bucket"])
    rollout, learning = _passing_bytes(config, inputs, text.vocab_size, has_copy)
    return {
        "formula": MEMORY_FORMULA,
        "inputs": inputs,
        "bytes_per_process": parts | rollout | learning,
        "offloaded_bytes_per_process": offloaded,
        # What a rollout needs is gone before the log-probs begin.
        "peak_bytes_per_process": sum(parts.values())
        + max(sum(rollout.values()), sum(learning.values())),
    }


def _held_bytes(inputs: Mapping[str, int], has_copy: bool) -> dict[str, int]:
    """What a process keeps all the time, before any of it is moved to the host."""
    total, trained, size = inputs["P"], inputs["T"], inputs["b"]

    def divided(at_stage: int) -> int:
        return inputs["num_processes"] if inputs["zero_stage"] >= at_stage else 1

    return {
        "weights": total * size // divided(3),
        "gradients": trained * size // divided(2),
        "optimiser": trained * (8 + (4 if size < 4 else 0)) // divided(1),
        "reference": total * size // divided(3) if has_copy else 0,
    }


def _offloaded_bytes(
    inputs: Mapping[str, int], zero: Mapping[str, Any], held: Mapping[str, int]
) -> dict[str, int]:
    """What a preset keeps in the host's memory instead; gradients there are float32."""
    offloaded = {}
    if "offload_optimizer" in zero:
        offloaded["optimiser"] = held["optimiser"]
        offloaded["gradients"] = held["gradients"] * 4 // inputs["b"]
    if "offload_param" in zero:
        offloaded |= {"weights": held["weights"], "reference": held["reference"]}
    return offloaded


def _passing_bytes(
    config: TrainConfig, inputs: Mapping[str, int], vocabulary: int, has_copy: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """What a rollout needs, and what log-probs and backward need after it."""
    size, layers, hidden = inputs["b"], inputs["layers"], inputs["hidden"]
    is_partitioned = inputs["zero_stage"] == 3
    length = inputs["prompt"] + inputs["new"]
    kept = layers * (1 if config.gradient_checkpointing else _KEPT_PER_LAYER)
    rollout = {
        "key_value_cache": 2 * layers * inputs["kv_width"] * size * inputs["rows"] * length,
        "gathered_weights": inputs["P"] * size if is_partitioned else 0,
    }
    learning = {
        "activations": inputs["tokens"] * hidden * size * kept,
        "logits": 3 * 4 * min(LOGITS_PER_CHUNK, inputs["tokens"] * vocabulary),
        "gathered_head": hidden * vocabulary * size * (1 + has_copy) if is_partitioned else 0,
    }
    return rollout, learning
