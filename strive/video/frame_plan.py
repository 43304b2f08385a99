"""Which frames of a file make the pool."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from strive.errors import ConfigError, unknown_name


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What a plan may look at: the exact number of frames, and the time line."""

    num_frames: int
    fps: float
    duration_seconds: float


def uniform_indices(source: SourceFacts, num_frames: int) -> np.ndarray:
    """Return the midpoints of `num_frames` equal segments: floor((i + 0.5) * n / F).

    A clip with fewer frames than F gives each of its frames once. The last frame of a file is never
    asked for when n >= 2F, which keeps clear of decoders that hang at the end of a file.
    """
    i_F = np.arange(num_frames, dtype=np.int64)
    return np.unique((2 * i_F + 1) * source.num_frames // (2 * num_frames))


FRAME_PLANS: dict[str, Callable[[SourceFacts, int], np.ndarray]] = {"uniform": uniform_indices}


@dataclass(frozen=True, slots=True)
class FramePlan:
    """A named rule and how many frames it may take at most."""

    kind: str = "uniform"
    num_frames: int = 64

    def __post_init__(self) -> None:
        if self.kind not in FRAME_PLANS:
            raise unknown_name("frame plan", self.kind, FRAME_PLANS)
        if self.num_frames < 1:
            raise ConfigError(f"{self.num_frames} frames asked for; at least 1 is needed: --frames")

    @property
    def fields(self) -> dict[str, Any]:
        """What the frames key hashes."""
        return {"kind": self.kind, "num_frames": self.num_frames}

    def indices(self, source: SourceFacts) -> np.ndarray:
        """Return source indices [F], strictly increasing."""
        return FRAME_PLANS[self.kind](source, self.num_frames)
