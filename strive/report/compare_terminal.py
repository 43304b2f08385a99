"""The terminal views of `inspect-scores --compare`: the whole cache, and one question."""

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from strive.report.compare import ComparedViews, QuestionComparison, ScorerComparison
from strive.report.format import number, percent
from strive.report.inspect import QuestionView
from strive.report.inspect_terminal import LABEL_WIDTH, sparkline

STYLES = (("cyan", "bright_cyan"), ("magenta", "bright_magenta"))


def print_comparison(comparison: ScorerComparison, console: Console, *, count: int = 5) -> None:
    """Print the agreement over all questions and the questions that differ most."""
    first, second, k = comparison.first, comparison.second, comparison.settings.num_segments
    table = Table(
        title=f"{escape(first)} and {escape(second)}", title_justify="left", title_style="bold",
        show_header=False,
    )  # fmt: skip
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    left = ", ".join(
        f"{amount} scored by {escape(name)} only"
        for name, amount in (
            (first, comparison.num_only_first),
            (second, comparison.num_only_second),
        )
        if amount
    )
    table.add_row("questions", f"{len(comparison.questions)}" + (f"; {left}" if left else ""))
    for name, label in (
        ("spearman", "Spearman"),
        ("top_k_jaccard", f"Jaccard @{k}"),
        ("p_correlation", "P(t) corr."),
        ("expected_overlap", "overlap"),
    ):
        mean = comparison.means[name]
        show = percent if name == "expected_overlap" else number
        table.add_row(label, f"{show(mean.value)} ± {show(mean.standard_error)}{_NOTES[name]}")
    difference = comparison.auc_difference
    if difference is not None:
        table.add_row(
            "AUC",
            f"{difference.difference:+.3f} ± {number(difference.standard_error)} "
            f"({escape(first)} minus {escape(second)}, {difference.num_pairs} questions)",
        )
    console.print(table)
    _print_list("least alike", comparison.questions[:count], comparison, console)


_NOTES = {
    "spearman": "  ranks of a question's frames",
    "top_k_jaccard": "  of the best frames",
    "p_correlation": "  over the pool",
    "expected_overlap": "  frames shared by a variant of each",
}


def _print_list(
    title: str,
    rows: tuple[QuestionComparison, ...],
    comparison: ScorerComparison,
    console: Console,
) -> None:
    has_auc = comparison.auc_difference is not None
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    table.add_column("question", no_wrap=True)
    for name in ("Spearman", "Jaccard", "P corr."):
        table.add_column(name, justify="right", no_wrap=True)
    if has_auc:
        table.add_column("AUCs", justify="right", no_wrap=True)
    table.add_column("text")  # the one that gives way
    for row in rows:
        aucs = f"{number(row.first_auc, 2)} {number(row.second_auc, 2)}"
        table.add_row(
            Text(row.question_id), number(row.spearman, 2), number(row.top_k_jaccard, 2),
            number(row.p_correlation, 2), *([aucs] if has_auc else []),
            Text(" ".join(row.problem.split()), no_wrap=True, overflow="ellipsis"),
        )  # fmt: skip
    console.print(table)


def print_compared(views: ComparedViews, names: list[str], console: Console) -> None:
    """Print one question: scores and P(t) of both scorers under one another."""
    row, record = views.comparison, views.first.record
    width = max(20, console.width - 4)
    lines: list[Text] = [Text(" ".join(record.problem.split()), style="bold"), Text("")]
    per_row = max(8, width - LABEL_WIDTH)
    num_frames = len(views.first.scores_F)
    scale = 2 if num_frames * 2 <= per_row else 1
    for start in range(0, num_frames, per_row // scale):
        stretch = slice(start, min(start + per_row // scale, num_frames))
        for number_of, view in enumerate((views.first, views.second)):
            lines += _bars(view, names[number_of], stretch, scale, STYLES[number_of])
        if views.first.evidence_F is not None:
            marks = "".join("━" if seen else " " for seen in views.first.evidence_F[stretch])
            lines.append(_line("evidence", marks, scale, "bold green"))
    aucs = ""
    if row.first_auc == row.first_auc:
        aucs = f"; ROC-AUC {number(row.first_auc, 2)} and {number(row.second_auc, 2)}"
    lines += [
        Text(""),
        Text(
            f"Spearman {number(row.spearman, 2)}, Jaccard {number(row.top_k_jaccard, 2)}, "
            f"P(t) correlation {number(row.p_correlation, 2)}, overlap of variants "
            f"{percent(row.expected_overlap)}{aucs}"
        ),
    ]
    title = f"question {escape(row.question_id)} · {escape(row.video_id)}"
    console.print(Panel(Group(*lines), title=title, title_align="left"))


def _bars(
    view: QuestionView, name: str, stretch: slice, scale: int, styles: tuple[str, str]
) -> list[Text]:
    low, high = float(view.scores_F.min()), float(view.scores_F.max())
    top = float(np.max(view.probabilities_F))
    return [
        _line(name, sparkline(view.scores_F[stretch], low, high), scale, styles[0]),
        _line("  P(t)", sparkline(view.probabilities_F[stretch], 0.0, top), scale, styles[1]),
    ]


def _line(label: str, marks: str, scale: int, style: str) -> Text:
    short = label if len(label) < LABEL_WIDTH else label[: LABEL_WIDTH - 2] + "…"
    text = Text(short.ljust(LABEL_WIDTH), style="dim", no_wrap=True)
    text.append("".join(mark * scale for mark in marks), style=f"not dim {style}")
    return text
