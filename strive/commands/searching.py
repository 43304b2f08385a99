"""`search`: frames of the whole cache nearest to a text, and near-duplicate videos."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
from strive.errors import ConfigError
from strive.files import plain_json

if TYPE_CHECKING:
    from rich.console import Console

    from strive.search.nearest import DuplicateReport, SearchResult


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
    top: Annotated[int, typer.Option(min=1, help="How many frames.")] = 10,
    per_video: Annotated[
        int | None, typer.Option(min=1, help="At most so many of one video.  \\[default: any]")
    ] = None,
    duplicates: Annotated[
        bool,
        typer.Option("--duplicates", help="Instead, list pairs of videos that show the same."),
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(help="Cosine from which videos are near-duplicates.  \\[default: 0.9]"),
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(help="One with embeddings, by name or key.  \\[default: the only one]"),
    ] = None,
    scorer_model: Annotated[
        str | None,
        typer.Option(help="Its model: ID_OR_DIR or lab:NAME.  \\[default: as precomputed]"),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="Write a contact sheet that works offline.  \\[default: none]"),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Frames of the whole cache nearest to a text; duplicates."""
    from strive.experiments.workspace import resolve_model
    from strive.search import nearest as searching

    if duplicates == (text is not None):
        raise ConfigError("give a TEXT to search for, or --duplicates, one of the two")
    root = find_cache(cache, find_workspace(workspace))
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
    if as_json:
        print_json(plain_json(result))
    elif isinstance(result, searching.SearchResult):
        print_found(result, make_console())
    else:
        print_duplicates(result, make_console())
    if html is not None:
        from strive.cache.frames import FrameReader
        from strive.cache.layout import open_cache
        from strive.report.pages import render_duplicates_page, render_search_page, write_page

        frames = FrameReader(open_cache(root), result.frames_key)
        is_search = isinstance(result, searching.SearchResult)
        page = (render_search_page if is_search else render_duplicates_page)(result, frames)
        say(f"wrote {write_page(html, page)}")


def print_found(result: "SearchResult", console: "Console") -> None:
    """Print the found frames, best first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(result.text), title_justify="left", title_style="bold", box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    for name in ("", "cosine", "time", "frame"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("video", overflow="fold")
    if any(frame.duplicates for frame in result.frames):
        table.add_column("shows the same as", overflow="fold", style="yellow")
    for rank, frame in enumerate(result.frames, start=1):
        twins = [Text(", ".join(frame.duplicates))] if len(table.columns) > 5 else []
        table.add_row(
            str(rank), f"{frame.score:.4f}", f"{frame.pts_seconds:.2f} s", str(frame.frame_index),
            Text(frame.video_id), *twins,
        )  # fmt: skip
    console.print(table)
    console.print(
        f"{result.num_frames} frames of {result.num_videos} videos, scorer {result.scorer}, index "
        f"{result.index}", style="dim", markup=False,
    )  # fmt: skip


def print_duplicates(report: "DuplicateReport", console: "Console") -> None:
    """Print near-duplicate pairs, most alike first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("agreement", justify="right", no_wrap=True)
    table.add_column("video", overflow="fold")
    table.add_column("shows the same as", overflow="fold")
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
