from pathlib import Path

import pytest

from strive.configs.load import (
    layer_files,
    load_config,
    parse_override,
    read_config_file,
    read_yaml,
)
from strive.configs.schema import Config, EvaluateConfig, PrecomputeConfig, TrainConfig
from strive.errors import ConfigError, MissingInputError


def test_later_sources_win(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("steps: 1\nseed: 1\nbeta: 0.1\n")
    second.write_text("steps: 2\nseed: 2\n")
    config = load_config(
        TrainConfig, [str(first), str(second)], ["steps=3", "steps=4"], {"seed": 5, "cache": None}
    )
    assert (config.steps, config.seed, config.beta, config.cache) == (4, 5, 0.1, None)


def test_overrides_are_read_as_yaml() -> None:
    assert parse_override("a.b=[1, 2]") == (["a", "b"], [1, 2])
    config = load_config(TrainConfig, [], ["learning_rate=1e-5", "rewards.format=0.5"])
    assert config.learning_rate == 1e-5
    assert config.rewards == {"accuracy": 1.0, "format": 0.5}
    assert TrainConfig().rewards == {"accuracy": 1.0, "format": 1.0}  # the default stays
    config = load_config(
        TrainConfig, [], ["rewards={accuracy: 2}", "rewards.pkg.sub.rewards:judge=-0.5"]
    )
    assert config.rewards == {"accuracy": 2.0, "pkg.sub.rewards:judge": -0.5}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("num_varients=3", ["unknown config key 'num_varients'", "did you mean 'num_variants'"]),
        ("top_p=2", ["top_p", "2", "less than or equal to 1"]),
        ("steps=many", ["steps", "'many'", "integer"]),
        ("steps", ["key=value"]),
        ("steps.more=1", ["steps"]),
        ("num_generations=1", []),
        ("rewards=[accuracy, format]", ["['accuracy', 'format']", "{accuracy: 1.0, format: 0.5}"]),
        ("rewards={accuracy: high}", ["rewards.accuracy", "'high'", "number"]),
        ("rewards={accuracy: .inf}", ["rewards.accuracy", "inf", "finite"]),
        ("rewards={accuracy: 0, format: -0.0}", ["all of weight 0", "nothing is learned"]),
        ("learning_rate=.inf", ["learning_rate", "finite"]),
        ("data=3", ["data", "3", "a list is wanted, such as [first, second]"]),
        ("held_out=''", ["held_out", "a list is wanted"]),
        ("loggers=", ["loggers", "None", "[] for none"]),
        ("loggers=wandbb", ["loggers.0", "'wandbb'", "'tensorboard' or 'wandb'"]),
    ],
)
def test_bad_values_are_one_clear_line(override: str, words: list[str]) -> None:
    if override == "num_generations=1":
        # M=2 x G=1 is still a joint group of two; per-variant groups of one are refused.
        assert load_config(TrainConfig, [], [override]).num_generations == 1
        override, words = "grouping=per_variant", ["num_generations is 1", "at least 2"]
        with pytest.raises(ConfigError, match="at least 2"):
            load_config(TrainConfig, [], ["num_generations=1", override])
        return
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, [], [override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("schema", "override", "message"),
    [
        # data_root and video_root follow from other keys; they have no error of their own.
        (
            EvaluateConfig,
            "model=",
            "config key 'model' (--model) is None: Input should be a valid string",
        ),
        (
            PrecomputeConfig,
            "data=3",
            "config key 'data' (--data) is 3: a list is wanted, such as [first, second], or [] for "
            "none",
        ),
        (
            PrecomputeConfig,
            "scorer_models=7",
            "config key 'scorer_models' (--scorer-model) is 7: names with values are wanted, such "
            "as {siglip2: ID_OR_DIR}",
        ),
        (
            TrainConfig,
            "rewards=7",
            "config key 'rewards' is 7: names with numbers are wanted, such as {accuracy: 1.0, "
            "format: 0.5}",
        ),
        (
            PrecomputeConfig,
            "shard=3",
            "config key 'shard' (--shard) is 3: write i/n with 0 <= i < n",
        ),
        (PrecomputeConfig, "cache=3", "config key 'cache' (--cache) is 3: a path is wanted"),
    ],
)
def test_a_value_of_another_form_is_one_error(
    schema: type[Config], override: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(schema, [], [override])
    assert str(caught.value) == message


def test_a_number_stands_where_a_text_of_digits_may() -> None:
    overrides = ["max_missing=5", "scorer_models.random=7", "shard=[1, 4]"]
    config = load_config(PrecomputeConfig, [], overrides)
    assert (config.max_missing, config.scorer_models) == ("5", {"random": "7"})
    assert config.shard == (1, 4)


def test_presets_are_of_train_alone() -> None:
    for schema in (PrecomputeConfig, EvaluateConfig):
        with pytest.raises(MissingInputError) as missing:
            load_config(schema, ["nope"])
        assert str(missing.value) == "--config 'nope' is no file"
    with pytest.raises(ConfigError) as caught:
        load_config(PrecomputeConfig, ["lab_strive"])
    assert str(caught.value) == (
        "--config 'lab_strive' is a preset of train, not of precompute; give it as --for-config "
        "lab_strive"
    )
    with pytest.raises(ConfigError, match=r"is a preset of train, not of evaluate$"):
        load_config(EvaluateConfig, ["lab_strive"])


def test_grpo_keeps_the_papers_budget_and_refuses_contradictions() -> None:
    config = load_config(TrainConfig, [], ["variants=none"])
    assert (config.num_variants, config.num_generations) == (1, 8)
    with pytest.raises(ConfigError, match="set num_variants=1"):
        load_config(TrainConfig, [], ["variants=none", "num_variants=2"])


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="did you mean 'lab_strive'"):
        load_config(TrainConfig, ["lab_striv"])
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(TrainConfig, [str(broken)])
    listing = tmp_path / "list.yaml"
    listing.write_text("- 1\n")
    with pytest.raises(ConfigError, match="mapping"):
        load_config(TrainConfig, [str(listing)])


