"""Running the models: embeddings of batches, scores of videos, questions before each commit."""

import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from strive.cache.embeddings import VideoEmbeddings
from strive.cache.scores import ScoreRow
from strive.errors import DecodeError, ModelError
from strive.pipeline.batches import Batch, VideoSlot
from strive.pipeline.clock import BusyClock
from strive.pipeline.failing import question_failure
from strive.pipeline.feed import Fed, FedSlot, Send, VideoDone, foreseen
from strive.pipeline.summary import StageCounts
from strive.records import Record
from strive.scorers import scorer_faults
from strive.scorers.session import ScorerSession

# On a CPU several batches are embedded at once, each by one thread: how many threads share a
# matrix product can change its last bits, how many batches are at work cannot.
MAX_CPU_BATCHES = 8


class ModelRunner:
    """Embeds and scores what the feeder passes; used by one thread, inside `with`."""

    def __init__(
        self,
        sessions: Mapping[str, ScorerSession],
        counts: StageCounts,
        clock: BusyClock,
        send: Send,
    ) -> None:
        self._sessions, self._counts, self._send = sessions, counts, send
        self._clock = clock
        self._num_at_once = min(MAX_CPU_BATCHES, os.cpu_count() or 1)
        self._threads: _BatchThreads | None = None
        self._at_work: deque[tuple[Batch, Future[np.ndarray]]] = deque()
        self._unscored: dict[str, list[tuple[VideoEmbeddings, VideoSlot]]] = {}
        self._done: list[VideoDone] = []

    def __enter__(self) -> "ModelRunner":
        return self

    def __exit__(self, *_: object) -> None:
        if self._threads is not None:
            self._threads.stop()

    @property
    def is_at_work(self) -> bool:
        """Whether a batch is being embedded."""
        return any(not future.done() for _, future in self._at_work)

    def take(self, item: Any) -> None:
        """Do what was passed."""
        if isinstance(item, VideoDone):
            self._done.append(item)
        elif isinstance(item, FedSlot):
            self._end(item)
        elif isinstance(item, Fed):
            if item.batch is not None:
                self._start(item.batch)
            else:
                with self._clock:
                    self._run_whole(item)
        else:
            key, videos, records = item
            with self._clock:
                self._score_embedded(key, videos, records)

    def drain(self) -> None:
        """Wait for all batches at work."""
        while self._at_work:
            self._collect()

    def done(self) -> list[VideoDone]:
        """Return the videos that every scorer has finished since the last call."""
        done, self._done = self._done, []
        return done

    def score(self) -> None:
        """Score the questions of the videos that were embedded since the last call."""
        unscored, self._unscored = self._unscored, {}
        for key, pairs in unscored.items():
            records = {slot.video_id: slot.records for _, slot in pairs}
            with self._clock:
                rows = self._sessions[key].score_split([video for video, _ in pairs], records)
            self._send_finite(key, rows, records)

    def _start(self, batch: Batch) -> None:
        session = self._sessions[batch.scorer_key]
        scorer: Any = session.scorer
        if session.device_type != "cpu" or self._num_at_once == 1:
            self._finish(batch, self._embed(scorer, batch))
            return
        if self._threads is None:
            self._threads = _BatchThreads(self._num_at_once)
        if len(self._at_work) > self._num_at_once:
            self._collect()
        self._at_work.append((batch, self._threads.submit(lambda: self._embed(scorer, batch))))

    def _embed(self, scorer: Any, batch: Batch) -> np.ndarray:
        name = self._sessions[batch.scorer_key].name
        with self._clock, scorer_faults(name, "in embed_prepared"):
            embeddings_BD = np.asarray(scorer.embed_prepared(batch.prepared), np.float32)
        num_rows = sum(rows for _, rows in batch.spans)
        if embeddings_BD.ndim != 2 or len(embeddings_BD) != num_rows:
            raise ModelError(
                f"scorer '{name}' embeds a batch of {num_rows} prepared frames as an array of "
                f"shape {embeddings_BD.shape}; [{num_rows}, D] is expected"
            )
        return embeddings_BD

    def _collect(self) -> None:
        batch, future = self._at_work.popleft()
        self._finish(batch, future.result())

    def _finish(self, batch: Batch, embeddings_BD: np.ndarray) -> None:
        """Give each video its rows; a video whose last row this is, is embedded."""
        start = 0
        for slot, num_rows in batch.spans:
            if slot.take(embeddings_BD[start : start + num_rows]):
                self._store(slot, np.concatenate(slot.parts))
                slot.parts = []
            start += num_rows

    def _store(self, slot: VideoSlot, embeddings_FD: np.ndarray) -> None:
        session = self._sessions[slot.scorer_key]
        try:
            video = session.to_embeddings(
                slot.video_id, embeddings_FD, slot.num_frames, slot.checksum
            )
        except DecodeError as error:
            self._fail(slot, slot.records, error, 0.0)
        else:
            self._unscored.setdefault(slot.scorer_key, []).append((video, slot))
            self._send("embeddings", (slot.scorer_key, video), video.embeddings_FD.nbytes)
        self._end(slot)

    def _run_whole(self, item: Fed) -> None:
        """Run a scorer that takes one video at a time."""
        slot = item.slot
        assert slot is not None
        session = self._sessions[slot.scorer_key]
        if session.mode != "split":
            for record in slot.records:
                self._score_one(item, slot, record)
            self._counts.num_embedded += session.mode == "joint"
            self._end(slot)
            return
        model: Any = session.scorer
        started = time.monotonic()
        try:
            with foreseen():
                embeddings_FD: np.ndarray = model.embed_frames(item.frames_FHWC)
        except DecodeError as error:
            self._fail(slot, slot.records, error, time.monotonic() - started)
            self._end(slot)
        else:
            self._store(slot, embeddings_FD)

    def _score_one(self, item: Fed, slot: VideoSlot, record: Record) -> None:
        """Score one question of a video with a scorer that gives scores, not embeddings."""
        session, checksum = self._sessions[slot.scorer_key], slot.checksum
        assert item.pts_seconds_F is not None
        started = time.monotonic()
        try:
            with foreseen():
                row = session.score_one(record, item.frames_FHWC, item.pts_seconds_F, checksum)
        except DecodeError as error:
            self._fail(slot, [record], error, time.monotonic() - started)
            return
        if row is None:
            self._counts.num_unscorable += 1
        else:
            self._send("scores", (slot.scorer_key, [row]))

    def _score_embedded(
        self, key: str, videos: list[VideoEmbeddings], records: Mapping[str, list[Record]]
    ) -> None:
        self._send_finite(key, self._sessions[key].score_split(videos, records), records)
        self._done += [VideoDone(video.video_id, 0) for video in videos]

    def _send_finite(
        self, key: str, rows: list[ScoreRow], records: Mapping[str, Sequence[Record]]
    ) -> None:
        """Send scores; a question that the model embeds as NaN is a failure row."""
        finite, asked = [], {r.question_id: r for some in records.values() for r in some}
        for row in rows:
            question_id = row.scores.question_id
            if np.isfinite(row.scores.scores_F).all():
                finite.append(row)
                continue
            error = DecodeError("nonfinite", f"question {question_id} has scores that are NaN")
            session, checksum = self._sessions[key], row.frames_checksum
            self._send(
                "failure", question_failure(asked[question_id], error, 0.0, session, checksum)
            )
        self._send("scores", (key, finite))

    def _fail(
        self, slot: VideoSlot, records: Sequence[Record], error: DecodeError, seconds: float
    ) -> None:
        """Send a row for each question that has no scores because of an error."""
        session = self._sessions[slot.scorer_key]
        for record in records:
            row = question_failure(record, error, seconds, session, slot.checksum)
            self._send("failure", row)

    def _end(self, slot: VideoSlot) -> None:
        assert isinstance(slot, FedSlot)
        slot.done.num_left -= 1
        if slot.done.num_left == 0:
            self._done.append(slot.done)


class _BatchThreads:
    """Threads for batches; unlike an executor's, none holds up the end of the process."""

    def __init__(self, num_threads: int) -> None:
        self._work: queue.SimpleQueue[tuple[Future[np.ndarray], Callable[[], np.ndarray]] | None]
        self._work = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name="strive-embed", daemon=True)
            for _ in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, compute: Callable[[], np.ndarray]) -> Future[np.ndarray]:
        """Compute in one of the threads; the future has the value or the error."""
        future: Future[np.ndarray] = Future()
        self._work.put((future, compute))
        return future

    def stop(self) -> None:
        """End each thread after the batch that it is at, and wait for that."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(1)
        while (item := self._work.get()) is not None:
            future, compute = item
            try:
                future.set_result(compute())
            except Exception as error:  # raised by `result()`, in the thread that takes it
                future.set_exception(error)
