"""How errors leave the command line: one line and an exit code; a traceback when asked for."""

import os
import sys
from pathlib import Path

import pytest

from strive import cli
from strive.errors import CheckpointError, DiskError, ModelError


def call(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException | None,
    *arguments: str,
    **environment: str,
) -> tuple[int, list[str]]:
    """Make a call that ends with an error; its exit code and what it says."""

    def app(**options: object) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["strive-cli", *arguments])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stderr = sys.stderr
    with pytest.raises(SystemExit) as ended:
        cli.main()
    monkeypatch.setattr(sys, "stderr", stderr)
    return int(ended.value.code or 0), capsys.readouterr().err.splitlines()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.parametrize(
    "error",
    [
        KeyError("pixels\nerror: \x1b[2J"),
        AssertionError(),
        OSError("odd"),
        RuntimeError("x" * 9000),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_nobody_foresaw_is_one_line_with_its_trace_in_a_file(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    error: Exception,
) -> None:
    code, said = call(monkeypatch, capsys, error, "train", "--steps", "3")
    [line], [file] = said, list(tmp_path.iterdir())
    assert code == 1 and line.startswith(f"error: {type(error).__name__}: ")
    assert line.endswith(f"(not foreseen; its traceback is in {file}, --traceback prints it)")
    assert "\x1b" not in line and len(line) < 800
    text = file.read_text()
    assert text.startswith("strive-cli train --steps 3\nTraceback") and "in app" in text


def test_a_traceback_is_printed_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, code in ((KeyError("pixels"), 1), (ModelError("no model"), 2)):
        for arguments in (("--traceback", "train"), ("train", "--traceback")):
            found, said = call(monkeypatch, capsys, error, *arguments)
            assert found == code and said[0].startswith("Traceback") and said[-1][:7] == "error: "
            assert sum(line.startswith("Traceback") for line in said) == 1
            assert sys.argv == ["strive-cli", "train"]


def test_processes_of_a_launcher_say_what_they_share_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    second = {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}
    # Before they have met each other, what is wrong is the call, the same for all.
    monkeypatch.setattr(cli, "_has_joined_others", lambda: False)
    assert call(monkeypatch, capsys, ModelError("no model"), **second) == (2, [])
    # From then on it may be this process's alone, unless the main one says it.
    monkeypatch.setattr(cli, "_has_joined_others", lambda: True)
    error = ModelError("no model")
    assert call(monkeypatch, capsys, error, **second) == (2, ["error: no model"])
    error.is_told = True
    assert call(monkeypatch, capsys, error, **second) == (2, [])
    _, [line] = call(monkeypatch, capsys, KeyError("pixels"), **second)
    assert line.startswith("error: [rank1] KeyError: 'pixels' (not foreseen")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ["interrupted; the same command goes on where it stopped"]),
        (CheckpointError("in use"), 2, ["error: in use"]),
        (DiskError("full"), 1, ["error: full"]),
        (None, 0, []),
    ],
)
def test_foreseen_ends(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    error: BaseException | None,
    code: int,
    said: list[str],
) -> None:
    assert call(monkeypatch, capsys, error, "train") == (code, said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("train", "--run-dir", ""), "--run-dir"),
        (("train", "--run-dir="), "--run-dir"),
        (("precompute", "--cache=", "--dry-run"), "--cache"),
        (("report", ""), "report"),
        (("",), "the first argument"),
    ],
)
def test_an_empty_text_is_no_folder(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    name: str,
) -> None:
    code, [line] = call(monkeypatch, capsys, None, *arguments)
    assert code == 2 and line.startswith(f"error: {name} is given an empty text")
    assert call(monkeypatch, capsys, None, "train", "--set", "held_out=") == (0, [])


def test_a_trace_that_cannot_be_written_is_no_second_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    code, [line] = call(monkeypatch, capsys, KeyError("pixels"))
    assert (code, line) == (1, "error: KeyError: 'pixels' (not foreseen; --traceback prints where)")
    assert os.listdir(tmp_path) == []
