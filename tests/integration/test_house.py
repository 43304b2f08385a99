"""The house: what loads quickly loads nothing heavy, and the repository keeps its own rules."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from strive.doctor import USES

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "open_clip", "deepspeed", "decord", "matplotlib")
COMMANDS = (
    ["--help"],
    ["precompute", "--help"],
    ["train", "--help"],
    ["train", "--keys"],
    ["presets"],
    ["evaluate", "--help"],
    ["inspect-scores", "--help"],
    ["report", "--help"],
    ["lab", "--help"],
    ["lab", "list"],
    ["cache", "--help"],
    ["cache", "prune", "--help"],
    ["score-quality", "--help"],
    ["search", "--help"],
    ["--version"],
)


def modules_loaded_by(arguments: list[str]) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Run the command line in a fresh interpreter and return what it had imported at its end."""
    code = (
        "import sys, atexit, json\n"
        f"sys.argv = ['strive-cli', *{arguments!r}]\n"
        "atexit.register(lambda: print('MODULES ' + json.dumps(sorted(sys.modules)), "
        "file=sys.stderr))\n"
        "from strive.cli import main\n"
        "main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    line = [line for line in result.stderr.splitlines() if line.startswith("MODULES ")][-1]
    return result, set(json.loads(line.removeprefix("MODULES ")))


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_looking_loads_nothing_heavy(arguments: list[str]) -> None:
    result, modules = modules_loaded_by(arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert not modules & set(HEAVY)


@pytest.mark.parametrize("columns", [80, 160])
def test_help_fits_the_terminal(columns: int) -> None:
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "dumb"}
    for arguments in (["--help"], ["precompute", "--help"], ["train", "--help"]):
        result = subprocess.run(
            [sys.executable, "-m", "strive.cli", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        assert max(len(line) for line in result.stdout.splitlines()) <= columns


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["precompute", "--data", "nowhere.jsonl"], ["nowhere.jsonl", "--data"]),
        (["precompute", "--scorer", "siglip"], ["unknown scorer", "'siglip'", "siglip2"]),
        (["train", "--set", "num_varients=3"], ["num_varients", "num_variants"]),
        (["train", "--variants", "importence"], ["importence", "importance"]),
        (["train", "--config", "lab_striv"], ["lab_striv", "lab_strive"]),
        (["train"], ["no cache", "strive-cli precompute --scorer siglip2"]),
        (["inspect-scores"], ["no cache", "strive-cli precompute"]),
        (["inspect-scores", "--cache", "nowhere"], ["nowhere", "strive-cli precompute"]),
        (["report", "nowhere"], ["nowhere"]),
        (["evaluate", "--model", "nowhere/model"], ["nowhere/model"]),
        (["evaluate", "--benchmark", "labb"], ["labb", "lab"]),
        (["precompute", "--shard", "3/2"], ["3/2"]),
        (["precompute", "--dtype", "int8"], ["int8", "bfloat16"]),
        (["precomptue"], ["precomptue", "did you mean 'precompute'", "inspect-scores"]),
        (["train", "--set", "temperature=1"], ["here: sampling_temperature"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_calls_exit_2_with_one_clear_line(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "strive.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_a_workspace_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = subprocess.run(
        [sys.executable, "-m", "strive.cli", "precompute", "--workspace", str(tmp_path / "file")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: Not a directory: ")


def test_doctor_finds_what_the_lab_needs() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "strive.cli", "doctor", "--json"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    findings = {row["what"]: row for row in json.loads(result.stdout)}
    for what in ("Python", "torch", "transformers", "deepspeed", "FFmpeg binary (bundled)"):
        assert findings[what]["status"] == "ok"
    # What the verdict rests on is looked at.
    needed = {what for use in USES.values() for what in use}
    assert needed - set(findings) <= {"GPU"}
    assert "looking: 13/13 checks" in result.stderr
    # Whatever is not fine comes with what to do about it.
    assert all(row["fix"] for row in findings.values() if row["status"] != "ok")


# A decoder can fail in any way it likes: in its worker, that is one video's failure row.
# A stage's thread hands on whatever ends it: the caller raises it.
# A logger can fail in any way it likes: it is said, and training outlives its curves.
# The command line is the last place: whatever comes is one line, and the rest is in a file.
MAY_CATCH_ALL = {
    "strive/cli.py",
    "strive/video/worker.py",
    "strive/pipeline/embed.py",
    "strive/pipeline/queues.py",
    "strive/pipeline/ray_engine.py",
    "strive/train/loggers.py",
}


def test_no_bare_or_blanket_except() -> None:
    found = []
    for path in (ROOT / "strive").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                names = ast.unparse(node.type) if node.type else "(bare)"
                if names in {"(bare)", "Exception", "BaseException"} and not any(
                    isinstance(inner, ast.Raise) for inner in ast.walk(node)
                ):
                    found.append(str(path.relative_to(ROOT)))
    assert set(found) <= MAY_CATCH_ALL


def test_files_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "strive").rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 600
    }
    assert not long


def test_no_pickle_anywhere() -> None:
    loaders = {"load", "loads", "dump", "dumps", "Pickler", "Unpickler"}
    for path in (ROOT / "strive").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert not (node.value.id in {"pickle", "dill"} and node.attr in loaders), path
