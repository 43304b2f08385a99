"""`compare`: an evaluation against others, paired by question."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from strive.commands.common import JsonOption, make_console, print_json
from strive.files import plain_json
from strive.report.format import count_of, titled_table

if TYPE_CHECKING:
    from strive.evaluate.compare import BenchmarkComparison, Comparison
    from strive.statistics import PairedDifference

FEWEST_VIDEOS = 5
"""Of fewer a comparison shows no interval and no p."""
MOST_GROUPS = 12
"""A dimension with more groups is shown in JSON alone."""


def compare(
    first: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="An evaluation's folder.")],
    others: Annotated[
        list[Path], typer.Argument(metavar="OUT_DIR...", help="Those to subtract, one by one.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Difference of evaluations, paired by question: the first minus each other.

    It holds for these policies. Trainings of one method differ as well: to
    compare methods, train several seeds of each.
    """
    from strive.evaluate.compare import compare_all

    comparisons = compare_all(first, others)
    if not as_json:
        print_comparisons(comparisons, make_console())
    elif len(comparisons) == 1:
        print_json(plain_json(comparisons[0]))
    else:
        print_json({"comparisons": [plain_json(comparison) for comparison in comparisons]})


def print_comparisons(comparisons: Sequence["Comparison"], console: Console) -> None:
    """Print paired differences in points with 95 % intervals; of several all together last."""
    for comparison in comparisons:
        _print_warnings(comparison, console)
        for benchmark in comparison.by_benchmark.values():
            _print_benchmark(comparison, benchmark, console)
        console.print(
            f"only in the first {count_of(comparison.num_only_a, 'answer')}, only in the second "
            f"{comparison.num_only_b}",
            soft_wrap=True,
        )
    num_tests = sum(len(comparison.by_benchmark) for comparison in comparisons)
    if num_tests > 1:
        console.print(_summary(comparisons, num_tests))
    console.print(
        "the interval is over questions, for these policies; trainings of one method differ "
        "too: to compare methods, train several seeds of each",
        style="dim",
        soft_wrap=True,
    )


def _print_warnings(comparison: "Comparison", console: Console) -> None:
    """Say by what the two differ besides the policy."""
    num_pairs = comparison.overall.num_pairs
    not_alone = "the difference is not the policies' alone"
    warnings = []
    if comparison.num_other_prompts:
        others = "; ".join(
            f"{name} {a} / {b}" for name, (a, b) in comparison.other_settings.items()
        )
        warnings.append(
            f"{comparison.num_other_prompts} of {num_pairs} questions were asked with another "
            f"text, other frames or another pixel budget{f' ({others})' if others else ''}"
        )
    if comparison.num_other_solutions:
        warnings.append(
            f"{comparison.num_other_solutions} of {num_pairs} questions were graded by another "
            "solution"
        )
    a, b = comparison.gradings
    if a and b and a != b:
        warnings.append(f"the answers were graded by other rules ({a} / {b})")
    for warning in warnings:
        console.print(f"[yellow]warning: {escape(warning)}: {not_alone}[/]", soft_wrap=True)


def _print_benchmark(
    comparison: "Comparison", benchmark: "BenchmarkComparison", console: Console
) -> None:
    is_one_of_several = len(comparison.by_benchmark) > 1
    title = f"{comparison.a} minus {comparison.b}"
    table = titled_table(escape(f"{title}: {benchmark.benchmark}" if is_one_of_several else title))
    table.add_column("questions about", overflow="fold")
    for name in ("difference", "95 % interval", "p", "n", "videos"):
        table.add_column(name, justify="right", no_wrap=True)
    filled = {name: row for name, row in benchmark.totals.items() if row.num_pairs}
    for name, difference in filled.items():
        is_headline = name == benchmark.headline
        shown = "all" if len(filled) == 1 else f"all, {name}"
        _add_difference(table, shown, difference, style="bold" if is_headline else "")
    too_many = []
    for dimension, group in _groups(benchmark):
        if len(group) < 2:
            continue
        if len(group) > MOST_GROUPS:
            too_many.append(f"{dimension or 'kind'}: {len(group)} groups, in --json")
            continue
        table.add_section()
        for name, difference in group.items():
            _add_difference(table, f"{dimension} {name}".lstrip(), difference)
    console.print(table)
    failed = ""
    if benchmark.num_failed_a or benchmark.num_failed_b:
        failed = (
            f"; failed in the first {benchmark.num_failed_a}, in the second "
            f"{benchmark.num_failed_b}: they count as wrong"
        )
    console.print(
        f"questions answered better {benchmark.num_gained}, worse {benchmark.num_lost}{failed}",
        soft_wrap=True,
    )
    for line in too_many:
        console.print(escape(line), soft_wrap=True)


def _groups(
    benchmark: "BenchmarkComparison",
) -> Iterator[tuple[str, dict[str, "PairedDifference"]]]:
    """Ways to divide the questions, each with the word that stands before a group's name."""
    yield "", benchmark.by_problem_type
    yield "", benchmark.by_kind
    yield from benchmark.by_dimension.items()


def _add_difference(table: Table, name: str, row: "PairedDifference", style: str = "") -> None:
    table.add_row(
        escape(name),
        _signed(row.difference),
        _interval(row),
        _p_value(row, row.p_value),
        str(row.num_pairs),
        str(row.num_units),
        style=style,
    )


def _signed(difference: float) -> str:
    return f"{difference:+.1f}" if math.isfinite(difference) else "–"


# Few videos say nothing of others: their variance may be 0 by chance, or the interval absurd.


def _interval(row: "PairedDifference") -> str:
    is_told = row.num_units >= FEWEST_VIDEOS
    return f"{max(row.low, -100.0):+.1f} to {min(row.high, 100.0):+.1f}" if is_told else "–"


def _p_value(row: "PairedDifference", p: float) -> str:
    if row.num_units < FEWEST_VIDEOS:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _summary(comparisons: Sequence["Comparison"], num_tests: int) -> Table:
    """All pairs and benchmarks of the call, with p-values adjusted over them."""
    table = titled_table(f"All {num_tests} differences")
    table.add_column("benchmark", overflow="fold")
    for name in ("diff.", "95 % interval", "p", "Holm p", "better", "worse"):
        table.add_column(name, justify="right", no_wrap=True)
    for comparison in comparisons:
        table.add_section()
        if len(comparisons) > 1:
            table.add_row(f"[bold]minus {escape(comparison.b)}[/]")
        for benchmark in comparison.by_benchmark.values():
            row = benchmark.totals[benchmark.headline]
            is_named = len(benchmark.totals) > 1
            table.add_row(
                escape(
                    f"{benchmark.benchmark}, {benchmark.headline}"
                    if is_named
                    else benchmark.benchmark
                ),
                _signed(row.difference),
                _interval(row),
                _p_value(row, row.p_value),
                _p_value(row, benchmark.holm_p_value),
                str(benchmark.num_gained),
                str(benchmark.num_lost),
            )
    return table