def test_a_file_extends_presets_and_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "near.yaml").write_text("extends: far.yaml\nsteps: 3\n")
    (tmp_path / "sub" / "far.yaml").write_text("extends: lab_grpo\nsteps: 2\nbeta: 0.5\nseed: 7\n")
    config = load_config(TrainConfig, [str(tmp_path / "sub" / "near.yaml")], ["seed=8"])
    lab = load_config(TrainConfig, ["lab_grpo"])
    changed = {"steps": 3, "beta": 0.5, "seed": 8}
    assert config == lab.model_copy(update=changed)
    # Nothing of the chain is left: what is written into a run needs no other file.
    assert "extends" not in config.model_dump()


def test_what_extends_comes_before_the_next_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("beta: 0.5\nepsilon: 0.3\n")
    second.write_text("extends: third.yaml\nsteps: 9\n")
    (tmp_path / "third.yaml").write_text("beta: 0.6\n")
    config = load_config(TrainConfig, [str(first), str(second)])
    assert (config.beta, config.epsilon, config.steps) == (0.6, 0.3, 9)


def write_family(folder: Path) -> None:
    """base <- left <- leaf, base <- right; each says beta, and one key of its own."""
    for name, text in (
        ("base", "beta: 0.1\nsteps: 10\nseed: 1"),
        ("left", "extends: base.yaml\nbeta: 0.2\nsteps: 20"),
        ("right", "extends: base.yaml\nseed: 3"),
        ("leaf", "extends: left.yaml\ntop_k: 4"),
        ("both", "extends: [left.yaml, right.yaml]\ntop_k: 5"),
        ("over", "beta: 0.6"),
    ):
        (folder / f"{name}.yaml").write_text(text + "\n")


