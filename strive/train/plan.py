"""The plan of a run, without loading weights or computing a step (`train --dry-run`).

Bytes and seconds are sums of a few terms, which docs/scaling.md derives; their inputs are returned
beside them. Where memory runs out in a run, the same estimate chooses the settings that are named.
"""

import math
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from strive.configs.schema import TrainConfig
from strive.errors import OutOfMemoryError, StriveError
from strive.models.inputs import PromptInputs
from strive.models.loading import DTYPES, Policy, make_policy, open_model, pick_device, pick_dtype
from strive.models.logprobs import LOGITS_PER_CHUNK
from strive.progress import size_text
from strive.train.data import TrainingData, step_share
from strive.train.engine import PRESETS, read_deepspeed_preset
from strive.train.loss import load_loss
from strive.train.processes import Processes
from strive.train.rewards import load_rewards
from strive.train.rollout import prepare_variants
from strive.train.start import make_trainable, preflight, try_first_question


@dataclass(frozen=True)
class Hardware:
    """One GPU. The defaults are those of an H100 SXM's data sheet, and a usual utilisation."""

    tflops: float = 989.0
    """Peak of dense bfloat16, in 10^12 operations a second."""
    utilisation: float = 0.4
    """Share of the peak that forward and backward passes reach."""
    bandwidth_gb: float = 3350.0
    """Memory bandwidth in 10^9 bytes a second."""


def dry_run(
    config: TrainConfig,
    *,
    num_processes: int = 1,
    hardware: Hardware | None = None,
    try_rewards: bool = False,
) -> dict[str, Any]:
    """Resolve a configuration against its cache and model, and estimate what a step needs.

    With `try_rewards` the user's own functions are called once, as a start does.

    Raises:
        ConfigError, CacheError, ModelError: what `train` would stop at.
    """
    read_deepspeed_preset(config.deepspeed)
    load_loss(config)
    data = TrainingData(config)
    step_share(config, 0, num_processes)
    lines = preflight(config, data)
    if try_rewards:
        try_first_question(config, data, load_rewards(list(config.rewards)), 0)
    policy = open_architecture(config)
    make_trainable(policy, config)
    first = data.read(data.questions_of(0)[0], 0)
    tokens = _tokens(config, prepare_variants(policy, [first], config)[0].prompt)
    variants = config.questions_per_step * config.num_variants
    contrasts = config.questions_per_step if config.contrast != "none" else 0
    # A tower that trains sees each video again for every graph, and for old log-probs.
    again = config.updates_per_rollout + (config.beta > 0) + old_passes(config.model_dump())
    seen_again = variants if config.update_view == "own" else config.questions_per_step
    encodes = variants + contrasts
    if config.trainable == "all":
        encodes += round(seen_again * again)
    plan = {
        "config": config.model_dump(mode="json"),
        "data": data.describe(),
        "notes": lines,
        "num_processes": num_processes,
        "epochs": config.steps * config.questions_per_step / len(data.records),
        "completions_per_step": variants * config.num_generations
        + contrasts * config.contrast_generations,
        "parameters": _parameters(policy),
        "tokens": tokens,
        "vision_encodes": {"per_step": encodes, "in_all": encodes * config.steps},
        "memory": _memory(config, policy, tokens, num_processes),
    }
    plan["cost"] = estimate_cost(plan, hardware or Hardware())
    return plan


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


# --- what a step counts --------------------------------------------------------------------------


def old_passes(config: Mapping[str, Any]) -> float:
    """Share of a step's completions whose old log-probs take a pass of their own.

    All but those of the first part, whose first update is made before any weight has moved.
    """
    return 1 - 1 / config.get("minibatches_per_rollout", 1)


