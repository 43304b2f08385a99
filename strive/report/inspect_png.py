"""`inspect-scores --png`: the picture that papers show, of one question.

Score curve over time with segments and evidence, P(t), and below it the frames of each variant.
"""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from strive.errors import DiskError
from strive.report.inspect import QuestionView, ScoreSource

COLOURS = ("#d1570a", "#1f6feb", "#a33ea1", "#1a7f37", "#8a6d00", "#0b7a75")
MAX_THUMBNAILS = 16
"""Frames shown of each variant: with more, evenly chosen ones."""


def write_png(source: ScoreSource, view: QuestionView, path: Path, *, dpi: int = 150) -> Path:
    """Draw one question and write it as PNG (or as whatever the file's ending says)."""
    # The object interface: pyplot would keep every figure and pick a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_segments = view.picks_MK.shape[1]
    num_shown = min(num_segments, MAX_THUMBNAILS)
    chosen = np.linspace(0, num_segments - 1, num_shown).round().astype(int)
    picks_MT = view.picks_MK[:, chosen].tolist()
    num_variants, columns = len(picks_MT), len(chosen)
    strip = 12.0 / columns * view.video.height / view.video.width
    figure = Figure(figsize=(12, 4.6 + num_variants * (strip + 0.16)), facecolor="white")
    FigureCanvasAgg(figure)
    outer = figure.add_gridspec(
        3 + num_variants, columns,
        height_ratios=[2.2, 1.2, 0.02, *[strip] * num_variants],
        left=0.07, right=0.985, top=1 - 1.0 / figure.get_figheight(), bottom=0.02,
        hspace=0.32, wspace=0.04,
    )  # fmt: skip
    scores = figure.add_subplot(outer[0, :])
    probabilities = figure.add_subplot(outer[1, :], sharex=scores)
    _draw_scores(scores, view)
    _shade(probabilities, view)
    index_F = np.arange(view.video.num_frames)
    probabilities.bar(index_F, view.probabilities_F, width=0.76, color="#b7791f")
    probabilities.set_ylim(0, 1)
    probabilities.set_ylabel("P(t)")
    ticks = np.unique(np.linspace(0, view.video.num_frames - 1, 9).round().astype(int))
    probabilities.set_xticks(ticks, [f"{view.video.pts_seconds_F[i]:.1f} s" for i in ticks])
    for m, shown in enumerate(picks_MT):
        frames_THWC = source.frames.read(view.record.video_id, shown)
        for column, (index, frame_HWC) in enumerate(zip(shown, frames_THWC, strict=True)):
            _draw_frame(figure.add_subplot(outer[3 + m, column]), view, m, index, frame_HWC)
    question = textwrap.shorten(" ".join(view.record.problem.split()), 200, placeholder=" …")
    below = (
        f"{view.record.video_id} · {view.scorer_name} · "
        f"frame_temperature {view.settings.frame_temperature:g} · "
        f"score_transform {view.settings.score_transform}"
    )
    title = [*textwrap.wrap(question, 110), textwrap.shorten(below, 140, placeholder=" …")]
    figure.suptitle("\n".join(title), x=0.07, ha="left", fontsize=12, parse_math=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=dpi)
    except (OSError, ValueError) as error:
        raise DiskError(f"cannot write {path}: {error}; give a .png file with --png") from None
    return path


def _shade(axes: Any, view: QuestionView) -> None:
    for start, end in view.bounds_K2[::2]:
        axes.axvspan(start - 0.5, end - 0.5, color="#eef0f2", lw=0, zorder=0)
    if view.evidence_F is not None:
        for index in np.flatnonzero(view.evidence_F):
            axes.axvspan(index - 0.5, index + 0.5, color="#1a7f37", alpha=0.22, lw=0, zorder=1)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_scores(axes: Any, view: QuestionView) -> None:
    _shade(axes, view)
    index_F = np.arange(view.video.num_frames)
    axes.plot(index_F, view.scores_F, color="#0b6e99", lw=1.6, marker="o", ms=2.5)
    for m, picks_K in enumerate(view.picks_MK):
        axes.plot(
            picks_K, view.scores_F[picks_K], "o", ms=7 + 3 * m, mfc="none", mew=1.6,
            color=COLOURS[m % len(COLOURS)], label=f"variant {m + 1}",
        )  # fmt: skip
    if view.evidence_F is not None and view.evidence_F.any():
        axes.axvspan(np.nan, np.nan, color="#1a7f37", alpha=0.22, label="evidence")
    axes.set_ylabel("score")
    axes.legend(loc="upper right", frameon=False, ncols=len(view.picks_MK) + 1, fontsize=9,
                bbox_to_anchor=(1, 1.2))  # fmt: skip
    axes.tick_params(labelbottom=False)
    axes.set_xlim(-0.5, view.video.num_frames - 0.5)


def _draw_frame(
    axes: Any, view: QuestionView, variant: int, index: int, frame_HWC: np.ndarray
) -> None:
    axes.imshow(frame_HWC)
    axes.set_xticks([])
    axes.set_yticks([])
    seen = view.evidence_F is not None and bool(view.evidence_F[index])
    for spine in axes.spines.values():
        spine.set_color("#1a7f37" if seen else COLOURS[variant % len(COLOURS)])
        spine.set_linewidth(3 if seen else 1.2)
    axes.set_title(f"{view.video.pts_seconds_F[index]:.1f}", fontsize=7, pad=2)
    if axes.get_subplotspec().colspan.start == 0:
        axes.set_ylabel(f"V{variant + 1}", color=COLOURS[variant % len(COLOURS)], fontsize=10)
