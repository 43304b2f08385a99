"""Proof that a folder is not read and that an address gets no visit."""

import ctypes
import os
import shutil
import socket
import subprocess
from pathlib import Path

_IN_ACCESS, _IN_OPEN = 0x1, 0x20
_LIBC = ctypes.CDLL(None, use_errno=True)


class FolderWatch:
    """Linux tells of every file that is opened or read in a folder from now on (inotify)."""

    def __init__(self, folder: Path) -> None:
        self._descriptor = _LIBC.inotify_init1(os.O_NONBLOCK)
        mask = _IN_ACCESS | _IN_OPEN
        watch = _LIBC.inotify_add_watch(self._descriptor, os.fsencode(folder), mask)
        assert self._descriptor >= 0 and watch >= 0, os.strerror(ctypes.get_errno())

    def was_touched(self) -> bool:
        """Whether anything was opened since the last time that this was asked."""
        try:
            return bool(os.read(self._descriptor, 1 << 16))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._descriptor)


class Port:
    """A port of this machine that notes whether anybody connects."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.setblocking(False)
        self.number = int(self._server.getsockname()[1])

    def was_visited(self) -> bool:
        """Whether anybody connected since the last time that this was asked."""
        try:
            self._server.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self._server.close()


def strace_prefix(log: Path) -> list[str]:
    """Return what to put before a command to have its file and network calls written to `log`.

    Nothing where strace is not installed or the machine does not let a process watch another.
    """
    command = ["strace", "-f", "-qq", "-s", "4096", "-o", str(log), "--seccomp-bpf"]
    command += ["-e", "trace=open,openat,openat2,connect,sendto,execve"]
    if shutil.which("strace") is None:
        return []
    trial = subprocess.run([*command, "true"], capture_output=True, check=False)
    return command if trial.returncode == 0 else []


def processes_marked(mark: str) -> list[int]:
    """Return the living processes with a text in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if mark.encode() in environment:
            found.append(int(folder.name))
    return found
