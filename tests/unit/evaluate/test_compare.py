"""`compare`: several folders, several benchmarks, means of means, failures, Holm."""

import io
import json
import math
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from strive.choices import EvaluationGrading
from strive.cli import app
from strive.commands.comparing import print_comparisons
from strive.evaluate.benchmarks import BENCHMARKS
from strive.evaluate.benchmarks.base import Benchmark, PlainRecords
from strive.evaluate.compare import compare, compare_all
from strive.evaluate.items import MICRO, Failure, Reading, Total
from strive.evaluate.results import grade_sample, summarise_samples, write_results
from strive.evaluate.samples import Sample, append_samples, read_samples
from strive.evaluate.table import make_table
from strive.files import plain_json
from strive.seeding import derive_rng
from strive.statistics import macro_average, paired_difference

NUM_VIDEOS = 20


class Halves(Benchmark):
    """Its headline is the mean of its two kinds of question."""

    name = "halves"

    def read(self, root: Path, split: str) -> Reading:
        return Reading(())

    def totals(self, grading: EvaluationGrading) -> tuple[Total, ...]:
        return (Total("mean of kinds", lambda row: (row.kind,)), MICRO)


@pytest.fixture(autouse=True)
def halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "halves", Halves())


def answer(benchmark: str, number: int, right: bool) -> Sample:
    """The answer to one of three questions a video, each about its own cut of it.

    The first question is of its own kind.
    """
    video = number // 3
    return Sample(
        benchmark=benchmark,
        question_id=str(number),
        prompt_hash=f"p{number}",
        video_id=f"{video}-{number}.mp4",
        cluster=str(video),
        problem_type="multiple choice",
        kind="count" if number % 3 == 0 else "order",
        prompt="Which?",
        solution="<answer>B</answer>",
        source_index=(0,),
        evidence_seen=None,
        output=f"<answer>{'B' if right else 'A'}</answer>",
        num_tokens=3,
        truncated=False,
        dimensions={"duration": ("short", "long")[video % 2], "topic": str(number)},
    )


def folder(root: Path, name: str, chance: float, *, failed: tuple[str, ...] = ()) -> Path:
    """60 answers to each of two benchmarks, right by chance; questions named in `failed` failed."""
    rng = derive_rng(0, name)
    samples, failures = [], []
    for benchmark in ("lab", "halves"):
        for number in range(3 * NUM_VIDEOS):
            made = answer(benchmark, number, rng.random() < chance)
            if str(number) in failed:
                about = (made.problem_type, made.kind, made.dimensions, made.cluster)
                failures.append(
                    Failure(benchmark, made.question_id, made.video_id, "damaged", "", *about)
                )
            else:
                samples.append(grade_sample(made, PlainRecords(), "video_r1"))
    (root / name).mkdir()
    append_samples(root / name / "samples.jsonl", samples)
    benchmarks: dict[str, Benchmark] = {name: BENCHMARKS[name] for name in ("lab", "halves")}
    results = summarise_samples(
        benchmarks, samples, failures, settings={"model": name, "protocol": "video_r1"},
        versions={}, grading="video_r1", num_resumed=0, seconds=1.0,
    )  # fmt: skip
    write_results(root / name, results)
    return root / name


def test_differences_are_those_of_the_headlines(tmp_path: Path) -> None:
    a, b = folder(tmp_path, "a", 0.8, failed=("0", "4")), folder(tmp_path, "b", 0.5)
    got = compare(a, b)
    for name, benchmark in got.by_benchmark.items():
        difference = benchmark.totals[benchmark.headline]
        of_a, of_b = (summary_of(out, name)["accuracy_percent"] for out in (a, b))
        assert difference.difference == pytest.approx(of_a - of_b)
        assert (difference.num_pairs, difference.num_units) == (60, NUM_VIDEOS)
        assert (benchmark.num_failed_a, benchmark.num_failed_b) == (2, 0)
    # What both answered, as before there were averages: 58 of each benchmark.
    assert got.overall.num_pairs == 116 and got.num_only_b == 4
    assert list(got.by_benchmark["halves"].totals) == ["mean of kinds", "accuracy"]
    assert got.by_benchmark["lab"].headline == "accuracy"
    assert list(got.by_benchmark["lab"].by_dimension["duration"]) == ["long", "short"]


