"""Training dynamics of several runs side by side: Fig. 3's three curves and what explains them."""

from collections.abc import Sequence
from typing import Any

from strive.errors import ConfigError
from strive.report.charts import charts_of
from strive.report.pages import render_page
from strive.report.runs import Run, accuracy_note, config_differences, read_run, read_runs

__all__ = ["FIGURE_3", "Run", "dynamics_values", "read_run", "read_runs", "render_dynamics_page"]

MAX_RUNS = 6
"""As many as the page has colours."""
FIGURE_3 = (
    ("group/reward_std", "Group reward std", "group/reward_std, mean over the step's groups"),
    ("group/zero_std_fraction", "Zero-std groups", "group/zero_std_fraction: no signal"),
    ("optim/grad_norm", "Gradient norm", "optim/grad_norm, before clipping"),
)
OUTCOMES = (
    ("reward/accuracy", "Accuracy reward", "reward/accuracy, on sampled completions"),
    ("reward/mean", "Reward", "reward/mean, all rewards by weight"),
    ("held_out/accuracy", "Held-out accuracy", "held_out/accuracy, greedy"),
)
FURTHER = (
    ("group/accuracy_zero_std_fraction", "Zero-std groups, accuracy alone",
     "group/accuracy_zero_std_fraction"),
    ("group/between_variant_share", "Between variants", "group/between_variant_share of variance"),
    ("group/all_correct_fraction", "Groups all right", "group/all_correct_fraction"),
    ("group/all_wrong_fraction", "Groups all wrong", "group/all_wrong_fraction"),
    ("group/variant_agreement", "Variants agree", "group/variant_agreement"),
    ("variants/evidence_seen", "Evidence seen", "variants/evidence_seen, share of variants"),
    ("completion/length_mean", "Completion length", "completion/length_mean, tokens"),
    ("loss/kl", "KL to the reference", "loss/kl"),
    ("policy/entropy", "Entropy", "policy/entropy"),
    ("time/step", "Seconds a step", "time/step"),
)  # fmt: skip


def render_dynamics_page(runs: Sequence[Run]) -> str:
    """Render the runs' dynamics as one self-contained HTML page.

    Raises:
        ConfigError: no run, or more than the page has colours for.
    """
    return render_page("dynamics.html.j2", **dynamics_values(runs))


def dynamics_values(runs: Sequence[Run]) -> dict[str, Any]:
    """What the dynamics part of a page shows."""
    if not 1 <= len(runs) <= MAX_RUNS:
        raise ConfigError(f"{len(runs)} runs given; a page shows 1 to {MAX_RUNS}")
    return {
        "runs": [_run_row(run) for run in runs],
        "figure_3": charts_of(runs, FIGURE_3),
        "outcomes": charts_of(runs, OUTCOMES),
        "further": charts_of(runs, FURTHER),
        "differences": config_differences(runs),
        "accuracy_note": accuracy_note(runs),
    }


def _run_row(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": str(run.path),
        "num_steps": run.num_steps,
        "reward_std": run.mean("group/reward_std"),
        "zero_std": run.mean("group/zero_std_fraction"),
        "grad_log_deviation": run.grad_norm_log_deviation,
        "accuracy_first": run.mean("reward/accuracy", last=0.1),
        "accuracy_last": run.mean("reward/accuracy", first=0.9),
        "seconds": run.seconds,
        "seen": run.accuracy_by_evidence.get("seen"),
        "missed": run.accuracy_by_evidence.get("missed"),
        "examples": run.examples,
    }
