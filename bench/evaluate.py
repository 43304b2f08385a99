r"""A whole evaluation against lmms-eval's Qwen2.5-VL wrapper: same model, questions and frames.

60 questions, three about each of 20 clips of 60 s 1280x720, a video's questions apart from each
other; 32 frames of at most 256*28*28 pixels, float32; answers of one length, because no token of
the model ends one. Both run as whole processes in turns, on the same cores. Ours runs once more as
a second model does that finds the frames kept. lmms-eval reads with decord through qwen-vl-utils
and runs a task made here, offline. `bench.calls` notes both sides' decodes, passes of the tower and
answers from outside: the counts come from there, and the time that goes by before the first of them
(imports, the model).

lmms-eval has an environment of its own, because its pins differ (filelock: it fails with 4):

    python -m venv build/peer
    build/peer/bin/pip install lmms-eval==0.7.3 decord qwen-vl-utils "filelock<4" \
        torch==2.14.1 torchvision==0.29.1 transformers==5.23.0
    python -m bench.evaluate [--peer-python build/peer/bin/python] [--repeats 2]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import calls
from bench.evaluate_setup import (
    FOLDER,
    MAX_PIXELS,
    NUM_FRAMES,
    NUM_TOKENS,
    PROMPT_TEMPLATE,
    TASK,
    make_peer_task,
    make_records,
    model_folder,
)
from bench.harness import OtherLoad, Timing, time_in_turns, write_result

PEER_PYTHON = "build/peer/bin/python"
NUM_CLIPS = 20
WANTED = 3.0
"""Questions a second of ours over the peer's, at least."""
TOWER = (
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:"
    "Qwen2_5_VisionTransformerPretrainedModel.forward"
)
OUR_CALLS = {
    "load": "strive.models.loading:load_policy",
    "decode": "strive.video.decode:decode_frames",
    "prepare": "strive.models.inputs:prepare_prompts",
    "tower": TOWER,
    "answer": "strive.models.decoding:Decoder.__call__",
}
PEER_CALLS = {
    "load": "lmms_eval.models.simple.qwen2_5_vl:Qwen2_5_VL.__init__",
    "decode": "qwen_vl_utils.vision_process:fetch_video",
    "prepare": "transformers.processing_utils:ProcessorMixin.__call__",
    "tower": TOWER,
    "answer": "transformers.generation.utils:GenerationMixin.generate",
}
"""What is noted of each side; the tower runs inside of an answer and counts in both."""


@dataclass
class Run:
    """One process: when it ran and what was noted of it."""

    started: float
    ended: float
    notes: list[dict[str, Any]]

    def of(self, name: str) -> list[dict[str, Any]]:
        """The notes of one kind of call."""
        return [found for found in self.notes if found["name"] == name]

    def seconds(self, name: str) -> float:
        """Seconds of all calls of a kind, added up; calls side by side count twice."""
        return sum(found["ended"] - found["started"] for found in self.of(name))

    @property
    def startup_seconds(self) -> float:
        """From the start of the process to the first decode, pass of the tower or answer."""
        work = [found["started"] for found in self.notes if found["name"] != "load"]
        return min(work) - self.started

    @property
    def work_seconds(self) -> float:
        """From there to the end of the last answer."""
        last = max(found["ended"] for found in self.of("answer"))
        return last - self.started - self.startup_seconds


@dataclass
class Contender:
    """A side: its command, and its runs so far."""

    command: list[str]
    calls: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    def run(self) -> None:
        """Run the whole process; its output is shown only if it fails."""
        hook, notes = FOLDER / "hook", FOLDER / "notes.jsonl"
        hook.mkdir(exist_ok=True)
        shutil.copyfile(calls.__file__, hook / "sitecustomize.py")
        notes.unlink(missing_ok=True)
        noting = {
            "PYTHONPATH": str(hook),
            "BENCH_CALLS": json.dumps(self.calls),
            "BENCH_CALLS_TO": str(notes),
            "HF_HUB_OFFLINE": "1",
        }
        started = time.time()
        done = subprocess.run(
            self.command,
            cwd=Path(__file__).parents[1],
            env={**os.environ, **noting, **self.environment},
            capture_output=True,
            text=True,
        )
        ended = time.time()
        lines = notes.read_text().splitlines() if notes.is_file() else []
        run = Run(started, ended, [json.loads(line) for line in lines])
        if done.returncode or not run.of("answer"):  # lmms-eval exits with 0 after an error, too
            raise SystemExit(f"{self.command}: {done.stdout[-1500:]}\n{done.stderr[-3000:]}")
        self.runs.append(run)


