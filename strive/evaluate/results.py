"""An evaluation's folder and what is reported of it: scores, rates, failures, settings.

`settings.json` and `samples.jsonl` come with the first answers, `results.json` is written last. All
scores are percent (0 to 100).
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from strive import __version__
from strive.answers import GRADING_VERSION, has_think_answer_format
from strive.choices import EvaluationGrading
from strive.errors import ConfigError, DiskError, MissingInputError, RecordsError, StriveError
from strive.evaluate.benchmarks import RECORDS, grader_of
from strive.evaluate.benchmarks.base import Benchmark, PlainRecords
from strive.evaluate.items import Failure, Grade, Graded, Total
from strive.evaluate.samples import Sample, append_samples, read_samples, rewrite_samples
from strive.files import drop_torn_line, expanded, file_digest, plain_json, write_atomically
from strive.named import raised
from strive.progress import say
from strive.seeding import derive_rng
from strive.statistics import Interval, macro_interval, mean_interval

PACKAGES = ("torch", "transformers", "av", "decord2", "numpy", "rouge-score", "jiwer")
LEFT_OUT = "left_out.jsonl"
"""Answers of an evaluation's folder to questions that later calls no longer asked."""
QuestionKey = tuple[str, str]


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
class BenchmarkResults:
    """One benchmark's results. Failed questions count as wrong in every score, and are counted."""

    benchmark: str
    overall: Score
    """The plain mean over questions."""
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
    headline: str = "accuracy"
    """Name of the total that counts."""
    totals: dict[str, Score] = field(default_factory=dict)
    """Every way to average that the benchmark's users report."""
    absent: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """{total: those of its groups of which no question is there}; it is a mean over fewer."""
    by_dimension: dict[str, dict[str, Score]] = field(default_factory=dict)
    graded_by: str = "records"
    """The benchmark whose rules grade; `records`: those of plain records."""


@dataclass(frozen=True, slots=True)
class EvaluationResults:
    """The content of `results.json`."""

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


def score_of(rows: Sequence[Graded]) -> Score:
    """Mean grade in percent, clustered by video."""
    interval = mean_interval(
        [100 * row.score for row in rows], clusters=[row.cluster or row.video_id for row in rows]
    )
    return _score(interval)


def _score(interval: Interval) -> Score:
    return Score(
        accuracy_percent=interval.value,
        standard_error=interval.standard_error,
        low=interval.low,
        high=interval.high,
        num_questions=interval.num_samples,
        num_videos=interval.num_units,
    )


def total_of(total: Total, rows: Sequence[Graded]) -> Score:
    """Average rows as a total says: a mean of means where they fall into several groups."""
    placed = [(row, total.path(row)) for row in rows]
    counted = [row for row, path in placed if path is not None]
    paths = [path for _, path in placed if path is not None]
    if len(set(paths)) < 2:
        return score_of(counted)
    interval = macro_interval(
        [100 * row.score for row in counted],
        paths,
        clusters=[row.cluster or row.video_id for row in counted],
        rng=derive_rng(0, "total", total.name),
    )
    return _score(interval)


def _grouped(rows: Sequence[Graded], keys: Sequence[str]) -> dict[str, Score]:
    groups: dict[str, list[Graded]] = {}
    for row, key in zip(rows, keys, strict=True):
        groups.setdefault(key, []).append(row)
    return {key: score_of(groups[key]) for key in sorted(groups)}


def _by_dimension(rows: Sequence[Graded]) -> dict[str, dict[str, Score]]:
    names = dict.fromkeys(name for row in rows for name in row.dimensions)
    return {
        name: _grouped(
            [row for row in rows if name in row.dimensions],
            [row.dimensions[name] for row in rows if name in row.dimensions],
        )
        for name in names
    }


def _absent_groups(totals: Sequence[Total], rows: Sequence[Graded]) -> dict[str, tuple[str, ...]]:
    absent = {}
    for total in totals:
        found = {path[0] for path in map(total.path, rows) if path}
        if found and (missing := tuple(name for name in total.groups if name not in found)):
            absent[total.name] = missing
    return absent


def _percent(flags: Sequence[bool]) -> float:
    return 100 * sum(flags) / len(flags) if flags else float("nan")


