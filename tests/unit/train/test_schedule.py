import pytest

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
