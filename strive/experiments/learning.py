"""Does reinforcement learning itself work on the lab: several seeds of GRPO and STRIVE.

    python -m strive.experiments.learning --seeds 3 --clips 1300 --markdown docs/lab-results.md

Named beforehand: both arms start from the shipped policy and use the demonstration's presets;
held-out accuracy is that of the last checkpoint (never the best), greedy, uniform 32 frames, on the
test split; the gain is paired by question. Results are written whichever way they fall.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from strive import __version__
from strive.configs.load import Given
from strive.evaluate.compare import SeedComparison, compare_seeds
from strive.evaluate.results import read_results
from strive.experiments.demo import ARMS, UNTRAINED
from strive.experiments.evaluating import EVALUATION_FRAMES, MAX_ANSWER_TOKENS
from strive.experiments.offline import resolve
from strive.experiments.workspace import Workspace, ensure_lab, resolve_model
from strive.lab.models import lab_model_path
from strive.lab.world import WorldSummary
from strive.pipeline.run import precompute
from strive.progress import show
from strive.report.format import markdown_table, replace_section
from strive.report.runs import read_run
from strive.report.tables import accuracy, score_text

SMALLEST_GAIN_POINTS = 3.0
SECTION_START, SECTION_END = "<!-- learning -->", "<!-- /learning -->"


@dataclass(frozen=True)
class Cell:
    """One arm and seed: where its run and its evaluation are."""

    arm: str
    seed: int
    run: Path
    evaluation: Path


def strive_cli(arguments: list[str], log: Path) -> None:
    """Run one command in a process of its own, its output appended to a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out:
        subprocess.run(
            [sys.executable, "-m", "strive.cli", *arguments],
            stdout=out, stderr=subprocess.STDOUT, check=True,
        )  # fmt: skip


def evaluate_model(model: Path, workspace: Workspace, out: Path) -> None:
    """Answer the test questions greedily; answers that are there already are kept."""
    arguments = [
        "evaluate", "--model", str(model), "--data-root", str(workspace.lab), "--out", str(out),
        "--prompt-template", "short", "--frames", str(EVALUATION_FRAMES),
        "--max-new-tokens", str(MAX_ANSWER_TOKENS),
    ]  # fmt: skip
    strive_cli(arguments, out.with_suffix(".log"))


def run_cell(cell: Cell, workspace: Workspace, steps: int) -> None:
    """Train and evaluate one cell, keeping what is there."""
    arguments = [
        "train", "--config", ARMS[cell.arm], "--workspace", str(workspace.root),
        "--run-dir", str(cell.run), "--steps", str(steps), "--set", f"seed={cell.seed}",
    ]  # fmt: skip
    if not (cell.run / "final").is_dir():
        resume = ["--resume"] if cell.run.is_dir() else []
        strive_cli([*arguments, *resume], cell.run.with_suffix(".log"))
    evaluate_model(cell.run / "final", workspace, cell.evaluation)


def run_learning(
    workspace: Workspace, *, num_seeds: int, num_clips: int, steps: int, workers: int
) -> str:
    """Train and evaluate every cell and return the page as Markdown."""
    world = ensure_lab(workspace, num_clips=num_clips, seed=0)
    precompute(resolve(workspace, Given()))
    folder = workspace.root / "learning"
    start = Path(resolve_model("lab:qwen2_5_vl"))
    before = folder / f"{UNTRAINED}-answers"
    evaluate_model(start, workspace, before)
    cells = [
        Cell(arm, seed, folder / f"{arm.lower()}-{seed}", folder / f"{arm.lower()}-{seed}-answers")
        for seed in range(num_seeds)
        for arm in ARMS
    ]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda cell: run_cell(cell, workspace, steps), cells))
    gains = {
        arm: compare_seeds([(cell.evaluation, before) for cell in cells if cell.arm == arm])
        for arm in ARMS
    }
    return _page(world, cells, before, gains, steps)


