import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from strive.errors import CheckpointError, ConfigError
from strive.report import inspect, inspect_html
from strive.report.dynamics import figure_svg, line_chart, render_dynamics_page, smooth
from strive.report.format import markdown_table
from strive.report.runs import Curve, accuracy_note, read_run, read_runs
from strive.report.tables import (
    EvaluatedModel,
    change_text,
    print_evaluations,
    print_runs,
    render_demo_page,
)
from strive.statistics import PairedDifference


def write_run(path: Path, *, num_steps: int = 40, level: float = 0.3, **config: Any) -> Path:
    path.mkdir(parents=True)
    about = {
        "config": {"num_variants": 2, "steps": num_steps, **config},
        "versions": {"torch": "2"},
    }
    (path / "config.json").write_text(json.dumps(about))
    lines = [
        {
            "step": step,
            "group/reward_std": level + 0.01 * (step % 3),
            "group/zero_std_fraction": 0.25,
            # exp of -1, 0, 1 in turn; the first step has no gradient.
            "optim/grad_norm": 0.0 if step == 1 else math.exp(step % 3 - 1),
            "reward/accuracy": 0.4 if step <= num_steps // 2 else 0.6,
            "variants/evidence_seen": None,
            "time/step": 0.5,
        }
        for step in range(1, num_steps + 1)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text + '{"step": 41, "gro')
    (path / "held_out.jsonl").write_text(
        '{"step": 0, "accuracy": 0.5}\n{"step": 40, "accuracy": 0.6}\n'
    )
    rows = [
        {
            "step": num_steps, "question_id": str(q), "variant": m, "generation": g,
            "frame_index": [0, 1], "evidence_seen": m == 0, "text": f"<think>{q}</think>",
            "reward": 1.0, "reward_accuracy": 1.0 if m == 0 else 0.25, "advantage": 0.0,
            "length": 3, "truncated": False,
        }
        for q in range(2) for m in range(2) for g in range(2)
    ]  # fmt: skip
    (path / "completions.parquet").mkdir()
    pl.DataFrame(rows).write_parquet(path / "completions.parquet" / "part-000001.parquet")
    return path


def results(accuracy: float) -> dict[str, Any]:
    score = {
        "accuracy_percent": accuracy, "standard_error": 1.5, "low": accuracy - 3,
        "high": accuracy + 3, "num_questions": 100, "num_videos": 20,
    }  # fmt: skip
    lonely = {**score, "standard_error": None, "low": None, "high": None}
    row = {
        "benchmark": "lab", "overall": score, "by_problem_type": {"multiple choice": score},
        "by_kind": {"lab/<b>colour</b>": lonely},
    }  # fmt: skip
    return {"benchmarks": [row]}


CHANGE = PairedDifference(3.2, 1.1, 1.0, 5.4, 0.004, 100, 20)


def test_reading_a_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "strive"))
    assert (run.name, run.num_steps) == ("strive", 40)
    # Steps 1 to 20 at 0.4, 21 to 40 at 0.6.
    assert run.mean("reward/accuracy", last=0.1) == pytest.approx(0.4)
    assert run.mean("reward/accuracy", first=0.9) == pytest.approx(0.6)
    assert math.isnan(run.mean("variants/evidence_seen"))
    assert run.seconds == pytest.approx(20)
    logs = [step % 3 - 1 for step in range(2, 41)]
    assert run.grad_norm_log_deviation == pytest.approx(np.std(logs, ddof=1))
    assert run.curves["held_out/accuracy"].values.tolist() == [0.5, 0.6]
    assert run.accuracy_by_evidence == pytest.approx({"seen": 1.0, "missed": 0.25})
    assert [file.name for file in run.completions] == ["part-000001.parquet"]


def test_a_run_that_has_just_started(tmp_path: Path) -> None:
    folder = tmp_path / "young"
    folder.mkdir()
    (folder / "config.json").write_text('{"config": {}}')
    run = read_run(folder)
    assert run.num_steps == 0 and run.curves == {} and run.completions == ()
    page = render_dynamics_page([run])
    assert "young" in page
    with pytest.raises(CheckpointError, match="no run at"):
        read_run(tmp_path)
    (folder / "metrics.jsonl").write_text("nonsense\n")
    with pytest.raises(CheckpointError, match="line 1"):
        read_run(folder)


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / arm / "seed-0") for arm in ("grpo", "strive")]
    assert [run.name for run in read_runs(paths)] == ["grpo/seed-0", "strive/seed-0"]


