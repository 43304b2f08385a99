"""SIGINT and SIGTERM as a request to stop after the step in flight, or as an error."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def raising_at_sigterm() -> Iterator[None]:
    """While entered, SIGTERM raises what SIGINT raises, so that what was begun is undone.

    It is what a launcher sends to the other processes when one cannot start.

    Raises:
        KeyboardInterrupt: at the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopRequest:
    """While entered, the first signal asks to stop and the second one acts as it usually does."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Python allows handlers in the main thread alone; elsewhere the caller's stay in force.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._request) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        for signal_number, handler in self._before.items():
            signal.signal(signal_number, handler)
