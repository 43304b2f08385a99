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


RECORDS, SCORERS, FRAMES, RUNNING = "Records", "Scorers", "Frames", "Running"


def precompute(
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Video-R1 JSON, JSONL or Parquet. Repeatable.", rich_help_panel=RECORDS),
    ] = None,
    video_root: Annotated[
        Path | None,
        typer.Option(
            help="What paths are relative to.  \\[default: the first --data's folder]",
            rich_help_panel=RECORDS,
        ),
    ] = None,
    allow_outside_root: Annotated[
        bool,
        typer.Option("--allow-outside-root", help="Let paths leave it.", rich_help_panel=RECORDS),
    ] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", help="Keep records with field=value. Repeatable.", rich_help_panel=RECORDS
        ),
    ] = None,
    skip_bad_records: Annotated[
        bool,
        typer.Option(
            "--skip-bad-records", help="Count malformed rows, go on.", rich_help_panel=RECORDS
        ),
    ] = False,
    subset: Annotated[
        int | None,
        typer.Option(help="Seeded sample of this many questions.", rich_help_panel=RECORDS),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of --subset.  \\[default: 0]", rich_help_panel=RECORDS)
    ] = None,
    for_config: Annotated[
        str | None,
        typer.Option(help="Just what a run of this preset or file reads.", rich_help_panel=RECORDS),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N videos.", rich_help_panel=RECORDS)
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="A name, or module:function. Repeatable.  \\[default: siglip2]",
            rich_help_panel=SCORERS,
        ),
    ] = None,
    scorer_model: Annotated[
        list[str] | None,
        typer.Option(
            help="Its model: ID_OR_DIR, lab:NAME, or SCORER=... Repeatable.",
            rich_help_panel=SCORERS,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Model of policy and gradient: ID_OR_DIR.", rich_help_panel=SCORERS),
    ] = None,
    query: Annotated[
        Literal["question", "question+options"],
        typer.Option(
            metavar="TEXT", help="question, or question+options.", rich_help_panel=SCORERS
        ),
    ] = "question",
    long_text: Annotated[
        Literal["truncate", "chunk-mean"],
        typer.Option(
            metavar="RULE",
            help="Beyond a scorer's context: truncate, or chunk-mean.",
            rich_help_panel=SCORERS,
        ),
    ] = "truncate",
    device: Annotated[
        str,
        typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=SCORERS),
    ] = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(
            metavar="NAME",
            help="float32, bfloat16 or float16; part of the key.  \\[default: by device]",
            rich_help_panel=SCORERS,
        ),
    ] = None,
    embed_batch_size: Annotated[
        int,
        typer.Option(
            min=1, help="Frames embedded at a time; part of the key.", rich_help_panel=SCORERS
        ),
    ] = 64,
    frames: Annotated[
        int, typer.Option(min=1, help="F: frames kept per video.", rich_help_panel=FRAMES)
    ] = 64,
    frame_plan: Annotated[
        Literal["uniform", "keyframe", "linspace", "fps"],
        typer.Option(
            metavar="PLAN", help="uniform, keyframe, linspace or fps.", rich_help_panel=FRAMES
        ),
    ] = "uniform",
    max_pixels: Annotated[
        int | None,
        typer.Option(
            help="Pixels per cached frame.  \\[default: by frame plan]", rich_help_panel=FRAMES
        ),
    ] = None,
    frame_codec: Annotated[
        Literal["jpeg", "raw"],
        typer.Option(help="How frames are stored.", rich_help_panel=FRAMES),
    ] = "jpeg",
    decoder: Annotated[
        Literal["auto", "torchcodec", "decord", "pyav"],
        typer.Option(
            metavar="NAME",
            help="torchcodec, decord, pyav, or auto: the first that can.",
            rich_help_panel=FRAMES,
        ),
    ] = "auto",
    decode_timeout: Annotated[
        float,
        typer.Option(help="Seconds after which a decode is killed.", rich_help_panel=FRAMES),
    ] = 600.0,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Remux or transcode what no decoder opens.", rich_help_panel=FRAMES
        ),
    ] = False,
    max_missing: Annotated[
        str | None,
        typer.Option(
            metavar="5s|10%|any",
            help="How much of a cut video may lack.  \\[default: the larger of 1s, 2%]",
            rich_help_panel=FRAMES,
        ),
    ] = None,
    allow_damaged: Annotated[
        bool,
        typer.Option(
            "--allow-damaged", help="Take damaged frames as players show.", rich_help_panel=FRAMES
        ),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(help="Cache folder.  \\[default: in the workspace]", rich_help_panel=RUNNING),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Decode processes.  \\[default: by cores]", rich_help_panel=RUNNING),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="This machine, or a Ray cluster.", rich_help_panel=RUNNING),
    ] = "local",
    shard: Annotated[
        str, typer.Option(help="Do part i of n, counted from 0.", rich_help_panel=RUNNING)
    ] = "0/1",
    max_failure_fraction: Annotated[
        float,
        typer.Option(help="Exit 1 when more of the videos fail.", rich_help_panel=RUNNING),
    ] = 0.05,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Try failed videos again.", rich_help_panel=RUNNING),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Make again what is there.", rich_help_panel=RUNNING),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Estimate time and disk, then stop.", rich_help_panel=RUNNING
        ),
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """OFFLINE: decode each video once, score its frames for each question, fill the cache."""
    from strive.experiments import offline
    from strive.pipeline.options import PrecomputeOptions

    asked = offline.Asked(
        data=tuple(data or ()),
        video_root=video_root,
        cache=cache,
        filters=offline.parse_filters(where or []),
        subset=subset,
        seed=seed,
        for_config=for_config,
        scorers=tuple(scorer or ()),
        scorer_models=tuple(scorer_model or ()),
        policy=policy,
    )
    part = offline.parse_shard(shard)
    found = offline.resolve(find_workspace(workspace), asked, say_lab=lambda: say(LAB_LINE))
    found["skip_bad_records"] = skip_bad_records or found.get("skip_bad_records", False)
    _run_and_print(
        PrecomputeOptions(
            **found,
            limit=limit,
            query=query,
            long_text=long_text,
            allow_outside_root=allow_outside_root,
            repair=repair,
            max_missing=max_missing,
            allow_damaged=allow_damaged,
            engine=engine,
            frames=frames,
            frame_plan=frame_plan,
            max_pixels=max_pixels,
            frame_codec=frame_codec,
            decoder=decoder,
            workers=workers,
            decode_timeout_seconds=decode_timeout,
            device=device,
            dtype=dtype,
            embed_batch_size=embed_batch_size,
            shard=part,
            max_failure_fraction=max_failure_fraction,
            retry_failed=retry_failed,
            overwrite=overwrite,
            dry_run=dry_run,
        ),
        as_json=as_json,
    )


def _as_json(summary: "PrecomputeSummary") -> dict[str, object]:
    """Return a summary as JSON values; `cache failures` says which failed."""
    values = plain_json(summary)
    assert isinstance(values, dict)
    del values["failed"], values["failed_questions"]
    return {
        **values,
        "failed_by_error": summary.failed_by_error,
        "num_failed": summary.num_failed,
        "failed_questions_by_error": summary.failed_questions_by_error,
        "num_failed_questions": len(summary.failed_questions),
    }


def _run_and_print(options: "PrecomputeOptions", *, as_json: bool) -> None:
    from strive.commands.views import print_estimate, print_precompute
    from strive.pipeline.run import precompute as run

    def show(summary: "PrecomputeSummary") -> None:
        if as_json:
            print_json(_as_json(summary))
        elif summary.estimate is not None:
            print_estimate(summary, make_console())
        else:
            print_precompute(summary, make_console())

    # Also called before an error that ends the work, so that what was done is always seen.
    run(options, show)
