"""`score-quality`: its options, and its table on a terminal and in a Markdown page."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strive.choices import GroupedBy, ScoreTransform
from strive.commands.common import (
    CacheOption,
    JsonOption,
    WorkspaceOption,
    find_cache,
    find_workspace,
    make_console,
    print_json,
    say,
)
from strive.errors import DiskError

if TYPE_CHECKING:
    from rich.console import Console

    from strive.report.quality import QualityReport, QualityRow

BEGIN, END = "<!-- quality -->", "<!-- /quality -->"
SETTINGS = ("frame_temperature", "score_transform", "num_segments")
WIDE = 104
"""Columns from which the terminal shows every measure."""


def score_quality(
    cache: CacheOption = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="Name or key. Repeatable.  \\[default: all in the cache]"),
    ] = None,
    spans: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Evidence: {question_id: \\[\\[start, end], ...]} in seconds.  "
            "\\[default: the cache's own]",
        ),
    ] = None,
    frame_temperature: Annotated[float, typer.Option(help="Tau of Eq. 4.")] = 0.4,
    score_transform: Annotated[
        ScoreTransform,
        typer.Option(help="Done to the scores before Eq. 4."),
    ] = "none",
    num_segments: Annotated[int, typer.Option(min=1, help="K: frames per variant.")] = 16,
    by: Annotated[
        GroupedBy | None,
        typer.Option(help="Also show each group of questions.  \\[default: all together]"),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Put the table between {BEGIN} and {END} of a page.  \\[default: none]",
        ),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """How well scores find known evidence: ROC-AUC, lift, ...

    No model runs.
    """
    from strive.report.format import to_jsonable
    from strive.report.quality import score_quality as measure
    from strive.variants import DrawRule

    settings = DrawRule(num_segments, frame_temperature, score_transform)
    report = measure(
        find_cache(cache, find_workspace(workspace)),
        scorers=scorer or (),
        spans_file=spans,
        by=by,
        settings=settings,
    )
    if as_json:
        # The scorer's part of the rule is each row's own.
        asked = {name: getattr(settings, name) for name in SETTINGS}
        print_json(to_jsonable(report) | {"settings": asked})
    else:
        print_quality(report, make_console())
    if markdown is not None:
        given = {
            "--cache": cache, "--scorer": scorer, "--spans": spans,
            "--frame-temperature": frame_temperature if frame_temperature != 0.4 else None,
            "--score-transform": score_transform if score_transform != "none" else None,
            "--num-segments": num_segments if num_segments != 16 else None,
            "--by": by, "--markdown": markdown,
        }  # fmt: skip
        write_between(markdown, markdown_table(report, _command("score-quality", given)))
        say(f"wrote {markdown}")


def _command(name: str, given: dict[str, Any]) -> str:
    """Return the command line with the options that were given (the workspace is the reader's)."""
    words = ["strive-cli", name]
    for option, value in given.items():
        for item in value if isinstance(value, list) else [value]:
            words += [] if item is None else [option, str(item)]
    return shlex.join(words)


# --- what a row says ----------------------------------------------------------------------------


def _cells(row: "QualityRow", *, lift_error: bool = True) -> dict[str, str]:
    from strive.report.format import number, percent

    def figure(name: str, digits: int) -> str:
        interval = row.measures[name]
        return f"{number(interval.value, digits)} ± {number(interval.standard_error, digits)}"

    def plain(name: str, digits: int = 2) -> str:
        return number(row.measures[name].value, digits)

    return {
        "questions": str(row.num_used),
        "auc": figure("auc", 3),
        "recall_at_k": plain("recall_at_k"),
        "recall_at_evidence": plain("recall_at_evidence"),
        "lift": figure("lift", 2) if lift_error else plain("lift"),
        "lift_pool": plain("lift_pool"),
        "seen": percent(row.measures["evidence_seen"].value, 0),
        "seen_uniform": percent(row.measures["evidence_seen_uniform"].value, 0),
        "effective": plain("effective_frames"),
        "overlap": percent(row.measures["expected_overlap"].value, 0),
    }


def _headers(report: "QualityReport", *, short: bool = False) -> dict[str, str]:
    return {
        "questions": "used" if short else "questions",
        "auc": "ROC-AUC",
        "recall_at_k": f"recall @{report.settings.num_segments}",
        "recall_at_evidence": "recall @n",
        "lift": "lift",
        "lift_pool": "lift in pool",
        "seen": "sees evidence",
        "seen_uniform": "uniform sees",
        "effective": "eff. frames" if short else "effective frames",
        "overlap": "overlap",
    }


NARROW_LEAVES_OUT = ("recall_at_evidence", "lift_pool", "seen_uniform")


def _left_out(report: "QualityReport") -> list[str]:
    """One line for all scorers where they leave out the same questions, else one each."""
    from strive.report.quality import ALL

    lines: dict[str, list[str]] = {}
    for row in report.rows:
        if row.group == ALL:
            counts = sorted(row.left_out.items(), key=lambda item: -item[1])
            text = ", ".join(f"{count} ({why})" for why, count in counts) or "none"
            lines.setdefault(text, []).append(row.scorer)
    if len(lines) == 1:
        return [f"left out: {text}" for text in lines]
    return [f"left out under {', '.join(names)}: {text}" for text, names in lines.items()]


def _rule(report: "QualityReport") -> str:
    s = report.settings
    return (
        f"frame_temperature {s.frame_temperature:g}, score_transform {s.score_transform}, "
        f"K = {s.num_segments}"
    )


def _marks_transform(report: "QualityReport") -> bool:
    return any(row.score_transform != report.settings.score_transform for row in report.rows)


def _label(report: "QualityReport", row: "QualityRow") -> str:
    return row.scorer + ("*" if row.score_transform != report.settings.score_transform else "")


def _ordered(report: "QualityReport") -> list["QualityRow"]:
    """All questions first, then group by group; the best scorer of a group on top."""
    groups = list(dict.fromkeys(row.group for row in report.rows))
    return sorted(
        report.rows,
        key=lambda row: (groups.index(row.group), not row.num_used, -row.measures["auc"].value),
    )


# --- terminal -----------------------------------------------------------------------------------


def print_quality(report: "QualityReport", console: "Console") -> None:
    """Print the table, and below it what was measured and what was not."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from strive.report.quality import ALL

    is_wide = console.width >= WIDE
    headers = _headers(report, short=not is_wide)
    shown = [name for name in headers if is_wide or name not in NARROW_LEAVES_OUT]
    has_groups = len({row.group for row in report.rows}) > 1
    has_one_scorer = len({row.key for row in report.rows}) == 1
    table = Table(
        title=f"Score quality, {escape(report.cache)}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("scorer", overflow="fold")
    for name in shown:
        table.add_column(headers[name].replace(" ", "\n", 1), justify="right", no_wrap=True)
    last = None
    for row in _ordered(report):
        label = _label(report, row)
        if has_groups and has_one_scorer:
            label = f"{label}, {row.group}" if row.group == ALL else f"  {row.group}"
        elif has_groups:
            if row.group != last:
                table.add_row(Text(row.group, style="cyan"))
            label = f"  {label}"
        cells = _cells(row, lift_error=is_wide)
        table.add_row(Text(label, style="bold"), *(cells[name] for name in shown))
        last = row.group
    console.print(table)
    lines = [
        f"{report.num_with_spans} of {report.num_questions} questions have spans "
        f"(from {report.spans_from}); ± is the standard error over videos",
        _rule(report) + ("; * weights, used as they are" if _marks_transform(report) else ""),
        *_left_out(report),
    ]
    if report.num_unknown_ids:
        lines.append(f"{report.num_unknown_ids} ids of the spans file are not in the cache")
    for line in lines:
        console.print(line, style="dim", markup=False)
    for row in report.rows:
        auc = row.measures["auc"]
        # By more than two standard errors: an AUC near one half is only uninformative.
        if row.group == ALL and auc.value + 2 * auc.standard_error < 0.5:
            console.print(
                f"below chance: {_label(report, row)} scores frames of the evidence lower than "
                "others, so that training would avoid them",
                style="yellow",
                markup=False,
            )


# --- Markdown -----------------------------------------------------------------------------------


def markdown_table(report: "QualityReport", command: str) -> str:
    """Return the table as GitHub Markdown, with its settings and the command that makes it."""
    headers = _headers(report)
    has_groups = len({row.group for row in report.rows}) > 1
    first = (["group"] if has_groups else []) + ["scorer"]
    lines = [
        "| " + " | ".join([*first, *headers.values()]) + " |",
        "|" + " --- |" * len(first) + " ---: |" * len(headers),
    ]
    for row in _ordered(report):
        names = ([row.group] if has_groups else []) + [_label(report, row)]
        cells = [name.replace("|", "\\|") for name in names]
        lines.append("| " + " | ".join([*cells, *_cells(row).values()]) + " |")
    starred = " * Weights, used as they are." if _marks_transform(report) else ""
    left = "; ".join(_left_out(report))
    lines += [
        "",
        f"Settings: {_rule(report)}. {report.num_with_spans} of {report.num_questions} questions "
        f"have spans; {left}. ± is the standard error, clustered by video.{starred}",
        "",
        f"Made by `{command}`.",
    ]
    return "\n".join(lines)


def write_between(path: Path, text: str) -> None:
    """Replace what stands between the markers of a page; a page without them gets them at its end.

    Raises:
        DiskError: the page cannot be written.
    """
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    block = f"{BEGIN}\n{text}\n{END}"
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        page = before + block + after
    else:
        page = (page.rstrip("\n") + "\n\n" if page else "") + block + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}; choose another file") from None
