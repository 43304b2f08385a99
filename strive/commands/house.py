"""`demo`, `doctor` and `lab`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from strive.commands.common import (
    LAB,
    JsonOption,
    WorkspaceOption,
    find_workspace,
    make_console,
    option,
    print_json,
    print_result,
    say,
    show,
)
from strive.files import plain_json
from strive.progress import show_progress, size_text
from strive.report.format import titled_table

MARKS = {"ok": "[green]ok[/]", "optional": "[yellow]optional[/]", "missing": "[red]missing[/]"}
SHOWN_MEASURES = ("auc", "accuracy_uniform", "accuracy_evidence", "accuracy_blank")
"""Of all that a recipe measured on held-out clips: what says whether the frames matter."""


def demo(
    steps: Annotated[int, option("Training steps of each of the two runs.", min=1)] = 150,
    clips: Annotated[
        int | None, option("Clips of the lab's world.", default="those there, else 400", min=10)
    ] = None,
    seed: Annotated[int, option("Seed of both runs.")] = 0,
    html: Annotated[
        Path | None, option("Report page.", default="WORKSPACE/demo/report.html")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """The whole way on the lab: GRPO and STRIVE, one report."""
    from strive.experiments.demo import run_demo

    say(LAB)
    place = find_workspace(workspace)
    run_demo(
        place,
        steps=steps,
        num_clips=clips,
        seed=seed,
        html=html or place.root / "demo" / "report.html",
        console=make_console(),
    )


def doctor(as_json: JsonOption = False) -> None:
    """What this machine has and lacks, with the fix."""
    from strive.doctor import CHECKS, Finding

    findings: list[Finding] = []
    with show_progress("looking", len(CHECKS), "checks") as progress:
        for what, check in CHECKS.items():
            progress.note(what)
            progress.advance()
            findings += check()
        progress.note()
    print_result(findings, print_findings, as_json=as_json)
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(1)


def print_findings(findings: list[Any], console: Console) -> None:
    """Print what was found, and what this machine is and is not ready for."""
    from strive.doctor import verdict

    table = titled_table("", ("what", "", "found", "fix"), box=None, pad_edge=False)
    for finding in findings:
        table.add_row(finding.what, MARKS[finding.status], finding.found, finding.fix)
    console.print(table)
    ready, not_ready = verdict(findings)
    console.print(f"Ready: {', '.join(ready) or 'nothing'}.", markup=False)
    for use, reason in not_ready.items():
        console.print(f"Not ready: {use}, because {reason}.", markup=False)


def lab_build(
    clips: Annotated[
        int | None, option("Clips; each has four questions.", default="400", min=5)
    ] = None,
    seed: Annotated[int | None, option("Seed of everything that is drawn.", default="0")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the lab's clips and records into the workspace."""
    from strive.experiments.workspace import ensure_lab

    world = ensure_lab(find_workspace(workspace), num_clips=clips, seed=seed)
    if as_json:
        print_json(plain_json(world))
        return
    say("built" if world.was_built else "already there")
    counts = ", ".join(f"{split} {count}" for split, count in world.num_questions.items())
    show(f"{world.root}: {world.num_clips} clips, questions: {counts}")


def lab_claims(
    stages: Annotated[
        list[str] | None,
        option(
            "Part of the plan: primary, power (more seeds of its contrasts), dose, rate, compute, "
            "exploratory, methods. Repeatable.",
            "--stage",
            default="primary",
        ),
    ] = None,
    runs: Annotated[
        int | None, option("At most so many runs in this call.", default="all", min=0)
    ] = None,
    workers: Annotated[int, option("Runs at a time.", min=1)] = 2,
    results: Annotated[Path, option("Folder of the kept results.")] = Path("docs/lab-results"),
    page: Annotated[Path, option("Page that is made of them.")] = Path("docs/lab-results.md"),
    page_only: Annotated[
        bool, option("Make the page again and run nothing.", "--page-only")
    ] = False,
    clips: Annotated[
        int | None, option("Fewer clips, to try the machinery.", default="2500", min=10)
    ] = None,
    steps: Annotated[
        int | None, option("Fewer steps, to try the machinery.", default="150", min=2)
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """The pre-registered test of the paper's claims on the lab.

    Runs that are kept are not made again: the same command goes on where it stopped.
    """
    from strive.experiments.claims.page import write_page
    from strive.experiments.claims.plan import NUM_CLIPS, STEPS, left_cells
    from strive.experiments.claims.results import read_runs
    from strive.experiments.claims.runs import freeze, prepare_scores, run_plan
    from strive.experiments.workspace import Workspace

    cells = left_cells(stages or ["primary"], read_runs(results))[:runs]
    if cells and not page_only:
        # A world of its own: the demonstration's is smaller.
        place = Workspace(find_workspace(workspace).root / "claims")
        lab = freeze(place, results, num_clips=clips or NUM_CLIPS, steps=steps or STEPS)
        prepare_scores(lab, cells)
        for result in run_plan(lab, cells, workers=workers):
            say(f"{result.cell.name}: {result.accuracy:.1%} of {result.num_questions}")
    show(f"page: {write_page(results, page)}")


def lab_list(as_json: JsonOption = False) -> None:
    """The lab's models, and what was measured of them."""
    from strive.lab.models import describe

    print_result(describe(), print_models, as_json=as_json)


def print_models(models: list[Any], console: Console) -> None:
    """Print a line a model of the lab."""
    headings = ("name", "size", "what it is", "measured when it was made")
    table = titled_table("", headings, box=None, pad_edge=False)
    for model in models:
        found = model.recipe.get("measured", {})
        measured = ", ".join(
            f"{key.replace('_', ' ')} {found[key]:.3f}" for key in SHOWN_MEASURES if key in found
        )
        table.add_row(f"lab:{model.name}", size_text(model.size_bytes), model.about, measured)
    console.print(table)
