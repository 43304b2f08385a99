"""Figures as people read them (terminals, Markdown, pages) and as machines do (JSON)."""

import dataclasses
import math
from typing import Any

import numpy as np


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


def to_jsonable(value: Any) -> Any:
    """Turn summaries and views into what `json.dumps` takes; NaN becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return to_jsonable(value.tolist())
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if isinstance(value, np.generic):
        return to_jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
