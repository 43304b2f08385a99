"""The whole way on the lab: clips, precompute, GRPO and STRIVE, evaluation, one page.

Both runs start from the same policy, see the same questions in the same order, and write 8
completions per question (M=1 x G=8 and M=2 x G=4, Sec. 4.1). Every stage is resumable: the same
command again does only what is missing.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from strive.choices import FramesMode
from strive.configs.load import Given, load_config
from strive.configs.schema import TrainConfig
from strive.errors import CheckpointError
from strive.evaluate.compare import compare
from strive.evaluate.results import read_results
from strive.experiments.evaluating import evaluate_on_lab
from strive.experiments.offline import resolve
from strive.experiments.training import run_training
from strive.experiments.workspace import Workspace, ensure_lab, resolve_model
from strive.pipeline.run import precompute
from strive.report import inspect
from strive.report.inspect_html import question_section
from strive.report.pages import write_page
from strive.report.runs import Run, read_run
from strive.report.tables import (
    EvaluatedModel,
    print_evaluations,
    print_runs,
    render_demo_page,
)

if TYPE_CHECKING:
    from rich.console import Console

ARMS = {"GRPO": "lab_grpo", "STRIVE": "lab_strive"}
UNTRAINED = "untrained"
SHOWN_QUESTIONS = 3
FRAMES_MODES: tuple[FramesMode, ...] = ("uniform", "blank", "evidence")


def run_demo(
    workspace: Workspace,
    *,
    steps: int,
    num_clips: int | None,
    seed: int,
    html: Path,
    console: "Console",
) -> Path:
    """Run every stage into the workspace, print two tables, and write the page.

    Args:
        workspace: where everything goes.
        steps: training steps of each of the two runs.
        num_clips: clips of the world; None: those that are there, else the default.
        seed: seed of both runs.
        html: the page.
        console: where the tables go.

    Raises:
        CheckpointError: an earlier demonstration with other settings lies in the workspace.
    """
    seconds: dict[str, float] = {}
    with _stage("clips", console, seconds):
        num_clips = ensure_lab(workspace, num_clips=num_clips).num_clips
    with _stage("precompute: decode once, score every frame", console, seconds):
        precompute(resolve(workspace, Given()))
    folder = workspace.root / "demo"
    models = {UNTRAINED: Path(resolve_model("lab:qwen2_5_vl"))}
    for name, preset in ARMS.items():
        config = load_config(
            TrainConfig,
            [preset],
            options={
                "model": resolve_model("lab:qwen2_5_vl"),
                "cache": workspace.lab_cache,
                "data": (workspace.lab / "train.jsonl",),
                "steps": steps,
                "seed": seed,
            },
        )
        stage = f"train {name}: M={config.num_variants}, G={config.num_generations}"
        with _stage(stage, console, seconds):
            models[name] = _train(config, workspace, folder / name.lower())
    evaluations = []
    answers = folder / "evaluations"
    with _stage("evaluate", console, seconds):
        for name, model in models.items():
            # Greedy answers on the test split: uniform frames, grey frames, all evidence frames.
            outs = evaluate_on_lab(model, workspace, answers / name.lower(), FRAMES_MODES)
            uniform, blank, evidence = (outs[mode] for mode in FRAMES_MODES)
            before = answers / UNTRAINED / "uniform"
            evaluated = EvaluatedModel(
                name=name,
                results=read_results(uniform),
                change=None if name == UNTRAINED else compare(uniform, before).overall,
                blind=read_results(blank),
                evidence=read_results(evidence),
            )
            evaluations.append(evaluated)
    runs = [read_run(folder / name.lower(), name) for name in ARMS]
    print_runs(runs, console)
    print_evaluations(evaluations, console)
    console.print(
        "One seed of tiny models on synthetic clips: it shows that the way works. It cannot tell "
        "GRPO and STRIVE apart, and says nothing about 7B accuracy. What was registered beforehand "
        "to tell them apart is in docs/lab-results.md.",
        soft_wrap=True,
    )
    page = write_page(html, _page(workspace, runs, evaluations, seconds, num_clips, seed))
    console.print(f"page: {page}", soft_wrap=True)
    return page


@contextmanager
def _stage(name: str, console: "Console", seconds: dict[str, float]) -> Iterator[None]:
    console.print(f"[bold]{name}[/]")
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started
    console.print(f"  {seconds[name]:.1f} s")


def _train(config: TrainConfig, workspace: Workspace, run_dir: Path) -> Path:
    """Train, or go on with, or keep, the run of this folder; returns its final policy."""
    final = run_dir / "final"
    if final.is_dir() and (run_dir / "config.json").is_file():
        found = read_run(run_dir).config
        for key in ("steps", "seed", "num_variants", "num_generations", "learning_rate"):
            if found.get(key) != getattr(config, key):
                raise CheckpointError(
                    f"{run_dir} holds a demonstration with {key}={found.get(key)}, this call has "
                    f"{key}={getattr(config, key)}; give another --workspace or remove that folder"
                )
        return final
    run_training(config, workspace, run_dir=run_dir, resume=run_dir.is_dir())
    return final


def _page(
    workspace: Workspace,
    runs: list[Run],
    evaluations: list[EvaluatedModel],
    seconds: dict[str, float],
    num_clips: int,
    seed: int,
) -> str:
    source = inspect.open_source(workspace.lab_cache, "siglip2")
    summary = inspect.summarise(workspace.lab_cache, "siglip2").scorers[0]
    rows = inspect.select_questions(source, count=SHOWN_QUESTIONS)
    sections = [
        question_section(source, inspect.view_question(source, row.question_id)) for row in rows
    ]
    facts = [
        ("world", f"{num_clips} clips, {summary.num_scored} questions scored"),
        ("scorer", f"siglip2, ROC-AUC {summary.evidence_auc:.3f} for evidence frames"),
        ("effective frames", f"{summary.effective_frames:.2f} a segment at tau 0.4"),
        ("seed", str(seed)),
        *((f"seconds: {name}", f"{value:.1f}") for name, value in seconds.items()),
    ]
    return render_demo_page(runs, evaluations, sections, facts=facts)
