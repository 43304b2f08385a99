"""The processes of a run, what they tell each other, and the signals that stop them.

One process needs no launcher. Several are started by `deepspeed --no_local_rank --module strive.cli
train ...` or `torchrun -m strive.cli train ...`; only rank, world size and addresses are read from
the environment, which is where both put them.
"""

import atexit
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from strive.errors import ConfigError, StriveError

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)
# Others wait while the main process writes a policy; NCCL's own ten minutes may not do for a slow
# disk. A launcher ends the others at once when one process fails, however long this is.
_TIMEOUT = timedelta(hours=1)
_IDLE_SECONDS = 0.2


@dataclass(frozen=True)
class Processes:
    """This process among all; every method is a collective that all processes must call."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Add up named numbers over all processes; all must pass the same names."""
        parts = self.gather(dict(values))
        return {name: sum(part[name] for part in parts) for name in values}

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set on at least one process."""
        return any(self.gather(flag))

    def gather(self, item: T) -> list[T]:
        """Collect one picklable object of each process, in order of rank, on every process."""
        if self.world_size == 1:
            return [item]
        items: list[Any] = [None] * self.world_size
        dist.all_gather_object(items, item)
        return items

    def of_main(self, call: Callable[[], T]) -> T:
        """Let the main process make a call; what it returns or raises is every process's."""
        outcome: tuple[Any, StriveError | OSError | None] = (None, None)
        if self.is_main:
            # An error of this process alone would leave the others waiting for it.
            try:
                outcome = (call(), None)
            except (StriveError, OSError) as error:
                outcome = (None, error)
        value, failure = self.gather(outcome)[0]
        if failure is not None:
            raise self.told_once(failure)
        answer: T = value
        return answer

    def main_first(self, call: Callable[[], T]) -> T:
        """Make a call on the main process and, where that succeeds, on all others.

        What is wrong for all of them alike is then said once.
        """
        held: list[T] = []
        self.of_main(lambda: held.append(call()))
        return held[0] if held else call()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run the block on every process; where it fails on any, all raise the first failure."""
        # One that failed alone would leave the others waiting for it in their next collective.
        failure: StriveError | None = None
        try:
            yield
        except StriveError as error:
            failure = error
        for error_of_one in self.gather(failure):
            if error_of_one is not None:
                raise self.told_once(error_of_one)

    def told_once(self, error: E) -> E:
        """Mark an error that all processes raise: one line for a run, not one for each of them."""
        if isinstance(error, StriveError):
            error.is_told = not self.is_main
        return error

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()


def start_processes() -> Processes:
    """Join this process's group, or found one of its own when no launcher started it.

    The group is destroyed when the interpreter exits, after an error too; a second run in one
    interpreter reuses it.

    Raises:
        ConfigError: srun started several tasks and none of them a launcher.
    """
    num_tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if num_tasks > 1 and "WORLD_SIZE" not in os.environ:
        # srun sets no ranks: each of its tasks would train alone, into one run folder.
        raise ConfigError(
            f"srun started {num_tasks} tasks without a launcher, and each would train alone; start "
            "one task a node with `srun --ntasks-per-node=1 torchrun ... -m strive.cli train ...` "
            "(docs/scaling.md), or a single task"
        )
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if has_gpu else "gloo"
        bound_to = device if has_gpu else None
        if "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend, timeout=_TIMEOUT, device_id=bound_to)
        else:
            # A store in memory: no port that another run on this machine could already hold.
            store = dist.HashStore()
            dist.init_process_group(backend, store=store, rank=0, world_size=1, device_id=bound_to)
        atexit.register(_leave_group)
    return Processes(dist.get_rank(), dist.get_world_size(), device)


def _leave_group() -> None:
    if not dist.is_initialized():
        return
    # A gloo thread lets go of a collective's tensors a moment after it is done, and needs the
    # interpreter for that; if that is going down by then, the process aborts. Destroying the group
    # does not end such threads (others hold references to it), and nothing tells when they idle.
    time.sleep(_IDLE_SECONDS)
    dist.destroy_process_group()


# --- SIGINT and SIGTERM: a request to stop after the step in flight, or an error ----------------


@contextmanager
def handling_signals(
    handler: Callable[[int, FrameType | None], Any], *numbers: signal.Signals
) -> Iterator[dict[signal.Signals, Any]]:
    """While entered, give signals a handler; yield the handlers of before.

    Python allows handlers in the main thread alone; elsewhere the caller's stay in force.
    """
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield before
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def raising_at_sigterm() -> AbstractContextManager[Any]:
    """While entered, SIGTERM raises what SIGINT raises, so that what was begun is undone.

    It is what a launcher sends to the other processes when one cannot start.

    Raises:
        KeyboardInterrupt: at the signal.
    """
    return handling_signals(signal.default_int_handler, signal.SIGTERM)


@dataclass
class StopRequest:
    """Whether a signal has asked the run to stop."""

    requested: bool = False
    earlier: dict[signal.Signals, Any] = field(default_factory=dict)
    """The handlers that the next signal finds."""


@contextmanager
def stopping_at_signals() -> Iterator[StopRequest]:
    """While entered, the first signal asks to stop and the second one acts as it usually does."""
    stop = StopRequest()

    def request(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        for each, handler in stop.earlier.items():
            signal.signal(each, handler)

    with handling_signals(request, signal.SIGINT, signal.SIGTERM) as stop.earlier:
        yield stop
