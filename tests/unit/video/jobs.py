"""What the worker tests run inside workers."""

import os
import signal
import tempfile
import time
from pathlib import Path

from strive.errors import DecodeError
from strive.video.repair import repaired_copies
from strive.video.worker import ask_for_time, scratch_folder


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def answer(value: int) -> int:
    return value * 2


def hang(value: int = 0) -> None:
    # As a decoder that ignores everything but SIGKILL.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def crash(value: int = 0) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def fail(value: int = 0) -> None:
    raise DecodeError("some_kind", "some message")


def bug(value: int = 0) -> None:
    raise KeyError("surprise")


def own_pid(value: int = 0) -> int:
    return os.getpid()


def mixed(value: int) -> int:
    if value == 3:
        hang()
    if value == 5:
        crash()
    if value == 7:
        fail()
    return answer(value)


def swallow_memory(num_gibibytes: int) -> int:
    return len(bytearray(num_gibibytes << 30))


def leave_a_file(value: int = 0) -> str:
    return tempfile.mkdtemp(dir=scratch_folder())


def start_ffmpeg(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        list(repaired_copies(path, Path(folder)))


def ask_and_sleep(asked: float, slept: float) -> str:
    ask_for_time(asked)
    time.sleep(slept)
    return "done"
