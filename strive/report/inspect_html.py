"""`inspect-scores --html`: one self-contained page, a section a question.

The page redraws P(t) and the picks when its sliders move. It repeats Eq. 4 and the inverse-CDF
draw of `importance` in JavaScript, on the very uniform numbers that training draws from, so what it
shows at a step is what training would show the policy.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from strive.answers import extract_answer_or_text
from strive.files import plain_json
from strive.records import Record, VideoFacts
from strive.report.inspect import (
    DatasetSummary,
    QuestionView,
    ScoreSource,
    importance_points,
)
from strive.report.pages import data_uri, render_page, thumbnail
from strive.variants import transform_scores

NUM_STEPS = 16
"""Training steps whose draws a page carries."""
WIDTH, LEFT, RIGHT = 1000, 56, 14
SCORE_TOP, SCORE_BOTTOM = 22, 150
P_TOP, P_BOTTOM = 172, 240
PICKS_TOP, PICK_ROW = 262, 20


def render_inspect_page(
    source: ScoreSource, views: Sequence[QuestionView], *, summary: DatasetSummary | None = None
) -> str:
    """Render questions with all their pool frames as one HTML page."""
    sections = [question_section(source, view) for view in views]
    return render_page("inspect.html.j2", sections=sections, summary=summary)


def question_section(source: ScoreSource, view: QuestionView) -> dict[str, Any]:
    """Everything that the template `question.html.j2` needs for one question."""
    return asked(view.record) | {
        "view": view,
        "stats": view.stats,
        "frames": frame_cells(source, view),
        "chart": chart_geometry(view),
        "data": page_data(view),
        "metadata": _metadata(source, view),
    }


def asked(record: Record) -> dict[str, Any]:
    """What the template shows of a question itself."""
    gold = extract_answer_or_text(record.solution)
    options = [(option, option.startswith(gold)) for option in record.options]
    return {"record": record, "gold": gold, "options": options}


def frame_cell(
    video: VideoFacts, index: int, jpeg: bytes, *, is_evidence: bool, facts: Sequence[str] = ()
) -> dict[str, Any]:
    """One frame as the template's macro `frame_cell` shows it; `facts` go into its title."""
    seconds = float(video.pts_seconds_F[index])
    title = [f"frame {index}", f"{seconds:.2f} s", f"source frame {video.source_index_F[index]}"]
    return {
        "index": index,
        "title": " · ".join([*title, *facts]),
        "uri": data_uri(jpeg),
        "seconds": seconds,
        "evidence": is_evidence,
        "probability": None,
        "variants": (),
    }


def frame_cells(source: ScoreSource, view: QuestionView) -> list[dict[str, Any]]:
    """One cell of the filmstrip a pool frame."""
    frames_FHWC = source.frames.read(view.record.video_id, range(view.video.num_frames))
    picked = [set(row.tolist()) for row in view.picks_MK]
    return [
        frame_cell(
            view.video,
            index,
            thumbnail(frame_HWC),
            is_evidence=view.evidence_F is not None and bool(view.evidence_F[index]),
            facts=(
                f"score {view.scores_F[index]:.4f}",
                f"P {view.probabilities_F[index]:.3f}",
            ),
        )
        | {
            "probability": float(view.probabilities_F[index]),
            "variants": [m for m, row in enumerate(picked) if index in row],
        }
        for index, frame_HWC in enumerate(frames_FHWC)
    ]


def page_data(view: QuestionView) -> dict[str, Any]:
    """What the page's script computes with."""
    settings = view.settings
    is_similarity = view.scorer_kind == "similarity"
    draws = settings.variants == "importance" and view.video.num_frames > settings.num_segments
    scores_F = (
        transform_scores(view.scores_F, settings.score_transform, logit_scale=view.logit_scale)
        if is_similarity
        else view.probabilities_F
    )
    steps = range(settings.step, settings.step + NUM_STEPS) if draws else ()
    return plain_json(
        {
            "similarity": is_similarity,
            "tau": settings.frame_temperature,
            "scores": np.asarray(scores_F),
            "bounds": view.bounds_K2,
            "picks": view.picks_MK,
            "evidence": view.evidence_F,
            "step": settings.step,
            "points": [importance_points(view, step) for step in steps],
            "chart": {
                "left": LEFT, "width": WIDTH - LEFT - RIGHT, "p_top": P_TOP, "p_bottom": P_BOTTOM,
                "picks_top": PICKS_TOP, "pick_row": PICK_ROW,
            },
        }
    )  # fmt: skip


