"""Three steps of the lab in bfloat16 with all that is default on a GPU, and what they must show.

In turn, in one process: the preset as it is (compiled decoding, flex-attention, a reference copy),
LoRA, and ZeRO 3. Of each: rollout mismatch and the KL term of the first step within their bounds
(`strive.train.watch`), finite losses, a gradient. On a CPU the same steps without a compiler.

    python -m bench.gpu_lab qwen3_vl --workspace DIR --out FILE
"""

import argparse
import json
import math
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from strive.configs.load import Given
from strive.experiments.training import resolve_config, run_training
from strive.experiments.workspace import Workspace
from strive.train.watch import first_step_warnings

RUNS: dict[str, list[str]] = {
    "defaults": [],
    "lora": ["trainable=lora", "learning_rate=1e-4"],
    "zero3": ["deepspeed=zero3"],
}
STEPS = 3
SHOWN = (
    "loss/total",
    "loss/kl",
    "optim/grad_norm",
    "policy/rollout_mismatch",
    "policy/rollout_mismatch_max",
    "reward/mean",
    "time/step",
    "time/rollout",
    "time/logprob",
    "time/backward",
)


def run(family: str, changes: list[str], workspace: Path, run_dir: Path) -> dict[str, Any]:
    """Train `STEPS` steps; the figures of each, and what is wrong with them."""
    fixed = ["dtype=bfloat16", "evaluate_every=0", "checkpoint_every=0", "loggers=[]"]
    options = {"model": f"lab:{family}", "steps": STEPS}
    config, _ = resolve_config(
        Workspace(workspace), Given(overrides=[*fixed, *changes], options=options)
    )
    started = time.perf_counter()
    run_training(config, Workspace(workspace), run_dir=run_dir)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    wrong = list(
        first_step_warnings(
            lines[0],
            first_kl=lines[0]["loss/kl"],
            is_resumed=False,
            dtype=config.dtype,
            device_type="cuda" if torch.cuda.is_available() else "cpu",
        )
    )
    for name in SHOWN:
        if any(line[name] is None or not math.isfinite(line[name]) for line in lines):
            wrong.append(f"{name} is not finite")
    if not any((line["optim/grad_norm"] or 0) > 0 for line in lines):
        wrong.append("no step has a gradient")
    return {
        "seconds": time.perf_counter() - started,
        "wrong": wrong,
        **{name: [line[name] for line in lines] for name in SHOWN},
    }


def main() -> None:
    """Run all three; write the figures after each, and exit with 1 if any is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=("qwen2_5_vl", "qwen3_vl"))
    parser.add_argument("--workspace", type=Path, required=True, help="holds the lab's cache")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    figures: dict[str, Any] = {}
    for name, changes in RUNS.items():
        run_dir = asked.out.with_suffix("") / name
        shutil.rmtree(run_dir, ignore_errors=True)
        try:
            figures[name] = run(asked.family, changes, asked.workspace, run_dir)
        # Whatever stops one must not keep the others from being tried.
        except Exception as error:
            traceback.print_exc()
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            figures[name] = {"wrong": [f"stopped by {reason[:300]}"]}
        asked.out.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"{name}: {'; '.join(figures[name]['wrong']) or 'as it must be'}", flush=True)
    wrong = [name for name, result in figures.items() if result["wrong"]]
    print(f"wrong: {', '.join(wrong)}" if wrong else f"{', '.join(figures)}: as they must be")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
