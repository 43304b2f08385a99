"""A folder that the user names: what a run may touch in it, and what a refused start leaves."""

import hashlib
import json
import os
import shutil
import signal

import pytest

from strive.errors import (
    CheckpointError,
    ConfigError,
    MissingInputError,
    ModelError,
    RunInUseError,
    StriveError,
)
from strive.lab.models import lab_model_path
from strive.train.loggers import LOGGERS
from strive.train.loop import train
from strive.train.run_folder import RunFolder, append_line, commit_folder

# As the first version wrote it.
CONFIG = {
    "config": {"seed": 0},
    "data": {"frames_key": "a"},
    "versions": {"strive": "0.1.0", "python": "3.11.9"},
    "num_processes": 1,
    "device": "cpu",
}
LEFT_LOCK = '{"strive_run": true, "host": "node1", "pid": 7}\n'
HUGGING_FACE = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
USERS_FILES = (
    "notes.tmp",
    "data.tmp/rows.csv",
    "final.txt",
    "step-000001/mine",
    "checkpoints/my-notes",
    "checkpoints/best.txt",
    "checkpoints/half.tmp/mine",
    "checkpoints/step-000001-copy/state.json",
    "checkpoints/step-1/state.json",
    "checkpoints/step-0000001/state.json",
    "completions.parquet/part-mine.parquet",
    "completions.parquet/part-mine.tmp",
)


def snapshot(root):
    """Every path below a folder, with a digest of each file."""
    return {
        path.relative_to(root).as_posix(): "folder"
        if path.is_dir()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
    }


