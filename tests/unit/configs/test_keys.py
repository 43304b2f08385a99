"""The keys as people see them, and other trainers' names for them."""

import pytest

from strive.answers import TEMPLATES
from strive.configs.keys import OTHER_NAMES, config_keys, find_keys, other_name
from strive.configs.load import load_config
from strive.configs.schema import SCHEMAS, PrecomputeConfig, TrainConfig
from strive.errors import ConfigError
from strive.train.loss import OBJECTIVES, SURROGATES
from strive.train.rewards import REWARDS
from strive.variants import VARIANT_KINDS


def test_every_key_has_meaning_type_and_default() -> None:
    for schema in SCHEMAS.values():
        keys = config_keys(schema)
        assert [key.name for key in keys] == list(schema.model_fields)
        for key in keys:
            assert key.meaning.endswith(".") and key.type and key.default, key
            assert "`" not in key.meaning and "\n" not in key.meaning
    found = {key.name: key for key in config_keys(TrainConfig)}
    assert (found["data"].type, found["data"].default) == ("[path, ...]", "[]")
    assert found["rewards"].type == "{name: number, ...}"
    assert (found["steps"].type, found["steps"].default) == ("whole number > 0", "1000")
    assert (found["std_correction"].type, found["keep_best"].type) == ("0 | 1", "true | false")
    assert found["loggers"].type == "[tensorboard | wandb, ...]"


def test_meanings_name_what_there_is() -> None:
    """What is chosen by name is text for the schema: its meaning lists the names."""
    found = {key.name: key for key in config_keys(TrainConfig)}
    for name in VARIANT_KINDS:
        assert name in found["variants"].meaning
    for name in set(TEMPLATES) - {"video_r1_eval"}:  # evaluation's own wording
        assert name in found["prompt_template"].meaning
    for name in REWARDS:
        assert name in found["rewards"].meaning
    for name in OBJECTIVES:
        assert name in found["objective"].meaning
    for name in SURROGATES:
        assert name in found["surrogate"].meaning


def test_other_names_lead_to_what_there_is() -> None:
    for name, meant in OTHER_NAMES.items():
        assert meant.ours in (*TrainConfig.model_fields, "--run-dir", "--resume", "nothing"), name
        # A name that is ours as well needs a word of what is not the same.
        assert name not in TrainConfig.model_fields or meant.note
    keys, others = find_keys("rollout.n", TrainConfig)
    assert {key.name for key in keys} == {"num_generations"}
    assert set(others) == {"n"}
    assert "num_variants" in {key.name for key in find_keys("M", TrainConfig)[0]}


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("temperature", "sampling_temperature"),
        ("Temperature", "sampling_temperature"),
        ("num_train_epochs", "steps"),
        ("max_completion_length", "max_new_tokens"),
        ("per_device_train_batch_size", "questions_per_step"),
        ("actor_rollout_ref.rollout.n", "num_generations"),
        ("actor_rollout_ref.actor.optim.lr", "learning_rate"),
        ("algorithm.beta", "beta"),
        ("num-variants", "num_variants"),
        ("use_vllm", "nothing"),
    ],
)
def test_the_unknown_key_error_leads_there(key: str, ours: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, [], [f"{key}=1"])
    assert str(caught.value).startswith(f"unknown config key '{key}'; here: {ours}")


def test_a_key_of_no_one_points_to_the_list() -> None:
    assert other_name("nonsense", TrainConfig) is None
    assert other_name("temperature", PrecomputeConfig) is None
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, [], ["zzz=1", "num_varients=2"])
    assert str(caught.value) == (
        "unknown config key 'zzz'; strive-cli train --keys lists them; unknown config key "
        "'num_varients' (did you mean 'num_variants'?); strive-cli train --keys lists them"
    )
