"""The paper's runs against the paper's text, and the lab's; methods are in `test_methods.py`.

Numbers are those of Sec. 4.1 and 4.2 of arXiv:2604.01824; rows are named as its tables name them.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from strive.configs.catalogue import preset_kind, presets_by_kind
from strive.configs.load import PRESETS, load_config, read_config_file
from strive.configs.schema import TrainConfig

QWEN2_5, QWEN3 = "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"
GRPO = {"variants": "none", "spatial": False, "num_variants": 1, "num_generations": 8}
SIM = {
    "variants": "importance",
    "scorer": "llava_ov",
    "spatial": False,
    "num_variants": 2,
    "num_generations": 4,
}
STRIVE = SIM | {"spatial": True}
DR = {"objective": "dr_grpo"}
RUNS: dict[str, dict[str, Any]] = {
    # Table 1: 1,000 steps.
    "grpo_qwen2_5_vl_7b": GRPO | {"steps": 1000},
    "strive_qwen2_5_vl_7b": STRIVE | {"steps": 1000},
    "grpo_qwen3_vl_8b": GRPO | {"steps": 1000, "model": QWEN3},
    "strive_qwen3_vl_8b": STRIVE | {"steps": 1000, "model": QWEN3},
    # Tables 2 to 5: 500.
    "table2_grpo": GRPO,
    "table2_deterministic": SIM | {"variants": "deterministic", "scorer": None},
    "table2_stochastic": STRIVE | {"variants": "stochastic", "scorer": None},
    "table2_importance_sim": SIM,
    "table2_importance_grad": SIM | {"scorer": "gradient"},
    "table2_importance_sim_spatial": STRIVE,
    "table3_grpo": GRPO,
    "table3_strive": STRIVE,
    "table3_dr_grpo": GRPO | DR,
    "table3_strive_dr_grpo": STRIVE | DR,
    "dr_grpo_qwen2_5_vl_7b": GRPO | DR,
    "strive_dr_grpo_qwen2_5_vl_7b": STRIVE | DR,
    "table4_policy": STRIVE | {"scorer": "policy"},
    "table4_siglip2": STRIVE | {"scorer": "siglip2"},
    "table4_llava_ov": STRIVE,
    "table5_m1_g8": GRPO,
    "table5_m2_g4": STRIVE,
    "table5_m4_g2": STRIVE | {"num_variants": 4, "num_generations": 2},
}
OTHERS = ("lab", "lab_grpo", "lab_strive", "strive_qwen2_5_vl_7b_lora")
# What a cell may change; everything else is one setting of the paper, or of ours, for all runs.
VARIED = {"model", "steps", "scorer", "variants", "spatial", "num_variants", "num_generations"}


def test_no_run_is_left_out() -> None:
    found = presets_by_kind()
    assert sorted([*RUNS, *OTHERS]) == sorted([*found["run"], *found["lab"]])
    assert preset_kind("strive_qwen2_5_vl_7b_lora") == "run" and preset_kind("lab") == "lab"


@pytest.mark.parametrize("name", [*RUNS, *OTHERS])
def test_every_run_passes_the_schema_and_keeps_the_budget(name: str) -> None:
    config = load_config(TrainConfig, [name])
    # The paper compares at one budget: M x G = 8 responses (Sec. 4.1).
    assert config.num_variants * config.num_generations == 8
    assert config.num_frames == 16


@pytest.mark.parametrize("name", [*RUNS, *OTHERS])
def test_a_name_resolves_as_it_did_before_there_were_methods(name: str) -> None:
    """`resolved_presets.json`: all defaults of that time, and each preset's differences from them.

    A key that came later has its default in these runs.
    """
    before = json.loads((Path(__file__).parent / "resolved_presets.json").read_text())
    wanted = before["defaults"] | before["presets"][name]
    later = TrainConfig().model_dump(mode="json")
    assert load_config(TrainConfig, [name]).model_dump(mode="json") == later | wanted


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_the_paper(name: str) -> None:
    config = load_config(TrainConfig, [name]).model_dump()
    wanted = {"model": QWEN2_5, "steps": 500, "objective": "grpo"} | RUNS[name]
    assert {key: config[key] for key in wanted} == wanted
    assert (config["learning_rate"], config["beta"], config["frame_temperature"]) == (
        1e-6,
        0.04,
        0.4,
    )
    assert config["rewards"] == {"accuracy": 1.0, "format": 1.0}
    assert (config["grading"], config["grouping"]) == ("video_r1", "joint")
    base = load_config(TrainConfig, ["grpo_qwen2_5_vl_7b"]).model_dump()
    changed = {key for key, value in config.items() if value != base[key]}
    assert changed <= VARIED | {"objective"}


def test_cells_that_are_one_run_are_one_configuration() -> None:
    """Rows with equal digits in the paper: GRPO of Tables 2, 3, 5; STRIVE of Tables 2 to 5."""
    for first, *others in (
        ("table2_grpo", "table3_grpo", "table5_m1_g8"),
        (
            "table2_importance_sim_spatial",
            "table3_strive",
            "table4_llava_ov",
            "table5_m2_g4",
        ),
    ):
        for other in others:
            assert load_config(TrainConfig, [other]) == load_config(TrainConfig, [first])


def test_what_the_paper_leaves_open_is_written_out() -> None:
    """Not left to the schema's defaults: a change of those must not change the paper's runs."""
    stated = read_config_file("grpo_qwen2_5_vl_7b")
    for key in (
        "num_questions",
        "seed",
        "questions_per_step",
        "prompt_template",
        "position_rule",
        "max_pixels",
        "sampling_temperature",
        "top_p",
        "max_new_tokens",
        "grading",
        "schedule",
        "warmup_steps",
        "weight_decay",
        "trainable",
        "updates_per_rollout",
    ):
        assert key in stated


def test_defaults_are_the_papers_or_those_of_the_architecture_page() -> None:
    """The paper's where it says something, else those of "Numerics that the paper leaves open"."""
    wanted = {
        "variants": "importance",
        "num_variants": 2,
        "num_generations": 4,
        "num_frames": 16,
        "frame_temperature": 0.4,
        "score_transform": "none",
        "prompt_template": "video_r1",
        "position_rule": "published",
        "sampling_temperature": 1.0,
        "top_p": 0.95,
        "top_k": 0,
        "max_new_tokens": 768,
        "rewards": {"accuracy": 1.0, "format": 1.0},
        "grading": "video_r1",
        "grouping": "joint",
        "objective": "grpo",
        "std_correction": 1,
        "advantage_epsilon": 1e-4,
        "surrogate": "clip",
        "epsilon": 0.2,
        "epsilon_high": None,
        "beta": 0.04,
        "correct_kl_bias": False,
        "ratio": "token",
        "updates_per_rollout": 1,
        "steps": 1000,
        "learning_rate": 1e-6,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "schedule": "constant",
        "max_grad_norm": 1.0,
        "trainable": "language",
        "spatial": False,
        "seed": 0,
    }
    config = TrainConfig().model_dump()
    assert {key: config[key] for key in wanted} == wanted


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_preset_says_where_it_comes_from(name: str) -> None:
    text = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ") and "Table" in text.splitlines()[0]


