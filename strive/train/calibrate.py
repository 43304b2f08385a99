"""Seconds of a step, measured in a few passes at its true shapes with random weights.

One process's share of the first step: its own frames and prompts, every completion at its full
length. Weights are made on the device, so nothing is downloaded or read. DeepSpeed's communication
and the optimiser step are not in it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from strive.configs.schema import TrainConfig
from strive.models.generate import generate
from strive.models.inputs import PromptInputs
from strive.models.loading import DTYPES, Policy, checkpoint_activations, pick_dtype
from strive.models.logprobs import completion_logprobs_batch
from strive.models.vision import encode_videos
from strive.seeding import derive_rng
from strive.train.cost import gpu_hours
from strive.train.data import TrainingData, shard
from strive.train.plan import open_architecture
from strive.train.rollout import prepare_questions, sampling_of
from strive.train.start import make_trainable
from strive.train.timing import Stopwatch, peak_memory_bytes

DECODED_TOKENS = 64
"""Decoding is measured over so many tokens of each completion."""


def calibrate(config: TrainConfig, plan: Mapping[str, Any], *, device: str) -> dict[str, Any]:
    """Measure one process's passes on a device and add them up to GPU-hours.

    `plan` is what `plan.dry_run` returns for the configuration.
    """
    policy = _random_policy(config, device)
    num_processes = plan["num_processes"]
    prompts = _prompts(config, policy, num_processes)
    together = config.questions_per_micro_batch * config.num_variants
    micro_batch = prompts[: min(together, len(prompts))]
    rollout = _measure_rollout(config, policy, prompts)
    update = _measure_update(config, policy, micro_batch)
    per_step = {
        "vision": rollout["vision"],
        "prefill": rollout["prefill"],
        "decode": rollout["token"] * config.max_new_tokens,
        "policy": update["policy"] * config.updates_per_rollout * len(prompts) / len(micro_batch),
        "reference": update["reference"] * len(prompts) / len(micro_batch),
    }
    total = sum(per_step.values())
    return {
        "device": _device_name(device),
        "seconds_per_step": per_step | {"total": total},
        "peak_bytes": peak_memory_bytes(torch.device(device)),
        "gpu_hours": gpu_hours(total, plan),
    }


def _random_policy(config: TrainConfig, device: str) -> Policy:
    dtype = DTYPES[pick_dtype(config.dtype, torch.device(device))]
    policy = open_architecture(config, device=device, dtype=dtype)
    make_trainable(policy, config)
    if config.gradient_checkpointing:
        checkpoint_activations(policy.model)
        policy.model.train()
    # No completion may end early.
    return replace(policy, eos_ids=())


def _prompts(config: TrainConfig, policy: Policy, num_processes: int) -> list[PromptInputs]:
    data = TrainingData(config)
    share = shard(data.questions_of(0), config.num_variants, 0, num_processes)
    prepared = prepare_questions(
        policy,
        [data.read(record, 0, variants) for record, variants in share],
        prompt_template=config.prompt_template,
        max_pixels=config.max_pixels,
    )
    return [prompt for question in prepared for prompt in question.prompts]


def _measure_rollout(
    config: TrainConfig, policy: Policy, prompts: list[PromptInputs]
) -> dict[str, float]:
    """Seconds of the vision encodes, of the prefill, and of one decoded token of all rows."""
    num_tokens = min(DECODED_TOKENS, max(1, config.max_new_tokens - 1))
    shape = (len(prompts), config.num_generations, num_tokens + 1)
    uniforms_RGL = derive_rng(config.seed, "calibration").random(shape)

    def write(features: Any, count: int) -> None:
        generate(
            policy,
            prompts,
            features,
            sampling=replace(sampling_of(config), max_new_tokens=count),
            uniforms_RGL=uniforms_RGL,
            decode_mode=config.decode,
        )

    # The first passes load kernels.
    write(encode_videos(policy, prompts), min(2, num_tokens + 1))
    watch = Stopwatch(policy.device)
    with watch.measure("vision"):
        features = encode_videos(policy, prompts)
    with watch.measure("prefill"):
        write(features, 1)
    with watch.measure("all"):
        write(features, num_tokens + 1)
    seconds = watch.seconds
    token = max(0.0, seconds["all"] - seconds["prefill"]) / num_tokens
    return {"vision": seconds["vision"], "prefill": seconds["prefill"], "token": token}


def _measure_update(
    config: TrainConfig, policy: Policy, prompts: list[PromptInputs]
) -> dict[str, float]:
    """Seconds of one micro-batch's forward and backward, and of the reference's forward."""
    shape = (len(prompts), config.num_generations, config.max_new_tokens)
    rng = derive_rng(config.seed, "calibration", "tokens")
    tokens_BGL = torch.from_numpy(rng.integers(0, len(policy.tokenizer), shape))
    lengths_BG = torch.full(shape[:2], config.max_new_tokens)
    trains_tower = config.trainable == "all"
    of_rollout = encode_videos(policy, prompts)

    def logprobs() -> Tensor:
        # A frozen tower's features are the rollout's; a trained one runs again, with a graph.
        features = encode_videos(policy, prompts, with_graph=True) if trains_tower else of_rollout
        return completion_logprobs_batch(
            policy,
            prompts,
            features,
            tokens_BGL,
            lengths_BG,
            sampling_temperature=config.sampling_temperature,
            mode=config.logprobs,
            attention=config.attention,
        ).logprobs.sum()

    watch = Stopwatch(policy.device)
    for name in ("warm-up", "policy"):
        with watch.measure(name):
            logprobs().backward()
        policy.model.zero_grad(set_to_none=True)
    if config.beta > 0:
        with watch.measure("reference"), torch.no_grad():
            logprobs()
    return {"policy": watch.seconds["policy"], "reference": watch.seconds.get("reference", 0.0)}


def _device_name(device: str) -> str:
    is_gpu = torch.device(device).type == "cuda"
    return torch.cuda.get_device_name(device) if is_gpu else device
