"""`inspect-scores` and `report`: they read what is there and load neither torch nor a model."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strive.choices import ScoreTransform, Worst
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

if TYPE_CHECKING:
    from strive.report.scores import InspectSettings


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
    frame_temperature: Annotated[float, typer.Option(help="Tau of Eq. 4.")] = 0.4,
    score_transform: Annotated[
        ScoreTransform,
        typer.Option(help="Done to the scores before Eq. 4."),
    ] = "none",
    num_segments: Annotated[int, typer.Option(min=1, help="K: frames per variant.")] = 16,
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
    from strive.report import inspect
    from strive.report.format import to_jsonable
    from strive.report.inspect_html import render_inspect_page
    from strive.report.inspect_terminal import print_question, print_questions, print_summary
    from strive.report.pages import write_page

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
        from strive.report.inspect_terminal import print_suggestions

        source = inspect.open_source(root, scorer)
        suggestions = inspect.suggest_temperatures(source, settings)
        if as_json:
            print_json(to_jsonable(suggestions))
        else:
            print_suggestions(suggestions, source, console)
        return
    if compare is not None:
        if scorer or worst or html or png:
            raise ConfigError("--compare goes with --question, --sample and --json only")
        _compare(root, compare, settings, question, sample, as_json=as_json)
        return
    if not (question or sample or worst or html or png):
        summary = inspect.summarise(root, scorer, settings=settings)
        if as_json:
            print_json(to_jsonable(summary))
        else:
            print_summary(summary, console)
        if summary.problems:
            raise typer.Exit(1)
        return
    source = inspect.open_source(root, scorer)
    if question:
        ids = [question]
    else:
        rows = inspect.select_questions(
            source, count=sample or (1 if png else 5), worst=worst, settings=settings
        )
        if not rows:
            show(f"no question is {worst or 'scored'} under scorer {source.info.name}")
            return
        ids = [row.question_id for row in rows]
        if worst and not as_json:
            print_questions(rows, console, title=f"{worst} questions, worst first")
    views = [inspect.view_question(source, name, settings=settings) for name in ids]
    if as_json:
        print_json(to_jsonable(views))
    elif not worst:
        for view in views:
            print_question(view, console)
    if html is not None:
        summary = inspect.summarise(root, scorer, settings=settings)
        page = render_inspect_page(source, views, summary=summary)
        say(f"wrote {write_page(html, page)}")
    if png is not None:
        from strive.report.inspect_png import write_png

        say(f"wrote {write_png(source, views[0], png)}")


def _compare(
    root: Path,
    names: tuple[str, str],
    settings: "InspectSettings",
    question: str | None,
    sample: int | None,
    *,
    as_json: bool,
) -> None:
    from strive.errors import UnknownNameError
    from strive.report.compare import CompareSource, compare_scorers
    from strive.report.compare_terminal import print_compared, print_comparison
    from strive.report.format import to_jsonable
    from strive.seeding import derive_rng

    source = CompareSource(root, *names, settings)
    comparison = compare_scorers(source)
    rows = comparison.questions[:5]
    if question is not None:
        rows = tuple(row for row in comparison.questions if row.question_id == question)
        if not rows:
            raise UnknownNameError(f"question '{question}' has no scores of both scorers")
    elif sample is not None:
        rng = derive_rng(settings.seed, "inspect sample")
        chosen = sorted(rng.permutation(len(comparison.questions))[:sample].tolist())
        rows = tuple(comparison.questions[index] for index in chosen)
    console = make_console()
    if as_json:
        shown = rows if question or sample else comparison.questions
        print_json(to_jsonable(dataclasses.replace(comparison, questions=shown)))
    elif question or sample:
        for row in rows:
            print_compared(source.view(row), source.names, console)
    else:
        print_comparison(comparison, console)


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