def _parameters(policy: Policy) -> dict[str, int]:
    """Parameters by what they cost: the input embedding is a table and costs nothing."""
    sizes = {"layers": 0, "head": 0, "vision": 0, "trained_language": 0, "trained_vision": 0}
    head = policy.model.get_output_embeddings().weight
    table = policy.model.get_input_embeddings().weight
    tower = {id(parameter) for parameter in policy.family.tower(policy.model).parameters()}
    for parameter in policy.model.parameters():
        in_tower = id(parameter) in tower
        if parameter is table and parameter is not head:
            continue
        part = "vision" if in_tower else "head" if parameter is head else "layers"
        sizes[part] += parameter.numel()
        if parameter.requires_grad:
            sizes["trained_vision" if in_tower else "trained_language"] += parameter.numel()
    return sizes


def _tokens(config: TrainConfig, prompt: PromptInputs) -> dict[str, int]:
    """Counts for the first question of the first step; others differ by their text and size."""
    rows = config.questions_per_step * config.num_variants
    new = config.num_generations * config.max_new_tokens
    prompt_tokens = len(prompt.input_ids_P)
    row = prompt_tokens + new
    if config.logprobs == "plain":
        row = config.num_generations * (prompt_tokens + config.max_new_tokens)
    return {
        "prompt": prompt_tokens,
        "video": int(prompt.video_mask_P.sum()),
        "video_patches": math.prod(prompt.video_grid_thw),
        "logprob_row_at_most": row,
        "prefill_per_step": rows * prompt_tokens,
        "completion_per_step_at_most": rows * new,
        "logprob_per_step_at_most": rows * row,
    }


# --- bytes ---------------------------------------------------------------------------------------


def saved_by_layer(config: Any, names: Iterable[str], size: int) -> float:
    """Values that autograd saves of a token in one transformer layer, over the layer's width.

    `config` has the sizes of a language model or a vision tower, `names` are those of its
    parameters, and a value has `size` bytes. 34.1 for Qwen2.5-VL-7B and 28.8 for Qwen3-VL-8B in
    bfloat16; docs/scaling.md has the sum.
    """
    names = list(names)

    def has(part: str) -> bool:
        return any(part in name for name in names)

    hidden = config.hidden_size
    heads = getattr(config, "num_attention_heads", None) or config.num_heads
    head_width = getattr(config, "head_dim", None) or hidden // heads
    queries, keys = heads * head_width, getattr(config, "num_key_value_heads", heads) * head_width
    # RMSNorm saves its input in float32 (in a float32 model the input itself, the residual stream)
    # and normalised; LayerNorm saves its input. The output is the next projection's input.
    normalised = 1.0 if has("norm1.bias") else 4 / size + 1
    saved = 2 * hidden * (normalised + 1)
    if has(".q_norm."):
        saved += (queries + keys) * normalised
    # A kernel that shares no keys gets them copied for every query head. In a tower the values are
    # a view that keeps the joint projection of all three.
    saved += 5 * queries if has(".qkv.") else 3 * queries
    # Attention's output as the kernel leaves it, and in the order that its projection takes.
    saved += 2 * queries
    # Gate, activated gate, up and their product; without a gate before and after the activation.
    saved += (4 if has(".gate_proj.") else 2) * config.intermediate_size
    return saved / hidden


