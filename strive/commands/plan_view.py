"""What `train --dry-run` looks like on a terminal."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from strive.commands.views import facts_table
from strive.configs.schema import TrainConfig
from strive.progress import size_text, time_text


def print_training_plan(plan: Mapping[str, Any], console: Console) -> None:
    """Print a run's configuration, sizes, memory and cost; nothing was computed or written."""
    console.print(_config_table(plan["config"]))
    console.print(_plan_table(plan))
    for name, what in (("memory", "Memory"), ("cost", "Time by formula")):
        console.print(f"[bold]{what}[/]: {escape(plan[name]['formula'])}", soft_wrap=False)
        console.print(escape(_inputs_text(plan[name])))


def _config_table(config: Mapping[str, Any]) -> Table:
    """Every key; values that are not the default stand out."""
    table = facts_table("Configuration (what is not the default is marked)")
    defaults = TrainConfig().model_dump(mode="json")
    for key, value in config.items():
        text = escape(value if isinstance(value, str) else json.dumps(value))
        table.add_row(key, text if value == defaults[key] else f"[bold]{text}[/] *")
    return table


def _plan_table(plan: Mapping[str, Any]) -> Table:
    config, tokens = plan["config"], plan["tokens"]
    table = facts_table("Plan; nothing was computed or written")
    table.add_row("policy", _parameters_text(plan))
    table.add_row("data", _data_text(plan))
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
    table.add_row("memory", _memory_text(plan))
    table.add_row("GPU-hours", _cost_text(plan))
    if plan["calibration"] is not None:
        table.add_row("measured", _calibration_text(plan["calibration"]))
    return table


def _parameters_text(plan: Mapping[str, Any]) -> str:
    inputs = plan["memory"]["inputs"]
    return (
        f"{escape(plan['config']['model'])}: {_million(inputs['P'])} parameters, "
        f"{_million(inputs['T'])} of them train ({plan['config']['trainable']})"
    )


def _data_text(plan: Mapping[str, Any]) -> str:
    data = plan["data"]
    scorer = f"scores of {data['scorer']}" if data["scorer"] else "no scores"
    asked = data["num_questions"] - data["num_questions_too_long"]
    return escape(
        f"{asked:,} questions of {data['cache']}, {scorer}"
        f"; {plan['config']['steps']:,} steps are {plan['epochs']:.2f} epochs"
    )


def _memory_text(plan: Mapping[str, Any]) -> str:
    memory = plan["memory"]
    parts = sorted(memory["bytes_per_process"].items(), key=lambda item: -item[1])
    listed = ", ".join(
        f"{name.replace('_', ' ')} {size_text(size)}" for name, size in parts if size
    )
    return f"{size_text(memory['peak_bytes_per_process'])} at the peak of each process ({listed})"


def _cost_text(plan: Mapping[str, Any]) -> str:
    cost = plan["cost"]
    gpu = cost["hardware"]
    return (
        f"about {_hours(cost['gpu_hours'])} by formula, every completion at its full length: "
        f"{_step_text(cost)} (a GPU of "
        f"{gpu['tflops']:g} TFLOP/s at {gpu['utilisation']:.0%}, {gpu['bandwidth_gb']:,.0f} GB/s)"
    )


def _calibration_text(calibration: Mapping[str, Any]) -> str:
    if "failed" in calibration:
        return escape(calibration["failed"])
    return (
        f"{_hours(calibration['gpu_hours'])} at full length: {_step_text(calibration)}, peak "
        f"{size_text(calibration['peak_bytes'])} ({escape(calibration['device'])}, random weights)"
    )


def _step_text(cost: Mapping[str, Any]) -> str:
    seconds = dict(cost["seconds_per_step"])
    total = seconds.pop("total")
    shares = ", ".join(f"{name} {part / total:.0%}" for name, part in seconds.items() if part)
    return f"{_seconds(total)} a step ({shares})"


def _inputs_text(part: Mapping[str, Any]) -> str:
    return "with " + ", ".join(f"{name} {value:,.10g}" for name, value in part["inputs"].items())


def _million(count: float) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 0.1 else f"{hours:.2g}"


def _seconds(seconds: float) -> str:
    return time_text(seconds) if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"
