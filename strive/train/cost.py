"""GPU-hours of a run by a formula, from its plan (`plan.dry_run`) and three figures of the GPU.

Every input is returned beside the result. Completions count with `max_new_tokens` tokens each:
shorter ones take less. Decoding counts at the speed of the memory: a loop that waits for kernels
takes longer, which a calibration (`calibrate.py`) shows.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Hardware:
    """One GPU. The defaults are those of an H100 SXM's data sheet, and a usual utilisation."""

    tflops: float = 989.0
    """Peak of dense bfloat16, in 10^12 operations a second."""
    utilisation: float = 0.4
    """Share of the peak that forward and backward passes reach."""
    bandwidth_gb: float = 3350.0
    """Memory bandwidth in 10^9 bytes a second."""


COST_FORMULA = (
    "seconds a step in each process, F = tflops*utilisation, B = bandwidth: vision 2*V*patches*"
    "encodes/F (a trained tower's backward 4*V*patches*variants*updates/F more) + prefill 2*N*"
    "prefill/F + decode new*max(((N+H)*b + rows*(prompt + new/2)*kv)/B, 2*(N+H)*rows/F) + policy "
    "updates*(logprob*(4*N + 2*T, 2*N more with gradient checkpointing) + completion*8*H)/F + "
    "reference (logprob*2*N + completion*2*H)/F; attention over the context, communication, the "
    "optimiser step and reading are not in it"
)


def estimate_gpu_hours(plan: Mapping[str, Any], hardware: Hardware) -> dict[str, Any]:
    """GPU-hours of the whole run; `plan` is what `plan.dry_run` returns."""
    inputs = _inputs(plan)
    parts = _seconds(inputs, hardware, plan["config"])
    seconds = sum(parts.values())
    return {
        "formula": COST_FORMULA,
        "hardware": asdict(hardware),
        "inputs": inputs,
        "seconds_per_step": parts | {"total": seconds},
        "gpu_hours": gpu_hours(seconds, plan),
    }


def gpu_hours(seconds_per_step: float, plan: Mapping[str, Any]) -> float:
    """Hours of all GPUs together over all steps."""
    return seconds_per_step * plan["config"]["steps"] * plan["num_processes"] / 3600


def _inputs(plan: Mapping[str, Any]) -> dict[str, float]:
    """The formula's symbols; what is counted per step is one process's share."""
    config, tokens, sizes = plan["config"], plan["tokens"], plan["parameters"]
    processes = plan["num_processes"]
    size = 4 if config["dtype"] == "float32" else 2
    memory = plan["memory"]["inputs"]
    return {
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


def _seconds(
    i: Mapping[str, float], hardware: Hardware, config: Mapping[str, Any]
) -> dict[str, float]:
    flops = hardware.tflops * 1e12 * hardware.utilisation
    bandwidth = hardware.bandwidth_gb * 1e9
    vision = 2 * i["V"] * i["patches"] * i["encodes"]
    if config["trainable"] == "all":
        vision += 4 * i["V"] * i["patches"] * i["variants"] * i["updates"]
    whole = i["N"] + i["H"]
    moved_bytes = whole * i["b"] + i["rows"] * (i["prompt"] + i["new"] / 2) * i["kv"]
    per_token = 4 * i["N"] + 2 * i["T"] + (2 * i["N"] if config["gradient_checkpointing"] else 0)
    policy = i["updates"] * (i["logprob"] * per_token + i["completion"] * 8 * i["H"])
    reference = i["logprob"] * 2 * i["N"] + i["completion"] * 2 * i["H"]
    return {
        "vision": vision / flops,
        "prefill": 2 * i["N"] * i["prefill"] / flops,
        "decode": i["new"] * max(moved_bytes / bandwidth, 2 * whole * i["rows"] / flops),
        "policy": policy / flops,
        "reference": reference / flops if config["beta"] > 0 else 0.0,
    }
