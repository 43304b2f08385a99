"""`ablate`: the paper's Tables 2 to 5 on a terminal, in Markdown, LaTeX and JSON."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from strive.commands.common import (
    LAB,
    JsonOption,
    WorkspaceOption,
    find_workspace,
    make_console,
    option,
    print_json,
    say,
    show,
)
from strive.commands.configs import configured
from strive.commands.tables import latex_escaped
from strive.configs.load import Given
from strive.configs.schema import EvaluateConfig, TrainConfig
from strive.errors import ConfigError
from strive.evaluate.benchmarks import BENCHMARKS
from strive.evaluate.paper_rows import FOUR
from strive.files import plain_json, wait_for_lock, write_atomically
from strive.report.format import COMPACT, count_of, markdown_table, titled_table

if TYPE_CHECKING:
    from strive.experiments.ablation import Ablation, Item
    from strive.experiments.ablation_results import AblationResults, CellResults
    from strive.statistics import Interval, PairedDifference

WIDE = 150
"""Columns of a terminal from which on a figure and its interval stand in one line."""
HANDED_ON = "benchmarks data_root protocol num_frames frames_cache"


@configured(
    TrainConfig,
    {None: "steps"},
    beside=(EvaluateConfig, HANDED_ON),
    choices={"benchmarks": ", ".join(BENCHMARKS)},
    config_help="Preset or YAML file over every cell. Repeatable, later ones win."
    "  \\[default: lab]",
)
def ablate(
    given: Given,
    table: Annotated[int | None, option("The paper's table: 2, 3, 4 or 5.", default="none")] = None,
    cells: Annotated[
        str | None,
        option(
            "Instead: presets or YAML files, the baseline first.",
            metavar="A,B,...",
            default="the table's",
        ),
    ] = None,
    seeds: Annotated[int, option("Trainings of each cell: seeds 0, 1, ...", min=1)] = 3,
    out: Annotated[Path | None, option("Output folder.", default="ablate in the workspace")] = None,
    list_runs: Annotated[
        bool, option("List the runs and whether they are done, then stop.", "--list")
    ] = False,
    cell: Annotated[
        int | None,
        option("Only this run of --list: a job of an array.", default="all", min=0),
    ] = None,
    launcher: Annotated[
        str | None,
        option(
            "What starts a training: 'torchrun --nproc_per_node 8 -m strive.cli', which starts "
            "evaluate too; 'deepspeed --no_local_rank --module strive.cli'.",
            metavar="TEXT",
            default="one process",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        option("Runs at a time.", default="1 with a GPU, else one a core", min=1),
    ] = None,
    markdown: Annotated[bool, option("Print Markdown.", "--markdown")] = False,
    latex: Annotated[bool, option("Print a LaTeX tabular.", "--latex")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """The paper's Tables 2 to 5, or cells of your own, over several seeds.

    Trains and evaluates each cell and compares it with the baseline: GRPO, and
    in Table 4 LLaVA-OV-0.5B, the scorer of the other tables. A cell of two
    tables is run once. The same command again does only what is missing.
    """
    from strive.experiments import ablation

    if sum((markdown, latex, as_json)) > 1:
        raise ConfigError("--markdown, --latex and --json exclude one another; give one of them")
    place = find_workspace(workspace)
    asked = {key: given.options[key] for key in HANDED_ON.split() if key in given.options}
    trained = {key: value for key, value in given.options.items() if key not in asked}
    plan = ablation.plan_ablation(
        table=table,
        cells=[name.strip() for name in (cells or "").split(",") if name.strip()],
        given=Given(given.files or ["lab"], given.overrides, trained),
        asked=asked,
        num_seeds=seeds,
        out=out or place.root / "ablate",
    )
    ablation.check_asked(asked)
    items = plan.items
    if cell is not None and cell >= len(items):
        raise ConfigError(
            f"--cell is {cell}; this call has runs 0 to {len(items) - 1}, which --list shows"
        )
    if list_runs:
        ablation.check_folders(plan, place)
        print_items(items, as_json=as_json)
        return
    if any(each.on_lab for each in plan.cells):
        say(f"{LAB}; give --config for your own")
    failed = ablation.run_items(
        plan,
        items if cell is None else items[cell : cell + 1],
        place,
        launcher=ablation.parse_launcher(launcher),
        workers=workers,
    )
    if cell is not None:
        print_items(items[cell : cell + 1], as_json=as_json)
    else:
        results = write_results(plan)
        if as_json:
            print_json(plain_json(results))
        elif markdown:
            show(markdown_text(results))
        elif latex:
            show(latex_text(results))
        else:
            print_results(results, make_console())
    if failed:
        say(f"error: {count_of(len(failed), 'run')} failed; the same command goes on with them")
        raise typer.Exit(2 if any(each.exit_code == 2 for each in failed) else 1)


def write_results(plan: "Ablation") -> "AblationResults":
    """Read what is done of a table and write it beside the cells in three forms."""
    from strive.experiments.ablation_results import collect_results

    # Of two processes the later one must not write what it read earlier.
    with wait_for_lock(plan.out / f"{plan.name}.lock"):
        results = collect_results(plan)
        texts = {
            "md": markdown_text(results),
            "tex": latex_text(results),
            "json": json.dumps(plain_json(results), indent=1, allow_nan=False),
        }
        for suffix, text in texts.items():
            write_atomically(plan.out / f"{plan.name}.{suffix}", text + "\n", knob="--out")
    return results


def print_items(items: Sequence["Item"], *, as_json: bool) -> None:
    """Print runs as `--list` shows them."""
    if as_json:
        rows = [
            {
                "index": item.index,
                "cell": item.cell.name,
                "seed": item.seed,
                "folder": str(item.folder),
                "done": item.is_done,
            }
            for item in items
        ]
        print_json(rows)
        return
    listed = titled_table(**COMPACT)
    listed.add_column("", justify="right")
    for name in ("cell", "seed", "done", "folder"):
        listed.add_column(name, overflow="fold")
    for item in items:
        done = "yes" if item.is_done else "no"
        row = (str(item.index), item.cell.name, str(item.seed), done, str(item.folder))
        listed.add_row(*map(escape, row))
    make_console().print(listed)


# --- cells ---------------------------------------------------------------------------------------

Line = list[str]


def _main_table(results: "AblationResults") -> tuple[Line, list[Line]]:
    """Headers and rows of what was measured."""
    columns = results.columns
    headers = ["cell", *(column.title for column in columns)]
    headers += ["Avg"] if len(columns) > 1 else []
    headers += ["diff.", "seeds"]
    rows = []
    for cell in results.cells:
        row = [cell.title, *(_mean_text(cell.accuracy.get(column.name)) for column in columns)]
        row += [_mean_text(cell.mean)] if len(columns) > 1 else []
        row += [_difference_text(cell), f"{len(cell.seeds)}/{results.num_seeds}"]
        rows.append(row)
    return headers, rows


def _published_table(results: "AblationResults") -> tuple[Line, list[Line]]:
    """Headers and rows of the paper's own figures, without the name of the cell."""
    from strive.evaluate.table import PAPER_COLUMNS

    if not results.has_published:
        return [], [[] for _ in results.cells]
    titles = {column.name: column.title for column in PAPER_COLUMNS}
    headers = [f"{title}*" for title in (*(titles[name] for name in FOUR), "Avg", "diff.")]
    rows = []
    for cell in results.cells:
        row = cell.published
        scores = row.accuracy_percent if row else {}
        figures = [*(scores.get(name) for name in FOUR), row.mean_percent if row else None]
        difference = None if cell.is_baseline else cell.published_difference
        rows.append([*map(_published_text, figures), _signed(difference)])
    return headers, rows


