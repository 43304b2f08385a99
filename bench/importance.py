"""Draws docs/importance.svg: how often Eq. 4 takes the best frame of a segment, by its temperature.

A segment of four frames, of which one scores `gap` above the three others: P of that frame over
tau, computed by `strive.variants`, for gaps that scorers have. Run as `python -m bench.importance`.
"""

import math
from pathlib import Path

import numpy as np

from strive.variants import NEARLY_UNIFORM, segment_probabilities

PATH = Path(__file__).parents[1] / "docs" / "importance.svg"
GAPS = ((0.02, "#8250df"), (0.05, "#0969da"), (0.1, "#1a7f37"), (0.3, "#9a6700"), (1.0, "#cf222e"))
NUM_FRAMES, PAPER_TAU = 4, 0.4
LOWEST, HIGHEST, NUM_POINTS = 0.005, 2.0, 81
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 60, 600, 20, 310


def best_frame(gap: float, tau: float) -> float:
    """P of the frame that scores `gap` above the others of its segment."""
    scores_F = np.array([gap] + [0.0] * (NUM_FRAMES - 1))
    return float(segment_probabilities(scores_F, num_segments=1, frame_temperature=tau)[0])


def x_of(tau: float) -> float:
    """Place of a temperature on the logarithmic axis."""
    share = math.log(tau / LOWEST) / math.log(HIGHEST / LOWEST)
    return LEFT + share * (RIGHT - LEFT)


def y_of(probability: float) -> float:
    """Place of a probability, from 0 to 1."""
    return BOTTOM - probability * (BOTTOM - TOP)


def draw() -> str:
    """Return the picture."""
    taus = np.geomspace(LOWEST, HIGHEST, NUM_POINTS).tolist()
    uniform = 1 / NUM_FRAMES
    band = y_of(uniform * NEARLY_UNIFORM)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13" fill="#1f2328">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<rect x="{LEFT}" y="{band:.1f}" width="{RIGHT - LEFT}" '
        f'height="{y_of(uniform) - band:.1f}" fill="#ffd8b5"/>',
    ]
    for probability in (0, uniform, 0.5, 0.75, 1):
        y = y_of(probability)
        dash = ' stroke-dasharray="6 4"' if probability == uniform else ""
        parts += [
            f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d1d9e0"{dash}/>',
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{probability:g}</text>',
        ]
    for tau in (0.01, 0.05, 0.1, PAPER_TAU, 1):
        x = x_of(tau)
        colour, width = ("#1f2328", 1.5) if tau == PAPER_TAU else ("#d1d9e0", 1)
        parts += [
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{BOTTOM}" stroke="{colour}" '
            f'stroke-width="{width}"/>',
            f'<text x="{x:.1f}" y="{BOTTOM + 18}" text-anchor="middle">{tau:g}</text>',
        ]
    for row, (gap, colour) in enumerate(GAPS):
        points = " ".join(f"{x_of(t):.1f},{y_of(best_frame(gap, t)):.1f}" for t in taus)
        at_paper = best_frame(gap, PAPER_TAU)
        y = TOP + 60 + 22 * row
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<circle cx="{x_of(PAPER_TAU):.1f}" cy="{y_of(at_paper):.1f}" r="4" fill="{colour}"/>',
            f'<text x="{RIGHT + 10}" y="{y}" fill="{colour}">gap {gap:g}: {at_paper:.2f}</text>',
        ]
    parts += [
        f'<text x="{RIGHT + 10}" y="{TOP + 34}">P at tau {PAPER_TAU:g}</text>',
        f'<text x="{RIGHT + 10}" y="{y_of(uniform) + 4:.1f}">uniform</text>',
        f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 40}" text-anchor="middle">'
        "frame_temperature (tau)</text>",
        f'<text x="16" y="{(TOP + BOTTOM) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 16 {(TOP + BOTTOM) / 2})">P of the best of 4 frames</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PATH.write_text(draw())
    print(f"wrote {PATH}")
