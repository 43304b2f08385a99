"""The embedding stage: from decoded or cached videos to committed scores, for one writer.

    put -> [inbox] -> reader -> [ready] -> models -> [writes] -> writer

Three threads, each of which makes the calls that wait in its bounded queue. The reader reads frames
back as any later reader of the cache will see them and fills batches across videos; the models
thread embeds and scores; the writer commits. All three let go of the interpreter for most of their
time. The local run has one stage, each Ray actor one of its own.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from strive.cache.frames import EncodedVideo, FrameCodec, FrameReader, frames_checksum
from strive.cache.layout import CacheLayout
from strive.cache.scores import QuestionScores, VideoEmbeddings, read_embeddings
from strive.configs.schema import PrecomputeConfig
from strive.errors import DecodeError, ModelError, StriveError
from strive.pipeline.part import Part, StageCounts, is_commit_due
from strive.pipeline.prepare import read_back
from strive.pipeline.queues import BatchThreads, BusyClock, CallQueue, QueueClosed
from strive.pipeline.work import WorkItem, make_frames_key, question_failure, video_failure
from strive.records import Record
from strive.scorers import BatchedScorer, SplitScorer, scorer_faults
from strive.scorers.session import ScorerSession
from strive.video.worker import Outcome

# Each queue: enough that neither side waits for the other's next step, little enough to hold.
MAX_ITEMS = 8
MAX_INBOX_BYTES = 64 << 20
MAX_READY_BYTES = 256 << 20
MAX_WRITE_BYTES = 64 << 20
# How long a stopped stage waits for a model that is in the middle of a batch.
STOP_SECONDS = 2.0
# Where there are many cores, one thread that reads JPEG back could not feed a fast GPU.
MAX_READ_THREADS = 4
# On a CPU several batches are embedded at once, each by one thread: how many threads share a
# matrix product can change its last bits, how many batches are at work cannot.
MAX_CPU_BATCHES = 8

T = TypeVar("T")


@dataclass(slots=True)
class VideoProgress:
    """One video in the stage: what its pool is, and how many scorers are not done with it."""

    video_id: str
    num_frames: int = 0
    checksum: str = ""
    pts_seconds_F: np.ndarray = field(default_factory=lambda: np.empty(0))
    num_bytes: int = 0  # of frames that were decoded in this run
    num_scorers_left: int = 0


@dataclass(slots=True)
class EmbedRequest:
    """The questions of one video for one scorer; `parts` are the embeddings of its first frames."""

    session: ScorerSession
    video: VideoProgress
    records: Sequence[Record]
    parts: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Batch:
    """Prepared rows of one or several videos; `spans` says how many rows are whose, in order."""

    prepared: Any
    spans: tuple[tuple[EmbedRequest, int], ...]


class Batcher:
    """Cuts one scorer's prepared frames into batches of one size, in the order in which they come.

    Rows stay where the scorer put them (numpy, torch on any device); whole batches of one video are
    slices, not copies.
    """

    def __init__(self, batch_size: int, *, pinned: bool = False) -> None:
        self.batch_size, self.pinned = batch_size, pinned
        self._pieces: list[tuple[EmbedRequest, Any]] = []
        self._num_rows = 0

    def add(self, request: EmbedRequest, prepared: Any) -> Iterator[Batch]:
        """Add all prepared frames of a video; yield the batches that are full now."""
        start = 0
        while start < len(prepared):
            stop = min(len(prepared), start + self.batch_size - self._num_rows)
            self._pieces.append((request, prepared[start:stop]))
            self._num_rows += stop - start
            start = stop
            if self._num_rows == self.batch_size:
                yield from self.flush()

    def flush(self) -> Iterator[Batch]:
        """Yield what is left, if anything; the scorer pads it."""
        if self._pieces:
            pieces, self._pieces, self._num_rows = self._pieces, [], 0
            spans = tuple((request, len(rows)) for request, rows in pieces)
            yield Batch(_join([rows for _, rows in pieces], self.pinned), spans)


def _join(pieces: list[Any], pinned: bool) -> Any:
    if isinstance(pieces[0], np.ndarray):
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    import torch

    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    # Page-locked memory lets the copy to the GPU run beside its computing.
    return joined.pin_memory() if pinned and joined.device.type == "cpu" else joined


class EmbedStage:
    """Reads back, embeds, scores and commits what is put into it.

    `sessions` are the scorers of the call, `on_video` hears of each video that is done (from one of
    the stage's threads). A fault in a thread ends the stage: what is finished is committed, and the
    next call here raises it.
    """

    def __init__(
        self,
        options: PrecomputeConfig,
        sessions: Sequence[ScorerSession],
        *,
        writer: str,
        on_video: Callable[[str], None] = lambda video_id: None,
    ) -> None:
        self._layout, self._frames_key = CacheLayout(options.cache), make_frames_key(options)
        self._codec, self._video_root = FrameCodec(options.frame_codec), options.video_root
        self._sessions = {session.key: session for session in sessions}
        self._on_video = on_video
        self.counts = StageCounts()
        self._preparing, self._embedding = BusyClock(), BusyClock()
        self._inbox = CallQueue(MAX_ITEMS, MAX_INBOX_BYTES)
        self._ready = CallQueue(4 * MAX_ITEMS, MAX_READY_BYTES)
        self._writes = CallQueue(16 * MAX_ITEMS, MAX_WRITE_BYTES)
        self._fault: BaseException | None = None
        self._fault_lock = threading.Lock()
        # Of the reader.
        self._batchers: dict[str, Batcher] = {}
        self._reader: FrameReader | None = None
        num_threads = min(MAX_READ_THREADS, (os.cpu_count() or 1) // 2)
        self._read_threads = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        # Of the models thread.
        self._num_at_once = min(MAX_CPU_BATCHES, os.cpu_count() or 1)
        self._batch_threads: BatchThreads | None = None
        self._at_work: deque[tuple[Batch, Future[np.ndarray]]] = deque()
        self._unscored: dict[str, list[tuple[VideoEmbeddings, Sequence[Record]]]] = {}
        self._num_part_videos = self._num_part_bytes = 0
        self._part_started = time.monotonic()
        # Of the writer.
        self._part = Part(self._layout, self._frames_key, self.counts, writer=writer)
        self._threads = [
            threading.Thread(target=self._run, args=(loop,), name=f"strive-{name}", daemon=True)
            for name, loop in (
                ("read", self._inbox.make_calls),
                ("models", self._models_loop),
                ("write", self._write_loop),
            )
        ]

    # --- for the caller --------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads; a Ray actor calls this, the local run uses `with`."""
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "EmbedStage":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.stop()

    def put(self, item: WorkItem, outcome: Outcome | None = None) -> None:
        """Add an item with what became of decoding it; waits while the stage has enough to do.

        Raises:
            StriveError: a fault of the stage, such as a full disk.
        """
        if item.part is not None:
            self._put(self._read_embeddings, item)
        elif outcome is None:
            self._put(self._read_cached, item)
        else:
            num_bytes = outcome.value.num_bytes if outcome.error is None else 0
            self._put(self._read_decoded, item, outcome, num_bytes=num_bytes)

    def flush(self) -> None:
        """Return when everything that was put is committed.

        Raises:
            StriveError: a fault of the stage.
        """
        is_committed = threading.Event()
        self._put(self._flush_batchers, is_committed)
        while not is_committed.wait(0.2):
            self._raise_fault()
        self._raise_fault()

    def take_counts(self) -> StageCounts:
        """Return what was done since the last call; call it after `flush`."""
        self._read_clocks()
        taken = StageCounts()
        taken.add(self.counts)
        self.counts.reset()
        self._preparing.reset()
        self._embedding.reset()
        return taken

    def close(self) -> None:
        """Commit everything and end the threads."""
        try:
            self.flush()
        finally:
            self._end()
        # Nothing is left to do, so they end at once; the interpreter must not go down before they
        # have let go of their tensors.
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Commit what is finished and end, without waiting long for the batch at work."""
        self._inbox.close(drop=True)
        self._ready.close(drop=True)
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads[:2]:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._end()

    @property
    def is_running(self) -> bool:
        """Whether a thread is at work, such as a model that `stop` has left behind."""
        is_embedding = any(not future.done() for _, future in self._at_work)
        return is_embedding or any(thread.is_alive() for thread in self._threads)

    def _put(self, call: Callable[..., None], *arguments: Any, num_bytes: int = 0) -> None:
        self._raise_fault()
        try:
            self._inbox.put(call, *arguments, num_bytes=num_bytes)
        except QueueClosed:
            self._raise_fault()
            raise

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _end(self) -> None:
        self._inbox.close(drop=True)
        self._ready.close(drop=True)
        self._writes.close()  # the writer commits what it has and ends
        self._threads[2].join()
        self._read_clocks()
        for thread in self._threads[:2]:
            thread.join(0.1)

    def _read_clocks(self) -> None:
        self.counts.prepare_seconds = self._preparing.total_seconds
        self.counts.embed_seconds = self._embedding.total_seconds
        self.counts.embed_wall_seconds = self._embedding.wall_seconds

    # --- in each thread --------------------------------------------------------------------------

    def _run(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except QueueClosed:
            return
        except BaseException as error:  # handed to the caller, whose next call raises it
            with self._fault_lock:
                self._fault = self._fault or error
            self._inbox.close(drop=True)
            self._ready.close(drop=True)
            self._writes.close()

    def _attempt(
        self, request: EmbedRequest, records: Sequence[Record], compute: Callable[[], T]
    ) -> T | None:
        """Return what a scorer computes of a video; None if it fails: a row for each question."""
        started = time.monotonic()
        try:
            return compute()
        except DecodeError as error:
            failure = error
        except StriveError:
            raise
        except Exception as error:  # that no one foresaw in a (user's) scorer
            line = (str(error).splitlines() or [""])[0][:300]
            failure = DecodeError("unexpected", f"{type(error).__name__}: {line}")
        seconds, checksum = time.monotonic() - started, request.video.checksum
        for record in records:
            row = question_failure(record, failure, seconds, request.session, checksum)
            self._writes.put(self._part.add_failure, row)
        return None

    # --- in the reader ---------------------------------------------------------------------------

    def _read_embeddings(self, item: WorkItem) -> None:
        assert item.part is not None
        videos = list(read_embeddings(item.part, item.checksums))
        num_bytes = sum(video.embeddings_FD.nbytes for video in videos)
        self._ready.put(self._score_cached, item, videos, num_bytes=num_bytes)

    def _read_cached(self, item: WorkItem) -> None:
        (video_id,) = item.video_ids
        if self._reader is None or video_id not in self._reader:
            self._reader = FrameReader(self._layout, self._frames_key)
        reader, row = self._reader, self._reader.row(video_id)
        pts_seconds_F = np.asarray(row["pts_seconds"], np.float64)
        video = VideoProgress(video_id, row["num_frames"], row["checksum"], pts_seconds_F)
        self._prepare(item, video, lambda: reader.read(video_id, range(video.num_frames)))

    def _read_decoded(self, item: WorkItem, outcome: Outcome) -> None:
        (video_id,) = item.video_ids
        self.counts.decode_seconds += outcome.seconds
        if outcome.error is not None:
            row = video_failure(
                video_id, outcome.error, outcome.seconds, self._frames_key, self._video_root
            )
            self._writes.put(self._part.add_failure, row)
            self._ready.put(self._finish_video, VideoProgress(video_id))
            return
        encoded: EncodedVideo = outcome.value
        self._writes.put(self._part.add_frames, encoded, num_bytes=encoded.num_bytes)
        with self._preparing:
            checksum = frames_checksum(encoded.frames)
        facts = encoded.facts
        video = VideoProgress(
            video_id, facts.num_frames, checksum, facts.pts_seconds_F, encoded.num_bytes
        )
        self._prepare(item, video, lambda: read_back(encoded, self._codec, self._read_threads))

    def _prepare(
        self, item: WorkItem, video: VideoProgress, read: Callable[[], np.ndarray]
    ) -> None:
        """Hand a video to each scorer that has to look at it; read frames only if one does."""
        video.num_scorers_left = len(item.records)
        if not item.records:
            self._ready.put(self._finish_video, video)
        frames_FHWC: np.ndarray | None = None
        for key in item.records:
            session = self._sessions[key]
            request = EmbedRequest(session, video, item.records[key][video.video_id])
            if session.scorer.mode == "frame_free":
                self._ready.put(self._run_whole, request, None)
                continue
            if frames_FHWC is None:
                with self._preparing:
                    frames_FHWC = read()
            if session.scorer.mode == "batched":
                self._fill_batches(request, frames_FHWC)
            else:
                self._ready.put(self._run_whole, request, frames_FHWC, num_bytes=frames_FHWC.nbytes)

    def _fill_batches(self, request: EmbedRequest, frames_FHWC: np.ndarray) -> None:
        session, scorer = request.session, request.session.scorer
        assert isinstance(scorer, BatchedScorer)

        def prepare() -> Any:
            prepared = scorer.prepare_frames(frames_FHWC)
            if len(prepared) != len(frames_FHWC):
                raise ModelError(
                    f"scorer '{session.name}' prepares {len(frames_FHWC)} frames as "
                    f"{len(prepared)} rows"
                )
            return prepared

        batches: list[Batch] = []
        with self._preparing:
            prepared = self._attempt(request, request.records, prepare)
            if prepared is not None:
                if session.key not in self._batchers:
                    pinned = session.scorer.device_type == "cuda"
                    self._batchers[session.key] = Batcher(scorer.batch_size, pinned=pinned)
                batches = list(self._batchers[session.key].add(request, prepared))
        if prepared is None:
            self._ready.put(self._finish_scorer, request)
        for batch in batches:
            self._ready.put(self._start_batch, batch, num_bytes=int(batch.prepared.nbytes))

    def _flush_batchers(self, is_committed: threading.Event) -> None:
        for batcher in self._batchers.values():
            for batch in batcher.flush():
                self._ready.put(self._start_batch, batch, num_bytes=int(batch.prepared.nbytes))
        self._ready.put(self._flush_models, is_committed)

    # --- in the models thread --------------------------------------------------------------------

    def _models_loop(self) -> None:
        try:
            while True:
                call = self._ready.get(timeout_seconds=1.0)
                if call is None:
                    self._wait_for_batches()
                else:
                    call()
                seconds = time.monotonic() - self._part_started
                if is_commit_due(self._num_part_videos, self._num_part_bytes, seconds):
                    self._commit_part()
        finally:
            if self._batch_threads is not None:
                self._batch_threads.stop()

    def _flush_models(self, is_committed: threading.Event) -> None:
        self._wait_for_batches()
        self._commit_part()
        self._writes.put(is_committed.set)

    def _commit_part(self) -> None:
        """Score the questions of the videos that were embedded since the last part, and end it."""
        unscored, self._unscored = self._unscored, {}
        for key, pairs in unscored.items():
            records = {video.video_id: some for video, some in pairs}
            self._score_split(key, [video for video, _ in pairs], records)
        self._writes.put(self._part.commit)
        self._num_part_videos = self._num_part_bytes = 0
        self._part_started = time.monotonic()

    def _start_batch(self, batch: Batch) -> None:
        """Embed a batch: here, or on a CPU beside others in a thread of its own."""
        session = batch.spans[0][0].session
        if session.scorer.device_type != "cpu" or self._num_at_once == 1:
            self._finish_batch(batch, self._embed(session, batch))
            return
        if self._batch_threads is None:
            self._batch_threads = BatchThreads(self._num_at_once)
        if len(self._at_work) > self._num_at_once:
            self._wait_for_oldest_batch()
        future = self._batch_threads.submit(partial(self._embed, session, batch))
        self._at_work.append((batch, future))

    def _embed(self, session: ScorerSession, batch: Batch) -> np.ndarray:
        scorer = session.scorer
        assert isinstance(scorer, BatchedScorer)
        with self._embedding, scorer_faults(session.name, "in embed_prepared"):
            embeddings_BD = np.asarray(scorer.embed_prepared(batch.prepared), np.float32)
        num_rows = sum(rows for _, rows in batch.spans)
        if embeddings_BD.ndim != 2 or len(embeddings_BD) != num_rows:
            raise ModelError(
                f"scorer '{session.name}' embeds a batch of {num_rows} prepared frames as an array "
                f"of shape {embeddings_BD.shape}; [{num_rows}, D] is expected"
            )
        return embeddings_BD

    def _wait_for_batches(self) -> None:
        while self._at_work:
            self._wait_for_oldest_batch()

    def _wait_for_oldest_batch(self) -> None:
        batch, future = self._at_work.popleft()
        self._finish_batch(batch, future.result())

    def _finish_batch(self, batch: Batch, embeddings_BD: np.ndarray) -> None:
        """Give each video its rows; a video whose last row this is, is embedded."""
        start = 0
        for request, num_rows in batch.spans:
            request.parts.append(embeddings_BD[start : start + num_rows])
            start += num_rows
            if sum(len(part) for part in request.parts) == request.video.num_frames:
                parts, request.parts = request.parts, []
                self._store(request, partial(np.concatenate, parts))

    def _run_whole(self, request: EmbedRequest, frames_FHWC: np.ndarray | None) -> None:
        """Run a scorer that takes one video, or one of its questions, at a time."""
        session, scorer = request.session, request.session.scorer
        with self._embedding:
            if isinstance(scorer, SplitScorer):
                assert frames_FHWC is not None
                self._store(request, partial(scorer.embed_frames, frames_FHWC))
                return
            for record in request.records:
                score = partial(self._score, request, record, frames_FHWC)
                rows = self._attempt(request, [record], score)
                if rows:
                    self._writes.put(self._part.add_scores, session.key, rows)
                elif rows is not None:
                    self._writes.put(self.counts.add, StageCounts(num_unscorable=1))
        if session.scorer.mode == "joint":
            self._writes.put(self.counts.add, StageCounts(num_embedded=1))
        self._finish_scorer(request)

    def _score(
        self, request: EmbedRequest, record: Record, frames_FHWC: np.ndarray | None
    ) -> list[QuestionScores]:
        """Score one question: one row, or none if it lacks what the scorer needs (spans)."""
        video = request.video
        row = request.session.score_one(record, frames_FHWC, video.pts_seconds_F, video.checksum)
        return [] if row is None else [row]

    def _store(self, request: EmbedRequest, embed: Callable[[], np.ndarray]) -> None:
        """Keep the embeddings of a video's frames; its questions are scored before a commit."""
        session, video = request.session, request.video
        embeddings = self._attempt(
            request,
            request.records,
            lambda: session.to_embeddings(
                video.video_id, embed(), video.num_frames, video.checksum
            ),
        )
        if embeddings is not None:
            self._unscored.setdefault(session.key, []).append((embeddings, request.records))
            num_bytes = embeddings.embeddings_FD.nbytes
            self._writes.put(
                self._part.add_embeddings, session.key, embeddings, num_bytes=num_bytes
            )
        self._finish_scorer(request)

    def _score_cached(self, item: WorkItem, videos: list[VideoEmbeddings]) -> None:
        for key, records in item.records.items():
            self._score_split(key, videos, records)
        for video in videos:
            self._finish_video(VideoProgress(video.video_id))

    def _score_split(
        self, key: str, videos: list[VideoEmbeddings], records: Mapping[str, Sequence[Record]]
    ) -> None:
        """Score questions of embedded videos; one that the model embeds as NaN is a failure row."""
        session = self._sessions[key]
        with self._embedding:
            rows = session.score_split(videos, records)
        by_id = {record.question_id: record for some in records.values() for record in some}
        finite = []
        for row in rows:
            question_id = row.question_id
            if np.isfinite(row.scores_F).all():
                finite.append(row)
                continue
            error = DecodeError("nonfinite", f"question {question_id} has scores that are NaN")
            failure = question_failure(by_id[question_id], error, 0.0, session, row.frames_checksum)
            self._writes.put(self._part.add_failure, failure)
        self._writes.put(self._part.add_scores, key, finite)

    def _finish_scorer(self, request: EmbedRequest) -> None:
        request.video.num_scorers_left -= 1
        if request.video.num_scorers_left == 0:
            self._finish_video(request.video)

    def _finish_video(self, video: VideoProgress) -> None:
        self._num_part_videos += 1
        self._num_part_bytes += video.num_bytes
        self._on_video(video.video_id)

    # --- in the writer ---------------------------------------------------------------------------

    def _write_loop(self) -> None:
        try:
            self._writes.make_calls()
        except QueueClosed:
            self._part.commit()  # the end, or a fault elsewhere: what is finished is kept
            raise
        except StriveError:
            self._part.discard()
            raise
