"""Every method's preset once on the lab: what a step of it takes, and what it comes to.

150 steps of one seed over the lab's frozen world, then the held-out questions: accuracy, zero-std
share, seconds, vision encodes, completions, log-prob passes and optimiser steps a question. One
seed says nothing about which method is better, and no claim is made of it. A run that is there is
kept, so that a call that was stopped goes on.

    python -m bench.methods [--workspace strive-workspace] [--methods grpo,strive,...]
    python -m bench.methods --page-only
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import RESULTS, write_result
from strive.report.format import markdown_table, replace_section

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
METHODS = (
    "grpo", "strive", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "t_grpo", "reverse_reward",
    "reg_grpo", "share_advantage", "noisy_rollout", "ema_std",
    "strive+gspo", "strive+dapo", "strive+t_grpo",
)  # fmt: skip
"""Those that the lab's questions have a meaning for: no intervals, no two answers."""
COSTS = {
    "cost/vision_encodes": "vision encodes",
    "cost/completions": "completions",
    "cost/logprob_passes": "log-prob passes",
    "cost/optimiser_steps": "optimiser steps",
}


def run_method(name: str, workspace: Path) -> dict[str, Any]:
    """Train and evaluate one preset, as a user does, in a process of its own each."""
    run_dir, out = workspace / "methods" / name, workspace / "methods" / f"{name}-held-out"
    configs = [part for preset in name.split("+") for part in ("--config", preset)]
    place = ["--workspace", str(workspace)]
    cli = [sys.executable, "-m", "strive.cli"]
    started = time.perf_counter()
    if not (run_dir / "final").is_dir():
        resume = ["--resume"] if (run_dir / "config.json").is_file() else []
        call = ["train", *configs, "--config", "lab", "--run-dir", str(run_dir), *resume, *place]
        subprocess.run([*cli, *call], check=True)
    seconds = time.perf_counter() - started
    if not (out / "results.json").is_file():
        asked = ["evaluate", "--model", str(run_dir / "final"), "--out", str(out), *place]
        subprocess.run([*cli, *asked], check=True)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    overall = json.loads((out / "results.json").read_text())["benchmarks"]["lab"]

    def mean(key: str) -> float:
        return float(np.mean([line[key] for line in lines if line.get(key) is not None]))

    return {
        "steps": len(lines),
        "accuracy": overall["accuracy"],
        "seconds_per_step": float(np.median([line["time/step"] for line in lines])),
        "seconds": seconds,
        "zero_std_fraction": mean("group/zero_std_fraction"),
        **{key.removeprefix("cost/"): mean(key) for key in COSTS},
    }


def cost_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """Table of what a step takes."""
    rows = [
        [name, *(f"{found[key.removeprefix('cost/')]:.3g}" for key in COSTS)]
        for name, found in figures["methods"].items()
    ]
    yield ""
    yield from markdown_table(["preset", *COSTS.values()], rows).rstrip("\n").split("\n")
    yield ""


def lab_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """Table of what the runs came to."""
    rows = [
        [
            name,
            f"{found['accuracy']:.1f}",
            f"{100 * found['zero_std_fraction']:.1f}",
            f"{found['seconds_per_step']:.2f}",
        ]
        for name, found in figures["methods"].items()
    ]
    headers = ["preset", "held-out accuracy, %", "zero-std groups, %", "seconds a step"]
    yield ""
    yield from markdown_table(headers, rows).rstrip("\n").split("\n")
    yield ""


def write_page(figures: Mapping[str, Any]) -> None:
    """Put both tables into the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in (("costs", cost_lines(figures)), ("lab", lab_lines(figures))):
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        text = replace_section(text, begin, end, "\n".join(lines))
    PAGE.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, write the result and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, default=Path("strive-workspace"))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--page-only", action="store_true")
    asked = parser.parse_args(arguments)
    if not asked.page_only:
        found = {name: run_method(name, asked.workspace) for name in asked.methods.split(",")}
        write_result("methods", {"methods": found})
    figures = json.loads((RESULTS / "methods.json").read_text(encoding="utf-8"))["figures"]
    write_page(figures)


if __name__ == "__main__":
    main()
