"""Tables 2 to 5 of the paper, or cells of one's own: what is run, and where.

A cell is a training configuration, an item a cell with a seed. Under the output folder:

    CELL/seed-0/cell.json   what the item is: its configuration, how it is asked
    CELL/seed-0/run/        the folder of `train`
    CELL/seed-0/answers/    the folder of `evaluate`; with its results.json the item is done
    CELL/seed-0/log.txt     what both printed

Cells of several tables that are one configuration have one folder.
"""

import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strive.configs.keys import option_of
from strive.configs.load import Given, build_config, merge_layers, parse_override
from strive.configs.schema import Config, EvaluateConfig, PrecomputeConfig, TrainConfig
from strive.errors import ConfigError, Interrupted
from strive.evaluate.paper_rows import ABLATIONS, PublishedAblation, PublishedRow
from strive.experiments.children import INTERRUPTED, Children, last_line
from strive.experiments.evaluating import MAX_ANSWER_TOKENS
from strive.experiments.offline import POLICY_SCORERS, reads_scores, resolve
from strive.experiments.training import LAB_PRESET, means_lab, resolve_config
from strive.experiments.workspace import Workspace, ensure_lab
from strive.files import wait_for_lock, write_atomically
from strive.lab.world import read_world
from strive.progress import say, show_progress
from strive.train.run_folder import RunFolder

DEFAULT_SEEDS = 3
DEFAULT_LAUNCHER = (sys.executable, "-m", "strive.cli")
ASKED = ("benchmarks", "protocol", "num_frames")
"""Keys of `EvaluateConfig` by which answers differ; those of places may change."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of a table."""

    name: str
    """The preset or file."""
    title: str
    """As the paper calls it, else its name."""
    given: Given
    """The layers of its configuration: its own file first."""
    config: TrainConfig
    """What they resolve to, at seed 0."""
    on_lab: bool
    folder: Path
    published: PublishedRow | None


@dataclass(frozen=True, slots=True)
class Item:
    """One training and its evaluation."""

    index: int
    """In the list of all items, from 0."""
    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        """`table5_m2_g4, seed 1`."""
        return f"{self.cell.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """What belongs to it alone."""
        return self.cell.folder / f"seed-{self.seed}"

    @property
    def run(self) -> Path:
        """Its run folder."""
        return self.folder / "run"

    @property
    def answers(self) -> Path:
        """Its evaluation's folder."""
        return self.folder / "answers"

    @property
    def is_done(self) -> bool:
        """Whether its results are there."""
        return (self.answers / "results.json").is_file()


@dataclass(frozen=True, slots=True)
class Ablation:
    """A table to be run."""

    name: str
    """`table5`, or `cells` for a user's own."""
    out: Path
    cells: tuple[Cell, ...]
    baseline: int
    """Place of the cell that the others are compared with."""
    num_seeds: int
    asked: Mapping[str, Any]
    """Keys of `EvaluateConfig` that the call gives."""
    published: PublishedAblation | None

    @property
    def items(self) -> list[Item]:
        """All items, seed by seed, so that wherever the work stops each cell has as many."""
        pairs = [(cell, seed) for seed in range(self.num_seeds) for cell in self.cells]
        return [Item(index, cell, seed) for index, (cell, seed) in enumerate(pairs)]


# --- which cells ---------------------------------------------------------------------------------


def plan_ablation(
    *,
    table: int | None,
    cells: Sequence[str],
    given: Given,
    asked: Mapping[str, Any],
    num_seeds: int,
    out: Path,
) -> Ablation:
    """Return what a call wants to run; nothing is read but configurations.

    Args:
        table: 2, 3, 4 or 5; None with `cells`.
        cells: presets or YAML files, the baseline first; empty with `table`.
        given: the layers over each cell's own file.
        asked: keys of `EvaluateConfig` that the call gives.
        num_seeds: seeds 0 to num_seeds - 1.
        out: the output folder.

    Raises:
        ConfigError: neither or both of `table` and `cells`, no such table, a configuration that is
            wrong, or two cells that are one configuration.
        MissingInputError: a cell is neither a preset nor a file.
    """
    if (table is None) == (not cells):
        raise ConfigError(
            "give --table 2, 3, 4 or 5, or --cells A,B,... with presets or files of your own: "
            "one of the two"
        )
    if table is not None and table not in ABLATIONS:
        raise ConfigError(f"--table is {table}; 2, 3, 4 and 5 are the paper's ablations")
    if any(parse_override(text)[0] == ["seed"] for text in given.overrides):
        raise ConfigError("--set seed and ablate: it trains seeds 0, 1, ...; say how many: --seeds")
    published = ABLATIONS[table] if table is not None else None
    names = list(published.rows) if published else list(cells)
    known = _known_cells(given)
    made = [_make_cell(name, given, known, out) for name in names]
    for number, cell in enumerate(made):
        for other in made[:number]:
            if other.folder == cell.folder:
                raise _same_folder(other, cell)
    return Ablation(
        name=f"table{table}" if published else "cells",
        out=out,
        cells=tuple(made),
        baseline=names.index(published.baseline) if published else 0,
        num_seeds=num_seeds,
        asked=asked,
        published=published,
    )


