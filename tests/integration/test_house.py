"""The house: what loads quickly loads nothing heavy, and the repository keeps its own rules."""

import ast
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from strive.cli import main
from strive.doctor import CHECKS, USES
from strive.lab.world import build_world

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


RUN_ALL = """
import json, sys
from strive.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["strive-cli", *arguments]
    try:
        main()
    except SystemExit as ended:
        print(json.dumps([ended.code, sorted(sys.modules)]), file=sys.stderr)
    print("END")
"""


def test_looking_loads_nothing_heavy() -> None:
    """One fresh interpreter runs them one after the other: what one loads stays loaded."""
    result = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(COMMANDS)],
        capture_output=True,
        text=True,
        check=True,
    )
    shown = result.stdout.split("END\n")[:-1]
    for arguments, text, line in zip(COMMANDS, shown, result.stderr.splitlines(), strict=True):
        code, modules = json.loads(line)
        assert not code and text.strip(), arguments
        assert not set(modules) & set(HEAVY), arguments


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
        (["evaluate", "--benchmark", "labb"], ["labb", "lab"]),
        (["precompute", "--shard", "3/2"], ["3/2"]),
        (["precompute", "--dtype", "int8"], ["int8", "bfloat16"]),
        (["precomptue"], ["precomptue", "did you mean 'precompute'", "inspect-scores"]),
        (["train", "--set", "temperature=1"], ["here: sampling_temperature"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_calls_exit_2_with_one_clear_line(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["strive-cli", *arguments])
    stderr = sys.stderr
    with pytest.raises(SystemExit) as ended:
        main()
    monkeypatch.setattr(sys, "stderr", stderr)
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert "Traceback" not in said and said.splitlines()[-1].startswith("error: ")
    for word in words:
        assert word in said


@pytest.mark.long
def test_a_model_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    build_world(tmp_path / "strive-workspace" / "lab", num_clips=5, seed=0)
    result = subprocess.run(
        [sys.executable, "-m", "strive.cli", "evaluate", "--model", "nowhere/model"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "nowhere/model" in result.stderr.splitlines()[-1]


def test_a_workspace_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = subprocess.run(
        [sys.executable, "-m", "strive.cli", "precompute", "--workspace", str(tmp_path / "file")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: Not a directory: ")


@pytest.mark.long
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
    assert f"looking: {len(CHECKS)}/{len(CHECKS)} checks" in result.stderr
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


def test_what_the_benches_and_recipes_import_of_the_package_is_there() -> None:
    """No type checker reads `bench/`, which nothing imports and no test runs whole."""
    lacking = []
    for path in [*(ROOT / "bench").glob("*.py"), *(ROOT / "recipes").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("strive"):
                module = importlib.import_module(str(node.module))
                for name in node.names:
                    if not hasattr(module, name.name):
                        place = f"{node.module}.{name.name}"
                        if importlib.util.find_spec(place) is None:
                            lacking.append(f"{path.name}: {place}")
    assert lacking == []
