"""Worker processes that can be killed.

A decoder may hang while it holds the interpreter lock and ignores every signal but SIGKILL, or take
the process down with it. So each job runs in a process of its own kind: a plain Python that answers
over a pipe, is killed when a job exceeds its wall-clock limit, and is replaced. It may ask for
`MAX_WORKER_BYTES` of memory and no more, and its temporary files go with it.
"""

import ctypes
import multiprocessing.connection
import os
import queue
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strive.errors import DecodeError

# An hour of 1080p decodes in three to four minutes on one core.
DEFAULT_TIMEOUT_SECONDS = 600.0
START_SECONDS = 60.0
# decord leaks some memory per file: a fresh process now and then bounds it.
MAX_JOBS_PER_WORKER = 256

# Memory that one worker may ask for. Sixteen reference frames of the largest picture that is
# decoded (8192x8192, 10 bit) take 3.2 GiB; a header that lies about its size asks for more.
MAX_WORKER_BYTES = 8 << 30

# Not `-m`: it would put the working directory first, where a user's `queue.py` shadows Python's.
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
# What decodes is loaded before the first job, whose time limit does not pay for it.
_BOOT = (
    "import sys; sys.path.append(sys.argv[1]); import strive.video.decode; "
    "import strive.video.worker as w; w.main()"
)
SCRATCH_VARIABLE = "STRIVE_SCRATCH"

# --- a process and its children ------------------------------------------------------------------

_PR_SET_PDEATHSIG = 1
# Looked up on import: between fork and exec nothing may be loaded any more.
_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


def die_with_parent(parent_pid: int, number: int = signal.SIGKILL) -> None:
    """Ask Linux for a signal to this process when the thread that started it ends, however it
    ends: SIGKILL, or one on which a launcher ends what it has started."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)  # the parent was gone before the request took effect


def scratch_folder() -> Path | None:
    """Make and return the folder for this worker's temporary files, which its parent removes.

    None outside a worker: then the system's own place serves.
    """
    name = os.environ.get(SCRATCH_VARIABLE)
    if name is None:
        return None
    folder = Path(name)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


_ask_for_time: Callable[[float], None] | None = None


def ask_for_time(seconds: float) -> None:
    """Tell whoever waits for this job that it may take so long from its start; nobody may listen.

    A file may state any length: the asker counts what it has read.
    """
    if _ask_for_time is not None:
        _ask_for_time(seconds)


def hear_asking(listener: Callable[[float], None]) -> None:
    """Have a listener hear of every job of this process that asks for time."""
    global _ask_for_time
    _ask_for_time = listener


# --- workers ------------------------------------------------------------------------------------


class Worker:
    """One worker process, used by one thread; it ends with `close`, a kill or that thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: multiprocessing.connection.Connection | None = None
        self._stderr: Any = None
        self._scratch: Path | None = None
        self._num_jobs = 0

    def call(
        self, function: Callable[..., Any], kwargs: dict[str, Any], timeout_seconds: float
    ) -> Any:
        """Run an importable function in the worker and return its value or raise its error.

        A job that has to decode a whole file asks for as long as half the file lasts.

        Raises:
            DecodeError: `timeout` or `crashed`; the worker was killed and the next call gets a
                fresh one.
        """
        if self._num_jobs >= MAX_JOBS_PER_WORKER:
            self.close()
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._pipe is not None
        self._num_jobs += 1
        try:
            self._pipe.send((function, kwargs))
            started = time.monotonic()
            kind: str = "asks"
            value: Any = timeout_seconds
            while kind == "asks":
                timeout_seconds = max(timeout_seconds, value)
                remaining = max(started + timeout_seconds - time.monotonic(), 0.0)
                if not self._pipe.poll(remaining):
                    self.close()
                    raise DecodeError("timeout", f"killed after {timeout_seconds:g} s")
                kind, value = self._pipe.recv()
        except (EOFError, ConnectionError, BrokenPipeError) as error:
            raise DecodeError("crashed", self._crash_text()) from error
        if kind == "error":
            raise value
        return value

    def close(self) -> None:
        """Kill the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
        self._num_jobs = 0

    def kill(self) -> None:
        """Kill the process from another thread; the call in progress raises `crashed`."""
        process = self._process
        if process is not None:
            process.kill()

    def _start(self) -> None:
        self.close()
        ours, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        # Its temporary files go with it, however it ends; it makes the folder when it needs one.
        self._scratch = Path(tempfile.gettempdir()) / f"strive-worker-{secrets.token_hex(8)}"
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, _PACKAGE_ROOT, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                # Its own group: Ctrl-C reaches the parent alone, which then ends its workers.
                process_group=0,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "STRIVE_PARENT_PID": str(os.getpid()),
                    SCRATCH_VARIABLE: str(self._scratch),
                },
            )
        self._pipe = multiprocessing.connection.Connection(ours.detach())
        if not self._pipe.poll(START_SECONDS):
            self.close()
            raise DecodeError("crashed", f"a decode worker did not start in {START_SECONDS:g} s")
        try:
            self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise DecodeError("crashed", self._crash_text()) from error

    def _crash_text(self) -> str:
        """Say how the process ended, with the last line that it wrote, and clean up."""
        assert self._process is not None
        self._process.kill()
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        self.close()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the decode worker died ({how})" + (f": {lines[-1][:300]}" if lines else "")


@dataclass(frozen=True, slots=True)
class Job:
    """One call for a pool; `key` comes back with its outcome."""

    key: str
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a job: its value, or the `DecodeError` that it raised."""

    key: str
    value: Any
    error: DecodeError | None
    seconds: float