def test_means_of_means_by_paired_bootstrap(tmp_path: Path) -> None:
    a, b = folder(tmp_path, "a", 0.8), folder(tmp_path, "b", 0.5)
    sides = [
        [s for s in read_samples(out / "samples.jsonl") if s.benchmark == "halves"]
        for out in (a, b)
    ]
    kinds = [(s.kind,) for s in sides[0]]
    gain = macro_average(
        [100 * x.score - 100 * y.score for x, y in zip(*sides, strict=True)], kinds
    )
    found = compare(a, b).by_benchmark["halves"].totals["mean of kinds"]
    assert found.difference == pytest.approx(gain)
    # Both kinds are in every video: its part of the average is half the difference of its one
    # count and a quarter of each of its two orders. No video weighs more: a plain clustered error.
    weights = [1 / 2, 1 / 4, 1 / 4]
    parts = [
        sum(
            100 * weights[i] * (sides[0][3 * v + i].score - sides[1][3 * v + i].score)
            for i in range(3)
        )
        for v in range(NUM_VIDEOS)
    ]
    expected = paired_difference(parts, [0.0] * NUM_VIDEOS)
    assert found.standard_error == pytest.approx(expected.standard_error, rel=0.07)


def test_holm_is_over_all_pairs_and_benchmarks(tmp_path: Path) -> None:
    from statsmodels.stats.multitest import multipletests

    a, b, c = (folder(tmp_path, n, x) for n, x in (("a", 0.8), ("b", 0.6), ("c", 0.65)))
    found = compare_all(a, [b, c])
    assert [comparison.b for comparison in found] == [str(b), str(c)]
    items = [benchmark for comparison in found for benchmark in comparison.by_benchmark.values()]
    p_values = [benchmark.totals[benchmark.headline].p_value for benchmark in items]
    assert [benchmark.holm_p_value for benchmark in items] == pytest.approx(
        multipletests(p_values, method="holm")[1].tolist()
    )
    # The pairs are those of two folders alone; only the adjustment is of what is beside them.
    alone = compare(a, c)
    assert alone.overall == found[1].overall
    assert alone.by_benchmark["halves"].totals == found[1].by_benchmark["halves"].totals


def test_a_folder_with_itself_is_exactly_the_same(tmp_path: Path) -> None:
    a = folder(tmp_path, "a", 0.5, failed=("3",))
    got = compare(a, a)
    assert (got.overall.difference, got.overall.p_value) == (0.0, 1.0)
    for benchmark in got.by_benchmark.values():
        for difference in benchmark.totals.values():
            assert (difference.difference, difference.low, difference.high) == (0.0, 0.0, 0.0)
            assert difference.p_value == 1.0
        assert (benchmark.num_gained, benchmark.num_lost, benchmark.holm_p_value) == (0, 0, 1.0)


def test_an_interrupted_evaluation_is_compared_by_its_answers(tmp_path: Path) -> None:
    a, b = folder(tmp_path, "a", 0.8), folder(tmp_path, "b", 0.5)
    whole = compare(a, b)
    for out in (a, b):
        (out / "results.json").unlink()
    got = compare(a, b)
    assert got.overall == whole.overall and got.gradings == ("", "")
    assert got.by_benchmark["halves"].headline == "accuracy"  # averages stand in the results


def test_evaluations_of_before_are_compared(tmp_path: Path) -> None:
    """Without clusters, dimensions and averages, and with failures that tell little."""
    a, b = folder(tmp_path, "a", 0.8, failed=("2",)), folder(tmp_path, "b", 0.5)
    for out in (a, b):
        lines = []
        for line in (out / "samples.jsonl").read_text().splitlines():
            sample = json.loads(line)
            for name in ("rule", "options", "dimensions", "cluster", "pts_seconds"):
                sample.pop(name, None)
            lines.append(json.dumps(sample) + "\n")
        (out / "samples.jsonl").write_text("".join(lines))
        stored = json.loads((out / "results.json").read_text())
        for row in stored["benchmarks"]:
            for name in ("headline", "totals", "absent", "by_dimension", "graded_by"):
                row.pop(name, None)
        told = ("benchmark", "question_id", "video_id", "error", "message")
        stored["failures"] = [{name: row[name] for name in told} for row in stored["failures"]]
        (out / "results.json").write_text(json.dumps(stored))
    got = compare(a, b)
    halves = got.by_benchmark["halves"]
    assert halves.headline == "accuracy" and halves.by_dimension == {}
    assert halves.totals["accuracy"].num_pairs == halves.totals["accuracy"].num_units == 60
    assert (halves.num_failed_a, list(halves.by_kind)) == (1, ["count", "order"])


