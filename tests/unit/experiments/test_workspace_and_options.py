from pathlib import Path

import pytest

from strive.cache.layout import create_cache
from strive.cache.questions import write_questions
from strive.configs.load import Given
from strive.configs.schema import TrainConfig
from strive.errors import (
    CacheError,
    CheckpointError,
    ConfigError,
    RunInUseError,
    UnknownNameError,
)
from strive.experiments.offline import resolve
from strive.experiments.training import (
    resolve_config,
    run_training,
    with_model_folder,
)
from strive.experiments.workspace import Workspace, resolve_model, trained_template
from strive.records import Record


def test_workspace_option_beats_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIVE_WORKSPACE", "/from/environment")
    assert Workspace.find(Path("given")).root == Path("given")
    assert Workspace.find(None).root == Path("/from/environment")
    monkeypatch.delenv("STRIVE_WORKSPACE")
    assert Workspace.find(None).root == Path("strive-workspace")


def test_runs_are_numbered_and_the_newest_is_resumed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        workspace.newest_run("a")
    assert workspace.new_run("a").name == "a-001"
    for name in ("a-001", "a-002", "ab-009"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert workspace.new_run("a").name == "a-003"
    assert workspace.newest_run("a").name == "a-002"


def test_lab_names_resolve_to_folders_and_typos_are_named() -> None:
    assert (Path(resolve_model("lab:siglip2")) / "open_clip_config.json").is_file()
    assert resolve_model("Qwen/Qwen2.5-VL-7B-Instruct") == "Qwen/Qwen2.5-VL-7B-Instruct"
    with pytest.raises(UnknownNameError, match="did you mean 'qwen2_5_vl'"):
        resolve_model("lab:qwen25vl")


@pytest.mark.parametrize(
    ("options", "overrides", "files", "expected"),
    [
        ({}, [], [], True),
        ({"variants": "none"}, ["steps=3"], ["lab_grpo"], True),
        ({"model": "lab:qwen3_vl"}, [], [], True),
        ({}, ["model=lab:qwen3_vl"], [], True),
        ({"model": "lab:qwen3_vl", "cache": "c"}, [], [], False),
        ({"model": "m"}, [], [], False),
        ({}, ["cache=c"], [], False),
        ({}, ["evaluate_every=5"], [], True),
        ({}, [], ["strive_qwen2_5_vl_7b"], False),
        ({}, [], ["strive_qwen2_5_vl_7b", "lab"], True),
        ({}, ["cache=c"], ["strive_qwen2_5_vl_7b", "lab"], False),
    ],
)
def test_the_lab_is_meant_only_when_nothing_of_the_users_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict,
    overrides: list[str],
    files: list[str],
    expected: bool,
) -> None:
    workspace = Workspace(tmp_path)
    for cache in (workspace.lab_cache, workspace.cache, Path(tmp_path / "c")):
        cache.mkdir(parents=True)
        (cache / "cache.json").write_text("{}")
    given = Given(files, overrides, options)
    monkeypatch.chdir(tmp_path)
    config, on_lab = resolve_config(workspace, given)
    assert on_lab is expected and (config.cache == workspace.lab_cache) is expected


def test_user_data_without_a_cache_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"precompute --data mine.jsonl --cache c"):
        own = {"data": (Path("mine.jsonl"),), "cache": Path("c")}
        resolve_config(Workspace(tmp_path), Given(options=own))


def test_several_processes_need_a_named_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    (workspace.lab_cache).mkdir(parents=True)
    (workspace.lab_cache / "cache.json").write_text("{}")
    config, on_lab = resolve_config(workspace, Given())
    assert on_lab
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--run-dir"):
        run_training(config, workspace)


def test_a_name_that_another_start_took_in_between_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def run(config: TrainConfig, *, run_dir: Path, resume: bool, **_: object) -> str:
        tried.append(run_dir.name)
        if len(tried) == 1 or resume:
            run_dir.mkdir(parents=True, exist_ok=True)
            raise RunInUseError("in use")
        return "done"

    monkeypatch.setattr("strive.train.loop.train", run)
    workspace, config = Workspace(tmp_path), TrainConfig(model="m")
    assert run_training(config, workspace) == "done"
    assert tried == ["m-importance-001", "m-importance-002"]
    # A folder that was asked for is not replaced by another one.
    for run_dir, resume in ((None, True), (tmp_path / "r", True)):
        with pytest.raises(RunInUseError):
            run_training(config, workspace, run_dir=run_dir, resume=resume)
    tried.clear()
    with pytest.raises(RunInUseError):
        run_training(config, workspace, run_dir=tmp_path / "r")


def test_the_lab_is_never_mixed_into_a_users_cache(tmp_path: Path) -> None:
    layout = create_cache(tmp_path / "cache")
    mine = Record("1", "a.mp4", "What?", "free-form", (), "<answer>x</answer>", "mine")
    write_questions(layout, [mine], writer="test")
    workspace = Workspace(tmp_path / "workspace")
    with pytest.raises(ConfigError, match="1 questions that are not the lab's"):
        resolve(workspace, Given(options={"cache": tmp_path / "cache"}))
    assert not workspace.lab.exists()


def test_a_model_of_a_run_knows_the_prompt_that_it_was_taught(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    assert trained_template(tmp_path / "final") is None
    (tmp_path / "config.json").write_text('{"config": {"prompt_template": "short"}}')
    assert trained_template(tmp_path / "final") == "short"
    (tmp_path / "config.json").write_text("[]")
    assert trained_template(tmp_path / "final") is None


def test_the_labs_models_are_asked_as_they_were_taught(capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig(model="lab:qwen2_5_vl", cache=Path("c"))
    with_model_folder(config.model_copy(update={"prompt_template": "short"}))
    assert capsys.readouterr().err == ""
    with_model_folder(config)
    assert (
        "were taught prompt_template=short, and are asked with video_r1" in capsys.readouterr().err
    )
