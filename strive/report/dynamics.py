"""Training dynamics of several arms side by side: Fig. 3's three curves and what explains them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strive.errors import ConfigError, DiskError
from strive.report.arms import Arm, band, config_differences, group_arms
from strive.report.completions import compare_completions
from strive.report.inspect_png import COLOURS
from strive.report.pages import render_page
from strive.report.runs import Curve, Run, accuracy_note

MAX_ARMS = len(COLOURS)
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
BAND_CAPTION = "line: mean of the seeds, each smoothed; band: lowest to highest seed"
FEW_POINTS = 12
"""Curves of fewer points are drawn as they are, with dots."""


def render_dynamics_page(runs: Sequence[Run]) -> str:
    """Render the runs' dynamics as one self-contained HTML page.

    Raises:
        ConfigError: no run, or more arms than the page has colours for.
    """
    return render_page("dynamics.html.j2", **dynamics_values(_few_arms(runs)))


def dynamics_values(arms: Sequence[Arm]) -> dict[str, Any]:
    """What the dynamics part of a page shows; the colours of a page are those of `MAX_ARMS`."""
    runs = [run for arm in arms for run in arm.runs]
    return {
        "arms": arms,
        "has_bands": not all(arm.is_single for arm in arms),
        "figure_3": _svgs(arms, FIGURE_3),
        "outcomes": _svgs(arms, OUTCOMES),
        "further": _svgs(arms, FURTHER),
        "differences": config_differences(arms),
        "accuracy_note": accuracy_note(runs),
        "completions": compare_completions(arms),
    }


def write_figures(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write every chart of the page as PNG and as PDF, with title, legend and the same bands.

    Files are named after their metrics: `group-reward_std.png`. Returns them in the page's order.

    Raises:
        ConfigError: no run, or more arms than there are colours.
        DiskError: the folder cannot be written.
    """
    from matplotlib import rc_context

    arms = _few_arms(runs)
    has_bands = not all(arm.is_single for arm in arms)
    written = []
    for chart in charts_of(arms, (*FIGURE_3, *OUTCOMES, *FURTHER)):
        note = f"{chart.note}; by step" + (f"\n{BAND_CAPTION}" if has_bands else "")
        axes = line_chart(note, chart.curves, is_share=chart.is_share, palette=PAPER, width=6.0)
        axes.figure.set_figheight(3.4 + 0.2 * len(chart.curves))
        axes.set_title(chart.title, loc="left", fontsize=11)
        # A line of its own for each arm: drawn ones may stand for one or for several artists.
        handles = [axes.plot([], [], color=PAPER.arms[number])[0] for number, _ in chart.curves]
        legend = axes.figure.legend(
            handles,
            [arms[number].label for number, _ in chart.curves],
            loc="outside lower center",
            frameon=False,
            fontsize=9,
        )
        for text in legend.get_texts():
            # Names of runs are text, also where they hold a dollar.
            text.set_parse_math(False)
        for ending in ("png", "pdf"):
            path = folder / f"{chart.metric.replace('/', '-')}.{ending}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                # 42: letters stay letters in a PDF. Without a date a figure is the same each time.
                with rc_context({"pdf.fonttype": 42}):
                    axes.figure.savefig(
                        path, dpi=200, metadata={"CreationDate": None} if ending == "pdf" else None
                    )
            except OSError as error:
                raise DiskError(
                    f"cannot write {path}: {error.strerror}; choose another folder with --figures"
                ) from None
            written.append(path)
    return written


def _few_arms(runs: Sequence[Run]) -> list[Arm]:
    arms = group_arms(runs)
    if not 1 <= len(arms) <= MAX_ARMS:
        raise ConfigError(
            f"{len(arms)} arms given; a page shows 1 to {MAX_ARMS} (runs that differ in their "
            "seed alone are one arm)"
        )
    return arms


# --- charts -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of a chart."""

    arms: tuple[str, ...]
    ink: str
    grid: str


PAPER = Palette(COLOURS, "#5d6670", "#d9dcdf")
# Not #000000: an SVG writer leaves out black fills, which are the default.
PAGE = Palette(tuple(f"#0000{n:02x}" for n in range(1, MAX_ARMS + 1)), "#0000f0", "#0000f1")
STYLE = {colour: f"var(--c{number})" for number, colour in enumerate(PAGE.arms)}
STYLE |= {PAGE.ink: "var(--soft)", PAGE.grid: "var(--line)"}
"""A page has a light and a dark dress: what is drawn in these colours takes those of its style."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One metric of the arms that have it."""

    metric: str
    title: str
    note: str
    curves: tuple[tuple[int, tuple[Curve, ...]], ...]
    """Of each arm its number and a curve a seed."""

    @property
    def is_share(self) -> bool:
        """Whether the metric lies in [0, 1]."""
        return self.metric.endswith(SHARES)


