"""Child processes that do not outlive their parent, and what they leave on disk."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

SCRATCH_VARIABLE = "STRIVE_SCRATCH"

_PR_SET_PDEATHSIG = 1
# Looked up on import: between fork and exec nothing may be loaded any more.
_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


def die_with_parent(parent_pid: int) -> None:
    """Ask Linux to kill this process when the thread that started it ends, however it ends."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
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
