"""`precompute`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strive.choices import (
    DecoderName,
    Engine,
    FrameCodecName,
    FramePlanName,
    LongText,
    Query,
    ScorerDtype,
)
from strive.commands.common import (
    LAB_LINE,
    JsonOption,
    WorkspaceOption,
    find_workspace,
    listed,
    make_console,
    plain_json,
    print_json,
    say,
)
from strive.scorers import SCORERS

if TYPE_CHECKING:
    from strive.pipeline.options import PrecomputeOptions
    from strive.pipeline.summary import PrecomputeSummary


RECORDS, SCORING, FRAMES, RUNNING = "Records", "Scorers", "Frames", "Running"


def precompute(
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Video-R1 JSON, JSONL or Parquet. Repeatable.  \\[default: the lab]",
            rich_help_panel=RECORDS,
        ),
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
            "--filter",
            help="Keep records with field=value. Repeatable.  \\[default: all]",
            rich_help_panel=RECORDS,
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
        typer.Option(
            help="Seeded sample of this many questions.  \\[default: all]", rich_help_panel=RECORDS
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of --subset.  \\[default: 0]", rich_help_panel=RECORDS)
    ] = None,
    for_config: Annotated[
        str | None,
        typer.Option(
            help="Just what a run of this preset or file reads.  \\[default: none]",
            rich_help_panel=RECORDS,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Only the first N videos.  \\[default: all]", rich_help_panel=RECORDS),
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(SCORERS)}, or module:function. Repeatable.  \\[default: siglip2]",
            rich_help_panel=SCORING,
        ),
    ] = None,
    scorer_model: Annotated[
        list[str] | None,
        typer.Option(
            help="Its model: ID_OR_DIR, lab:NAME, or SCORER=... Repeatable.  \\[default: its own]",
            rich_help_panel=SCORING,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Model of policy and gradient: ID_OR_DIR.  \\[default: Qwen2.5-VL-7B]",
            rich_help_panel=SCORING,
        ),
    ] = None,
    query: Annotated[
        Query,
        typer.Option(
            metavar="TEXT", help=f"What scorers read: {listed(Query)}.", rich_help_panel=SCORING
        ),
    ] = "question",
    long_text: Annotated[
        LongText,
        typer.Option(
            metavar="RULE",
            help=f"Beyond a scorer's context: {listed(LongText)}.",
            rich_help_panel=SCORING,
        ),
    ] = "truncate",
    device: Annotated[
        str,
        typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=SCORING),
    ] = "auto",
    dtype: Annotated[
        ScorerDtype | None,
        typer.Option(
            metavar="NAME",
            help=f"{listed(ScorerDtype)}; part of the key.  \\[default: by device]",
            rich_help_panel=SCORING,
        ),
    ] = None,
    embed_batch_size: Annotated[
        int,
        typer.Option(
            min=1, help="Frames embedded at a time; part of the key.", rich_help_panel=SCORING
        ),
    ] = 64,
    frames: Annotated[
        int, typer.Option(min=1, help="F: frames kept per video.", rich_help_panel=FRAMES)
    ] = 64,
    frame_plan: Annotated[
        FramePlanName,
        typer.Option(metavar="PLAN", help=f"{listed(FramePlanName)}.", rich_help_panel=FRAMES),
    ] = "uniform",
    max_pixels: Annotated[
        int | None,
        typer.Option(
            help="Pixels per cached frame.  \\[default: by frame plan]", rich_help_panel=FRAMES
        ),
    ] = None,
    frame_codec: Annotated[
        FrameCodecName,
        typer.Option(help="How frames are stored.", rich_help_panel=FRAMES),
    ] = "jpeg",
    decoder: Annotated[
        DecoderName,
        typer.Option(
            metavar="NAME",
            help=f"{listed(DecoderName)}; auto: the first that can.",
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
        Engine,
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
    """Decode videos once, score their frames, fill the cache."""
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