LAB: dict[str, Any] = {
    "model": "lab:qwen2_5_vl",
    "prompt_template": "short",
    "max_new_tokens": 24,
    "steps": 150,
    "questions_per_step": 12,
    "questions_per_micro_batch": 12,
    "learning_rate": 2e-4,
    "warmup_steps": 5,
}


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("lab", LAB),
        ("lab_strive", LAB),  # importance, M=2 and G=4 are the defaults
        ("lab_grpo", LAB | {"variants": "none", "num_variants": 1, "num_generations": 8}),
    ],
)
def test_the_labs_runs_are_the_defaults_but_for_sizes(name: str, changed: dict[str, Any]) -> None:
    config = load_config(TrainConfig, [name]).model_dump()
    default = TrainConfig().model_dump()
    assert {key: value for key, value in config.items() if value != default[key]} == changed


def test_the_lab_leaves_what_cells_differ_in() -> None:
    assert not read_config_file("lab").keys() & (VARIED - {"model", "steps"} | {"objective"})


def test_the_lora_run_is_strives_but_for_what_is_trained() -> None:
    config = load_config(TrainConfig, ["strive_qwen2_5_vl_7b_lora"]).model_dump()
    assert (config["trainable"], config["lora_rank"], config["lora_alpha"]) == ("lora", 64, 128)
    base = load_config(TrainConfig, ["strive_qwen2_5_vl_7b"]).model_dump()
    changed = {key for key, value in config.items() if value != base[key]}
    assert changed <= {"trainable", "lora_rank", "lora_alpha", "learning_rate", "deepspeed"}