def charts_of(arms: Sequence[Arm], metrics: Sequence[tuple[str, str, str]]) -> list[Chart]:
    """Return a chart for each (metric, title, note) that at least one run has."""
    charts = []
    for metric, title, note in metrics:
        found = [
            (
                number,
                tuple(
                    run.curves[metric]
                    for run in arm.runs
                    if metric in run.curves and len(run.curves[metric].values)
                ),
            )
            for number, arm in enumerate(arms)
        ]
        curves = tuple((number, seeds) for number, seeds in found if seeds)
        if curves:
            charts.append(Chart(metric, title, note, curves))
    return charts


def _svgs(arms: Sequence[Arm], metrics: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Title and SVG of each chart of a page."""
    return [
        (
            chart.title,
            figure_svg(
                line_chart(f"{chart.note}; by step", chart.curves, is_share=chart.is_share).figure,
                chart.title,
            ),
        )
        for chart in charts_of(arms, metrics)
    ]


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
    for colour, name in STYLE.items():
        text = text.replace(colour, name)
    return text[text.index("<svg") :].replace(
        "<svg", f'<svg role="img" aria-label="{escape(label)}"', 1
    )


def new_axes(width: float, height: float, palette: Palette = PAGE) -> Any:
    """Return the axes of a new figure of so many inches, plain and in a palette's colours."""
    # The object interface: pyplot would keep every figure and pick a window system.
    from matplotlib.figure import Figure

    axes = Figure(figsize=(width, height), layout="constrained").add_subplot()
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=palette.grid, linewidth=0.8)
    axes.tick_params(colors=palette.ink, length=0, labelsize=9)
    axes.set_axisbelow(True)
    return axes


def line_chart(
    note: str,
    curves: Sequence[tuple[int, Sequence[Curve]]],
    *,
    is_share: bool = False,
    palette: Palette = PAGE,
    width: float = 4.0,
) -> Any:
    """Draw arms, each with the number of its colour and a curve a seed.

    Of one seed: raw values faint, smoothed ones on top. Of several: each is smoothed, and their
    mean is drawn with a band from the lowest to the highest. The axis of a share never leaves
    [0, 1]. Returns the axes.
    """
    from matplotlib.ticker import MaxNLocator

    axes = new_axes(width, 0.6 * width, palette)
    drawn = []
    for number, seeds in curves:
        colour = palette.arms[number]
        few = max(len(seed.values) for seed in seeds) < FEW_POINTS
        over = band(seeds if few else [smoothed(seed) for seed in seeds])
        if len(seeds) > 1:
            steps_S, low_S, high_S = over.steps_S, over.low_S, over.high_S
            axes.fill_between(steps_S, low_S, high_S, color=colour, alpha=0.2, linewidth=0)
            if few:
                # A band of one step has no area.
                axes.vlines(steps_S, low_S, high_S, color=colour, linewidth=1.0)
            drawn += [low_S, high_S]
        else:
            (seed,) = seeds
            if not few:
                axes.plot(seed.steps, seed.values, color=colour, alpha=0.28, linewidth=0.8)
            drawn.append(seed.values)
        if few:
            axes.plot(over.steps_S, over.mean_S, "o", color=colour, markersize=4, clip_on=False)
        axes.plot(over.steps_S, over.mean_S, color=colour, linewidth=1.6)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10], integer=True))
    ticks = axes.yaxis.get_major_locator().tick_values(*_limits(np.concatenate(drawn), is_share))
    axes.set_ylim(ticks[0], ticks[-1])
    last = max(float(seed.steps.max()) for _, seeds in curves for seed in seeds)
    axes.set_xlim(0, max(1.0, last))
    axes.set_xlabel(note, color=palette.ink, fontsize=9, loc="left")
    return axes


def smoothed(curve: Curve) -> Curve:
    """Return a curve smoothed over a twenty-fifth of its points."""
    return Curve(curve.steps, smooth(curve.values, max(1.0, len(curve.values) / 25)))


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
