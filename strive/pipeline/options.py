"""What follows from a precompute configuration: frame plan, codec, budget, rule and keys."""

from typing import Any

from strive.cache.frames import FrameCodec
from strive.cache.layout import make_key
from strive.configs.schema import PrecomputeConfig
from strive.errors import ConfigError
from strive.pipeline.prepare import PrepareRule
from strive.scorers import check_scorer_name
from strive.video.decode import decoder_order
from strive.video.frame_plan import DEFAULT_MAX_PIXELS, FramePlan
from strive.video.resize import RESIZE_RULE
from strive.video.source import parse_max_missing


def check_options(options: PrecomputeConfig) -> None:
    """Refuse what cannot work, before anything is read.

    Raises:
        ConfigError: no records, no scorer, a model of no scorer, or `max_missing` cannot be read.
        UnknownNameError: a scorer that there is not.
    """
    if not options.data:
        raise ConfigError("no records file; give one with --data")
    if not options.scorers and options.for_config is None:
        raise ConfigError("no scorer; give one with --scorer")
    for name in options.scorers:
        check_scorer_name(name)
    for name in sorted(set(options.scorer_models) - set(options.scorers)):
        raise ConfigError(
            f"--scorer-model names '{name}', which is not among the scorers of this "
            f"call ({', '.join(options.scorers)}); add --scorer {name}"
        )
    parse_max_missing(options.max_missing)


def writer_name(options: PrecomputeConfig) -> str:
    """Return the name of this writer, part of every file name that it commits."""
    return f"s{options.shard[0]}of{options.shard[1]}"


def prepare_rule(options: PrecomputeConfig) -> PrepareRule:
    """Return what each decode worker is told; the budget is the frame plan's own if none is asked.

    Paths of workers do not depend on the working directory.
    """
    plan = FramePlan(options.frame_plan, options.frames)
    return PrepareRule(
        options.video_root.resolve(),
        plan,
        options.max_pixels or DEFAULT_MAX_PIXELS[plan.kind],
        FrameCodec(options.frame_codec),
        decoder_order(options.decoder),
        allow_outside_root=options.allow_outside_root,
        repair=options.repair,
        max_missing=parse_max_missing(options.max_missing),
        allow_damaged=options.allow_damaged,
    )


def frames_fields(options: PrecomputeConfig) -> dict[str, Any]:
    """Return everything that decides which pixels are cached."""
    rule = prepare_rule(options)
    return {
        "plan": rule.plan.fields,
        "max_pixels": rule.max_pixels,
        "resize": RESIZE_RULE,
        "codec": rule.codec.fields,
        "decoder": options.decoder,
    }


def make_frames_key(options: PrecomputeConfig) -> str:
    """Return the frames key."""
    fields = frames_fields(options)
    name = f"{options.frame_plan}{options.frames}-{fields['max_pixels']}px-{options.frame_codec}"
    return make_key(name, fields)
