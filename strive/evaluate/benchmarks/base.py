"""`Benchmark`: what evaluation asks of a benchmark, with the defaults of plain records."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from strive import answers
from strive.choices import EvaluationGrading, EvaluationProtocol, FramesMode
from strive.evaluate.benchmarks.files import Layout
from strive.evaluate.items import MICRO, Grade, Item, Reading, Total
from strive.evaluate.samples import Sample
from strive.records import Record


class Benchmark(ABC):
    """Reads a benchmark's published files, words its questions, grades and averages the answers.

    A subclass says how to `read`; the rest has the defaults of plain records in Video-R1's schema.
    """

    name: ClassVar[str]
    layout: ClassVar[Layout | None] = None
    """Where its published files may be; None: its records say where their videos are."""
    default_split: ClassVar[str] = "test"
    """The part that is asked unless another is named."""

    @abstractmethod
    def read(self, root: Path, split: str) -> Reading:
        """Read the questions of a split; paths of videos are relative to `root`.

        Raises:
            MissingInputError: a file of questions is not there; the message says which and where
                it is published.
            RecordsError: it is not what was published.
        """

    def asked(self, reading: Reading, protocol: EvaluationProtocol) -> Reading:
        """Return what a protocol asks of a reading, which counts what it leaves out with why."""
        return reading

    def prompt(self, item: Record, protocol: EvaluationProtocol) -> str:
        """Return the text of the user turn that follows the video."""
        template = "video_r1_eval" if protocol == "video_r1" else "direct"
        return answers.build_question(item, template)

    def frames_mode(self, protocol: EvaluationProtocol) -> FramesMode:
        """Return the rule by which a protocol chooses frames."""
        return "uniform"

    def grade(self, sample: Sample, grading: EvaluationGrading) -> Grade:
        """Read the answer in a sample's output and grade it; never raises.

        `direct` reads what a person would accept here (the tolerant rules), since plain records
        have no official grading.
        """
        rules: answers.GradingRules = "video_r1" if grading == "video_r1" else "tolerant"
        tagged = answers.extract_graded(sample.problem_type, sample.output)
        answer = tagged or sample.output.strip()
        score = answers.grade(sample.problem_type, answer, sample.solution, rules=rules)
        return Grade(
            score=score,
            answer=answer,
            rule="answer tag" if tagged else "whole text",
            parsed=answers.is_parsed(sample.problem_type, answer),
        )

    def totals(self, grading: EvaluationGrading) -> tuple[Total, ...]:
        """Return the ways to average, the headline first."""
        return (MICRO,)


class PlainRecords(Benchmark):
    """Questions that are records already: a file of the user's own, or their function's."""

    name = "records"

    def __init__(self, records: tuple[Record, ...] = ()) -> None:
        self.records = records

    def read(self, root: Path, split: str) -> Reading:
        """Return the records that it was made of."""
        return Reading(tuple(Item.of(record) for record in self.records))
