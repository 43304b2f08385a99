import pytest
from hypothesis import given
from hypothesis import strategies as st

from strive.train.schedule import learning_rate_at


def rates(count, **options):
    defaults = {"num_updates": 10, "peak": 1.0, "warmup_steps": 0, "schedule": "constant"}
    return [learning_rate_at(update, **(defaults | options)) for update in range(count)]


def test_constant():
    assert rates(3) == [1.0, 1.0, 1.0]


def test_warm_up_never_starts_at_zero():
    # 4 steps of warm-up: 1/5, 2/5, 3/5, 4/5, then the peak.
    assert rates(6, warmup_steps=4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_cosine_reaches_half_in_the_middle_and_zero_after_the_end():
    values = rates(11, schedule="cosine")
    assert values[0] == 1.0 and values[5] == pytest.approx(0.5) and values[10] == pytest.approx(0)
    assert values == sorted(values, reverse=True)
    # With warm-up the cosine runs over what is left.
    assert rates(11, schedule="cosine", warmup_steps=2)[6] == pytest.approx(0.5)


def test_cosine_by_hand():
    # 2 steps of warm-up to a peak of 4: 4/3, 8/3. Then 8 steps of cosine: 2 (1 + cos(pi n / 8)) at
    # n = 0, 2, 4, 6 is 4, 2 (1 + 0.707107), 2, 2 (1 - 0.707107).
    values = rates(10, peak=4.0, schedule="cosine", warmup_steps=2)
    assert values[:2] == pytest.approx([4 / 3, 8 / 3])
    assert values[2::2] == pytest.approx([4, 3.414214, 2, 0.585786], abs=1e-6)


@given(
    st.integers(1, 40),
    st.integers(0, 20),
    st.floats(1e-8, 1.0),
    st.sampled_from(["constant", "cosine"]),
)
def test_rises_to_the_peak_and_never_again(num_updates, warmup_steps, peak, schedule):
    values = rates(
        num_updates,
        num_updates=num_updates,
        peak=peak,
        warmup_steps=warmup_steps,
        schedule=schedule,
    )
    assert all(0 < value <= peak for value in values)
    rising, falling = values[: warmup_steps + 1], values[warmup_steps:]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    if num_updates > warmup_steps:
        assert values[warmup_steps] == peak