def chart_geometry(view: QuestionView) -> dict[str, Any]:
    """Coordinates of the chart: score curve over P(t) bars over the picks of each variant."""
    num_frames = view.video.num_frames
    step = (WIDTH - LEFT - RIGHT) / num_frames
    low, high = float(view.scores_F.min()), float(view.scores_F.max())
    # A flat curve runs through the middle rather than along an edge.
    margin = 0.06 * (high - low) if high > low else max(abs(high), 1.0) * 0.1
    low, high = low - margin, high + margin

    def x(frame: float) -> float:
        return LEFT + frame * step

    def y(score: float) -> float:
        return SCORE_BOTTOM - (score - low) / (high - low) * (SCORE_BOTTOM - SCORE_TOP)

    bottom = PICKS_TOP + PICK_ROW * len(view.picks_MK)
    is_flat = not float(np.ptp(view.scores_F)) > 0
    # Up to nine times along the pool.
    places = np.linspace(0, num_frames - 1, min(9, num_frames)).round().astype(int)
    shown = np.unique(places).tolist()
    ticks = [low + margin] if is_flat else np.linspace(low + margin, high - margin, 3).tolist()
    return {
        "width": WIDTH, "height": bottom + 30, "left": LEFT, "right": WIDTH - RIGHT,
        "score_top": SCORE_TOP, "p_top": P_TOP, "p_bottom": P_BOTTOM, "picks_bottom": bottom,
        "curve": " ".join(f"{x(i + 0.5):.1f},{y(s):.1f}" for i, s in enumerate(view.scores_F)),
        "dots": [(x(i + 0.5), y(float(s))) for i, s in enumerate(view.scores_F)],
        "bands": [(x(a), x(b) - x(a)) for a, b in view.bounds_K2[::2] if b > a],
        "evidence": [(x(a), x(b) - x(a)) for a, b in runs_of(view.evidence_F)],
        "bars": [
            (x(i) + 0.12 * step, P_BOTTOM - height, 0.76 * step, height)
            for i, height in enumerate((view.probabilities_F * (P_BOTTOM - P_TOP)).tolist())
        ],
        "rows": [
            (PICKS_TOP + PICK_ROW * (m + 0.5), [x(i + 0.5) for i in row.tolist()])
            for m, row in enumerate(view.picks_MK)
        ],
        "score_ticks": [(y(value), f"{value:.3f}") for value in ticks],
        "time_ticks": [(x(i + 0.5), f"{view.video.pts_seconds_F[i]:.1f} s") for i in shown],
    }  # fmt: skip


def runs_of(flags_F: np.ndarray | None) -> list[tuple[int, int]]:
    """Half-open runs of true values."""
    if flags_F is None or not flags_F.any():
        return []
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags_F, [False]]).astype(int)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _metadata(source: ScoreSource, view: QuestionView) -> list[tuple[str, str]]:
    video, settings, stats = view.video, view.settings, view.stats
    tokens = "not told" if stats.num_text_tokens is None else str(stats.num_text_tokens)
    cut = "; cut by the scorer" if stats.text_truncated else ""
    return [
        ("video", view.record.video_id),
        (
            "file",
            f"{video.codec}, {video.source_fps:.3g} frames/s, {video.source_num_frames} frames, "
            f"{video.duration_seconds:.2f} s, orientation {video.orientation}, "
            f"read by {video.decoder}",
        ),
        ("pool", f"{video.num_frames} frames of {video.width} x {video.height}"),
        ("problem type", view.record.problem_type),
        ("data source", view.record.data_source or "–"),
        ("scorer", f"{view.scorer_name} ({view.scorer_kind})"),
        ("scorer key", view.scorer_key),
        ("frames key", source.frames.frames_key),
        ("question tokens", tokens + cut),
        (
            "drawing",
            f"{settings.variants}, M={settings.num_variants}, K={settings.num_segments}, "
            f"frame_temperature {settings.frame_temperature:g}, score_transform "
            f"{settings.score_transform}, seed {settings.seed}, step {settings.step}",
        ),
    ]
