"""Every method with each model, with the lab, and on top of STRIVE.

Values are those of the methods' papers and code, as the presets' comments say.
"""

from typing import Any

import pytest

from strive.configs.catalogue import (
    method_changes,
    preset_about,
    preset_kind,
    presets_by_kind,
)
from strive.configs.load import (
    PRESETS,
    load_config,
    preset_names,
    read_config_file,
    read_yaml,
)
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError
from strive.train.rewards import load_rewards

MODELS = {
    "qwen2_5_vl_7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3_vl_8b": "Qwen/Qwen3-VL-8B-Instruct",
    "lab": "lab:qwen2_5_vl",
}
# What makes each method itself, by the papers; all that the others share is GRPO's.
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"surrogate": "clip", "ratio": "token", "objective": "grpo", "beta": 0.04},
    "strive": {"variants": "importance", "num_variants": 2, "num_generations": 4},
    "dr_grpo": {"objective": "dr_grpo", "beta": 0.0},
    "dapo": {"objective": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "mask_truncated": True},
    "gspo": {"ratio": "geometric", "epsilon": 3e-4, "epsilon_high": 4e-4, "beta": 0.0},
    "cispo": {"surrogate": "cispo", "objective": "dapo", "cispo_cap": 5.0, "beta": 0.0},
    "sapo": {"surrogate": "sapo", "sapo_temperatures": (1.0, 1.05), "beta": 0.0},
    "t_grpo": {"contrast": "shuffle", "contrast_generations": 4, "num_generations": 8},
    "reverse_reward": {"contrast": "reverse", "contrast_generations": 1},
    "reg_grpo": {"surrogate": "regression", "beta": 0.1, "updates_per_rollout": 2},
    "share_advantage": {"grouping": "share", "num_variants": 2, "dual_clip": 3.0},
    "noisy_rollout": {"views": ("none", "noise"), "update_view": "first", "noise_steps": 500},
    "ema_std": {"std": "ema_per_type", "grouping": "joint"},
    "time_r1": {"rewards": {"grounding_iou_timed": 1.0, "format": 1.0}},
    "video_auto_r1": {"num_generations": 16, "beta": 0.01},
}
NEEDS_STEPS = ("gspo", "cispo", "sapo", "dapo", "reg_grpo")


def test_no_method_and_no_model_is_left_out() -> None:
    found = presets_by_kind()
    assert sorted(METHODS) == sorted(found["method"])
    assert found["method"][:2] == ["grpo", "strive"]
    assert sorted([*MODELS]) == sorted([*found["model"], "lab"])
    assert sorted(name for names in found.values() for name in names) == preset_names()
    assert all(preset_kind(name) == "method" for name in METHODS)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_goes_with_every_model(method: str, model: str) -> None:
    """What it changes of GRPO holds, unless the model's file says so; all else is GRPO's."""
    config = load_config(TrainConfig, [method, model]).model_dump(mode="json")
    base = load_config(TrainConfig, ["grpo", model]).model_dump(mode="json")
    of_model = read_config_file(model)
    assert config["model"] == MODELS[model]
    assert {key: config[key] for key in of_model} == of_model
    changes = {k: v for k, v in method_changes(method).items() if k not in of_model}
    assert {key: config[key] for key in changes} == changes
    assert {key for key in config if config[key] != base[key]} <= set(changes)


def test_a_model_sets_nothing_that_a_method_does() -> None:
    """So their order does not matter. The lab's sizes are another thing: it must come last."""
    set_by_methods = {key for method in METHODS for key in read_config_file(method)}
    for model in ("qwen2_5_vl_7b", "qwen3_vl_8b"):
        assert not set_by_methods & set(read_config_file(model))
    assert load_config(TrainConfig, ["lab", "gspo"]).max_new_tokens == 768


@pytest.mark.parametrize("method", METHODS)
def test_a_method_alone_is_valid_and_is_itself(method: str) -> None:
    config = load_config(TrainConfig, [method])
    assert {key: getattr(config, key) for key in METHODS[method]} == METHODS[method]
    assert config.num_frames == 16


@pytest.mark.parametrize("method", NEEDS_STEPS)
def test_methods_that_are_grpo_with_one_step_take_several(method: str) -> None:
    config = load_config(TrainConfig, [method])
    assert config.optimiser_steps_per_rollout > 1
    assert "one optimiser step" in (PRESETS / f"{method}.yaml").read_text().lower()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_its_rewards(method: str) -> None:
    config = load_config(TrainConfig, [method])
    assert set(load_rewards(list(config.rewards))) == set(config.rewards)


