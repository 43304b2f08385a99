"""`inspect-scores --compare`, `score-quality` and `report` as typed."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from strive.cli import app
from strive.errors import ConfigError, UnknownNameError

# Helper modules of these tests are imported as `report.conftest` and so on.
sys.path.insert(0, str(Path(__file__).parents[1]))

from report.conftest import write_cache
from report.test_arms import write_run
from report.test_compare import add_scorer


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    root = write_cache(tmp_path / "cache")
    add_scorer(root, "contrary", lambda scores_F: -scores_F)
    return root


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, Exception):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_compare(cache: Path, tmp_path: Path) -> None:
    both = ("inspect-scores", "--cache", str(cache), "--compare", "siglip2", "contrary")
    found = json.loads(run(*both, "--json"))
    assert [row["question_id"] for row in found["questions"]][-1] == "2"
    assert found["questions"][-1]["spearman"] is None  # flat: NaN is no JSON
    (row,) = json.loads(run(*both, "--json", "--question", "3"))["questions"]
    assert row["spearman"] == pytest.approx(-1)
    assert "Which corner?" in run(*both, "--sample", "3")
    assert "least alike" in run(*both)
    with pytest.raises(UnknownNameError, match="question '9' has no scores of both"):
        run(*both, "--question", "9")
    with pytest.raises(ConfigError, match="--compare goes with"):
        run(*both, "--worst", "flat")
    with pytest.raises(ConfigError, match="--compare goes with"):
        run(*both, "--html", str(tmp_path / "page.html"))


def test_score_quality(cache: Path, tmp_path: Path) -> None:
    page = tmp_path / "scorers.md"
    arguments = ("score-quality", "--cache", str(cache), "--num-segments", "8")
    text = run(*arguments, "--markdown", str(page), "--score-transform", "zscore")
    assert "1.000 ± 0.000" in text and "contrary*" in text
    command = f"score-quality --cache {cache} --score-transform zscore --num-segments 8 --markdown"
    assert command in page.read_text()
    rows = json.loads(run(*arguments, "--json"))["rows"]
    assert {row["scorer"]: row["measures"]["auc"]["value"] for row in rows} == {
        "siglip2": 1.0,
        "contrary": 0.0,
    }


def test_report_shows_seeds_as_one_arm_and_leaves_figures(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / f"strive-{seed}", seed=seed)) for seed in (0, 1)]
    page, figures = tmp_path / "report.html", tmp_path / "figures"
    text = run("report", *runs, "--html", str(page), "--figures", str(figures))
    assert "strive-0" in text and "strive-1" in text
    assert "strive (seeds 0, 1)" in page.read_text()
    assert {path.suffix for path in figures.iterdir()} == {".png", ".pdf"}
