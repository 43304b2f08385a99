"""One video, from file to encoded frames (a decode worker's job) and back. No torch here."""

import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from strive.cache.frames import EncodedVideo, FrameCodec
from strive.errors import CacheError, DecodeError, OutsideRootError
from strive.files import content_digest, modified_ns, resolve_video, resolves_into_blobs
from strive.video.decode import DecodedVideo, decode_frames
from strive.video.frame_plan import FramePlan
from strive.video.repair import REPAIRABLE_KINDS, repaired_copies
from strive.video.source import DEFAULT_MAX_MISSING, MaxMissing
from strive.video.worker import Job, WorkerPool, scratch_folder

MOST_DIGESTED_BYTES = 2**28
"""Of a failed file: 0.3 s of reading. A sparse file says terabytes that nobody wrote."""


@dataclass(frozen=True, slots=True)
class PrepareRule:
    """How videos are turned into frames; the same for all videos of a call.

    With `allow_outside_root` a path is used as it is: absolute, with `..`, through any link. With
    `repair` a file that no decoder opens is remuxed, else transcoded, once. `max_missing` of a
    video's stated length may be missing; with `allow_damaged` damaged frames are taken as players
    show them.
    """

    video_root: Path
    plan: FramePlan
    max_pixels: int
    codec: FrameCodec
    decoders: tuple[str, ...]
    allow_outside_root: bool = False
    repair: bool = False
    max_missing: MaxMissing = DEFAULT_MAX_MISSING
    allow_damaged: bool = False


def prepare_video(video_id: str, rule: PrepareRule) -> EncodedVideo:
    """Decode, resize and encode one video's pool.

    Raises:
        DecodeError: the video is missing, outside the root, or cannot be decoded.
    """
    try:
        path = resolve_video(rule.video_root, video_id, allow_outside=rule.allow_outside_root)
    except OutsideRootError as error:
        hint = f"{error}; --allow-outside-root takes it"
        if resolves_into_blobs(rule.video_root / video_id):
            hint += " (the folder is a hub's snapshot, whose files are links into blobs/)"
        raise DecodeError("outside_root", hint) from None
    except (OSError, RuntimeError, ValueError) as error:
        # A loop of links, a name that is too long, or one with a NUL byte.
        raise DecodeError("missing", f"'{video_id}': {error}") from None
    before = _stamp(path)
    try:
        decoded, repaired = _decode(path, rule)
    except DecodeError as error:
        if before is not None:
            digest = None
            with suppress(OSError):
                # With a digest, a new time stamp alone is no reason to try the file again.
                if before[0] <= MOST_DIGESTED_BYTES:
                    digest = content_digest(path)[1]
            error.known_as = (*before, digest)
        raise
    frames = tuple(rule.codec.encode(frame_HWC) for frame_HWC in decoded.frames_FHWC)
    size_bytes, digest = content_digest(path)
    after = _stamp(path)
    if before != after:
        changed = DecodeError("changed", f"{path} was written to while it was read")
        changed.known_as = before and (*before, None)
        raise changed
    facts = replace(decoded.facts, repaired=repaired)
    return EncodedVideo(video_id, facts, size_bytes, digest, frames, after and after[1])


def read_back(
    video: EncodedVideo, codec: FrameCodec, threads: ThreadPoolExecutor | None = None
) -> np.ndarray:
    """Return the frames as any later reader of the cache will see them: uint8 [F, H, W, 3].

    Raises:
        CacheError: what the worker encoded cannot be decoded.
    """
    height, width = video.facts.height, video.facts.width
    frames_FHWC = np.empty((len(video.frames), height, width, 3), np.uint8)

    def read(number: int) -> None:
        frames_FHWC[number] = codec.decode(video.frames[number], height, width)

    if len(video.frames) == 0:
        raise CacheError(f"video '{video.video_id}' came without frames")
    for _ in (threads.map if threads else map)(read, range(len(video.frames))):
        pass
    return frames_FHWC


def _decode(path: Path, rule: PrepareRule) -> tuple[DecodedVideo, str]:
    """Decode a file, else (where the rule says so) the first repaired copy that decodes."""
    decode = partial(
        decode_frames,
        plan=rule.plan,
        max_pixels=rule.max_pixels,
        decoders=rule.decoders,
        max_missing=rule.max_missing,
        allow_damaged=rule.allow_damaged,
    )
    try:
        return decode(path), ""
    except DecodeError as error:
        if not rule.repair or error.kind not in REPAIRABLE_KINDS:
            raise
        first = error
    with tempfile.TemporaryDirectory(prefix="strive-repair-", dir=scratch_folder()) as folder:
        for copy, how in repaired_copies(path, Path(folder)):
            try:
                return decode(copy), how
            except DecodeError as error:
                if error.kind not in REPAIRABLE_KINDS:
                    raise
    raise DecodeError(first.kind, f"{first.args[-1]}; repair did not help")


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return a file's size and modification time, None if it cannot be looked at."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None  # the decoder's own look at the file says what is wrong with it
    return status.st_size, modified_ns(status)


def decode_pool(
    video_ids: Iterable[str], rule: PrepareRule, *, num_workers: int, timeout_seconds: float
) -> WorkerPool:
    """Return workers that prepare videos; after a kill or crash, once more by the next decoder."""
    jobs = (Job(video_id, {"video_id": video_id, "rule": rule}) for video_id in video_ids)
    return WorkerPool(
        prepare_video,
        jobs,
        num_workers=num_workers,
        timeout_seconds=timeout_seconds,
        retry=next_decoder,
    )


def next_decoder(job: Job, error: DecodeError) -> Job | None:
    """After a kill or crash, try once more without the decoder that came first."""
    rule: PrepareRule = job.kwargs["rule"]
    if error.kind not in ("timeout", "crashed") or len(rule.decoders) == 1:
        return None
    fewer = replace(rule, decoders=rule.decoders[1:])
    return Job(job.key, {**job.kwargs, "rule": fewer})
