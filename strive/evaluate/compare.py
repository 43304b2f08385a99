"""Two evaluations, or pairs of them over several seeds, compared from their stored answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from strive.errors import RecordsError
from strive.evaluate.results import read_json_object
from strive.evaluate.samples import Sample, read_samples
from strive.statistics import PairedDifference, paired_difference


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired difference `a - b` in percentage points, clustered by video."""

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


def compare(out_a: Path, out_b: Path) -> Comparison:
    """Compare two evaluations over the questions that both answered.

    Raises:
        RecordsError: they have no question in common.
    """
    a, b = _by_question(out_a), _by_question(out_b)
    common = [key for key in a if key in b]
    if not common:
        raise RecordsError(f"{out_a} and {out_b} have no answered question in common")
    pairs = [(a[key], b[key]) for key in common]
    return Comparison(
        a=str(out_a),
        b=str(out_b),
        overall=_difference(pairs),
        by_problem_type=_differences(pairs, "problem_type"),
        by_kind=_differences(pairs, "kind"),
        num_gained=sum(x.score > y.score for x, y in pairs),
        num_lost=sum(x.score < y.score for x, y in pairs),
        num_only_a=len(a) - len(common),
        num_only_b=len(b) - len(common),
        num_other_prompts=sum(x.prompt_hash != y.prompt_hash for x, y in pairs),
        num_other_solutions=sum(x.solution != y.solution for x, y in pairs),
        other_settings=_other_settings(out_a, out_b),
    )


def _other_settings(out_a: Path, out_b: Path) -> dict[str, tuple[str, str]]:
    paths = [out / "settings.json" for out in (out_a, out_b)]
    if not all(path.is_file() for path in paths):
        return {}
    a, b = map(read_json_object, paths)
    names = ("prompt_template", "num_frames", "frames_mode", "max_pixels", "frames")
    return {n: (str(a.get(n)), str(b.get(n))) for n in names if a.get(n) != b.get(n)}


def _by_question(out: Path) -> dict[tuple[str, str], Sample]:
    return {(s.benchmark, s.question_id): s for s in read_samples(out / "samples.jsonl")}


def _difference(pairs: Sequence[tuple[Sample, Sample]]) -> PairedDifference:
    return paired_difference(
        [100 * x.score for x, _ in pairs],
        [100 * y.score for _, y in pairs],
        clusters=[(x.benchmark, x.video_id) for x, _ in pairs],
    )


def _differences(pairs: Sequence[tuple[Sample, Sample]], field: str) -> dict[str, PairedDifference]:
    groups: dict[str, list[tuple[Sample, Sample]]] = {}
    for pair in pairs:
        groups.setdefault(getattr(pair[0], field) or "(none)", []).append(pair)
    return {name: _difference(groups[name]) for name in sorted(groups)}


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
    sides = [(_by_question(a), _by_question(b)) for a, b in pairs]
    if not sides:
        raise RecordsError("no evaluations to compare; one pair of folders a seed is needed")
    everyone = [side for pair in sides for side in pair]
    common = [key for key in everyone[0] if all(key in side for side in everyone)]
    if not common:
        raise RecordsError("the evaluations have no answered question in common")
    videos = [(key[0], everyone[0][key].video_id) for key in common]
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
