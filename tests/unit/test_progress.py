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
