"""Out of memory as one clear line: where it happened, what memory goes into, what takes less.

The knobs are chosen by the estimate of `plan.py`: the largest parts that are alive where memory ran
out come first, and for each part the settings that make it smaller.
"""

import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from strive.configs.schema import TrainConfig
from strive.errors import OutOfMemoryError, StriveError
from strive.progress import size_text
from strive.train.engine import PRESETS
from strive.train.plan import dry_run
from strive.train.processes import Processes

NUM_KNOBS = 3
# What torch's CPU allocator and cuBLAS say; theirs are plain RuntimeErrors.
_TEXTS = ("DefaultCPUAllocator", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
# Parts of the estimate that are not there in a phase of the step.
_OF_LEARNING = ("activations", "logits", "gathered_head")
_OF_ROLLOUT = ("key_value_cache", "gathered_weights")
_ABSENT = {
    "time/rollout": _OF_LEARNING,
    "time/logprob": _OF_ROLLOUT,
    "time/backward": _OF_ROLLOUT,
}
_PLACES = {
    "time/data": "reading the frames",
    "time/rollout": "the rollout",
    "time/logprob": "the log-probs",
    "time/backward": "the backward pass or optimiser step",
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
        raise OutOfMemoryError(f"{text}{_reason(error)}") from error


def explanation(
    config: TrainConfig,
    memory: Mapping[str, Any],
    *,
    doing: str,
    phase: str | None,
    num_processes: int,
) -> str:
    """The message, from a configuration and its memory estimate (`plan.dry_run`)."""
    parts = memory["bytes_per_process"]
    absent = _ABSENT.get(phase or "", ())
    alive = {name: size for name, size in parts.items() if name not in absent}
    where = f"{_PLACES[phase]} of {doing}" if phase in _PLACES else doing
    knobs = "; ".join(memory_knobs(config, alive, num_processes))
    listed = ", ".join(
        f"{name.replace('_', ' ')} {size_text(size)}"
        for name, size in sorted(alive.items(), key=lambda item: -item[1])
        if size
    )
    return (
        f"out of memory in {where}; what helps most: {knobs}. Estimate of what was alive in each "
        f"process: {size_text(sum(alive.values()))} ({listed})"
    )


def memory_knobs(
    config: TrainConfig, parts: Mapping[str, float], num_processes: int
) -> tuple[str, ...]:
    """The three settings that save most, each with its present value; largest part first."""
    chosen: dict[str, str] = {}
    for part in sorted(parts, key=lambda name: -parts[name]):
        for key, wanted in _knobs_of(part, config, num_processes):
            chosen.setdefault(key, _written(config, key, wanted))
    for key in _FALLBACK:
        chosen.setdefault(key, _written(config, key, None))
    return tuple(chosen.values())[:NUM_KNOBS]


def _knobs_of(
    part: str, config: TrainConfig, num_processes: int
) -> Iterator[tuple[str, str | None]]:
    """Settings that make a part smaller, best first; a value where one is known to help."""
    if part == "activations":
        if config.questions_per_micro_batch > 1:
            yield "questions_per_micro_batch", "1"
        if not config.gradient_checkpointing:
            yield "gradient_checkpointing", "true"
        yield "max_pixels", None
        yield "max_new_tokens", None
    elif part == "key_value_cache":
        if config.questions_per_step * config.num_variants > num_processes:
            yield "questions_per_step", None
        yield "max_new_tokens", None
        yield "max_pixels", None
    elif part == "reference":
        yield "beta", "0"
        yield from _sharding(config, num_processes)
    elif part in ("optimiser", "gradients"):
        yield from _lora(config)
        yield from _sharding(config, num_processes)
    elif part == "weights":
        yield from _sharding(config, num_processes)
        if config.dtype == "float32":
            yield "dtype", "bfloat16"


def _lora(config: TrainConfig) -> Iterator[tuple[str, str | None]]:
    """Training adapters alone."""
    if config.trainable != "lora":
        yield "trainable", "lora"


def _sharding(config: TrainConfig, num_processes: int) -> Iterator[tuple[str, str | None]]:
    """Partition over several processes; with one, only moving states to the CPU helps."""
    if num_processes > 1 and config.deepspeed in ("zero0", "zero1", "zero2"):
        yield "deepspeed", "zero3"
    offloading = sorted(path.stem for path in PRESETS.glob("*offload*.json"))
    if offloading and config.deepspeed not in offloading:
        yield "deepspeed", " or ".join(offloading)


def _written(config: TrainConfig, key: str, wanted: str | None) -> str:
    present = getattr(config, key)
    now = "the processor's limit" if present is None else str(present).lower()
    return f"{key}={wanted} (now {now})" if wanted else f"a lower {key} (now {now})"


def _reason(error: BaseException) -> str:
    """How much was asked for, where the allocator says so."""
    asked = re.search(r"(?:allocate|allocating) ([\d.]+ ?[KMGT]?i?B|\d+ bytes)", str(error))
    if asked is None:
        return ""
    size = asked.group(1)
    if size.endswith(" bytes"):
        size = size_text(int(size.removesuffix(" bytes")))
    return f"; {size} were asked for at once"
