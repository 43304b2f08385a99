"""TempCompass: actions, directions, speeds, orders and changes in time (arXiv:2403.00476)."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from strive.choices import EvaluationGrading, EvaluationProtocol
from strive.errors import MissingInputError, RecordsError
from strive.evaluate.benchmarks.files import (
    Layout,
    Row,
    VideoIndex,
    find_questions,
    read_object,
    read_rows,
)
from strive.evaluate.benchmarks.published import (
    PublishedBenchmark,
    RowError,
    collect,
    id_of,
    label_of,
    letter_options,
    text_of,
    unlettered,
)
from strive.evaluate.grading import grade_choice, grade_tempcompass
from strive.evaluate.items import Failure, Grade, Graded, Item, Reading, Total
from strive.evaluate.reading import fold
from strive.evaluate.samples import Sample
from strive.records import Record

CHOICE, YES_NO, MATCHING, CAPTIONING = "multi-choice", "yes_no", "caption_matching", "captioning"
TASKS = (CHOICE, YES_NO, MATCHING, CAPTIONING)
RULE_TASKS = (CHOICE, YES_NO, MATCHING)
"""Those that rules can grade; captions need a judge."""
_SUFFIXES: Mapping[str, str] = {
    CHOICE: "\nPlease directly give the best option:",
    YES_NO: "\nPlease answer yes or no:",
    MATCHING: "\nPlease directly give the best option:",
    CAPTIONING: "",
}
_COLUMNS = ("video_id", "question", "answer", "dim")
_CAPTIONING_COLUMNS = (*_COLUMNS, "mc_question", "mc_answer")
_CHOICE_LINE = re.compile(r"(?P<label>([A-Z]))[.)]\s*(?P<text>.*)")
_CAPTION_LINE = re.compile(r"(?P<label>(?:Option|Caption|Sentence) ([12AB])):\s*(?P<text>.*)")


@dataclass(frozen=True, slots=True)
class TempCompassItem(Item):
    """A question as lettered multiple choice, and as it was published."""

    published: str = ""
    """With its options in its last lines, if it has any."""


class TempCompass(PublishedBenchmark):
    """TempCompass: 7,540 questions in four tasks about 410 videos, of which 5,536 rules can grade.

    Totals: `mc`, the task multi-choice alone (1,580); `rule3_micro` and `rule3_macro`, the mean
    over the questions (5,536) and over the accuracies of the three tasks without captioning;
    `video_r1`, all four (7,540). No average across tasks is official.

    `video_r1` asks all four tasks as lettered multiple choice. Video-R1's own file was not seen:
    its number of rows, and that all are multiple choice, are second-hand; the conversion here is
    ours. "yes" and "no" become options A and B, captions lose their labels for letters, and
    captioning asks the multiple-choice question by which its captions are judged (`mc_question`;
    of the official JSON, as its judge does, the first multiple-choice question of the same video
    and aspect). `direct` leaves captioning out, because it needs a judge, and cannot ask
    Video-R1's copy, which does not say the task.

    Results are reported by `task`, `dim` (five aspects), both, and by the 11 fine-grained
    aspects where `meta_info.json` of the official repository is there.
    """

    name = "tempcompass"
    layout = Layout(
        datasets=("lmms-lab/TempCompass", "lmms-eval/TempCompass"),
        size="0.5 GB",
        folders=("tempcompass",),
        video_r1="eval_tempcompass.json",
    )

    def read_published(self, root: Path, split: str) -> Reading:
        """Read the four tasks, from Parquet (or JSON lines) a task or the official `questions/`."""
        index = VideoIndex(root, self.layout)
        fine = _fine_aspects(root, self.layout)
        items: list[Item] = []
        failures: list[Failure] = []
        files: list[Path] = []
        for task in TASKS:
            patterns = (f"{task}/test*.parquet", f"{task}/test*.jsonl", f"questions/{task}.json")
            found = find_questions(root, self.layout, patterns)
            files.extend(found)
            rows = (pair for path in found for pair in _rows(path, task))
            some, bad = collect(self.name, rows, _Outline(task, index, fine), _complete)
            items.extend(some)
            failures.extend(bad)
        return Reading(tuple(items), tuple(failures), tuple(files))

    def asked(self, reading: Reading, protocol: EvaluationProtocol) -> Reading:
        """Leave captioning, and questions of no known task, out of `direct`."""
        if protocol != "direct":
            return reading
        rows: list[Item | Failure] = [*reading.items, *reading.failures]
        reasons = [why for why in map(_why_not_direct, rows) if why]
        return replace(
            reading,
            items=tuple(item for item in reading.items if not _why_not_direct(item)),
            failures=tuple(row for row in reading.failures if not _why_not_direct(row)),
            left_out=dict(Counter(reasons)),
        )

    def direct_prompt(self, item: Record) -> str:
        """Return the official prompt: the question as published, and what its task adds."""
        item = Item.of(item)
        text = item.published if isinstance(item, TempCompassItem) else item.problem
        return text + _SUFFIXES[item.dimensions["task"]]

    def direct_grade(self, sample: Sample) -> Grade:
        """Read what the task asks for; a letter is accepted for yes or no too."""
        task = sample.dimensions.get("task", "")
        if task != YES_NO:
            return grade_tempcompass(sample.output, sample.options, sample.solution, task or CHOICE)
        answer = unlettered(sample.options[ascii_uppercase.index(sample.solution)])
        grade = grade_tempcompass(sample.output, (), answer, task)
        # Asked by Video-R1's prompt, a policy answers with the option's letter.
        return (
            grade if grade.parsed else grade_choice(sample.output, sample.options, sample.solution)
        )

    def totals(self, grading: EvaluationGrading) -> tuple[Total, ...]:
        """Return the averages; `direct` has none over all four tasks."""
        own = (
            Total("rule3_micro", lambda row: _path_among(row, RULE_TASKS, is_macro=False)),
            Total(
                "rule3_macro",
                lambda row: _path_among(row, RULE_TASKS, is_macro=True),
                groups=RULE_TASKS,
            ),
            Total("mc", lambda row: _path_among(row, (CHOICE,), is_macro=False)),
        )
        return (Total("video_r1"), *own) if grading == "video_r1" else own


def _path_among(row: Graded, tasks: tuple[str, ...], *, is_macro: bool) -> tuple[str, ...] | None:
    task = row.dimensions.get("task", "")
    if task not in tasks:
        return None
    return (task,) if is_macro else ()


def _why_not_direct(row: Item | Failure) -> str:
    task = row.dimensions.get("task")
    if task == CAPTIONING:
        return "captions are graded by a judge model, which direct does without"
    if task is None:
        return "Video-R1's copy does not say a question's task, by which direct words it"
    return ""


# --- rows ---------------------------------------------------------------------------------------


def _rows(path: Path, task: str) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) with the columns of the Parquet form, whichever form the file has."""
    if path.suffix != ".json":
        columns = _CAPTIONING_COLUMNS if task == CAPTIONING else _COLUMNS
        yield from read_rows(path, columns)
        return
    judged_by = _official_questions(path.with_name(f"{CHOICE}.json")) if task == CAPTIONING else {}
    for (video_id, dim), questions in _official_questions(path).items():
        for number, question in enumerate(questions, start=1):
            where = f"{path}, video '{video_id}', {dim} {number}"
            for column in ("question", "answer"):
                if column not in question:
                    raise RecordsError(
                        f"{where}: no column '{column}'; there are: {', '.join(question) or 'none'}"
                    )
            judge = (judged_by.get((video_id, dim)) or [{}])[0]
            choice = {"mc_question": judge.get("question"), "mc_answer": judge.get("answer")}
            yield where, {**choice, **question, "video_id": video_id, "dim": dim}


def _official_questions(path: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Read {video: {aspect: [question]}} as {(video, aspect): [question]}.

    Raises:
        RecordsError: it is something else.
        MissingInputError: there is no such file.
    """
    if not path.is_file():
        raise MissingInputError(
            f"no {path}: captioning is judged by the multiple-choice questions in it; both are "
            "in questions/ of the official repository, github.com/llyx97/TempCompass"
        )
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for video_id, by_dim in read_object(path).items():
        if not isinstance(by_dim, dict) or not all(map(_is_questions, by_dim.values())):
            raise RecordsError(
                f"{path}, video '{video_id}': {{aspect: [{{question, answer}}]}} is expected, "
                f"found {by_dim!r:.100}"
            )
        found.update({(video_id, dim): questions for dim, questions in by_dim.items()})
    return found


def _is_questions(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(question, dict) for question in value)


def _fine_aspects(root: Path, layout: Layout) -> dict[str, Any] | None:
    """Read `meta_info.json`, {video: {"eval_dim": {aspect: {"type": fine aspect}}}}, if there."""
    try:
        [path] = find_questions(root, layout, ["meta_info.json"])
    except MissingInputError:
        return None
    return read_object(path)


class _Outline:
    """What is known of any row of a task; ids count a video's questions of one aspect.

    Neither form has ids; both have a video's questions in the same order.
    """

    def __init__(self, task: str, index: VideoIndex, fine: dict[str, Any] | None) -> None:
        self.task = task
        self.index = index
        self.fine = fine
        self.numbers: dict[str, int] = {}

    def __call__(self, where: str, row: Row) -> TempCompassItem:
        video, dim = id_of(row, "video_id", where), label_of(row["dim"])
        place = f"{self.task}/{video}/{dim}"
        number = self.numbers[place] = self.numbers.get(place, 0) + 1
        dimensions = {"task": self.task, "dim": dim, "task and dim": f"{self.task} {dim}"}
        if self.fine is not None:
            dimensions["fine aspect"] = (
                dim if dim == "order" else _fine_aspect(self.fine, video, dim)
            )
        return TempCompassItem(
            question_id=f"{place}/{number}",
            video_id=self.index.path_of(video),
            problem="",
            problem_type="multiple choice",
            options=(),
            solution="",
            dimensions=dimensions,
            cluster=video,
            published=str(row["question"] or ""),
        )


def _fine_aspect(fine: dict[str, Any], video: str, dim: str) -> str:
    found: Any = fine
    for key in (video, "eval_dim", dim, "type"):
        found = found.get(key) if isinstance(found, dict) else None
    return label_of(found)


def _complete(item: Item, row: Row) -> Item:
    """Add question, options and solution, or raise `RowError`."""
    task = item.dimensions["task"]
    prefix = "mc_" if task == CAPTIONING else ""
    question, answer = text_of(row, f"{prefix}question"), text_of(row, f"{prefix}answer")
    stem, lines = question, [("A", "yes"), ("B", "no")]
    if task != YES_NO:
        stem, lines = split_question(question)
        if not lines:
            raise RowError(f"no options at the end of the question {question!r:.200}")
    number = _number_of_answer(answer, lines)
    options = letter_options([text for _, text in lines])
    return replace(item, problem=stem, options=options, solution=ascii_uppercase[number])


def split_question(question: str) -> tuple[str, list[tuple[str, str]]]:
    """Split a published question from its options, (label, text) each, which are its last lines.

    The labels are A, B, C ... ("A. walking"), or 1 and 2, or A and B, behind the word Option,
    Caption or Sentence ("Option 1: A man walks."). Lines of other labels are no options.
    """
    lines = question.rstrip().split("\n")
    for pattern, orders in ((_CHOICE_LINE, (ascii_uppercase,)), (_CAPTION_LINE, ("AB", "12"))):
        matches = [pattern.fullmatch(line.strip()) for line in lines]
        first = len(lines)
        while first > 1 and matches[first - 1]:
            first -= 1
        found = [match for match in matches[first:] if match]
        order = "".join(match[2] for match in found)
        if len(found) > 1 and any(known.startswith(order) for known in orders):
            return "\n".join(lines[:first]), [(match["label"], match["text"]) for match in found]
    return question, []


def _number_of_answer(answer: str, lines: list[tuple[str, str]]) -> int:
    """Return which option an answer is: the whole line, its text or its label.

    Raises:
        RowError: it is none, or several.
    """
    wanted = fold(answer)
    found = [
        number
        for number, (label, text) in enumerate(lines)
        if wanted in (fold(f"{label}. {text}"), fold(f"{label}: {text}"), fold(text), fold(label))
    ]
    if len(found) != 1:
        shown = "; ".join(f"{label}: {text}" for label, text in lines)
        raise RowError(f"answer {answer!r:.200} is no option, or several; they are {shown:.300}")
    return found[0]