def test_dynamics_page(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    runs = [read_run(write_run(tmp_path / "a")), read_run(write_run(tmp_path / "b"), hostile)]
    page = render_dynamics_page(runs)
    assert hostile not in page and "&lt;img src=x" in page
    for title in ("Group reward std", "Zero-std groups", "Gradient norm", "Held-out accuracy"):
        assert title in page
    # Metrics with 40 steps have a faint and a smoothed line in each run; two points have dots.
    faint = re.findall(r"stroke: (var\(--c\d\)); stroke-opacity: 0.28", page)
    assert faint.count("var(--c0)") == faint.count("var(--c1)") == 5 and len(faint) == 10
    assert "nan" not in page.lower() and "<script" not in page
    with pytest.raises(ConfigError, match="7 arms given"):
        render_dynamics_page(runs[:1] * 7)


def test_smooth_against_its_definition() -> None:
    # Half-life 1: weights 1/2, 1/4, ... normalised: (1 * 1/4 + 3 * 1/2) / (3/4) = 7/3.
    assert smooth(np.array([1.0, 3.0]), 1) == pytest.approx([1.0, 7 / 3])
    assert smooth(np.full(50, 2.0), 5) == pytest.approx(np.full(50, 2.0))


def test_a_single_spike_does_not_flatten_a_chart() -> None:
    values = np.concatenate([np.random.default_rng(0).random(3000), [500.0]])
    axes = line_chart("n", [(0, [Curve(np.arange(3001.0), values)])])
    assert axes.get_ylim() == (0, 1.5) and axes.get_xlim() == (0, 3000)
    svg = figure_svg(axes.figure, "loss & more")
    assert svg.startswith('<svg role="img" aria-label="loss &amp; more"') and len(svg) < 200_000


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0, -2.0])
def test_flat_curves_have_an_axis_with_zero(value: float) -> None:
    curve = Curve(np.arange(20.0), np.full(20, value))
    for is_share in (False, True) if value >= 0 else (False,):
        low, high = line_chart("n", [(0, [curve])], is_share=is_share).get_ylim()
        assert low <= min(0, value) and high >= max(0, value) and low < high
        assert not is_share or (low, high) == (0, 1)


def test_demo_page(tmp_path: Path, cache: Path) -> None:
    source = inspect.open_source(cache)
    section = inspect_html.question_section(source, inspect.view_question(source, "2"))
    models = [
        EvaluatedModel("untrained", results(48.0), blind=results(30.0)),
        EvaluatedModel("STRIVE", results(51.2), change=CHANGE),
    ]
    runs = [read_run(write_run(tmp_path / "strive"))]
    page = render_demo_page(runs, models, [section], facts=[("scorer", "AUC <0.9>")])
    assert "It says nothing about 7B accuracy" in page
    # The page ends with what one seed cannot say.
    assert "<code>docs/lab-results.md</code>" in page[page.index("What one seed cannot say") :]
    assert page.index("What one seed cannot say") > page.index('class="card question"')
    assert "+3.2 (+1.0 to +5.4)" in page and "48.0 ± 1.5" in page
    assert "<b>colour</b>" not in page and "AUC &lt;0.9&gt;" in page
    assert "<script>alert" not in page
    assert render_demo_page([], [], [])


def test_tables(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / "strive"))]
    assert (
        markdown_table(("a", "b"), [["x|y", "1"]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |\n"
    )
    assert change_text(None) == "–"
    for width in (80, 160):
        console = Console(width=width, record=True, file=io.StringIO())
        print_runs(runs, console)
        print_evaluations([EvaluatedModel("a long name of a model", results(48.0))], console)
        text = console.export_text()
        shown = text.replace("│", " ").split()
        assert " ".join(shown).count("strive 40 0.310 25.0 %") == 1
        assert "48.0 ± 1.5" in text and max(map(len, text.splitlines())) <= width


def test_training_accuracy_is_not_compared_between_ways_of_drawing_frames(tmp_path: Path) -> None:
    shared = {"num_frames": 8, "scorer": None}
    runs = [
        write_run(tmp_path / "a", variants="importance", learning_rate=1e-6, **shared),
        write_run(tmp_path / "b", variants="none", learning_rate=1e-5, **shared),
        write_run(tmp_path / "c", variants="importance", learning_rate=1e-5, **shared),
    ]
    different, alike = read_runs(runs[:2]), read_runs([runs[0], runs[2]])
    note = accuracy_note(different)
    assert note is not None and "draw them otherwise (variants), so it cannot be compared" in note
    assert note in render_dynamics_page(different).replace("&#39;", "'")
    console = Console(width=80, record=True, file=io.StringIO())
    print_runs(different, console)
    assert "cannot be compared" in " ".join(console.export_text().split())
    assert accuracy_note(alike) is None and "cannot be" not in render_dynamics_page(alike)
    assert accuracy_note(different[:1]) is None
