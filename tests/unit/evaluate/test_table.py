"""Evaluations as rows of Table 1: joining, means, what is said of them, every form."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from strive.cli import app
from strive.commands.tables import latex_escaped, latex_text, markdown_text, print_evaluation_table
from strive.errors import ConfigError, MissingInputError, RecordsError
from strive.evaluate.paper_rows import SIX, STRIVE_TABLE_1
from strive.evaluate.table import EvaluationTable, make_table

SIZES = dict(zip(SIX, (2700, 5130, 19140, 7540, 900, 625), strict=True))


def score(percent: float, error: float | None, num_questions: int) -> dict[str, Any]:
    return {
        "accuracy_percent": percent,
        "standard_error": error,
        "low": None,
        "high": None,
        "num_questions": num_questions,
        "num_videos": num_questions // 3,
    }


def benchmark(name: str, percent: float, error: float | None = 1.0, **more: Any) -> dict[str, Any]:
    overall = score(percent, error, more.pop("num_questions", SIZES.get(name, 30)))
    return {
        "benchmark": name,
        "overall": overall,
        "headline": "accuracy",
        "totals": {"accuracy": overall},
        "unparsed_percent": 1.5,
        "truncated_percent": 0.5,
        "empty_percent": None,
        "num_failed": 0,
        **more,
    }


def folder(root: Path, name: str, *benchmarks: dict[str, Any], **settings: Any) -> Path:
    failures = settings.pop("failures", [])
    asked = {"model": "/models/first", "model_digest": "1", "protocol": "video_r1"}
    (root / name).mkdir()
    text = json.dumps(
        {
            "benchmarks": benchmarks,
            "failures": failures,
            "settings": {**asked, "num_frames": 32, **settings},
            "grading": "video_r1",
            "grading_version": 3,
            "versions": {"strive": "0"},
            "num_resumed": 0,
            "seconds": 1.0,
        }
    )
    (root / name / "results.json").write_text(text)
    return root / name


def terminal(made: EvaluationTable, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    print_evaluation_table(made, console)
    return console.export_text()


def test_published_rows_are_those_of_the_paper() -> None:
    assert len(STRIVE_TABLE_1.rows) == 14
    whole = [row for row in STRIVE_TABLE_1.rows if row.mean_percent is not None]
    assert len(whole) == 9
    for row in whole:
        # The printed average is the plain mean of the six, save that Video-R1's 58.70 is printed
        # 58.6 and Arrow RL's 57.77 57.7.
        mean = sum(row.accuracy_percent[name] for name in SIX) / 6
        assert row.mean_percent == pytest.approx(mean, abs=0.101), row.name
    [gemini] = [row for row in STRIVE_TABLE_1.rows if row.name == "Gemini-1.5-Pro"]
    assert gemini.accuracy_percent == {"videomme": 75.0, "vsibench": 48.8, "tempcompass": 70.5}


def test_the_page_has_the_published_rows_as_they_are() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reproduce.md").read_text("utf-8")
    shown = 0
    for row in STRIVE_TABLE_1.rows:
        figures = [row.accuracy_percent.get(name) for name in SIX] + [row.mean_percent]
        line = f"| {row.name} | {' | '.join(map(str, figures))} |"
        assert (line in page) == (f"| {row.name} | " in page), line
        shown += line in page
    assert shown == 6


def test_folders_of_one_model_are_one_row(tmp_path: Path) -> None:
    figures = dict(zip(SIX, (61.7, 36.6, 69.4, 75.1, 50.1, 65.7), strict=True))
    first = folder(tmp_path, "a", *(benchmark(n, figures[n], 0.9) for n in SIX[:2]))
    second = folder(tmp_path, "b", *(benchmark(n, figures[n], 0.9) for n in SIX[2:]))
    made = make_table([first, second])
    [row] = made.rows
    assert row.folders == (str(first), str(second)) and row.name == "first"
    assert row.mean is not None and row.mean.benchmarks == SIX
    # The paper's STRIVE row: 358.6 / 6 = 59.77; six errors of 0.9: 0.9 * sqrt(6) / 6 = 0.367.
    assert row.mean.score.accuracy_percent == pytest.approx(358.6 / 6)
    assert row.mean.score.standard_error == pytest.approx(0.9 / math.sqrt(6))
    assert made.notes == ()
    cell = row.cells["videomme"]
    # sqrt(0.617 * 0.383 / 2700) = 0.936 %.
    assert cell.binomial_standard_error == pytest.approx(0.9355, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_digest": "2"}, "first (A)"),
        ({"protocol": "direct"}, "protocol direct"),
        ({"num_frames": 16}, "num_frames 16"),
    ],
)
def test_other_models_and_protocols_are_other_rows(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    a = folder(tmp_path, "a", benchmark("mmvu", 60.0))
    b = folder(tmp_path, "b", benchmark("videomme", 60.0), **change)
    made = make_table([a, b])
    assert len(made.rows) == 2
    text = " ".join([*(row.name for row in made.rows), *made.notes])
    assert told.replace("A", str(a)) in text


def test_the_same_benchmark_twice_is_two_rows(tmp_path: Path) -> None:
    a, b = (folder(tmp_path, name, benchmark("mmvu", 60.0)) for name in "ab")
    assert [row.name for row in make_table([a, b]).rows] == [f"first ({a})", f"first ({b})"]
    with pytest.raises(ConfigError, match="named twice"):
        make_table([a, a])


def test_a_mean_of_fewer_is_named_as_what_it_is(tmp_path: Path) -> None:
    rows = [benchmark("mmvu", 60.0), benchmark("videomme", 50.0), benchmark("lab", 90.0)]
    made = make_table([folder(tmp_path, "a", *rows)])
    [row] = made.rows
    assert row.mean is not None and row.mean.score.accuracy_percent == 55.0  # without the lab
    assert made.notes == ("first: not the average of the six but the mean of 2: VideoMME, MMVU",)
    assert [column.title for column in made.columns][-2:] == ["MMVU", "lab"]
    shown = terminal(made, 160)
    assert "(of 2) 55.0 ± 0.7" in shown and "mean of 2: VideoMME, MMVU" in shown


def test_the_lab_alone_has_neither_mean_nor_published_rows(tmp_path: Path) -> None:
    made = make_table([folder(tmp_path, "a", benchmark("lab", 53.1))])
    assert [column.name for column in made.columns] == ["lab"]
    assert made.published is None and made.rows[0].mean is None
    assert "Avg" not in terminal(made, 80) and "GRPO" not in terminal(made, 80)


def test_what_a_figure_is_not_is_said(tmp_path: Path) -> None:
    totals = {
        "video_r1": score(35.8, 0.8, 5130),
        "official": score(34.2, 0.9, 5130),
        "micro": score(35.7, 0.8, 5130),
    }
    failures = [
        {"benchmark": "videomme", "question_id": str(i), "video_id": f"{i // 2}.mp4"}
        for i in range(3)
    ]
    a = folder(
        tmp_path, "a",
        benchmark(
            "vsibench", 35.7, headline="video_r1", totals=totals, absent={"video_r1": ["numeric"]}
        ),
        benchmark("videomme", 61.0, num_questions=200, num_failed=3),
        failures=failures,
    )  # fmt: skip
    b = folder(tmp_path, "b", benchmark("vsibench", 33.0), model_digest="2", model="/models/second")
    made = make_table([a, b])
    notes = "\n".join(made.notes)
    assert "VSI-Bench is averaged in several ways (first: video_r1; second: accuracy)" in notes
    assert "first, VSI-Bench: shown is video_r1; official 34.2 ± 0.9, micro 35.7 ± 0.8" in notes
    assert "VideoMME: 200 questions, where the whole benchmark has 2,700" in notes
    assert "VideoMME: 3 questions about 2 videos failed and count as wrong" in notes
    assert "VSI-Bench: no question of numeric: a mean over fewer groups" in notes
    cell = made.rows[0].cells["vsibench"]
    assert cell.score.accuracy_percent == 35.8
    assert math.isnan(cell.binomial_standard_error)  # a mean of means
    # Every note stands in every form that has room for it.
    for text in (markdown_text(made), latex_text(made)):
        assert all(note in text for note in made.notes)


def test_results_of_before_are_read(tmp_path: Path) -> None:
    old = benchmark("mmvu", 60.0, num_failed=1)
    del old["headline"], old["totals"]
    failure = {"benchmark": "mmvu", "question_id": "1", "video_id": "x"}
    made = make_table([folder(tmp_path, "a", old, failures=[failure])])
    cell = made.rows[0].cells["mmvu"]
    assert cell.headline == "accuracy" and cell.score.accuracy_percent == 60.0
    assert "left out of the score (strive-cli rescore" in "\n".join(made.notes)


@pytest.mark.parametrize("width", [80, 160])
def test_the_table_fits(tmp_path: Path, width: int) -> None:
    rows = [benchmark(name, 61.24, 0.91) for name in SIX]
    name = "Qwen2.5-VL-7B-Instruct"
    made = make_table(
        [
            folder(tmp_path, "a", *rows, benchmark("lab", 50.0), model=f"Qwen/{name}"),
            folder(tmp_path, "b", *rows[:2], model="runs/strive-importance-1/final"),
        ]
    )
    shown = terminal(made, width)
    tables = [line for line in shown.splitlines() if not line.startswith("- ")]
    assert max(map(len, tables)) <= width and "…" not in shown
    text = " ".join(shown.split())
    assert ("61.2 ± 0.9" if width == 160 else "±0.9") in text
    assert name in text and "strive-importance-1/final" in text  # in one piece
    assert "STRIVE" in text and "arXiv:2604.01824, Table 1" in text
    assert "binomial" in text or width == 80


def test_markdown_and_latex(tmp_path: Path) -> None:
    rows = [benchmark(name, 61.24, 0.91) for name in SIX[:5]]
    made = make_table([folder(tmp_path, "a", *rows, model="/m/a_b|c")])
    markdown = markdown_text(made)
    header, rule, first, *_ = markdown.splitlines()
    assert header == (
        "| model | VideoMME | VSI-Bench | PerceptionTest | TempCompass | VideoMMMU | MMVU | Avg |"
    )
    assert rule.count("|") == 9
    assert first.startswith("| a_b\\|c | 61.2 ± 0.9 |") and first.endswith("(of 5) 61.2 ± 0.4 |")
    assert "| *GPT-4o* | 71.9 | 34.0 | – |" in markdown
    latex = latex_text(made)
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    # The head, one row, the source in one cell, fourteen published rows.
    assert [line.count(" & ") for line in body] == [7, 7, 0, *[7] * 14]
    assert r"a\_b|c & 61.2 $\pm$ 0.9" in latex and latex.endswith(r"\end{tabular}")
    assert all(line.startswith(("%", "\\")) or line.endswith(r"\\") for line in latex.splitlines())
    assert latex_escaped(r"50%_{x}\~") == r"50\%\_\{x\}\textbackslash{}\textasciitilde{}"


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["table", *map(str, arguments)])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result.stdout


def test_table_as_a_command(tmp_path: Path) -> None:
    a = folder(tmp_path, "a", benchmark("mmvu", 60.0, None))
    found = json.loads(call(a, "--json"))
    assert found["rows"][0]["cells"]["mmvu"]["score"] == {
        "accuracy_percent": 60.0,
        "standard_error": None,
    }
    assert found["published"]["rows"][10]["name"] == "STRIVE (Qwen2.5-VL-7B)"
    assert "tabular" in call(a, "--latex") and "| --- |" in call(a, "--markdown")
    assert "GPT-4o" in call(a) and "GPT-4o" not in call(a, "--no-published")
    with pytest.raises(ConfigError, match="exclude one another"):
        call(a, "--latex", "--json")
    with pytest.raises(MissingInputError, match="no results at"):
        call(tmp_path / "gone")
    found = json.loads((a / "results.json").read_text())
    (a / "results.json").write_text(json.dumps({**found, "settings": {}}))
    with pytest.raises(RecordsError, match="does not hold an evaluation's results"):
        call(a)
    (a / "results.json").write_text('{"settings": {}}')
    with pytest.raises(RecordsError, match="is damaged: it has no benchmarks"):
        call(a)
