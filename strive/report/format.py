"""Figures as people read them (terminals, Markdown, pages) and as machines do (JSON)."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table


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
    """Turn any result into what `json.dumps` takes: NaN becomes null, a path text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return to_jsonable(value.tolist())
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return to_jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# --- tables of a terminal -----------------------------------------------------------------------


def titled_table(title: str, **options: Any) -> Table:
    """Return an empty table with a bold title at its left; the title is markup."""
    return Table(title=title or None, title_justify="left", title_style="bold", **options)


def facts_table(title: str = "") -> Table:
    """Return an empty two-column table of names and values."""
    table = titled_table(title, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    return table


# --- Markdown -----------------------------------------------------------------------------------


def markdown_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, num_texts: int = 1
) -> str:
    """Render a Markdown table; the first `num_texts` columns are text, the others are figures."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + " --- |" * num_texts + " ---: |" * (len(headers) - num_texts)
    return "\n".join([line(headers), rule, *(line(row) for row in rows)]) + "\n"


def replace_section(page: str, start: str, end: str, text: str) -> str:
    """Return a page with `text` between two marks; a page without them gets them at its end."""
    before, has_start, rest = page.partition(start)
    _, has_end, after = rest.partition(end)
    block = "\n".join([start, text, end] if text else [start, end])
    if has_start and has_end:
        return before + block + after
    return (page.rstrip("\n") + "\n\n" if page else "") + block + "\n"