def write(root, *names, content="mine"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def put_tree(folder, target):
    """A finished policy or checkpoint, as a run leaves it."""
    temporary = target.with_name(f"{target.name}.tmp")
    write(temporary, "state.json", "weights/one.pt", content='{"step": 1}')
    commit_folder(temporary, target)


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_config(CONFIG)
    return folder


def test_cut_back_and_prune_leave_the_users_files(folder):
    for step in (1, 2, 3, 4):
        put_tree(folder, folder.checkpoint(step))
    write(folder.root, *USERS_FILES)
    before = snapshot(folder.root)
    folder.cut_back(3)
    folder.prune_checkpoints(1)
    folder.cut_back(0)
    assert folder.checkpoint_steps() == []
    after = snapshot(folder.root)
    gone = before.keys() - after.keys()
    assert {name.split("/")[1] for name in gone} == {f"step-00000{step}" for step in (1, 2, 3, 4)}
    assert after == {name: digest for name, digest in before.items() if name not in gone}


def test_what_a_kill_left_half_written_goes(folder):
    ours = (
        *("config.json.tmp", "metrics.jsonl.tmp", "held_out.jsonl.tmp", "wandb.json.tmp"),
        *("best.tmp/a", "best-old.tmp/a", "final.tmp/a", "final-old.tmp/a"),
        *("checkpoints/best-old.tmp/a", "checkpoints/step-000001.tmp/a"),
        *("checkpoints/step-000001-old.tmp/a", "completions.parquet/part-000001.tmp"),
    )
    write(folder.root, *ours)
    folder.cut_back(0)
    assert set(snapshot(folder.root)) == {"config.json", "checkpoints", "completions.parquet"}


def test_files_put_into_what_a_run_removes_are_kept_beside_it(folder, capsys):
    for target in (folder.checkpoint(1), folder.checkpoint(2), folder.final):
        put_tree(folder, target)
    write(folder.root, "final/mine.txt", "final/weights/mine.txt", "checkpoints/step-000001/mine")
    write(folder.root, "final-kept/earlier.txt")
    folder.prune_checkpoints(1)
    folder.cut_back(2)
    files = {name for name, what in snapshot(folder.root).items() if what != "folder"}
    assert files == {
        "config.json",
        "final-kept/earlier.txt",
        "final-kept-2/mine.txt",
        "final-kept-2/weights/mine.txt",
        "checkpoints/step-000001-kept/mine",
        "checkpoints/step-000002/.strive-files",
        "checkpoints/step-000002/state.json",
        "checkpoints/step-000002/weights/one.pt",
    }
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_an_edited_file_is_the_users(folder, capsys):
    put_tree(folder, folder.final)
    edited = folder.final / "weights" / "one.pt"
    edited.write_bytes(b"x" * edited.stat().st_size)  # as long as before
    folder.cut_back(0)
    kept = folder.root / "final-kept" / "weights" / "one.pt"
    assert set(kept.read_bytes()) == {ord("x")} and not folder.final.exists()
    assert "is now in" in capsys.readouterr().err


def test_a_line_that_no_run_wrote_is_named(folder):
    append_line(folder.metrics_file, {"step": 1, "loss/total": 0.5})
    with folder.metrics_file.open("a") as file:
        file.write("mine\n")
    before = folder.metrics_file.read_bytes()
    with pytest.raises(CheckpointError, match=r"metrics.jsonl, line 2 is no line .*'mine'.*remove"):
        folder.cut_back(1)
    assert folder.metrics_file.read_bytes() == before


def test_a_finished_run_without_checkpoints_is_not_begun_anew(make_config, tmp_path):
    config = make_config(model=str(lab_model_path("qwen2_5_vl")), steps=1)
    train(config, run_dir=tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = snapshot(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"holds a finished run \(final/\) and no checkpoint"):
        train(config, run_dir=tmp_path / "run", resume=True)
    assert snapshot(tmp_path / "run") == before
    (tmp_path / "run" / "final").rename(tmp_path / "mine")
    assert train(config, run_dir=tmp_path / "run", resume=True).first_step == 0


def test_a_removal_that_a_kill_cut_short_goes_on(folder):
    put_tree(folder, folder.final)
    write(folder.root, "final/mine.txt")
    folder.final.rename(folder.root / "final-old.tmp")
    (folder.root / "final-old.tmp" / "state.json").unlink()
    folder.cut_back(0)
    assert (folder.root / "final-kept" / "mine.txt").read_text() == "mine"
    assert not (folder.root / "final-old.tmp").exists()


def test_a_folder_that_no_run_marked_is_moved_aside_whole(folder, tmp_path, capsys):
    write(folder.root, "final/model.safetensors")
    write(tmp_path, "elsewhere/weights", "elsewhere/.strive-files")
    (folder.root / "best").symlink_to(tmp_path / "elsewhere")
    commit_folder(_written(folder, "best.tmp"), folder.best)
    folder.cut_back(0)
    assert (folder.root / "final-kept" / "model.safetensors").read_text() == "mine"
    assert (folder.root / "best-kept").is_symlink() and (tmp_path / "elsewhere/weights").is_file()
    said = capsys.readouterr().err.splitlines()
    moved = f"{folder.root / 'final'} is now in {folder.root / 'final-kept'}"
    assert len(said) == 2 and said[1] == f"train: what no run wrote in {moved}"


def _written(folder, name):
    write(folder.root, f"{name}/weights")
    return folder.root / name


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(HUGGING_FACE),
        json.dumps([CONFIG]),
        json.dumps(CONFIG | {"versions": None}),
        json.dumps({"versions": {"strive": "0.1.0"}}),
        "[" * 100_000,
        "\udcff",
        "",
    ],
)
def test_a_config_json_that_no_run_wrote(folder, content):
    assert folder.has_config and folder.exists
    folder.config_file.write_text(content, errors="surrogateescape")
    assert not folder.has_config and not folder.exists
    with pytest.raises(CheckpointError, match=r"is no run's folder but holds config.json, which"):
        folder.require_ours()


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        *("final/model.safetensors", "best/a", "checkpoints/step-000001/state.json", "wandb/a"),
        *("config.json", "metrics.jsonl", "completions.parquet/a", "tensorboard/a", "nonfinite/a"),
        *("final.tmp/a", "best-old.tmp", "config.json.tmp", "run.lock"),
    ],
)
def test_a_foreign_folder_is_refused_untouched(make_config, tmp_path, name, resume):
    mine = tmp_path / "mine"
    content = json.dumps(HUGGING_FACE if name == "config.json" else {"step": 1})
    write(mine, name, "other/notes.txt", "notes.tmp", content=content)
    before, changed = snapshot(tmp_path), mine.stat().st_mtime_ns
    with pytest.raises(CheckpointError) as refused:
        train(make_config(), run_dir=mine, resume=resume)
    assert name.split("/")[0] in str(refused.value) and "--run-dir" in str(refused.value)
    assert str(mine) in str(refused.value) and "\n" not in str(refused.value)
    assert refused.value.exit_code == 2
    assert snapshot(tmp_path) == before
    if name != "run.lock":
        assert mine.stat().st_mtime_ns == changed  # nothing came and went


