"""What came of an ablation: each cell over its finished seeds, against the baseline.

All scores are percent (0 to 100), all differences percentage points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from strive.evaluate.compare import SeedComparison, compare_seeds_by_benchmark
from strive.evaluate.paper_rows import PublishedRow
from strive.evaluate.table import PAPER_COLUMNS, Column, make_table
from strive.experiments.ablation import Ablation, Cell, Item
from strive.statistics import Interval, PairedDifference, mean_interval, paired_difference


@dataclass(frozen=True, slots=True)
class CellResults:
    """A cell over its finished seeds."""

    name: str
    title: str
    folder: str
    seeds: tuple[int, ...]
    per_seed: dict[str, tuple[float, ...]]
    """Headline accuracy of each of `seeds`, by benchmark."""
    accuracy: dict[str, Interval]
    """Its mean over seeds with the t interval over them, by benchmark."""
    mean: Interval | None
    """The same of the plain mean over benchmarks; None without a finished seed."""
    difference: PairedDifference | None
    """That mean minus the baseline's, paired by seed; None for the baseline, and without a seed
    that both have."""
    comparisons: dict[str, SeedComparison]
    """Minus the baseline question by question, by benchmark."""
    is_baseline: bool
    published: PublishedRow | None
    published_difference: float | None
    """The published mean minus that of the baseline's row."""


@dataclass(frozen=True, slots=True)
class AblationResults:
    """A table as far as it is done."""

    name: str
    title: str
    source: str | None
    """Where the published figures stand."""
    baseline: str
    """The title of its cell."""
    num_seeds: int
    num_missing: int
    columns: tuple[Column, ...]
    """The benchmarks."""
    cells: tuple[CellResults, ...]
    on_lab: bool

    @property
    def has_published(self) -> bool:
        """Whether any row is the paper's."""
        return any(cell.published is not None for cell in self.cells)


def collect_results(ablation: Ablation) -> AblationResults:
    """Read what is done of a table.

    Raises:
        RecordsError: results or answers are damaged.
    """
    items = ablation.items
    scores: dict[tuple[str, int], dict[str, float]] = {}
    for item in items:
        if item.is_done:
            (row,) = make_table([item.answers], with_published=False).rows
            found = {name: cell.score.accuracy_percent for name, cell in row.cells.items()}
            scores[item.cell.name, item.seed] = found
    names = list(dict.fromkeys(name for found in scores.values() for name in found))
    titles = {column.name: column for column in PAPER_COLUMNS}
    baseline = ablation.cells[ablation.baseline]
    published = ablation.published
    return AblationResults(
        name=ablation.name,
        title=f"Table {published.number}: {published.title}" if published else "Cells",
        source=published.source if published else None,
        baseline=baseline.title,
        num_seeds=ablation.num_seeds,
        num_missing=len(items) - len(scores),
        columns=tuple(titles.get(name, Column(name, name)) for name in names),
        cells=tuple(_cell_results(cell, baseline, names, scores) for cell in ablation.cells),
        on_lab=any(cell.on_lab for cell in ablation.cells),
    )


def _cell_results(
    cell: Cell,
    baseline: Cell,
    names: Sequence[str],
    scores: Mapping[tuple[str, int], Mapping[str, float]],
) -> CellResults:
    seeds = sorted(seed for name, seed in scores if name == cell.name)
    per_seed = {name: tuple(scores[cell.name, seed][name] for seed in seeds) for name in names}

    def average(of: Cell, seed: int) -> float:
        return sum(scores[of.name, seed].values()) / len(names)

    common = [seed for seed in seeds if (baseline.name, seed) in scores and cell is not baseline]
    pairs = [(Item(0, cell, seed).answers, Item(0, baseline, seed).answers) for seed in common]
    means = [row.mean_percent for row in (cell.published, baseline.published) if row is not None]
    known = [mean for mean in means if mean is not None]
    return CellResults(
        name=cell.name,
        title=cell.title,
        folder=str(cell.folder),
        seeds=tuple(seeds),
        per_seed=per_seed if seeds else {},
        accuracy={name: mean_interval(values) for name, values in per_seed.items() if seeds},
        mean=mean_interval([average(cell, seed) for seed in seeds]) if seeds else None,
        difference=paired_difference(
            [average(cell, seed) for seed in common], [average(baseline, seed) for seed in common]
        )
        if common
        else None,
        comparisons=compare_seeds_by_benchmark(pairs) if pairs else {},
        is_baseline=cell is baseline,
        published=cell.published,
        published_difference=round(known[0] - known[1], 2) if len(known) == 2 else None,
    )
