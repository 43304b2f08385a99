"""A training step of Qwen2.5-VL-7B's shapes on one GPU: seconds, peak memory, decoding speed.

Random weights made on the GPU, bfloat16, LoRA, and the preset for one GPU otherwise, with
completions of full length. Measured: whole steps; the log-prob pass of one question, forward and
backward, from packed rows (flex-attention and sdpa) and from plain ones; decoding, compiled over
a fixed cache and as it comes over a growing one, against what the memory allows (every token reads
all weights and the cache once); and what a decode step's time goes into.

Without a GPU it says so and measures nothing; `--tiny` tries the program on the model of
`bench.step`, on any machine. The result file is written after every part, so that a run that is cut
off leaves what it has.

    python -m bench.gpu [--tokens 256] [--repeats 3] [--tiny] [--out FILE]
"""

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.harness import BUILD, RESULTS, flat, write_result
from bench.step_model import (
    FRAME_SIZE,
    PLAIN_TOKENS,
    TEXT,
    VISION,
    build_config,
    build_processor,
    build_tokenizer,
    make_question,
    sharpen_head,
)
from bench.step_ours import Ours
from strive.choices import AttentionMode, DecodeMode
from strive.configs.load import load_config
from strive.configs.schema import TrainConfig
from strive.models.decoding import Decoder
from strive.models.family import VisionFeatures
from strive.models.inputs import PromptInputs
from strive.models.loading import DTYPES, Policy
from strive.models.logprobs import LogProbMode, completion_logprobs_batch
from strive.models.vision import encode_videos
from strive.train.plan import open_architecture
from strive.train.rollout import prepare_variants, sampling_of
from strive.train.timing import Stopwatch, peak_memory_bytes

PRESET = "strive_qwen2_5_vl_7b_lora"
LARGE_FRAME_SIZE = (252, 392)
"""9 x 14 merged tokens a slice: within the preset's 128 per frame."""
# Qwen/Qwen2.5-VL-7B-Instruct, config.json.
TEXT_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1000000.0,
        "mrope_section": [16, 24, 24],
    },
}
VISION_7B: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "tokens_per_second": 2,
}
VOCABULARY_7B, VOCABULARY_TINY = 152064, 8192
Pass = tuple[str, LogProbMode, AttentionMode]
GPU_PASSES: tuple[Pass, ...] = (
    ("packed, flex-attention", "packed", "flex"),
    ("packed, sdpa", "packed", "sdpa"),
    ("plain", "plain", "auto"),
)
PROFILED_STEPS = 8
CPU_PASSES: tuple[Pass, ...] = (("packed, sdpa", "packed", "sdpa"), ("plain", "plain", "auto"))


def architecture_folder(tiny: bool) -> Path:
    """Write configuration and processor, without weights."""
    folder = BUILD / ("gpu-tiny" if tiny else "gpu-7b")
    vocabulary = VOCABULARY_TINY if tiny else VOCABULARY_7B
    text, vision = (TEXT, VISION) if tiny else (TEXT_7B, VISION_7B)
    tokenizer = build_tokenizer(vocabulary)
    build_config(tokenizer, vocabulary, text, vision).save_pretrained(folder)
    frame_size = FRAME_SIZE if tiny else LARGE_FRAME_SIZE
    build_processor(tokenizer, frame_size).save_pretrained(folder)
    return folder