def grade_sample(sample: Sample, benchmark: Benchmark, grading: EvaluationGrading) -> Sample:
    """Read and grade the stored output; doing it twice changes nothing.

    Raises:
        ConfigError: a user's own benchmark raises, or gives something else than a grade.
    """
    try:
        grade = benchmark.grade(sample, grading)
    except StriveError:
        raise
    except Exception as error:
        raise ConfigError(
            f"benchmark '{sample.benchmark}' raised {raised(error)} when it graded question "
            f"'{sample.question_id}'"
        ) from error
    if not isinstance(grade, Grade) or not 0 <= grade.score <= 1:
        raise ConfigError(
            f"benchmark '{sample.benchmark}' graded question '{sample.question_id}' with "
            f"{grade!r:.200}; a Grade with a score from 0 to 1 is wanted"
        )
    return replace(
        sample,
        answer=grade.answer,
        score=float(grade.score),
        rule=grade.rule,
        parsed=grade.parsed,
        well_formed=has_think_answer_format(sample.output),
    )


def summarise_benchmark(
    name: str,
    benchmark: Benchmark,
    samples: Sequence[Sample],
    failures: Sequence[Failure],
    grading: EvaluationGrading,
) -> BenchmarkResults:
    """Summarise one benchmark's graded samples and failures."""
    known = [s for s in samples if s.evidence_seen is not None]
    rows: list[Graded] = [*samples, *failures]
    totals = {total.name: total_of(total, rows) for total in benchmark.totals(grading)}
    # An average of which nothing is there is no headline: some files do not say what a row is of.
    filled = [name for name, score in totals.items() if score.num_questions]
    return BenchmarkResults(
        benchmark=name,
        overall=score_of(rows),
        by_problem_type=_grouped(rows, [row.problem_type or "(unknown)" for row in rows]),
        by_kind=_grouped(rows, [row.kind or "(none)" for row in rows]),
        unparsed_percent=_percent([not s.parsed for s in samples]),
        truncated_percent=_percent([s.truncated for s in samples]),
        empty_percent=_percent([not s.output.strip() for s in samples]),
        well_formed_percent=_percent([s.well_formed for s in samples]),
        evidence_seen_percent=_percent([bool(s.evidence_seen) for s in known]) if known else None,
        by_evidence_seen=_grouped(known, ["seen" if s.evidence_seen else "missed" for s in known]),
        mean_tokens=sum(s.num_tokens for s in samples) / len(samples) if samples else float("nan"),
        num_failed=len(failures),
        headline=[*filled, *totals][0],
        totals=totals,
        absent=_absent_groups(benchmark.totals(grading), rows),
        by_dimension=_by_dimension(rows),
        graded_by=RECORDS if isinstance(benchmark, PlainRecords) else name,
    )


def summarise_samples(
    benchmarks: Mapping[str, Benchmark],
    samples: Sequence[Sample],
    failures: Sequence[Failure],
    *,
    settings: dict[str, Any],
    versions: dict[str, str],
    grading: EvaluationGrading,
    num_resumed: int,
    seconds: float,
) -> EvaluationResults:
    """Summarise an evaluation's graded samples, benchmark by benchmark."""
    return EvaluationResults(
        benchmarks=tuple(
            summarise_benchmark(
                name,
                benchmark,
                [sample for sample in samples if sample.benchmark == name],
                [failure for failure in failures if failure.benchmark == name],
                grading,
            )
            for name, benchmark in benchmarks.items()
        ),
        failures=tuple(failures),
        settings=settings,
        versions=versions,
        grading=grading,
        grading_version=GRADING_VERSION,
        num_resumed=num_resumed,
        seconds=seconds,
    )


# --- the folder ---------------------------------------------------------------------------------


