"""Every method's preset once on the lab: what a step of it takes, and what it comes to.

150 steps of one seed in the lab's world, 8 completions a question, then the lab's test questions:
accuracy, zero-std share, vision encodes, completions, log-prob passes and optimiser steps. One seed
says nothing about which method is better, and no claim is made of it. A run that is there is kept,
so that a call that was stopped goes on. Seconds are those of a few more steps of each method, one
method after another, at the end.

    python -m bench.methods [--workspace build/bench/methods] [--methods grpo,strive,...]
    python -m bench.methods --page-only
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import BUILD, RESULTS, OtherLoad, write_result
from strive.report.format import markdown_table, replace_section
from strive.report.tables import accuracy

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
METHODS = (
    "grpo", "strive", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "t_grpo", "reverse_reward",
    "reg_grpo", "share_advantage", "noisy_rollout", "ema_std",
    "strive+gspo", "strive+dapo", "strive+t_grpo",
)  # fmt: skip
"""Those that the lab's questions have a meaning for: no intervals, no two answers."""
LIKE_THE_OTHERS = {"noisy_rollout": 4, "share_advantage": 4}
"""Completions a variant of presets whose source has more than 8 a question."""
SCORER = "siglip2"
UNTIMED_STEPS, TIMED_STEPS = 2, 7
CLI = [sys.executable, "-m", "strive.cli"]
COSTS = {
    "cost/vision_encodes": "vision encodes",
    "cost/completions": "completions",
    "cost/logprob_passes": "log-prob passes",
    "cost/optimiser_steps": "optimiser steps",
}


def run_method(name: str, workspace: Path) -> dict[str, Any]:
    """Train and evaluate one preset, as a user does, in a process of its own each."""
    run_dir, out = workspace / "runs" / name, workspace / "runs" / f"{name}-test"
    if not (run_dir / "final").is_dir():
        train(name, workspace, run_dir)
    if not (out / "results.json").is_file():
        place = ["--out", str(out), "--workspace", str(workspace)]
        subprocess.run([*CLI, "evaluate", "--model", str(run_dir / "final"), *place], check=True)
    lines = read_metrics(run_dir)
    score = accuracy(json.loads((out / "results.json").read_text()))
    assert score is not None

    def mean(key: str) -> float:
        return float(np.mean([line[key] for line in lines if line.get(key) is not None]))

    return {
        "steps": len(lines),
        "accuracy": score["accuracy_percent"],
        "standard_error": score["standard_error"],
        "zero_std_fraction": mean("group/zero_std_fraction"),
        **{key.removeprefix("cost/"): mean(key) for key in COSTS},
    }


def train(name: str, workspace: Path, run_dir: Path, *more: str) -> None:
    """Train one preset on the lab, or go on."""
    configs = [part for preset in name.split("+") for part in ("--config", preset)]
    call = ["train", *configs, "--config", "lab", "--scorer", SCORER, "--run-dir", str(run_dir)]
    call += ["--workspace", str(workspace), "--set", "loggers=[]", *more]
    if name in LIKE_THE_OTHERS:
        call += ["--set", f"num_generations={LIKE_THE_OTHERS[name]}"]
    if (run_dir / "config.json").is_file():
        call.append("--resume")
    subprocess.run([*CLI, *call], check=True)


def seconds_of_step(name: str, workspace: Path) -> float:
    """Median seconds of a preset's steps but the first ones."""
    run_dir = workspace / "timed" / name
    shutil.rmtree(run_dir, ignore_errors=True)
    train(name, workspace, run_dir, "--steps", str(TIMED_STEPS + UNTIMED_STEPS))
    times = [line["time/step"] for line in read_metrics(run_dir)]
    return float(np.median(times[UNTIMED_STEPS:]))


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """A run's metrics, a step each."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


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
            f"{found['accuracy']:.1f} ± {found['standard_error']:.1f}",
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
    parser.add_argument("--workspace", type=Path, default=BUILD / "methods")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--page-only", action="store_true")
    asked = parser.parse_args(arguments)
    if not asked.page_only:
        place = ["--workspace", str(asked.workspace)]
        subprocess.run([*CLI, "precompute", "--scorer", SCORER, *place], check=True)
        names = asked.methods.split(",")
        found = {name: run_method(name, asked.workspace) for name in names}
        with OtherLoad() as others:
            for name in names:
                found[name]["seconds_per_step"] = seconds_of_step(name, asked.workspace)
        write_result("methods", {"methods": found, "cpu_share_of_others": others.share})
    figures = json.loads((RESULTS / "methods.json").read_text(encoding="utf-8"))["figures"]
    write_page(figures)


if __name__ == "__main__":
    main()
