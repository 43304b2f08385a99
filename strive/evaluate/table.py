"""Evaluations on disk as the rows of the paper's Table 1, with what must be known to read them.

A row is one model, asked and graded in one way: folders that hold different benchmarks of it are
joined. All scores are percent (0 to 100).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from strive.errors import ConfigError, RecordsError
from strive.evaluate.paper_rows import SIX, STRIVE_TABLE_1, PublishedTable
from strive.evaluate.results import read_results
from strive.progress import one_line
from strive.statistics import binomial_standard_error

ASKED = (
    "protocol", "prompt_template", "num_frames", "frames_mode", "max_pixels", "max_new_tokens",
    "position_rule",
)  # fmt: skip
"""Settings that must agree for folders to be one row."""


@dataclass(frozen=True, slots=True)
class Column:
    """A benchmark by its name in results, as the table calls it."""

    name: str
    title: str
    sizes: tuple[int, ...] = ()
    """Questions of the whole benchmark; several where its averages are over different ones."""


PAPER_COLUMNS = (
    Column("videomme", "VideoMME", (2700,)),
    Column("vsibench", "VSI-Bench", (5130,)),
    Column("perceptiontest", "PerceptionTest", (19140,)),
    # All four tasks, the three that rules can grade, multiple choice alone.
    Column("tempcompass", "TempCompass", (7540, 5536, 1580)),
    Column("videommmu", "VideoMMMU", (900,)),
    Column("mmvu", "MMVU", (625,)),
)
"""The six of Table 1: the rows that are scored of each, by its published files."""


@dataclass(frozen=True, slots=True)
class Figure:
    """An accuracy with one standard error, NaN where there is none."""

    accuracy_percent: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One benchmark's results for one model."""

    folder: str
    headline: str
    """Name of the average that is shown."""
    score: Figure
    """Its error is clustered by video; of a mean of means by the bootstrap over videos."""
    binomial_standard_error: float
    """As if all questions were independent; NaN for a mean of means."""
    num_questions: int
    num_videos: int
    unparsed_percent: float
    truncated_percent: float
    empty_percent: float
    num_failed: int
    num_failed_videos: int
    failed_count_as_wrong: bool
    """False in results of a version that left failed questions out of the score."""
    absent: tuple[str, ...] = ()
    """Groups of the average that is shown of which no question is there."""
    totals: dict[str, Figure] = field(default_factory=dict)
    """Every average of the benchmark by its name, the one that is shown included."""


@dataclass(frozen=True, slots=True)
class Mean:
    """The plain mean over some of the six benchmarks, and which."""

    score: Figure
    benchmarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One model, asked and graded in one way."""

    name: str
    folders: tuple[str, ...]
    model: str
    model_digest: str | None
    asked: dict[str, Any]
    """Its settings under `ASKED`, and `grading`."""
    cells: dict[str, Cell]
    """By the name of the benchmark."""
    mean: Mean | None
    """None where none of the six is there."""


@dataclass(frozen=True, slots=True)
class EvaluationTable:
    """Rows of evaluations, the published ones, and what must be said of them."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    published: PublishedTable | None
    notes: tuple[str, ...]


def make_table(folders: Sequence[Path], *, with_published: bool = True) -> EvaluationTable:
    """Read evaluations' folders into a table, in the order given.

    Columns are the six of Table 1 where any of them is there, then all others. The published rows
    come with the six only.

    Raises:
        MissingInputError: a folder holds no results.
        RecordsError: results are damaged.
        ConfigError: a folder is named twice.
    """
    if twice := [folder for number, folder in enumerate(folders) if folder in folders[:number]]:
        raise ConfigError(f"{twice[0]} is named twice; name each evaluation's folder once")
    rows = _named([_finished(row) for row in _joined([_read_row(folder) for folder in folders])])
    names = list(dict.fromkeys(name for row in rows for name in row.cells))
    has_paper = any(name in SIX for name in names)
    columns = (
        *(PAPER_COLUMNS if has_paper else ()),
        *(Column(name, name) for name in names if name not in SIX),
    )
    return EvaluationTable(
        columns=columns,
        rows=tuple(rows),
        published=STRIVE_TABLE_1 if has_paper and with_published else None,
        notes=tuple(_notes(rows, columns)),
    )


# --- from folders to rows -----------------------------------------------------------------------