@pytest.mark.parametrize(
    ("names", "order", "wanted"),
    [
        # The base is read once, before what extends it, so that it takes nothing back.
        ("left right", "base left right", (0.2, 20, 3, 0)),
        ("right left", "base right left", (0.2, 20, 3, 0)),
        ("both", "base left right both", (0.2, 20, 3, 5)),
        ("leaf right", "base left leaf right", (0.2, 20, 3, 4)),
        # Where a file came first it stays, even if it is named again later.
        ("left base", "base left", (0.2, 20, 1, 0)),
        ("leaf left", "base left leaf", (0.2, 20, 1, 4)),
        ("base over left", "base over left", (0.2, 20, 1, 0)),
        ("left over base", "base left over", (0.6, 20, 1, 0)),
        ("over over", "over", (0.6, 1000, 0, 0)),
    ],
)
def test_a_file_counts_once_where_it_comes_first(
    names: str, order: str, wanted: tuple[float, int, int, int], tmp_path: Path
) -> None:
    write_family(tmp_path)
    files = [str(tmp_path / f"{name}.yaml") for name in names.split()]
    config = load_config(TrainConfig, files)
    assert (config.beta, config.steps, config.seed, config.top_k) == wanted
    # The same as the files in that order, without anything that they extend.
    merged: dict[str, object] = {}
    for name in order.split():
        merged |= read_yaml(tmp_path / f"{name}.yaml")
    merged.pop("extends", None)
    assert layer_files(files) == merged


def test_a_list_of_one_and_an_empty_list(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("extends: [lab_grpo]\n")
    (tmp_path / "none.yaml").write_text("extends: []\nsteps: 3\n")
    assert read_config_file(str(tmp_path / "one.yaml")) == read_config_file("lab_grpo")
    assert read_config_file(str(tmp_path / "none.yaml")) == {"steps": 3}


def test_one_file_by_two_names_is_one_file(tmp_path: Path) -> None:
    write_family(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "far.yaml").write_text("extends: ../base.yaml\nbeta: 0.9\n")
    files = [str(tmp_path / "left.yaml"), str(tmp_path / "sub" / "far.yaml")]
    assert layer_files(files) == {"beta": 0.9, "steps": 20, "seed": 1}


def test_bad_extends_are_one_clear_line(tmp_path: Path) -> None:
    def load(text: str) -> None:
        (tmp_path / "a.yaml").write_text(text)
        load_config(TrainConfig, [str(tmp_path / "a.yaml")])

    with pytest.raises(MissingInputError, match=r"'lab_grp' is neither.*did you mean 'lab_grpo'"):
        load("extends: lab_grp\n")
    for text, shown in (("[x, 3]", r"\['x', 3\]"), ("3", "3"), ("{a: b}", r"\{'a': 'b'\}")):
        with pytest.raises(ConfigError, match=rf"extends is {shown}; the name of one preset or"):
            load(f"extends: {text}\n")
    with pytest.raises(MissingInputError, match=r"extends 'lab_grp' is neither.*'lab_grpo'"):
        load("extends: [lab, lab_grp]\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ConfigError, match=r"in a circle \(.*a.yaml -> .*b.yaml -> .*a.yaml\)"):
        load("extends: b.yaml\n")
    with pytest.raises(ConfigError, match="in a circle"):
        load("extends: a.yaml\n")
    with pytest.raises(ConfigError, match=r"in a circle \(.*a.yaml -> .*b.yaml -> .*a.yaml\)"):
        load("extends: [lab, b.yaml]\n")
    # A typo in a base is named like any other.
    (tmp_path / "b.yaml").write_text("num_varients: 2\n")
    with pytest.raises(ConfigError, match="unknown config key 'num_varients'"):
        load("extends: b.yaml\n")
    with pytest.raises(ConfigError, match="extends is for YAML files"):
        load_config(TrainConfig, [], ["extends=lab_grpo"])
    assert read_config_file("table3_grpo")["steps"] == 500


def test_config_is_frozen_and_round_trips() -> None:
    config = load_config(TrainConfig, ["lab_strive"])
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 3  # type: ignore[misc]
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


def test_paths_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("cache: ~/cache\ndata: [~/a.jsonl, b.jsonl]\n")
    config = load_config(TrainConfig, ["~/mine.yaml"], overrides=["held_out=['~/h.jsonl']"])
    assert config.cache == tmp_path / "cache"
    assert config.data == (tmp_path / "a.jsonl", Path("b.jsonl"))
    assert config.held_out == (tmp_path / "h.jsonl",)


def test_one_text_where_several_may_stand_is_a_list_of_one() -> None:
    config = load_config(TrainConfig, [], ["data=a.jsonl", "held_out=~/b.jsonl", "loggers=wandb"])
    assert config.data == (Path("a.jsonl"),) and config.held_out == (Path.home() / "b.jsonl",)
    assert config.loggers == ("wandb",)
