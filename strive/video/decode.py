"""Exact decoding behind one interface.

A decoder returns the frames that were asked for, upright, or raises `DecodeError`: it never returns
a neighbour, a repeat or a grey picture in their place. To add one, write a function with the
signature of `decode_pyav` and enter it in `DECODERS` (and in `AUTO_ORDER` where it should serve).

`auto` asks PyAV first, then torchcodec, then decord. PyAV is the only one that can be told to
report damaged picture data (the others return a picture made up from what is around it), it decodes
the least (groups of pictures and unreferenced frames that nobody wants are passed over), it brings
its own FFmpeg, and a worker with it holds about 120 MB. torchcodec imports torch, which takes
seconds and 700 MB, and does not find the first frame of most MPEG-TS files.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from strive.errors import ConfigError, DecodeError, unknown_name
from strive.video.frame_plan import FramePlan
from strive.video.pyav_decoder import UprightFrame, decode_pyav
from strive.video.resize import FrameScaler
from strive.video.rgb_decoders import (
    TORCHCODEC_FIX,
    decode_decord,
    decode_torchcodec,
    torchcodec_import_error,
)
from strive.video.source import VideoSource, probe


@dataclass(frozen=True, slots=True)
class DecodedVideo:
    """The frames of a plan with their facts; `height` and `width` are in the frames' shape."""

    frames_FHWC: np.ndarray
    pts_seconds_F: np.ndarray
    source_index_F: np.ndarray
    source_fps: float
    source_num_frames: int
    duration_seconds: float
    rotation: int
    codec: str
    decoder: str


Decoder = Callable[[VideoSource, np.ndarray, FrameScaler, int], Iterator[UprightFrame]]
DECODERS: dict[str, Decoder] = {
    "torchcodec": decode_torchcodec,
    "decord": decode_decord,
    "pyav": decode_pyav,
}
AUTO_ORDER: tuple[str, ...] = ("pyav", "torchcodec", "decord")
# What no other decoder should be asked about: it would return a picture made up for a damaged one.
_FINAL_KINDS = ("damaged", "frames_missing")
_DISTRIBUTIONS = {"torchcodec": "torchcodec", "decord": "decord2", "pyav": "av"}


def decoder_order(decoder: str) -> tuple[str, ...]:
    """Return the decoders that a request (`auto` or a name) tries, in order.

    Raises:
        ConfigError: the name is unknown, or torchcodec was asked for and cannot be imported.
    """
    if decoder == "auto":
        return AUTO_ORDER
    if decoder not in DECODERS:
        raise unknown_name("decoder", decoder, ["auto", *DECODERS])
    if decoder == "torchcodec" and (problem := torchcodec_import_error()):
        raise ConfigError(
            f"--decoder torchcodec: it cannot be imported ({problem}); {TORCHCODEC_FIX}, "
            "or choose --decoder auto"
        )
    return (decoder,)


def decoder_versions() -> dict[str, str]:
    """Return the installed version of each decoder."""
    versions = {}
    for name, distribution in _DISTRIBUTIONS.items():
        try:
            versions[name] = version(distribution)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def decode_frames(
    path: Path,
    plan: FramePlan,
    *,
    max_pixels: int | None = None,
    decoders: tuple[str, ...] = AUTO_ORDER,
    threads: int = 1,
) -> DecodedVideo:
    """Decode the frames of a plan, upright and resized into `max_pixels`.

    The decoders are tried in order; the first that returns every frame serves. More `threads` give
    the same pictures sooner; where many workers decode, one each is the fastest for all.

    Raises:
        DecodeError: `kind` is what went wrong, with the last decoder when all of them failed.
    """
    source = probe(Path(path))
    indices_F = plan.indices(source.facts)
    errors: list[tuple[str, DecodeError]] = []
    for name in decoders:
        try:
            frames_FHWC, rotation = _collect(
                DECODERS[name](source, indices_F, FrameScaler(max_pixels), threads)
            )
        except DecodeError as error:
            errors.append((name, error))
            if error.kind in _FINAL_KINDS:
                break
            continue
        if len(frames_FHWC) != len(indices_F):
            raise DecodeError("frames_missing", f"{name} gave {len(frames_FHWC)} frames")
        return DecodedVideo(
            frames_FHWC=frames_FHWC,
            pts_seconds_F=source.pts_seconds(indices_F),
            source_index_F=indices_F,
            source_fps=source.fps,
            source_num_frames=source.num_frames,
            duration_seconds=source.duration_seconds,
            rotation=rotation,
            codec=source.codec,
            decoder=name,
        )
    messages = "; ".join(f"{name}: {error.args[-1]}" for name, error in errors)
    kinds = [error.kind for _, error in errors]
    # A decoder that never takes such files says nothing about what is wrong with this one.
    telling = [kind for kind in kinds if kind != "unsupported"] or kinds
    raise DecodeError(telling[-1], messages)


def _collect(frames: Iterator[UprightFrame]) -> tuple[np.ndarray, int]:
    """Take resized frames one by one, so that full-size frames never pile up."""
    taken = list(frames)
    return np.stack([frame.frame_HWC for frame in taken]), taken[0].rotation