def test_a_file_is_no_folder(make_config, tmp_path):
    write(tmp_path, "mine")
    with pytest.raises(CheckpointError, match="mine is not a folder; give another --run-dir"):
        train(make_config(), run_dir=tmp_path / "mine")
    assert snapshot(tmp_path).keys() == {"mine"}


class Refusing:
    """Starts as a logger whose server says no: after it has written."""

    def __init__(self, folder, config, first_step):
        folder.wandb_run_id()
        write(folder.root, "wandb/debug.log")
        raise ConfigError("logger wandb cannot start")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": "nowhere/model"}, ModelError),
        ({"model": "{empty}"}, ModelError),
        ({"model": "{no template}"}, ModelError),
        ({"attention": "flex"}, ConfigError),
        ({"deepspeed": "zero9"}, MissingInputError),
        ({"trainable": "lora", "lora_targets": "no_such_layer"}, ConfigError),
        ({"rewards": {"no_such_module:reward": 1.0}}, StriveError),
        ({"scorer": "llava_ov"}, StriveError),
        ({"loggers": ("tensorboard", "wandb")}, ConfigError),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_refused_start_leaves_nothing(make_config, tmp_path, monkeypatch, changes, error, exists):
    (tmp_path / "empty").mkdir()
    model = shutil.copytree(lab_model_path("qwen2_5_vl"), tmp_path / "no template")
    (model / "chat_template.jinja").unlink()
    changes = {
        key: str(tmp_path / value[1:-1]) if str(value).startswith("{") and key == "model" else value
        for key, value in changes.items()
    }
    monkeypatch.setitem(LOGGERS, "wandb", Refusing)
    monkeypatch.setattr("strive.train.loop.require_loggers", lambda names: None)
    run_dir = tmp_path / "a" / "run"
    if exists:
        write(run_dir, "notes.tmp")
    before = snapshot(tmp_path)
    with pytest.raises(error):
        train(make_config(**changes), run_dir=run_dir)
    assert snapshot(tmp_path) == before


def test_sigterm_before_the_first_step_leaves_nothing(make_config, tmp_path, monkeypatch):
    """What a launcher sends to the main process when another one cannot start."""

    def load(*arguments, **options):
        assert (tmp_path / "a" / "run" / "run.lock").is_file()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("strive.train.loop.load_policy", load)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(make_config(), run_dir=tmp_path / "a" / "run")
    assert not list(tmp_path.iterdir()) and signal.getsignal(signal.SIGTERM) is before


class Killed(Exception):  # noqa: N818 - an end, not a fault
    """Stands for the end of a process."""


