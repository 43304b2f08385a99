"""The page's tables of power are those of the program, and its errors are right."""

from pathlib import Path

import pytest

from bench.power import SIZES, claims, error_of_difference, section

PAGE = Path(__file__).parents[3] / "docs" / "grading.md"


def test_error_of_difference_by_hand() -> None:
    [videomme] = [size for size in SIZES if size.benchmark == "videomme"]
    # Three questions a video: 1 + 2 * 0.1; sqrt((0.2 - 0.0001) * 1.2 / 2700) = 0.9426 %.
    assert error_of_difference(videomme, 0.2) == pytest.approx(0.94257, abs=1e-4)


def test_claims_are_those_of_the_paper() -> None:
    gains = claims()["Qwen2.5-VL-7B"]
    assert list(gains.values()) == pytest.approx([0.6, 0.7, 1.7, 0.0, 0.6, 1.1, 0.8])


def test_the_page_is_up_to_date() -> None:
    # Else: python -m bench.power --page docs/grading.md
    assert section() in PAGE.read_text(encoding="utf-8")
