import json

import polars as pl
import pytest

from strive.errors import CheckpointError, DiskError
from strive.train.run_folder import Best, RunFolder, append_line
from strive.train.start import require_same_config


def row(step, **changes):
    return {
        "step": step,
        "question_id": "q",
        "variant": 0,
        "generation": 0,
        "frame_index": [0, 1],
        "evidence_seen": None,
        "text": "é",
        "reward": 1.0,
        "reward_accuracy": float("nan"),
        "advantage": 0.0,
        "length": 3,
        "truncated": False,
    } | changes


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_config({"config": {"seed": 0}})
    return folder


def make_checkpoint(folder, step):
    folder.checkpoint(step).mkdir(parents=True)
    (folder.checkpoint(step) / "state.json").write_text(json.dumps({"step": step}))


def put_best(folder, step, value):
    """As a run does it: a whole policy under another name, then the change of names."""
    policy = folder.root / "best.tmp"
    policy.mkdir()
    (policy / "weights").write_text(f"of step {step}")
    folder.replace_best(policy, Best(step, "accuracy", value))


def weights_of_best(folder):
    return (folder.best / "weights").read_text() if folder.best.is_dir() else None


def steps_of(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_metrics_are_json_lines_without_nan(folder):
    append_line(folder.metrics_file, {"step": 1, "a": 0.5, "b": float("nan"), "c": 3})
    assert folder.metrics_file.read_text() == '{"step": 1, "a": 0.5, "b": null, "c": 3}\n'
    assert folder.last_metrics() == {"step": 1, "a": 0.5, "b": None, "c": 3}


def test_completions_are_one_table(folder):
    folder.add_completions([row(1), row(1, generation=1)])
    folder.flush_completions()
    folder.add_completions([row(2)])
    folder.flush_completions()
    folder.flush_completions()
    table = pl.read_parquet(folder.completions)
    assert table["step"].to_list() == [1, 1, 2] and table["text"][0] == "é"
    assert table.schema["frame_index"] == pl.List(pl.Int64)
    assert table.schema["evidence_seen"] == pl.Boolean


def test_cut_back_leaves_what_the_checkpoint_saw(folder):
    for step in (1, 2, 3, 4):
        append_line(folder.metrics_file, {"step": step})
        append_line(folder.held_out_file, {"step": step})
        folder.add_completions([row(step)])
        if step == 1:
            folder.flush_completions()
    folder.flush_completions()
    with folder.metrics_file.open("a") as out:
        out.write('{"step": 5, "half')
    make_checkpoint(folder, 2)
    make_checkpoint(folder, 4)
    (folder.checkpoints / "step-000005.tmp").mkdir()
    folder.final.mkdir()
    folder.cut_back(2)
    assert steps_of(folder.metrics_file) == steps_of(folder.held_out_file) == [1, 2]
    assert pl.read_parquet(folder.completions)["step"].to_list() == [1, 2]
    assert folder.checkpoint_steps() == [2]
    assert not folder.final.exists()
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000002"]


def test_cut_back_to_nothing(folder):
    append_line(folder.metrics_file, {"step": 1})
    append_line(folder.held_out_file, {"step": 0})
    folder.add_completions([row(1)])
    folder.flush_completions()
    put_best(folder, 0, 0.5)
    folder.cut_back(0)
    assert folder.metrics_file.read_text() == "" and not list(folder.completions.iterdir())
    # The run that begins anew evaluates its starting policy again.
    assert folder.held_out_file.read_text() == "" and folder.read_best() is None
    RunFolder(folder.root / "new").cut_back(0)


def test_an_unfinished_checkpoint_is_none(folder):
    (folder.checkpoints / "step-000003.tmp").mkdir(parents=True)
    folder.checkpoint(4).mkdir()
    assert folder.checkpoint_steps() == []


def test_prune_keeps_the_newest(folder):
    for step in (5, 100, 20):
        make_checkpoint(folder, step)
    folder.prune_checkpoints(2)
    assert folder.checkpoint_steps() == [20, 100]


def test_another_configuration_is_refused_with_the_keys(folder):
    with pytest.raises(CheckpointError, match=r"beta: the run has 0.04, this call has 0.1\)"):
        require_same_config({"beta": 0.04, "seed": 1}, {"beta": 0.1, "seed": 1}, folder.root)
    require_same_config({"beta": 0.04}, {"beta": 0.04}, folder.root)
    # A run that began before there was such a key did what its default says.
    require_same_config({"beta": 0.04}, {"beta": 0.04, "surrogate": "clip"}, folder.root)
    with pytest.raises(CheckpointError, match='surrogate: the run has "clip", this call has "a:b"'):
        require_same_config({"beta": 0.04}, {"surrogate": "a:b"}, folder.root)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cannot write"):
        RunFolder(tmp_path / "file" / "run").write_config({})


def test_the_best_policy_is_one_folder_that_says_what_it_is(folder):
    assert folder.read_best() is None
    put_best(folder, 0, 0.25)
    put_best(folder, 10, 0.5)
    assert json.loads((folder.best / "best.json").read_text()) == {
        "step": 10,
        "metric": "accuracy",
        "value": 0.5,
    }
    assert folder.read_best() == Best(10, "accuracy", 0.5)
    assert weights_of_best(folder) == "of step 10"
    # Nothing was saved at step 0, so nothing could ask for its policy again.
    assert not folder.best_of_checkpoint.exists()


def test_cut_back_brings_back_the_best_that_the_checkpoint_saw(folder):
    put_best(folder, 10, 0.5)
    make_checkpoint(folder, 20)
    folder.forget_earlier_best()
    put_best(folder, 30, 0.6)
    put_best(folder, 40, 0.7)
    assert weights_of_best(folder) == "of step 40"
    folder.cut_back(20)
    assert weights_of_best(folder) == "of step 10" and folder.read_best().value == 0.5
    assert not folder.best_of_checkpoint.exists() and folder.checkpoint_steps() == [20]


def test_cut_back_keeps_a_best_that_the_checkpoint_saw(folder):
    put_best(folder, 10, 0.5)
    make_checkpoint(folder, 20)
    put_best(folder, 30, 0.6)
    make_checkpoint(folder, 30)
    # Killed before `forget_earlier_best`: the older one is no longer wanted.
    folder.cut_back(30)
    assert weights_of_best(folder) == "of step 30" and not folder.best_of_checkpoint.exists()


def test_a_kill_between_the_two_renames_loses_no_best(folder):
    put_best(folder, 10, 0.5)
    make_checkpoint(folder, 20)
    folder.best.rename(folder.best_of_checkpoint)
    (folder.root / "best.tmp").mkdir()
    folder.cut_back(20)
    assert weights_of_best(folder) == "of step 10"
    assert not (folder.root / "best.tmp").exists()


def test_the_name_at_weights_and_biases_stays(folder):
    first = folder.wandb_run_id()
    assert len(first) == 8 and RunFolder(folder.root).wandb_run_id() == first