def _read_row(folder: Path) -> Row:
    results = read_results(folder)
    try:
        settings = results["settings"]
        failures = results["failures"]
        asked = {name: settings[name] for name in ASKED if name in settings}
        return Row(
            name=_model_name(settings["model"]),
            folders=(str(folder),),
            model=settings["model"],
            model_digest=settings.get("model_digest"),
            asked={**asked, "grading": results["grading"]},
            cells={
                found["benchmark"]: _read_cell(
                    folder, found, [f for f in failures if f["benchmark"] == found["benchmark"]]
                )
                for found in results["benchmarks"]
            },
            mean=None,
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RecordsError(
            f"{folder / 'results.json'} does not hold an evaluation's results "
            f"({type(error).__name__}: {error}); make them again with the same strive-cli evaluate "
            f"--out {folder}"
        ) from None


def _read_cell(folder: Path, found: dict[str, Any], failures: list[dict[str, Any]]) -> Cell:
    # Results of a version without named averages hold the plain mean alone.
    totals = found.get("totals") or {"accuracy": found["overall"]}
    headline = found.get("headline", "accuracy")
    shown = totals[headline]
    score = _figure(shown)
    is_plain = score.accuracy_percent == _figure(found["overall"]).accuracy_percent
    return Cell(
        folder=str(folder),
        headline=headline,
        score=score,
        binomial_standard_error=(
            100 * binomial_standard_error(score.accuracy_percent / 100, shown["num_questions"])
            if is_plain
            else math.nan
        ),
        num_questions=shown["num_questions"],
        num_videos=shown["num_videos"],
        unparsed_percent=_number(found["unparsed_percent"]),
        truncated_percent=_number(found["truncated_percent"]),
        empty_percent=_number(found["empty_percent"]),
        num_failed=found["num_failed"],
        num_failed_videos=len({failure["video_id"] for failure in failures}),
        failed_count_as_wrong="totals" in found,
        absent=tuple(found.get("absent", {}).get(headline, ())),
        totals={name: _figure(total) for name, total in totals.items()},
    )


def _figure(score: dict[str, Any]) -> Figure:
    return Figure(_number(score["accuracy_percent"]), _number(score["standard_error"]))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _model_name(model: str) -> str:
    """The folder's or hub id's last name; of a run's `final/` or `best/` the run's with it."""
    path = Path(one_line(model))
    return "/".join(path.parts[-2:]) if path.name in ("final", "best") else path.name


def _joined(rows: Sequence[Row]) -> list[Row]:
    """Join rows of one model that were asked in one way and have no benchmark in common."""
    joined: list[Row] = []
    for row in rows:
        for index, other in enumerate(joined):
            is_same_model = (row.model_digest or row.model) == (other.model_digest or other.model)
            if is_same_model and row.asked == other.asked and not row.cells.keys() & other.cells:
                joined[index] = replace(
                    other, folders=other.folders + row.folders, cells=other.cells | row.cells
                )
                break
        else:
            joined.append(row)
    return joined


def _finished(row: Row) -> Row:
    """Add the mean over those of the six that the row has.

    The benchmarks share no video, so that the error of the mean of k is sqrt(sum of squares) / k.
    """
    there = [name for name in SIX if name in row.cells]
    there = [name for name in there if math.isfinite(row.cells[name].score.accuracy_percent)]
    if not there:
        return row
    scores = [row.cells[name].score for name in there]
    mean = Figure(
        sum(score.accuracy_percent for score in scores) / len(scores),
        math.sqrt(sum(score.standard_error**2 for score in scores)) / len(scores),
    )
    return replace(row, mean=Mean(mean, tuple(there)))


def _named(rows: Sequence[Row]) -> list[Row]:
    """Tell rows of one name apart by their first folder."""
    names = [row.name for row in rows]
    return [
        replace(row, name=f"{row.name} ({row.folders[0]})") if names.count(row.name) > 1 else row
        for row in rows
    ]


# --- what must be said ---------------------------------------------------------------------------


def mean_name(mean: Mean) -> str:
    """`Avg` where all six are in it, else what it is the mean of."""
    if set(mean.benchmarks) == set(SIX):
        return "Avg"
    titles = [column.title for column in PAPER_COLUMNS if column.name in mean.benchmarks]
    return f"mean of {len(titles)}: {', '.join(titles)}"


def _notes(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Everything by which a figure is not what its column says; one sentence each."""
    notes = []
    for row in rows:
        if row.mean is not None and len(row.mean.benchmarks) < len(SIX):
            notes.append(f"{row.name}: not the average of the six but the {mean_name(row.mean)}")
    differing = [
        name for name in (*ASKED, "grading") if len({str(row.asked.get(name)) for row in rows}) > 1
    ]
    if differing:
        shown = "; ".join(
            f"{row.name}: " + ", ".join(f"{name} {row.asked.get(name)}" for name in differing)
            for row in rows
        )
        notes.append(f"the rows were not asked or graded in one way ({shown})")
    for column in columns:
        cells = {row.name: row.cells[column.name] for row in rows if column.name in row.cells}
        if len({cell.headline for cell in cells.values()}) > 1:
            shown = "; ".join(f"{name}: {cell.headline}" for name, cell in cells.items())
            notes.append(f"{column.title} is averaged in several ways ({shown})")
        for name, cell in cells.items():
            notes.extend(f"{name}, {column.title}: {text}" for text in _cell_notes(cell, column))
    return notes


def _cell_notes(cell: Cell, column: Column) -> list[str]:
    notes = []
    if column.sizes and cell.num_questions not in column.sizes:
        sizes = " or ".join(f"{size:,}" for size in column.sizes)
        notes.append(f"{cell.num_questions:,} questions, where the whole benchmark has {sizes}")
    if cell.num_failed:
        failed = f"{cell.num_failed} questions about {cell.num_failed_videos} videos failed"
        if cell.failed_count_as_wrong:
            notes.append(f"{failed} and count as wrong")
        else:
            notes.append(
                f"{failed} and are left out of the score (strive-cli rescore {cell.folder} counts "
                "them as wrong)"
            )
    if cell.absent:
        notes.append(f"no question of {', '.join(cell.absent)}: a mean over fewer groups")
    if len(cell.totals) > 1:
        others = ", ".join(
            f"{name} {figure_text(total)}"
            for name, total in cell.totals.items()
            if name != cell.headline and math.isfinite(total.accuracy_percent)
        )
        notes.append(f"shown is {cell.headline}; {others}")
    return notes


def figure_text(figure: Figure | None, plus_minus: str = " ± ") -> str:
    """`61.7 ± 0.9`; without an error the accuracy alone, without both a dash."""
    if figure is None or not math.isfinite(figure.accuracy_percent):
        return "–"
    if not math.isfinite(figure.standard_error):
        return f"{figure.accuracy_percent:.1f}"
    return f"{figure.accuracy_percent:.1f}{plus_minus}{figure.standard_error:.1f}"