def _differences_table(results: "AblationResults") -> tuple[Line, list[Line]]:
    """Headers and rows of every cell's differences, benchmark by benchmark."""
    headers = ["cell", "benchmark", "diff.", "95 % over seeds", "95 % over questions"]
    rows = []
    for cell in results.cells:
        for column in results.columns:
            found = cell.comparisons.get(column.name)
            if found is not None:
                over = found.over_seeds
                told = [_signed(over.difference), _range(over), _range(found.over_questions)]
                rows.append([cell.title, column.title, *told])
        if len(results.columns) > 1 and cell.difference is not None:
            told = [_signed(cell.difference.difference), _range(cell.difference), "–"]
            rows.append([cell.title, "Avg", *told])
    return headers, rows


def _mean_text(interval: "Interval | None") -> str:
    """`53.1 ± 2.2`: a mean and half of its 95 % interval; of one seed the figure alone."""
    if interval is None:
        return "–"
    half = interval.high - interval.value
    return f"{interval.value:.1f}" + (f" ± {half:.1f}" if math.isfinite(half) else "")


def _difference_text(cell: "CellResults") -> str:
    if cell.is_baseline:
        return "baseline"
    if cell.difference is None:
        return "–"
    half = cell.difference.high - cell.difference.difference
    shown = f" ± {half:.1f}" if math.isfinite(half) else ""
    return _signed(cell.difference.difference) + shown


def _signed(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:+.1f}"


def _range(difference: "PairedDifference") -> str:
    if not math.isfinite(difference.low):
        return "–"
    return f"{difference.low:+.1f} to {difference.high:+.1f}"


def _published_text(value: float | None) -> str:
    """A figure with as many decimals as the paper prints: one, in two rows of Table 4 two."""
    if value is None:
        return "–"
    return f"{value:.1f}" if value == round(value, 1) else f"{value:.2f}"


