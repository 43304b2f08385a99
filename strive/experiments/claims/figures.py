"""The figures of the page: Fig. 3's three curves, each arm's runs as a band."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strive.experiments.claims.analysis import Runs, active_grad_norm
from strive.experiments.claims.results import RunResult

SHOWN = ("grpo", "grpo_random", "strive_per_variant", "strive_permuted", "strive")
WINDOW = 15
"""Steps that a point of a curve is the mean of."""
RUNS_A_BIN = 3
"""A bin of accuracy that fewer runs reach is not drawn: one odd step would set the scale."""
CURVES = {
    "Group reward std": lambda run: run.curve("group/reward_std"),
    "Zero-std groups (share)": lambda run: run.curve("group/zero_std_fraction"),
    "Gradient norm, active groups": active_grad_norm,
}
FORMATS = ("svg", "png", "pdf")
_COLOURS = ("#4d4d4d", "#0072b2", "#009e73", "#e69f00", "#d55e00")


def draw_figures(runs: Runs, folder: Path) -> dict[str, Path]:
    """Write each figure as SVG, PNG and PDF; returns the SVG files by their titles."""
    arms = [arm for arm in SHOWN if any(cell.arm == arm for cell in runs)]
    if not arms:
        return {}
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    mpl.rcParams.update({"svg.hashsalt": "strive", "svg.fonttype": "none", "font.size": 9})
    over_steps, axes = pyplot.subplots(1, 3, figsize=(10.5, 3.2), constrained_layout=True)
    for axis, (title, measure) in zip(axes, CURVES.items(), strict=True):
        for arm, colour in zip(arms, _COLOURS, strict=False):
            curves = [smooth(measure(run)) for cell, run in runs.items() if cell.arm == arm]
            _band(axis, np.arange(len(curves[0])) + 1, np.stack(curves), arm, colour)
        axis.set(title=title, xlabel="step")
    axes[0].legend(fontsize=7, frameon=False)
    matched, axes = pyplot.subplots(1, 3, figsize=(10.5, 3.2), constrained_layout=True)
    for axis, (title, measure) in zip(axes, CURVES.items(), strict=True):
        for arm, colour in zip(arms, _COLOURS, strict=False):
            own = [run for cell, run in runs.items() if cell.arm == arm]
            centres = np.arange(0.025, 1, 0.05)
            binned = np.stack([by_accuracy(run, measure(run)) for run in own])
            few = np.isfinite(binned).sum(axis=0) < min(RUNS_A_BIN, len(own))
            _band(axis, centres, np.where(few, np.nan, binned), arm, colour)
        axis.set(title=title, xlabel="training accuracy (bins of 5 points)")
    axes[0].legend(fontsize=7, frameon=False)
    written = {}
    for title, name, figure in (
        (
            "Over steps: means over runs, and the band of one standard deviation",
            "steps",
            over_steps,
        ),
        (
            f"At matched training accuracy: bins that {RUNS_A_BIN} runs or more reach",
            "matched",
            matched,
        ),
    ):
        for kind in FORMATS:
            # No date inside: the same results give the same files.
            metadata: Any = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
            figure.savefig(folder / f"curves-{name}.{kind}", metadata=metadata, dpi=150)
        written[title] = folder / f"curves-{name}.svg"
        pyplot.close(figure)
    return written


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the `WINDOW` steps up to each one, of those that are finite."""
    known = np.isfinite(values)
    sums = np.cumsum(np.where(known, values, 0.0))
    counts = np.cumsum(known).astype(float)
    sums[WINDOW:] -= sums[:-WINDOW].copy()
    counts[WINDOW:] -= counts[:-WINDOW].copy()
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def by_accuracy(run: RunResult, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of a measure in each of twenty bins of training accuracy; NaN where there is none."""
    bins = np.minimum((run.curve("reward/accuracy") * 20 + 1e-9).astype(int), 19)
    found = [values[(bins == number) & np.isfinite(values)] for number in range(20)]
    return np.array([part.mean() if len(part) else np.nan for part in found])


def _band(axis: Any, x: NDArray[Any], curves: NDArray[np.float64], label: str, colour: str) -> None:
    """Draw the mean over runs and one standard deviation around it."""
    known = np.isfinite(curves).any(axis=0)
    mean, deviation = np.nanmean(curves[:, known], axis=0), np.nanstd(curves[:, known], axis=0)
    axis.plot(x[known], mean, color=colour, label=f"{label} ({len(curves)})", linewidth=1.2)
    axis.fill_between(
        x[known], mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0
    )