def ours(model: Path, records: Path, batch_size: int, frames: Path | None = None) -> Contender:
    """`strive-cli evaluate`, as a user runs it, on the frames that the peer asks for."""
    options: dict[str, Any] = {
        "model": model,
        "data": records,
        "video-root": FOLDER / "videos",
        "prompt-template": PROMPT_TEMPLATE,
        "frames": NUM_FRAMES,
        "frames-mode": "linspace",
        "max-pixels": MAX_PIXELS,
        "max-new-tokens": NUM_TOKENS,
        "position-rule": "transformers",
        "set": f"batch_size={batch_size}",
        "out": FOLDER / "ours",
    }
    if frames is not None:
        options["frames-cache"] = frames
    command = [sys.executable, "-m", "strive.cli", "evaluate", "--overwrite"]
    return Contender(
        [*command, *(f"--{name}={value}" for name, value in options.items())], OUR_CALLS
    )


def peer(python: str, model: Path, records: Path, batch_size: int, reader: str) -> Contender:
    """lmms-eval's command line with the chat form of the wrapper, which is its default."""
    about = {
        "pretrained": model,
        "device": "cpu",
        "device_map": "cpu",
        "min_pixels": MAX_PIXELS // 2,
        "max_pixels": MAX_PIXELS,
        "max_num_frames": NUM_FRAMES,
    }
    options: dict[str, Any] = {
        "model": "qwen2_5_vl",
        "model_args": ",".join(f"{name}={value}" for name, value in about.items()),
        "tasks": TASK,
        "include_path": make_peer_task(records),
        "batch_size": batch_size,
        "output_path": FOLDER / "peer",
    }
    # -P: the folder of the program, bench/, must not shadow modules of that environment.
    command = [python, "-P", str(Path(__file__).with_name("evaluate_peer.py")), "--log_samples"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    environment = {
        "FORCE_QWENVL_VIDEO_READER": reader,
        "HF_HOME": str(FOLDER / "peer-home"),
        "HF_DATASETS_OFFLINE": "1",
    }
    shutil.rmtree(FOLDER / "peer", ignore_errors=True)
    return Contender(command, PEER_CALLS, environment)


def check_answers() -> int:
    """Every answer of both is of NUM_TOKENS tokens; returns how many are the same text.

    Both are written anew by each run, lmms-eval's under a name with the time.
    """
    newest = max((FOLDER / "peer").rglob("*_samples_*.jsonl"))
    theirs = [json.loads(line) for line in newest.read_text().splitlines()]
    mine = [json.loads(line) for line in (FOLDER / "ours" / "samples.jsonl").open()]
    lengths = {row["token_counts"][0]["output_tokens"] for row in theirs}
    lengths |= {row["num_tokens"] for row in mine}
    if lengths != {NUM_TOKENS} or len(mine) != len(theirs):
        raise SystemExit(f"{len(mine)} and {len(theirs)} answers of {sorted(lengths)} tokens")
    texts = {int(row["question_id"]): row["output"].strip() for row in mine}
    return sum(texts[row["doc_id"]] == row["filtered_resps"].strip() for row in theirs)


def figures_of(contender: Contender, timing: Timing, num_questions: int) -> dict[str, Any]:
    """Medians of one side's runs; what is counted is the same in each."""
    runs = contender.runs

    def median(of: Callable[[Run], float]) -> float:
        return statistics.median(of(run) for run in runs)

    work = median(lambda run: run.work_seconds)
    return {
        "seconds": timing.wall,
        "cpu_seconds": timing.cpu,
        "questions_per_second": num_questions / timing.wall_seconds,
        "startup_seconds": median(lambda run: run.startup_seconds),
        "work_seconds": work,
        "questions_per_second_of_work": num_questions / work,
        "decodes": len(runs[0].of("decode")),
        "patches_through_tower": sum(found["shape"][0] for found in runs[0].of("tower")),
        "seconds_of": {name: median(lambda r, n=name: r.seconds(n)) for name in contender.calls},
    }


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Run all sides in turns and compare them."""
    versions = peer_versions(asked.peer_python)  # first: without lmms-eval nothing is measured
    records, model = make_records(asked.clips), model_folder()
    num_questions = len(records.read_text().splitlines())
    kept = FOLDER / "frames"
    shutil.rmtree(kept, ignore_errors=True)
    sides = {
        "ours": ours(model, records, asked.batch_size),
        "lmms-eval": peer(asked.peer_python, model, records, asked.peer_batch_size, asked.reader),
        "ours, frames kept": ours(model, records, asked.batch_size, kept),
    }
    sides["ours, frames kept"].run()
    sides["ours, frames kept"].runs.clear()  # that one kept them
    with OtherLoad() as others:
        timings = time_in_turns({n: s.run for n, s in sides.items()}, repeats=asked.repeats)
    figures = {n: figures_of(side, timings[n], num_questions) for n, side in sides.items()}
    theirs = figures["lmms-eval"]
    return {
        "questions": num_questions,
        "batch_size": {"ours": asked.batch_size, "lmms-eval": asked.peer_batch_size},
        "reader": asked.reader,
        "sides": figures,
        "ratios": {
            name: {
                "whole processes": f["questions_per_second"] / theirs["questions_per_second"],
                "without starting": theirs["work_seconds"] / f["work_seconds"],
                "CPU time": timings["lmms-eval"].cpu_seconds / timings[name].cpu_seconds,
            }
            for name, f in figures.items()
            if f is not theirs
        },
        "same_answers": check_answers(),
        "cpu_share_of_others": others.share,
        "peer_versions": versions,
    }


def peer_versions(python: str) -> dict[str, str]:
    """Versions in the peer's environment, which has one of two readers."""
    code = (
        "import importlib.metadata as m, json; m.version('lmms-eval'); "
        "there = {d.metadata['Name'].lower().replace('_', '-'): d.version "
        "for d in m.distributions()}; "
        "print(json.dumps({n: there[n] for n in ('lmms-eval', 'torch', 'transformers', "
        "'qwen-vl-utils', 'decord', 'torchcodec') if n in there}))"
    )
    found: dict[str, str] = json.loads(subprocess.check_output([python, "-c", code], text=True))
    return found


def show(figures: Mapping[str, Any]) -> None:
    """Print the table of a measurement."""
    for name, side in figures["sides"].items():
        parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in side["seconds_of"].items())
        print(
            f"{name:18} {side['questions_per_second']:6.3f} questions/s, "
            f"{side['questions_per_second_of_work']:.3f} after {side['startup_seconds']:.1f} s of "
            f"starting; {side['decodes']} decodes; seconds: {parts}"
        )
    for name, ratios in figures["ratios"].items():
        print(f"{name} over lmms-eval: ", end="")
        print(", ".join(f"{way} {ratio:.2f}" for way, ratio in ratios.items()))
    print(f"at least {WANTED:g} is wanted; the same answers: ", end="")
    print(f"{figures['same_answers']} of {figures['questions']}; ", end="")
    print(f"{figures['cpu_share_of_others']:.1%} of the CPU time went to other processes")


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default=PEER_PYTHON, help="of lmms-eval's environment")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16, help="ours; 16 is its default")
    parser.add_argument("--peer-batch-size", type=int, default=1, help="1 is its default")
    parser.add_argument("--reader", default="decord", help="qwen-vl-utils': decord or torchcodec")
    parser.add_argument("--clips", type=int, default=NUM_CLIPS, help="fewer: no result is written")
    asked = parser.parse_args()
    if shutil.which(asked.peer_python) is None:
        print(f"bench.evaluate: no lmms-eval at {asked.peer_python}, nothing is measured ", end="")
        print("(the head of the program says how to install it)")
        return
    figures = measure(asked)
    show(figures)
    if asked.clips == NUM_CLIPS:
        path = write_result("evaluate", figures, packages=("av", "torch", "transformers"))
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
