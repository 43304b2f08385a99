"""`inspect-scores`, `score-quality`, `search` and `report`: they look at what is there.

Only `search` loads a model, the one that embeds its text.
"""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from strive.choices import GroupedBy, ScoreTransform, Worst
from strive.commands.common import (
    CacheOption,
    JsonOption,
    WorkspaceOption,
    find_cache,
    make_console,
    option,
    print_json,
    print_result,
    say,
    show,
)
from strive.errors import ConfigError
from strive.files import plain_json
from strive.report.format import COMPACT, count_of, replace_section, titled_table

if TYPE_CHECKING:
    from strive.search.nearest import DuplicateReport, SearchResult

TauOption = Annotated[float, option("Tau of Eq. 4.")]
TransformOption = Annotated[ScoreTransform, option("Done to the scores before Eq. 4.")]
SegmentsOption = Annotated[int, option("K: frames per variant.", min=1)]
BEGIN, END = "<!-- quality -->", "<!-- /quality -->"
QUALITY_SETTINGS = ("frame_temperature", "score_transform", "num_segments")


def inspect_scores(
    cache: CacheOption = None,
    scorer: Annotated[
        str | None, option("Whose scores.", default="the cache's only scorer")
    ] = None,
    question: Annotated[
        str | None, option("Show this question id.", default="the whole cache")
    ] = None,
    sample: Annotated[
        int | None,
        option("Show a seeded sample of N questions.", default="the whole cache", min=1),
    ] = None,
    worst: Annotated[
        Worst | None, option("List the questions that are worst in this way.", default="none")
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        option(
            "Put two scorers side by side: where do they differ?", default="none", metavar="A B"
        ),
    ] = None,
    frame_temperature: TauOption = 0.4,
    score_transform: TransformOption = "none",
    num_segments: SegmentsOption = 16,
    num_variants: Annotated[int, option("M: variants drawn.", min=1)] = 2,
    suggest_temperature: Annotated[
        bool, option("Print the tau at which the best frame has P 0.5.", "--suggest-temperature")
    ] = False,
    seed: Annotated[int, option("Seed of the draws and of --sample.")] = 0,
    html: Annotated[
        Path | None,
        option("Write a page that works offline: frames, curve, picks.", default="none"),
    ] = None,
    png: Annotated[
        Path | None, option("Write a picture of one question, for a paper.", default="none")
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """What the scores say, which frames training would draw."""
    from strive.report import inspect, pages, terminal

    settings = inspect.InspectSettings(
        frame_temperature=frame_temperature,
        score_transform=score_transform,
        num_segments=num_segments,
        num_variants=num_variants,
        seed=seed,
    )
    root = find_cache(cache, workspace)
    console = make_console()
    if suggest_temperature:
        if compare or question or sample or worst or html or png:
            raise ConfigError("--suggest-temperature goes with --scorer and --num-segments only")
        source = inspect.open_source(root, scorer)
        suggestions = inspect.suggest_temperatures(source, settings)
        print_result(
            suggestions,
            lambda found, console: terminal.print_suggestions(found, source, console),
            as_json=as_json,
        )
        return
    if compare is not None:
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
                terminal.print_compared(row, both.views(row.question_id), both.names, console)
        else:
            terminal.print_comparison(comparison, console)
        return
    if not (question or sample or worst or html or png):
        summary = inspect.summarise(root, scorer, settings=settings)
        print_result(summary, terminal.print_summary, as_json=as_json)
        if summary.problems:
            raise typer.Exit(1)
        return
    source = inspect.open_source(root, scorer)
    ids = [question] if question else []
    if not question:
        count = sample or (1 if png else 5)
        rows = inspect.select_questions(source, count=count, worst=worst, settings=settings)
        if not rows:
            show(f"no question is {worst or 'scored'} under scorer {source.info.name}")
            return
        if worst and not as_json:
            terminal.print_questions(rows, console, title=f"{worst} questions, worst first")
        ids = [row.question_id for row in rows]
    views = [inspect.view_question(source, name, settings=settings) for name in ids]
    if as_json:
        print_json([inspect.view_json(view) for view in views])
    elif not worst:
        for view in views:
            terminal.print_question(view, console)
    if html is not None:
        from strive.report.inspect_html import render_inspect_page

        summary = inspect.summarise(root, scorer, settings=settings)
        page = render_inspect_page(source, views, summary=summary)
        say(f"wrote {pages.write_page(html, page)}")
    if png is not None:
        from strive.report.inspect_png import write_png

        say(f"wrote {write_png(source, views[0], png)}")


def score_quality(
    cache: CacheOption = None,
    scorer: Annotated[
        list[str] | None, option("Name or key. Repeatable.", default="all in the cache")
    ] = None,
    spans: Annotated[
        Path | None,
        option(
            "Evidence: {question_id: \\[\\[start, end], ...]} in seconds.",
            default="the cache's own",
            metavar="FILE.json",
        ),
    ] = None,
    frame_temperature: TauOption = 0.4,
    score_transform: TransformOption = "none",
    num_segments: SegmentsOption = 16,
    by: Annotated[
        GroupedBy | None,
        option("Also show each group of questions.", default="all together"),
    ] = None,
    markdown: Annotated[
        Path | None,
        option(
            f"Put the table between {BEGIN} and {END} of a page.", default="none", metavar="FILE"
        ),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """How well scores find known evidence: ROC-AUC, lift, ...

    No model runs.
    """
    from strive.report import quality
    from strive.report.pages import write_page
    from strive.variants import DrawRule

    report = quality.score_quality(
        find_cache(cache, workspace),
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


def search(
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT",
            help="What the frames should show.",
            show_default="none, with --duplicates",
        ),
    ] = None,
    cache: CacheOption = None,
    top: Annotated[int, option("How many frames.", min=1)] = 10,
    per_video: Annotated[
        int | None, option("At most so many of one video.", default="any", min=1)
    ] = None,
    duplicates: Annotated[
        bool, option("Instead, list pairs of videos that show the same.", "--duplicates")
    ] = False,
    threshold: Annotated[
        float | None, option("Cosine from which videos are near-duplicates.", default="0.9")
    ] = None,
    scorer: Annotated[
        str | None, option("One with embeddings, by name or key.", default="the only one")
    ] = None,
    scorer_model: Annotated[
        str | None, option("Its model: ID_OR_DIR or lab:NAME.", default="as precomputed")
    ] = None,
    html: Annotated[
        Path | None, option("Write a contact sheet that works offline.", default="none")
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Frames of the whole cache nearest to a text; duplicates."""
    from strive.experiments.workspace import resolve_model
    from strive.search import nearest as searching

    if duplicates == (text is not None):
        raise ConfigError("give a TEXT to search for, or --duplicates, one of the two")
    root = find_cache(cache, workspace)
    threshold = searching.DUPLICATE_THRESHOLD if threshold is None else threshold
    result: SearchResult | DuplicateReport
    if text is None:
        result = searching.find_duplicates(root, scorer=scorer, threshold=threshold)
    else:
        result = searching.search_text(
            root,
            text,
            top=top,
            per_video=per_video,
            scorer=scorer,
            scorer_model=resolve_model(scorer_model) if scorer_model else None,
            threshold=threshold,
        )
    is_search = isinstance(result, searching.SearchResult)
    print_result(result, print_found if is_search else print_duplicates, as_json=as_json)
    if html is not None:
        from strive.cache.frames import FrameReader
        from strive.cache.layout import open_cache
        from strive.report.pages import render_duplicates_page, render_search_page, write_page

        frames = FrameReader(open_cache(root), result.frames_key)
        page = (render_search_page if is_search else render_duplicates_page)(result, frames)
        say(f"wrote {write_page(html, page)}")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Run folders.")],
    html: Annotated[Path, option("The page to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None,
        option("Also write every chart as PNG and PDF.", default="none", metavar="DIR"),
    ] = None,
) -> None:
    """Training curves side by side (Fig. 3), seeds as bands.

    Runs that differ in their seed alone are one arm.
    """
    from strive.report.dynamics import render_dynamics_page, write_figures
    from strive.report.pages import write_page
    from strive.report.runs import read_runs
    from strive.report.tables import print_runs

    loaded = read_runs(runs)
    print_runs(loaded, make_console())
    say(f"wrote {write_page(html, render_dynamics_page(loaded))}")
    if figures is not None:
        say(f"wrote {count_of(len(write_figures(loaded, figures)), 'file')} to {figures}")


# --- what a search looks like --------------------------------------------------------------------


def print_found(result: "SearchResult", console: Console) -> None:
    """Print the found frames, best first."""
    table = titled_table(Text(result.text), (), ["", "cosine", "time", "frame"], **COMPACT)
    table.add_column("video", overflow="fold")
    has_twins = any(frame.duplicates for frame in result.frames)
    if has_twins:
        table.add_column("shows the same as", overflow="fold", style="yellow")
    for rank, frame in enumerate(result.frames, start=1):
        twins = [Text(", ".join(frame.duplicates))] if has_twins else []
        table.add_row(
            str(rank), f"{frame.score:.4f}", f"{frame.pts_seconds:.2f} s", str(frame.frame_index),
            Text(frame.video_id), *twins,
        )  # fmt: skip
    console.print(table)
    console.print(
        f"{result.num_frames} frames of {result.num_videos} videos, scorer {result.scorer}, index "
        f"{result.index}", style="dim", markup=False,
    )  # fmt: skip


def print_duplicates(report: "DuplicateReport", console: Console) -> None:
    """Print near-duplicate pairs, most alike first."""
    table = titled_table("", (), ["agreement"], **COMPACT)
    for name in ("video", "shows the same as"):
        table.add_column(name, overflow="fold")
    table.add_column("from", justify="right", no_wrap=True)
    for pair in report.pairs:
        first, second = (
            Text.assemble(name, (f" ({seconds:.1f} s)", "dim"))
            for name, seconds in zip((pair.first, pair.second), pair.seconds, strict=True)
        )
        table.add_row(f"{pair.agreement:.3f}", second, first, f"{pair.offset_seconds:.1f} s")
    if report.pairs:
        console.print(table)
    num_videos = len({name for pair in report.pairs for name in (pair.first, pair.second)})
    console.print(
        f"{len(report.pairs)} near-duplicate pairs ({num_videos} of {report.num_videos} videos), "
        f"scorer {report.scorer}, threshold {report.threshold:g}", style="dim", markup=False,
    )  # fmt: skip