def _memory(
    config: TrainConfig, policy: Policy, tokens: Mapping[str, int], num_processes: int
) -> dict[str, Any]:
    """Bytes of one process at start-up, in a rollout and in learning, and what they follow from."""
    text, vision = policy.config.text_config, policy.config.vision_config
    zero = read_deepspeed_preset(config.deepspeed).get("zero_optimization", {})
    stage = int(zero.get("stage", 0))
    size = DTYPES[pick_dtype(config.dtype, pick_device("auto"))].itemsize
    named = dict(policy.model.named_parameters())
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    variants = config.questions_per_step * config.num_variants // num_processes
    # Variants whose log-probs are computed together.
    of_part = variants // config.minibatches_per_rollout
    together = min(config.questions_per_micro_batch * config.num_variants, of_part)
    total = sum(parameter.numel() for parameter in named.values())
    trained = sum(parameter.numel() for parameter in named.values() if parameter.requires_grad)
    rows = variants * config.num_generations
    length = tokens["prompt"] + config.max_new_tokens
    kv_width = text.num_key_value_heads * head_width
    row_tokens = tokens["logprob_row_at_most"] * together
    patches = tokens["video_patches"] * together
    bucket = int(zero.get("reduce_bucket_size", 5e8))
    # An adapted model with its adapters off is its own reference.
    has_copy = config.beta > 0 and config.trainable != "lora"
    language_model = policy.family.language_model(policy.model)
    tower = policy.family.tower(policy.model)
    language_layer = saved_by_layer(text, dict(language_model.named_parameters()), size)
    tower_layer = saved_by_layer(vision, dict(tower.named_parameters()), size)

    def divided(count: int, from_stage: int) -> int:
        return count // num_processes if stage >= from_stage else count

    held = {
        "weights": divided(total * size, 3),
        "gradients": divided(trained * size, 2),
        "optimiser": divided(trained * (8 + (4 if size < 4 else 0)), 1),
        "reference": divided(total * size, 3) if has_copy else 0,
    }
    offloaded = {}
    if "offload_optimizer" in zero:
        # Gradients on the host are float32; one bucket of them stays on the GPU.
        offloaded["optimiser"] = held["optimiser"]
        offloaded["gradients"] = held["gradients"] * 4 // size
        held |= {"optimiser": 0, "gradients": size * min(trained, bucket)}
    if "offload_param" in zero:
        offloaded |= {"weights": held["weights"], "reference": held["reference"]}
        held |= {"weights": 0, "reference": 0}
    # The reference is copied before DeepSpeed divides anything, or moves it to the host.
    start_up = {"weights": total * size, "reference": total * size if has_copy else 0}
    rollout = {
        "key_value_cache": 2 * text.num_hidden_layers * kv_width * size * rows * length,
        "gathered_weights": total * size if stage == 3 else 0,
    }

    def in_all(num_layers: int, saved: float) -> float:
        # With checkpointing each layer's input, and what the layer saves that is computed again.
        return num_layers + saved if config.gradient_checkpointing else num_layers * saved

    in_layers = in_all(text.num_hidden_layers, language_layer)
    in_tower = in_all(vision.depth, tower_layer) if config.trainable == "all" else 0
    head = text.hidden_size * text.vocab_size * size
    learning = {
        "activations": int(row_tokens * text.hidden_size * size * in_layers),
        "tower_activations": int(patches * vision.hidden_size * size * in_tower),
        "logits": 3 * 4 * min(LOGITS_PER_CHUNK, row_tokens * text.vocab_size),
        "gathered_head": head * (1 + has_copy) if stage == 3 else 0,
    }
    # What a rollout needs is gone before the log-probs begin.
    phases = {"start_up": start_up, "rollout": held | rollout, "learning": held | learning}
    return {
        "inputs": {
            "P": total,
            "T": trained,
            "b": size,
            "zero_stage": stage,
            "num_processes": num_processes,
            "layers": text.num_hidden_layers,
            "hidden": text.hidden_size,
            "kv_width": kv_width,
            "rows": rows,
            "prompt": tokens["prompt"],
            "new": config.max_new_tokens,
            "tokens": row_tokens,
            "patches": patches,
            "saved_by_layer": language_layer,
            "saved_by_tower_layer": tower_layer,
            "bucket": bucket,
        },
        "bytes_per_process": held | rollout | learning,
        "phases": phases,
        "offloaded_bytes_per_process": offloaded,
        "peak_bytes_per_process": max(sum(parts.values()) for parts in phases.values()),
    }


# --- seconds -------------------------------------------------------------------------------------


