"""The program for the first minutes on a GPU, tried on a CPU as a bare machine would meet it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import gpu_check
from bench.gpu_bundle import PUBLISHED, SOURCES, pinned
from bench.gpu_check import Part, check
from strive.experiments.workspace import Workspace, ensure_lab

ROOT = Path(__file__).parents[3]
# What a GPU machine does not have and is not given: decoders, scorers, search, Ray.
ABSENT = ("av", "decord", "torchcodec", "ffmpeg", "imageio_ffmpeg", "open_clip", "faiss", "polars",
          "ray", "ijson")  # fmt: skip
BLOCK = f"""
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}: as on a bare GPU machine")
sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine without them."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCK)
    paths = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


@pytest.mark.long
def test_the_path_imports_no_decoder_and_no_scorer(bare: dict[str, str]) -> None:
    modules = "bench.gpu_check, bench.gpu, bench.gpu_lab, strive.train.loop, strive.models.lora"
    code = f"import {modules}, deepspeed, peft, jiwer, rouge_score.rouge_scorer; print('imported')"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env=bare, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.stdout.endswith("imported\n"), done.stderr[-2000:]
    # The block blocks.
    run = [sys.executable, "-c", "import av"]
    done = subprocess.run(run, env=bare, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert "as on a bare GPU machine" in done.stderr


def test_no_part_stops_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figures = tmp_path / "out", tmp_path / "out" / "good.json"
    written = f"open({str(figures)!r}, 'w').write('{{\"speed\": 1.5}}'); print('a | b')"
    parts = [
        [Part("hangs", 1.0, ["-c", "import time; print('begun', flush=True); time.sleep(100)"]),
         Part("fails", 50.0, ["-c", "import sys; print('why'); sys.exit(3)"])],
        [Part("good", 50.0, ["-c", written], figures)],
    ]  # fmt: skip
    monkeypatch.setattr(gpu_check, "stages", lambda *_: parts)
    started = time.perf_counter()
    assert not check(out, tmp_path, seconds=100, tiny=True, only=[])
    assert time.perf_counter() - started < 40
    found = json.loads((out / "gpu_check.json").read_text())["figures"]
    assert {name: (part["ok"], part["timed_out"], part["exit_code"], part["last_line"])
            for name, part in found.items()} == {
        "hangs": (False, True, -9, "begun"),
        "fails": (False, False, 3, "why"),
        "good": (True, False, 0, "a | b"),
    }  # fmt: skip
    assert found["good"]["figures"] == {"speed": 1.5} and found["hangs"]["seconds"] < 10
    text = (out / "gpu_check.md").read_text()
    assert "| hangs | **time over** |" in text and "| fails | **failed** |" in text
    assert "| speed | 1.5 |" in text and r"a \| b" in text and "```\nwhy\n```" in text
    assert "FAILED fails" in capsys.readouterr().out

    # One part alone; what lies beside its files is somebody's. No time for it is no success.
    (out / "mine.json").write_text("{}")
    assert check(out, tmp_path, seconds=100, tiny=True, only=["good"])
    assert list(json.loads((out / "gpu_check.json").read_text())["figures"]) == ["good"]
    assert not check(out, tmp_path, seconds=0, tiny=True, only=["good"])
    assert "FAILED no time left for good" in capsys.readouterr().out
    assert (out / "mine.json").read_text() == "{}" and not (out / "gpu_check.json").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--only", "lab-qwen3vl", "--tiny"], "invalid choice: 'lab-qwen3vl'"),
        (["--tiny"], "no lab cache in nowhere; make it with: strive-cli precompute"),
        ([], "no GPU here"),
    ],
)
def test_wrong_calls(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_check", "--workspace", "nowhere", *arguments])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    assert ended.value.code == 2 and line in capsys.readouterr().err


def test_parts_are_those_that_can_be_named() -> None:
    for tiny in (False, True):
        planned = gpu_check.stages(Path("out"), Path("workspace"), tiny)
        assert [part.name for stage in planned for part in stage] == list(gpu_check.PARTS)


def test_what_is_carried_is_pinned() -> None:
    for line in pinned(PUBLISHED + SOURCES):
        assert line.count("==") == 1


@pytest.mark.long
@pytest.mark.timeout(900)
def test_all_of_it_on_a_cpu(bare: dict[str, str], tmp_path: Path) -> None:
    ensure_lab(Workspace(tmp_path), num_clips=5, seed=0)
    precompute = ["precompute", "--scorer", "siglip2", "--workspace", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "strive.cli", *precompute], cwd=ROOT, check=True)
    out = tmp_path / "out"
    call = [sys.executable, "-m", "bench.gpu_check", "--tiny", "--workspace", str(tmp_path)]
    done = subprocess.run(
        [*call, "--out", str(out)], env=bare, cwd=ROOT, capture_output=True, text=True, timeout=800
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + (out / "gpu_check.md").read_text()
    found = json.loads((out / "gpu_check.json").read_text())["figures"]
    names = ["tests", "lab-qwen2_5_vl", "lab-qwen3_vl", "step-short", "step-long"]
    assert list(found) == names and all(part["ok"] for part in found.values())
    for family in ("qwen2_5_vl", "qwen3_vl"):
        runs = found[f"lab-{family}"]["figures"]
        assert list(runs) == ["defaults", "lora", "zero3"]
        for run in runs.values():
            assert run["wrong"] == [] and run["loss/kl"][0] == 0 < run["loss/kl"][2]
    step = found["step-long"]["figures"]["figures"]
    assert step["step"]["rollout_mismatch"] < 1e-4 and step["decode_step"]["kernels_per_step"] > 0
