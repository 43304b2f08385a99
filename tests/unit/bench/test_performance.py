"""The page that is made from result files, and the pure parts of the measurements."""

import pytest

from bench.growth import falls, shapes
from bench.harness import flat
from bench.performance import (
    DOCS,
    README,
    SECTIONS,
    page,
    read_results,
    with_tables,
)
from bench.performance_step import growth_lines, plot_growth
from bench.step import CASES, FLOORS, Answers, figures_of, show, token_ceiling

MACHINE = {"processor": "A processor", "cores": 2, "memory_gib": 8.0, "system": "Linux"}


def result(name, figures, **machine):
    return {
        "name": name,
        "date": "2026-01-02",
        "command": f"python -m bench.{name}",
        "machine": MACHINE | machine,
        "versions": {"python": "3.11", "torch": "2.0"},
        "figures": figures,
    }


def row(m, g, seconds):
    per_response = dict.fromkeys(("rollout", "logprob_backward", "step"), seconds)
    return {"num_variants": m, "num_generations": g, "seconds_per_response": per_response}


GROWTH = result(
    "growth",
    {
        "by_generations": [row(2, 2, 0.5), row(2, 4, 0.25)],
        "by_variants": [row(1, 4, 0.25), row(2, 4, 0.25)],
        "falls_with_generations": {"rollout": True, "logprob_backward": True, "step": False},
    },
)


def test_token_ceiling():
    # 4 rows of 660 + 128 are 3,152 tokens; one row of 660 + 4 x 128 is 1,172.
    assert token_ceiling(660, 128, 4) == pytest.approx(3152 / 1172)
    assert token_ceiling(660, 128, 1) == 1


def answered(seconds, passes=(), rollouts=()):
    """A contender that made the same step twice, its whole step twice as long as its rollout."""
    parts = {"rollout": seconds / 2, "logprob_backward": seconds / 2, "step": seconds}
    step = {"seconds": parts, "peak_bytes": seconds * 2**20, "encodes": 2, "entropy": 1.0}
    about = {"parameters": {"all": 1, "tower": 1}}
    return Answers(about, [step | {"prompt_tokens": 660}] * 2, list(passes), list(rollouts))


def test_ratios_are_the_others_over_ours(capsys):
    found = figures_of(
        {
            "ours": answered(2.0, [{"packed": 1.0, "plain": 2.0}]),
            "rows": answered(8.0, [{"rows": 4.0}], [3.0]),
            "trl": answered(6.0),
        },
        128,
    )
    ratios = found["ratios"]
    assert set(FLOORS) <= set(ratios)
    assert ratios["step over rows"] == 4 and ratios["step over trl"] == 3
    assert ratios["rollout over num_return_sequences"] == 3
    assert ratios["peak memory of rows over ours"] == 4
    # 4 times faster with a ceiling of 3,152 / 1,172.
    share = ratios["log-prob pass over token-count ceiling"]
    assert share == pytest.approx(4 * 1172 / 3152)
    show(CASES[0], found)
    assert "step over rows                               4.00 (at least 2.5 is wanted)" in (
        capsys.readouterr().out
    )


def test_pages_are_made_from_the_result_files():
    """Nothing on them was typed in by hand."""
    results = read_results()
    assert set(results) >= {name for name, _, _ in SECTIONS}
    assert (DOCS / "performance.md").read_text(encoding="utf-8") == page(results)
    readme = README.read_text(encoding="utf-8")
    assert with_tables(readme, results) == readme
    assert all(" | ".join(cells) in readme for cells in results["demo"]["figures"]["rows"])
    step = results["step"]["figures"]["cases"]["8192 language"]
    assert f"| ours | {step['median_seconds']['ours']['step']:.1f} |" in readme


def test_growth_runs_each_shape_once():
    assert shapes(False) == [(2, 2), (2, 4), (2, 8), (2, 16), (2, 32), (1, 4), (4, 4), (8, 4)]
    assert falls(GROWTH["figures"]["by_generations"], "step")
    assert not falls(GROWTH["figures"]["by_variants"], "step")


def test_nothing_measured_is_said():
    text = page({})
    for name, title, _ in SECTIONS:
        assert f"## {title}\n\nNot measured yet: `python -m bench.{name}` does." in text
    assert text.endswith("Not measured yet. Everything above ran on a CPU.\n")


def test_a_section_says_where_it_is_from():
    text = page({"growth": GROWTH})
    assert "| 4 | 0.250 | 0.250 | 0.250 |" in text
    assert (
        "`python -m bench.growth`, 2026-01-02, A processor, 2 cores, 8 GiB; python 3.11, torch 2.0."
    ) in text
    assert text.count("Not measured yet:") == len(SECTIONS) - 1
    assert "whole step no" in list(growth_lines(GROWTH, "plot.svg"))[-1]


def test_gpu_figures_are_shown_once_measured():
    figures = {"on_gpu": True, "seconds": {"packed": 1.25, "runs": [1, 2.5]}}
    text = page({"gpu": result("gpu", figures, gpu="A GPU")})
    part = text[text.index("## On a GPU") :]
    assert "Not measured yet" not in part
    assert "| seconds: packed | 1.25 |\n| seconds: runs | 1, 2.5 |" in part
    assert "A processor, A GPU, 2 cores" in part
    assert dict(flat(figures))["on gpu"] == "yes"


def test_the_plot_is_the_same_for_the_same_figures(tmp_path):
    paths = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for path in paths:
        plot_growth(GROWTH, path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second and b"seconds per response" in first
