"""How long something was at work, however many threads did it."""

import threading
import time


class BusyClock:
    """Sums the seconds that each `with` block took, and those in which any was running."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = threading.local()
        self._num_busy = 0
        self._busy_since = 0.0
        self._wall_seconds = self._total_seconds = 0.0

    def __enter__(self) -> None:
        now = self._began.at = time.monotonic()
        with self._lock:
            if self._num_busy == 0:
                self._busy_since = now
            self._num_busy += 1

    def __exit__(self, *_: object) -> None:
        now = time.monotonic()
        with self._lock:
            self._total_seconds += now - self._began.at
            self._num_busy -= 1
            if self._num_busy == 0:
                self._wall_seconds += now - self._busy_since

    @property
    def total_seconds(self) -> float:
        """Seconds of all blocks together; those of two at once count twice."""
        return self._total_seconds

    @property
    def wall_seconds(self) -> float:
        """Seconds in which at least one block was running."""
        return self._wall_seconds

    def reset(self) -> None:
        """Begin again from zero, while nothing is running."""
        with self._lock:
            self._wall_seconds = self._total_seconds = 0.0
