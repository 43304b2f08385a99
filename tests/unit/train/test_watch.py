"""A run that does not learn says so, once for each cause; so does a first step that is wrong."""

import math

import pytest

from strive.configs.schema import TrainConfig
from strive.train.watch import (
    MISMATCH_BOUNDS,
    NUM_FIRST_STEPS,
    NUM_STEPS,
    LearningWatch,
    first_step_warnings,
)

LEARNS = {
    "reward/mean": 0.5,
    "reward/accuracy": 0.25,
    "group/zero_std_fraction": 0.5,
    "completion/truncated_fraction": 0.1,
    "completion/parsed_fraction": 0.9,
}
CAUSES = {
    "had a reward": {"reward/mean": math.nan},
    "max_new_tokens=768": {"completion/truncated_fraction": 1.0},
    "was right (accuracy 0)": {"reward/accuracy": 0.0},
    "had a signal": {"group/zero_std_fraction": 1.0},
}


def lines(steps, **config):
    watch = LearningWatch(TrainConfig(**config))
    return [
        (number, line)
        for number, step in enumerate(steps, start=1)
        for line in watch.see(step, is_last=number == len(steps))
    ]


def test_a_run_that_learns_says_nothing():
    assert lines([LEARNS] * 50) == []


@pytest.mark.parametrize(("words", "change"), CAUSES.items())
def test_each_cause_is_said_once(words, change):
    [(step, line)] = lines([LEARNS | change] * 60 + [LEARNS])
    assert step == NUM_STEPS and words in line and f"over the last {NUM_STEPS} steps" in line


@pytest.mark.parametrize("change", CAUSES.values())
def test_one_step_that_learns_is_enough(change):
    steps = ([LEARNS | change] * (NUM_STEPS - 1) + [LEARNS]) * 3
    assert lines(steps) == []


def test_a_short_run_says_it_at_its_end():
    [(step, line)] = lines([LEARNS | CAUSES["had a signal"]] * 3)
    assert step == 3 and "no group over the last 3 steps had a signal" in line


def test_answers_that_cannot_be_read_show_after_the_first_steps():
    unread = {"reward/accuracy": 0.0, "completion/parsed_fraction": 0.0}
    # That none was right follows from it, and is not said.
    [(step, line)] = lines([LEARNS | unread] * 30)
    assert step == NUM_FIRST_STEPS
    assert "prompt_template=video_r1" in line and "'short'" in line
    # An answer of another form that is right all the same is none.
    assert lines([LEARNS | {"completion/parsed_fraction": 0.0}] * 30) == []


def test_without_an_accuracy_reward_nobody_asks_for_its_form():
    own = {name: value for name, value in LEARNS.items() if name != "reward/accuracy"}
    assert lines([own | {"completion/parsed_fraction": 0.0}] * 30) == []


# --- the first step: figures that should not be ---------------------------------------------------


def warn(mismatch=0.0, kl=0.0, **changes):
    options = {"first_kl": kl, "is_resumed": False, "dtype": "float32", "device_type": "cpu"}
    return list(first_step_warnings({"policy/rollout_mismatch": mismatch}, **options | changes))


def test_what_is_right_says_nothing():
    assert warn() == warn(mismatch=1e-3) == []
    assert warn(mismatch=MISMATCH_BOUNDS["bfloat16"], dtype="bfloat16") == []
    # After a resume policy and reference have parted; on a GPU kernels may differ.
    assert warn(kl=0.2, is_resumed=True) == warn(kl=1e-6, device_type="cuda") == []


@pytest.mark.parametrize(
    ("dtype", "mismatch"), [("float32", 1.1e-3), ("bfloat16", 0.11), ("float32", math.nan)]
)
def test_a_mismatch(dtype, mismatch):
    [line] = warn(mismatch=mismatch, dtype=dtype, is_resumed=True)
    assert f"policy/rollout_mismatch is {mismatch:.2g} in the first step" in line
    assert f"above {MISMATCH_BOUNDS[dtype]:g}" in line and "decode=dynamic" in line


@pytest.mark.parametrize(
    ("device", "kl"), [("cpu", 1e-12), ("cuda", 2e-6), ("cpu", math.nan), ("cuda", math.nan)]
)
def test_a_reference_that_is_another_model(device, kl):
    [line] = warn(kl=kl, device_type=device)
    assert f"KL term is {kl:.2g} before the first update" in line and "attention=sdpa" in line
