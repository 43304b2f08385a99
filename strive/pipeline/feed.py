"""Feeding the models: read frames back, prepare them, fill batches across videos."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import numpy as np

from strive.cache.embeddings import VideoEmbeddings
from strive.cache.frames import EncodedVideo, FrameCodec, FrameReader, frames_checksum
from strive.cache.layout import CacheLayout
from strive.configs.schema import PrecomputeConfig
from strive.errors import CacheError, DecodeError, ModelError, StriveError
from strive.pipeline.batches import Batch, Batcher, VideoSlot
from strive.pipeline.channel import Channel
from strive.pipeline.failing import question_failure, video_failure
from strive.pipeline.options import frame_codec, make_frames_key
from strive.pipeline.work import VideoTask
from strive.records import Record
from strive.scorers.session import ScorerSession
from strive.video.worker import Outcome

# Where there are many cores, one thread that reads JPEG back could not feed a fast GPU.
MAX_READ_THREADS = 4

Send = Callable[..., None]


class Mark:
    """A place in the stream; `reached` is set when everything before it is committed."""

    def __init__(self) -> None:
        self.reached = Event()


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing that was put into a stage: a video (decoded or cached), embeddings, or a mark."""

    task: VideoTask | None
    outcome: Outcome | None
    embedded: tuple[str, Sequence[VideoEmbeddings], Mapping[str, Sequence[Record]]] | None = None
    mark: Mark | None = None


@dataclass(slots=True)
class VideoDone:
    """A video with the number of scorers that are not done with it; 0: done."""

    video_id: str
    num_bytes: int
    num_left: int = 0


@dataclass(frozen=True, slots=True)
class Fed:
    """What the models thread gets: one video's frames (or None) for one scorer.

    With a `batch` it is frames of several videos; `slot` is then None.
    """

    slot: VideoSlot | None
    done: VideoDone | None
    frames_FHWC: np.ndarray | None = None
    pts_seconds_F: np.ndarray | None = None
    batch: Batch | None = None


@dataclass(slots=True)
class FedSlot(VideoSlot):
    """A slot that knows its video, so that the last scorer to finish can say so.

    Passed by itself, it says that this scorer has failed on the video.
    """

    done: VideoDone = field(default_factory=lambda: VideoDone("", 0))


@dataclass(frozen=True, slots=True)
class _Pool:
    """One video's frames as the cache holds them, decoded only if a scorer looks at them."""

    num_frames: int
    checksum: str
    pts_seconds_F: np.ndarray
    read: Callable[[], np.ndarray]


