"""`inspect-scores`, `score-quality`, `report`: they read what is there and load no torch."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import typer

from strive.choices import GroupedBy, ScoreTransform, Worst
from strive.commands.common import (
    CacheOption,
    JsonOption,
    WorkspaceOption,
    find_cache,
    find_workspace,
    make_console,
    print_json,
    say,
    show,
)
from strive.errors import ConfigError
from strive.files import plain_json

TauOption = Annotated[float, typer.Option(help="Tau of Eq. 4.")]
TransformOption = Annotated[ScoreTransform, typer.Option(help="Done to the scores before Eq. 4.")]
SegmentsOption = Annotated[int, typer.Option(min=1, help="K: frames per variant.")]
BEGIN, END = "<!-- quality -->", "<!-- /quality -->"
QUALITY_SETTINGS = ("frame_temperature", "score_transform", "num_segments")


def inspect_scores(
    cache: CacheOption = None,
    scorer: Annotated[
        str | None, typer.Option(help="Whose scores.  \\[default: the cache's only scorer]")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="Show this question id.  \\[default: the whole cache]")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1, help="Show a seeded sample of N questions.  \\[default: the whole cache]"
        ),
    ] = None,
    worst: Annotated[
        Worst | None,
        typer.Option(help="List the questions that are worst in this way.  \\[default: none]"),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Put two scorers side by side: where do they differ?  \\[default: none]",
        ),
    ] = None,
    frame_temperature: TauOption = 0.4,
    score_transform: TransformOption = "none",
    num_segments: SegmentsOption = 16,
    num_variants: Annotated[int, typer.Option(min=1, help="M: variants drawn.")] = 2,
    suggest_temperature: Annotated[
        bool,
        typer.Option(
            "--suggest-temperature", help="Print the tau at which the best frame has P 0.5."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the draws and of --sample.")] = 0,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write a page that works offline: frames, curve, picks.  \\[default: none]"
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(help="Write a picture of one question, for a paper.  \\[default: none]"),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """What the scores say, which frames training would draw."""
    from strive.report import inspect, terminal

    settings = inspect.InspectSettings(
        frame_temperature=frame_temperature,
        score_transform=score_transform,
        num_segments=num_segments,
        num_variants=num_variants,
        seed=seed,
    )
    root = find_cache(cache, find_workspace(workspace))
    console = make_console()
    if suggest_temperature:
        if compare or question or sample or worst or html or png:
            raise ConfigError("--suggest-temperature goes with --scorer and --num-segments only")
        source = inspect.open_source(root, scorer)
        suggestions = inspect.suggest_temperatures(source, settings)
        if as_json:
            print_json(plain_json(suggestions))
        else:
            terminal.print_suggestions(suggestions, source, console)
    elif compare is not None:
        if scorer or worst or html or png:
            raise ConfigError("--compare goes with --question, --sample and --json only")
        from strive.report.compare import CompareSource, choose_questions, compare_scorers

        both = CompareSource(root, *compare, settings)
        comparison = compare_scorers(both)
        chosen = choose_questions(comparison, question=question, sample=sample)
        if as_json:
            print_json(plain_json(dataclasses.replace(comparison, questions=chosen)))
        elif question or sample:
            for row in chosen:
                terminal.print_compared(both.view(row), both.names, console)
        else:
            terminal.print_comparison(comparison, console)
    elif not (question or sample or worst or html or png):
        summary = inspect.summarise(root, scorer, settings=settings)
        if as_json:
            print_json(plain_json(summary))
        else:
            terminal.print_summary(summary, console)
        if summary.problems:
            raise typer.Exit(1)
    else:
        source = inspect.open_source(root, scorer)
        ids = [question] if question else []
        if not question:
            count = sample or (1 if png else 5)
            rows = inspect.select_questions(source, count=count, worst=worst, settings=settings)
            if not rows:
                show(f"no question is {worst or 'scored'} under scorer {source.info.name}")
            elif worst and not as_json:
                terminal.print_questions(rows, console, title=f"{worst} questions, worst first")
            ids = [row.question_id for row in rows]
        views = [inspect.view_question(source, name, settings=settings) for name in ids]
        if not views:
            return
        if as_json:
            print_json([inspect.view_json(view) for view in views])
        elif not worst:
            for view in views:
                terminal.print_question(view, console)
        if html is not None:
            from strive.report.inspect_html import render_inspect_page
            from strive.report.pages import write_page

            summary = inspect.summarise(root, scorer, settings=settings)
            page = render_inspect_page(source, views, summary=summary)
            say(f"wrote {write_page(html, page)}")
        if png is not None:
            from strive.report.inspect_png import write_png

            say(f"wrote {write_png(source, views[0], png)}")


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
    frame_temperature: TauOption = 0.4,
    score_transform: TransformOption = "none",
    num_segments: SegmentsOption = 16,
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
    from strive.report import quality
    from strive.report.format import replace_section
    from strive.report.pages import write_page
    from strive.variants import DrawRule

    report = quality.score_quality(
        find_cache(cache, find_workspace(workspace)),
        scorers=scorer or (),
        spans_file=spans,
        by=by,
        settings=DrawRule(num_segments, frame_temperature, score_transform),
    )
    if as_json:
        # The scorer's part of the rule is each row's own.
        asked = {name: getattr(report.settings, name) for name in QUALITY_SETTINGS}
        print_json(plain_json(report) | {"settings": asked})
    else:
        quality.print_quality(report, make_console())
    if markdown is not None:
        given = {
            "--cache": cache, "--scorer": scorer, "--spans": spans,
            "--frame-temperature": frame_temperature if frame_temperature != 0.4 else None,
            "--score-transform": score_transform if score_transform != "none" else None,
            "--num-segments": num_segments if num_segments != 16 else None,
            "--by": by, "--markdown": markdown,
        }  # fmt: skip
        # The command as given: the workspace is the reader's own.
        words = ["strive-cli", "score-quality"]
        for option, value in given.items():
            for item in value if isinstance(value, list) else [value]:
                words += [] if item is None else [option, str(item)]
        text = quality.quality_markdown(report, shlex.join(words))
        page = markdown.read_text(encoding="utf-8") if markdown.is_file() else ""
        write_page(markdown, replace_section(page, BEGIN, END, text))
        say(f"wrote {markdown}")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Run folders.")],
    html: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Training curves of several runs side by side (Fig. 3)."""
    from strive.report.dynamics import render_dynamics_page
    from strive.report.pages import write_page
    from strive.report.runs import read_runs
    from strive.report.tables import print_runs

    loaded = read_runs(runs)
    print_runs(loaded, make_console())
    say(f"wrote {write_page(html, render_dynamics_page(loaded))}")
