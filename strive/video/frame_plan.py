"""Which frames of a file make the pool."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from strive.errors import ConfigError, unknown_name
from strive.video.source import VideoSource

# Two frames form one temporal patch of Qwen's vision towers, so qwen-vl-utils takes even counts.
FRAME_FACTOR = 2
FPS_WANTED = 2.0
FPS_MIN_FRAMES = 4


def uniform_indices(source: VideoSource, num_frames: int) -> np.ndarray:
    """Return the midpoints of `num_frames` equal segments: floor((i + 0.5) * n / F).

    A clip with fewer frames than F gives each of its frames once. The last frame of a file is never
    asked for when n >= 2F, which keeps clear of decoders that hang at the end of a file.
    """
    i_F = np.arange(num_frames, dtype=np.int64)
    return np.unique((2 * i_F + 1) * source.num_frames // (2 * num_frames))


def linspace_indices(source: VideoSource, num_frames: int) -> np.ndarray:
    """Return `num_frames` indices from the first to the last frame, both included, rounded.

    Halves go to the even index, as in `torch.linspace(0, n - 1, F).round()`, which most evaluation
    code uses; the arithmetic is exact where theirs is in 32-bit floats. A single frame is frame 0.
    """
    if num_frames == 1:
        return np.zeros(1, np.int64)
    steps = num_frames - 1
    i_F = np.arange(num_frames, dtype=np.int64)
    whole_F, rest_F = np.divmod(i_F * (source.num_frames - 1), steps)
    # Upwards past the half; at the half itself only from an odd index.
    upwards_F = 2 * rest_F + (whole_F & 1) > steps
    return np.unique(whole_F + upwards_F)


def fps_indices(source: VideoSource, num_frames: int) -> np.ndarray:
    """Return two frames a second, at least 4 and at most `num_frames`, an even count, by linspace.

    Source: `smart_nframes` of qwen-vl-utils with FPS=2.0, FPS_MIN_FRAMES=4, FRAME_FACTOR=2, which
    Video-R1 vendors (with FPS_MAX_FRAMES 16 in training, 16, 32 or 64 in evaluation): the count is
    duration * 2, clamped to [4, F] and to the file's frames, floored to a multiple of 2; the
    indices are linspace(0, n - 1) rounded. A clip of one frame, where theirs raises, gives that
    frame, and an F of 1 gives frame 0.
    """
    wanted = source.num_frames / source.fps * FPS_WANTED
    most = min(num_frames, source.num_frames)
    # 10 s at 25 a second must not become 19.999999 frames, floored to 18.
    count = int(min(max(wanted + 1e-6, FPS_MIN_FRAMES), most))
    return linspace_indices(source, max(count - count % FRAME_FACTOR, 1))


def keyframe_indices(source: VideoSource, num_frames: int) -> np.ndarray:
    """Return the uniform midpoints, each moved to its nearest keyframe where keyframes are dense.

    Dense means that the stride n / F is at least twice the distance between the two keyframes
    around the sample (the last keyframe's group reaches to the end of the file): a sample then
    moves by a quarter of the stride at most (half of it after the last keyframe), so that no two
    meet. Samples among sparser keyframes stay where they are; a file of long groups of pictures
    gives plain `uniform`. Of two keyframes at the same distance the earlier one is taken.
    """
    uniform_F = uniform_indices(source, num_frames)
    keyframes_K = source.keyframes_K
    if len(keyframes_K) == 0:
        return uniform_F
    next_F = np.searchsorted(keyframes_K, uniform_F, side="right")
    has_start_F = next_F > 0  # False: before the first keyframe, as a cut file may begin
    start_F = keyframes_K[np.maximum(next_F - 1, 0)]
    bounds_K = np.append(keyframes_K, source.num_frames)
    end_F = bounds_K[next_F]
    dense_F = has_start_F & (2 * (end_F - start_F) * num_frames <= source.num_frames)
    to_end_F = dense_F & (end_F - uniform_F < uniform_F - start_F) & (next_F < len(keyframes_K))
    snapped_F = np.where(to_end_F, end_F, np.where(dense_F, start_F, uniform_F))
    return np.unique(snapped_F)


FRAME_PLANS: dict[str, Callable[[VideoSource, int], np.ndarray]] = {
    "uniform": uniform_indices,
    "keyframe": keyframe_indices,
    "linspace": linspace_indices,
    "fps": fps_indices,
}

# Pixels of one frame at most. 128 merged tokens of 28x28 pixels for the pools that training draws
# from (Video-R1's training budget); 256 for `linspace` and `fps`, the rules of evaluation, where
# Video-R1 raises VIDEO_MAX_PIXELS to 256*28*28.
DEFAULT_MAX_PIXELS: dict[str, int] = {
    "uniform": 128 * 28 * 28,
    "keyframe": 128 * 28 * 28,
    "linspace": 256 * 28 * 28,
    "fps": 256 * 28 * 28,
}


@dataclass(frozen=True, slots=True)
class FramePlan:
    """A named rule and how many frames it may take at most."""

    kind: str = "uniform"
    num_frames: int = 64
    end_frame: int | None = None
    """The file is taken to end before this frame; None: where it does."""

    def __post_init__(self) -> None:
        if self.kind not in FRAME_PLANS:
            raise unknown_name("frame plan", self.kind, FRAME_PLANS)
        if self.num_frames < 1:
            raise ConfigError(f"{self.num_frames} frames asked for; at least 1 is needed: --frames")

    @property
    def fields(self) -> dict[str, Any]:
        """The plan as JSON values, which the frames key hashes."""
        end = {} if self.end_frame is None else {"end_frame": self.end_frame}
        return {"kind": self.kind, "num_frames": self.num_frames, **end}

    def indices(self, source: VideoSource) -> np.ndarray:
        """Return source indices [F], strictly increasing."""
        if self.end_frame is not None:
            shown = max(1, min(self.end_frame, source.num_frames))
            source = replace(source, num_frames=shown)
        return FRAME_PLANS[self.kind](source, self.num_frames)
