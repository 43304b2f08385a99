"""Commands in processes of their own, which end with this one however it ends."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from strive.errors import Interrupted, MissingInputError
from strive.progress import one_line
from strive.video.worker import die_with_parent

SECONDS_TO_END = 60.0
"""What an interrupted command has before it is killed."""
INTERRUPTED = "interrupted; the same command goes on where it stopped"
_LONGEST_LINE = 400


class Children:
    """Runs commands, each called from a thread, and can end all of them at once.

    Each is a session of its own, so that Ctrl-C reaches this process alone, which then interrupts
    them. On Linux one gets `death_signal` when the thread that started it ends in any other way:
    SIGKILL, or SIGTERM for a launcher, which then ends the processes that it has started.
    """

    def __init__(
        self, environment: Mapping[str, str], death_signal: signal.Signals = signal.SIGKILL
    ) -> None:
        self._environment = environment
        self._death_signal = int(death_signal)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._is_stopped = False

    def run(self, command: Sequence[str], log: Path) -> int:
        """Run a command to its end, its output appended to a log; return its exit code.

        The code is negative for one that a signal ended.

        Raises:
            Interrupted: `stop` was called.
            MissingInputError: there is no such program.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            process = self._start(command, out.fileno())
        try:
            exit_code = process.wait()
        finally:
            with self._lock:
                self._running.discard(process)
        self.require_going()
        return exit_code

    def require_going(self) -> None:
        """Raise once `stop` was called.

        Raises:
            Interrupted: it was.
        """
        if self._is_stopped:
            raise Interrupted(INTERRUPTED)

    def stop(self) -> None:
        """Interrupt what runs as Ctrl-C does, wait for its end, and let nothing begin any more."""
        with self._lock:
            self._is_stopped = True
            running = list(self._running)
        try:
            for process in running:
                _signal(process, signal.SIGINT)
            deadline = time.monotonic() + SECONDS_TO_END
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(deadline - time.monotonic(), 0.0))
        finally:
            # Also where a second Ctrl-C cuts the waiting short.
            for process in running:
                _signal(process, signal.SIGKILL)

    def _start(self, command: Sequence[str], out: int) -> "subprocess.Popen[bytes]":
        with self._lock:
            self.require_going()
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,
                    preexec_fn=partial(die_with_parent, os.getpid(), self._death_signal),
                )
            except (FileNotFoundError, PermissionError) as error:
                raise MissingInputError(
                    f"cannot start '{command[0]}' ({error.strerror}); it is the first word of "
                    "--launcher"
                ) from None
            self._running.add(process)
        return process


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """Send a signal to a command and what it has started, if it still runs."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def last_line(log: Path) -> str:
    """Return the last line of a log that tells an error, else its last one."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    lines = [one_line(line.strip())[:_LONGEST_LINE] for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it printed nothing"])[-1]
