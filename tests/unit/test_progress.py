import os
import pty
import subprocess
import sys

import pytest

from strive import progress


def test_plain_lines_when_stderr_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.show_progress("decode", 2, "videos") as bar:
        bar.note("1 failed")
        bar.advance()
        bar.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("decode: 1/2 videos") and lines[0].endswith("1 failed")
    assert "ETA" in lines[0]
    assert lines[-1].startswith("decode: 2/2 videos") and "ETA" not in lines[-1]


def test_a_line_is_left_even_when_the_work_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(RuntimeError, match="stop"),
        progress.show_progress("train", 5, "steps") as bar,
    ):
        bar.advance(3)
        raise RuntimeError("stop")
    assert "train: 3/5 steps" in capsys.readouterr().err


def test_a_start_that_is_refused_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(RuntimeError, match="stop"),
        progress.show_progress("train", 5, "steps"),
    ):
        raise RuntimeError("stop")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.234, "1.23"), (-999999.0, "-999999.00"), (1e300, "1e+300"), (float("nan"), "nan")],
)
def test_no_number_takes_a_line(value: float, text: str) -> None:
    assert progress.number_text(value) == text


def test_several_notes_are_one_plain_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with progress.show_progress("train", 150, "steps") as bar:
        bar.note("reward 1.42", "", "step 3.0 s")
        bar.advance()
    assert capsys.readouterr().err.splitlines()[0].endswith("; reward 1.42; step 3.0 s")


def test_the_rate_is_that_of_this_call_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.show_progress("train", 150, "steps") as bar:
        # Sixty seconds of loading, then the first step of a run that is resumed after 100.
        now[0] = 1060.0
        bar.begin(100, 4.0)
        bar.advance()
    # 49 steps are left at 4 s each.
    assert "train: 101/150 steps, 4.0 s/step, ETA 196 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**41, "2.0 TiB")]
)
def test_sizes(num_bytes: int, text: str) -> None:
    assert progress.size_text(num_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.2 s"), (119.0, "119.0 s"), (120.0, "2.0 min"), (7200, "2.0 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.time_text(seconds) == text


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_shows_a_bar_with_the_figures_below(columns: int) -> None:
    code = (
        "from strive.progress import show_progress\n"
        "with show_progress('train', 150, 'steps') as bar:\n"
        "    bar.begin(100, 4.0)\n"
        "    bar.note('reward 1.42 [x]', 'step 3.0 s')\n"
        "    bar.advance()\n"
    )
    environment = {**os.environ, "COLUMNS": str(columns), "LINES": "40", "TERM": "xterm"}
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=slave, stdout=subprocess.PIPE, env=environment
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:
            break  # the other side is closed: that is how a terminal ends
        if not part:
            break
        shown += part
    assert process.wait() == 0
    text = shown.decode()
    assert "101/150" in text and "4.0 s/step" in text and "ETA 0:03:1" in text
    assert "reward 1.42 [x]" in text and "step 3.0 s" in text