class Measured:
    """The policy on its device, and everything that is timed."""

    def __init__(self, tiny: bool, num_tokens: int) -> None:
        self.device = torch.device("cpu" if tiny else "cuda")
        self.num_tokens = num_tokens
        changes: dict[str, Any] = {
            "model": str(architecture_folder(tiny)),
            "rewards": {"vowels": 1.0},
            "max_new_tokens": num_tokens,
            "dtype": "float32" if tiny else "bfloat16",
            **({"questions_per_step": 1} if tiny else {}),
        }
        self.config = load_config(TrainConfig, [PRESET], options=changes)
        policy = open_architecture(
            self.config, device=str(self.device), dtype=DTYPES[self.config.dtype]
        )
        sharpen_head(policy.model)
        self.frame_size = FRAME_SIZE if tiny else LARGE_FRAME_SIZE
        self.ours = Ours(self.config, policy, self.frame_size)
        question = make_question(0, self.config.num_variants, self.frame_size)
        prepared = prepare_variants(self.policy, [question], self.config)
        self.prompts: list[PromptInputs] = [variant.prompt for variant in prepared]
        self.passes = CPU_PASSES if tiny else GPU_PASSES
        self._features: list[VisionFeatures] | None = None

    @property
    def policy(self) -> Policy:
        """The policy, with adapters."""
        return self.ours.policy

    def steps(self, repeats: int) -> dict[str, Any]:
        """Seconds of whole steps by part, after one that compiles, and their peak memory."""
        first = self.ours.step(0, self.num_tokens)
        self._forget_peak()
        answers = [self.ours.step(1 + i, self.num_tokens)["seconds"] for i in range(repeats)]
        medians = {name: statistics.median(a[name] for a in answers) for name in answers[0]}
        watched = ("rollout_mismatch", "rollout_mismatch_max", "first_kl")
        return {
            "first_seconds": first["seconds"]["step"],
            "seconds": medians,
            "peak_gib": self._peak_gib(),
            **{name: first[name] for name in watched},
        }

    def logprob_passes(self, repeats: int) -> dict[str, Any]:
        """The log-prob pass of one question's variants, forward and backward, each way."""
        config = self.config
        shape = (len(self.prompts), config.num_generations, self.num_tokens)
        tokens = torch.from_numpy(np.random.default_rng(0).integers(0, PLAIN_TOKENS, shape))
        lengths = torch.full(shape[:2], self.num_tokens)
        features = encode_videos(self.policy, self.prompts)
        found: dict[str, Any] = {}
        logprobs: dict[str, Tensor] = {}
        for name, mode, attention in self.passes:

            def run(
                name: str = name, mode: LogProbMode = mode, attention: AttentionMode = attention
            ) -> None:
                result = completion_logprobs_batch(
                    self.policy,
                    self.prompts,
                    features,
                    tokens,
                    lengths,
                    mode=mode,
                    attention=attention,
                )
                result.logprobs.sum().backward()
                logprobs[name] = result.logprobs.detach()
                self.policy.model.zero_grad(set_to_none=True)

            run()
            self._forget_peak()
            found[name] = {
                "seconds": self._median_seconds(run, repeats),
                "peak_gib": self._peak_gib(),
            }
        # How far apart rounding alone puts two right ways: the scale of a rollout's mismatch.
        for name in found:
            difference = (logprobs[name] - logprobs["plain"]).abs().mean()
            found[name]["mean_difference_to_plain"] = difference.item()
        return found

    def _write(self, num_tokens: int, mode: DecodeMode) -> None:
        """Write completions of so many tokens for all questions of a step; videos encode once."""
        config = self.config
        prompts = self.prompts * config.questions_per_step
        if self._features is None:
            self._features = encode_videos(self.policy, prompts)
        shape = (len(prompts), config.num_generations, num_tokens)
        Decoder(self.policy, mode=mode)(
            prompts,
            self._features,
            sampling=dataclasses.replace(sampling_of(config), max_new_tokens=num_tokens),
            uniforms_RGL=np.random.default_rng(0).random(shape),
        )

    def decoding(self, repeats: int, bandwidth: float) -> dict[str, Any]:
        """Tokens a second of all rows of a step, prefill excluded, beside what memory allows."""
        config = self.config
        rows = len(self.prompts) * config.questions_per_step * config.num_generations
        floor_seconds = self._bytes_per_token(rows) / bandwidth
        found: dict[str, Any] = {"rows": rows, "floor_tokens_per_second": rows / floor_seconds}
        modes: tuple[Literal["static", "dynamic"], ...] = ("static", "dynamic")
        for mode in modes:
            first = self._median_seconds(partial(self._write, self.num_tokens, mode), 1)
            prefill = self._median_seconds(partial(self._write, 1, mode), repeats)
            whole = self._median_seconds(partial(self._write, self.num_tokens, mode), repeats)
            speed = rows * (self.num_tokens - 1) / (whole - prefill)
            found[mode] = {
                "first_call_seconds": first,
                "prefill_seconds": prefill,
                "tokens_per_second": speed,
                "share_of_floor": speed * floor_seconds / rows,
            }
        return found

    def decode_profile(self) -> dict[str, Any]:
        """Where the time of a static decode step goes: the device's own, and its longest kernels.

        What the device is not busy for, it waits for the host.
        """
        on_gpu = self.device.type == "cuda"
        kinds = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
        kernels: dict[str, tuple[float, int]] = {}
        seconds = 0.0
        # What the prefill takes as well is taken off again.
        for count, sign in ((PROFILED_STEPS + 1, 1), (1, -1)):
            self._write(count, "static")
            seconds += sign * self._median_seconds(partial(self._write, count, "static"), 1)
            with profile(activities=kinds) as profiled:
                self._write(count, "static")
            for event in profiled.key_averages():
                own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
                time_us, calls = kernels.get(event.key, (0.0, 0))
                kernels[event.key] = (time_us + sign * own, calls + sign * event.count)
        longest = sorted(kernels.items(), key=lambda item: -item[1][0])[:12]
        busy = sum(time_us for time_us, _ in kernels.values()) / 1e3
        return {
            "milliseconds_per_step": seconds * 1e3 / PROFILED_STEPS,
            "device_milliseconds_per_step": busy / PROFILED_STEPS,
            "kernels_per_step": sum(calls for _, calls in kernels.values()) / PROFILED_STEPS,
            "longest_kernels_milliseconds_per_step": {
                name[:70]: time_us / 1e3 / PROFILED_STEPS for name, (time_us, _) in longest
            },
        }

    def _bytes_per_token(self, rows: int) -> float:
        """What one decode step reads: layers and head, and the cache at its mean length."""
        text = self.policy.config.text_config
        layers = self.policy.model.model.language_model.layers
        weights = [*layers.parameters(), *self.policy.model.lm_head.parameters()]
        head_width = text.hidden_size // text.num_attention_heads
        per_column = 2 * text.num_hidden_layers * text.num_key_value_heads * head_width
        columns = len(self.prompts[0].input_ids_P) + self.num_tokens / 2
        size = DTYPES[self.config.dtype].itemsize
        return sum(p.numel() * p.element_size() for p in weights) + (
            rows * columns * per_column * size
        )

    def _median_seconds(self, run: Callable[[], None], repeats: int) -> float:
        seconds = []
        for _ in range(repeats):
            watch = Stopwatch(self.device)
            with watch.measure("run"):
                run()
            seconds.append(watch.seconds["run"])
        return statistics.median(seconds)

    def _forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _peak_gib(self) -> float:
        return peak_memory_bytes(self.device) / 2**30


