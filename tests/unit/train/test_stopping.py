"""What stopped a run, what it left, and how the next call goes on."""

import errno
import json
import os
import resource
import shutil
import stat
from contextlib import contextmanager

import pytest
import yaml
from safetensors import SafetensorError

from strive.cache.layout import open_cache
from strive.cache.questions import read_questions
from strive.configs.schema import TrainConfig
from strive.errors import CheckpointError, DiskError
from strive.files import as_disk_error, disk_error
from strive.lab.models import lab_model_path
from strive.records import Record, write_records
from strive.train.loop import train
from strive.train.run_folder import RunFolder


def make(cache_root):
    return TrainConfig(
        model=str(lab_model_path("qwen2_5_vl")),
        cache=cache_root,
        prompt_template="short",
        num_frames=8,
        max_new_tokens=8,
        questions_per_step=2,
        steps=3,
        checkpoint_every=1,
        loggers=(),
    )


@pytest.fixture
def config(cache_root):
    return make(cache_root)


@pytest.fixture(scope="module")
def finished(cache_root, tmp_path_factory):
    """A finished run of three steps with checkpoints of the last two."""
    root = tmp_path_factory.mktemp("finished")
    train(make(cache_root), run_dir=root / "run")
    return root / "run"


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def steps_of(folder):
    return [json.loads(line)["step"] for line in folder.metrics_file.open()]


def states(checkpoint):
    [path] = checkpoint.rglob("*model_states.pt")
    return path


def content(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def cut(path, size):
    with path.open("r+b") as file:
        file.truncate(size)


DAMAGE = {
    "empty state": lambda at: cut(at / "state.json", 0),
    "half state": lambda at: cut(at / "state.json", 200),
    "other state": lambda at: (at / "state.json").write_text('["step", 3]'),
    "no state": lambda at: (at / "state.json").unlink(),
    "no model": lambda at: states(at).unlink(),
    "half a model": lambda at: cut(states(at), 5000),
    "an empty list": lambda at: cut(at / ".strive-files", 0),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_told_from_a_whole_one(run, how):
    assert run.checkpoint_damage() == {2: None, 3: None}
    DAMAGE[how](run.checkpoint(3))
    found = run.checkpoint_damage()
    assert list(found) == [2, 3] and found[2] is None and found[3]
    run.cut_back(2)
    assert run.checkpoint_damage() == {2: None}


def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, config, capsys):
    DAMAGE["no model"](run.checkpoint(3))
    longer = config.model_copy(update={"steps": 4})
    assert train(longer, run_dir=run.root, resume=True).first_step == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "is damaged" in line]
    assert line.startswith(f"train: {run.checkpoint(3)} is damaged (")
    assert line.endswith("the run goes on from step 2, the newest whole checkpoint")
    assert steps_of(run) == [1, 2, 3, 4] and run.checkpoint_damage() == {3: None, 4: None}


def test_without_a_whole_checkpoint_nothing_is_touched(run, config):
    DAMAGE["empty state"](run.checkpoint(3))
    DAMAGE["no model"](run.checkpoint(2))
    before = content(run.root)
    with pytest.raises(CheckpointError) as error:
        train(config.model_copy(update={"steps": 4}), run_dir=run.root, resume=True)
    said = str(error.value)
    assert "step-000002: deepspeed/mp_rank_00_model_states.pt is missing" in said
    assert "step-000003: state.json: Expecting value" in said and "\n" not in said
    assert "move that folder away to train from the start again" in said
    assert content(run.root) == before


