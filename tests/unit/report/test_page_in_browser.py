"""The page's script against `strive.variants`, in a real browser; needs `chromium` on the PATH."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from strive.report import inspect, inspect_html
from strive.report.inspect import InspectSettings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
MOVE_SLIDERS = """<script>
const move = (name, value) => {
  const slider = document.querySelector(name);
  slider.value = value; slider.dispatchEvent(new Event("input"));
};
move(".tau", -0.7); move(".step", 9);
const dots = [...document.querySelectorAll("svg .picks")].map(
  (row) => [...row.querySelectorAll(".pick")].map((dot) => Number(dot.getAttribute("cx"))));
const shown = (name) => document.querySelector(name).textContent;
document.body.textContent = "RESULT" + JSON.stringify(
  {dots, effective: shown(".effective"), overlap: shown(".overlap"), step: shown(".step-out")}
) + "END";
</script></body>"""


@pytest.mark.long
@pytest.mark.parametrize("transform", ["none", "zscore"])
def test_sliders_redraw_what_training_would_draw(
    cache: Path, tmp_path: Path, transform: str
) -> None:
    source = inspect.open_source(cache)

    def view(**changes: object) -> inspect.QuestionView:
        settings = InspectSettings(score_transform=transform, seed=5, **changes)  # type: ignore[arg-type]
        return inspect.view_question(source, "1", settings=settings)

    page = inspect_html.render_inspect_page(source, [view()])
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", MOVE_SLIDERS))
    assert CHROMIUM is not None, "no chromium on the PATH; install it (apt-get install chromium)"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, profile, "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    (text,) = re.findall("RESULT(.*?)END", done.stdout)
    found = json.loads(text)
    wanted = view(frame_temperature=10**-0.7, step=9)
    width = (inspect_html.WIDTH - inspect_html.LEFT - inspect_html.RIGHT) / 64
    picks = [[round((x - inspect_html.LEFT) / width - 0.5) for x in row] for row in found["dots"]]
    assert picks == wanted.picks_MK.tolist()
    assert found["effective"] == f"{wanted.stats.effective_frames:.2f}"
    assert found["overlap"] == f"{100 * wanted.expected_overlap:.1f} %"
    assert found["step"] == "9"