def test_a_run_in_a_users_folder(make_config, tmp_path, monkeypatch, capsys):
    """New, killed, refused, resumed, and resumed once more when it was finished."""
    monkeypatch.setitem(LOGGERS, "wandb", Refusing)
    monkeypatch.setattr("strive.train.loop.require_loggers", lambda names: None)
    config = make_config(steps=2, checkpoint_every=1, keep_checkpoints=1, loggers=())
    mine = tmp_path / "mine"
    write(mine, "notes.tmp", "data.tmp/rows.csv", "notes/final/a")
    users = snapshot(mine)

    def look_and_die(report):
        busy = f"is in use by another run .process {os.getpid()} on "
        with pytest.raises(RunInUseError, match=busy):
            train(config, run_dir=mine, resume=True)
        raise Killed

    with pytest.raises(Killed):
        train(config, run_dir=mine, on_step=look_and_die)
    assert users.items() <= snapshot(mine).items() and not (mine / "run.lock").exists()

    write(mine, *USERS_FILES)
    users |= {name: digest for name, digest in snapshot(mine).items() if name in USERS_FILES}
    write(mine, "run.lock", content=LEFT_LOCK)
    write(mine, "final.tmp/half")
    stopped = snapshot(mine)
    for changes, resume, said in (
        ({}, False, "already holds a run; add --resume"),
        ({"seed": 1}, True, "seed: the run has 0, this call has 1"),
        ({"loggers": ("wandb",)}, True, "logger wandb cannot start"),
        ({"model": "nowhere/model"}, True, "model: the run has"),
    ):
        with pytest.raises(StriveError, match=said):
            train(config.model_copy(update=changes), run_dir=mine, resume=resume)
        assert snapshot(mine) == stopped
    assert train(config, run_dir=mine, resume=True).first_step == 0
    assert users.items() <= snapshot(mine).items()
    assert not (mine / "run.lock").exists() and not (mine / "final.tmp").exists()
    assert len(snapshot(mine / "checkpoints" / "step-000002")) > 1

    write(mine, "final/mine.txt", "checkpoints/step-000002/mine.txt")
    longer = config.model_copy(update={"steps": 3})
    assert train(longer, run_dir=mine, resume=True).first_step == 2
    assert users.items() <= snapshot(mine).items()
    assert [path.name for path in (mine / "final-kept").iterdir()] == ["mine.txt"]
    kept = mine / "checkpoints" / "step-000002-kept"
    assert [path.name for path in kept.iterdir()] == ["mine.txt"]
    assert f"is now in {kept}" in capsys.readouterr().err
    assert RunFolder(mine).checkpoint_steps() == [3]


def test_a_run_of_an_earlier_version_goes_on(make_config, tmp_path):
    config = make_config(steps=1, loggers=())
    train(config, run_dir=tmp_path / "run")
    for path in list(tmp_path.rglob(".strive-files")):
        path.unlink()
    policy = snapshot(tmp_path / "run" / "final")
    longer = config.model_copy(update={"steps": 2})
    summary = train(longer, run_dir=tmp_path / "run", resume=True)
    assert summary.first_step == 1
    assert snapshot(tmp_path / "run" / "final").keys() == {*policy, ".strive-files"}
    # It cannot be told from a folder of the user's.
    assert snapshot(tmp_path / "run" / "final-kept") == policy


def test_a_start_that_was_killed_can_start_again(make_config, tmp_path):
    """Before it wrote its config.json; then with loggers' files only its lock tells of it."""
    config = make_config(steps=1, loggers=())
    run_dir = tmp_path / "run"
    for names in ((), ("tensorboard/events", "config.json.tmp")):
        shutil.rmtree(run_dir, ignore_errors=True)
        write(run_dir, "run.lock", content=LEFT_LOCK)
        write(run_dir, *names)
        before = snapshot(run_dir)
        with pytest.raises(ModelError):
            changed = config.model_copy(update={"model": "nowhere/model"})
            train(changed, run_dir=run_dir, resume=True)
        assert snapshot(run_dir) == before
        if names:
            with pytest.raises(CheckpointError, match="already holds a run; add --resume"):
                train(config, run_dir=run_dir)
            assert snapshot(run_dir) == before
    train(config, run_dir=run_dir, resume=True)
    assert (run_dir / "final").is_dir() and not (run_dir / "config.json.tmp").exists()
