"""Runs on several processes, for tests."""

import json
import os
import subprocess
import sys
from pathlib import Path


def several_processes(lab, root, runs, count=2):
    """Run all of `runs` in turn by the same `count` processes."""
    root.mkdir()
    (root / "runs.json").write_text(json.dumps(runs))
    # Under the presets' threshold every weight of a tiny model stays whole on every process.
    preset = {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 20000,
    }
    (root / "all_partitioned.json").write_text(json.dumps({"zero_optimization": preset}))
    environment = os.environ | {
        "PYTHONPATH": f"{lab}{os.pathsep}{Path(__file__).parents[2]}",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    script = Path(__file__).with_name("in_turn.py")
    call = [sys.executable, *launcher, str(script), str(root)]
    subprocess.run(call, env=environment, check=True, timeout=280)