def run_job(
    worker: Worker,
    function: Callable[..., Any],
    job: Job,
    timeout_seconds: float,
    retry: Callable[[Job, DecodeError], Job | None],
) -> Outcome:
    """Run a job in a worker, again in the form that `retry` gives it for as long as that is one."""
    started = time.monotonic()
    attempt: Job | None = job
    while attempt is not None:
        try:
            value = worker.call(function, attempt.kwargs, timeout_seconds)
            return Outcome(job.key, value, None, time.monotonic() - started)
        except DecodeError as error:
            last = error
            attempt = retry(attempt, error)
    return Outcome(job.key, None, last, time.monotonic() - started)


class WorkerPool:
    """A few workers, each driven by a thread; at most `max_ready` outcomes wait to be taken."""

    def __init__(
        self,
        function: Callable[..., Any],
        jobs: Iterable[Job],
        *,
        num_workers: int,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        retry: Callable[[Job, DecodeError], Job | None] = lambda job, error: None,
        max_ready: int | None = None,
    ) -> None:
        self._function, self._timeout, self._retry = function, timeout_seconds, retry
        self._jobs = iter(jobs)
        self._jobs_lock = threading.Lock()
        self._ready: queue.Queue[Outcome | BaseException | None] = queue.Queue(
            max_ready or 2 * num_workers
        )
        self._stop = threading.Event()
        self._workers = [Worker() for _ in range(num_workers)]
        self._threads = [
            threading.Thread(target=self._drive, args=(worker,), daemon=True)
            for worker in self._workers
        ]

    def __enter__(self) -> "WorkerPool":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for worker, thread in zip(self._workers, self._threads, strict=True):
            # Again and again: the thread may be about to start a process when it is told to stop.
            while thread.is_alive():
                worker.kill()
                thread.join(0.05)

    def __iter__(self) -> Iterator[Outcome]:
        """Yield outcomes as they come, until every job has one."""
        num_running = len(self._threads)
        while num_running:
            item = self._ready.get()
            if item is None:
                num_running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item

    def _drive(self, worker: Worker) -> None:
        try:
            while not self._stop.is_set() and (job := self._next_job()) is not None:
                outcome = run_job(
                    worker, self._function, job, self._timeout, self._retry_while_wanted
                )
                self._put(outcome)
            self._put(None)
        except BaseException as error:  # handed to the consumer, which raises it
            self._put(error)
        finally:
            worker.close()

    def _next_job(self) -> Job | None:
        with self._jobs_lock:
            return next(self._jobs, None)

    def _retry_while_wanted(self, job: Job, error: DecodeError) -> Job | None:
        return None if self._stop.is_set() else self._retry(job, error)

    def _put(self, item: Outcome | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue


def _limit_memory(num_bytes: int) -> None:
    """Refuse this process more private memory; files that it maps do not count (Linux)."""
    if sys.platform != "linux":
        return  # elsewhere the system counts other things, or nothing
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = num_bytes if hard == resource.RLIM_INFINITY else min(num_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))


def main() -> None:
    """Answer jobs from the pipe until it closes."""
    die_with_parent(int(os.environ.get("STRIVE_PARENT_PID", os.getppid())))
    _limit_memory(MAX_WORKER_BYTES)
    pipe = multiprocessing.connection.Connection(int(sys.argv[2]))
    pipe.send("ready")
    hear_asking(lambda seconds: pipe.send(("asks", seconds)))
    while True:
        try:
            function, kwargs = pipe.recv()
        except EOFError:
            return
        try:
            answer: tuple[str, Any] = ("value", function(**kwargs))
        except DecodeError as error:
            answer = ("error", error)
        except MemoryError:
            answer = ("error", DecodeError("out_of_memory", "the frames do not fit into memory"))
        except Exception as error:  # any decoder fault is this video's failure row, not the run's
            answer = ("error", DecodeError("unexpected", f"{type(error).__name__}: {error}"))
        pipe.send(answer)
