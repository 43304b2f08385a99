"""The first minutes on a GPU: what only a GPU shows, in order of what it would cost to find late.

1. the tests that need one, and three steps of the lab by both families (`bench.gpu_lab`), at once;
2. a step of 7B shapes with short completions (`bench.gpu`);
3. the same with longer ones, if the time allows.

Each part is a process with a time limit of its own, and none stops the next. `gpu_check.json` and a
page, `gpu_check.md`, are written after every part; each part's output is in `PART.log`. Exit code 1
if any part failed. `docs/gpu.md` says how to bring all of it to a machine without a network.

    python -m bench.gpu_check --workspace DIR [--out DIR] [--seconds 540] [--tiny]

`--tiny` goes the same way on a CPU: the tests are collected, not run, and the model is small.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.harness import BUILD, flat, write_result
from strive.train.watch import KL_BOUNDS, MISMATCH_BOUNDS

ROOT = Path(__file__).parents[1]
GPU_TESTS = ("tests/unit/models/test_on_gpu.py",)
FAMILIES = ("qwen2_5_vl", "qwen3_vl")
PARTS = ("tests", "lab-qwen2_5_vl", "lab-qwen3_vl", "step-short", "step-long")
LEAST_SECONDS = 30
"""With less time left no part is begun."""
TAIL = 3000
"""Characters of a failed part's output that go into the page."""
PACKAGES = ("torch", "triton", "transformers", "deepspeed", "peft", "pyarrow")


LAB_NOTE = (
    "Three values are those of steps 1 to 3; times are seconds, the first with compiling. In step "
    f"1 `loss/kl` must be at most {KL_BOUNDS['cuda']:g} and `policy/rollout mismatch` at most "
    f"{MISMATCH_BOUNDS['bfloat16']:g}; `wrong` lists what is not as it must be."
)


@dataclass(frozen=True)
class Part:
    """One process: `python ARGUMENTS`."""

    name: str
    limit_seconds: float
    arguments: Sequence[str]
    figures: Path | None = None
    """What it writes, as far as it comes."""


def stages(out: Path, workspace: Path, tiny: bool) -> list[list[Part]]:
    """The parts; those of one stage run at once, since nothing in them is timed."""
    collect = ["--collect-only"] if tiny else []
    tests = Part("tests", 240, ["-m", "pytest", "-m", "gpu", *collect, *GPU_TESTS])
    labs = [
        Part(
            f"lab-{family}",
            300,
            ["-m", "bench.gpu_lab", family, "--workspace", str(workspace), "--out", str(figures)],
            figures,
        )
        for family in FAMILIES
        for figures in [out / f"lab-{family}.json"]
    ]

    def step(name: str, limit_seconds: float, tokens: int, repeats: int) -> Part:
        figures = out / f"{name}.json"
        size = ["--tiny"] if tiny else []
        numbers = ["--tokens", str(tokens), "--repeats", str(repeats), "--out", str(figures)]
        return Part(name, limit_seconds, ["-m", "bench.gpu", *numbers, *size], figures)

    if tiny:
        return [[tests, *labs], [step("step-short", 240, 4, 1)], [step("step-long", 240, 8, 1)]]
    return [[tests, *labs], [step("step-short", 300, 48, 1)], [step("step-long", 400, 256, 2)]]


class Running:
    """A part while it runs, in a process group of its own, so that all of it can be ended."""

    def __init__(self, part: Part, out: Path, seconds: float) -> None:
        self.part, self.seconds = part, seconds
        self.log = out / f"{part.name}.log"
        self.started = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *part.arguments],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"},
                start_new_session=True,
            )

    def finish(self) -> dict[str, Any]:
        """Wait until it ends or its time is over; what became of it."""
        timed_out = False
        try:
            self.process.wait(max(0.0, self.started + self.seconds - time.perf_counter()))
        except subprocess.TimeoutExpired:
            timed_out = True
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        output = self.log.read_text(encoding="utf-8", errors="replace").rstrip()
        ok = self.process.returncode == 0
        figures = self.part.figures
        return {
            "ok": ok,
            "exit_code": self.process.returncode,
            "timed_out": timed_out,
            "seconds": round(time.perf_counter() - self.started, 1),
            "limit_seconds": round(self.seconds, 1),
            "command": " ".join(["python", *self.part.arguments]),
            "last_line": output.rpartition("\n")[2][:300],
            "tail": "" if ok else output[-TAIL:],
            "figures": json.loads(figures.read_text()) if figures and figures.is_file() else None,
        }