def installed_versions() -> dict[str, str]:
    """Return versions of everything that can change an answer or its grade."""
    found = {"strive": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def model_digest(model: str) -> str | None:
    """Digest a model folder's weights and configuration; None for a hub id.

    A folder that was trained on must not be taken for the one whose answers are on disk.
    """
    folder = expanded(Path(model))
    if not folder.is_dir():
        return None
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        # What a recipe measured does not change what the model answers.
        if path.name == "recipe.json":
            continue
        digest.update(path.name.encode() + file_digest(path, "blake2b"))
    return digest.hexdigest()


def read_json_object(path: Path) -> dict[str, Any]:
    """Read one of the folder's JSON files.

    Raises:
        RecordsError: it is damaged.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordsError(f"{path} is damaged: not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise RecordsError(f"{path} is damaged: an object is wanted, not a {type(found).__name__}")
    return found


def read_results(out: Path) -> dict[str, Any]:
    """Read `results.json` of an evaluation's folder.

    Raises:
        MissingInputError: there is none.
        RecordsError: it is damaged.
    """
    path = out / "results.json"
    if not path.is_file():
        raise MissingInputError(f"no results at {path}; make them with strive-cli evaluate --out")
    found = read_json_object(path)
    absent = [field.name for field in fields(EvaluationResults) if field.name not in found]
    if absent:
        raise RecordsError(f"{path} is damaged: it has no {', '.join(absent)}")
    return found


def write_results(out: Path, results: EvaluationResults) -> None:
    """Write `results.json` as a whole."""
    text = json.dumps(plain_json(results), indent=2, ensure_ascii=False) + "\n"
    write_atomically(out / "results.json", text, knob="--out")


@dataclass(slots=True)
class OutFolder:
    """An evaluation's folder, opened for one call: nothing in it changes before the first answer.

    With `is_afresh`, what an earlier call left is in the way of this one's answers.
    """

    root: Path
    settings: dict[str, Any]
    is_afresh: bool

    @property
    def samples_file(self) -> Path:
        """The file to which answers are appended."""
        return self.root / "samples.jsonl"

    def current_samples(
        self, hashes: Mapping[QuestionKey, str], absent: Collection[QuestionKey] = ()
    ) -> dict[QuestionKey, Sample]:
        """Return stored answers, save those whose question or video has changed since.

        Of questions in `absent` the video is not there now: their answers stay.
        """
        if self.is_afresh or not self.samples_file.is_file():
            return {}
        found = {(s.benchmark, s.question_id): s for s in read_samples(self.samples_file)}
        named = {benchmark for benchmark, _ in hashes}
        return {
            key: sample
            for key, sample in found.items()
            if key[0] not in named or key in absent or hashes.get(key) == sample.prompt_hash
        }

    def stored_graders(self) -> dict[str, str]:
        """Return {benchmark: what graded it} of the results that are there."""
        if self.is_afresh or not (self.root / "results.json").is_file():
            return {}
        rows = read_results(self.root)["benchmarks"]
        return {row["benchmark"]: row.get("graded_by", RECORDS) for row in rows}

    def other_failures(
        self, known: Mapping[str, Collection[str]], decided: Collection[QuestionKey]
    ) -> list[Failure]:
        """Return failures of earlier calls of which this one says nothing: they still count.

        `known` has the ids of the benchmarks that this call names; what is none of them is gone.
        """
        if self.is_afresh or not (self.root / "results.json").is_file():
            return []
        rows = [Failure(**row) for row in read_results(self.root)["failures"]]
        return [
            row
            for row in rows
            if (row.benchmark, row.question_id) not in decided
            and row.question_id in known.get(row.benchmark, (row.question_id,))
        ]

    def set_aside(self, kept: Collection[QuestionKey]) -> None:
        """Move answers to questions that are no longer asked, or not so, to another file.

        Raises:
            DiskError: the disk refused; no answer is lost.
        """
        if self.is_afresh or not self.samples_file.is_file():
            return
        rows = read_samples(self.samples_file)
        gone = [sample for sample in rows if (sample.benchmark, sample.question_id) not in kept]
        if gone:
            append_samples(self.root / LEFT_OUT, gone)
            say(
                f"warning: {len(gone)} answers in {self.root} are to questions that this call does "
                f"not know (first: {gone[0].question_id}); they are in {LEFT_OUT} now"
            )

    def append(self, samples: Sequence[Sample]) -> None:
        """Add answers, the first ones with the settings that they were made with.

        Raises:
            DiskError: the disk refused; answers of earlier batches are intact.
        """
        settings_file = self.root / "settings.json"
        if self.is_afresh:
            for name in ("settings.json", "samples.jsonl", "results.json"):
                (self.root / name).unlink(missing_ok=True)
            self.is_afresh = False
        if not settings_file.is_file():
            text = json.dumps(self.settings, indent=2, ensure_ascii=False) + "\n"
            write_atomically(settings_file, text, knob="--out")
        append_samples(self.samples_file, samples)

    def finish(
        self,
        samples: Sequence[Sample],
        failures: Sequence[Failure],
        *,
        benchmarks: Mapping[str, Benchmark],
        grading: EvaluationGrading,
        num_resumed: int,
        seconds: float | None,
    ) -> EvaluationResults:
        """Write graded samples and results; `seconds` is None where nothing was generated."""
        versions = installed_versions()
        if seconds is None and (self.root / "results.json").is_file():
            # What generated the answers, and how long it took, is still true.
            before = read_results(self.root)
            seconds, versions = before["seconds"], before["versions"]
        results = summarise_samples(
            benchmarks,
            samples,
            failures,
            settings=self.settings,
            versions=versions,
            grading=grading,
            num_resumed=num_resumed,
            seconds=seconds or 0.0,
        )
        self.set_aside({(s.benchmark, s.question_id) for s in samples})
        rewrite_samples(self.samples_file, samples)
        write_results(self.root, results)
        return results


@contextmanager
def open_out(out: Path, settings: dict[str, Any], *, overwrite: bool) -> Iterator[OutFolder]:
    """Open a folder afresh, or to go on with answers of the same settings.

    A folder that was made for a call that then brought no answer goes with it.

    Raises:
        ConfigError: it holds answers made with other settings.
        DiskError: it cannot be made.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"cannot use {out}: {error.strerror}; give another --out") from None
    try:
        settings_file = out / "settings.json"
        if settings_file.is_file() and not overwrite:
            require_same(out, read_json_object(settings_file), settings)
        elif (out / "samples.jsonl").is_file() and not overwrite:
            raise ConfigError(
                f"{out} holds answers, and no settings.json that says how they were asked; give "
                "another folder with --out, or --overwrite"
            )
        folder = OutFolder(out, settings, is_afresh=overwrite)
        drop_torn_line(folder.samples_file)
        yield folder
    finally:
        for folder_made in made:
            with suppress(OSError):  # it holds something
                folder_made.rmdir()


