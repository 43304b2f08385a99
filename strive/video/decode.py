"""Exact decoding behind one interface.

A decoder returns the frames that were asked for, upright, or raises `DecodeError`: it never returns
a neighbour, a repeat or a grey picture in their place. To add one, write a function with the
signature of `decode_pyav` and enter it in `DECODERS` (and in `AUTO_ORDER` where it should serve).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from strive.errors import DecodeError, unknown_name
from strive.video.frame_plan import FramePlan
from strive.video.pyav_decoder import UprightFrame, decode_pyav, first_picture
from strive.video.resize import FrameScaler
from strive.video.source import VideoSource, error_text, probe


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


def _decode_decord(
    source: VideoSource, indices_F: np.ndarray, scaler: FrameScaler
) -> Iterator[UprightFrame]:
    """Read single frames by index; decord rotates them itself and tells no angle.

    Its first frame must be the one that PyAV gives: decord computes a line's length from the
    picture's width, and for some sizes (rotated ones, mostly) reads skewed pictures from that.
    """
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    first = first_picture(source)
    try:
        # A tiny fault_tol turns decord's silent repeats of a neighbour frame into an error.
        reader = decord.VideoReader(str(source.path.absolute()), num_threads=1, fault_tol=1e-6)
        if len(reader) != source.num_frames:
            raise DecodeError(
                "frame_count", f"decord counts {len(reader)} frames of {source.num_frames}"
            )
        if not _same_picture(reader[0].asnumpy(), first.frame_HWC):
            raise DecodeError("wrong_picture", "decord shows another first frame than PyAV")
        for index in indices_F:
            # Not get_batch: it can hang where single reads of the same indices return (dmlc #373).
            yield UprightFrame(scaler.from_rgb(reader[int(index)].asnumpy()), first.rotation)
    except (decord.DECORDError, AssertionError, IndexError) as error:
        raise DecodeError("undecodable", error_text(error)) from None


def _same_picture(a_HWC: np.ndarray, b_HWC: np.ndarray) -> bool:
    """Whether two pictures differ by no more than rounding in the colour conversion."""
    if a_HWC.shape != b_HWC.shape:
        return False
    return float(np.abs(a_HWC.astype(np.int16) - b_HWC).mean()) < 2.0


Decoder = Callable[[VideoSource, np.ndarray, FrameScaler], Iterator[UprightFrame]]
DECODERS: dict[str, Decoder] = {"decord": _decode_decord, "pyav": decode_pyav}
# PyAV first: it tells damaged pictures apart, which decord conceals.
AUTO_ORDER: tuple[str, ...] = ("pyav", "decord")
# What no other decoder should be asked about: it would return a picture made up for a damaged one.
_FINAL_KINDS = ("damaged", "frames_missing")
_DISTRIBUTIONS = {"decord": "decord2", "pyav": "av"}


def decoder_order(decoder: str) -> tuple[str, ...]:
    """Return the decoders that a request (`auto` or a name) tries, in order."""
    if decoder == "auto":
        return AUTO_ORDER
    if decoder not in DECODERS:
        raise unknown_name("decoder", decoder, ["auto", *DECODERS])
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
) -> DecodedVideo:
    """Decode the frames of a plan, upright and resized into `max_pixels`.

    The decoders are tried in order; the first that returns every frame serves.

    Raises:
        DecodeError: `kind` is what went wrong, with the last decoder when all of them failed.
    """
    source = probe(Path(path))
    indices_F = plan.indices(source.facts)
    errors: list[tuple[str, DecodeError]] = []
    for name in decoders:
        try:
            frames_FHWC, rotation = _collect(
                DECODERS[name](source, indices_F, FrameScaler(max_pixels))
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
    raise DecodeError(errors[-1][1].kind, messages)


def _collect(frames: Iterator[UprightFrame]) -> tuple[np.ndarray, int]:
    """Take resized frames one by one, so that full-size frames never pile up."""
    taken = list(frames)
    return np.stack([frame.frame_HWC for frame in taken]), taken[0].rotation
