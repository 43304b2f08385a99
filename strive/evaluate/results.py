"""From samples to what is reported: scores with clustered errors, rates, failures, settings.

All scores are percent (0 to 100).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from strive.answers import GRADING_VERSION
from strive.evaluate.samples import Sample
from strive.statistics import mean_interval


@dataclass(frozen=True, slots=True)
class Score:
    """Mean grade of some questions, with the standard error clustered by video and a 95 % interval.

    Errors are NaN (null in JSON) where there are fewer than two videos.
    """

    accuracy_percent: float
    standard_error: float
    low: float
    high: float
    num_questions: int
    num_videos: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A question that could not be asked."""

    benchmark: str
    question_id: str
    video_id: str
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class BenchmarkResults:
    """One benchmark's results; failed questions are left out of the scores and counted."""

    benchmark: str
    overall: Score
    by_problem_type: dict[str, Score]
    by_kind: dict[str, Score]
    unparsed_percent: float
    truncated_percent: float
    empty_percent: float
    well_formed_percent: float
    evidence_seen_percent: float | None
    """Of the questions with known spans; None if there are none."""
    by_evidence_seen: dict[str, Score]
    mean_tokens: float
    num_failed: int


@dataclass(frozen=True, slots=True)
class EvaluationResults:
    """What `results.json` holds."""

    benchmarks: tuple[BenchmarkResults, ...]
    failures: tuple[Failure, ...]
    settings: dict[str, Any]
    versions: dict[str, str]
    grading: str
    grading_version: int
    num_resumed: int
    seconds: float
    """Wall-clock seconds of the last generating run; resumed samples cost none of it."""

    def benchmark(self, name: str) -> BenchmarkResults:
        """Return one benchmark's results."""
        return next(row for row in self.benchmarks if row.benchmark == name)


def score_of(samples: Sequence[Sample]) -> Score:
    """Mean grade in percent, clustered by video."""
    interval = mean_interval(
        [100 * sample.score for sample in samples], clusters=[s.video_id for s in samples]
    )
    return Score(
        accuracy_percent=interval.value,
        standard_error=interval.standard_error,
        low=interval.low,
        high=interval.high,
        num_questions=interval.num_samples,
        num_videos=interval.num_units,
    )


def _grouped(samples: Sequence[Sample], keys: Sequence[str]) -> dict[str, Score]:
    groups: dict[str, list[Sample]] = {}
    for sample, key in zip(samples, keys, strict=True):
        groups.setdefault(key, []).append(sample)
    return {key: score_of(groups[key]) for key in sorted(groups)}


def _percent(flags: Sequence[bool]) -> float:
    return 100 * sum(flags) / len(flags) if flags else float("nan")


def summarise_benchmark(
    name: str, samples: Sequence[Sample], failures: Sequence[Failure]
) -> BenchmarkResults:
    """Summarise one benchmark's graded samples."""
    known = [s for s in samples if s.evidence_seen is not None]
    return BenchmarkResults(
        benchmark=name,
        overall=score_of(samples),
        by_problem_type=_grouped(samples, [s.problem_type for s in samples]),
        by_kind=_grouped(samples, [s.kind or "(none)" for s in samples]),
        unparsed_percent=_percent([not s.parsed for s in samples]),
        truncated_percent=_percent([s.truncated for s in samples]),
        empty_percent=_percent([not s.output.strip() for s in samples]),
        well_formed_percent=_percent([s.well_formed for s in samples]),
        evidence_seen_percent=_percent([bool(s.evidence_seen) for s in known]) if known else None,
        by_evidence_seen=_grouped(known, ["seen" if s.evidence_seen else "missed" for s in known]),
        mean_tokens=sum(s.num_tokens for s in samples) / len(samples) if samples else float("nan"),
        num_failed=len(failures),
    )


def summarise_samples(
    benchmarks: Sequence[str],
    samples: Sequence[Sample],
    failures: Sequence[Failure],
    *,
    settings: dict[str, Any],
    versions: dict[str, str],
    grading: str,
    num_resumed: int,
    seconds: float,
) -> EvaluationResults:
    """Summarise an evaluation's graded samples, benchmark by benchmark."""
    return EvaluationResults(
        benchmarks=tuple(
            summarise_benchmark(
                name,
                [sample for sample in samples if sample.benchmark == name],
                [failure for failure in failures if failure.benchmark == name],
            )
            for name in benchmarks
        ),
        failures=tuple(failures),
        settings=settings,
        versions=versions,
        grading=grading,
        grading_version=GRADING_VERSION,
        num_resumed=num_resumed,
        seconds=seconds,
    )


def results_to_json(results: EvaluationResults) -> dict[str, Any]:
    """Turn results into what `json.dumps` takes; NaN becomes null."""
    found: dict[str, Any] = _nan_to_none(asdict(results))
    return found


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and value != value else value