def _make_cell(name: str, given: Given, known: Mapping[str, TrainConfig], out: Path) -> Cell:
    layers, config = _resolve_layers(name, given)
    rows = {preset: row for table in ABLATIONS.values() for preset, row in table.rows.items()}
    # The first of the paper's cells that is this configuration.
    same = next((preset for preset, other in known.items() if other == config), None)
    published = rows.get(name)
    return Cell(
        name=name,
        title=published.name if published else Path(name).stem,
        given=layers,
        config=config,
        on_lab=means_lab(layers.files, merge_layers(TrainConfig, *layers)),
        folder=out / (same or Path(name).stem),
        published=published,
    )


def _resolve_layers(name: str, given: Given) -> tuple[Given, TrainConfig]:
    """Lay a call's configuration over a cell's file."""
    layers = Given([name, *given.files], given.overrides, given.options)
    values = merge_layers(TrainConfig, *layers)
    config = build_config(TrainConfig, {**values, "seed": 0})
    if config.scorer is None and reads_scores(config) and means_lab(layers.files, values):
        # A run takes the cache's only scorer; here the cache may hold those of other cells.
        scorer = PrecomputeConfig.model_fields["scorers"].default[0]
        layers = layers._replace(overrides=[*layers.overrides, f"scorer={scorer}"])
        config = config.model_copy(update={"scorer": scorer})
    return layers, config


def _known_cells(given: Given) -> dict[str, TrainConfig]:
    """The paper's cells in the order of its tables, as far as they go with a configuration."""
    known = {}
    for table in ABLATIONS.values():
        for preset in table.rows:
            try:
                known[preset] = _resolve_layers(preset, given)[1]
            except ConfigError:
                # Such as --set num_variants=4 with GRPO: no cell of this call is that one.
                continue
    return known


def _same_folder(first: Cell, second: Cell) -> ConfigError:
    if first.config == second.config:
        return ConfigError(
            f"cells {first.name} and {second.name} are one configuration under this call's "
            "--config and --set, which must leave what the cells differ in as it is"
        )
    return ConfigError(
        f"cells {first.name} and {second.name} would share the folder {first.folder}; name their "
        "files differently"
    )


# --- what an item is ------------------------------------------------------------------------------


def describe(item: Item, ablation: Ablation, workspace: Workspace) -> dict[str, Any]:
    """Return what `cell.json` says of an item; the world is None where the lab is not meant."""
    world = read_world(workspace.lab) if item.cell.on_lab else None
    config = item.cell.config.model_copy(update={"seed": item.seed})
    asked = build_config(EvaluateConfig, ablation.asked).model_dump(mode="json")
    return {
        "train": config.model_dump(mode="json"),
        "world": world.content_hash if world else None,
        "evaluate": {key: asked[key] for key in ASKED},
    }


def check_folders(ablation: Ablation, workspace: Workspace) -> None:
    """Refuse folders that hold something else than the items of a table.

    Raises:
        ConfigError: one does.
    """
    for item in ablation.items:
        check_folder(item, describe(item, ablation, workspace))


