"""Running the plan: the frozen lab, one run after another, and a kept result of each."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from itertools import count, islice
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from strive import __version__
from strive.cache.commit import commit_json
from strive.configs.load import Given, load_config
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError, Interrupted, MissingInputError, StriveError
from strive.experiments.children import INTERRUPTED
from strive.experiments.claims.plan import (
    ARMS,
    NUM_CLIPS,
    STEPS,
    UNTRAINED,
    WARMUPS,
    WORLD_SEED,
    Cell,
    arm_values,
    plan_digest,
    scorers_of,
)
from strive.experiments.claims.results import METRICS, RunResult, pack_scores, rounded, write_run
from strive.experiments.offline import resolve
from strive.experiments.workspace import Workspace, ensure_lab
from strive.lab.models import lab_model_path
from strive.lab.world import SPLITS
from strive.pipeline.run import precompute
from strive.progress import show_progress
from strive.video.worker import die_with_parent

if TYPE_CHECKING:
    from strive.experiments.claims.held_out import Judge
    from strive.models.loading import Policy

PROBE_SEEDS = 2
"""Seeds of each arm whose middle and last checkpoints are probed."""
NUM_THREADS = 1
"""Of each process. Part of the plan: sums of floats depend on how they are shared out."""


@dataclass(frozen=True)
class Lab:
    """The frozen lab of one sitting."""

    workspace: Workspace
    results: Path
    warmups: Mapping[int, Path]
    frozen: Mapping[str, Any]
    """Digests of world, models and plan, as the first sitting wrote them."""
    clips: str = ""
    """Digest of the encoded clips of this machine."""
    steps: int = STEPS
    """Fewer only where the machinery itself is tried."""

    @property
    def about(self) -> dict[str, Any]:
        """What every kept result says of where it came from."""
        packages = ("torch", "transformers", "deepspeed", "numpy")
        return {
            **self.frozen,
            "clips": self.clips,
            "commit": commit_of_code(),
            "strive": __version__,
            "threads": NUM_THREADS,
            **{package: version(package) for package in packages},
        }


def commit_of_code() -> str:
    """Return the commit of the source tree that this code is part of; empty where there is none."""
    found = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.stdout.strip()


def freeze(
    workspace: Workspace, results: Path, *, num_clips: int = NUM_CLIPS, steps: int = STEPS
) -> Lab:
    """Build or find the world and the warm-ups, and hold them to what the first sitting froze.

    Raises:
        ConfigError: something differs from what was frozen; the kept results would not add up.
        MissingInputError: the second warm-up is nowhere; the message says how to make it.
    """
    warmups = {warmup: warmup_folder(results, warmup) for warmup in WARMUPS}
    path = results / "frozen.json"
    frozen = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    found: dict[str, Any] = {
        "plan": plan_digest(),
        "num_clips": num_clips,
        "steps": steps,
        "scorer": _digest(lab_model_path("siglip2") / "open_clip_model.safetensors"),
        **{f"warmup_{n}": _digest(folder / "model.safetensors") for n, folder in warmups.items()},
    }
    _require_frozen(path, frozen, found)  # before minutes go into a world
    world = ensure_lab(workspace, num_clips=num_clips, seed=WORLD_SEED)
    # Of the questions, not of the clips' bytes, which differ from processor to processor.
    records = b"".join(world.records_file(split).read_bytes() for split in SPLITS)
    found["world"] = sha256(records).hexdigest()[:16]
    _require_frozen(path, frozen, found)
    if frozen is None:
        day = time.strftime("%Y-%m-%d")
        commit_json(path, {**found, "date": day, "commit": commit_of_code()})
    return Lab(workspace, results, warmups, found, world.content_hash[:16], steps)


def _require_frozen(path: Path, frozen: Mapping[str, Any] | None, found: Mapping[str, Any]) -> None:
    for key, value in found.items():
        if frozen is not None and frozen.get(key) != value:
            raise ConfigError(
                f"{path} froze {key}={frozen.get(key)} and this call has {value}; results of the "
                "two do not add up: give another --results folder for another plan"
            )


def warmup_folder(results: Path, warmup: int) -> Path:
    """The folder of a warm-up: 0 ships with the package, the others lie beside the results.

    Raises:
        MissingInputError: it is not there.
    """
    if warmup == 0:
        return lab_model_path("qwen2_5_vl")
    folder = results / f"warmup-{warmup}"
    if not (folder / "model.safetensors").is_file():
        raise MissingInputError(
            f"no warm-up {warmup} at {folder}; make it, from a checkout, with: python -m recipes "
            f"qwen2_5_vl --seed {warmup} --out {folder}"
        )
    return folder


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()[:16]


def prepare_scores(lab: Lab, cells: Sequence[Cell]) -> None:
    """Make the frames and the scores that some runs and the judging read."""
    scorers = tuple(dict.fromkeys([*scorers_of(list(cells)), *scorers_of(PROBED)]))
    precompute(resolve(lab.workspace, Given(options={"scorers": scorers})))


PROBED = [Cell("strive", 0, 0), Cell("strive_permuted", 0, 0)]
"""Arms whose scores the judging reads, whatever runs."""


# --- one run ------------------------------------------------------------------------------------


# One at a time: what the tower sees of all test questions takes 5 GB, and the plan goes through the
# arms of one warm-up before those of the next.
@lru_cache(maxsize=1)
def _open_judge(folder: Path, workspace: Workspace) -> "tuple[Policy, Judge]":
    """Open a warm-up and everything that its policies are judged by, once a process."""
    from strive.experiments.claims.held_out import Judge
    from strive.models.loading import load_policy

    start = load_policy(str(folder), dtype="float32", device="cpu")
    return start, Judge(start, workspace)


def run_cell(cell: Cell, lab: Lab) -> RunResult:
    """Train one cell and judge its last checkpoint; a run that was stopped goes on."""
    from strive.models.loading import load_policy
    from strive.train.loop import train

    start, judge = _open_judge(lab.warmups[cell.warmup], lab.workspace)
    if cell.arm == UNTRAINED:
        return _judged(cell, lab, start, judge, {}, judge.probe(start, "start"), 0.0)
    run_dir = lab.workspace.root / "runs" / cell.name
    middle = run_dir / "probe-middle.json"
    evaluations = count()

    def probe_middle(policy: "Policy", _: Any) -> dict[str, float]:
        # Before the first step, in the middle and at the end. A run goes on from its checkpoint in
        # the middle, which is written after this, or from the start.
        if next(evaluations) == 1 and not middle.is_file():
            commit_json(middle, {"rows": judge.probe(policy, "middle")})
        return {}

    if not (run_dir / "final").is_dir():
        is_probed = cell.seed < PROBE_SEEDS
        train(
            cell_config(cell, lab, is_probed=is_probed),
            run_dir=run_dir,
            resume=run_dir.is_dir(),
            evaluate_held_out=probe_middle if is_probed else None,
        )
    policy = load_policy(str(run_dir / "final"), dtype="float32", device="cpu")
    probe = []
    if cell.seed < PROBE_SEEDS:
        probe = [*json.loads(middle.read_text())["rows"], *judge.probe(policy, "final")]
    curves, seconds = _read_training(run_dir)
    result = _judged(cell, lab, policy, judge, curves, probe, seconds)
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    return result


def cell_config(cell: Cell, lab: Lab, *, is_probed: bool = False) -> TrainConfig:
    """The whole configuration of one run."""
    values = arm_values(ARMS[cell.arm])
    steps = values["steps"] * lab.steps // STEPS
    options = {
        **values,
        "steps": steps,
        "seed": cell.seed,
        "model": str(lab.warmups[cell.warmup]),
        "data": (lab.workspace.lab / "train.jsonl",),
        "cache": lab.workspace.lab_cache,
        "held_out": (lab.workspace.lab / "held_out.jsonl",),
        "checkpoint_every": max(1, steps // 2),
        "evaluate_every": max(1, steps // 2) if is_probed else 0,
        "keep_best": False,
        "loggers": (),
        "dtype": "float32",
    }
    return load_config(TrainConfig, ["lab_strive"], options=options)


def _judged(
    cell: Cell,
    lab: Lab,
    policy: "Policy",
    judge: "Judge",
    curves: Mapping[str, Sequence[float | None]],
    probe: Sequence[Mapping[str, Any]],
    train_seconds: float,
) -> RunResult:
    began = time.perf_counter()
    scores_Q, blind_Q = judge.grades(policy, "uniform"), judge.grades(policy, "blank")
    agreement = judge.agreement(policy)
    return RunResult(
        arm=cell.arm,
        warmup=cell.warmup,
        seed=cell.seed,
        accuracy=float(scores_Q.mean()),
        blind_accuracy=float(blind_Q.mean()),
        agreement=agreement,
        scores=pack_scores(scores_Q),
        num_questions=len(scores_Q),
        curves=curves,
        probe=probe,
        seconds={
            "train": round(train_seconds, 1),
            "judge": round(time.perf_counter() - began, 1),
        },
        about=lab.about,
    )


def _read_training(run_dir: Path) -> tuple[dict[str, list[float | None]], float]:
    """The kept metrics of a run by step, and the seconds of its steps, whichever call made them.

    The deviation of accuracies comes from its completions.
    """
    import polars as pl

    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    groups = (
        pl.scan_parquet(sorted((run_dir / "completions.parquet").glob("*.parquet")))
        .group_by("step", "question_id")
        .agg(pl.col("reward_accuracy").std(ddof=1))
        .group_by("step")
        .agg(pl.col("reward_accuracy").mean())
        .sort("step")
        .collect()
    )
    deviations = dict(groups.iter_rows())
    curves = {name: [rounded(line.get(name)) for line in lines] for name in METRICS}
    curves["group/accuracy_std"] = [rounded(deviations[line["step"]]) for line in lines]
    return curves, sum(line["time/step"] for line in lines)


# --- many runs ----------------------------------------------------------------------------------


def run_plan(lab: Lab, cells: Sequence[Cell], *, workers: int) -> Iterator[RunResult]:
    """Run cells, `workers` at a time, and keep each result as it comes.

    A worker is a process of its own and serves many runs: its imports, the test questions and what
    the vision tower sees of them are there once.
    """
    # Read by the workers when they import torch; this process computes nothing.
    os.environ["OMP_NUM_THREADS"] = str(NUM_THREADS)
    left = iter(cells)
    running: dict[Future[RunResult], Cell] = {}
    with (
        show_progress("claims", len(cells), "runs") as progress,
        ProcessPoolExecutor(
            workers,
            mp_context=get_context("spawn"),
            initializer=_start_worker,
            initargs=(os.getpid(),),
        ) as pool,
    ):
        try:
            while True:
                # Handed to a worker that is free: the pool begins whatever it was handed.
                for cell in islice(left, workers - len(running)):
                    running[pool.submit(_run_in_worker, cell, lab)] = cell
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    progress.note(running.pop(future).name)
                    result = future.result()
                    write_run(lab.results, result)
                    progress.advance()
                    yield result
        except BrokenProcessPool:
            raise StriveError(
                "a process that trained was killed, perhaps for its memory; what is kept stays and "
                "the same command goes on (--workers 1 takes half the memory)"
            ) from None
        except BaseException as error:
            # Nothing goes on for nobody: training ends after its step, with a checkpoint.
            for worker in active_children():
                with suppress(ProcessLookupError):
                    os.kill(cast(int, worker.pid), signal.SIGINT)
            if isinstance(error, (KeyboardInterrupt, Interrupted)):
                raise Interrupted(INTERRUPTED) from None
            raise


def _start_worker(parent_pid: int) -> None:
    """End with the parent, and leave it to the parent what Ctrl-C does."""
    die_with_parent(parent_pid)
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_in_worker(cell: Cell, lab: Lab) -> RunResult:
    from strive.train.processes import handling_signals

    # A worker that waits for its next run ignores what interrupts one that is busy.
    with handling_signals(signal.default_int_handler, signal.SIGINT):
        return run_cell(cell, lab)
