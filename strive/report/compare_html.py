"""`inspect-scores --compare --html`: both curves of each question over one filmstrip."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from strive.report.compare import ComparedViews, CompareSource, ScorerComparison
from strive.report.inspect import QuestionView
from strive.report.inspect_html import LEFT, RIGHT, WIDTH, runs_of, time_ticks
from strive.report.pages import data_uri, render_page, thumbnail

SCORE_TOP, SCORE_BOTTOM = 22, 150
P_TOP, P_BOTTOM = 188, 262


def render_compare_page(
    source: CompareSource, comparison: ScorerComparison, views: Sequence[ComparedViews]
) -> str:
    """Render the overall agreement and an overlay for each question."""
    sections = [_section(source, pair) for pair in views]
    return render_page(
        "compare.html.j2", comparison=comparison, names=source.names, sections=sections
    )


def _section(source: CompareSource, pair: ComparedViews) -> dict[str, Any]:
    k = source.settings.num_segments
    top = [
        set(np.argsort(-view.scores_F, kind="stable")[:k].tolist())
        for view in (pair.first, pair.second)
    ]
    video = pair.first.video
    frames_FHWC = source.first.frames.read(pair.first.record.video_id, range(video.num_frames))
    evidence_F = pair.first.evidence_F
    cells = [
        {
            "index": index,
            "uri": data_uri(thumbnail(frame_HWC)),
            "seconds": float(video.pts_seconds_F[index]),
            "tags": [number for number, best in enumerate(top) if index in best],
            "evidence": evidence_F is not None and bool(evidence_F[index]),
            "title": (
                f"frame {index} · {video.pts_seconds_F[index]:.2f} s · "
                f"{source.names[0]} {pair.first.scores_F[index]:.4f} "
                f"(P {pair.first.probabilities_F[index]:.3f}) · "
                f"{source.names[1]} {pair.second.scores_F[index]:.4f} "
                f"(P {pair.second.probabilities_F[index]:.3f})"
            ),
        }
        for index, frame_HWC in enumerate(frames_FHWC)
    ]
    return {
        "row": pair.comparison,
        "record": pair.first.record,
        "cells": cells,
        "chart": overlay_geometry(pair),
    }


def overlay_geometry(pair: ComparedViews) -> dict[str, Any]:
    """Coordinates of the overlay: each score curve over its own range, P(t) over a common one."""
    num_frames = pair.first.video.num_frames
    step = (WIDTH - LEFT - RIGHT) / num_frames

    def x(frame: float) -> float:
        return LEFT + frame * step

    top_p = max(float(view.probabilities_F.max()) for view in (pair.first, pair.second))
    return {
        "width": WIDTH, "height": P_BOTTOM + 34, "left": LEFT, "right": WIDTH - RIGHT,
        "score_top": SCORE_TOP, "score_bottom": SCORE_BOTTOM, "p_top": P_TOP, "p_bottom": P_BOTTOM,
        "top_p": top_p,
        "bands": [(x(a), x(b) - x(a)) for a, b in pair.first.bounds_K2[::2] if b > a],
        "evidence": [(x(a), x(b) - x(a)) for a, b in runs_of(pair.first.evidence_F)],
        "time_ticks": time_ticks(pair.first, x),
        "curves": [_curve(view, x) for view in (pair.first, pair.second)],
        "steps": [_steps(view, x, top_p) for view in (pair.first, pair.second)],
    }  # fmt: skip


def _curve(view: QuestionView, x: Any) -> dict[str, Any]:
    low, high = float(view.scores_F.min()), float(view.scores_F.max())
    span = high - low
    height = SCORE_BOTTOM - SCORE_TOP - 12
    points = [
        (x(index + 0.5), SCORE_BOTTOM - 6 - height * ((score - low) / span if span else 0.5))
        for index, score in enumerate(view.scores_F)
    ]
    return {
        "points": " ".join(f"{a:.1f},{b:.1f}" for a, b in points),
        "range": f"{low:.3f} to {high:.3f}",
    }


def _steps(view: QuestionView, x: Any, top_p: float) -> str:
    points = []
    for index, p in enumerate(view.probabilities_F):
        y = P_BOTTOM - float(p) / top_p * (P_BOTTOM - P_TOP)
        points += [f"{x(index):.1f},{y:.1f}", f"{x(index + 1):.1f},{y:.1f}"]
    return " ".join(points)
