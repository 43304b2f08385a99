"""How a run stops and goes on, as commands: kill -9, SIGTERM, errors, memory, several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml

from strive.train.run_folder import RunFolder

# The command line, and at the very end whether it left a process group behind. What is registered
# first runs last.
COMMAND = """
import atexit, sys

def look():
    import torch.distributed as dist
    print("process group left behind:", dist.is_initialized(), file=sys.stderr)

atexit.register(look)
from strive.cli import main
main()
"""
# The same with two more GiB of address space than its libraries take: what a machine without more
# memory gives.
CRAMPED = """
import resource
import deepspeed, torch, transformers
import strive.train.loop
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2 * 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""
# The launcher ends the main process while that opens its model: another could not open its own.
SLOW_MAIN = """
import os, time
import strive.train.loop
from strive.errors import ModelError
def load(*arguments, **options):
    if os.environ["RANK"] == "0":
        time.sleep(100)
    raise ModelError("nowhere/model is not on this machine")
strive.train.loop.load_policy = load
"""


@pytest.fixture
def command(lab, settings, tmp_path):
    """Start `strive-cli train` in its own process, or several; the configuration is a file."""

    def start(run_dir, *options, processes=1, before="", where=None, **changes):
        config = tmp_path / f"{run_dir.name}.yaml"
        values = settings(**changes) | {"loggers": []}
        config.write_text(yaml.safe_dump(values | {"held_out": list(values.get("held_out", ()))}))
        program = tmp_path / f"{run_dir.name}.py"
        program.write_text(before + COMMAND)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        return subprocess.Popen(
            [
                sys.executable,
                *(launcher if processes > 1 else []),
                str(program),
                "train",
                "--config",
                str(config),
                *(where or ["--run-dir", str(run_dir)]),
                *options,
            ],
            env=os.environ
            | {
                "PYTHONPATH": f"{lab}{os.pathsep}{Path(__file__).parents[2]}",
                "OMP_NUM_THREADS": "1",
                "DS_ACCELERATOR": "cpu",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finish(process, code=0):
    """Wait for a process; return what it wrote to stderr."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == code, out + err
    return err


def lines(run_dir, name="metrics.jsonl"):
    """Everything in the lines that a computation decides."""
    return [
        {key: v for key, v in json.loads(line).items() if not key.startswith(("time/", "memory/"))}
        for line in (run_dir / name).read_text().splitlines()
    ]


def completions(run_dir):
    return pl.read_parquet(run_dir / "completions.parquet").sort(
        "step", "question_id", "variant", "generation"
    )


def policy_bytes(folder):
    return (folder / "model.safetensors").read_bytes()


# Checkpoints at 25 and 50, so that neither step 37 nor those near it are one.
SIXTY_STEPS = {"steps": 60, "checkpoint_every": 25, "evaluate_every": 15}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)]
)
def test_stopped_at_step_37_of_60_and_resumed(lab, command, whole_run, tmp_path, number, code):
    options = SIXTY_STEPS | {"held_out": (str(lab / "world" / "train.jsonl"),)}
    if not whole_run.exists():
        finish(command(whole_run, **options))
    run_dir = tmp_path / "stopped"
    process = command(run_dir, **options)
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 150
    while not metrics.is_file() or metrics.read_text().count("\n") < 37:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    err = finish(process, code)
    stopped_at = metrics.read_text().count("\n")
    assert 37 <= stopped_at < 50
    if number == signal.SIGKILL:
        assert RunFolder(run_dir).checkpoint_steps() == [25]
    else:
        assert RunFolder(run_dir).checkpoint_steps() == [25, stopped_at]
        assert f"error: interrupted after step {stopped_at} of 60" in err
        assert "process group left behind: False" in err

    finish(command(run_dir, "--resume", **options))
    assert [line["step"] for line in lines(run_dir)] == list(range(1, 61))
    assert lines(run_dir) == lines(whole_run)
    assert completions(run_dir).equals(completions(whole_run))
    assert lines(run_dir, "held_out.jsonl") == lines(whole_run, "held_out.jsonl")
    assert RunFolder(run_dir).read_best() == RunFolder(whole_run).read_best()
    for name in ("best", "final"):
        assert policy_bytes(run_dir / name) == policy_bytes(whole_run / name)


@pytest.mark.long
def test_an_error_ends_with_one_line_and_leaves_no_process_group(command, tmp_path):
    run_dir = tmp_path / "run"
    weights = {"accuracy": 1.0, "lab_rewards:vowels": 1e100}
    err = finish(command(run_dir, steps=2, objective="dr_grpo", rewards=weights), code=1)
    assert "Traceback" not in err
    [said] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert said.startswith("error: loss or gradient is not finite for question ")
    assert said.endswith(f"; the batch is in {run_dir / 'nonfinite' / 'step-000001'}")
    assert err.splitlines()[-1] == "process group left behind: False"


@pytest.mark.long
def test_memory_that_runs_out_names_what_takes_less(command, tmp_path):
    # Keys of one layer: 100,000 completions x 2 heads x about 80 places x 32 values of 4 bytes.
    shape = {"questions_per_step": 1, "num_variants": 1, "num_generations": 100_000}
    process = command(tmp_path / "run", before=CRAMPED, steps=1, variants="random", **shape)
    err = finish(process, code=1)
    assert "Traceback" not in err
    [said] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert said.startswith(
        "error: out of memory in the rollout of step 1; what helps most: "
        "a lower max_new_tokens (now 8); a lower max_pixels (now the processor's limit); "
    )
    assert "Estimate of what was alive in each process: " in said and "key value cache" in said
    assert said.endswith(" were asked for at once")
    assert err.splitlines()[-1] == "process group left behind: False"


@pytest.mark.long
@pytest.mark.parametrize("preset", ["zero0", "zero3"])
def test_two_processes_share_the_held_out_questions(lab, command, tmp_path, preset):
    options = {
        "steps": 2,
        "evaluate_every": 1,
        "deepspeed": preset,
        "held_out": (str(lab / "world" / "train.jsonl"),),
    }
    finish(command(tmp_path / "one", **options))
    finish(command(tmp_path / "two", processes=2, **options))
    one, two = (lines(tmp_path / name, "held_out.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in two] == [0, 1, 2]
    assert one == two and one[0]["num_questions"] == 12
    assert RunFolder(tmp_path / "two").read_best() == RunFolder(tmp_path / "one").read_best()
    assert (tmp_path / "two" / "best" / "model.safetensors").is_file()


@pytest.mark.long
def test_when_one_process_fails_all_end(command, tmp_path):
    rewards = {"lab_rewards:vowels": 1.0, "lab_rewards:fails_on_the_second": 1.0}
    started = time.monotonic()
    process = command(tmp_path / "run", processes=2, steps=2, rewards=rewards)
    _, err = process.communicate(timeout=120)
    [said] = said_as_errors(err)
    assert process.returncode != 0 and "raised RuntimeError: this process fails alone" in said
    assert "failed_reward/step-000001/rank-1.json" in said
    assert "process group left behind: True" not in err
    assert time.monotonic() - started < 100


def snapshot(root):
    """Every path below a folder, with the bytes of each file."""
    return {path: path.is_file() and path.read_bytes() for path in root.rglob("*")}


def said_as_errors(err):
    return [line for line in err.splitlines() if line.startswith("error: ")]


@pytest.mark.long
def test_a_second_start_is_refused_until_the_first_is_killed(command, tmp_path):
    run_dir = tmp_path / "run"
    (run_dir / "data.tmp").mkdir(parents=True)
    (run_dir / "data.tmp" / "rows.csv").write_text("mine")
    (run_dir / "notes.tmp").write_text("mine")
    first = command(run_dir, steps=10_000, checkpoint_every=1)
    deadline = time.monotonic() + 150
    while not RunFolder(run_dir).checkpoint_steps():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    for options in ([], ["--resume"]):
        err = finish(command(run_dir, *options, steps=10_000, checkpoint_every=1), code=2)
        [said] = said_as_errors(err)
        assert f"{run_dir} is in use by another run (process {first.pid} on " in said
    first.kill()
    finish(first, -signal.SIGKILL)
    assert (run_dir / "run.lock").is_file()
    done = RunFolder(run_dir).checkpoint_steps()[-1]
    finish(command(run_dir, "--resume", steps=done + 2, checkpoint_every=1))
    assert [line["step"] for line in lines(run_dir)] == list(range(1, done + 3))
    assert (run_dir / "notes.tmp").read_text() == "mine"
    assert (run_dir / "data.tmp" / "rows.csv").read_text() == "mine"
    assert not (run_dir / "run.lock").exists()


@pytest.mark.long
def test_of_two_starts_at_once_in_one_folder_one_runs(command, tmp_path):
    run_dir = tmp_path / "new" / "run"
    both = [command(run_dir, steps=2) for _ in range(2)]
    ends = [(process.communicate(timeout=200)[1], process.returncode) for process in both]
    [lost] = [err for err, code in ends if code == 2]
    assert sorted(code for _, code in ends) == [0, 2]
    assert len(said_as_errors(lost)) == 1 and str(run_dir) in said_as_errors(lost)[0]
    assert [line["step"] for line in lines(run_dir)] == [1, 2]


@pytest.mark.long
def test_two_starts_at_once_in_one_workspace_take_two_numbers(command, tmp_path):
    workspace = tmp_path / "workspace"
    where = ["--workspace", str(workspace)]
    both = [command(tmp_path / name, where=where, steps=1) for name in ("one", "two")]
    for process in both:
        finish(process)
    runs = sorted((workspace / "runs").iterdir())
    assert [path.name for path in runs] == [f"qwen2_5_vl-importance-00{n}" for n in (1, 2)]
    assert all((path / "final" / "model.safetensors").is_file() for path in runs)


@pytest.mark.long
@pytest.mark.parametrize(
    "why",
    [
        "foreign",
        "in use",
        "no model",
        "no model on the second",
        "bad reward",
        "bad key",
        "no preset",
    ],
)
def test_several_processes_are_refused_together(command, tmp_path, why):
    run_dir = tmp_path / "mine" / "run"
    changes, said = {}, "is no run's folder but holds final"
    lock = RunFolder(run_dir).lock
    if why == "foreign":
        (run_dir / "final").mkdir(parents=True)
        (run_dir / "final" / "model.safetensors").write_text("mine")
    elif why == "in use":
        lock.acquire()
        said = f"is in use by another run (process {os.getpid()} on "
    elif why == "bad reward":
        changes, said = {"rewards": {"json:dumps": 1.0}}, "reward 'json:dumps'"
    elif why == "bad key":
        changes, said = {"variants": "importence"}, "importence"
    elif why == "no preset":
        changes, said = {"deepspeed": "nope"}, "deepspeed 'nope' is neither"
    elif why == "no model":
        changes, said = {"model": "nowhere/model"}, "nowhere/model"
    else:
        said = "nowhere/model"
    (tmp_path / "mine").mkdir(exist_ok=True)
    before = snapshot(tmp_path / "mine")
    started = time.monotonic()
    before_it = SLOW_MAIN if why == "no model on the second" else ""
    process = command(run_dir, processes=2, steps=2, before=before_it, **changes)
    _, err = process.communicate(timeout=200)
    assert process.returncode != 0 and time.monotonic() - started < 100
    [line] = said_as_errors(err)
    assert said in line and "Traceback" not in err.split(line)[0]
    assert snapshot(tmp_path / "mine") == before
    lock.release(begun=False, keep=False)
