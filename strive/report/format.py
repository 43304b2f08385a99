"""Figures, tables and sections as people read them, on terminals, in Markdown, on pages."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text


def number(value: float | None, digits: int = 3) -> str:
    """Format a figure; a missing one is a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share as percent."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def count_of(count: int, noun: str) -> str:
    """`1 question`, `2 questions`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def counts_text(counts: Mapping[str, int]) -> str:
    """`2 blurred, 1 cut` in the order of the names, as markup."""
    return ", ".join(f"{count} {escape(name)}" for name, count in sorted(counts.items()))


# --- tables of a terminal -----------------------------------------------------------------------


COMPACT: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
"""Options of a table whose columns need the room."""


def titled_table(
    title: str | Text = "", texts: Sequence[str] = (), figures: Sequence[str] = (), **options: Any
) -> Table:
    """Return an empty table with a bold title, which is markup, at its left.

    Its columns are `texts`, which fold, and then `figures`, at the right and on one line.
    """
    table = Table(title=title or None, title_justify="left", title_style="bold", **options)
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def facts_table(title: str, facts: Mapping[str, str]) -> Table:
    """Return a two-column table of names and values, which are markup; an empty value is no row."""
    table = titled_table(title, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    add_facts(table, facts)
    return table


def add_facts(table: Table, facts: Mapping[str, str]) -> None:
    """Add names and values to a table of them; an empty value is no row."""
    for name, value in facts.items():
        if value:
            table.add_row(name, value)


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
