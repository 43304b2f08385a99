"""One sample a question: what was asked, what was answered, how it was graded.

`samples.jsonl` is appended to after every batch and synced to disk, so a killed run loses at most
the batch in flight. Grades in it are a convenience: they are always computed anew from the stored
output (`rescore` does only that).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from strive import answers
from strive.errors import MissingInputError, RecordsError
from strive.files import append_text, whole_lines, write_atomically

SampleKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Sample:
    """One graded answer; `score` is in [0, 1] and `answer` what was extracted from `output`."""

    benchmark: str
    question_id: str
    prompt_hash: str
    video_id: str
    problem_type: str
    kind: str
    """The record's data_source: for the lab, the kind of question."""
    prompt: str
    solution: str
    source_index: tuple[int, ...]
    evidence_seen: bool | None
    output: str
    num_tokens: int
    truncated: bool
    answer: str = ""
    score: float = 0.0
    parsed: bool = False
    well_formed: bool = False
    """The whole output is `<think>...</think> <answer>...</answer>`."""

    @property
    def key(self) -> SampleKey:
        """The identity by which a resumed run recognises it."""
        return (self.benchmark, self.question_id, self.prompt_hash)


def grade_sample(sample: Sample, rules: answers.GradingRules) -> Sample:
    """Extract and grade from the stored output; doing it twice changes nothing."""
    answer = answers.extract_answer_or_text(sample.output)
    return replace(
        sample,
        answer=answer,
        score=answers.grade(sample.problem_type, answer, sample.solution, rules=rules),
        parsed=answers.is_parsed(sample.problem_type, answer),
        well_formed=answers.has_think_answer_format(sample.output),
    )


def append_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Append rows and sync them to disk.

    Raises:
        DiskError: the disk refused; rows of earlier batches are intact.
    """
    text = "".join(_line(sample) for sample in samples)
    append_text(path, text, sync=True, knob="--out")


def rewrite_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Replace the file with graded rows."""
    write_atomically(path, "".join(_line(sample) for sample in samples), knob="--out")


def _line(sample: Sample) -> str:
    return json.dumps(asdict(sample), ensure_ascii=False) + "\n"


def read_samples(path: Path) -> list[Sample]:
    """Read the rows; the last one of a key counts.

    Raises:
        RecordsError: a line is not a sample (a torn last line is skipped).
    """
    if not path.is_file():
        raise MissingInputError(f"no samples at {path}; make them with strive-cli evaluate --out")
    found: dict[SampleKey, Sample] = {}
    for number, line in enumerate(whole_lines(path), start=1):
        sample = _parse(line, f"{path}, line {number}")
        found[sample.key] = sample
    return list(found.values())


_FIELDS = tuple(field.name for field in fields(Sample))


def _parse(line: bytes, where: str) -> Sample:
    try:
        row: dict[str, Any] = json.loads(line)
        row["source_index"] = tuple(row["source_index"])
        return Sample(**{name: row[name] for name in _FIELDS})
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise RecordsError(f"{where}: not an evaluation sample ({error})") from None
