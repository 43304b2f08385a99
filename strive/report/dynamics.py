"""Training dynamics of several runs side by side: Fig. 3's three curves and what explains them."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strive.errors import ConfigError
from strive.report.pages import render_page
from strive.report.runs import Curve, Run, accuracy_note, config_differences

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


SHARES = ("fraction", "share", "agreement", "evidence_seen", "accuracy")
"""How the names of metrics end that lie in [0, 1]."""


def render_dynamics_page(runs: Sequence[Run]) -> str:
    """Render the runs' dynamics as one self-contained HTML page.

    Raises:
        ConfigError: no run, or more than the page has colours for.
    """
    if not 1 <= len(runs) <= MAX_RUNS:
        raise ConfigError(f"{len(runs)} runs given; a page shows 1 to {MAX_RUNS}")
    return render_page("dynamics.html.j2", **dynamics_values(runs))


def dynamics_values(runs: Sequence[Run]) -> dict[str, Any]:
    """What the dynamics part of a page shows; the colours of a page are those of `MAX_RUNS`."""
    return {
        "runs": runs,
        "figure_3": _charts(runs, FIGURE_3),
        "outcomes": _charts(runs, OUTCOMES),
        "further": _charts(runs, FURTHER),
        "differences": config_differences(runs),
        "accuracy_note": accuracy_note(runs),
    }


# --- charts -------------------------------------------------------------------------------------

COLOURS = {f"#0000{number:02x}": f"var(--c{number})" for number in range(MAX_RUNS)}
INK, GRID = "#0000f0", "#0000f1"
COLOURS |= {INK: "var(--soft)", GRID: "var(--line)"}
"""A page has a light and a dark dress: what is drawn in these colours takes those of its style."""


def figure_svg(figure: Any, label: str) -> str:
    """Return a matplotlib figure as an SVG element for a page, in the page's colours and font.

    `label` is what a screen reader says of it.
    """
    from html import escape

    from matplotlib import rc_context

    out = io.StringIO()
    # Text stays text; ids follow from what is drawn, so that a page is the same each time.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "strive"}):
        figure.savefig(
            out,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    text = out.getvalue()
    for colour, name in COLOURS.items():
        text = text.replace(colour, name)
    return text[text.index("<svg") :].replace(
        "<svg", f'<svg role="img" aria-label="{escape(label)}"', 1
    )


def new_axes(width: float, height: float) -> Any:
    """Return the axes of a new figure of so many inches, plain and in the page's colours."""
    # The object interface: pyplot would keep every figure and pick a window system.
    from matplotlib.figure import Figure

    axes = Figure(figsize=(width, height), layout="constrained").add_subplot()
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.set_axisbelow(True)
    return axes


def line_chart(note: str, curves: Sequence[tuple[int, Curve]], *, is_share: bool = False) -> Any:
    """Draw curves, each with the number of its colour: raw values faint, smoothed ones on top.

    The axis of a share never leaves [0, 1]. Returns the axes.
    """
    from matplotlib.ticker import MaxNLocator

    axes = new_axes(4.0, 2.4)
    for number, curve in curves:
        colour = f"#0000{number:02x}"
        few = len(curve.values) < 12
        if few:
            axes.plot(curve.steps, curve.values, "o", color=colour, markersize=4, clip_on=False)
        else:
            axes.plot(curve.steps, curve.values, color=colour, alpha=0.28, linewidth=0.8)
        smoothed = curve.values if few else smooth(curve.values, max(1.0, len(curve.values) / 25))
        axes.plot(curve.steps, smoothed, color=colour, linewidth=1.6)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], integer=True))
    values = np.concatenate([curve.values for _, curve in curves])
    ticks = axes.yaxis.get_major_locator().tick_values(*_limits(values, is_share))
    axes.set_ylim(ticks[0], ticks[-1])
    axes.set_xlim(0, max(1.0, *(float(curve.steps.max()) for _, curve in curves)))
    axes.set_xlabel(f"{note}; by step", color=INK, fontsize=9, loc="left")
    return axes


def smooth(values: NDArray[np.float64], half_life: float) -> NDArray[np.float64]:
    """Exponential moving average, corrected for its start: no value is pulled towards zero.

    After `half_life` steps a value counts half.
    """
    import polars as pl

    return pl.Series(values).ewm_mean(half_life=half_life, adjust=True).to_numpy()


def _limits(values: NDArray[np.float64], is_share: bool) -> tuple[float, float]:
    """Range of the axis; single spikes above the 99.5th percentile are cut at the edge."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return (0.0, 1.0) if is_share or low == 0 else (min(0.0, 1.5 * low), max(0.0, 1.5 * low))
    robust = float(np.quantile(values, 0.995))
    if high > 3 * robust > 0:
        high = robust * 1.5
    return (min(0.0, low) if low < 0.3 * high or high <= 0 else low), high


def _charts(runs: Sequence[Run], metrics: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Title and SVG of a chart for each (metric, title, note) that at least one run has."""
    charts = []
    for metric, title, note in metrics:
        curves = [
            (number, run.curves[metric])
            for number, run in enumerate(runs)
            if metric in run.curves and len(run.curves[metric].values)
        ]
        if curves:
            axes = line_chart(note, curves, is_share=metric.endswith(SHARES))
            charts.append((title, figure_svg(axes.figure, title)))
    return charts
