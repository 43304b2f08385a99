"""`precompute`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from strive.commands.common import (
    LAB_LINE,
    JsonOption,
    WorkspaceOption,
    find_workspace,
    make_console,
    plain_json,
    print_json,
    say,
)

if TYPE_CHECKING:
    from strive.pipeline.options import PrecomputeOptions
    from strive.pipeline.summary import PrecomputeSummary


def precompute(
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Records: Video-R1 JSON, JSONL or Parquet. Repeatable."),
    ] = None,
    video_root: Annotated[
        Path | None,
        typer.Option(
            help="What record paths are relative to.  \\[default: the first --data's folder]"
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Cache folder.  \\[default: in the workspace]")
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="Scorer, or module:function. Repeatable.  \\[default: siglip2]"),
    ] = None,
    scorer_model: Annotated[
        list[str] | None,
        typer.Option(help="Its model: ID_OR_DIR, lab:NAME, or SCORER=... Repeatable."),
    ] = None,
    subset: Annotated[
        int | None, typer.Option(help="Seeded sample of this many questions.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of --subset.")] = 0,
    where: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Keep records with field=value. Repeatable."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N videos.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="F: frames kept per video.")] = 64,
    max_pixels: Annotated[int, typer.Option(help="Pixels per cached frame.")] = 128 * 28 * 28,
    frame_codec: Annotated[
        Literal["jpeg", "raw"], typer.Option(help="How frames are stored.")
    ] = "jpeg",
    decoder: Annotated[
        Literal["auto", "decord", "pyav"], typer.Option(help="auto: the first that can, per file.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Decode processes.  \\[default: by cores]")
    ] = None,
    decode_timeout: Annotated[
        float, typer.Option(help="Seconds after which a decode is killed.")
    ] = 600.0,
    embed_batch_size: Annotated[
        int, typer.Option(min=1, help="Frames embedded at a time; part of the key.")
    ] = 64,
    shard: Annotated[str, typer.Option(help="Do part i of n, counted from 0.")] = "0/1",
    max_failure_fraction: Annotated[
        float, typer.Option(help="Exit 1 when more of the videos fail.")
    ] = 0.05,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try failed videos again.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Make again what is there.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate time and disk, then stop.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """OFFLINE: decode each video once, score its frames for each question, fill the cache."""
    from strive.experiments import offline
    from strive.pipeline.options import PrecomputeOptions
    from strive.pipeline.scorers import check_scorer_name

    scorers = tuple(scorer or ["siglip2"])
    for name in scorers:
        check_scorer_name(name)
    models = offline.parse_scorer_models(scorer_model or [], scorers)
    filters, part = offline.parse_filters(where or []), offline.parse_shard(shard)
    place = find_workspace(workspace)
    if not data:
        say(LAB_LINE)
        models = offline.lab_scorer_models(scorers, models)
    files, root, cache_dir = offline.choose_data(place, data or [], video_root, cache)
    _run_and_print(
        PrecomputeOptions(
            data=files,
            video_root=root,
            cache=cache_dir,
            scorers=scorers,
            scorer_models=models,
            filters=filters,
            subset=subset,
            seed=seed,
            limit=limit,
            frames=frames,
            max_pixels=max_pixels,
            frame_codec=frame_codec,
            decoder=decoder,
            workers=workers,
            decode_timeout_seconds=decode_timeout,
            embed_batch_size=embed_batch_size,
            shard=part,
            max_failure_fraction=max_failure_fraction,
            retry_failed=retry_failed,
            overwrite=overwrite,
            dry_run=dry_run,
        ),
        as_json=as_json,
    )


def _run_and_print(options: "PrecomputeOptions", *, as_json: bool) -> None:
    from strive.commands.views import print_estimate, print_precompute
    from strive.pipeline.run import precompute as run

    def show(summary: "PrecomputeSummary") -> None:
        if as_json:
            print_json(plain_json(summary))
        elif summary.estimate is not None:
            print_estimate(summary, make_console())
        else:
            print_precompute(summary, make_console())

    # Also called before an error that ends the work, so that what was done is always seen.
    run(options, show)
