"""`ablate` without a model: its cells, folders, commands, results and their forms."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from strive.cli import app
from strive.commands.ablating import latex_text, markdown_text, print_results, write_results
from strive.configs.load import Given, load_config
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError, Interrupted, MissingInputError
from strive.evaluate.benchmarks import BENCHMARKS
from strive.evaluate.benchmarks.base import PlainRecords
from strive.evaluate.paper_rows import ABLATIONS, FOUR
from strive.evaluate.results import grade_sample, summarise_samples
from strive.evaluate.results import write_results as write_evaluation
from strive.evaluate.samples import Sample, append_samples
from strive.experiments.ablation import (
    DEFAULT_LAUNCHER,
    Ablation,
    check_folder,
    describe,
    evaluate_arguments,
    evaluate_launcher,
    parse_launcher,
    plan_ablation,
    run_items,
    train_arguments,
)
from strive.experiments.ablation_results import collect_results
from strive.experiments.children import Children, last_line
from strive.experiments.workspace import Workspace

LAB = Given(["lab"])
GRPO_STRIVE_M4 = ["table2_grpo", "table2_importance_sim_spatial", "table5_m4_g2"]


def plan(out: Path, table: int | None = 5, given: Given = LAB, **settings: Any) -> Ablation:
    defaults: dict[str, Any] = {"cells": (), "asked": {}, "num_seeds": 2}
    return plan_ablation(table=table, given=given, out=out, **{**defaults, **settings})


# --- which cells ---------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ABLATIONS)
def test_a_table_has_the_papers_rows_in_its_order(table: int, tmp_path: Path) -> None:
    made = plan(tmp_path, table)
    assert [cell.title for cell in made.cells] == [r.name for r in ABLATIONS[table].rows.values()]
    baseline = made.cells[made.baseline]
    assert baseline.title == "LLaVA-OV-0.5B" if table == 4 else baseline.config.variants == "none"
    assert all(cell.on_lab for cell in made.cells)


def test_published_averages_are_those_of_their_figures() -> None:
    for table in ABLATIONS.values():
        for row in table.rows.values():
            assert row.mean_percent is not None
            mean = sum(row.accuracy_percent[name] for name in FOUR) / 4
            assert row.mean_percent == pytest.approx(mean, abs=0.051), row.name


def test_cells_on_the_lab_are_the_labs_own_presets() -> None:
    grpo = load_config(TrainConfig, ["table5_m1_g8", "lab"])
    assert grpo == load_config(TrainConfig, ["lab_grpo"])
    sim = load_config(TrainConfig, ["table2_importance_sim", "lab"])
    assert sim == load_config(TrainConfig, ["lab_strive"], ["scorer=llava_ov"])


def test_a_cell_of_several_tables_has_one_folder(tmp_path: Path) -> None:
    assert [cell.folder.name for cell in plan(tmp_path).cells] == GRPO_STRIVE_M4
    # On any model, and whatever is laid over all cells.
    for given in (Given(), Given(["lab"], ["beta=0.1", "num_questions=8"], {"steps": 3})):
        assert [cell.folder.name for cell in plan(tmp_path, 5, given).cells] == GRPO_STRIVE_M4
    folders = [cell.folder.name for cell in plan(tmp_path, 3).cells]
    assert folders == [*GRPO_STRIVE_M4[:2], "table3_dr_grpo", "table3_strive_dr_grpo"]
    assert plan(tmp_path, 4).cells[2].folder.name == GRPO_STRIVE_M4[1]


def test_cells_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: lab_strive\nbeta: 0.5\n")
    own = str(tmp_path / "mine.yaml")
    made = plan(tmp_path / "out", None, cells=["lab_grpo", own])
    assert [cell.folder.name for cell in made.cells] == ["table2_grpo", "mine"]
    assert (made.name, made.baseline) == ("cells", 0)
    # The cache may hold several scorers: the cell says which is its own.
    assert made.cells[1].config.scorer == "siglip2" and made.cells[1].config.beta == 0.5
    words = train_arguments(made.items[3], Workspace(tmp_path))
    assert words[:5] == ["train", "--config", own, "--config", "lab"]
    assert words[5:9] == ["--set", "scorer=siglip2", "--set", "seed=1"]


def test_methods_are_cells_on_the_lab(tmp_path: Path) -> None:
    made = plan(tmp_path, None, cells=["grpo", "gspo", "strive"])
    assert all(cell.on_lab and cell.config.steps == 150 for cell in made.cells)
    # As the lab has them, two are the paper's rows.
    folders = [cell.folder.name for cell in made.cells]
    assert folders == ["table2_grpo", "gspo", "table2_importance_sim_spatial"]
    assert [cell.config.minibatches_per_rollout for cell in made.cells] == [1, 4, 1]


def test_a_layer_that_a_cell_extends_leaves_what_the_cell_changes_of_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: lab_strive\nsteps: 7\n")
    own = str(tmp_path / "mine.yaml")
    assert plan(tmp_path, None, cells=["lab_grpo", own]).cells[1].config.steps == 7
    # An option of the call still wins.
    given = Given(["lab"], [], {"steps": 3})
    assert plan(tmp_path, None, given, cells=["lab_grpo", own]).cells[1].config.steps == 3


def test_items_go_seed_by_seed(tmp_path: Path) -> None:
    items = plan(tmp_path).items
    assert [item.index for item in items] == list(range(6))
    assert [item.seed for item in items] == [0, 0, 0, 1, 1, 1]
    assert items[4].folder == tmp_path / GRPO_STRIVE_M4[1] / "seed-1"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"table": None}, "--table 2, 3, 4 or 5, or --cells"),
        ({"table": 5, "cells": ["lab_grpo"]}, "one of the two"),
        ({"table": 1}, "--table is 1; 2, 3, 4 and 5"),
        ({"given": Given(["lab"], ["seed=4"])}, "say how many: --seeds"),
        ({"given": Given(["lab"], ["betta=1"])}, "did you mean 'beta'"),
        ({"given": Given(["lab_strive"])}, "table5_m2_g4 and table5_m4_g2 are one configuration"),
        ({"table": None, "cells": ["table2_grpo", "table3_grpo"]}, "are one configuration"),
        ({"table": None, "cells": ["lab_gripo"]}, "did you mean 'lab_grpo'"),
    ],
)
def test_wrong_calls_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, MissingInputError), match=words):
        plan(tmp_path, **{"table": 5, **settings})


def test_two_files_of_one_name_do_not_share_a_folder(tmp_path: Path) -> None:
    for place, beta in (("a", 0.1), ("b", 0.2)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x.yaml").write_text(f"extends: lab_grpo\nbeta: {beta}\n")
    names = [str(tmp_path / place / "x.yaml") for place in "ab"]
    with pytest.raises(ConfigError, match="would share the folder"):
        plan(tmp_path, None, cells=names)


# --- an item's folder and commands ----------------------------------------------------------------


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    made, place = plan(tmp_path), Workspace(tmp_path)
    item = made.items[0]
    described = describe(item, made, place) | {"world": "a" * 64}
    check_folder(item, described)  # nothing there
    item.folder.mkdir(parents=True)
    (item.folder / "cell.json").write_text(json.dumps(described))
    check_folder(item, described)
    check_folder(item, described | {"world": None})  # there is no lab to compare with
    with pytest.raises(ConfigError, match="the lab's world: there aaaaaaaa, here bbbbbbbb"):
        check_folder(item, described | {"world": "b" * 64})
    longer = plan(tmp_path, given=Given(["lab"], [], {"steps": 3}))
    with pytest.raises(ConfigError, match=r"\(steps: there 150, here 3\); give another --out"):
        check_folder(longer.items[0], describe(longer.items[0], longer, place))
    other = replace(made, asked={"num_frames": 8, "data_root": tmp_path})
    asked = describe(item, other, place)
    check_folder(item, asked)  # nothing was answered yet
    item.answers.mkdir()
    with pytest.raises(ConfigError, match=r"asked for otherwise \(num_frames: there 32, here 8\)"):
        check_folder(item, asked)
    (item.folder / "cell.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not say what the folder holds"):
        check_folder(item, described)


def test_commands_hand_on_what_the_call_says(tmp_path: Path) -> None:
    given = Given(["lab"], ["beta=0"], {"steps": 20})
    asked = {"benchmarks": ["mmvu", "lab@5"], "data_root": Path("data"), "num_frames": 8}
    made = plan(tmp_path / "out", given=given, asked=asked)
    item, place = made.items[1], Workspace(tmp_path)
    run, answers = str(item.run), str(item.answers)
    words = [
        *("train", "--config", "table5_m2_g4", "--config", "lab", "--set", "beta=0"),
        *("--set", "seed=0", "--steps", "20", "--workspace", str(tmp_path), "--run-dir", run),
    ]
    assert train_arguments(item, place) == words
    item.run.mkdir(parents=True)
    assert train_arguments(item, place) == [*words, "--resume"]
    assert evaluate_arguments(item, place, asked) == [
        *("evaluate", "--model", f"{run}/final", "--benchmark", "mmvu", "--benchmark", "lab@5"),
        *("--data-root", "data", "--frames", "8", "--max-new-tokens", "64"),
        *("--workspace", str(tmp_path), "--out", answers),
    ]


def test_torchrun_starts_evaluate_too() -> None:
    torchrun = parse_launcher("torchrun --nproc_per_node 8 -m strive.cli")
    assert torchrun == ("torchrun", "--nproc_per_node", "8", "-m", "strive.cli")
    assert evaluate_launcher(torchrun) == torchrun
    deepspeed = parse_launcher("deepspeed --no_local_rank --module strive.cli")
    assert evaluate_launcher(deepspeed) == parse_launcher(None) == DEFAULT_LAUNCHER
    with pytest.raises(ConfigError, match="No closing quotation"):
        parse_launcher("torchrun '")


# --- processes ------------------------------------------------------------------------------------


def test_children_log_what_they_print_and_tell_how_they_end(tmp_path: Path) -> None:
    children, log = Children(os.environ), tmp_path / "log.txt"
    code = "import sys; print('error: first'); print('then'); sys.exit(3)"
    assert children.run([sys.executable, "-c", code], log) == 3
    assert last_line(log) == "error: first"
    assert children.run([sys.executable, "-c", "import os; os.abort()"], log) == -signal.SIGABRT
    with pytest.raises(MissingInputError, match=r"cannot start '/no/such/program'.*--launcher"):
        children.run(["/no/such/program"], log)
    children.stop()
    with pytest.raises(Interrupted):
        children.run([sys.executable, "-c", ""], log)


PARENT = """
import os, sys
from pathlib import Path
from strive.experiments.children import Children
code = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
Children(os.environ).run([sys.executable, "-c", code], Path(sys.argv[1]))
"""


@pytest.mark.long
def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(log)])
    while not (log.is_file() and log.read_text().endswith("\n")):
        assert parent.poll() is None
        time.sleep(0.05)
    child = Path(f"/proc/{int(log.read_text())}")
    assert child.is_dir()
    parent.kill()
    parent.wait()
    while child.is_dir() and "\nState:\tZ" not in (child / "status").read_text():
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.parametrize(("exit_code", "num_failed"), [(1, 3), (2, 1)])
def test_a_failed_cell_leaves_the_others_going_and_a_wrong_call_does_not(
    tmp_path: Path, exit_code: int, num_failed: int
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cache.json").write_text("{}")
    given = Given([], [f"cache={tmp_path / 'cache'}"])
    made = plan(tmp_path / "out", given=given, num_seeds=1)
    code = f"print('error: broken'); raise SystemExit({exit_code})"
    launcher = (sys.executable, "-c", code)
    failed = run_items(made, made.items, Workspace(tmp_path), launcher=launcher, workers=1)
    log = made.items[0].folder / "log.txt"
    assert failed[0].message == f"exit code {exit_code}, error: broken ({log})"
    assert [failure.item.index for failure in failed] == list(range(num_failed))
    assert collect_results(made).num_missing == 3


# --- results --------------------------------------------------------------------------------------


def answer(benchmark: str, number: int, right: bool) -> Sample:
    """The answer to one of two questions about a video."""
    made = Sample(
        benchmark=benchmark,
        question_id=str(number),
        prompt_hash="p",
        video_id=f"{number // 2}.mp4",
        cluster=str(number // 2),
        problem_type="multiple choice",
        kind="count",
        prompt="Which?",
        solution="<answer>B</answer>",
        source_index=(0,),
        evidence_seen=None,
        output=f"<answer>{'B' if right else 'A'}</answer>",
        num_tokens=3,
        truncated=False,
        dimensions={},
    )
    return grade_sample(made, PlainRecords(), "video_r1")


def finish(made: Ablation, num_right: dict[tuple[int, int], dict[str, int]]) -> None:
    """Leave results of cells and seeds: of ten questions a benchmark so many are right."""
    for item in made.items:
        counts = num_right.get((made.cells.index(item.cell), item.seed))
        if counts is None:
            continue
        samples = [answer(name, n, n < right) for name, right in counts.items() for n in range(10)]
        item.answers.mkdir(parents=True)
        append_samples(item.answers / "samples.jsonl", samples)
        results = summarise_samples(
            dict.fromkeys(counts, BENCHMARKS["lab"]), samples, [], settings={"model": "m"},
            versions={}, grading="video_r1", num_resumed=0, seconds=1.0,
        )  # fmt: skip
        write_evaluation(item.answers, results)


@pytest.fixture
def one_benchmark(tmp_path: Path) -> Ablation:
    """GRPO 40 and 60 %, STRIVE 60 and 70 %, of M=4 one seed alone: 50 %."""
    made = plan(tmp_path / "out")
    right = {(0, 0): 4, (0, 1): 6, (1, 0): 6, (1, 1): 7, (2, 0): 5}
    finish(made, {key: {"lab": count} for key, count in right.items()})
    return made


def terminal(made: Ablation, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    print_results(collect_results(made), console)
    return console.export_text()


def test_means_and_paired_differences_over_seeds(one_benchmark: Ablation) -> None:
    results = collect_results(one_benchmark)
    grpo, strive, m4 = results.cells
    assert (results.baseline, results.num_missing) == ("M=1, G=8", 1)
    assert strive.seeds == (0, 1) and m4.seeds == (0,)
    # 60 and 70: deviation 7.071, error 5; t(0.975; 1 degree of freedom) = 12.706.
    accuracy = strive.accuracy["lab"]
    assert accuracy.value == pytest.approx(65) and accuracy.standard_error == pytest.approx(5)
    assert accuracy.high == pytest.approx(65 + 5 * 12.706, abs=0.01)
    # 60 - 40 and 70 - 60: mean 15, error 5.
    assert strive.difference is not None and grpo.difference is None
    assert strive.difference.difference == pytest.approx(15)
    assert strive.difference.standard_error == pytest.approx(5)
    assert strive.comparisons["lab"].over_seeds == strive.difference
    # One seed: 50 - 40, and no interval.
    assert m4.difference is not None and m4.difference.difference == pytest.approx(10)
    assert m4.difference.low != m4.difference.low
    # 58.0 - 57.0 in the paper.
    assert strive.published_difference == 1.0


def test_the_average_is_over_benchmarks(tmp_path: Path) -> None:
    made = plan(tmp_path / "out", num_seeds=1)
    counts = {0: (4, 8), 1: (7, 9), 2: (5, 5)}
    finish(made, {(c, 0): {"videomme": a, "mmvu": b} for c, (a, b) in counts.items()})
    results = collect_results(made)
    assert [cell.mean and cell.mean.value for cell in results.cells] == pytest.approx([60, 80, 50])
    assert [c.difference and c.difference.difference for c in results.cells] == [
        None, pytest.approx(20), pytest.approx(-10)
    ]  # fmt: skip
    assert list(results.cells[1].comparisons) == ["videomme", "mmvu"]
    text = markdown_text(results)
    assert "| M=2, G=4 | 70.0 | 90.0 | 80.0 | +20.0 | 1/1 | 58.2 | 35.2 | 73.1 | 65.4 |" in text
    assert "there is no interval between seeds" in text and "Avg: plain mean of" in text


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminals_table_fits(one_benchmark: Ablation, tmp_path: Path, width: int) -> None:
    text = terminal(one_benchmark, width)
    table = text.partition("- 1 of 6 runs")[0]
    assert max(map(len, table.splitlines())) <= width and "…" not in text
    assert "58.2" in table and "baseline" in table
    assert "1 of 6 runs are missing" in text and "arXiv:2604.01824, Table 5" in text
    several = plan(tmp_path / "several", 2)
    four = dict.fromkeys(FOUR, 5)
    finish(several, {(c, s): four | {"mmvu": 4 + s} for c in range(6) for s in range(2)})
    text = terminal(several, width)
    table = text.partition("- accuracy in percent")[0]
    assert max(map(len, table.splitlines())) <= width and "…" not in text
    assert "35.2" in table


def test_what_is_missing_is_a_dash(tmp_path: Path) -> None:
    made = plan(tmp_path / "out")
    for width in (80, 160):
        assert "6 of 6 runs are missing" in terminal(made, width)
    finish(made, {(0, 0): {"lab": 4}})
    lines = markdown_text(collect_results(made)).splitlines()
    assert "| M=1, G=8 | 40.0 | baseline | 1/2 | 58.0 | 32.5 | 72.1 | 65.3 | 57.0 | – |" in lines
    assert "| M=2, G=4 | – | – | 0/2 | 58.2 | 35.2 | 73.1 | 65.4 | 58.0 | +1.0 |" in lines


def test_the_three_files(one_benchmark: Ablation) -> None:
    write_results(one_benchmark)
    out = one_benchmark.out
    latex = (out / "table5.tex").read_text()
    assert latex == latex_text(collect_results(one_benchmark)) + "\n"
    row = r"M=2, G=4 & 65.0 $\pm$ 63.5 & +15.0 $\pm$ 63.5 & 2/2 & 58.2 & 35.2 & 73.1 & 65.4 & 58.0"
    assert row in latex and latex.count(r"\\") == 4
    found = json.loads((out / "table5.json").read_text())
    assert found["cells"][1]["per_seed"] == {"lab": [60.0, 70.0]}
    assert found["cells"][2]["difference"]["low"] is None  # of one seed
    assert found["cells"][1]["published"]["mean_percent"] == 58.0
    assert "**Table 5: Visual variants" in (out / "table5.md").read_text()


def test_own_cells_have_no_published_columns(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: lab_strive\nbeta: 0.5\n")
    made = plan(tmp_path / "out", None, cells=["lab_grpo", str(tmp_path / "mine.yaml")])
    finish(made, {(0, 0): {"lab": 4}, (1, 0): {"lab": 5}})
    text = markdown_text(collect_results(made))
    assert "| mine | 50.0 | +10.0 | 1/2 |" in text and "\\*" not in text


# --- the command ----------------------------------------------------------------------------------


def test_list_shows_each_run_and_whether_it_is_done(
    one_benchmark: Ablation, tmp_path: Path
) -> None:
    options = ["ablate", "--table", "5", "--seeds", "2", "--out", str(one_benchmark.out)]
    options += ["--workspace", str(tmp_path)]
    result = CliRunner().invoke(app, [*options, "--list", "--json"])
    rows = json.loads(result.stdout)
    assert [row["done"] for row in rows] == [True] * 4 + [True, False]
    assert rows[5] == {
        "index": 5,
        "cell": "table5_m4_g2",
        "seed": 1,
        "folder": str(one_benchmark.out / "table5_m4_g2" / "seed-1"),
        "done": False,
    }
    assert "table5_m2_g4" in CliRunner().invoke(app, [*options, "--list"]).stdout
    # What is done is not run again, and is shown as it is.
    shown = CliRunner().invoke(app, [*options, "--cell", "4", "--json"])
    assert json.loads(shown.stdout)[0]["done"] is True, shown.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--table", "5", "--cell", "9"], "--cell is 9; this call has runs 0 to 8"),
        (["--table", "5", "--benchmark", "mmvu"], "--benchmark mmvu: give the folder"),
        (["--table", "5", "--markdown", "--json"], "exclude one another"),
        (["--table", "5", "--benchmark", "nope"], "unknown benchmark 'nope'"),
        (["table5"], "ablate takes no 'table5'"),
    ],
)
def test_wrong_options_are_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["ablate", *arguments, "--workspace", str(tmp_path)])
    assert words in str(result.exception)
    assert list(tmp_path.iterdir()) == []
