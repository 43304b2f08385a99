"""What all HTML pages share: the Jinja2 environment (all escaped), thumbnails, page files."""

import base64
import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from strive.errors import DiskError
from strive.report.format import count_of, number, percent, points

THUMBNAIL_WIDTH = 160
THUMBNAIL_QUALITY = 72


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
    filters: dict[str, Callable[..., Any]] = {
        "number": number, "percent": percent, "points": points, "count_of": count_of,
    }  # fmt: skip
    environment.filters.update(filters)
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
