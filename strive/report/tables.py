"""Small tables for terminals and Markdown, and the demonstration's page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape

from strive.report.arms import group_arms
from strive.report.dynamics import PAGE, dynamics_values, figure_svg, new_axes
from strive.report.format import number, percent, titled_table
from strive.report.pages import render_page
from strive.report.runs import Run, accuracy_note
from strive.statistics import PairedDifference


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """One model's evaluation as a row: `results` is the content of its `results.json`."""

    name: str
    results: dict[str, Any]
    change: PairedDifference | None = None
    """Against the untrained start, in percentage points, paired by question."""
    blind: dict[str, Any] | None = None
    """`results.json` of the same model with grey frames."""
    evidence: dict[str, Any] | None = None
    """`results.json` of the same model given all evidence frames."""


def accuracy(results: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the overall score of the first benchmark of `results.json`."""
    return results["benchmarks"][0]["overall"] if results and results["benchmarks"] else None


def score_text(score: dict[str, Any] | None) -> str:
    """`53.1 ± 1.4` (percent, one clustered standard error)."""
    if score is None or score["accuracy_percent"] is None:
        return "–"
    error = score["standard_error"]
    return f"{score['accuracy_percent']:.1f}" + ("" if error is None else f" ± {error:.1f}")


def change_text(change: PairedDifference | None) -> str:
    """`+3.2 (+1.0 to +5.4)` in points, with the 95 % interval."""
    if change is None or change.difference != change.difference:
        return "–"
    interval = f" ({change.low:+.1f} to {change.high:+.1f})" if change.low == change.low else ""
    return f"{change.difference:+.1f}{interval}"


EVALUATION_HEADERS = ("model", "accuracy", "change", "grey frames", "with evidence")


def evaluation_rows(models: Sequence[EvaluatedModel]) -> list[list[str]]:
    """Cells under `EVALUATION_HEADERS`, one row a model."""
    return [
        [
            model.name,
            score_text(accuracy(model.results)),
            change_text(model.change),
            score_text(accuracy(model.blind)),
            score_text(accuracy(model.evidence)),
        ]
        for model in models
    ]


RUN_HEADERS = ("steps", "reward std", "zero-std", "log grad std", "accuracy", "seconds")


def print_evaluations(models: Sequence[EvaluatedModel], console: Console) -> None:
    """Print accuracy in percent ± one standard error clustered by video."""
    table = titled_table("Accuracy (%)", EVALUATION_HEADERS[:1], EVALUATION_HEADERS[1:])
    for row in evaluation_rows(models):
        table.add_row(*map(escape, row))
    console.print(table)


def print_runs(runs: Sequence[Run], console: Console) -> None:
    """Print the training dynamics of some runs; accuracy is that of the last tenth of the steps."""
    table = titled_table("Training dynamics", ["run"], RUN_HEADERS)
    for run in runs:
        table.add_row(
            escape(run.name),
            str(run.num_steps),
            number(run.mean("group/reward_std")),
            percent(run.mean("group/zero_std_fraction")),
            number(run.grad_norm_log_deviation),
            percent(run.mean("reward/accuracy", first=0.9)),
            number(run.seconds, 0),
        )
    console.print(table)
    note = accuracy_note(runs)
    if note is not None:
        console.print(note, style="yellow", markup=False)


# --- the demonstration --------------------------------------------------------------------------


def render_demo_page(
    runs: Sequence[Run],
    evaluations: Sequence[EvaluatedModel],
    inspect_snippets: Sequence[dict[str, Any]] = (),
    *,
    facts: Sequence[tuple[str, str]] = (),
) -> str:
    """Render the lab demonstration as one self-contained HTML page.

    `inspect_snippets` are `inspect_html.question_section` values; `facts` are extra rows (scorer
    quality, seconds of each stage, seeds).
    """
    return render_page(
        "demo.html.j2",
        **dynamics_values(group_arms(runs)),
        headers=EVALUATION_HEADERS,
        evaluations=evaluation_rows(evaluations),
        plot=_accuracy_plot(evaluations) if evaluations else "",
        groups=_group_tables(evaluations),
        names=[model.name for model in evaluations],
        sections=inspect_snippets,
        facts=facts,
    )


def _accuracy_plot(models: Sequence[EvaluatedModel]) -> str:
    """Points with 95 % intervals on a common axis of 0 to 100 %, as SVG."""
    axes = new_axes(6.4, 0.7 + 0.32 * len(models))
    for row, model in enumerate(models):
        score = accuracy(model.results)
        if score is None or score["accuracy_percent"] is None:
            continue
        value = score["accuracy_percent"]
        low = value if score["low"] is None else score["low"]
        high = value if score["high"] is None else score["high"]
        axes.errorbar(value, row, xerr=[[value - low], [high - value]], fmt="o", color=PAGE.ink)
    # Names of models are text, also where they hold a dollar.
    axes.set_yticks(range(len(models)), [model.name for model in models], parse_math=False)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter("{x:.0f} %")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=PAGE.grid, linewidth=0.8)
    return figure_svg(axes.figure, "accuracy with 95 % intervals")


def _group_tables(models: Sequence[EvaluatedModel]) -> list[dict[str, Any]]:
    """Accuracy by problem type and by kind of question, a column a model."""
    tables = []
    for field, title in (("by_problem_type", "By problem type"), ("by_kind", "By question kind")):
        found = [model.results["benchmarks"][0][field] for model in models]
        names = sorted({name for group in found for name in group})
        rows = [
            {
                "name": name,
                "count": max((g[name]["num_questions"] for g in found if name in g), default=0),
                "cells": [score_text(group.get(name)) for group in found],
            }
            for name in names
        ]
        if rows:
            tables.append({"title": title, "rows": rows})
    return tables
