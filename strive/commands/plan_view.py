"""Tables of `train --dry-run` on a terminal."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from strive.configs.schema import TrainConfig
from strive.progress import size_text, time_text
from strive.report.format import facts_table

_SECONDS = {
    "vision": "videos through the tower",
    "prefill": "reading the prompts",
    "decode": "writing, every completion at its full length",
    "policy": "log-probs, backward",
    "reference": "log-probs for the KL term",
}
_PHASES = {"start_up": "start-up", "rollout": "rollout", "learning": "learning"}


def print_training_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Print a run's configuration, sizes, memory and cost; nothing was computed or written."""
    for table in (_config_table(plan), _plan_table(plan), _memory_table(plan), _time_table(plan)):
        console.print(table)


def _config_table(plan: Mapping[str, Any]) -> Table:
    """Every key; values that are not the default stand out."""
    table = facts_table("Configuration (what is not the default is marked)")
    defaults = TrainConfig().model_dump(mode="json")
    for key, value in plan["config"].items():
        text = escape(value if isinstance(value, str) else json.dumps(value))
        table.add_row(key, text if value == defaults[key] else f"[bold]{text}[/] *")
    return table


def _plan_table(plan: Mapping[str, Any]) -> Table:
    config, tokens, data = plan["config"], plan["tokens"], plan["data"]
    table = facts_table("Plan; nothing was computed or written")
    total, trained = (_million(plan["memory"]["inputs"][name]) for name in ("P", "T"))
    table.add_row(
        "policy",
        f"{escape(config['model'])}: {total} parameters, {trained} of them train "
        f"({config['trainable']})",
    )
    scorer = f"scores of {data['scorer']}" if data["scorer"] else "no scores"
    table.add_row(
        "data",
        escape(
            f"{data['num_questions'] - data['num_questions_too_long']:,} questions of "
            f"{data['cache']}, {scorer}; {config['steps']:,} steps are {plan['epochs']:.2f} epochs"
        ),
    )
    for line in plan["notes"]:
        text = escape(line.removeprefix("warning: "))
        table.add_row("", f"[yellow]{text}[/]" if line.startswith("warning: ") else text)
    table.add_row(
        "step",
        f"{config['questions_per_step']} questions x {config['num_variants']} variants x "
        f"{config['num_generations']} completions = {plan['completions_per_step']} completions, on "
        f"{plan['num_processes']} process" + ("es" if plan["num_processes"] > 1 else ""),
    )
    table.add_row(
        "tokens",
        f"prompt {tokens['prompt']:,} ({tokens['video']:,} of the video), completion at most "
        f"{config['max_new_tokens']:,}; a step: {tokens['prefill_per_step']:,} read, at most "
        f"{tokens['completion_per_step_at_most']:,} written, log-probs over at most "
        f"{tokens['logprob_per_step_at_most']:,}",
    )
    encodes = plan["vision_encodes"]
    table.add_row(
        "vision encodes", f"{encodes['per_step']:,} a step, {encodes['in_all']:,} in the run"
    )
    memory, cost = plan["memory"], plan["cost"]
    seconds, hours, gpu = cost["seconds_per_step"]["total"], cost["gpu_hours"], cost["hardware"]
    table.add_row(
        "memory", f"{size_text(memory['peak_bytes_per_process'])} at the peak of each process"
    )
    table.add_row(
        "GPU-hours",
        f"about {f'{hours:,.1f}' if hours >= 0.1 else f'{hours:.2g}'} by formula, "
        f"{_seconds(seconds)} a step (a GPU of {gpu['tflops']:g} TFLOP/s at "
        f"{gpu['utilisation']:.0%}, {gpu['bandwidth_gb']:,.0f} GB/s)",
    )
    return table


def _memory_table(plan: Mapping[str, Any]) -> Table:
    """A row a part, a column a phase of the run; the largest sum is the peak."""
    memory = plan["memory"]
    columns = {_PHASES[name]: parts for name, parts in memory["phases"].items()}
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
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("", style="cyan", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _million(count: float) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _seconds(seconds: float) -> str:
    return time_text(seconds) if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"