def test_the_table_reads_what_evaluations_write(tmp_path: Path) -> None:
    out = folder(tmp_path, "a", 0.8, failed=("0", "4"))
    [row] = make_table([out]).rows
    written = summary_of(out, "halves")
    cell = row.cells["halves"]
    assert cell.headline == "mean of kinds" and list(cell.totals) == ["mean of kinds", "accuracy"]
    assert cell.score.accuracy_percent == written["accuracy_percent"]
    assert cell.score.standard_error == written["standard_error"]
    assert (cell.num_failed, cell.num_failed_videos, cell.failed_count_as_wrong) == (2, 2, True)
    # The lab's headline is a plain mean.
    lab = row.cells["lab"]
    share = lab.score.accuracy_percent / 100
    expected = 100 * math.sqrt(share * (1 - share) / 60)
    assert lab.binomial_standard_error == pytest.approx(expected)


def summary_of(out: Path, name: str) -> dict[str, Any]:
    stored = json.loads((out / "results.json").read_text())
    [found] = [row for row in stored["benchmarks"] if row["benchmark"] == name]
    summary: dict[str, Any] = found["totals"][found["headline"]]
    return summary


def shown(width: int, *folders: Path) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    print_comparisons(compare_all(folders[0], folders[1:]), console)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 160])
def test_tables_fit(tmp_path: Path, width: int) -> None:
    a, b, c = (folder(tmp_path, n, x) for n, x in (("a", 0.8), ("b", 0.6), ("c", 0.7)))
    text = shown(width, a, b, c)
    tables = [line for line in text.splitlines() if line.startswith(("│", "┃"))]
    assert max(map(len, tables)) <= width and "…" not in text
    assert "All 4 differences" in text and "Holm p" in text
    assert "duration short" in text and "all, mean of kinds" in text
    assert "topic: 60 groups, in --json" in text
    assert text.count("train several seeds of each") == 1


def test_what_else_differs_is_said(tmp_path: Path) -> None:
    a, b = folder(tmp_path, "a", 0.8, failed=("1",)), folder(tmp_path, "b", 0.6)
    stored = json.loads((b / "results.json").read_text())
    (b / "results.json").write_text(json.dumps({**stored, "grading": "tolerant"}))
    text = shown(200, a, b)
    assert "graded by other rules (video_r1 / tolerant)" in text
    assert "failed in the first 1, in the second 0: they count as wrong" in text


def test_json_of_two_and_of_three(tmp_path: Path) -> None:
    a, b, c = (folder(tmp_path, n, x) for n, x in (("a", 0.8), ("b", 0.6), ("c", 0.7)))

    def call(*folders: Path) -> dict[str, Any]:
        result = CliRunner().invoke(app, ["compare", *map(str, folders), "--json"])
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    two = call(a, b)
    assert two == json.loads(json.dumps(plain_json(compare(a, b))))
    before = (
        "a b overall by_problem_type by_kind num_gained num_lost num_only_a num_only_b "
        "num_other_prompts num_other_solutions other_settings"
    )
    assert list(two)[:12] == before.split()
    assert not math.isnan(two["by_benchmark"]["lab"]["holm_p_value"])
    three = call(a, b, c)
    assert [comparison["b"] for comparison in three["comparisons"]] == [str(b), str(c)]
    assert CliRunner().invoke(app, ["compare", str(a)]).exit_code != 0


def test_the_program_of_the_page_takes_seeds_as_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[3] / "docs" / "reproduce.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    (tmp_path / "evaluations").mkdir()
    pairs = []
    for seed in range(3):
        names = (f"strive-{seed}", f"grpo-{seed}")
        pair = [folder(tmp_path / "evaluations", name, 0.6) for name in names]
        pairs.append(compare(*pair).by_benchmark["lab"].totals["accuracy"].difference)
    (tmp_path / "over_seeds.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("over_seeds.py")
    lab, halves = capsys.readouterr().out.splitlines()
    assert lab.startswith(f"lab, accuracy: {sum(pairs) / 3:+.1f} (")
    # The mean +- t(0.975; 2 degrees of freedom) = 4.303 times the standard error of three values.
    half = 4.303 * float(np.std(pairs, ddof=1)) / math.sqrt(3)
    low, high = map(float, re.findall(r"[+-][\d.]+", lab)[1:])
    assert (high - low) / 2 == pytest.approx(half, abs=0.11)
    assert halves.startswith("halves, mean of kinds: ")