def page(parts: Mapping[str, Mapping[str, Any]], machine: str) -> str:
    """The page for a person: a line for each part, what it measured, and how it failed."""
    lines = [
        "# GPU check",
        "",
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, {machine}",
        "",
        "| part | | seconds | last line |",
        "|---|---|---|---|",
    ]
    for name, part in parts.items():
        state = "ok" if part["ok"] else "**time over**" if part["timed_out"] else "**failed**"
        last = part["last_line"].replace("|", "\\|")
        lines.append(f"| {name} | {state} | {part['seconds']} | {last} |")
    for name, part in parts.items():
        if part["figures"]:
            figures = part["figures"].get("figures", part["figures"])
            lines += ["", f"## {name}", ""]
            if name.startswith("lab-"):
                lines += [LAB_NOTE, ""]
            lines += ["| figure | value |", "|---|---|"]
            lines += [f"| {path} | {value} |" for path, value in flat(figures)]
    for name, part in parts.items():
        if part["tail"]:
            lines += ["", f"## {name}: the end of its output", "", "```", part["tail"], "```"]
    return "\n".join(lines) + "\n"


def check(out: Path, workspace: Path, *, seconds: float, tiny: bool, only: Sequence[str]) -> bool:
    """Run all parts, as far as the time goes; whether each was right."""
    out.mkdir(parents=True, exist_ok=True)
    planned = stages(out, workspace, tiny)
    names = [part.name for stage in planned for part in stage if not only or part.name in only]
    for name in ("gpu_check", *names):  # of an earlier call, and nothing else
        for end in (".json", ".log", ".md"):
            (out / f"{name}{end}").unlink(missing_ok=True)
    deadline = time.perf_counter() + seconds
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: a CPU"
    where = f"{gpu}, tiny models" if tiny else gpu
    found: dict[str, dict[str, Any]] = {}
    for stage in planned:
        left = deadline - time.perf_counter()
        parts = [part for part in stage if part.name in names]
        if left < LEAST_SECONDS:
            continue
        running = [Running(part, out, min(part.limit_seconds, left)) for part in parts]
        with ThreadPoolExecutor(len(running) or 1) as pool:
            results = list(pool.map(Running.finish, running))
        for one, result in zip(running, results, strict=True):
            found[one.part.name] = result
            state = "ok" if result["ok"] else "FAILED"
            print(f"{state:6} {one.part.name:16} {result['seconds']:6} s  {result['last_line']}")
            sys.stdout.flush()
            write_result("gpu_check", found, packages=PACKAGES, path=out / "gpu_check.json")
            (out / "gpu_check.md").write_text(page(found, where), encoding="utf-8")
    late = [name for name in names if name not in found]
    if late:
        print(f"FAILED no time left for {', '.join(late)}: give more --seconds", flush=True)
    return not late and all(result["ok"] for result in found.values())


def main() -> None:
    """Read the call and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True, help="holds the lab's cache")
    parser.add_argument("--out", type=Path, default=BUILD / "gpu_check")
    parser.add_argument("--seconds", type=float, default=540, help="for all parts together")
    parser.add_argument(
        "--only", action="append", default=[], choices=PARTS, help="this part; repeatable"
    )
    parser.add_argument("--tiny", action="store_true", help="on a CPU")
    asked = parser.parse_args()
    if not asked.tiny and not torch.cuda.is_available():
        parser.error("no GPU here (--tiny goes the same way on a CPU)")
    if not (asked.workspace / "lab" / "cache" / "cache.json").is_file():
        parser.error(
            f"no lab cache in {asked.workspace}; make it with: strive-cli precompute --scorer "
            f"siglip2 --workspace {asked.workspace}"
        )
    if asked.out.exists() and not asked.out.is_dir():
        parser.error(f"--out {asked.out} is not a folder")
    ok = check(
        asked.out.resolve(),
        asked.workspace.resolve(),
        seconds=asked.seconds,
        tiny=asked.tiny,
        only=asked.only,
    )
    if (asked.out / "gpu_check.json").is_file():
        print(f"wrote {asked.out / 'gpu_check.json'} and gpu_check.md beside it")
    sys.exit(not ok)


if __name__ == "__main__":
    main()
