import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from strive.errors import CheckpointError, RunInUseError
from strive.files import try_lock
from strive.train import run_lock
from strive.train.run_lock import RunLock

HOLD = """
import sys
from pathlib import Path
from strive.train.run_lock import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held_elsewhere(tmp_path):
    """A folder in which another process works, and that process."""
    root = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert process.stdout.readline() == "held\n"
    yield root, process
    process.kill()
    process.communicate()


def test_another_process_is_refused_until_a_kill(held_elsewhere):
    root, process = held_elsewhere
    said = (root / "run.lock").read_bytes()
    lock = RunLock(root)
    with pytest.raises(RunInUseError) as refused:
        lock.acquire()
    assert f"{root} is in use by another run (process {process.pid} on " in str(refused.value)
    assert refused.value.exit_code == 2 and "\n" not in str(refused.value)
    assert (root / "run.lock").read_bytes() == said
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lock.left_by_a_run()
    lock.acquire()
    assert json.loads((root / "run.lock").read_bytes())["pid"] == os.getpid()
    # Refused after all: what the killed process left says again what it said.
    lock.release(begun=False, keep=False)
    assert (root / "run.lock").read_bytes() == said
    lock.acquire()
    lock.release(begun=True, keep=False)
    assert root.is_dir() and not list(root.iterdir())


def test_a_start_that_never_became_a_run_leaves_nothing(tmp_path):
    lock = RunLock(tmp_path / "a" / "b" / "run")
    lock.acquire()
    assert [path.name for path in (tmp_path / "a" / "b" / "run").iterdir()] == ["run.lock"]
    lock.release(begun=False, keep=False)
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    lock = RunLock(tmp_path / "mine")
    lock.acquire()
    lock.release(begun=False, keep=False)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]  # it was there before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"mine",
        b"[1]",
        b'{"strive_run": true, "pid": "x", "host": "h"}',
        b'{"pid": 1, "host": "h"}',
        b"\xff",
    ],
)
def test_a_lock_file_that_no_run_wrote_is_refused_and_stays(tmp_path, content):
    file = tmp_path / "run.lock"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run.lock was not written by a run"):
        RunLock(tmp_path).acquire()
    assert file.read_bytes() == content


def test_of_starts_at_once_one_wins(tmp_path):
    """Threads, each with an open file of its own: for the kernel as good as processes."""
    root, num_starts = tmp_path / "new" / "run", 4
    for _ in range(50):
        together, all_tried = threading.Barrier(num_starts), threading.Barrier(num_starts)
        won, refused = [], []

        def start(together=together, all_tried=all_tried, won=won, refused=refused):
            lock = RunLock(root)
            together.wait()
            try:
                lock.acquire()
                won.append(lock)
            except CheckpointError as error:
                refused.append(error)
            all_tried.wait()
            lock.release(begun=False, keep=False)

        threads = [threading.Thread(target=start) for _ in range(num_starts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(refused)) == (1, num_starts - 1)


def test_no_two_hold_while_others_come_and_go(tmp_path):
    """The file is removed at every release, and with it the folder."""
    root, inside, most, turns = tmp_path / "run", [], [], []
    stop = threading.Event()

    def come_and_go():
        while not stop.is_set():
            lock = RunLock(root)
            try:
                lock.acquire()
            except CheckpointError:
                continue
            inside.append(lock)
            most.append(len(inside))
            inside.remove(lock)
            lock.release(begun=False, keep=False)
            turns.append(1)
            if len(turns) >= 300:
                stop.set()

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(turns) >= 300


def test_a_lock_on_a_file_that_was_just_removed_is_none(tmp_path, monkeypatch):
    first, second = RunLock(tmp_path / "run"), RunLock(tmp_path / "run")
    first.acquire()

    def after_the_first_has_gone(descriptor):
        first.release(begun=False, keep=False)
        return try_lock(descriptor)

    monkeypatch.setattr(run_lock, "try_lock", after_the_first_has_gone)
    second.acquire()
    monkeypatch.undo()
    with pytest.raises(RunInUseError):
        RunLock(tmp_path / "run").acquire()
    second.release(begun=False, keep=False)
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_lock, "try_lock", lambda descriptor: None)
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.acquire()
    second.acquire()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("file system without locks" in line for line in said)
    assert f"(run.lock names process {os.getpid()} on " in said[1]


def test_a_place_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot use run folder"):
        RunLock(tmp_path / "file" / "run").acquire()
    with pytest.raises(CheckpointError, match=r"cannot make /proc/nope/run.lock"):
        RunLock(Path("/proc/nope")).acquire()
    assert (tmp_path / "file").read_text() == "mine"
