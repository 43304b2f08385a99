"""The picture in docs/scorers.md is what its program draws."""

import pytest

from bench import importance


def test_the_picture_is_drawn_from_eq_4() -> None:
    assert importance.PATH.read_text() == importance.draw()
    # e^(0.02 / 0.4) / (e^0.05 + 3) = 1.05127 / 4.05127
    assert importance.best_frame(0.02, 0.4) == pytest.approx(0.25949, abs=1e-5)
    assert "gap 0.02: 0.26" in importance.draw()
