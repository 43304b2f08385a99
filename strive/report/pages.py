"""HTML pages: the Jinja2 environment (all escaped), thumbnails, files; the page of `search`."""

import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from strive.cache.frames import FrameReader
from strive.errors import DiskError
from strive.report.format import number, percent

THUMBNAIL_WIDTH = 160
THUMBNAIL_QUALITY = 72
SEARCH_THUMBNAIL_WIDTH = 240
FRAMES_PER_VIDEO = 6
"""Frames that stand for a video of a near-duplicate pair."""


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("strive.report", "templates"),
        # Questions, paths and answers come from strangers.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, percent=percent)
    return environment


def render_page(template: str, **values: Any) -> str:
    """Render a page of `report/templates`; it needs no other file and no network."""
    text: str = _environment().get_template(template).render(**values)
    return text


def thumbnail(frame_HWC: np.ndarray, width: int = THUMBNAIL_WIDTH) -> bytes:
    """Shrink a frame to at most `width` pixels wide, as JPEG bytes; it is never enlarged."""
    from PIL import Image

    image = Image.fromarray(frame_HWC)
    if image.width > width:
        height = max(1, round(image.height * width / image.width))
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
    return out.getvalue()


def data_uri(jpeg: bytes) -> str:
    """Embed a JPEG in a page."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def write_page(path: Path, text: str) -> Path:
    """Write a page, making its folder; an unwritable place is one clear line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}; choose another file") from None
    return path


# --- `search --html` ----------------------------------------------------------------------------


def render_search_page(result: Any, frames: FrameReader) -> str:
    """Render a `SearchResult`: one cell a frame, best first."""
    cells = [
        {
            "rank": rank,
            "uri": _frame_uri(frames, found.video_id, found.frame_index),
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
    pairs = []
    for pair in report.pairs[:limit]:
        pts_seconds_F = frames.info(pair.second).pts_seconds_F
        chosen = np.linspace(0, len(pts_seconds_F) - 1, FRAMES_PER_VIDEO).round().astype(int)
        moments = pts_seconds_F[chosen]
        first = _frames_at(frames, pair.first, moments + pair.offset_seconds)
        second = _frames_at(frames, pair.second, moments)
        rows = [(pair.first, pair.seconds[0], first), (pair.second, pair.seconds[1], second)]
        pairs.append({"pair": pair, "rows": rows})
    return render_page("search.html.j2", result=report, cells=None, pairs=pairs, shown=len(pairs))


def _frames_at(frames: FrameReader, video_id: str, moments: np.ndarray) -> list[dict[str, Any]]:
    """Return the frames of a video that are nearest to some moments, in seconds."""
    pts_seconds_F = frames.info(video_id).pts_seconds_F
    nearest = [int(np.abs(pts_seconds_F - moment).argmin()) for moment in moments]
    return [
        {"uri": _frame_uri(frames, video_id, index), "seconds": float(pts_seconds_F[index])}
        for index in nearest
    ]


def _frame_uri(frames: FrameReader, video_id: str, index: int) -> str:
    return data_uri(thumbnail(frames.read(video_id, [index])[0], SEARCH_THUMBNAIL_WIDTH))
