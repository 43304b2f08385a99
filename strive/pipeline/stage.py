"""From decoded videos to committed scores, for one writer: three threads with bounded queues.

    put -> [inbox] -> feeder -> [fed] -> models -> [writes] -> writer

The feeder reads frames back as any later reader of the cache will see them and fills batches across
videos; the models thread embeds and scores; the writer commits. All three let go of the interpreter
for most of their time. The local loop has one stage, each Ray actor one of its own.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from strive.cache.embeddings import VideoEmbeddings
from strive.cache.frames import EncodedVideo
from strive.cache.layout import CacheLayout
from strive.cache.scores import ScoreRow
from strive.configs.schema import PrecomputeConfig
from strive.errors import StriveError
from strive.pipeline import part as part_limits
from strive.pipeline.channel import Channel, Stopped
from strive.pipeline.clock import BusyClock
from strive.pipeline.feed import Ask, Feeder, Mark, VideoDone
from strive.pipeline.options import make_frames_key
from strive.pipeline.part import Part
from strive.pipeline.runner import ModelRunner
from strive.pipeline.summary import StageCounts
from strive.pipeline.work import VideoTask
from strive.records import Record
from strive.scorers.session import ScorerSession
from strive.video.worker import Outcome

# Each queue: enough that neither side waits for the other's next step, little enough to hold.
MAX_ITEMS = 8
MAX_INBOX_BYTES = 64 << 20
MAX_FED_BYTES = 256 << 20
MAX_WRITE_BYTES = 64 << 20
# How long a stopped stage waits for a model that is in the middle of a batch.
STOP_SECONDS = 2.0


class Stage:
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
        layout = CacheLayout(options.cache)
        self.counts = StageCounts()
        self.on_video = on_video
        self._frames_key = make_frames_key(options)
        self._sessions = {session.key: session for session in sessions}
        self._inbox: Channel[Ask] = Channel(MAX_ITEMS, MAX_INBOX_BYTES)
        self._fed: Channel[Any] = Channel(4 * MAX_ITEMS, MAX_FED_BYTES)
        self._writes: Channel[tuple[str, Any]] = Channel(16 * MAX_ITEMS, MAX_WRITE_BYTES)
        self._part = Part(layout, self._frames_key, self.counts, writer=writer)
        self._feeder = Feeder(options, layout, self._sessions, self._fed, self._send)
        self._embedding = BusyClock()
        self._runner = ModelRunner(self._sessions, self.counts, self._embedding, self._send)
        self._fault: BaseException | None = None
        self._fault_lock = threading.Lock()
        self._since_commit = _SinceCommit()
        self._threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=f"strive-{name}", daemon=True)
            for name, loop in (
                ("feed", self._feed),
                ("models", self._compute),
                ("write", self._write),
            )
        ]

    def start(self) -> None:
        """Start the threads; a Ray actor calls this, the local loop uses `with`."""
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Stage":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.stop()

    def put(self, outcome: Outcome, task: VideoTask) -> None:
        """Take what became of decoding a video; waits while the stage has enough to do.

        Raises:
            StriveError: a fault of the stage, such as a full disk.
        """
        num_bytes = outcome.value.num_bytes if outcome.error is None else 0
        self._put(Ask(task, outcome), num_bytes)

    def put_cached(self, task: VideoTask) -> None:
        """Take a video whose frames are cached and that some scorer's model has not seen."""
        self._put(Ask(task, None), 0)

    def put_embedded(
        self,
        scorer_key: str,
        videos: Sequence[VideoEmbeddings],
        records: Mapping[str, Sequence[Record]],
    ) -> None:
        """Take embeddings that are cached, with new questions by video: a matmul."""
        self._put(Ask(None, None, embedded=(scorer_key, videos, records)), 0)

    def take_counts(self) -> StageCounts:
        """Return what was done since the last call; call it after `flush`."""
        self._read_clock()
        taken = StageCounts()
        taken.add(self.counts)
        self.counts.reset()
        self._embedding.reset()
        return taken

    def flush(self) -> None:
        """Return when everything that was put is committed.

        Raises:
            StriveError: a fault of the stage.
        """
        mark = Mark()
        self._put(Ask(None, None, mark=mark), 0)
        while not mark.reached.wait(0.2):
            self._raise_fault()
        self._raise_fault()

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

    @property
    def is_running(self) -> bool:
        """Whether a thread is at work, such as a model that `stop` has left behind."""
        return any(thread.is_alive() for thread in self._threads) or self._runner.is_at_work

    def stop(self) -> None:
        """Commit what is finished and end, without waiting long for the batch at work."""
        self._inbox.break_off()
        self._fed.break_off()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads[:2]:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._end()

    def _end(self) -> None:
        self._inbox.break_off()
        self._fed.break_off()
        self._writes.close()  # the writer commits what it has and ends
        self._threads[2].join()
        self._read_clock()
        for thread in self._threads[:2]:
            thread.join(0.1)

    def _read_clock(self) -> None:
        self.counts.embed_seconds = self._embedding.total_seconds
        self.counts.embed_wall_seconds = self._embedding.wall_seconds

    def _put(self, ask: Ask, num_bytes: int) -> None:
        self._raise_fault()
        try:
            self._inbox.put(ask, num_bytes)
        except Stopped:
            self._raise_fault()
            raise

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except Stopped:
            return
        except BaseException as error:  # handed to the caller, whose next call raises it
            with self._fault_lock:
                self._fault = self._fault or error
            self._inbox.break_off()
            self._fed.break_off()
            self._writes.close()

    def _send(self, kind: str, value: Any, num_bytes: int = 0) -> None:
        self._writes.put((kind, value), num_bytes)

    def _feed(self) -> None:
        while True:
            ask = self._inbox.get()
            assert ask is not None
            started = time.monotonic()
            waited = self._feeder.take(ask)
            self.counts.prepare_seconds += time.monotonic() - started - waited
            self.counts.decode_seconds += ask.outcome.seconds if ask.outcome else 0.0

    def _compute(self) -> None:
        with self._runner:
            while True:
                item = self._fed.get(timeout_seconds=1.0)
                if item is None or isinstance(item, Mark):
                    self._runner.drain()
                else:
                    self._runner.take(item)
                self._report(self._runner.done())
                if isinstance(item, Mark) or self._since_commit.is_due:
                    self._runner.score()
                    self._send("commit", item if isinstance(item, Mark) else None)
                    self._since_commit = _SinceCommit()

    def _report(self, done: Sequence[VideoDone]) -> None:
        for video in done:
            self._since_commit.num_videos += 1
            self._since_commit.num_bytes += video.num_bytes
            self.on_video(video.video_id)

    def _write(self) -> None:
        try:
            while True:
                item = self._writes.get()
                assert item is not None
                self._write_one(*item)
        except Stopped:
            self._part.commit()  # the end, or a fault elsewhere: what is finished is kept
            raise
        except StriveError:
            self._part.discard()
            raise

    def _write_one(self, kind: str, value: Any) -> None:
        part = self._part
        if kind == "frames":
            video: EncodedVideo = value
            part.add_frames(video)
        elif kind == "embeddings":
            part.add_embeddings(*value)
        elif kind == "scores":
            key, rows = value
            scored: list[ScoreRow] = rows
            part.add_scores(key, scored)
        elif kind == "failure":
            part.add_failure(value)
        else:
            part.commit()
            mark: Mark | None = value
            if mark is not None:
                mark.reached.set()


class _SinceCommit:
    """What has come together since the last commit."""

    def __init__(self) -> None:
        self.num_videos = self.num_bytes = 0
        self.started = time.monotonic()

    @property
    def is_due(self) -> bool:
        return (
            self.num_videos >= part_limits.MAX_VIDEOS
            or self.num_bytes >= part_limits.MAX_BYTES
            or time.monotonic() - self.started >= part_limits.MAX_SECONDS
        )
