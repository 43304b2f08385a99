"""`train`, and what its plan and its end look like."""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from strive.commands.common import (
    LAB_LINE,
    WorkspaceOption,
    find_workspace,
    make_console,
    option,
    print_result,
    say,
)
from strive.commands.configs import configured
from strive.configs.load import Given
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError
from strive.progress import number_text, size_text, time_text
from strive.report.format import add_facts, facts_table, titled_table
from strive.variants import VARIANT_KINDS

if TYPE_CHECKING:
    from strive.train.loop import TrainSummary

DRY_RUN_PANEL = "With --dry-run (GPU figures: an H100's)"


def plan_option(about: str, *names: str, **settings: Any) -> Any:
    """Return an option that goes with `--dry-run` alone."""
    return option(about, *names, rich_help_panel=DRY_RUN_PANEL, **settings)


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
        Path | None, option("Run folder.", default="the next free in the workspace")
    ] = None,
    resume: Annotated[bool, option("Go on from the last checkpoint.", "--resume")] = False,
    dry_run: Annotated[
        bool, option("Print the resolved config and estimates, then stop.", "--dry-run")
    ] = False,
    processes: Annotated[
        int | None, plan_option("GPUs to plan for.", default="those of the launcher", min=1)
    ] = None,
    gpu_tflops: Annotated[
        float | None, plan_option("Peak TFLOP/s of one GPU.", default="989", min=1e-3)
    ] = None,
    gpu_utilisation: Annotated[
        float | None,
        plan_option("Share of it that is reached.", default="0.4", min=1e-3, max=1.0),
    ] = None,
    gpu_bandwidth: Annotated[
        float | None, plan_option("GB/s of its memory.", default="3350", min=1e-3)
    ] = None,
    as_json: Annotated[bool, plan_option("Print JSON instead of tables.", "--json")] = False,
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
        from strive.train.plan import Hardware
        from strive.train.plan import dry_run as plan_run

        plan = plan_run(
            resolved,
            num_processes=processes or int(os.environ.get("WORLD_SIZE", "1")),
            hardware=Hardware(**{name: value for name, value in gpu.items() if value is not None}),
            try_rewards=True,
        )
        print_result(plan, print_training_plan, as_json=as_json)
        return
    if as_json or processes is not None or any(gpu.values()):
        raise ConfigError(
            "--processes and --gpu-... belong to --dry-run, --json to --dry-run or --keys; add it, "
            "or leave them out"
        )
    summary = run_training(resolved, place, run_dir=run_dir, resume=resume)
    if is_main:
        print_training(summary, make_console())


# --- what a finished run looks like ------------------------------------------------------------


def print_training(summary: "TrainSummary", console: Console) -> None:
    """Print where a finished run is and its last step's figures."""
    last, best = summary.last_metrics, summary.best
    done = summary.num_steps - summary.first_step
    facts = {
        "policy": f"{escape(str(summary.final))} (a Hugging Face folder)",
        "steps": f"{summary.num_steps} ({done} in this call, {time_text(summary.seconds)}, "
        f"{summary.num_questions} questions)",
    }
    if last:
        rewards = ", ".join(
            f"{escape(name.removeprefix('reward/'))} {_figure(value)}"
            for name, value in last.items()
            if name.startswith("reward/") and name != "reward/mean"
        )
        facts["last step"] = (
            f"reward {_figure(last['reward/mean'])} ({rewards}), group std "
            f"{_figure(last['group/reward_std'])}, zero-std groups "
            f"{last['group/zero_std_fraction']:.0%}, "
            f"gradient norm {_figure(last['optim/grad_norm'])}"
        )
    if best is not None:
        facts["best"] = (
            f"held-out {best.metric} {best.value:.1%} after step {best.step}: "
            f"{escape(str(summary.run_dir / 'best'))}"
        )
    facts["look"] = f"strive-cli report {escape(shlex.quote(str(summary.run_dir)))}"
    console.print(facts_table(f"Run {escape(str(summary.run_dir))}", facts))


def _figure(value: float | None) -> str:
    """A metric, which is null where it does not apply: no reward was given, for one."""
    return "none" if value is None else number_text(value, 3)


# --- what a plan looks like -----------------------------------------------------------------------

_SECONDS = {
    "vision": "videos through the tower",
    "prefill": "reading the prompts",
    "decode": "writing, every completion at its full length",
    "policy": "log-probs, backward",
    "reference": "log-probs for the KL term",
}


def print_training_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Print a run's configuration, sizes, memory and cost; nothing was computed or written."""
    table = facts_table("Configuration (what is not the default is marked)", {})
    defaults = TrainConfig().model_dump(mode="json")
    for key, value in plan["config"].items():
        text = escape(value if isinstance(value, str) else json.dumps(value))
        table.add_row(key, text if value == defaults[key] else f"[bold]{text}[/] *")
    console.print(table)
    for table in (_plan_table(plan), _memory_table(plan), _time_table(plan)):
        console.print(table)