def estimate_cost(plan: Mapping[str, Any], hardware: Hardware) -> dict[str, Any]:
    """Seconds of a step in each process and GPU-hours of the run, from the rest of a plan.

    Completions count with `max_new_tokens` tokens each: shorter ones take less.
    """
    config, tokens, sizes = plan["config"], plan["tokens"], plan["parameters"]
    memory, processes = plan["memory"]["inputs"], plan["num_processes"]
    size = 4 if config["dtype"] == "float32" else 2
    # Symbols as in docs/scaling.md; what is counted per step is one process's share.
    i = {
        "N": sizes["layers"],
        "H": sizes["head"],
        "V": sizes["vision"],
        "T": max(0, sizes["trained_language"] - sizes["head"]),
        "b": size,
        "kv": 2 * memory["layers"] * memory["kv_width"] * size,
        "patches": tokens["video_patches"],
        "encodes": plan["vision_encodes"]["per_step"] / processes,
        "variants": config["questions_per_step"] * config["num_variants"] / processes,
        "updates": config["updates_per_rollout"],
        "rows": plan["completions_per_step"] / processes,
        "prompt": tokens["prompt"],
        "new": config["max_new_tokens"],
        "prefill": tokens["prefill_per_step"] / processes,
        "completion": tokens["completion_per_step_at_most"] / processes,
        "logprob": tokens["logprob_per_step_at_most"] / processes,
    }
    flops = hardware.tflops * 1e12 * hardware.utilisation
    bandwidth = hardware.bandwidth_gb * 1e9
    vision = 2 * i["V"] * i["patches"] * i["encodes"]
    if config["trainable"] == "all":
        vision += 4 * i["V"] * i["patches"] * i["variants"] * i["updates"]
    whole = i["N"] + i["H"]
    # A token of all rows is bound by what it reads, or by what it computes.
    moved_bytes = whole * size + i["rows"] * (i["prompt"] + i["new"] / 2) * i["kv"]
    token = max(moved_bytes / bandwidth, 2 * whole * i["rows"] / flops)
    per_token = 4 * i["N"] + 2 * i["T"] + (2 * i["N"] if config["gradient_checkpointing"] else 0)
    policy = i["updates"] * (i["logprob"] * per_token + i["completion"] * 8 * i["H"])
    reference = i["logprob"] * 2 * i["N"] + i["completion"] * 2 * i["H"]
    policy += old_passes(config) * reference
    seconds = {
        "vision": vision / flops,
        "prefill": 2 * i["N"] * i["prefill"] / flops,
        "decode": i["new"] * token,
        "policy": policy / flops,
        "reference": reference / flops if config["beta"] > 0 else 0.0,
    }
    total = sum(seconds.values())
    return {
        "hardware": asdict(hardware),
        "inputs": i,
        "seconds_per_step": seconds | {"total": total},
        "gpu_hours": total * config["steps"] * processes / 3600,
    }


# --- out of memory -------------------------------------------------------------------------------

