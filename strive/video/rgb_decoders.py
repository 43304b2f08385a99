"""decord and torchcodec: decoders that return upright RGB frames by their index.

Neither is believed blindly. Both go by stamps, so a file without one stamp a frame is
refused; the number of frames must be the one that demuxing found, and the first picture the one
that PyAV gives.
"""

import functools
import importlib
from collections.abc import Iterator

import numpy as np

from strive.errors import DecodeError
from strive.video.opened import error_text
from strive.video.orientation import oriented
from strive.video.resize import FrameScaler, as_progressive
from strive.video.source import VideoSource
from strive.video.whole import pictures_at

# Elsewhere (AVI, MPEG streams) decord shows other frames than those asked for where there are
# B-frames, and says nothing.
DECORD_CONTAINERS = ("mov", "matroska", "flv")
TORCHCODEC_FIX = (
    "pip install torchcodec, and install FFmpeg's shared libraries "
    "(apt-get install ffmpeg, or conda install ffmpeg)"
)


def decode_decord(
    source: VideoSource, indices_F: np.ndarray, scaler: FrameScaler, threads: int = 1
) -> Iterator[np.ndarray]:
    """Read frame after frame to the last one wanted; decord rotates them and tells no angle.

    Always with one thread: with more it fails on some files (dmlc/decord 246).

    Not by index: decord passes over frames in a loop that gives up after 10,000 looks at its
    decoding thread and then returns, without an error, whichever frame comes next. On a busy
    machine that happened to one in ten frames of a plain H.264 clip (decord2 3.4). `get_batch` has
    the same loop, and can hang besides (dmlc/decord 373).

    decord computes a line's length from the picture's width, and for some sizes (rotated ones,
    mostly) reads skewed pictures from that: hence the look at the first picture.

    Raises:
        DecodeError: `unsupported`, `frame_count`, `wrong_picture` or `undecodable`.
    """
    import decord

    if source.container not in DECORD_CONTAINERS:
        raise DecodeError(
            "unsupported",
            f"decord is exact in {', '.join(DECORD_CONTAINERS)} alone, not in {source.container}",
        )
    _check_supported("decord", source)
    decord.logging.set_level(decord.logging.QUIET)
    first_HWC = _first_picture(source)
    try:
        # A tiny fault_tol turns decord's silent repeats of a neighbour frame into an error.
        reader = decord.VideoReader(str(source.path.absolute()), num_threads=1, fault_tol=1e-6)
        _check_count("decord", len(reader), source)
        wanted = set(indices_F.tolist())
        for index in range(int(indices_F[-1]) + 1):
            frame = reader.next()
            if index == 0:
                _check_first("decord", frame.asnumpy(), first_HWC)
            if index in wanted:
                yield scaler.from_rgb(frame.asnumpy())
    except StopIteration:
        raise DecodeError("frames_missing", "decord ends before the last frame") from None
    except (
        decord.DECORDError,
        decord.DECORDLimitReachedError,
        AssertionError,
        IndexError,
    ) as error:
        raise DecodeError("undecodable", error_text(error)) from None


@functools.cache
def torchcodec_import_error() -> str:
    """Import torchcodec, once, and return what is wrong with it; empty when it works.

    Its package may be there without the FFmpeg libraries that it loads when it is imported, so
    asking whether it is installed would not do.
    """
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:
        return error_text(error)
    return ""


def decode_torchcodec(
    source: VideoSource, indices_F: np.ndarray, scaler: FrameScaler, threads: int = 1
) -> Iterator[np.ndarray]:
    """Read single frames by index, in exact mode (the approximate one errs at variable rates).

    Raises:
        DecodeError: `unavailable`, `unsupported`, `frame_count`, `wrong_picture` or `undecodable`.
    """
    if problem := torchcodec_import_error():
        raise DecodeError("unavailable", f"torchcodec cannot be imported ({problem})")
    from torchcodec.decoders import VideoDecoder

    _check_supported("torchcodec", source)
    first_HWC = _first_picture(source)
    try:
        decoder = VideoDecoder(
            str(source.path.absolute()),
            seek_mode="exact",
            num_ffmpeg_threads=threads,
            device="cpu",
            dimension_order="NHWC",
        )
        _check_count("torchcodec", len(decoder), source)
        _check_first("torchcodec", decoder.get_frame_at(0).data.numpy(), first_HWC)
        for index in indices_F:
            frame = decoder.get_frame_at(int(index))
            _check_stamp(frame.pts_seconds, source, int(index))
            yield scaler.from_rgb(frame.data.numpy())
    except DecodeError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise DecodeError("undecodable", error_text(error)) from None


def _check_supported(name: str, source: VideoSource) -> None:
    if source.way != "index" or source.pts_N is None:
        raise DecodeError("unsupported", f"{name} needs one stamped packet for every frame")
    if source.cropping is not None:
        raise DecodeError("unsupported", f"{name} does not crop as the container says")


def _first_picture(source: VideoSource) -> np.ndarray:
    """Return the first frame in full size, converted as other decoders do it."""
    picture = next(pictures_at(source, np.zeros(1, np.int64)))
    rgb_HWC = as_progressive(picture).to_ndarray(format="rgb24")
    return oriented(rgb_HWC, source.orientation)


def _check_count(name: str, count: int, source: VideoSource) -> None:
    if count != source.num_frames:
        raise DecodeError("frame_count", f"{name} counts {count} frames of {source.num_frames}")


def _check_first(name: str, frame_HWC: np.ndarray, first_HWC: np.ndarray) -> None:
    if not _same_picture(frame_HWC, first_HWC):
        raise DecodeError("wrong_picture", f"{name} shows another first frame than PyAV")


def _check_stamp(pts_seconds: float, source: VideoSource, index: int) -> None:
    assert source.pts_N is not None
    expected = float(int(source.pts_N[index]) * source.seconds_per_tick)
    if abs(pts_seconds - expected) > 1e-3:
        raise DecodeError(
            "wrong_picture",
            f"torchcodec gave the frame at {pts_seconds:.3f} s for the one at {expected:.3f} s",
        )


def _same_picture(a_HWC: np.ndarray, b_HWC: np.ndarray) -> bool:
    """Whether two pictures differ by no more than rounding in the colour conversion."""
    if a_HWC.shape != b_HWC.shape:
        return False
    return float(np.abs(a_HWC.astype(np.int16) - b_HWC).mean()) < 2.0
