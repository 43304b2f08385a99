"""One sample a question: what was asked, what was answered, how it was graded.

`samples.jsonl` is appended to after every batch and synced to disk, so a killed run loses at most
the batch in flight. Grades in it are a convenience: they are always computed anew from the stored
output (`rescore` does only that), by the benchmark that asked.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

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
    rule: str = ""
    """Name of the rule that read the answer."""
    options: tuple[str, ...] = ()
    dimensions: dict[str, str] = field(default_factory=dict)
    """What the question is reported by, such as {"duration": "short"}."""
    cluster: str = ""
    """Key of the video, by which errors are clustered; empty: `video_id`."""
    pts_seconds: tuple[float, ...] = ()
    """When each frame of `source_index` is shown."""

    @property
    def key(self) -> SampleKey:
        """The identity by which a resumed run recognises it."""
        return (self.benchmark, self.question_id, self.prompt_hash)


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


def read_samples(path: Path, *, or_none: bool = False) -> list[Sample]:
    """Read the rows; the last one of a key counts. With `or_none` a missing file has none.

    Raises:
        RecordsError: a line is not a sample (a torn last line is skipped).
    """
    if or_none and not path.is_file():
        return []
    if not path.is_file():
        raise MissingInputError(f"no samples at {path}; make them with strive-cli evaluate --out")
    found: dict[SampleKey, Sample] = {}
    for number, line in enumerate(whole_lines(path), start=1):
        sample = _parse(line, f"{path}, line {number}")
        found[sample.key] = sample
    return list(found.values())


_TUPLES = ("source_index", "options", "pts_seconds")
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("benchmark", "question_id", "video_id", "solution", "output"), str),
    "score": (int, float),
    "dimensions": dict,
}


def _parse(line: bytes, where: str) -> Sample:
    """Read one line; what a line of an earlier version lacks has its default."""
    try:
        row: Any = json.loads(line)
        found = {
            f.name: row[f.name]
            for f in fields(Sample)
            if f.name in row or (f.default is MISSING and f.default_factory is MISSING)
        }
        for name, kinds in _KINDS.items():
            if name in found and not isinstance(found[name], kinds):
                raise TypeError(f"{name} is {found[name]!r:.100}")
        return Sample(**found | {name: tuple(found[name]) for name in _TUPLES if name in found})
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise RecordsError(f"{where}: not an evaluation sample ({error})") from None
