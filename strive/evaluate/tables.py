"""Terminal tables of an evaluation and of a comparison."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from strive.evaluate.again import Comparison
from strive.evaluate.benchmarks import OWN
from strive.evaluate.results import BenchmarkResults, EvaluationResults, Score
from strive.statistics import PairedDifference

MAX_FAILURES_SHOWN = 10


def _figure(value: float, digits: int = 1) -> str:
    return "–" if value != value else f"{value:.{digits}f}"


def print_results(results: EvaluationResults, console: Console) -> None:
    """Print scores (0 to 100, ± one clustered standard error), rates and failures."""
    settings = results.settings
    console.print(
        escape(
            f"{settings['model']}: {settings['num_frames']} frames ({settings['frames_mode']}), "
            f"prompt {settings['prompt_template']}, greedy, grading {results.grading}"
        ),
        soft_wrap=True,
    )
    for benchmark in results.benchmarks:
        console.print(_benchmark_table(benchmark, settings))
        console.print(_rates(benchmark), soft_wrap=True)
    if results.failures:
        console.print(f"[red]{len(results.failures)} questions could not be asked:[/]")
        for failure in results.failures[:MAX_FAILURES_SHOWN]:
            console.print(
                escape(f"  {failure.question_id}  {failure.video_id}  {failure.error}: ")
                + escape(failure.message),
                soft_wrap=True,
            )
        hidden = len(results.failures) - MAX_FAILURES_SHOWN
        if hidden > 0:
            console.print(f"  and {hidden} more (results.json lists all)")


def _benchmark_table(benchmark: BenchmarkResults, settings: Mapping[str, Any]) -> Table:
    title = benchmark.benchmark
    if title == OWN:
        title = "your own records: " + ", ".join(settings["data"])
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    table.add_column("questions about", overflow="fold")
    for name in ("accuracy", "± SE", "n", "videos"):
        table.add_column(name, justify="right", no_wrap=True)
    _add_score(table, "all", benchmark.overall, style="bold")
    groups = (benchmark.by_problem_type, benchmark.by_kind, benchmark.by_evidence_seen)
    for title, group in zip(("", "", "evidence "), groups, strict=True):
        if len(group) < 2:
            continue
        table.add_section()
        for name, score in group.items():
            _add_score(table, title + name, score)
    return table


def _add_score(table: Table, name: str, score: Score, style: str = "") -> None:
    table.add_row(
        escape(name),
        _figure(score.accuracy_percent),
        _figure(score.standard_error),
        str(score.num_questions),
        str(score.num_videos),
        style=style,
    )


def _rates(row: BenchmarkResults) -> str:
    seen = row.evidence_seen_percent
    text = (
        f"unparsed {_figure(row.unparsed_percent)} %, "
        f"truncated {_figure(row.truncated_percent)} %, empty {_figure(row.empty_percent)} %, "
        f"think/answer form {_figure(row.well_formed_percent)} %, "
        f"{_figure(row.mean_tokens)} tokens an answer"
    )
    return text + ("" if seen is None else f", evidence seen {_figure(seen)} %")


FEWEST_VIDEOS = 5
"""Of fewer a comparison shows no interval and no p."""


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the paired difference, first minus second, in points with its 95 % interval."""
    if comparison.num_other_prompts:
        others = "; ".join(
            f"{name} {a} / {b}" for name, (a, b) in comparison.other_settings.items()
        )
        console.print(
            f"[yellow]warning: {comparison.num_other_prompts} of {comparison.overall.num_pairs} "
            "questions were asked with another text, other frames or another pixel budget"
            f"{escape(f' ({others})' if others else '')}: the difference is not the policies' "
            "alone[/]",
            soft_wrap=True,
        )
    if comparison.num_other_solutions:
        console.print(
            f"[yellow]warning: {comparison.num_other_solutions} of {comparison.overall.num_pairs} "
            "questions were graded by another solution: the difference is not the policies' "
            "alone[/]",
            soft_wrap=True,
        )
    table = Table(
        title=escape(f"{comparison.a} minus {comparison.b}"),
        title_justify="left",
        title_style="bold",
    )
    table.add_column("questions about", overflow="fold")
    for name in ("difference", "95 % interval", "p", "n", "videos"):
        table.add_column(name, justify="right", no_wrap=True)
    _add_difference(table, "all", comparison.overall, style="bold")
    for group in (comparison.by_problem_type, comparison.by_kind):
        if len(group) < 2:
            continue
        table.add_section()
        for name, difference in group.items():
            _add_difference(table, name, difference)
    console.print(table)
    console.print(
        f"questions answered better {comparison.num_gained}, worse {comparison.num_lost}; only in "
        f"the first {comparison.num_only_a}, only in the second {comparison.num_only_b}",
        soft_wrap=True,
    )
    console.print(
        "the interval is over questions, for these two policies; trainings of one method differ "
        "too: to compare methods, train several seeds of each",
        style="dim",
        soft_wrap=True,
    )


def _add_difference(table: Table, name: str, row: PairedDifference, style: str = "") -> None:
    # Few videos say nothing of others: their variance may be 0 by chance, or the interval absurd.
    is_told = row.num_units >= FEWEST_VIDEOS
    p = "<0.001" if row.p_value < 0.001 else f"{row.p_value:.3f}"
    table.add_row(
        escape(name),
        f"{row.difference:+.1f}",
        f"{max(row.low, -100.0):+.1f} to {min(row.high, 100.0):+.1f}" if is_told else "–",
        p if is_told else "–",
        str(row.num_pairs),
        str(row.num_units),
        style=style,
    )
