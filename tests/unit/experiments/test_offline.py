"""What a call of `precompute` means: data, scorers and models, by hand and for a training run."""

from pathlib import Path
from typing import Any

import pytest

from strive.configs.load import Given
from strive.configs.schema import PrecomputeConfig
from strive.errors import ConfigError, MissingInputError, UnknownNameError
from strive.experiments.offline import resolve
from strive.experiments.workspace import Workspace, ensure_lab
from strive.lab.models import lab_model_path

DATA = (Path("/data/a.jsonl"), Path("/data/b.jsonl"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    ensure_lab(workspace, num_clips=4, seed=0)
    return workspace


def config_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return str(path)


def found(workspace: Workspace, **asked: Any) -> PrecomputeConfig:
    return resolve(workspace, Given(options=asked))


def test_without_data_it_is_the_lab_with_the_labs_models(lab: Workspace) -> None:
    said: list[str] = []
    asked = {"scorers": ("siglip2", "policy", "gradient", "random")}
    options = resolve(lab, Given(options=asked), say_lab=lambda: said.append("lab"))
    assert said == ["lab"]
    assert options.data == (lab.lab / "train.jsonl", lab.lab / "held_out.jsonl")
    policy = str(lab_model_path("qwen2_5_vl"))
    assert options.scorer_models == {
        "siglip2": str(lab_model_path("siglip2")),
        "policy": policy,
        "gradient": policy,
    }


def test_the_users_data_gets_no_lab_model(tmp_path: Path) -> None:
    options = found(Workspace(tmp_path), data=DATA)
    assert (options.scorers, options.scorer_models) == (("siglip2",), {})
    assert options.video_root == Path("/data") and options.cache == tmp_path / "cache"


def test_one_policy_serves_both_its_scorers(tmp_path: Path) -> None:
    scorers = ("siglip2", "policy", "gradient")
    options = found(
        Workspace(tmp_path),
        data=DATA,
        scorers=scorers,
        policy="lab:qwen3_vl",
        scorer_models=("gradient=/models/x",),
    )
    policy = str(lab_model_path("qwen3_vl"))
    assert options.scorer_models == {"policy": policy, "gradient": "/models/x"}
    with pytest.raises(ConfigError, match="add --scorer policy"):
        found(Workspace(tmp_path), data=DATA, policy="x")


def test_files_set_texts_and_options_are_layers(tmp_path: Path) -> None:
    name = config_file(tmp_path, "data: /d/a.jsonl\nframes: 16\ncache: /c\nscorers: random")
    given = Given([name], ["frames=8", "shard=1/4"], {"seed": 4, "limit": None})
    options = resolve(Workspace(tmp_path), given)
    assert (options.frames, options.seed, options.shard) == (8, 4, (1, 4))
    assert (options.cache, options.video_root) == (Path("/c"), Path("/d"))
    assert options.scorers == ("random",)
    with pytest.raises(ConfigError, match=r"'frmaes' \(did you mean 'frames'.*precompute --keys"):
        resolve(Workspace(tmp_path), Given(overrides=["frmaes=8"]))


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"shard": "1-4"}, r"\(--shard\) is '1-4': write i/n"),
        ({"shard": "\u00b2/3"}, "write i/n"),
        ({"filters": ["data_source"]}, r"\(--filter\) is 'data_source': write field=value"),
        ({"scorers": ("x:a", "x:b"), "scorer_models": ["/models/a"]}, "write NAME=/models/a"),
        ({"workers": 0}, r"\(--workers\) is 0: .*greater than 0"),
    ],
)
def test_texts_that_cannot_be_read(tmp_path: Path, option: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        found(Workspace(tmp_path), data=DATA, **option)


def test_texts_of_options_are_read(tmp_path: Path) -> None:
    options = found(
        Workspace(tmp_path),
        data=DATA,
        shard="1/4",
        filters=["data_source=a=b"],
        scorers=["x:y"],
        scorer_models=["/models/a"],
    )
    assert (options.shard, options.filters) == ((1, 4), (("data_source", "a=b"),))
    assert options.scorer_models == {"x:y": "/models/a"}


def test_a_lab_run_is_prepared_with_its_own_splits(lab: Workspace) -> None:
    options = found(lab, for_config="lab_strive")
    assert options.data == (lab.lab / "train.jsonl",)
    assert options.held_out == (lab.lab / "held_out.jsonl",)
    assert options.scorers == ("siglip2",) and options.for_config == "lab_strive"


def test_a_run_says_which_records_and_scorer_it_reads(tmp_path: Path) -> None:
    text = (
        "num_questions: 40\nseed: 9\nscorer: random\ndata: [/d/train.jsonl]\nheld_out: [/d/h.jsonl]"
    )
    name = config_file(tmp_path, text)
    options = found(Workspace(tmp_path), for_config=name)
    assert options.data == (Path("/d/train.jsonl"),)
    assert options.held_out == (Path("/d/h.jsonl"),)
    assert (options.subset, options.seed, options.scorers) == (40, 9, ("random",))
    # Data named in the call stands in for the configuration's, as it does in training.
    assert found(Workspace(tmp_path), for_config=name, data=DATA).data == DATA


def test_a_run_without_scores_gets_frames_alone(tmp_path: Path) -> None:
    name = config_file(tmp_path, "variants: none\nnum_variants: 1\nnum_generations: 8")
    assert found(Workspace(tmp_path), for_config=name, data=DATA).scorers == ()


@pytest.mark.parametrize(
    ("asked", "error", "text"),
    [
        ({"for_config": "lab_strife"}, MissingInputError, "did you mean 'lab_strive'"),
        ({"for_config": "lab_strive", "subset": 3}, ConfigError, "--subset and --for-config"),
        ({"for_config": "lab_strive", "seed": 3}, ConfigError, "--seed and --for-config"),
        (
            {"for_config": "lab_strive", "filters": (("data_source", "x"),)},
            ConfigError,
            "--filter and --for-config",
        ),
        ({"for_config": "strive_qwen2_5_vl_7b"}, ConfigError, "names no records.*--data"),
        (
            {"for_config": "strive_qwen2_5_vl_7b", "data": DATA, "scorers": ("random",)},
            ConfigError,
            "not among --scorer random",
        ),
        ({"data": DATA, "scorers": ("siglip",)}, UnknownNameError, "did you mean 'siglip2'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    tmp_path: Path, asked: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        found(Workspace(tmp_path), **asked)
    assert "\n" not in str(caught.value)