def _page(
    world: WorldSummary,
    cells: list[Cell],
    before: Path,
    gains: dict[str, SeedComparison],
    steps: int,
) -> str:
    start = accuracy(read_results(before))
    weights = lab_model_path("qwen2_5_vl") / "model.safetensors"
    assert start is not None
    rows = [[f"{UNTRAINED} start", "", score_text(start), "–", "–", "–", "–"]]
    for cell in cells:
        run = read_run(cell.run)
        gain = gains[cell.arm].per_seed[cell.seed]
        rows.append(
            [
                cell.arm,
                str(cell.seed),
                score_text(accuracy(read_results(cell.evaluation))),
                f"{gain.difference:+.1f} ± {gain.standard_error:.1f}",
                f"{run.mean('group/reward_std'):.3f}",
                f"{100 * run.mean('group/zero_std_fraction'):.1f}",
                f"{run.seconds:.0f}",
            ]
        )
    table = markdown_table(
        ("arm", "seed", "accuracy after (%)", "gain (points)", "group reward std",
         "zero-std groups (%)", "seconds"),
        rows,
    )  # fmt: skip
    verdicts = "\n".join(_verdict(arm, gain) for arm, gain in gains.items())
    return _PAGE.format(
        version=__version__,
        day=date.today().isoformat(),
        steps=steps,
        questions=start["num_questions"],
        videos=start["num_videos"],
        frames=EVALUATION_FRAMES,
        num_clips=world.num_clips,
        num_seeds=len(gains[cells[0].arm].per_seed),
        content_hash=world.content_hash[:16],
        weights_hash=sha256(weights.read_bytes()).hexdigest()[:16],
        table=table,
        verdicts=verdicts,
    )


def _verdict(arm: str, gain: SeedComparison) -> str:
    mean = gain.over_questions
    holds = mean.difference >= SMALLEST_GAIN_POINTS and mean.difference > 2 * mean.standard_error
    return (
        f"- **{arm}**: mean gain {mean.difference:+.2f} points, clustered standard error "
        f"{mean.standard_error:.2f} (95 % interval {mean.low:+.2f} to {mean.high:+.2f}); between "
        f"seeds {gain.over_seeds.difference:+.2f} ± {gain.over_seeds.standard_error:.2f}. At least "
        f"{SMALLEST_GAIN_POINTS:.0f} points and more than two standard errors: "
        f"**{'yes' if holds else 'no'}**."
    )


_PAGE = """## Learning

Named beforehand: {num_seeds} seeds each of GRPO (M=1, G=8, uniform frames) and STRIVE (M=2, G=4,
importance) from the demonstration's presets, {steps} steps, the same start and the same questions
in the same order per seed. Accuracy is greedy, uniform {frames} frames, last checkpoint, on
{questions} held-out questions about {videos} videos that no training run saw; ± is one standard
error clustered by video. The gain is paired by question against the start.

World: {num_clips} clips, content hash {content_hash}. Start: `lab:qwen2_5_vl`, weights SHA-256
{weights_hash}. Both were frozen before these runs. Version {version}, {day}. Made
by

    python -m strive.experiments.learning --seeds {num_seeds} --clips {num_clips} --steps {steps}

{table}
{verdicts}

The difference between the two arms is not tested here: that is one of the pre-registered contrasts
and needs its own number of seeds. Higher reward variance is no merit by itself: read it beside
accuracy. Seconds are of two runs at a time on two cores.
"""


def main(
    seeds: Annotated[int, typer.Option(min=2)] = 3,
    clips: Annotated[int, typer.Option(min=10)] = 1300,
    steps: Annotated[int, typer.Option(min=1)] = 150,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 2,
    workspace: Path = Path("strive-workspace/learning"),
    markdown: Path = Path("docs/lab-results.md"),
) -> None:
    """Train and evaluate several seeds of GRPO and STRIVE on the lab; write the page."""
    page = run_learning(
        Workspace(workspace), num_seeds=seeds, num_clips=clips, steps=steps, workers=workers
    )
    text = markdown.read_text(encoding="utf-8") if markdown.is_file() else ""
    # This experiment's section becomes new; notes around it stay.
    section = replace_section(text, SECTION_START, SECTION_END, page.rstrip("\n"))
    markdown.write_text(section, encoding="utf-8")
    show(page)


if __name__ == "__main__":
    typer.run(main)
