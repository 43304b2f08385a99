"""`table`: evaluations as the paper's Table 1, on a terminal, in Markdown, LaTeX and JSON."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from strive.commands.common import JsonOption, make_console, print_json, show
from strive.errors import ConfigError
from strive.files import plain_json
from strive.report.format import markdown_table, number, titled_table

if TYPE_CHECKING:
    from strive.evaluate.paper_rows import PublishedTable
    from strive.evaluate.table import Cell, EvaluationTable, Row

WIDE = 125
"""Columns of a terminal from which on an accuracy and its error stand in one line."""
ERROR_WIDTH = len(" ± 0.9")
BINOMIAL = "± binomial"
ANSWERS: dict[str, Callable[["Cell"], str]] = {
    "n": lambda cell: str(cell.num_questions),
    "videos": lambda cell: str(cell.num_videos),
    BINOMIAL: lambda cell: number(cell.binomial_standard_error, 1),
    "unparsed %": lambda cell: number(cell.unparsed_percent, 1),
    "truncated %": lambda cell: number(cell.truncated_percent, 1),
    "empty %": lambda cell: number(cell.empty_percent, 1),
    "failed (videos)": lambda cell: f"{cell.num_failed} ({cell.num_failed_videos})",
}
"""What is told of the answers to one benchmark, under the table of accuracies."""


def table(
    folders: Annotated[
        list[Path], typer.Argument(metavar="OUT_DIR...", help="Evaluations' folders.")
    ],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print a LaTeX tabular.")] = False,
    as_json: JsonOption = False,
    published: Annotated[
        bool, typer.Option(help="The paper's rows beside.  \\[default: published]")
    ] = True,
) -> None:
    """The paper's Table 1 of several evaluations, with standard errors.

    Folders of one model, asked in one way, are one row. Accuracy in percent,
    ± one standard error by video.
    """
    from strive.evaluate.table import make_table

    if sum((markdown, latex, as_json)) > 1:
        raise ConfigError("--markdown, --latex and --json exclude one another; give one of them")
    made = make_table(folders, with_published=published)
    if as_json:
        print_json(plain_json(made))
    elif markdown:
        show(markdown_text(made))
    elif latex:
        show(latex_text(made))
    else:
        print_evaluation_table(made, make_console())


# --- cells ---------------------------------------------------------------------------------------


def _headers(made: "EvaluationTable") -> list[str]:
    has_mean = any(row.mean is not None for row in made.rows)
    return ["model", *(column.title for column in made.columns), *(["Avg"] if has_mean else [])]


def _row_cells(row: "Row", made: "EvaluationTable", plus_minus: str = " ± ") -> list[str]:
    """A row's texts under `_headers`; a mean of fewer than six says of how many."""
    from strive.evaluate.paper_rows import SIX
    from strive.evaluate.table import figure_text

    scores = {name: cell.score for name, cell in row.cells.items()}
    texts = [row.name]
    texts += [figure_text(scores.get(column.name), plus_minus) for column in made.columns]
    if len(texts) == len(_headers(made)):
        return texts
    if row.mean is None:
        return [*texts, "–"]
    mean = figure_text(row.mean.score, plus_minus)
    count = len(row.mean.benchmarks)
    return [*texts, mean if count == len(SIX) else f"(of {count}) {mean}"]


def _published_cells(made: "EvaluationTable", published: "PublishedTable") -> list[list[str]]:
    has_mean = _headers(made)[-1] == "Avg"
    return [
        [
            row.name,
            *(
                number(row.accuracy_percent.get(column.name), 1) if column.sizes else ""
                for column in made.columns
            ),
            *([number(row.mean_percent, 1)] if has_mean else []),
        ]
        for row in published.rows
    ]


def _asked_text(row: "Row") -> str:
    asked = row.asked
    return (
        f"protocol {asked.get('protocol', '–')}, prompt {asked.get('prompt_template', '–')}, "
        f"{asked.get('num_frames', '–')} frames ({asked.get('frames_mode', '–')}), at most "
        f"{asked.get('max_pixels', '–')} pixels and {asked.get('max_new_tokens', '–')} tokens, "
        f"graded by {asked['grading']}"
    )


def _remarks(made: "EvaluationTable") -> list[str]:
    """What stands under the table, whatever the form."""
    remarks = [f"accuracy in percent ± one standard error by video; {_asked_text(made.rows[0])}"]
    remarks += made.notes
    if made.published is not None:
        remarks.append(f"published: {made.published.source}; {made.published.remark}")
    return remarks


# --- forms ---------------------------------------------------------------------------------------


