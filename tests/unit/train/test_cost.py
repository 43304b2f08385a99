import pytest

from strive.lab.models import lab_model_path
from strive.train.calibrate import calibrate
from strive.train.cost import Hardware, estimate_gpu_hours
from strive.train.plan import dry_run

# One process, one question a step, M=2, G=4; sizes that make the sums easy.
PLAN = {
    "config": {
        "dtype": "auto",
        "max_new_tokens": 100,
        "questions_per_step": 1,
        "num_variants": 2,
        "updates_per_rollout": 1,
        "trainable": "language",
        "gradient_checkpointing": False,
        "beta": 0.04,
        "steps": 3600,
    },
    "num_processes": 1,
    "completions_per_step": 8,
    "parameters": {
        "layers": 1_000_000,
        "head": 100_000,
        "vision": 500_000,
        "trained_language": 1_100_000,
        "trained_vision": 0,
    },
    "tokens": {
        "prompt": 50,
        "video_patches": 40,
        "prefill_per_step": 100,
        "completion_per_step_at_most": 800,
        "logprob_per_step_at_most": 900,
    },
    "vision_encodes": {"per_step": 2},
    "memory": {"inputs": {"layers": 4, "kv_width": 16}},
}
GPU = Hardware(tflops=1e-6, utilisation=0.5, bandwidth_gb=1e-3)
"""F = 500,000 operations a second, B = 1,000,000 bytes a second."""


def changed(**changes):
    config = PLAN["config"] | changes
    return PLAN | {"config": config}


def test_each_part_of_the_formula():
    cost = estimate_gpu_hours(PLAN, GPU)
    seconds = cost["seconds_per_step"]
    # 2 * 500,000 parameters * 40 patches * 2 encodes / F
    assert seconds["vision"] == pytest.approx(160)
    # 2 * 1,000,000 * 100 tokens / F
    assert seconds["prefill"] == pytest.approx(400)
    # By bandwidth a token takes (1,100,000 * 2 bytes + 8 rows * (50 + 100/2) * 2*4*16*2) / B =
    # (2,200,000 + 204,800) / B = 2.4048 s; by operations 2 * 1,100,000 * 8 / F = 35.2 s, which is
    # more; 100 tokens.
    assert seconds["decode"] == pytest.approx(3520)
    # 900 tokens * (4 * 1,000,000 + 2 * 1,000,000) + 800 * 8 * 100,000 = 5.4e9 + 0.64e9
    assert seconds["policy"] == pytest.approx(12_080)
    # 900 * 2 * 1,000,000 + 800 * 2 * 100,000 = 1.8e9 + 0.16e9
    assert seconds["reference"] == pytest.approx(3920)
    assert seconds["total"] == pytest.approx(160 + 400 + 3520 + 12_080 + 3920)
    # 3,600 steps are as many hours as a step has seconds.
    assert cost["gpu_hours"] == pytest.approx(seconds["total"])


def test_decoding_of_few_rows_is_bound_by_the_bandwidth():
    fast = Hardware(tflops=1.0, utilisation=1.0, bandwidth_gb=1e-3)
    assert estimate_gpu_hours(PLAN, fast)["seconds_per_step"]["decode"] == pytest.approx(240.48)


def test_what_the_settings_change():
    before = estimate_gpu_hours(PLAN, GPU)["seconds_per_step"]

    def seconds(**changes):
        return estimate_gpu_hours(changed(**changes), GPU)["seconds_per_step"]

    assert seconds(beta=0.0)["reference"] == 0
    # One more forward through the layers: 900 * 2 * 1,000,000 / F
    assert seconds(gradient_checkpointing=True)["policy"] == pytest.approx(before["policy"] + 3600)
    assert seconds(updates_per_rollout=2)["policy"] == pytest.approx(2 * before["policy"])
    assert seconds(trainable="all")["vision"] == pytest.approx(3 * before["vision"])


def test_several_gpus_share_a_step_and_count_each():
    two = PLAN | {"num_processes": 2}
    one_cost, two_cost = estimate_gpu_hours(PLAN, GPU), estimate_gpu_hours(two, GPU)
    assert two_cost["seconds_per_step"]["policy"] * 2 == one_cost["seconds_per_step"]["policy"]
    # Decoding by operations halves as well, so the hours of all GPUs together stay.
    assert two_cost["gpu_hours"] == pytest.approx(one_cost["gpu_hours"])


@pytest.mark.parametrize("changes", [{}, {"trainable": "all", "gradient_checkpointing": True}])
def test_calibration_measures_every_part(make_config, changes):
    config = make_config(model=str(lab_model_path("qwen2_5_vl")), steps=10, **changes)
    plan = dry_run(config)
    measured = calibrate(config, plan, device="cpu")
    seconds = measured["seconds_per_step"]
    assert set(seconds) == set(estimate_gpu_hours(plan, Hardware())["seconds_per_step"])
    assert all(value > 0 for value in seconds.values())
    assert measured["gpu_hours"] == pytest.approx(seconds["total"] * 10 / 3600)
    without = calibrate(config.model_copy(update={"beta": 0.0}), plan, device="cpu")
    assert without["seconds_per_step"]["reference"] == 0
