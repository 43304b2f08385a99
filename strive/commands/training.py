"""`train`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from strive.commands.common import (
    LAB_LINE,
    WorkspaceOption,
    find_workspace,
    make_console,
    print_json,
    say,
)
from strive.commands.configs import configured
from strive.configs.load import Given
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError
from strive.variants import VARIANT_KINDS

DRY_RUN_PANEL = "With --dry-run (GPU figures: an H100's)"


@configured(
    TrainConfig,
    {None: "data cache model variants scorer spatial steps"},
    choices={"variants": ", ".join(VARIANT_KINDS)},
    config_help="Preset or YAML file. Repeatable, later ones win."
    "  \\[default: lab_strive, on the lab]",
    word_help="With --keys: a word, or another trainer's name.",
)
def train(
    given: Given,
    run_dir: Annotated[
        Path | None, typer.Option(help="Run folder.  \\[default: the next free in the workspace]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved config and estimates, then stop.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="GPUs to plan for.  \\[default: those of the launcher]",
            rich_help_panel=DRY_RUN_PANEL,
        ),
    ] = None,
    gpu_tflops: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            help="Peak TFLOP/s of one GPU.  \\[default: 989]",
            rich_help_panel=DRY_RUN_PANEL,
        ),
    ] = None,
    gpu_utilisation: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            max=1.0,
            help="Share of it that is reached.  \\[default: 0.4]",
            rich_help_panel=DRY_RUN_PANEL,
        ),
    ] = None,
    gpu_bandwidth: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            help="GB/s of its memory.  \\[default: 3350]",
            rich_help_panel=DRY_RUN_PANEL,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON instead of tables.", rich_help_panel=DRY_RUN_PANEL),
    ] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """GRPO over M visual variants x G completions, with DeepSpeed."""
    from strive.experiments.training import resolve_config, run_training

    place = find_workspace(workspace)
    resolved, on_lab = resolve_config(place, given)
    is_main = int(os.environ.get("RANK", "0")) == 0
    if on_lab and is_main:
        say(LAB_LINE)
    gpu = {
        "tflops": gpu_tflops,
        "utilisation": gpu_utilisation,
        "bandwidth_gb": gpu_bandwidth,
    }
    if dry_run:
        if not is_main:
            return
        from strive.commands.plan_view import print_training_plan
        from strive.train.plan import Hardware
        from strive.train.plan import dry_run as plan_run

        plan = plan_run(
            resolved,
            num_processes=processes or int(os.environ.get("WORLD_SIZE", "1")),
            hardware=Hardware(**{name: value for name, value in gpu.items() if value is not None}),
            try_rewards=True,
        )
        if as_json:
            print_json(plan)
        else:
            print_training_plan(plan, make_console())
        return
    if as_json or processes is not None or any(gpu.values()):
        raise ConfigError(
            "--processes and --gpu-... belong to --dry-run, --json to --dry-run or --keys; add it, "
            "or leave them out"
        )
    summary = run_training(resolved, place, run_dir=run_dir, resume=resume)
    if is_main:
        from strive.commands.views import print_training

        print_training(summary, make_console())