def print_evaluation_table(made: "EvaluationTable", console: Console) -> None:
    """Print accuracies, then what is known of the answers, then what must be said."""
    is_wide = console.width >= WIDE
    top = _form("Accuracy (%)", is_wide=is_wide)
    top.add_column("model", overflow="fold")
    for header in _headers(made)[1:]:
        top.add_column(header if is_wide else _in_two_lines(header), justify="right", no_wrap=True)
    for row in made.rows:
        name, *texts = _row_cells(row, made, " ± " if is_wide else "\n±")
        if not is_wide:
            texts = [text.replace(") ", ")\n") for text in texts]
        top.add_row(escape(name), *texts)
    if made.published is not None:
        _add_section(top)
        source = f"published: {made.published.source}" if is_wide else "published"
        top.add_row(f"[italic]{source}[/]", style="dim")
        for name, *texts in _published_cells(made, made.published):
            # Under the accuracies, not under their errors.
            blank = " " * ERROR_WIDTH if is_wide else ""
            top.add_row(escape(name), *(text + blank for text in texts), style="dim")
    console.print(top)
    console.print(_answers_table(made, is_wide=is_wide))
    for remark in _remarks(made):
        console.print(escape(f"- {remark}"), soft_wrap=True)


def _form(title: str, *, is_wide: bool) -> Table:
    """An empty table; on a narrow terminal names get the room of the lines."""
    if is_wide:
        return titled_table(title)
    return titled_table(title, box=None, padding=(0, 2, 0, 0), pad_edge=False)


def _add_section(table: Table) -> None:
    """Part what follows, by a line or, in a table without lines, by an empty row."""
    table.add_section()
    if table.box is None:
        table.add_row()


def _in_two_lines(title: str) -> str:
    """`PerceptionTest` and `VSI-Bench` in the width of their longer half."""
    return re.sub(r"(?<=[a-z-])(?=[A-Z])", "\n", title, count=1)


def _answers_table(made: "EvaluationTable", *, is_wide: bool) -> Table:
    told = {title: text for title, text in ANSWERS.items() if is_wide or title != BINOMIAL}
    bottom = _form("Answers", is_wide=is_wide)
    bottom.add_column("benchmark", overflow="fold")
    for title in told:
        shown = title if is_wide else title.replace(" ", "\n")
        bottom.add_column(shown, justify="right", no_wrap=True)
    for row in made.rows:
        _add_section(bottom)
        bottom.add_row(f"[bold]{escape(row.name)}[/]")
        for title, cell in _told_cells(row, made):
            bottom.add_row(escape(f"  {title}"), *(text(cell) for text in told.values()))
    return bottom


def _told_cells(row: "Row", made: "EvaluationTable") -> list[tuple[str, "Cell"]]:
    """A row's cells with their benchmarks, each with its average's name if it has several."""
    there = [
        (column, row.cells[column.name]) for column in made.columns if column.name in row.cells
    ]
    return [
        (column.title if len(cell.totals) < 2 else f"{column.title} ({cell.headline})", cell)
        for column, cell in there
    ]


def markdown_text(made: "EvaluationTable") -> str:
    """Render the table, the table of answers and the remarks as Markdown."""
    rows = [_row_cells(row, made) for row in made.rows]
    if made.published is not None:
        rows += [[f"*{name}*", *texts] for name, *texts in _published_cells(made, made.published)]
    answers = [
        [row.name, title, *(text(cell) for text in ANSWERS.values())]
        for row in made.rows
        for title, cell in _told_cells(row, made)
    ]
    remarks = "\n".join(f"- {remark}" for remark in _remarks(made))
    return "\n".join(
        [
            markdown_table(_headers(made), rows),
            markdown_table(["model", "benchmark", *ANSWERS], answers, num_texts=2),
            remarks,
        ]
    )


LATEX_SPECIALS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "–": "--",
}  # fmt: skip


def latex_text(made: "EvaluationTable") -> str:
    """Render the table as a LaTeX `tabular` (package booktabs); remarks are comments."""

    def line(cells: list[str]) -> str:
        return " & ".join(map(latex_escaped, cells)) + r" \\"

    headers = _headers(made)
    lines = [f"% {remark}" for remark in _remarks(made)]
    lines += [
        r"\begin{tabular}{l" + "c" * (len(headers) - 1) + "}",
        r"\toprule",
        line(headers),
        r"\midrule",
        *(line(_row_cells(row, made)) for row in made.rows),
    ]
    if made.published is not None:
        source = latex_escaped(f"published: {made.published.source}")
        lines += [
            r"\midrule",
            rf"\multicolumn{{{len(headers)}}}{{l}}{{\textit{{{source}}}}} \\",
            *(line(cells) for cells in _published_cells(made, made.published)),
        ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def latex_escaped(text: str) -> str:
    """Write a text so that LaTeX prints it."""
    return "".join(LATEX_SPECIALS.get(letter, letter) for letter in text)
