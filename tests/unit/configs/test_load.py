from pathlib import Path

import pytest

from strive.configs.load import load_train_config, parse_override, preset_names
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError, MissingInputError


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_passes_the_schema(name: str) -> None:
    config = load_train_config([name])
    # The paper compares at one budget: M x G = 8 responses (Sec. 4.1).
    assert config.num_variants * config.num_generations == 8
    assert config.num_frames == 16


def test_paper_presets_state_the_papers_settings() -> None:
    config = load_train_config(["strive_qwen2_5_vl_7b"])
    assert (config.num_variants, config.num_generations) == (2, 4)
    assert (config.learning_rate, config.beta, config.frame_temperature) == (1e-6, 0.04, 0.4)
    assert config.steps == 1000
    assert config.grading == "video_r1"


def test_later_sources_win(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("steps: 1\nseed: 1\nbeta: 0.1\n")
    second.write_text("steps: 2\nseed: 2\n")
    config = load_train_config(
        [str(first), str(second)], ["steps=3", "steps=4"], {"seed": 5, "cache": None}
    )
    assert (config.steps, config.seed, config.beta, config.cache) == (4, 5, 0.1, None)


def test_overrides_are_read_as_yaml() -> None:
    assert parse_override("a.b=[1, 2]") == (["a", "b"], [1, 2])
    config = load_train_config([], ["learning_rate=1e-5", "rewards.format=0.5"])
    assert config.learning_rate == 1e-5
    assert config.rewards == {"accuracy": 1.0, "format": 0.5}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("num_varients=3", ["unknown config key 'num_varients'", "did you mean 'num_variants'"]),
        ("top_p=2", ["top_p", "2", "less than or equal to 1"]),
        ("steps=many", ["steps", "'many'", "integer"]),
        ("steps", ["key=value"]),
        ("steps.more=1", ["steps"]),
        ("num_generations=1", []),
    ],
)
def test_bad_values_are_one_clear_line(override: str, words: list[str]) -> None:
    if override == "num_generations=1":
        # M=2 x G=1 is still a joint group of two; per-variant groups of one are refused.
        assert load_train_config([], [override]).num_generations == 1
        override, words = "grouping=per_variant", ["num_generations is 1", "at least 2"]
        with pytest.raises(ConfigError, match="at least 2"):
            load_train_config([], ["num_generations=1", override])
        return
    with pytest.raises(ConfigError) as caught:
        load_train_config([], [override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_grpo_keeps_the_papers_budget_and_refuses_contradictions() -> None:
    config = load_train_config([], ["variants=none"])
    assert (config.num_variants, config.num_generations) == (1, 8)
    with pytest.raises(ConfigError, match="set num_variants=1"):
        load_train_config([], ["variants=none", "num_variants=2"])


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="did you mean 'lab_strive'"):
        load_train_config(["lab_striv"])
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1,\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_train_config([str(broken)])
    listing = tmp_path / "list.yaml"
    listing.write_text("- 1\n")
    with pytest.raises(ConfigError, match="mapping"):
        load_train_config([str(listing)])


def test_config_is_frozen_and_round_trips() -> None:
    config = load_train_config(["lab_strive"])
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 3  # type: ignore[misc]
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