def _remarks(results: "AblationResults") -> Iterator[str]:
    """What stands under the table, whatever the form."""
    num_runs = len(results.cells) * results.num_seeds
    if results.num_missing:
        yield (
            f"{results.num_missing} of {num_runs} runs are missing; the same command goes on with "
            "them"
        )
    if results.num_seeds > 1:
        yield (
            "accuracy in percent: mean over seeds ± half of the 95 % interval (t) between seeds; "
            f"diff.: minus {results.baseline}, paired by seed, likewise"
        )
    else:
        yield (
            f"accuracy in percent; diff.: minus {results.baseline}; one seed: what other seeds "
            "would change is not known, and there is no interval between seeds"
        )
    if len(results.columns) > 1:
        yield "Avg: plain mean of " + ", ".join(column.title for column in results.columns)
    if results.on_lab:
        yield "tiny models on synthetic clips: it says nothing about 7B accuracy"
    if results.has_published:
        source = results.source or "arXiv:2604.01824, Tables 2 to 5"
        yield f"* {source}: Qwen2.5-VL-7B, 500 steps; the paper gives neither seeds nor intervals"


# --- forms ---------------------------------------------------------------------------------------


def print_results(results: "AblationResults", console: Console) -> None:
    """Print the table, the differences by benchmark, and what must be said."""
    is_wide = console.width >= WIDE
    headers, rows = _main_table(results)
    published, published_rows = _published_table(results)
    # Side by side where there is room.
    is_beside = is_wide or len(results.columns) < 2
    beside = published_rows if is_beside else [[] for _ in rows]
    _print_table(
        f"{results.title} (%)",
        headers + (published if is_beside else []),
        [row + more for row, more in zip(rows, beside, strict=True)],
        console,
        is_wide=is_wide,
    )
    if published and not is_beside:
        named = [[row[0], *more] for row, more in zip(rows, published_rows, strict=True)]
        _print_table("The paper's (%)", ["cell", *published], named, console, is_wide=is_wide)
    headers, rows = _differences_table(results)
    if rows:
        title = f"Differences to {results.baseline} (points)"
        names = [row[0] for row in rows]
        # A cell's name stands once, before its first benchmark.
        rows = [
            ["" if name in names[max(place - 1, 0) : place] else name, *row[1:]]
            for place, (name, row) in enumerate(zip(names, rows, strict=True))
        ]
        _print_table(title, headers, rows, console, num_texts=2, is_wide=True)
    for remark in _remarks(results):
        console.print(escape(f"- {remark}"), soft_wrap=True)


def _print_table(
    title: str,
    headers: Line,
    rows: list[Line],
    console: Console,
    *,
    num_texts: int = 1,
    is_wide: bool,
) -> None:
    if not is_wide:
        headers = [_in_two_lines(header) for header in headers]
        rows = [[row[0], *(text.replace(" ± ", "\n±") for text in row[1:])] for row in rows]
    shown = titled_table(escape(title), headers[:num_texts], headers[num_texts:], **COMPACT)
    for row in rows:
        shown.add_row(*map(escape, row))
    console.print(shown)


def _in_two_lines(title: str) -> str:
    """The names of the paper's benchmarks in the width of their longer half."""
    for half in ("Video", "VSI-", "Temp"):
        if title.startswith(half) and len(title) > len(half):
            return f"{half}\n{title.removeprefix(half)}"
    return title


def markdown_text(results: "AblationResults") -> str:
    """Render the table, the differences by benchmark and the remarks as Markdown."""
    headers, rows = _main_table(results)
    published, published_rows = _published_table(results)
    joined = [row + more for row, more in zip(rows, published_rows, strict=True)]
    parts = [f"**{results.title}**\n", markdown_table(headers + published, joined)]
    headers, rows = _differences_table(results)
    if rows:
        parts.append(markdown_table(headers, rows, num_texts=2))
    # An asterisk at a line's beginning would be a list's.
    remarks = [remark.replace("*", "\\*", 1) for remark in _remarks(results)]
    return "\n".join([*parts, *(f"- {remark}" for remark in remarks)])


def latex_text(results: "AblationResults") -> str:
    """Render the table as a LaTeX `tabular` (package booktabs); remarks are comments."""
    headers, rows = _main_table(results)
    published, published_rows = _published_table(results)

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(latex_escaped, cells)) + r" \\"

    columns = "l" + "c" * (len(headers) - 1) + ("|" + "c" * len(published) if published else "")
    return "\n".join(
        [
            f"% {results.title}",
            *(f"% {remark}" for remark in _remarks(results)),
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            line(headers + published),
            r"\midrule",
            *(line(row + more) for row, more in zip(rows, published_rows, strict=True)),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )
