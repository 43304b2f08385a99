"""What published benchmarks share: rows into items or failures, letters, Video-R1's copy of them.

A row that cannot be asked or graded becomes a `Failure`, which counts as wrong and is listed.
"""

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any, ClassVar, cast

from strive.answers import extract_answer_or_text
from strive.choices import EvaluationGrading, EvaluationProtocol, FramesMode
from strive.errors import MissingInputError, RecordsError, unknown_name
from strive.evaluate.benchmarks.base import Benchmark
from strive.evaluate.benchmarks.files import Layout, Row, VideoIndex, find_questions, read_rows
from strive.evaluate.grading import grade_choice, grade_video_r1
from strive.evaluate.items import BAD_ROW, Failure, Grade, Item, Reading
from strive.evaluate.samples import Sample
from strive.progress import say
from strive.records import PROBLEM_TYPES, ProblemType, Record

VIDEO_R1 = "video_r1"
"""The split that is Video-R1's copy of a benchmark's questions, of its dataset Video-R1-eval."""


class RowError(ValueError):
    """A row cannot be asked or graded; the text says why in half a sentence."""


# --- values of a row ----------------------------------------------------------------------------


def id_of(row: Row, column: str, where: str) -> str:
    """Return a row's id, or part of it, as text.

    Raises:
        RecordsError: it is no text and no whole number; without it a row cannot even be counted.
    """
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise RecordsError(f"{where}: '{column}' is {value!r}; a text or a whole number is wanted")
    return str(value)


def text_of(row: Row, column: str) -> str:
    """Return a text that is not blank, as it is written.

    Raises:
        RowError: it is something else.
    """
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"'{column}' is {value!r:.200}; a text is wanted")
    return value


def label_of(value: Any) -> str:
    """Return what a row is reported by; "(none)" where it does not say."""
    return str(value) if value not in (None, "") else "(none)"


_LETTERED = re.compile(r"\s*([A-Z])\s*[.):\uff1a] ?")


def letter_options(options: Any) -> tuple[str, ...]:
    """Return options with their letters, "A. a cat"; those that all have theirs stay as written.

    Raises:
        RowError: no list of 2 to 26 texts, or fewer than two of them say anything.
    """
    if not isinstance(options, (list, tuple)) or not all(isinstance(o, str) for o in options):
        raise RowError(f"options are {options!r:.200}; a list of texts is wanted")
    if not 2 <= len(options) <= len(ascii_uppercase):
        raise RowError(f"{len(options)} options; 2 to {len(ascii_uppercase)} are wanted")
    if sum(bool(option.strip()) for option in options) < 2:
        raise RowError(f"options are {options!r:.200}; two at least must have a text")
    pairs = list(zip(ascii_uppercase, options, strict=False))
    if all((match := _LETTERED.match(o)) and match[1] == letter for letter, o in pairs):
        return tuple(options)
    return tuple(f"{letter}. {option}" for letter, option in pairs)


def unlettered(option: str) -> str:
    """Return the text of an option of `letter_options`, as it was published."""
    match = _LETTERED.match(option)
    return option[match.end() :] if match else option


def letter_of_answer(answer: Any, options: tuple[str, ...]) -> str:
    """Return a published letter that is one of the options'.

    Raises:
        RowError: it is none.
    """
    letters = ascii_uppercase[: len(options)]
    letter = answer.strip() if isinstance(answer, str) else ""
    if len(letter) != 1 or letter not in letters:
        raise RowError(
            f"answer {answer!r:.200} is no option; they are {letters[0]} to {letters[-1]}"
        )
    return letter


def letter_of_index(answer: Any, options: tuple[str, ...]) -> str:
    """Return the letter of a published index from 0, a whole number or its digits.

    Raises:
        RowError: it is no option's.
    """
    text = "" if isinstance(answer, bool) else str(answer).strip()
    if not text.isdecimal() or int(text) >= len(options):
        raise RowError(f"answer {answer!r:.200} is no option; they are 0 to {len(options) - 1}")
    return ascii_uppercase[int(text)]


# --- rows into items ----------------------------------------------------------------------------


def collect(
    benchmark: str,
    rows: Iterable[tuple[str, Row]],
    outline: Callable[[str, Row], Item],
    complete: Callable[[Item, Row], Item],
) -> tuple[tuple[Item, ...], tuple[Failure, ...]]:
    """Turn (where, row) into items; a row that cannot be completed becomes a failure.

    `outline(where, row)` gives what is known of any row (id, video, dimensions), with which a
    failure is reported; `complete(item, row)` adds question, options and solution or raises
    `RowError`.
    """
    items: list[Item] = []
    failures: list[Failure] = []
    for where, row in rows:
        item = outline(where, row)
        try:
            items.append(complete(item, row))
        except RowError as error:
            failures.append(Failure.of(item, benchmark, BAD_ROW, f"{where}: {error}"))
    return tuple(items), tuple(failures)


def read_files(
    benchmark: str,
    files: Sequence[Path],
    columns: Collection[str],
    outline: Callable[[str, Row], Item],
    complete: Callable[[Item, Row], Item],
    why_left_out: Callable[[Row], str] = lambda row: "",
) -> Reading:
    """Read the rows of files as `collect` does.

    A row for which `why_left_out` has a reason is not asked; it is counted under it.

    Raises:
        RecordsError: a column is missing, or a file is damaged.
    """
    left_out: Counter[str] = Counter()
    rows = []
    for path in files:
        for where, row in read_rows(path, columns):
            why = why_left_out(row)
            if why:
                left_out[why] += 1
            else:
                rows.append((where, row))
    items, failures = collect(benchmark, rows, outline, complete)
    return Reading(items, failures, tuple(files), dict(left_out))


class PublishedBenchmark(Benchmark):
    """A benchmark of published files, its own or Video-R1's copy of them.

    Its own are read where both are there; `--split video_r1` asks for the copy. Where only the copy
    is there it is read, and that is said.
    """

    layout: ClassVar[Layout]
    splits: ClassVar[tuple[str, ...]] = ()
    """Its own splits; none named: `default_split` alone."""

    @abstractmethod
    def read_published(self, root: Path, split: str) -> Reading:
        """Read the benchmark's own files.

        Raises:
            MissingInputError: a file of questions is not there.
            RecordsError: it is not what was published.
        """

    @abstractmethod
    def direct_prompt(self, item: Record) -> str:
        """Return the text that follows the video in the benchmark's own protocol."""

    def read(self, root: Path, split: str) -> Reading:
        """Read a split, or Video-R1's copy.

        Raises:
            UnknownNameError: there is no such split.
            MissingInputError, RecordsError: as `read_published`.
        """
        has_copy = bool(self.layout.video_r1)
        known = [*(self.splits or (self.default_split,)), *([VIDEO_R1] if has_copy else [])]
        if split not in known:
            raise unknown_name(f"split of {self.name}", split, known)
        if split == VIDEO_R1:
            return self.read_video_r1(root)
        try:
            return self.read_published(root, split)
        except MissingInputError as error:
            if split != self.default_split or not has_copy:
                raise
            try:
                reading = self.read_video_r1(root)
            except MissingInputError:
                raise error from None
            say(f"{self.name}: Video-R1's copy of the questions is asked, {reading.files[0]}")
            return reading

    def read_video_r1(self, root: Path) -> Reading:
        """Read Video-R1's copy; a video is found by the tail of its path.

        Raises:
            MissingInputError, RecordsError: as `read_published`.
        """
        [path] = find_questions(root, self.layout, [self.layout.video_r1])
        index = VideoIndex(root, self.layout)
        columns = ("problem_id", "problem", "problem_type", "options", "solution", "path")

        def outline(where: str, row: Row) -> Item:
            video_id = index.path_by_tail(id_of(row, "path", where))
            return Item(
                question_id=id_of(row, "problem_id", where),
                video_id=video_id,
                problem="",
                # What is none of the known types fails below.
                problem_type=cast(ProblemType, str(row["problem_type"] or "")),
                options=(),
                solution="",
                data_source=str(row.get("data_source") or ""),
                dimensions=self.video_r1_dimensions(row),
            )

        return read_files(self.name, [path], columns, outline, complete_video_r1)

    def video_r1_dimensions(self, row: Row) -> dict[str, str]:
        """Return what a row of Video-R1's copy is reported by: it has its type only."""
        return {}

    def prompt(self, item: Record, protocol: EvaluationProtocol) -> str:
        """Return the text of the user turn that follows the video."""
        return self.direct_prompt(item) if protocol == "direct" else super().prompt(item, protocol)

    def grade(self, sample: Sample, grading: EvaluationGrading) -> Grade:
        """Grade by Video-R1's evaluation script, or by what the benchmark accepts."""
        if grading == "video_r1":
            return grade_video_r1(sample.problem_type, sample.output, sample.solution)
        return self.direct_grade(sample)

    def direct_grade(self, sample: Sample) -> Grade:
        """Read the letter of an option; a benchmark with other answers reads those."""
        return grade_choice(sample.output, sample.options, sample.solution)

    def frames_mode(self, protocol: EvaluationProtocol) -> FramesMode:
        """Video-R1 shows two frames a second; lmms-eval spreads them to the very last frame."""
        return "fps" if protocol == "video_r1" else "linspace"


def complete_video_r1(item: Item, row: Row) -> Item:
    """Add question, options and solution of a row of Video-R1's copy.

    Raises:
        RowError: one of them cannot be asked or graded.
    """
    if item.problem_type not in PROBLEM_TYPES:
        known = ", ".join(PROBLEM_TYPES)
        raise RowError(f"'problem_type' is {row['problem_type']!r:.200}; known: {known}")
    problem = text_of(row, "problem")
    solution = extract_answer_or_text(text_of(row, "solution"))
    options: tuple[str, ...] = ()
    if item.problem_type == "multiple choice":
        options = letter_options(row["options"])
        solution = letter_of_answer(solution, options)
    return replace(item, problem=problem, options=options, solution=solution)