def _plan_table(plan: Mapping[str, Any]) -> Table:
    config, tokens, data = plan["config"], plan["tokens"], plan["data"]
    total, trained = (_million(plan["memory"]["inputs"][name]) for name in ("P", "T"))
    scorer = f"scores of {data['scorer']}" if data["scorer"] else "no scores"
    num_questions = data["num_questions"] - data["num_questions_too_long"]
    facts = {
        "policy": f"{escape(config['model'])}: {total} parameters, {trained} of them train "
        f"({config['trainable']})",
        "data": f"{num_questions:,} questions of {escape(data['cache'])}, {escape(scorer)}; "
        f"{config['steps']:,} steps are {plan['epochs']:.2f} epochs",
    }
    table = facts_table("Plan; nothing was computed or written", facts)
    for line in plan["notes"]:
        text = escape(line.removeprefix("warning: "))
        table.add_row("", f"[yellow]{text}[/]" if line.startswith("warning: ") else text)
    encodes, memory, cost = plan["vision_encodes"], plan["memory"], plan["cost"]
    updates = config["minibatches_per_rollout"] * config["updates_per_rollout"]
    contrasts = f" + {config['questions_per_step']} contrasts x {config['contrast_generations']}"
    contrasts = "" if config["contrast"] == "none" else contrasts
    seconds, hours, gpu = cost["seconds_per_step"]["total"], cost["gpu_hours"], cost["hardware"]
    facts = {
        "step": f"{config['questions_per_step']} questions x {config['num_variants']} variants x "
        f"{config['num_generations']} completions{contrasts} = {plan['completions_per_step']} "
        f"completions, {updates} optimiser step{'s' * (updates > 1)}, on "
        f"{plan['num_processes']} process" + ("es" if plan["num_processes"] > 1 else ""),
        "tokens": f"prompt {tokens['prompt']:,} ({tokens['video']:,} of the video), completion at "
        f"most {config['max_new_tokens']:,}; a step: {tokens['prefill_per_step']:,} read, at most "
        f"{tokens['completion_per_step_at_most']:,} written, log-probs over at most "
        f"{tokens['logprob_per_step_at_most']:,}",
        "vision encodes": f"{encodes['per_step']:,} a step, {encodes['in_all']:,} in the run",
        "memory": f"{size_text(memory['peak_bytes_per_process'])} at the peak of each process",
        "GPU-hours": f"about {f'{hours:,.1f}' if hours >= 0.1 else f'{hours:.2g}'} by formula, "
        f"{_seconds(seconds)} a step (a GPU of {gpu['tflops']:g} TFLOP/s at "
        f"{gpu['utilisation']:.0%}, {gpu['bandwidth_gb']:,.0f} GB/s)",
    }
    add_facts(table, facts)
    return table


def _memory_table(plan: Mapping[str, Any]) -> Table:
    """A row a part, a column a phase of the run; the largest sum is the peak."""
    memory = plan["memory"]
    columns = {name.replace("_", "-"): parts for name, parts in memory["phases"].items()}
    sums = {name: sum(parts.values()) for name, parts in columns.items()}
    peak = max(sums.values())
    if memory["offloaded_bytes_per_process"]:
        columns["on the host"] = memory["offloaded_bytes_per_process"]
    table = _numbers_table("Memory of each process; sums: docs/scaling.md", *columns)
    for part in dict.fromkeys(name for parts in columns.values() for name in parts):
        sizes = [column.get(part, 0) for column in columns.values()]
        if any(sizes):
            table.add_row(part.replace("_", " "), *(size_text(s) if s else "" for s in sizes))
    table.add_section()
    texts = (f"[bold]{size_text(s)}[/]" if s == peak else size_text(s) for s in sums.values())
    table.add_row("together", *texts)
    return table


def _time_table(plan: Mapping[str, Any]) -> Table:
    seconds = dict(plan["cost"]["seconds_per_step"])
    total = seconds.pop("total")
    table = _numbers_table("Time of a step in each process, by formula", "time", "share")
    table.add_column("", style="dim")
    for part, value in seconds.items():
        if value:
            table.add_row(part, _seconds(value), f"{value / total:.0%}", _SECONDS[part])
    table.add_section()
    table.add_row("together", f"[bold]{_seconds(total)}[/]", "", "sums: docs/scaling.md")
    return table


def _numbers_table(title: str, *columns: str) -> Table:
    table = titled_table(title, [""], columns)
    table.columns[0].style = "cyan"
    return table


def _million(count: float) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _seconds(seconds: float) -> str:
    return time_text(seconds) if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"