def check_folder(item: Item, described: Mapping[str, Any]) -> None:
    """Refuse a folder that holds something else than an item, as `describe` describes it.

    Raises:
        ConfigError: it was trained by another configuration or on another world, or its answers
            were asked for otherwise.
    """
    file = item.folder / "cell.json"
    if not file.is_file():
        return
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        # An item that began before a key existed did what the key's default is.
        train = {**TrainConfig().model_dump(mode="json"), **found["train"]}
        world, asked = found["world"], dict(found["evaluate"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file} does not say what the folder holds ({error}); give another --out, or remove "
            f"{item.folder}"
        ) from None
    differing = _differences(train, described["train"])
    if None not in (world, described["world"]) and world != described["world"]:
        differing.append(f"the lab's world: there {world[:8]}, here {described['world'][:8]}")
    if differing:
        raise ConfigError(
            f"{item.folder} holds a run of another configuration ({'; '.join(differing)}); give "
            "another --out, or remove that folder"
        )
    differing = _differences(asked, described["evaluate"])
    if differing and item.answers.is_dir():
        raise ConfigError(
            f"{item.answers} holds answers that were asked for otherwise ({'; '.join(differing)}); "
            "give another --out, or remove that folder"
        )


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Say of each key whose value differs what it is on either side."""
    keys = [*here, *(key for key in there if key not in here)]
    return [
        f"{key}: there {json.dumps(there.get(key))}, here {json.dumps(here.get(key))}"
        for key in keys
        if there.get(key) != here.get(key)
    ]


# --- the commands of an item ----------------------------------------------------------------------


def train_arguments(item: Item, workspace: Workspace) -> list[str]:
    """Return the `train` of an item; it goes on where an earlier one stopped."""
    files, overrides, options = item.cell.given
    return [
        "train",
        *(word for name in files for word in ("--config", name)),
        *(word for text in [*overrides, f"seed={item.seed}"] for word in ("--set", text)),
        *typed_arguments(TrainConfig, options),
        *("--workspace", str(workspace.root), "--run-dir", str(item.run)),
        *(["--resume"] if item.run.is_dir() else []),
    ]


def evaluate_arguments(item: Item, workspace: Workspace, asked: Mapping[str, Any]) -> list[str]:
    """Return the `evaluate` of an item; answers that are there are kept."""
    places = ["--workspace", str(workspace.root), "--out", str(item.answers)]
    longest = ["--max-new-tokens", str(MAX_ANSWER_TOKENS)] if item.cell.on_lab else []
    model = ["--model", str(item.run / "final")]
    return ["evaluate", *model, *typed_arguments(EvaluateConfig, asked), *longest, *places]


def typed_arguments(schema: type[Config], values: Mapping[str, Any]) -> list[str]:
    """Write values of keys as their options; a list repeats its option."""
    return [
        word
        for key, value in values.items()
        for each in (value if isinstance(value, (list, tuple)) else [value])
        for word in (str(option_of(schema, key)), str(each))
    ]


def evaluate_launcher(launcher: Sequence[str]) -> Sequence[str]:
    """Return what starts `evaluate`: torchrun, which divides the questions, or one process."""
    is_torchrun = any(Path(word).name in ("torchrun", "torch.distributed.run") for word in launcher)
    return launcher if is_torchrun else DEFAULT_LAUNCHER


# --- running --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FailedItem:
    """An item whose `train` or `evaluate` ended with an error."""

    item: Item
    exit_code: int
    message: str


def run_items(
    ablation: Ablation,
    items: Sequence[Item],
    workspace: Workspace,
    *,
    launcher: Sequence[str] = DEFAULT_LAUNCHER,
    workers: int | None = None,
) -> list[FailedItem]:
    """Do what is missing of some items, several at a time, and return those that failed.

    After a failure the others are run all the same, unless the call itself is wrong (exit code 2):
    then no more begin. `workers` is 1 with a GPU, else the number of cores, where it is None.

    Raises:
        ConfigError, CacheError: a configuration cannot be run; nothing was started.
        Interrupted: by Ctrl-C; what was running has ended.
    """
    check_folders(ablation, workspace)
    missing = [item for item in items if not item.is_done]
    if not missing:
        return []
    prepare_lab(workspace, [item.cell for item in missing])
    for cell in {item.cell.name: item.cell for item in missing}.values():
        resolve_config(workspace, cell.given)
    check_folders(ablation, workspace)  # again: only now the lab's world is there for sure
    on_gpu = _has_gpu()
    is_launcher = tuple(launcher) != DEFAULT_LAUNCHER
    death_signal = signal.SIGTERM if is_launcher else signal.SIGKILL
    children = Children(_environment(on_gpu), death_signal)
    pool = ThreadPoolExecutor(workers or (1 if on_gpu else _num_cores()))
    failed: list[FailedItem] = []
    is_wrong_call = threading.Event()

    def run(item: Item) -> FailedItem | None:
        if is_wrong_call.is_set():
            return None
        failure = run_item(item, ablation, workspace, children, launcher)
        if failure is not None and failure.exit_code == ConfigError.exit_code:
            is_wrong_call.set()
        return failure

    try:
        with show_progress("ablate", len(missing), "runs") as progress:
            for future in as_completed([pool.submit(run, item) for item in missing]):
                failure = future.result()
                if failure is None:
                    progress.advance(0 if is_wrong_call.is_set() else 1)
                    continue
                say(f"failed: {failure.item.name}: {failure.message}")
                failed.append(failure)
    except BaseException as error:
        children.stop()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(INTERRUPTED) from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return failed


def run_item(
    item: Item,
    ablation: Ablation,
    workspace: Workspace,
    children: Children,
    launcher: Sequence[str],
) -> FailedItem | None:
    """Train and evaluate one item, as far as that is not done; return how it failed.

    Raises:
        Interrupted: the children were stopped.
    """
    with wait_for_lock(item.folder / "cell.lock", lambda num_tries: children.require_going()):
        if item.is_done:  # another call, which had the lock, has done it
            return None
        described = describe(item, ablation, workspace)
        write_atomically(item.folder / "cell.json", json.dumps(described, indent=1) + "\n")
        log = item.folder / "log.txt"
        commands = []
        if not RunFolder(item.run).has_final:
            commands.append([*launcher, *train_arguments(item, workspace)])
        asking = evaluate_arguments(item, workspace, ablation.asked)
        commands.append([*evaluate_launcher(launcher), *asking])
        for command in commands:
            exit_code = children.run(command, log)
            if exit_code:
                signal_name = signal.Signals(-exit_code).name if exit_code < 0 else ""
                how = f"ended by {signal_name}" if signal_name else f"exit code {exit_code}"
                return FailedItem(item, exit_code, f"{how}, {last_line(log)} ({log})")
    return None


def prepare_lab(workspace: Workspace, cells: Sequence[Cell]) -> None:
    """Make the lab's clips, frames and scores that some cells read; one process at a time."""
    configs = [cell.config for cell in cells if cell.on_lab]
    if not configs:
        return
    from strive.pipeline.run import precompute

    scorers = list(dict.fromkeys(str(c.scorer) for c in configs if reads_scores(c)))
    # Frames alone are what a run of GRPO needs.
    options: dict[str, Any] = {"scorers": scorers} if scorers else {"for_config": "lab_grpo"}
    if set(scorers) & set(POLICY_SCORERS):
        options["policy"] = next(c.model for c in configs if c.scorer in POLICY_SCORERS)

    def tell(num_tries: int) -> None:
        if num_tries == 1:
            say("waiting for another process, which makes the lab's clips and scores")

    with wait_for_lock(workspace.root / "lab.lock", tell):
        ensure_lab(workspace)
        precompute(resolve(workspace, Given(options=options)))


