"""What one call of the offline stage is asked to do, and what it reports."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strive.cache.codec import FrameCodec
from strive.cache.layout import make_key
from strive.errors import ConfigError
from strive.pipeline.scorers import check_scorer_name
from strive.video.decode import decoder_order
from strive.video.frame_plan import FramePlan
from strive.video.resize import RESIZE_RULE
from strive.video.worker import DEFAULT_TIMEOUT_SECONDS

DEFAULT_MAX_PIXELS = 128 * 28 * 28


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecomputeOptions:
    """Every option of `strive-cli precompute`; `scorer_models` maps a scorer to an id or folder."""

    data: tuple[Path, ...]
    video_root: Path
    cache: Path
    scorers: tuple[str, ...] = ("siglip2",)
    scorer_models: dict[str, str] = field(default_factory=dict)
    filters: tuple[tuple[str, str], ...] = ()
    subset: int | None = None
    seed: int = 0
    limit: int | None = None
    frames: int = 64
    frame_plan: str = "uniform"
    max_pixels: int = DEFAULT_MAX_PIXELS
    frame_codec: str = "jpeg"
    decoder: str = "auto"
    workers: int | None = None
    shard: tuple[int, int] = (0, 1)
    decode_timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    device: str = "auto"
    dtype: str | None = None
    embed_batch_size: int = 64
    max_failure_fraction: float = 0.05
    retry_failed: bool = False
    overwrite: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is read."""
        if not self.data:
            raise ConfigError("no records file; give one with --data")
        if not self.scorers:
            raise ConfigError("no scorer; give one with --scorer")
        for name in self.scorers:
            check_scorer_name(name)
        unused = sorted(set(self.scorer_models) - set(self.scorers))
        if unused:
            raise ConfigError(
                f"--scorer-model names '{unused[0]}', which is not among the scorers of this "
                f"call ({', '.join(self.scorers)}); add --scorer {unused[0]}"
            )
        decoder_order(self.decoder)
        _check_range("--max-pixels", self.max_pixels, 1)
        _check_range("--workers", self.workers, 1)
        _check_range("--limit", self.limit, 1)
        _check_range("--subset", self.subset, 1)
        _check_range("embed_batch_size", self.embed_batch_size, 1)
        if self.decode_timeout_seconds <= 0:
            raise ConfigError(
                f"decode_timeout_seconds is {self.decode_timeout_seconds:g}; it must be more than 0"
            )
        if not 0 <= self.max_failure_fraction <= 1:
            raise ConfigError(
                f"--max-failure-fraction {self.max_failure_fraction:g}; 0 to 1 is allowed"
            )
        index, count = self.shard
        if not 0 <= index < count:
            raise ConfigError(f"--shard {index}/{count}; write i/n with 0 <= i < n")

    @property
    def plan(self) -> FramePlan:
        """The frame plan."""
        return FramePlan(self.frame_plan, self.frames)

    @property
    def codec(self) -> FrameCodec:
        """The frame codec."""
        return FrameCodec(self.frame_codec)  # type: ignore[arg-type] # checked by FrameCodec

    @property
    def writer(self) -> str:
        """The name of this writer, part of every file name that it commits."""
        return f"s{self.shard[0]}of{self.shard[1]}"

    def frames_fields(self) -> dict[str, Any]:
        """Everything that decides which pixels are cached."""
        return {
            "plan": self.plan.fields,
            "max_pixels": self.max_pixels,
            "resize": RESIZE_RULE,
            "codec": self.codec.fields,
            "decoder": self.decoder,
        }

    def frames_key(self) -> str:
        """The frames key."""
        name = f"{self.frame_plan}{self.frames}-{self.max_pixels}px-{self.frame_codec}"
        return make_key(name, self.frames_fields())


def _check_range(knob: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise ConfigError(f"{knob} {value}; at least {low} is needed")
