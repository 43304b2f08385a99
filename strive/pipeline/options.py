"""What one call of the offline stage is asked to do, and what it reports."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from strive.cache.codec import FrameCodec
from strive.cache.layout import make_key
from strive.choices import Engine, LongText, Query
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError, unknown_name
from strive.pipeline.prepare import PrepareRule
from strive.scorers import check_scorer_name
from strive.video.decode import decoder_order
from strive.video.frame_plan import DEFAULT_MAX_PIXELS, FramePlan
from strive.video.length import parse_max_missing
from strive.video.resize import RESIZE_RULE
from strive.video.worker import DEFAULT_TIMEOUT_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecomputeOptions:
    """Every option of `strive-cli precompute`.

    `scorer_models` maps a scorer to an id or folder. `max_pixels` None means the frame plan's own
    budget; `max_missing` is `5s`, `10%`, `any` or None for the larger of one second and 2 %. With
    `for_config` (the name of a training configuration) `subset` and `seed` sample `data` as that
    run will, and the records of `held_out` are all taken beside it. `training` is the run for which
    the summary says what scores and solutions are worth; nothing is computed otherwise for it.
    """

    data: tuple[Path, ...]
    video_root: Path
    cache: Path
    scorers: tuple[str, ...] = ("siglip2",)
    scorer_models: dict[str, str] = field(default_factory=dict)
    filters: tuple[tuple[str, str], ...] = ()
    subset: int | None = None
    seed: int = 0
    for_config: str | None = None
    held_out: tuple[Path, ...] = ()
    skip_bad_records: bool = False
    limit: int | None = None
    frames: int = 64
    frame_plan: str = "uniform"
    max_pixels: int | None = None
    frame_codec: str = "jpeg"
    decoder: str = "auto"
    query: str = "question"
    long_text: LongText = "truncate"
    allow_outside_root: bool = False
    repair: bool = False
    max_missing: str | None = None
    allow_damaged: bool = False
    engine: str = "local"
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
    training: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        """Refuse what cannot work, before anything is read."""
        if not self.data:
            raise ConfigError("no records file; give one with --data")
        if not self.scorers and self.for_config is None:
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
        parse_max_missing(self.max_missing)
        _check_range("--max-pixels", self.max_pixels, 1)
        _check_name("query (--query)", self.query, get_args(Query))
        _check_name("long-text rule (--long-text)", self.long_text, get_args(LongText))
        _check_name("engine (--engine)", self.engine, get_args(Engine))
        _check_range("--workers", self.workers, 1)
        _check_range("--limit", self.limit, 1)
        _check_range("--subset", self.subset, 1)
        _check_range("--embed-batch-size", self.embed_batch_size, 1)
        if not 0 < self.decode_timeout_seconds < float("inf"):
            raise ConfigError(
                f"--decode-timeout {self.decode_timeout_seconds:g}; a number of seconds above 0 is "
                "needed"
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
    def frame_pixels(self) -> int:
        """The budget of one frame: as asked for, or the frame plan's."""
        if self.max_pixels is not None:
            return self.max_pixels
        return DEFAULT_MAX_PIXELS[self.plan.kind]

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
            "max_pixels": self.frame_pixels,
            "resize": RESIZE_RULE,
            "codec": self.codec.fields,
            "decoder": self.decoder,
        }

    def prepare_rule(self) -> PrepareRule:
        """What each decode worker is told."""
        return PrepareRule(
            self.video_root.resolve(),
            self.plan,
            self.frame_pixels,
            self.codec,
            decoder_order(self.decoder),
            allow_outside_root=self.allow_outside_root,
            repair=self.repair,
            max_missing=parse_max_missing(self.max_missing),
            allow_damaged=self.allow_damaged,
        )

    def frames_key(self) -> str:
        """The frames key."""
        name = f"{self.frame_plan}{self.frames}-{self.frame_pixels}px-{self.frame_codec}"
        return make_key(name, self.frames_fields())


def _check_range(knob: str, value: int | None, low: int) -> None:
    if value is not None and value < low:
        raise ConfigError(f"{knob} {value}; at least {low} is needed")


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise unknown_name(what, name, known)
