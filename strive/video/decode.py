"""Exact decoding behind one interface.

A decoder returns the frames that were asked for, as a player shows them, or raises `DecodeError`:
it never returns a neighbour, a repeat or a grey picture in their place. To add one, write a
function with the signature of `decode_pyav` and enter it in `DECODERS` (and in `AUTO_ORDER` where
it should serve).

`auto` asks PyAV first, then torchcodec, then decord. PyAV is the only one that can be told to
report damaged picture data (the others return a picture made up from what is around it), it decodes
the least (groups of pictures and unreferenced frames that nobody wants are passed over), it brings
its own FFmpeg, and a worker with it holds about 120 MB. torchcodec imports torch, which takes
seconds and 700 MB, and does not find the first frame of most MPEG-TS files.
"""

import atexit
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from strive.errors import ConfigError, DecodeError, unknown_name
from strive.records import VideoFacts
from strive.video.decoders import (
    TORCHCODEC_FIX,
    NotExactError,
    decode_decord,
    decode_pyav,
    decode_torchcodec,
    torchcodec_import_error,
)
from strive.video.frame_plan import FramePlan
from strive.video.resize import FrameScaler
from strive.video.source import DEFAULT_MAX_MISSING, MaxMissing, VideoSource
from strive.video.whole import decode_whole, probe
from strive.video.worker import DEFAULT_TIMEOUT_SECONDS, Worker


@dataclass(frozen=True, slots=True)
class DecodedVideo:
    """The frames of a plan, uint8 [F, H, W, 3], with their facts."""

    frames_FHWC: np.ndarray
    facts: VideoFacts


Decoder = Callable[[VideoSource, np.ndarray, FrameScaler, int], Iterator[np.ndarray]]
DECODERS: dict[str, Decoder] = {
    "torchcodec": decode_torchcodec,
    "decord": decode_decord,
    "pyav": decode_pyav,
}
AUTO_ORDER: tuple[str, ...] = ("pyav", "torchcodec", "decord")
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
    max_missing: MaxMissing = DEFAULT_MAX_MISSING,
    allow_damaged: bool = False,
) -> DecodedVideo:
    """Decode the frames of a plan, as they are shown, resized into `max_pixels`.

    The decoders are tried in order; the first that returns every frame serves. More `threads` give
    the same pictures sooner; where many workers decode, one each is the fastest for all.

    Raises:
        DecodeError: `kind` is what went wrong, with the last decoder when all of them failed.
    """
    source = probe(Path(path), max_missing)
    how = plan, max_pixels, decoders, threads, allow_damaged
    try:
        return _decode(source, *how)
    except NotExactError:
        return _decode(decode_whole(source), *how)


def _decode(
    source: VideoSource,
    plan: FramePlan,
    max_pixels: int | None,
    decoders: tuple[str, ...],
    threads: int,
    allow_damaged: bool,
) -> DecodedVideo:
    indices_F = plan.indices(source)
    notes = [*source.notes, *_damage_notes(source, indices_F, allow_damaged)]
    errors: list[tuple[str, DecodeError]] = []
    for name in decoders:
        scaler = FrameScaler(max_pixels, source.cropping)
        try:
            # One by one, so that full-size frames never pile up.
            frames = list(DECODERS[name](source, indices_F, scaler, threads))
        except DecodeError as error:
            errors.append((name, error))
            continue
        if len(frames) != len(indices_F):
            raise DecodeError("frames_missing", f"{name} gave {len(frames)} frames")
        height, width, _ = frames[0].shape
        facts = VideoFacts(
            source_index_F=indices_F,
            pts_seconds_F=source.pts_seconds(indices_F),
            source_fps=source.fps,
            source_num_frames=source.num_frames,
            duration_seconds=source.duration_seconds,
            height=height,
            width=width,
            orientation=source.orientation,
            codec=source.codec,
            decoder=name,
            way=source.way,
            notes=tuple(notes),
        )
        return DecodedVideo(np.stack(frames), facts)
    messages = "; ".join(f"{name}: {error.args[-1]}" for name, error in errors)
    kinds = [error.kind for _, error in errors]
    # A decoder that never takes such files says nothing about what is wrong with this one.
    telling = [kind for kind in kinds if kind != "unsupported"] or kinds
    raise DecodeError(telling[-1], messages)


def _damage_notes(source: VideoSource, indices_F: np.ndarray, allow_damaged: bool) -> list[str]:
    """Return what is to be noted about damage.

    Raises:
        DecodeError: `damaged`; a wanted frame is, and no damage is allowed.
    """
    if source.is_damaged_N is None or not source.has_damage:
        return []
    damaged = indices_F[source.is_damaged_N[indices_F]]
    if not len(damaged):
        return ["damaged_elsewhere"]
    if not allow_damaged:
        raise DecodeError(
            "damaged",
            f"frame {damaged[0]} of {source.num_frames} is damaged, or builds on what is; "
            "--allow-damaged takes it as players show it, --repair leaves such frames out",
        )
    return ["damaged"]


_own = threading.local()


def decode_in_worker(
    path: Path,
    plan: FramePlan,
    *,
    max_pixels: int | None = None,
    decoder: str = "auto",
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    threads: int = 1,
) -> DecodedVideo:
    """Decode one video in this thread's worker; the worker is kept for the next call.

    Raises:
        DecodeError: the video cannot be decoded, took too long or crashed the decoder.
    """
    if not hasattr(_own, "worker"):
        _own.worker = Worker()
        atexit.register(_own.worker.close)
    remaining = decoder_order(decoder)
    while True:
        kwargs = {
            "path": path,
            "plan": plan,
            "max_pixels": max_pixels,
            "decoders": remaining,
            "threads": threads,
        }
        try:
            return _own.worker.call(decode_frames, kwargs, timeout_seconds)
        except DecodeError as error:
            if error.kind not in ("timeout", "crashed") or len(remaining) == 1:
                raise
            remaining = remaining[1:]
