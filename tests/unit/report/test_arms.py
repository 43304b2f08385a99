import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from strive.errors import DiskError
from strive.report.arms import band, config_differences, group_arms
from strive.report.dynamics import line_chart, render_dynamics_page, write_figures
from strive.report.runs import Curve, Run, read_run, read_runs


def write_run(
    path: Path, values: tuple[float, ...] = (0.25, 0.5), *, scorer_key: str = "s", **config: Any
) -> Path:
    """Leave a run of the metric `group/reward_std` alone, from step 1 on."""
    path.mkdir(parents=True)
    about = {"config": {"steps": 9, **config}, "data": {"scorer_key": scorer_key}}
    (path / "config.json").write_text(json.dumps(about))
    (path / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": step, "group/reward_std": value}) + "\n"
            for step, value in enumerate(values, start=1)
        )
    )
    return path


def seeds_of(root: Path, arm: str, *seeds: int, **config: Any) -> list[Run]:
    return read_runs(
        [write_run(root / f"{arm}-{s}", variants=arm, seed=s, **config) for s in seeds]
    )


def test_runs_that_differ_in_their_seed_alone_are_one_arm(tmp_path: Path) -> None:
    grpo, strive = seeds_of(tmp_path, "grpo", 1, 0, 2), seeds_of(tmp_path, "strive", 0)
    arms = group_arms([strive[0], *grpo])
    assert [(arm.name, arm.seeds) for arm in arms] == [("strive-0", "0"), ("grpo", "0, 1, 2")]
    assert [arm.label for arm in arms] == ["strive-0", "grpo (seeds 0, 1, 2)"]
    assert [run.name for run in arms[1].runs] == ["grpo-0", "grpo-1", "grpo-2"]


def test_a_seed_twice_is_no_further_seed(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / name, seed=0) for name in ("old-0", "new-0")])
    assert [arm.name for arm in group_arms(runs)] == ["old-0", "new-0"]


def test_other_scores_are_another_arm(tmp_path: Path) -> None:
    # The name of the scorer is the same: what the cache held under it is not.
    paths = [write_run(tmp_path / str(n), seed=n, scorer_key=f"s{n}") for n in range(2)]
    arms = group_arms(read_runs(paths))
    assert len(arms) == 2
    assert config_differences(arms) == [("scorer_key", ['"s0"', '"s1"']), ("seed", ["0", "1"])]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("strive-seed10", "strive-seed11"), "strive"),
        (("a/strive_s1", "a/strive_s2"), "a/strive"),
        (("grpo/seed-1", "grpo/seed-2"), "grpo"),
        (("qwen2_5_vl-none-001", "qwen2_5_vl-none-002"), "qwen2_5_vl-none"),
        (("10", "11"), "runs"),  # then the folder above names the arm
        (("first", "second"), "first"),
    ],
)
def test_the_name_of_an_arm_is_that_of_its_runs_without_their_numbers(
    tmp_path: Path, names: tuple[str, str], expected: str
) -> None:
    runs = [
        read_run(write_run(tmp_path / "runs" / str(seed), seed=seed), name)
        for seed, name in zip((1, 2), names, strict=True)
    ]
    (arm,) = group_arms(runs)
    assert arm.name == expected


def curve(*points: tuple[float, float]) -> Curve:
    steps, values = zip(*points, strict=True)
    return Curve(np.array(steps, dtype=float), np.array(values, dtype=float))


def test_a_band_by_hand() -> None:
    found = band(
        [
            curve((1, 0), (2, 2), (3, 4)),
            curve((1, 4), (3, 0)),  # without a value at step 2: half way between 4 and 0
            curve((1, 8)),  # has come to step 1 only
        ]
    )
    assert found.steps_S.tolist() == [1, 2, 3]
    assert found.mean_S.tolist() == [(0 + 4 + 8) / 3, (2 + 2) / 2, (4 + 0) / 2]
    assert found.low_S.tolist() == [0, 2, 0]
    assert found.high_S.tolist() == [8, 2, 4]


def test_a_chart_of_several_seeds_has_their_band_and_mean() -> None:
    seeds = [curve((1, 0.25), (2, 0.5)), curve((1, 0.75), (2, 1.0))]
    axes = line_chart("n", [(0, seeds), (1, [curve((1, 0.0), (2, 0.0))])])
    polygon = axes.collections[0].get_paths()[0].vertices
    assert {tuple(point) for point in polygon} == {(1, 0.25), (2, 0.5), (1, 0.75), (2, 1.0)}
    means = [line.get_ydata().tolist() for line in axes.lines]
    # Few points: dots, then the line. (0.25 + 0.75) / 2, (0.5 + 1.0) / 2.
    assert means == [[0.5, 0.75]] * 2 + [[0.0, 0.0]] * 2
    assert axes.get_ylim() == (0, 1)


def test_each_seed_is_smoothed_before_the_band() -> None:
    # Two seeds that swing by 1 about 1 and 3: raw values would span 0 to 4, smoothed ones do not.
    steps = np.arange(200.0)
    swing = np.where(steps % 2 == 0, 1.0, -1.0)
    axes = line_chart("n", [(0, [Curve(steps, level + swing) for level in (1.0, 3.0)])])
    # Half-life 8 steps: a swing leaves at most about tanh(ln 2 / 16) = 0.043 of itself.
    late = [y for x, y in axes.collections[0].get_paths()[0].vertices if x > 100]
    assert min(late) == pytest.approx(1, abs=0.05) and max(late) == pytest.approx(3, abs=0.05)
    (mean,) = axes.lines
    assert mean.get_ydata()[100:] == pytest.approx(np.full(100, 2.0), abs=0.05)


def test_the_page_takes_more_runs_than_it_has_colours(tmp_path: Path) -> None:
    runs = [*seeds_of(tmp_path, "grpo", *range(7)), *seeds_of(tmp_path, "strive", 0, 1)]
    page = render_dynamics_page(runs)
    assert "grpo (seeds 0, 1, 2, 3, 4, 5, 6)" in page
    assert "from the lowest to the highest seed" in page
    assert '<td>seed</td><td class="wrap">0, 1, 2, 3, 4, 5, 6</td>' in page
    assert "fill: var(--c0); fill-opacity: 0.2" in page and "A single run:" not in page
    single = render_dynamics_page(runs[:1])
    assert "fill-opacity: 0.2" not in single and "band" not in single.partition("<body>")[2]


def test_figures_are_written_as_png_and_pdf(tmp_path: Path) -> None:
    seeds = ((0, (0.25, 0.5)), (1, (0.75, 1.0)))
    runs = [read_run(write_run(tmp_path / f"a $5 {s}", values, seed=s)) for s, values in seeds]
    runs += seeds_of(tmp_path, "b", 0)
    names = ["group-reward_std.png", "group-reward_std.pdf"]
    png, pdf = write_figures(runs, tmp_path / "deep" / "figures")
    assert [png.name, pdf.name] == names
    with Image.open(png) as image:
        # Colours of the two arms, and the first one's band: 20 % of #d1570a on white.
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or ()}
    assert {(0xD1, 0x57, 0x0A), (0x1F, 0x6F, 0xEB)} <= colours
    # 0.2 * 0xd1 + 0.8 * 255 = 245.8, 0.2 * 0x57 + 204 = 221.4, 0.2 * 0x0a + 204 = 206.
    assert any(abs(r - 246) < 2 and abs(g - 221) < 2 and abs(b - 206) < 2 for r, g, b in colours)
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    write_figures(runs, pdf.parent)
    assert pdf.read_bytes() == content
    with pytest.raises(DiskError, match="--figures"):
        write_figures(runs, png)
