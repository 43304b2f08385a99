"""One contender of `bench.step` in a process of its own, and the other end that starts and asks it.

A worker loads, says so, and then answers one command a line: `step NUMBER TOKENS`, and some of them
`logprobs NUMBER TOKENS` or `rollout NUMBER TOKENS`. Answers are JSON lines; the end of its input
ends it. Memory is the peak of resident memory (VmHWM) above what was resident once everything was
loaded.

    python -m bench.step_worker CONTENDER '{"folder": ..., ...}'
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from bench.step_model import Setup

ROOT = Path(__file__).parents[1]


class Worker:
    """A started worker process."""

    def __init__(self, contender: str, setup: Setup) -> None:
        threads = str(setup.num_threads)
        # Every library gets the same number of threads, and none may look for a hub.
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.contender = contender
        self.log = open(ROOT / "build" / "bench" / f"step-{contender}.log", "w")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.step_worker", contender, json.dumps(asdict(setup))],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.about = self._answer()

    def ask(self, command: str, number: int, num_tokens: int) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command} {number} {num_tokens}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.close()
            raise SystemExit(f"{self.contender} ended:\n{Path(self.log.name).read_text()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def resident_bytes(name: str = "VmRSS") -> int:
    """Resident memory of this process: now (VmRSS) or at its peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {name}")


class _Channel:
    """Commands in, answers out; whatever libraries print goes to the log."""

    def __init__(self) -> None:
        self.out: TextIO = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.baseline = 0

    def commands(self) -> Iterator[tuple[str, int, int]]:
        for line in sys.stdin:
            command, number, num_tokens = line.split()
            yield command, int(number), int(num_tokens)

    def ready(self, **about: Any) -> None:
        self.baseline = resident_bytes()
        self.send({"loaded_bytes": self.baseline, **about})

    def send(self, answer: dict[str, Any]) -> None:
        peak = resident_bytes("VmHWM") - self.baseline
        print(json.dumps(answer | {"peak_bytes": peak}), file=self.out, flush=True)


def main() -> None:
    """Serve one contender until the input ends."""
    channel = _Channel()
    contender, setup = sys.argv[1], Setup(**json.loads(sys.argv[2]))
    import torch

    torch.set_num_threads(setup.num_threads)
    if contender == "trl":
        from bench.step_trl import run_trainer

        steps = ((number, tokens) for _, number, tokens in channel.commands())
        run_trainer(setup, channel.ready, steps, channel.send)
        return
    if contender == "ours":
        from bench.step_ours import Ours

        ours = Ours.of(setup)
        answers, about = {"step": ours.step, "logprobs": ours.logprobs}, ours.num_parameters
    else:
        from bench.step_rows import SeparateRows

        rows = SeparateRows(setup)
        answers = {"step": rows.step, "logprobs": rows.logprobs, "rollout": rows.rollout}
        about = {}
    channel.ready(parameters=about)
    for command, number, num_tokens in channel.commands():
        channel.send(answers[command](number, num_tokens))


if __name__ == "__main__":
    main()
