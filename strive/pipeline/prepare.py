"""One video, from file to encoded frames: what a decode worker does. No torch here."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from strive.cache.codec import FrameCodec
from strive.cache.frames import EncodedVideo, VideoInfo
from strive.errors import DecodeError, OutsideRootError
from strive.records import resolve_video
from strive.video.decode import decode_frames
from strive.video.frame_plan import FramePlan
from strive.video.worker import Job

_DIGEST_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PrepareRule:
    """How videos are turned into frames; the same for all videos of a call."""

    video_root: Path
    plan: FramePlan
    max_pixels: int
    codec: FrameCodec
    decoders: tuple[str, ...]


def prepare_video(video_id: str, rule: PrepareRule) -> EncodedVideo:
    """Decode, resize and encode one video's pool.

    Raises:
        DecodeError: the video is missing, outside the root, or cannot be decoded.
    """
    try:
        path = resolve_video(rule.video_root, video_id)
    except OutsideRootError as error:
        raise DecodeError("outside_root", str(error)) from None
    except (OSError, RuntimeError, ValueError) as error:
        # A loop of links, a name that is too long, or one with a NUL byte.
        raise DecodeError("missing", f"'{video_id}': {error}") from None
    decoded = decode_frames(path, rule.plan, max_pixels=rule.max_pixels, decoders=rule.decoders)
    num_frames, height, width, _ = decoded.frames_FHWC.shape
    info = VideoInfo(
        video_id=video_id,
        num_frames=num_frames,
        source_index_F=decoded.source_index_F,
        pts_seconds_F=decoded.pts_seconds_F,
        source_fps=decoded.source_fps,
        source_num_frames=decoded.source_num_frames,
        duration_seconds=decoded.duration_seconds,
        height=height,
        width=width,
        rotation=decoded.rotation,
        codec=decoded.codec,
        decoder=decoded.decoder,
    )
    frames = tuple(rule.codec.encode(frame_HWC) for frame_HWC in decoded.frames_FHWC)
    size_bytes, digest = _content(path)
    return EncodedVideo(info, video_id, size_bytes, digest, frames)


def _content(path: Path) -> tuple[int, str]:
    """Return a file's size and a digest of all its bytes."""
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    with path.open("rb") as file:
        while block := file.read(_DIGEST_BLOCK_BYTES):
            size += len(block)
            digest.update(block)
    return size, digest.hexdigest()


def next_decoder(job: Job, error: DecodeError) -> Job | None:
    """After a kill or crash, try once more without the decoder that came first."""
    rule: PrepareRule = job.kwargs["rule"]
    if error.kind not in ("timeout", "crashed") or len(rule.decoders) == 1:
        return None
    fewer = PrepareRule(rule.video_root, rule.plan, rule.max_pixels, rule.codec, rule.decoders[1:])
    return Job(job.key, {**job.kwargs, "rule": fewer})
