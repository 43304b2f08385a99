"""Bounded queues of calls, a clock and batch threads, for the threads of the embedding stage."""

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np


class QueueClosed(Exception):  # noqa: N818 - the end of a stream, not a fault
    """A queue is closed: every call was made, or nobody will make another."""


class CallQueue:
    """Calls for one thread to make, in order: at most `max_items`, whose arguments have at most
    `max_bytes` bytes (one call always fits).
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items, self._max_bytes = max_items, max_bytes
        self._calls: deque[tuple[Callable[[], Any], int]] = deque()
        self._num_bytes = 0
        self._closed = self._dropped = False
        self._changed = threading.Condition()

    def put(self, function: Callable[..., Any], *arguments: Any, num_bytes: int = 0) -> None:
        """Add a call, waiting while there is no room.

        Raises:
            QueueClosed: nobody will make it.
        """
        with self._changed:
            while not self._closed and self._calls and self._is_full(num_bytes):
                self._changed.wait()
            if self._closed:
                raise QueueClosed
            self._calls.append((partial(function, *arguments), num_bytes))
            self._num_bytes += num_bytes
            self._changed.notify_all()

    def get(self, timeout_seconds: float | None = None) -> Callable[[], Any] | None:
        """Remove and return the oldest call; None when none came in time.

        Raises:
            QueueClosed: the queue is closed, and empty or dropped.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._changed:
            while not self._calls or self._dropped:
                if self._closed:
                    raise QueueClosed
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            call, num_bytes = self._calls.popleft()
            self._num_bytes -= num_bytes
            self._changed.notify_all()
            return call

    def make_calls(self) -> None:
        """Make all calls as they come, in this thread.

        Raises:
            QueueClosed: the queue is closed, and empty or dropped.
        """
        while True:
            call = self.get()
            assert call is not None
            call()

    def close(self, *, drop: bool = False) -> None:
        """Accept nothing more; calls that are there are still made unless they are dropped."""
        with self._changed:
            self._closed = True
            if drop:
                self._dropped = True
                self._calls.clear()
                self._num_bytes = 0
            self._changed.notify_all()

    def _is_full(self, num_bytes: int) -> bool:
        over = self._num_bytes + num_bytes > self._max_bytes
        return over or len(self._calls) >= self._max_items


class BusyClock:
    """Sums the seconds that each `with` block took, and those in which any was running."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = threading.local()
        self._num_busy = 0
        self._busy_since = 0.0
        self.total_seconds = 0.0
        """Seconds of all blocks together; those of two at once count twice."""
        self.wall_seconds = 0.0
        """Seconds in which at least one block was running."""

    def __enter__(self) -> None:
        now = self._began.at = time.monotonic()
        with self._lock:
            if self._num_busy == 0:
                self._busy_since = now
            self._num_busy += 1

    def __exit__(self, *_: object) -> None:
        now = time.monotonic()
        with self._lock:
            self.total_seconds += now - self._began.at
            self._num_busy -= 1
            if self._num_busy == 0:
                self.wall_seconds += now - self._busy_since

    def reset(self) -> None:
        """Begin again from zero, while nothing is running."""
        with self._lock:
            self.wall_seconds = self.total_seconds = 0.0


class BatchThreads:
    """Threads that embed batches; unlike an executor's, none holds up the end of the process."""

    def __init__(self, num_threads: int) -> None:
        self._calls: queue.SimpleQueue[tuple[Future[np.ndarray], Callable[[], np.ndarray]] | None]
        self._calls = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name="strive-embed", daemon=True)
            for _ in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, compute: Callable[[], np.ndarray]) -> Future[np.ndarray]:
        """Compute in one of the threads; the future has the value or the error."""
        future: Future[np.ndarray] = Future()
        self._calls.put((future, compute))
        return future

    def stop(self) -> None:
        """End each thread after the batch that it is at, and wait for that."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(1)
        while (call := self._calls.get()) is not None:
            future, compute = call
            try:
                future.set_result(compute())
            except Exception as error:  # raised by `result()`, in the thread that asks for it
                future.set_exception(error)