NUM_KNOBS = 3
# What torch's CPU allocator and cuBLAS say; theirs are plain RuntimeErrors.
_TEXTS = ("DefaultCPUAllocator", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
# By the stopwatch's name: where a step was, and which part of the estimate was alive.
_PLACES = {
    "time/data": ("reading the frames", None),
    "time/rollout": ("the rollout", "rollout"),
    "time/logprob": ("the log-probs", "learning"),
    "time/backward": ("the backward pass or optimiser step", "learning"),
}
_FALLBACK = ("max_new_tokens", "max_pixels", "questions_per_step")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an exhausted GPU or machine from other failures."""
    if isinstance(error, StriveError):
        return False
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


@contextmanager
def explaining_out_of_memory(
    config: TrainConfig,
    processes: Processes,
    doing: str,
    phase: Callable[[], str | None] = lambda: None,
) -> Iterator[None]:
    """Turn memory that runs out in the block into an error that names what takes less.

    `doing` says what the block is; `phase` gives the name of the stopwatch that was running, to
    tell which parts of the estimate were alive.

    Raises:
        OutOfMemoryError: with the knobs, their present values and the estimate.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The failed step's tensors hang on its frames; the estimate needs a little room itself.
        traceback.clear_frames(error.__traceback__)
        memory = dry_run(config, num_processes=processes.world_size)["memory"]
        text = explanation(
            config, memory, doing=doing, phase=phase(), num_processes=processes.world_size
        )
        asked = re.search(r"(?:allocate|allocating) ([\d.]+ ?[KMGT]?i?B|\d+ bytes)", str(error))
        if asked is not None:
            amount = asked.group(1)
            if amount.endswith(" bytes"):
                amount = size_text(int(amount.removesuffix(" bytes")))
            text += f"; {amount} were asked for at once"
        raise OutOfMemoryError(text) from error


def explanation(
    config: TrainConfig,
    memory: Mapping[str, Any],
    *,
    doing: str,
    phase: str | None,
    num_processes: int,
) -> str:
    """The message, from a configuration and its memory estimate (`dry_run`)."""
    place, alive_in = _PLACES.get(phase or "", (None, None))
    alive = memory["phases"][alive_in] if alive_in else memory["bytes_per_process"]
    knobs = "; ".join(memory_knobs(config, alive, num_processes))
    listed = ", ".join(
        f"{name.replace('_', ' ')} {size_text(size)}"
        for name, size in sorted(alive.items(), key=lambda item: -item[1])
        if size
    )
    return (
        f"out of memory in {f'{place} of {doing}' if place else doing}; what helps most: {knobs}. "
        f"Estimate of what was alive in each process: {size_text(sum(alive.values()))} ({listed})"
    )


def memory_knobs(
    config: TrainConfig, parts: Mapping[str, float], num_processes: int
) -> tuple[str, ...]:
    """The three settings that save most, each with its present value; largest part first."""
    offloading = sorted(path.stem for path in PRESETS.glob("*offload*.json"))
    is_whole = num_processes > 1 and config.deepspeed in ("zero0", "zero1", "zero2")
    num_variants = config.questions_per_step * config.num_variants
    learning, sharded = "activations tower_activations", "reference optimiser gradients weights"
    # The parts that a setting makes smaller, the setting, a value where one is known to help, and
    # whether it is left to do; of a part's settings the best comes first.
    knobs: tuple[tuple[str, str, str | None, bool], ...] = (
        (learning, "questions_per_micro_batch", "1", config.questions_per_micro_batch > 1),
        (learning, "gradient_checkpointing", "true", not config.gradient_checkpointing),
        ("tower_activations", "trainable", "language", config.trainable == "all"),
        (learning, "max_pixels", None, True),
        ("activations", "max_new_tokens", None, True),
        ("key_value_cache", "questions_per_step", None, num_variants > num_processes),
        ("key_value_cache", "max_new_tokens", None, True),
        ("key_value_cache", "max_pixels", None, True),
        ("reference", "beta", "0", True),
        ("optimiser gradients", "trainable", "lora", config.trainable != "lora"),
        (sharded, "deepspeed", "zero3", is_whole),
        # With one process, only moving states to the CPU helps.
        (sharded, "deepspeed", " or ".join(offloading), config.deepspeed not in offloading),
        ("weights", "dtype", "bfloat16", config.dtype == "float32"),
    )
    chosen: dict[str, str | None] = {}
    for part in sorted(parts, key=lambda name: -parts[name]):
        for smaller, key, wanted, helps in knobs:
            if helps and part in smaller.split():
                chosen.setdefault(key, wanted)
    for key in _FALLBACK:
        chosen.setdefault(key, None)
    written = []
    for key, wanted in list(chosen.items())[:NUM_KNOBS]:
        present = getattr(config, key)
        now = "the processor's limit" if present is None else str(present).lower()
        written.append(f"{key}={wanted} (now {now})" if wanted else f"a lower {key} (now {now})")
    return tuple(written)
