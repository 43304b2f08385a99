import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from strive.errors import DiskError
from strive.report import inspect, inspect_html, inspect_png, pages
from strive.report.inspect import InspectSettings

from .conftest import HOSTILE


def test_page_is_self_contained_and_escapes(cache: Path) -> None:
    source = inspect.open_source(cache)
    views = [inspect.view_question(source, question_id) for question_id in "123"]
    page = inspect_html.render_inspect_page(source, views, summary=inspect.summarise(cache))
    assert HOSTILE not in page and "&lt;script&gt;alert(" in page
    assert "<b>green</b>" not in page and "&lt;b&gt;green&lt;/b&gt;" in page
    # No other file, no network: the only addresses are data URIs and anchors.
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses and all(a.startswith(("data:image/jpeg;base64,", "#")) for a in addresses)
    assert "http" not in page and "url(" not in page and "@import" not in page
    assert page.count('class="cell') == 64 + 64 + 9
    assert len(page) < 1_500_000


def test_page_data_is_what_python_computed(cache: Path) -> None:
    source = inspect.open_source(cache)
    settings = InspectSettings(frame_temperature=0.1, step=3)
    view = inspect.view_question(source, "1", settings=settings)
    page = inspect_html.render_inspect_page(source, [view])
    (text,) = re.findall(r'<script type="application/json" class="data">(.*?)</script>', page, re.S)
    data = json.loads(text)
    assert data["tau"] == 0.1 and data["step"] == 3
    assert data["picks"] == view.picks_MK.tolist()
    assert np.shape(data["points"]) == (inspect_html.NUM_STEPS, 2, 16)
    assert data["scores"] == pytest.approx(view.scores_F.tolist())
    # Fewer frames than segments: every variant shows all of them, nothing can be redrawn.
    assert inspect_html.page_data(inspect.view_question(source, "3"))["points"] == []


def test_script_data_cannot_close_its_element() -> None:
    environment = pages._environment()
    rendered = environment.from_string("{{ value | tojson }}").render(value="</script><b>")
    assert "</script>" not in rendered


def test_thumbnails_shrink_and_never_grow() -> None:
    wide = pages.thumbnail(np.zeros((100, 400, 3), np.uint8))
    small = pages.thumbnail(np.zeros((56, 56, 3), np.uint8))
    for data, size in ((wide, (160, 40)), (small, (56, 56))):
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == size


def test_png(cache: Path, tmp_path: Path) -> None:
    source = inspect.open_source(cache)
    view = inspect.view_question(source, "1")
    path = inspect_png.write_png(source, view, tmp_path / "deep" / "q.png", dpi=60)
    with Image.open(path) as image:
        assert image.width == 720 and image.height > 250
    with pytest.raises(DiskError, match="--png"):
        inspect_png.write_png(source, view, tmp_path / "q.unknown", dpi=30)


def test_unwritable_page(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="choose another file"):
        pages.write_page(tmp_path / "file" / "page.html", "")