def test_states_that_are_no_states_are_one_line(run, config):
    """Of the right length, so that only reading them tells."""
    path = states(run.checkpoint(3))
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CheckpointError, match=r"no complete checkpoint \(.*remove it to resume"):
        train(config.model_copy(update={"steps": 4}), run_dir=run.root, resume=True)


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("metrics.jsonl", b"{}\n", "line 1 is no line that a run wrote .*remove it to resume"),
        ("metrics.jsonl", b"\xff\xfe\n", "line 1 is no line that a run wrote .*remove it"),
        ("held_out.jsonl", b"[]\n", "line 1 is no line that a run wrote"),
        ("completions.parquet/part-000001.parquet", b"PAR1", "is damaged .*completions are lost"),
        ("best/best.json", b'{"step": ', "is damaged .*remove .*best to go on without"),
        ("best/best.json", b'{"steps": 3}', "is damaged .*remove .*best to go on without"),
    ],
)
def test_a_damaged_file_is_named_before_a_model_is_loaded(
    run, config, monkeypatch, name, wrong, said
):
    (run.root / name).parent.mkdir(exist_ok=True)
    (run.root / name).write_bytes(wrong)
    monkeypatch.setattr("strive.train.loop.load_policy", lambda *_, **__: pytest.fail("loaded"))
    before = content(run.root)
    with pytest.raises(CheckpointError, match=said) as error:
        train(config.model_copy(update={"steps": 4}), run_dir=run.root, resume=True)
    assert str(run.root / name) in str(error.value) and "\n" not in str(error.value)
    assert content(run.root) == before


def test_a_run_whose_log_and_config_json_are_damaged_goes_on(run, config, capsys):
    cut(run.config_file, 30)
    lines = run.metrics_file.read_text().splitlines(keepends=True)
    run.metrics_file.write_text("".join(lines[1:]))
    longer = config.model_copy(update={"steps": 4})
    assert train(longer, run_dir=run.root, resume=True).first_step == 3
    assert run.has_config and steps_of(run) == [2, 3, 4]
    assert "lacks 1 of its 3 steps (first: 1)" in capsys.readouterr().err


