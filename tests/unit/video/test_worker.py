import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from strive.errors import DecodeError
from strive.video.decode import decode_frames, decode_in_worker
from strive.video.frame_plan import FramePlan
from strive.video.worker import Job, Worker, WorkerPool
from video import jobs
from video.coded_clips import remux, write_clip
from video.jobs import is_alive


@pytest.fixture(autouse=True)
def importable_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(__file__).parents[1])
    others = [path for path in (os.environ.get("PYTHONPATH"),) if path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, *others]))


def test_a_hang_is_killed_and_the_worker_replaced() -> None:
    worker = Worker()
    first = worker.call(jobs.own_pid, {}, 10)
    started = time.monotonic()
    with pytest.raises(DecodeError) as caught:
        worker.call(jobs.hang, {}, 0.3)
    assert caught.value.kind == "timeout"
    assert time.monotonic() - started < 3
    assert not is_alive(first)
    assert worker.call(jobs.answer, {"value": 4}, 10) == 8
    worker.close()


def test_a_crash_and_a_bug_are_decode_errors() -> None:
    worker = Worker()
    for function, kind, text in (
        (jobs.crash, "crashed", "SIGSEGV"),
        (jobs.fail, "some_kind", "some message"),
        (jobs.bug, "unexpected", "KeyError"),
    ):
        with pytest.raises(DecodeError, match=text) as caught:
            worker.call(function, {}, 10)
        assert caught.value.kind == kind
    last = worker.call(jobs.own_pid, {}, 10)
    worker.close()
    assert not is_alive(last)


def test_a_job_that_asks_for_too_much_memory_fails_alone() -> None:
    worker = Worker()
    pid = worker.call(jobs.own_pid, {}, 10)
    with pytest.raises(DecodeError) as caught:
        worker.call(jobs.swallow_memory, {"num_gibibytes": 64}, 10)
    assert caught.value.kind == "out_of_memory"
    assert worker.call(jobs.own_pid, {}, 10) == pid
    worker.close()


def test_a_job_that_decodes_a_whole_file_gets_the_time_for_it() -> None:
    worker = Worker()
    assert worker.call(jobs.answer, {"value": 1}, 10) == 2  # it has started
    assert worker.call(jobs.ask_and_sleep, {"asked": 5.0, "slept": 1.0}, 0.3) == "done"
    assert worker.call(jobs.ask_and_sleep, {"asked": 0.01, "slept": 0.1}, 5) == "done"
    with pytest.raises(DecodeError, match=r"timeout: killed after 0\.6 s"):
        worker.call(jobs.ask_and_sleep, {"asked": 0.6, "slept": 60.0}, 0.2)
    worker.close()


def test_time_asked_for_is_half_of_what_the_file_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    monkeypatch.setattr("strive.video.whole.ask_for_time", asked.append)
    decode_frames(write_clip(tmp_path / "a.mp4", 50), FramePlan())
    assert asked == []  # the packets tell the pictures
    decode_frames(write_clip(tmp_path / "a.mpg", 50, codec="mpeg1video"), FramePlan())
    assert asked == [pytest.approx(1.0, abs=0.05)]
    # A file may state any times: two pictures do not take an hour to decode.
    decode_frames(write_clip(tmp_path / "b.mkv", 2, fps=1e-4, codec="wmv2"), FramePlan())
    assert asked[1:] == [1.0]


def test_temporary_files_go_with_the_worker() -> None:
    worker = Worker()
    folder = Path(worker.call(jobs.leave_a_file, {}, 10))
    assert folder.is_dir()
    with pytest.raises(DecodeError):
        worker.call(jobs.hang, {}, 0.2)
    assert folder.parent.name.startswith("strive-worker-")
    assert not folder.exists() and not folder.parent.exists()


def test_a_repair_that_is_killed_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    short = write_clip(tmp_path / "short.mp4", 100)
    path = remux(short, tmp_path / "long.mp4", stream_loop=400)
    worker = Worker()
    folder = Path(worker.call(jobs.leave_a_file, {}, 10)).parent
    with pytest.raises(DecodeError, match="timeout"):
        worker.call(jobs.start_ffmpeg, {"path": path}, 0.8)
    assert not folder.exists()
    deadline = time.monotonic() + 5
    while ffmpegs_on(path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ffmpegs_on(path) == []


def ffmpegs_on(path: Path) -> list[int]:
    """Processes other than this one that name a file in their command."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and os.fsencode(path) in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_pool_gives_every_job_its_outcome() -> None:
    all_jobs = [Job(str(i), {"value": i}) for i in range(10)]
    with WorkerPool(jobs.mixed, all_jobs, num_workers=2, timeout_seconds=0.5) as pool:
        outcomes = {outcome.key: outcome for outcome in pool}
    kinds = {key: outcome.error.kind for key, outcome in outcomes.items() if outcome.error}
    assert kinds == {"3": "timeout", "5": "crashed", "7": "some_kind"}
    values = {int(key): outcome.value for key, outcome in outcomes.items() if not outcome.error}
    assert values == {i: 2 * i for i in (0, 1, 2, 4, 6, 8, 9)}


def test_pool_retries_what_the_caller_changes() -> None:
    def other_value(job: Job, error: DecodeError) -> Job | None:
        return Job(job.key, {"value": 4}) if error.kind == "crashed" else None

    with WorkerPool(jobs.mixed, [Job("a", {"value": 5})], num_workers=1, retry=other_value) as pool:
        assert [outcome.value for outcome in pool] == [8]


def test_leaving_the_pool_early_leaves_no_process() -> None:
    all_jobs = [Job("pid", {}), *(Job(str(i), {}) for i in range(50))]
    with WorkerPool(jobs.own_pid, all_jobs, num_workers=2) as pool:
        pids = {next(iter(pool)).value for _ in range(4)}
    assert not any(is_alive(pid) for pid in pids)


def test_workers_die_with_a_parent_that_is_killed() -> None:
    script = textwrap.dedent("""
        from video import jobs
        from strive.video.worker import Worker
        worker = Worker()
        print(worker.call(jobs.own_pid, {}, 20), flush=True)
        worker.call(jobs.hang, {}, 600)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(pid)


def test_decode_in_worker(media: Path) -> None:
    for _ in range(2):
        video = decode_in_worker(media / "plain.mp4", FramePlan("uniform", 8), max_pixels=2000)
        assert len(video.frames_FHWC) == 8
    with pytest.raises(DecodeError, match="no_video_stream"):
        decode_in_worker(media / "audio.mp4", FramePlan())


def test_files_of_the_working_directory_do_not_shadow_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(tmp_path)
    worker = Worker()
    assert worker.call(jobs.answer, {"value": 1}, 10) == 2
    worker.close()
