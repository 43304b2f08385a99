"""`train`, `evaluate`, `rescore` and `compare`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strive.answers import TEMPLATES
from strive.choices import DecodeMode, EvaluationProtocol, FramesMode, GradingRules, PositionRule
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
from strive.commands.configs import configured
from strive.configs.load import Given
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError
from strive.evaluate.benchmarks import BENCHMARKS
from strive.variants import VARIANT_KINDS

if TYPE_CHECKING:
    from strive.evaluate.results import EvaluationResults

DRY_RUN_PANEL = "With --dry-run (GPU figures: an H100's)"


@configured(
    TrainConfig,
    {None: ("data", "cache", "model", "variants", "scorer", "spatial", "steps")},
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
    from strive.experiments.training import resolve_config, train_in_workspace

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
        if is_main:
            _show_plan(resolved, processes, gpu, as_json=as_json)
        return
    if as_json or processes is not None or any(gpu.values()):
        raise ConfigError(
            "--processes and --gpu-... belong to --dry-run, --json to --dry-run or --keys; add it, "
            "or leave them out"
        )
    summary = train_in_workspace(place, resolved, run_dir, resume=resume)
    if is_main:
        from strive.commands.views import print_training

        print_training(summary, make_console())


def _show_plan(
    config: TrainConfig, processes: int | None, gpu: dict[str, float | None], *, as_json: bool
) -> None:
    from strive.commands.plan_view import print_training_plan
    from strive.experiments.training import plan_training
    from strive.train.plan import Hardware

    num_processes = processes or int(os.environ.get("WORLD_SIZE", "1"))
    hardware = Hardware(**{name: value for name, value in gpu.items() if value is not None})
    plan = plan_training(config, num_processes=num_processes, hardware=hardware)
    if as_json:
        print_json(plan)
    else:
        print_training_plan(plan, make_console())


def evaluate(
    model: Annotated[
        str, typer.Option(help="Policy: hub id, folder (a run's final/), or lab:NAME.")
    ] = "lab:qwen2_5_vl",
    benchmark: Annotated[
        list[str] | None, typer.Option(help=f"{listed(BENCHMARKS)}. Repeatable.  \\[default: lab]")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Your own records instead. Repeatable.  \\[default: a benchmark]"),
    ] = None,
    video_root: Annotated[
        Path | None,
        typer.Option(help="What their paths are relative to.  \\[default: --data's folder]"),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(help="A benchmark's questions and videos.  \\[default: the lab's]"),
    ] = None,
    split: Annotated[str, typer.Option(help="Which of the benchmark's splits.")] = "test",
    protocol: Annotated[
        EvaluationProtocol, typer.Option(help="Prompt of the benchmark's protocol.")
    ] = "video_r1",
    prompt_template: Annotated[
        str | None,
        typer.Option(
            help=f"Instead: {listed(TEMPLATES)}.  \\[default: short for the lab's models]"
        ),
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames per video.")] = 32,
    frames_mode: Annotated[
        FramesMode,
        typer.Option(help="evidence: all evidence frames are among them; blank: grey frames."),
    ] = "uniform",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    position_rule: Annotated[
        PositionRule,
        typer.Option(help="The rule that the policy was trained under (docs/models.md)."),
    ] = "published",
    decode: Annotated[
        DecodeMode,
        typer.Option(help="Key-value cache; auto: static and compiled on a GPU."),
    ] = "auto",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first N questions.  \\[default: all]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder.  \\[default: the next free in the workspace]"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Answer again what --out has answers to.")
    ] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Answer a benchmark's questions; every answer is kept."""
    from strive.errors import unknown_name
    from strive.evaluate.runner import EvaluateOptions
    from strive.evaluate.runner import evaluate as run
    from strive.experiments.workspace import (
        LAB_PREFIX,
        LAB_TEMPLATE,
        ensure_lab,
        resolve_model,
        trained_template,
    )
    from strive.lab.world import read_world

    place = find_workspace(workspace)
    benchmarks = tuple(benchmark or ["lab"])
    for name in benchmarks:
        if name not in BENCHMARKS:
            raise unknown_name("benchmark", name, BENCHMARKS)
    on_lab = not data and data_root is None
    folder = resolve_model(model)  # an unknown one is an error before a lab is built
    if (data and (data_root or benchmark)) or (video_root and not data):
        raise ConfigError(
            "your own records are given with --data FILE and --video-root DIR, a benchmark with "
            "--benchmark NAME and --data-root DIR; give one of the two"
        )
    if data:
        data_root = video_root or data[0].parent
    elif data_root is None:
        say(LAB_LINE)
        data_root = ensure_lab(place).root
    elif not benchmark and read_world(data_root) is None:
        own = data_root / f"{split}.jsonl"
        data = [own] if own.is_file() else None
    if on_lab or model.startswith(LAB_PREFIX):
        prompt_template = prompt_template or LAB_TEMPLATE
    taught = trained_template(Path(folder))
    asked = prompt_template or protocol
    if taught is not None and taught != asked:
        say(
            f"warning: {model} was trained with prompt_template={taught}, and is asked with "
            f"{asked} (--prompt-template {taught})"
        )
    out = out or place.new_evaluation(Path(model.removeprefix("lab:")).name)
    results = run(
        EvaluateOptions(
            model=folder,
            data_root=data_root,
            out=out,
            benchmarks=benchmarks,
            data=tuple(data or ()),
            split=split,
            protocol=protocol,
            prompt_template=prompt_template,
            num_frames=frames,
            frames_mode=frames_mode,
            max_new_tokens=max_new_tokens,
            position_rule=position_rule,
            decode=decode,
            limit=limit,
            overwrite=overwrite,
        )
    )
    _show_results(results, as_json=as_json)
    say(f"answers: {out}; beside another policy's: strive-cli compare {out} OTHER_OUT_DIR")


def rescore(
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="An evaluation's folder.")],
    grading: Annotated[
        GradingRules | None,
        typer.Option(help="Rule set.  \\[default: the one it was graded with]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Grade stored answers again; no model is loaded."""
    from strive.evaluate.again import rescore as run

    _show_results(run(out, grading=grading), as_json=as_json)


def compare(
    first: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="An evaluation's folder.")],
    second: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="The one to subtract.")],
    as_json: JsonOption = False,
) -> None:
    """Difference of two evaluations, paired by question.

    It holds for these two policies. Trainings of one method differ as well: to
    compare methods, train several seeds of each.
    """

    from strive.evaluate.again import compare as run
    from strive.evaluate.tables import print_comparison

    comparison = run(first, second)
    if as_json:
        print_json(plain_json(comparison))
    else:
        print_comparison(comparison, make_console())


def _show_results(results: "EvaluationResults", *, as_json: bool) -> None:
    from strive.evaluate.results import results_to_json
    from strive.evaluate.tables import print_results

    if as_json:
        print_json(results_to_json(results))
    else:
        print_results(results, make_console())