def test_a_run_with_as_many_steps_or_more_is_left_alone(run, config, monkeypatch, capsys):
    before = content(run.root)
    fewer = config.model_copy(update={"steps": 2})
    with pytest.raises(CheckpointError, match=r"already has 3 steps, and steps is 2; nothing was"):
        train(fewer, run_dir=run.root, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr("strive.train.loop.load_policy", lambda *_, **__: pytest.fail("loaded"))
        capsys.readouterr()
        summary = train(config, run_dir=run.root, resume=True)
    assert summary.first_step == summary.num_steps == 3
    assert "already has all of its 3 steps; nothing to do" in capsys.readouterr().err
    assert content(run.root) == before
    # Without final/ there is something to do, and no step of it.
    policy = (run.final / "model.safetensors").read_bytes()
    (run.final / "model.safetensors").unlink()
    train(config, run_dir=run.root, resume=True)
    assert (run.final / "model.safetensors").read_bytes() == policy and steps_of(run) == [1, 2, 3]


def test_resuming_nothing_is_said(config, tmp_path, capsys):
    train(config.model_copy(update={"steps": 1}), run_dir=tmp_path / "run", resume=True)
    said = f"train: {tmp_path / 'run'} holds no checkpoint to resume from; the run begins"
    assert said in capsys.readouterr().err


# --- a disk that takes no more --------------------------------------------------------------------


@contextmanager
def files_of_at_most(num_bytes):
    """What a full disk does in the middle of a file, by a limit of the process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("function", "module", "half"),
    [
        ("write_checkpoint", "loop", "checkpoints/step-000001.tmp"),
        ("write_policy", "loop", "final.tmp"),
        ("keep_if_best", "loop", "best.tmp"),
        ("commit_folder", "saves", "checkpoints/step-000001.tmp"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_no_half(
    config, tmp_path, monkeypatch, function, module, half
):
    def evaluate(policy, processes):
        return {"accuracy": 0.5}

    place = f"strive.train.{module}.{function}"
    real = getattr(__import__(f"strive.train.{module}", fromlist=[function]), function)

    def on_a_full_disk(*arguments):
        with files_of_at_most(20 if function == "commit_folder" else 300_000):
            return real(*arguments)

    held_out = tmp_path / "held_out.jsonl"
    write_records(held_out, [Record("h", "clip0.mp4", "?", "free-form", (), "red")])
    own = config.model_copy(update={"steps": 1, "evaluate_every": 1, "held_out": (held_out,)})
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(DiskError) as error:
        patch.setattr(place, on_a_full_disk)
        train(own, run_dir=run_dir, evaluate_held_out=evaluate)
    said = str(error.value)
    assert said.startswith(f"cannot write {run_dir / half}: the ") and "\n" not in said
    assert error.value.exit_code == 1 and not (run_dir / half).exists()
    train(own, run_dir=run_dir, resume=True, evaluate_held_out=evaluate)
    assert steps_of(RunFolder(run_dir)) == [1]
    for name in ("final", "best", "checkpoints/step-000001"):
        assert (run_dir / name / ".strive-files").is_file()


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), 28),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), 28),
        (SafetensorError('I/O error: IoError(Os { code: 28, kind: StorageFull, message: "No' ), 28),
        (Exception("No space left on device (os error 28)"), errno.ENOSPC),
        (Exception("Disk quota exceeded (os error 122)"), errno.EDQUOT),
        (OSError(errno.EROFS, "Read-only file system"), errno.EROFS),
        (OSError("there is no such model"), None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), None),
        (RuntimeError("NCCL error, exit code: 28"), None),
        (KeyError("code: 9"), None),
    ],
)  # fmt: skip
def test_what_a_disk_refuses_is_told_from_other_errors(error, number):
    found = as_disk_error(error)
    assert (found.errno if found else None) == number


def test_a_run_is_told_to_go_on_with_resume(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    assert "run the same command again with --resume;" in str(
        disk_error(tmp_path, full, "--run-dir")
    )
    assert "run the same command again;" in str(disk_error(tmp_path, full))


# --- what a policy's folder is like ---------------------------------------------------------------


def test_a_policy_says_what_it_is_and_has_the_modes_of_the_umask(config, tmp_path):
    own = config.model_copy(update={"steps": 1, "deepspeed": "zero1"})
    before = os.umask(0o027)
    try:
        train(own, run_dir=tmp_path / "run")
    finally:
        os.umask(before)
    for name in ("final", "checkpoints/step-000001"):
        files = [path for path in (tmp_path / "run" / name).rglob("*") if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}, name
    text = (tmp_path / "run" / "final" / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "transformers",
        "pipeline_tag": "video-text-to-text",
        "tags": ["strive", "grpo", "video-question-answering"],
    }
    state = RunFolder(tmp_path / "run").read_state(1)
    for word in (
        *("Base model:** qwen2_5_vl; ", state["start_digest"], state["records_digest"]),
        *("Licence", "`published`", "vLLM", "after 1 steps", "6 questions", "| reward/mean |"),
    ):
        assert word in body, word
    settings = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert settings["deepspeed"] == "zero1" and settings["model"] == "qwen2_5_vl"
    assert str(tmp_path) not in text and "/" not in settings["cache"]
    # DeepSpeed's scripts need a file that is not there.
    assert not list((tmp_path / "run").rglob("zero_to_*"))


def test_other_records_are_no_same_run(cache_root, tmp_path):
    """As many questions with other solutions: the steps before learned something else."""
    rows = [json.loads(line) for line in write_data(cache_root, tmp_path / "a.jsonl")]
    first = make(cache_root).model_copy(update={"steps": 1, "data": (tmp_path / "a.jsonl",)})
    train(first, run_dir=tmp_path / "run")
    for row in rows:
        row["solution"] = "B" if row["solution"] == "A" else "A"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CheckpointError, match="trained on other records than are given now"):
        train(first.model_copy(update={"steps": 2}), run_dir=tmp_path / "run", resume=True)


def write_data(cache_root, path):
    write_records(path, read_questions(open_cache(cache_root)))
    return path.read_text().splitlines()
