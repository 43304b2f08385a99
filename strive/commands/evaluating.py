"""`evaluate` and `rescore`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from strive.answers import TEMPLATES
from strive.choices import EvaluationGrading
from strive.commands.common import (
    LAB_LINE,
    JsonOption,
    WorkspaceOption,
    find_workspace,
    listed,
    make_console,
    print_json,
    say,
)
from strive.commands.configs import configured
from strive.configs.load import Given
from strive.configs.schema import EvaluateConfig
from strive.errors import ConfigError
from strive.evaluate.benchmarks import BENCHMARKS, OWN
from strive.files import plain_json
from strive.report.format import number

if TYPE_CHECKING:
    from strive.evaluate.check import BenchmarkCheck
    from strive.evaluate.results import BenchmarkResults, EvaluationResults, Score

OPTIONS = (
    "model benchmarks data video_root data_root split protocol prompt_template num_frames "
    "frames_mode max_pixels max_new_tokens position_rule decode limit shard frames_cache"
)
MAX_FAILURES_SHOWN = 10


@configured(
    EvaluateConfig,
    {None: OPTIONS},
    choices={"benchmarks": ", ".join(BENCHMARKS), "prompt_template": listed(TEMPLATES)},
)
def evaluate(
    given: Given,
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder.  \\[default: the next free in the workspace]"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Answer again what --out has answers to.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only look which files and videos are there.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Answer a benchmark's questions; every answer is kept."""
    from strive.evaluate.check import check_benchmarks
    from strive.evaluate.runner import evaluate as run
    from strive.experiments.evaluating import resolve

    place = find_workspace(workspace)
    config = resolve(place, given, say_lab=lambda: say(LAB_LINE), is_asked=not check)
    if check:
        checks = check_benchmarks(config)
        if as_json:
            print_json(plain_json(checks))
        else:
            print_checks(checks, make_console())
        raise typer.Exit(0 if all(found.is_complete for found in checks) else 1)
    is_part = config.shard[1] > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1
    if is_part and out is None:
        raise ConfigError("several processes answer one evaluation: name its folder with --out")
    out = out or place.new_evaluation(Path(config.model).name)
    _show_results(run(config, out=out, overwrite=overwrite), as_json=as_json)
    say(f"answers: {out}; beside another policy's: strive-cli compare {out} OTHER_OUT_DIR")


def rescore(
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="An evaluation's folder.")],
    grading: Annotated[
        EvaluationGrading | None,
        typer.Option(help="Rule set.  \\[default: the one it was graded with]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Grade stored answers again; no model is loaded."""
    from strive.evaluate.results import rescore as run

    _show_results(run(out, grading=grading), as_json=as_json)


def _show_results(results: "EvaluationResults", *, as_json: bool) -> None:
    if as_json:
        print_json(plain_json(results))
    else:
        print_results(results, make_console())


def print_checks(checks: Sequence["BenchmarkCheck"], console: Console) -> None:
    """Print what is there of each benchmark, what is missing, and a prompt as it would be asked."""
    for found in checks:
        console.print(f"[bold]{escape(found.benchmark)}[/]")
        if found.error:
            console.print(f"  [red]{escape(found.error)}[/]", soft_wrap=True)
            continue
        for file in found.files:
            console.print(f"  read {escape(str(file))}", soft_wrap=True)
        limited = "" if found.num_asked == found.num_questions else f", {found.num_asked} asked"
        num_missing = len(found.missing_videos)
        console.print(
            f"  {found.num_questions} questions{limited}; {found.num_videos} videos, "
            f"{num_missing} of them missing; frames: {found.frames_mode}",
            soft_wrap=True,
        )
        lines = [f"no video {video}" for video in found.missing_videos]
        _print_some("yellow", lines, console)
        _print_some("yellow", found.archives, console)
        rows = [f"{row.question_id}: {row.message} (counts as wrong)" for row in found.failures]
        _print_some("red", rows, console)
        console.print("  the first question as it would be asked, after the video:", style="dim")
        console.print(escape(found.example_prompt), soft_wrap=True)


def _print_some(style: str, lines: Sequence[str], console: Console) -> None:
    for line in lines[:MAX_FAILURES_SHOWN]:
        console.print(f"  [{style}]{escape(line)}[/]", soft_wrap=True)
    if len(lines) > MAX_FAILURES_SHOWN:
        console.print(f"  and {len(lines) - MAX_FAILURES_SHOWN} more (--json lists all)")


# --- what they look like ------------------------------------------------------------------------


def print_results(results: "EvaluationResults", console: Console) -> None:
    """Print scores (0 to 100, ± one clustered standard error), rates and failures."""
    settings = results.settings
    mode = settings["frames_mode"]
    rule = f"by the protocol {settings['protocol']}" if mode == "protocol" else mode
    console.print(
        escape(
            f"{settings['model']}: {settings['num_frames']} frames ({rule}), "
            f"prompt {settings['prompt_template']}, greedy, grading {results.grading}"
        ),
        soft_wrap=True,
    )
    for benchmark in results.benchmarks:
        console.print(_benchmark_table(benchmark, settings))
        console.print(_rates(benchmark), soft_wrap=True)
        for name, groups in benchmark.absent.items():
            console.print(
                f"[yellow]{escape(name)} is a mean over fewer: no question of "
                f"{escape(', '.join(groups))}[/]",
                soft_wrap=True,
            )
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


def _benchmark_table(benchmark: "BenchmarkResults", settings: Mapping[str, Any]) -> Table:
    title = benchmark.benchmark
    if title == OWN:
        title = "your own records: " + ", ".join(settings["data"])
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    table.add_column("questions about", overflow="fold")
    for name in ("accuracy", "± SE", "n", "videos"):
        table.add_column(name, justify="right", no_wrap=True)
    if len(benchmark.totals) > 1:
        for name, score in benchmark.totals.items():
            is_headline = name == benchmark.headline
            _add_score(table, name, score, style="bold" if is_headline else "")
    else:
        _add_score(table, "all", benchmark.overall, style="bold")
    groups = {"": benchmark.by_problem_type, " ": benchmark.by_kind}
    groups |= {f"{name}: ": group for name, group in benchmark.by_dimension.items()}
    groups["evidence "] = benchmark.by_evidence_seen
    for title, group in groups.items():
        if len(group) < 2:
            continue
        table.add_section()
        for name, score in group.items():
            _add_score(table, title.lstrip() + name, score)
    return table


def _add_score(table: Table, name: str, score: "Score", style: str = "") -> None:
    table.add_row(
        escape(name),
        number(score.accuracy_percent, 1),
        number(score.standard_error, 1),
        str(score.num_questions),
        str(score.num_videos),
        style=style,
    )


def _rates(row: "BenchmarkResults") -> str:
    seen = row.evidence_seen_percent
    text = (
        f"unparsed {number(row.unparsed_percent, 1)} %, "
        f"truncated {number(row.truncated_percent, 1)} %, empty {number(row.empty_percent, 1)} %, "
        f"think/answer form {number(row.well_formed_percent, 1)} %, "
        f"{number(row.mean_tokens, 1)} tokens an answer"
    )
    return text + ("" if seen is None else f", evidence seen {number(seen, 1)} %")
