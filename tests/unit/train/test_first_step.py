"""The figures of a first step that should not be, and the lines that say so."""

import math

import pytest

from strive.train.first_step import MISMATCH_BOUNDS, first_step_warnings


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