class Feeder:
    """Turns what is put into a stage into what its models take; used by one thread."""

    def __init__(
        self,
        options: PrecomputeConfig,
        layout: CacheLayout,
        sessions: Mapping[str, ScorerSession],
        fed: Channel[Any],
        send: Send,
    ) -> None:
        self._layout, self._frames_key = layout, make_frames_key(options)
        self._codec, self._video_root = frame_codec(options), options.video_root
        self._sessions, self._fed, self._send = sessions, fed, send
        self._batchers: dict[str, Batcher] = {}
        self._reader: FrameReader | None = None
        self._waited = 0.0
        num_threads = min(MAX_READ_THREADS, (os.cpu_count() or 1) // 2)
        self._threads = ThreadPoolExecutor(num_threads) if num_threads > 1 else None

    def take(self, ask: Ask) -> float:
        """Pass on one thing; return the seconds that were spent waiting for room."""
        self._waited = 0.0
        if ask.mark is not None:
            for batcher in self._batchers.values():
                self._pass_all(batcher.flush())
            self._pass(ask.mark)
        elif ask.embedded is not None:
            self._pass(ask.embedded)
        elif ask.outcome is None:
            assert ask.task is not None
            self._take_cached(ask.task)
        else:
            assert ask.task is not None
            self._take_outcome(ask.task, ask.outcome)
        return self._waited

    def _take_outcome(self, task: VideoTask, outcome: Outcome) -> None:
        if outcome.error is not None:
            row = video_failure(
                task.video_id, outcome.error, outcome.seconds, self._frames_key, self._video_root
            )
            self._write("failure", row)
            self._pass(VideoDone(task.video_id, 0))
            return
        video: EncodedVideo = outcome.value
        self._write("frames", video, video.num_bytes)
        pool = _Pool(
            video.facts.num_frames,
            frames_checksum(video.frames),
            video.facts.pts_seconds_F,
            lambda: read_back(video, self._codec, self._threads),
        )
        self._feed(task, pool, video.num_bytes)

    def _take_cached(self, task: VideoTask) -> None:
        if self._reader is None or task.video_id not in self._reader:
            self._reader = FrameReader(self._layout, self._frames_key)
        reader = self._reader
        row = reader.row(task.video_id)
        pool = _Pool(
            row["num_frames"],
            row["checksum"],
            np.asarray(row["pts_seconds"], np.float64),
            lambda: reader.read(task.video_id, range(row["num_frames"])),
        )
        self._feed(task, pool, 0)

    def _feed(self, task: VideoTask, pool: _Pool, num_bytes: int) -> None:
        done = VideoDone(task.video_id, num_bytes, len(task.records))
        if not task.records:
            self._pass(done)
        frames_FHWC: np.ndarray | None = None
        for key, records in task.records.items():
            session = self._sessions[key]
            slot = FedSlot(key, task.video_id, pool.checksum, records, pool.num_frames, done=done)
            if session.mode == "frame_free":
                self._pass(Fed(slot, done, None, pool.pts_seconds_F))
                continue
            if frames_FHWC is None:
                frames_FHWC = pool.read()
            if session.mode == "batched":
                self._prepare(session, slot, frames_FHWC)
            else:
                fed = Fed(slot, done, frames_FHWC, pool.pts_seconds_F)
                self._pass(fed, frames_FHWC.nbytes)

    def _prepare(self, session: ScorerSession, slot: FedSlot, frames_FHWC: np.ndarray) -> None:
        scorer: Any = session.scorer
        started = time.monotonic()
        try:
            with foreseen():
                prepared = scorer.prepare_frames(frames_FHWC)
        except DecodeError as error:
            self._fail(slot, error, time.monotonic() - started)
            return
        if len(prepared) != slot.num_frames:
            raise ModelError(
                f"scorer '{session.name}' prepares {slot.num_frames} frames as {len(prepared)} rows"
            )
        if slot.scorer_key not in self._batchers:
            self._batchers[slot.scorer_key] = Batcher(
                slot.scorer_key, scorer.batch_size, pinned=session.device_type == "cuda"
            )
        self._pass_all(self._batchers[slot.scorer_key].add(slot, prepared))

    def _fail(self, slot: FedSlot, error: DecodeError, seconds: float) -> None:
        session = self._sessions[slot.scorer_key]
        for record in slot.records:
            row = question_failure(record, error, seconds, session, slot.checksum)
            self._write("failure", row)
        self._pass(slot)

    def _pass_all(self, batches: Any) -> None:
        for batch in batches:
            self._pass(Fed(None, None, batch=batch), int(batch.prepared.nbytes))

    def _pass(self, item: Any, num_bytes: int = 0) -> None:
        started = time.monotonic()
        self._fed.put(item, num_bytes)
        self._waited += time.monotonic() - started

    def _write(self, kind: str, value: Any, num_bytes: int = 0) -> None:
        started = time.monotonic()
        self._send(kind, value, num_bytes)
        self._waited += time.monotonic() - started


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


@contextmanager
def foreseen() -> Iterator[None]:
    """Make a failure of this video out of an error that no one foresaw in a (user's) scorer.

    Raises:
        DecodeError: `unexpected`, in place of what is no StriveError.
    """
    try:
        yield
    except StriveError:
        raise
    except Exception as error:
        line = (str(error).splitlines() or [""])[0][:300]
        raise DecodeError("unexpected", f"{type(error).__name__}: {line}") from error
