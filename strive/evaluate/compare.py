"""Two evaluations, or pairs of them over several seeds, compared from their stored answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from strive.choices import EvaluationGrading
from strive.errors import RecordsError
from strive.evaluate.benchmarks import RECORDS, grader_of
from strive.evaluate.items import MICRO, Failure, Total
from strive.evaluate.results import QuestionKey, read_json_object, read_results
from strive.evaluate.samples import Sample, read_samples
from strive.progress import say
from strive.seeding import derive_rng
from strive.statistics import PairedDifference, holm, macro_difference, paired_difference

Row = Sample | Failure
Pair = tuple[Row, Row]
Answers = dict[QuestionKey, Sample]


@dataclass(frozen=True, slots=True)
class BenchmarkComparison:
    """`a - b` on one benchmark in percentage points, clustered by video.

    Over the questions that both asked; one that could not be asked is answered wrong.
    """

    benchmark: str
    headline: str
    """Name of the total that counts."""
    totals: dict[str, PairedDifference]
    """By every average of the benchmark; of means of means by paired bootstrap over videos."""
    holm_p_value: float
    """Of the headline, adjusted over all pairs and benchmarks of the call; NaN without a test."""
    num_gained: int
    num_lost: int
    num_failed_a: int
    num_failed_b: int
    by_problem_type: dict[str, PairedDifference]
    by_kind: dict[str, PairedDifference]
    by_dimension: dict[str, dict[str, PairedDifference]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired difference `a - b` in percentage points, clustered by video.

    All but `by_benchmark` is over the questions that both answered, of all benchmarks together.
    """

    a: str
    b: str
    overall: PairedDifference
    by_problem_type: dict[str, PairedDifference]
    by_kind: dict[str, PairedDifference]
    num_gained: int
    """Questions that `a` grades higher."""
    num_lost: int
    num_only_a: int
    num_only_b: int
    num_other_prompts: int
    """Compared questions whose text, frames or pixel budget differ between the two."""
    num_other_solutions: int = 0
    """Compared questions that were graded by another solution."""
    other_settings: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Settings by which the two evaluations asked otherwise."""
    gradings: tuple[str, str] = ("", "")
    """The rules that graded either; empty where a folder has no results."""
    by_benchmark: dict[str, BenchmarkComparison] = field(default_factory=dict)


def compare(out_a: Path, out_b: Path) -> Comparison:
    """Compare two evaluations.

    Raises:
        RecordsError: there is no question that both answered.
    """
    return compare_all(out_a, [out_b])[0]


def compare_all(first: Path, others: Sequence[Path]) -> tuple[Comparison, ...]:
    """Compare the first evaluation with each other one; p-values are adjusted over all of it.

    Raises:
        RecordsError: there is no question that the first and another one both answered.
    """
    a = _read(first)
    found = [_compare(a, _read(other)) for other in others]
    headlines = [b.totals[b.headline] for c in found for b in c.by_benchmark.values()]
    adjusted = iter(holm([difference.p_value for difference in headlines]).tolist())
    return tuple(
        replace(
            comparison,
            by_benchmark={
                name: replace(benchmark, holm_p_value=next(adjusted))
                for name, benchmark in comparison.by_benchmark.items()
            },
        )
        for comparison in found
    )


# --- two folders --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Evaluation:
    out: Path
    samples: dict[QuestionKey, Sample]
    rows: dict[QuestionKey, Row]
    """Answers, and failures of what was not answered."""
    totals: dict[str, tuple[Total, ...]]
    """The averages of each benchmark, the headline first."""
    grading: str


def _read(out: Path) -> _Evaluation:
    samples = _by_question(out)
    if not (out / "results.json").is_file():
        say(
            f"warning: {out} has no results.json: it was interrupted, its failures are not known, "
            "and only the plain mean of its answers is compared; finish it with the same "
            f"strive-cli evaluate --out {out}"
        )
        return _Evaluation(out, samples, dict(samples), {}, "")
    stored = read_results(out)
    failures = [Failure(**row) for row in stored["failures"]]
    return _Evaluation(
        out=out,
        samples=samples,
        rows={**{(f.benchmark, f.question_id): f for f in failures}, **samples},
        totals={row["benchmark"]: _totals(row, stored["grading"]) for row in stored["benchmarks"]},
        grading=stored["grading"],
    )


def _totals(row: dict[str, Any], grading: EvaluationGrading) -> tuple[Total, ...]:
    totals = grader_of(row.get("graded_by", RECORDS)).totals(grading)
    return tuple(sorted(totals, key=lambda total: total.name != row.get("headline")))


def _by_question(out: Path) -> Answers:
    return {(s.benchmark, s.question_id): s for s in read_samples(out / "samples.jsonl")}


def _compare(a: _Evaluation, b: _Evaluation) -> Comparison:
    answered: list[tuple[Sample, Sample]] = [
        (a.samples[key], b.samples[key]) for key in a.samples if key in b.samples
    ]
    if not answered:
        raise RecordsError(f"{a.out} and {b.out} have no answered question in common")
    asked: dict[str, list[Pair]] = {}
    for key in a.rows:
        if key in b.rows:
            asked.setdefault(key[0], []).append((a.rows[key], b.rows[key]))
    return Comparison(
        a=str(a.out),
        b=str(b.out),
        overall=_difference(answered),
        by_problem_type=_differences(answered, [x.problem_type for x, _ in answered]),
        by_kind=_differences(answered, [x.kind for x, _ in answered]),
        num_gained=sum(x.score > y.score for x, y in answered),
        num_lost=sum(x.score < y.score for x, y in answered),
        num_only_a=len(a.samples) - len(answered),
        num_only_b=len(b.samples) - len(answered),
        num_other_prompts=sum(x.prompt_hash != y.prompt_hash for x, y in answered),
        num_other_solutions=sum(x.solution != y.solution for x, y in answered),
        other_settings=_other_settings(a.out, b.out),
        gradings=(a.grading, b.grading),
        by_benchmark={
            name: _compare_benchmark(name, pairs, a.totals.get(name, (MICRO,)))
            for name, pairs in asked.items()
        },
    )


def _compare_benchmark(
    name: str, pairs: Sequence[Pair], totals: Sequence[Total]
) -> BenchmarkComparison:
    dimensions = dict.fromkeys(key for pair in pairs for key in _about(pair).dimensions)
    return BenchmarkComparison(
        benchmark=name,
        headline=totals[0].name,
        totals={total.name: _total_difference(total, pairs) for total in totals},
        holm_p_value=float("nan"),
        num_gained=sum(x.score > y.score for x, y in pairs),
        num_lost=sum(x.score < y.score for x, y in pairs),
        num_failed_a=sum(isinstance(x, Failure) for x, _ in pairs),
        num_failed_b=sum(isinstance(y, Failure) for _, y in pairs),
        by_problem_type=_differences(pairs, [_about(pair).problem_type for pair in pairs]),
        by_kind=_differences(pairs, [_about(pair).kind for pair in pairs]),
        by_dimension={key: _by_dimension(pairs, key) for key in dimensions},
    )


def _other_settings(out_a: Path, out_b: Path) -> dict[str, tuple[str, str]]:
    paths = [out / "settings.json" for out in (out_a, out_b)]
    if not all(path.is_file() for path in paths):
        return {}
    a, b = map(read_json_object, paths)
    names = ("prompt_template", "num_frames", "frames_mode", "max_pixels", "frames")
    return {n: (str(a.get(n)), str(b.get(n))) for n in names if a.get(n) != b.get(n)}


# --- pairs --------------------------------------------------------------------------------------


def _about(pair: Pair) -> Row:
    """The row that tells what the question is about: an answer, where there is one."""
    return pair[0] if isinstance(pair[0], Sample) else pair[1]


def _difference(pairs: Sequence[Pair]) -> PairedDifference:
    return paired_difference(
        [100 * x.score for x, _ in pairs],
        [100 * y.score for _, y in pairs],
        clusters=_clusters(pairs),
    )


def _clusters(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    rows = [_about(pair) for pair in pairs]
    return [(row.benchmark, row.cluster or row.video_id) for row in rows]


def _total_difference(total: Total, pairs: Sequence[Pair]) -> PairedDifference:
    placed = [(pair, total.path(_about(pair))) for pair in pairs]
    counted = [pair for pair, path in placed if path is not None]
    paths = [path for _, path in placed if path is not None]
    if len(set(paths)) < 2:
        return _difference(counted)
    return macro_difference(
        [100 * x.score for x, _ in counted],
        [100 * y.score for _, y in counted],
        paths,
        clusters=_clusters(counted),
        rng=derive_rng(0, "compare", total.name),
    )


def _differences(pairs: Sequence[Pair], names: Sequence[str]) -> dict[str, PairedDifference]:
    """Differences of groups of pairs, by their names in order."""
    groups: dict[str, list[Pair]] = {}
    for pair, name in zip(pairs, names, strict=True):
        groups.setdefault(name or "(none)", []).append(pair)
    return {name: _difference(groups[name]) for name in sorted(groups)}


def _by_dimension(pairs: Sequence[Pair], key: str) -> dict[str, PairedDifference]:
    there = [pair for pair in pairs if key in _about(pair).dimensions]
    return _differences(there, [_about(pair).dimensions[key] for pair in there])


# --- several seeds ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SeedComparison:
    """`a - b` over several seeds, in percentage points.

    `over_questions` averages each question's difference over the seeds and clusters by video: what
    other questions would change. `over_seeds` takes a seed's mean difference as one unit: what
    other seeds would change.
    """

    per_seed: tuple[PairedDifference, ...]
    over_questions: PairedDifference
    over_seeds: PairedDifference


def compare_seeds(pairs: Sequence[tuple[Path, Path]]) -> SeedComparison:
    """Compare evaluations pair by pair (one pair a seed), over the questions that all answered.

    Raises:
        RecordsError: no pair is given, or they have no question in common.
    """
    sides, common = _answered_by_all(pairs)
    return _over_seeds(sides, common)


def compare_seeds_by_benchmark(pairs: Sequence[tuple[Path, Path]]) -> dict[str, SeedComparison]:
    """Do as `compare_seeds` does for each benchmark by itself.

    Raises:
        RecordsError: no pair is given, or they have no question in common.
    """
    sides, common = _answered_by_all(pairs)
    names = dict.fromkeys(benchmark for benchmark, _ in common)
    return {name: _over_seeds(sides, [key for key in common if key[0] == name]) for name in names}


def _answered_by_all(
    pairs: Sequence[tuple[Path, Path]],
) -> tuple[list[tuple[Answers, Answers]], list[QuestionKey]]:
    """Read pairs of evaluations, and the questions that all of them answered."""
    sides = [(_by_question(a), _by_question(b)) for a, b in pairs]
    if not sides:
        raise RecordsError("no evaluations to compare; one pair of folders a seed is needed")
    everyone = [side for pair in sides for side in pair]
    common = [key for key in everyone[0] if all(key in side for side in everyone)]
    if not common:
        raise RecordsError("the evaluations have no answered question in common")
    return sides, common


def _over_seeds(
    sides: Sequence[tuple[Answers, Answers]], common: Sequence[QuestionKey]
) -> SeedComparison:
    """Compare the answers to some questions, one pair a seed."""
    rows = [sides[0][0][key] for key in common]
    videos = [(row.benchmark, row.cluster or row.video_id) for row in rows]
    scores_a = [[100 * a[key].score for key in common] for a, _ in sides]
    scores_b = [[100 * b[key].score for key in common] for _, b in sides]

    def over_axis(rows: list[list[float]], axis: int) -> list[float]:
        return [float(value) for value in np.mean(rows, axis=axis)]

    return SeedComparison(
        per_seed=tuple(
            paired_difference(a, b, clusters=videos)
            for a, b in zip(scores_a, scores_b, strict=True)
        ),
        over_questions=paired_difference(
            over_axis(scores_a, 0), over_axis(scores_b, 0), clusters=videos
        ),
        over_seeds=paired_difference(over_axis(scores_a, 1), over_axis(scores_b, 1)),
    )
