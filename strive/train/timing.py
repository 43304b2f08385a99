"""Seconds by name, and peak memory, with the device's queued work waited for."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class Stopwatch:
    """Adds up seconds by name."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    broken_off: str | None = None
    """Innermost name whose block an exception left."""

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the block's seconds to a name."""
        started = self._now()
        try:
            yield
        except BaseException:
            # No waiting for a device that may have failed.
            self.broken_off = self.broken_off or name
            raise
        self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of allocated GPU memory since the run began, or of the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
