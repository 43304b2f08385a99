"""Line charts as coordinates for inline SVG: raw values faint, smoothed ones on top."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from strive.report.runs import Curve, Run

WIDTH, HEIGHT = 400, 238
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 196
MAX_POINTS = 1500


def smooth(values: ArrayLike, half_life: float) -> NDArray[np.float64]:
    """Exponential moving average, corrected for its start: no value is pulled towards zero.

    After `half_life` steps a value counts half.
    """
    array = np.asarray(values, dtype=np.float64)
    keep = 0.5 ** (1 / half_life)
    result = np.empty_like(array)
    total = weight = 0.0
    for index, value in enumerate(array):
        total = keep * total + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        result[index] = total / weight
    return result


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers that cover `[low, high]` in about `count` steps."""
    span = high - low if high > low else max(abs(high), 1.0)
    raw = span / count
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = np.floor(low / step + 1e-9)
    last = np.ceil(high / step - 1e-9)
    if last == first:
        last += 1
    return [round(float(k * step), 12) for k in np.arange(first, last + 1)]


def line_chart(
    title: str, note: str, curves: Sequence[tuple[int, Curve]], *, is_share: bool = False
) -> dict[str, Any]:
    """Coordinates of one chart; each curve comes with the number of its colour.

    The axis of a share never leaves [0, 1].
    """
    values = np.concatenate([curve.values for _, curve in curves])
    last_step = max(float(curve.steps.max()) for _, curve in curves)
    ticks = nice_ticks(*_limits(values, is_share))
    low, high = ticks[0], ticks[-1]

    def x(steps: NDArray[np.float64]) -> NDArray[np.float64]:
        return LEFT + steps / max(last_step, 1.0) * (WIDTH - LEFT - RIGHT)

    def y(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return BOTTOM - (np.clip(points, low, high) - low) / (high - low) * (BOTTOM - TOP)

    def path(steps: NDArray[np.float64], points: NDArray[np.float64]) -> str:
        chosen = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MAX_POINTS)).astype(int))
        pairs = zip(x(steps)[chosen], y(points)[chosen], strict=True)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs)

    drawn = []
    for colour, curve in curves:
        half_life = max(1.0, len(curve.values) / 25)
        few = len(curve.values) < 12
        smoothed = curve.values if few else smooth(curve.values, half_life)
        drawn.append(
            {
                "colour": colour,
                "raw": "" if few else path(curve.steps, curve.values),
                "smooth": path(curve.steps, smoothed),
                "dots": list(zip(x(curve.steps), y(curve.values), strict=True)) if few else [],
            }
        )
    step_ticks = [tick for tick in nice_ticks(0, last_step) if tick <= last_step * 1.001]
    return {
        "title": title, "note": note, "width": WIDTH, "height": HEIGHT,
        "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": BOTTOM, "curves": drawn,
        "y_ticks": [(float(y(np.array([t]))[0]), f"{t:g}") for t in ticks],
        "x_ticks": [(float(x(np.array([t]))[0]), f"{t:g}") for t in step_ticks],
    }  # fmt: skip


def _limits(values: NDArray[np.float64], is_share: bool) -> tuple[float, float]:
    """Range of the axis; single spikes above the 99.5th percentile are cut at the edge."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return (0.0, 1.0) if is_share or low == 0 else (min(0.0, 1.5 * low), max(0.0, 1.5 * low))
    robust = float(np.quantile(values, 0.995))
    if high > 3 * robust > 0:
        high = robust * 1.5
    return (min(0.0, low) if low < 0.3 * high or high <= 0 else low), high


SHARES = ("fraction", "share", "agreement", "evidence_seen", "accuracy")
"""How the names of metrics end that lie in [0, 1]."""


def charts_of(runs: Sequence[Run], metrics: Sequence[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """One chart for each (metric, title, note) that at least one run has."""
    charts = []
    for metric, title, note in metrics:
        curves = [
            (number, run.curves[metric])
            for number, run in enumerate(runs)
            if metric in run.curves and len(run.curves[metric].values)
        ]
        if curves:
            charts.append(line_chart(title, note, curves, is_share=metric.endswith(SHARES)))
    return charts