def test_video_auto_r1_asks_what_its_module_says() -> None:
    from strive.two_answers import SYSTEM_PROMPT

    assert read_config_file("video_auto_r1")["system_prompt"] == SYSTEM_PROMPT


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_file_is_its_differences(method: str) -> None:
    own = read_yaml(PRESETS / f"{method}.yaml")
    base = own.pop("extends", None)
    assert base == (None if method == "grpo" else "grpo")
    # A key may say again what is GRPO's, so that it counts over another method's.
    grpo = read_yaml(PRESETS / "grpo.yaml")
    differing = {key: value for key, value in own.items() if grpo.get(key) != value}
    assert method_changes(method) == ({} if method == "grpo" else differing)


@pytest.mark.parametrize("name", [*METHODS, "qwen2_5_vl_7b", "qwen3_vl_8b"])
def test_a_file_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    text = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ") and preset_about(name).endswith(".")
    assert max(map(len, text.splitlines())) <= 100
    assert "arXiv:" in (text.splitlines()[0] if name in METHODS else text)
    if name not in ("grpo", "strive", *MODELS):
        assert "# The source's" in text and ("ours" in text.lower() or "Left out" in text)


# --- on top of STRIVE -----------------------------------------------------------------------------

# What STRIVE keeps under a method; the reason where it does not, or where nothing comes of it.
KEPT = {"variants": "importance", "num_variants": 2, "spatial": True, "scorer": "llava_ov"}
ON_STRIVE = {
    "grpo": "pointless: STRIVE extends it",
    "strive": "pointless: itself",
    "dr_grpo": "",
    "dapo": "",
    "gspo": "",
    "cispo": "",
    "sapo": "",
    "t_grpo": "",  # the contrast is of the first variant
    "reverse_reward": "",
    "reg_grpo": "",  # predicted advantages are of the joint pool, too
    "share_advantage": "pointless: sets variants, M, G and spatial; a scorer is left, unread",
    "noisy_rollout": "refused: its views are its own",
    "ema_std": "",
    "time_r1": "",
    "video_auto_r1": "",  # with 16 completions of each variant
}


def test_every_method_has_a_word_about_strive() -> None:
    assert list(ON_STRIVE) == list(METHODS)


@pytest.mark.parametrize("method", [name for name, why in ON_STRIVE.items() if not why])
def test_a_method_on_strive_keeps_the_variants(method: str) -> None:
    config = load_config(TrainConfig, ["strive", method]).model_dump(mode="json")
    changes = method_changes(method)
    wanted = {"num_generations": 4, **KEPT, **changes}
    assert {key: config[key] for key in wanted} == wanted
    # In this order or the other: they change different things.
    other = load_config(TrainConfig, [method, "strive"]).model_dump(mode="json")
    assert {k for k in config if config[k] != other[k]} == set(changes) & {"num_generations"}


def test_pointless_and_refused_pairs() -> None:
    strive = load_config(TrainConfig, ["strive"])
    assert load_config(TrainConfig, ["strive", "grpo"]) == strive
    assert load_config(TrainConfig, ["strive", "strive"]) == strive
    share = load_config(TrainConfig, ["share_advantage"]).model_copy(update={"scorer": "llava_ov"})
    assert load_config(TrainConfig, ["strive", "share_advantage"]) == share
    with pytest.raises(ConfigError, match=r"views is \['none', 'noise'\] with spatial=true"):
        load_config(TrainConfig, ["strive", "noisy_rollout"])


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("gspo sapo", "ratio 'geometric' with surrogate 'sapo'"),
        ("gspo reg_grpo", "ratio 'geometric' with surrogate 'regression'"),
        ("dapo reg_grpo", "objective 'dapo'"),
        ("share_advantage cispo", "dual_clip is 3.0 with surrogate 'cispo'"),
        ("share_advantage ema_std", "std 'ema_per_type' with grouping 'share'"),
        ("dr_grpo ema_std", "objective 'dr_grpo'"),
    ],
)
def test_two_methods_that_replace_one_thing_are_refused(pair: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(TrainConfig, pair.split())


def test_paper_tables_are_methods_on_strive() -> None:
    """Table 3's two rows of Dr.GRPO are that method, with the paper's KL term and steps."""
    for row, files in (
        ("table3_dr_grpo", ["dr_grpo", "qwen2_5_vl_7b"]),
        ("table3_strive_dr_grpo", ["strive", "dr_grpo", "qwen2_5_vl_7b"]),
    ):
        made = load_config(TrainConfig, files, ["beta=0.04", "steps=500"])
        assert load_config(TrainConfig, [row]) == made