def require_same(out: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Refuse a folder whose answers were made with other settings.

    Raises:
        ConfigError: they were; the message shows each with both values.
    """
    # The same questions under another path, or the same weights, are no other settings: prompts are
    # told apart by their text and video, models by their digest.
    elsewhere = {"data_root", "data"} | ({"model"} if settings.get("model_digest") else set())
    # What an earlier version wrote for what is the default now.
    named_before = {"split": ("test", None), "frames_mode": ("uniform", "protocol")}
    differing = sorted(
        name
        for name in settings
        if name not in elsewhere
        and found.get(name) != settings[name]
        and (found.get(name), settings[name]) != named_before.get(name)
    )
    if differing:
        shown = "; ".join(
            f"{name}: there {found.get(name)!r}, here {settings[name]!r}" for name in differing
        )
        raise ConfigError(
            f"{out} holds answers made with other settings ({shown}); give another folder with "
            "--out, or --overwrite"
        )


def rescore(out: Path, *, grading: EvaluationGrading | None = None) -> EvaluationResults:
    """Grade the stored answers again, with the same rules or others; run twice, it is the same.

    Raises:
        RecordsError: answers that the results count are no longer there.
    """
    stored = read_results(out)
    rules = grading or stored["grading"]
    rows = stored["benchmarks"]
    graders = {row["benchmark"]: grader_of(row.get("graded_by", RECORDS)) for row in rows}
    # An interrupted call may have left two answers to one question; the last counts.
    found = {(s.benchmark, s.question_id): s for s in read_samples(out / "samples.jsonl")}
    unknown = sorted({benchmark for benchmark, _ in found} - set(graders))
    if unknown:
        raise RecordsError(
            f"{out / 'samples.jsonl'} holds answers of {', '.join(unknown)}, which results.json "
            f"does not name; finish with the same strive-cli evaluate --out {out}"
        )
    samples = [grade_sample(s, graders[s.benchmark], rules) for s in found.values()]
    failures = [Failure(**row) for row in stored["failures"]]
    failures = [row for row in failures if (row.benchmark, row.question_id) not in found]
    num_counted = sum(row["overall"]["num_questions"] for row in rows)
    # Results of version 2 and earlier did not count failures.
    num_failed = len(failures) if stored["grading_version"] > 2 else 0
    if len(samples) + num_failed < num_counted:
        raise RecordsError(
            f"{out / 'samples.jsonl'} holds {len(samples)} answers, and results.json counts "
            f"{num_counted - num_failed}; answer what is missing with the same strive-cli evaluate "
            f"--out {out}"
        )
    results = summarise_samples(
        graders,
        samples,
        failures,
        settings=stored["settings"],
        versions=stored["versions"],
        grading=rules,
        num_resumed=stored["num_resumed"],
        seconds=stored["seconds"],
    )
    if samples:
        rewrite_samples(out / "samples.jsonl", samples)
    write_results(out, results)
    return results
