"""`search --html`: the found frames, or the near-duplicate pairs, as one self-contained page."""

from typing import Any

import numpy as np

from strive.cache.frames import FrameReader
from strive.report.pages import data_uri, render_page, thumbnail

THUMBNAIL_WIDTH = 240
FRAMES_PER_VIDEO = 6
"""Frames that stand for a video of a pair."""


def render_search_page(result: Any, frames: FrameReader) -> str:
    """Render a `SearchResult`: one cell a frame, best first."""
    cells = [
        {
            "rank": rank,
            "uri": _uri(frames, found.video_id, found.frame_index),
            "video_id": found.video_id,
            "frame": found.frame_index,
            "seconds": found.pts_seconds,
            "score": found.score,
            "duplicates": found.duplicates,
        }
        for rank, found in enumerate(result.frames, start=1)
    ]
    return render_page("search.html.j2", result=result, cells=cells, pairs=None, shown=0)


def render_duplicates_page(report: Any, frames: FrameReader, *, limit: int = 100) -> str:
    """Render a `DuplicateReport`: two rows of frames a pair, shown at the same moments."""
    pairs = [
        {
            "pair": pair,
            "rows": [
                (
                    pair.first,
                    pair.seconds[0],
                    _row(frames, pair.first, moments + pair.offset_seconds),
                ),
                (pair.second, pair.seconds[1], _row(frames, pair.second, moments)),
            ],
        }
        for pair in report.pairs[:limit]
        for moments in [_moments(frames, pair.second)]
    ]
    return render_page("search.html.j2", result=report, cells=None, pairs=pairs, shown=len(pairs))


def _moments(frames: FrameReader, video_id: str) -> np.ndarray:
    pts_seconds_F = frames.info(video_id).pts_seconds_F
    chosen = np.linspace(0, len(pts_seconds_F) - 1, FRAMES_PER_VIDEO).round().astype(int)
    moments: np.ndarray = pts_seconds_F[chosen]
    return moments


def _row(frames: FrameReader, video_id: str, moments: np.ndarray) -> list[dict[str, Any]]:
    pts_seconds_F = frames.info(video_id).pts_seconds_F
    nearest = [int(np.abs(pts_seconds_F - moment).argmin()) for moment in moments]
    return [
        {"uri": _uri(frames, video_id, index), "seconds": float(pts_seconds_F[index])}
        for index in nearest
    ]


def _uri(frames: FrameReader, video_id: str, index: int) -> str:
    return data_uri(thumbnail(frames.read(video_id, [index])[0], THUMBNAIL_WIDTH))
