"""`demo`, `doctor` and `lab`."""

from pathlib import Path
from typing import Annotated

import typer

from strive.commands.common import (
    LAB,
    JsonOption,
    WorkspaceOption,
    find_workspace,
    make_console,
    print_json,
    say,
    show,
)
from strive.files import plain_json

MARKS = {"ok": "[green]ok[/]", "optional": "[yellow]optional[/]", "missing": "[red]missing[/]"}
SHOWN_MEASURES = ("auc", "accuracy_uniform", "accuracy_evidence", "accuracy_blank")
"""Of all that a recipe measured on held-out clips: what says whether the frames matter."""


def demo(
    steps: Annotated[
        int, typer.Option(min=1, help="Training steps of each of the two runs.")
    ] = 150,
    clips: Annotated[
        int | None,
        typer.Option(min=10, help="Clips of the lab's world.  \\[default: those there, else 400]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of both runs.")] = 0,
    html: Annotated[
        Path | None, typer.Option(help="Report page.  \\[default: WORKSPACE/demo/report.html]")
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
    from strive.doctor import CHECKS, examine, verdict
    from strive.progress import show_progress

    with show_progress("looking", len(CHECKS), "checks") as progress:

        def noticing(what: str) -> None:
            progress.note(what)
            progress.advance()

        findings = examine(noticing)
        progress.note()
    if as_json:
        print_json(plain_json(findings))
    else:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for heading in ("what", "", "found", "fix"):
            table.add_column(heading, overflow="fold")
        for finding in findings:
            table.add_row(finding.what, MARKS[finding.status], finding.found, finding.fix)
        console = make_console()
        console.print(table)
        ready, not_ready = verdict(findings)
        console.print(f"Ready: {', '.join(ready) or 'nothing'}.", markup=False)
        for use, reason in not_ready.items():
            console.print(f"Not ready: {use}, because {reason}.", markup=False)
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(1)


def lab_build(
    clips: Annotated[
        int | None,
        typer.Option(min=5, help="Clips; each has four questions.  \\[default: 400]"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of everything that is drawn.  \\[default: 0]")
    ] = None,
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


def lab_list(as_json: JsonOption = False) -> None:
    """The lab's models, and what was measured of them."""
    from strive.lab.models import describe

    models = describe()
    if as_json:
        print_json(plain_json(models))
        return
    from rich.table import Table

    from strive.progress import size_text

    table = Table(box=None, pad_edge=False)
    for heading in ("name", "size", "what it is", "measured when it was made"):
        table.add_column(heading, overflow="fold")
    for model in models:
        found = model.recipe.get("measured", {})
        measured = ", ".join(
            f"{key.replace('_', ' ')} {found[key]:.3f}" for key in SHOWN_MEASURES if key in found
        )
        table.add_row(f"lab:{model.name}", size_text(model.size_bytes), model.about, measured)
    make_console().print(table)