def check_asked(asked: Mapping[str, Any]) -> None:
    """Refuse an evaluation that cannot be asked for, before anything is trained.

    Raises:
        ConfigError, UnknownNameError: a wrong value, or no such benchmark.
    """
    from strive.evaluate.benchmarks import parse_spec

    config = build_config(EvaluateConfig, asked)
    for spec in [parse_spec(text) for text in config.benchmarks]:
        if spec.name != LAB_PRESET and spec.root is None and "data_root" not in asked:
            raise ConfigError(
                f"--benchmark {spec.name}: give the folder of its files as {spec.name}:DIR, or "
                "with --data-root DIR"
            )


def parse_launcher(text: str | None) -> tuple[str, ...]:
    """Split `--launcher` into words as a shell does.

    Raises:
        ConfigError: a quotation mark without its other half, or no word.
    """
    if text is None:
        return DEFAULT_LAUNCHER
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"--launcher {text!r}: {error}") from None
    if not words:
        raise ConfigError("--launcher is empty; give a program with its options, or leave it out")
    return words


def _environment(on_gpu: bool) -> dict[str, str]:
    # On a CPU sums differ in their last bits by the number of threads: always one, however many
    # runs there are at a time.
    return {**os.environ, **({} if on_gpu else {"OMP_NUM_THREADS": "1"})}


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