def measure_bandwidth(device: torch.device, mebibytes: int) -> float:
    """Bytes a second that a copy within the device's memory reads and writes."""
    source = torch.zeros(mebibytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        watch = Stopwatch(device)
        with watch.measure("copy"):
            target.copy_(source)
        seconds.append(watch.seconds["copy"])
    return 2 * source.numel() / min(seconds)


def measure(*, tiny: bool, num_tokens: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Run everything; yields all figures so far after every part."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    started = time.perf_counter()
    measured = Measured(tiny, num_tokens)
    bandwidth = measure_bandwidth(measured.device, 64 if tiny else 2048)
    config = measured.config
    figures: dict[str, Any] = {
        "on_gpu": not tiny,
        "parameters": sum(p.numel() for p in measured.policy.model.parameters()),
        "dtype": config.dtype,
        "lora_rank": config.lora_rank,
        "questions_per_step": config.questions_per_step,
        "num_variants": config.num_variants,
        "num_generations": config.num_generations,
        "prompt_tokens": len(measured.prompts[0].input_ids_P),
        "completion_tokens": num_tokens,
        "copy_bandwidth_gb_per_second": bandwidth / 1e9,
        "set_up_seconds": time.perf_counter() - started,
    }
    yield figures
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "step": lambda: measured.steps(repeats),
        "logprob_pass_of_one_question": lambda: measured.logprob_passes(repeats),
        "decoding": lambda: measured.decoding(repeats, bandwidth),
        "decode_step": measured.decode_profile,
    }
    for name, part in parts.items():
        figures = figures | {name: part()}
        yield figures


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=256, help="of a completion")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="try it on any machine; no result")
    parser.add_argument("--out", type=Path, help="result file  [default: bench/results/gpu.json]")
    asked = parser.parse_args()
    if not asked.tiny and not torch.cuda.is_available():
        print("bench.gpu: no GPU here, nothing is measured (--tiny tries the program)")
        return
    out = asked.out or (None if asked.tiny else RESULTS / "gpu.json")
    shown: set[str] = set()
    for figures in measure(tiny=asked.tiny, num_tokens=asked.tokens, repeats=asked.repeats):
        for name, value in flat(figures):
            if name not in shown:
                print(f"{name:55} {value}", flush=True)
                shown.add(name)
        if out is not None:
            packages = ("torch", "transformers", "deepspeed", "peft")
            write_result("gpu", figures, packages=packages, path=out)
    if out is not None:
        print(f"wrote {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
