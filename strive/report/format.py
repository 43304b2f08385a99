"""Figures as people read them: the same in terminals, Markdown and pages."""

import math


def number(value: float | None, digits: int = 3) -> str:
    """Format a figure; a missing one is a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share as percent."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def points(value: float | None, digits: int = 1) -> str:
    """Format a difference of shares as signed percentage points."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:+.{digits}f}"


def count_of(count: int, noun: str) -> str:
    """`1 question`, `2 questions`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")
