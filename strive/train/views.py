"""Views: what is done to a variant's frames before the policy sees them, one entry of `VIEWS` each.

A view changes the pictures alone: the K times and positions stay as they are and in order, so a
shuffled or reversed view shows its frames at the times of others. Frames are uint8 [K, H, W, 3] and
size and type stay. What a view draws comes from (seed, step, question, variant, view).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from strive.choices import NoiseSchedule
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError
from strive.named import check_name, load_function, raised
from strive.seeding import derive_rng
from strive.train.augment import augment_frames, draw_augmentation

Frames = NDArray[np.uint8]
GREY = 128
NUM_DIFFUSION_STEPS = 1000


@dataclass(frozen=True)
class Shown:
    """What a view may depend on besides the frames."""

    rng: np.random.Generator
    noise_level: int
    """Diffusion steps of `noise`, from the configuration and the step."""


View = Callable[[Frames, Shown], Frames]
"""`f(frames_KHWC, shown)`; it draws from `shown.rng` alone and leaves its argument as it is."""


def spatial(frames_KHWC: Frames, shown: Shown) -> Frames:
    """Colour jitter and a small affine map, the same for all frames (Sec. 4.2)."""
    return augment_frames(frames_KHWC, draw_augmentation(shown.rng))


def shuffle(frames_KHWC: Frames, shown: Shown) -> Frames:
    """The frames in a random order (T-GRPO)."""
    return frames_KHWC[shown.rng.permutation(len(frames_KHWC))]


def reverse(frames_KHWC: Frames, shown: Shown) -> Frames:
    """The frames from last to first (ArrowRL)."""
    return frames_KHWC[::-1]


def mirror(frames_KHWC: Frames, shown: Shown) -> Frames:
    """Left and right exchanged."""
    return frames_KHWC[:, :, ::-1]


def grey(frames_KHWC: Frames, shown: Shown) -> Frames:
    """Nothing but grey: what is answered of it comes from the question alone."""
    return np.full_like(frames_KHWC, GREY)


def noise(frames_KHWC: Frames, shown: Shown) -> Frames:
    """Forward diffusion of the pixels in [0, 1] (NoisyRollout, arXiv:2504.13055).

    sqrt(a_t) x + sqrt(1 - a_t) n, clamped: n is normal, t the noise level, and a_t its place in
    `alpha_bars`. Level 0 is no noise.
    """
    if shown.noise_level == 0:
        return frames_KHWC
    keep = np.float32(alpha_bars()[shown.noise_level])
    normal = shown.rng.standard_normal(frames_KHWC.shape, dtype=np.float32)
    noisy = np.sqrt(keep) * (frames_KHWC / np.float32(255)) + np.sqrt(1 - keep) * normal
    return np.rint(noisy.clip(0, 1) * 255).astype(np.uint8)


@cache
def alpha_bars() -> NDArray[np.floating]:
    """Share of the variance that is left after t + 1 of 1,000 diffusion steps, falling.

    The product of 1 - beta, where beta runs as a sigmoid over [-6, 6] from 1e-5 to 5e-3
    (NoisyRollout's code).
    """
    ramp = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, NUM_DIFFUSION_STEPS)))
    return np.cumprod(1.0 - (ramp * (5e-3 - 1e-5) + 1e-5))


def noise_level(
    step: int,
    num_steps: int,
    *,
    noise_steps: int,
    schedule: NoiseSchedule,
    steepness: float,
    midpoint: float,
) -> int:
    """Diffusion steps of `noise` in a step (from 0) of a run.

    `sigmoid`: int(noise_steps (1 - sigmoid(steepness (t - midpoint)))), with t the share of the run
    that this step ends; `constant`: noise_steps.
    """
    if schedule == "constant":
        return noise_steps
    late = steepness * ((step + 1) / num_steps - midpoint)
    # 1 - sigmoid(late), of any size.
    return int(noise_steps * 0.5 * (1.0 - math.tanh(late / 2)))


VIEWS: dict[str, View] = {
    "none": lambda frames_KHWC, shown: frames_KHWC,
    "spatial": spatial,
    "noise": noise,
    "shuffle": shuffle,
    "reverse": reverse,
    "mirror": mirror,
    "grey": grey,
}


class FrameViews:
    """The views of a run: of its variants, called as `groups.AugmentVariant` is, and its contrast.

    Raises:
        UnknownNameError, MissingInputError, ConfigError: a name that is none, or cannot be used.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._views: dict[str, View] = {}
        for name in (*config.views_M, config.contrast):
            check_name("view", name, VIEWS)
            self._views[name] = VIEWS.get(name) or load_function(f"view '{name}'", name)

    def __call__(
        self, frames_KHWC: Frames, *, seed: int, step: int, question_id: str, variant: int
    ) -> Frames:
        """Frames of a variant under its view."""
        name = self._config.views_M[variant]
        # The tag that spatial augmentation has had since before there were other views.
        tag = "augment" if name == "spatial" else f"view {name}"
        rng = derive_rng(seed, tag, step, question_id, variant)
        return self._seen(name, frames_KHWC, rng, step)

    def contrast(self, frames_KHWC: Frames, *, step: int, question_id: str) -> Frames:
        """Frames of a question's first variant under the contrast's view."""
        name = self._config.contrast
        rng = derive_rng(self._config.seed, f"contrast {name}", step, question_id)
        return self._seen(name, frames_KHWC, rng, step)

    def _seen(self, name: str, frames_KHWC: Frames, rng: np.random.Generator, step: int) -> Frames:
        config = self._config
        level = noise_level(
            step,
            config.steps,
            noise_steps=config.noise_steps,
            schedule=config.noise_schedule,
            steepness=config.noise_steepness,
            midpoint=config.noise_midpoint,
        )
        # A user's function may write into what it is given, which others are shown, too.
        given = frames_KHWC if name in VIEWS else frames_KHWC.copy()
        try:
            seen = self._views[name](given, Shown(rng, level))
        except (Exception, SystemExit) as error:  # whatever a user's function does
            raise ConfigError(f"view '{name}' raised {raised(error)}") from error
        found = f"{getattr(seen, 'dtype', type(seen).__name__)} {getattr(seen, 'shape', '')}"
        if found != f"{frames_KHWC.dtype} {frames_KHWC.shape}":
            raise ConfigError(
                f"view '{name}' returned {found.strip()} where frames of {frames_KHWC.dtype} "
                f"{frames_KHWC.shape} are due, as it was given"
            )
        return np.ascontiguousarray(seen)
