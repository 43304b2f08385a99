"""A queue between two threads, bounded by count and by bytes, that can be broken off."""

import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Stopped(Exception):  # noqa: N818 - the end of a stream, not a fault
    """The channel was closed: a getter has had everything, or a putter has no one to take it."""


class Channel(Generic[T]):
    """Holds at most `max_items` items and `max_bytes` bytes (one item always fits)."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items, self._max_bytes = max_items, max_bytes
        self._items: deque[tuple[T, int]] = deque()
        self._num_bytes = 0
        self._closed = self._broken = False
        self._changed = threading.Condition()

    def put(self, item: T, num_bytes: int = 0) -> None:
        """Add an item, waiting while there is no room.

        Raises:
            Stopped: the channel is closed.
        """
        with self._changed:
            while not self._closed and self._is_full(num_bytes):
                self._changed.wait()
            if self._closed:
                raise Stopped
            self._items.append((item, num_bytes))
            self._num_bytes += num_bytes
            self._changed.notify_all()

    def get(self, timeout_seconds: float | None = None) -> T | None:
        """Take the oldest item; None when none came in time.

        Raises:
            Stopped: the channel is closed and empty, or broken off.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        with self._changed:
            while not self._items or self._broken:
                if self._closed:
                    raise Stopped
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            item, num_bytes = self._items.popleft()
            self._num_bytes -= num_bytes
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Take nothing more; what is there can still be got."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def break_off(self) -> None:
        """Close, and drop what is there."""
        with self._changed:
            self._closed = self._broken = True
            self._items.clear()
            self._num_bytes = 0
            self._changed.notify_all()

    def _is_full(self, num_bytes: int) -> bool:
        if not self._items:
            return False
        over = self._num_bytes + num_bytes > self._max_bytes
        return over or len(self._items) >= self._max_items
