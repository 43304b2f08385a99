"""VSI-Bench: where things are, how large and how many, in filmed rooms (arXiv:2412.14171)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from strive.answers import strict_number
from strive.choices import EvaluationGrading
from strive.evaluate.benchmarks.files import Layout, Row, VideoIndex, find_questions
from strive.evaluate.benchmarks.published import (
    PublishedBenchmark,
    RowError,
    id_of,
    label_of,
    letter_of_answer,
    letter_options,
    read_files,
    text_of,
)
from strive.evaluate.grading import grade_vsibench
from strive.evaluate.items import Grade, Graded, Item, Reading, Total
from strive.evaluate.samples import Sample
from strive.records import Record

DIRECTION = "object_rel_direction"
CHOICE_TYPES = (
    "obj_appearance_order",
    "object_rel_distance",
    "route_planning",
    f"{DIRECTION}_easy",
    f"{DIRECTION}_medium",
    f"{DIRECTION}_hard",
)
NUMBER_TYPES = (
    "object_counting",
    "object_abs_distance",
    "object_size_estimation",
    "room_size_estimation",
)
OFFICIAL_TYPES = (*NUMBER_TYPES, *CHOICE_TYPES[:3], DIRECTION)
"""The eight of the official average; the three degrees of direction are one of them."""

# The same questions in each form in which they have been published, the newest first.
_FILES: Mapping[str, tuple[str, ...]] = {
    "full": (
        "test.jsonl",
        "test-*.parquet",
        "full/test*.parquet",
        "data/test-*.parquet",
        "test.parquet",
    ),
    "debiased": ("test_debiased.parquet", "debiased/test*.parquet", "test_debiased.jsonl"),
    "pruned": ("test_pruned.parquet", "pruned/test*.parquet", "test_pruned.jsonl"),
}
_COLUMNS = (
    "id",
    "dataset",
    "scene_name",
    "question_type",
    "question",
    "ground_truth",
    "options",
)


class VSIBench(PublishedBenchmark):
    """VSI-Bench: 5,130 questions about 288 videos in split `full`; also `debiased` and `pruned`.

    Three averages are in use, up to 1.5 points apart; each has its name. `official`: the mean over
    eight types, of which the direction of objects is the plain mean over easy, medium and hard.
    `video_r1`: the mean of the mean relative accuracy of numbers and the accuracy of all else
    (its author, Video-R1#121). `micro`: the plain mean. The headline is the grading's own.
    An average over fewer types (of a small subset) says which are absent. A row of an unknown type
    counts as wrong in `micro` and `video_r1`; to the eight types it does not belong.

    Video-R1's copy of the questions does not say their types, so that of it there is no official
    average. The counts of `debiased` and `pruned` are not checked against anything.
    """

    name = "vsibench"
    default_split = "full"
    splits = tuple(_FILES)
    layout = Layout(
        datasets=("nyu-visionx/VSI-Bench",),
        size="6 GB",
        folders=("vsibench",),
        videos=("", "videos", "video"),
        video_r1="eval_vsibench.json",
    )

    def read_published(self, root: Path, split: str) -> Reading:
        """Read the rows of a split."""
        files = find_questions(root, self.layout, _FILES[split])
        index = VideoIndex(root, self.layout)

        def outline(where: str, row: Row) -> Item:
            question_type = label_of(row["question_type"])
            has_options = question_type in CHOICE_TYPES or (
                question_type not in NUMBER_TYPES and bool(row["options"])
            )
            scene = f"{id_of(row, 'dataset', where)}/{id_of(row, 'scene_name', where)}"
            return Item(
                question_id=id_of(row, "id", where),
                video_id=index.path_of(scene),
                problem="",
                problem_type="multiple choice" if has_options else "regression",
                options=(),
                solution="",
                dimensions={"question_type": question_type, "dataset": str(row["dataset"])},
                cluster=scene,
            )

        return read_files(self.name, files, _COLUMNS, outline, _complete)

    def direct_prompt(self, item: Record) -> str:
        """Return the official prompt (thinking-in-space and lmms-eval agree)."""
        begin = "These are frames of a video."
        if item.problem_type != "multiple choice":
            end = "Please answer the question using a single word or phrase."
            return "\n".join((begin, item.problem, end))
        end = "Answer with the option's letter from the given choices directly."
        return "\n".join((begin, item.problem, "Options:", *item.options, end))

    def direct_grade(self, sample: Sample) -> Grade:
        """Read a letter, or a number for the mean relative accuracy."""
        return grade_vsibench(sample.output, sample.options, sample.solution)

    def totals(self, grading: EvaluationGrading) -> tuple[Total, ...]:
        """Return the three averages, the grading's own first."""
        official = Total("official", official_path, groups=OFFICIAL_TYPES)
        halves = Total(
            "video_r1",
            lambda row: (_half_of(row),),
            groups=("multiple choice", "regression"),
        )
        micro = Total("micro")
        return (halves, official, micro) if grading == "video_r1" else (official, halves, micro)


def _half_of(row: Graded) -> str:
    """Return which of the two means of `video_r1` a row is in.

    Whatever is no regression counts in the accuracy (Video-R1, src/eval_bench.py, mean_acc), a row
    of an odd type too: as a group of its own it would weigh as much as all the others of a half.
    """
    return "regression" if row.problem_type == "regression" else "multiple choice"


def official_path(row: Graded) -> tuple[str, ...] | None:
    """Return a row's type among the eight, and of a direction its degree below it."""
    question_type = row.dimensions.get("question_type", "")
    if question_type.startswith(f"{DIRECTION}_") and question_type in CHOICE_TYPES:
        return (DIRECTION, question_type.removeprefix(f"{DIRECTION}_"))
    return (question_type,) if question_type in OFFICIAL_TYPES else None


def _complete(item: Item, row: Row) -> Item:
    """Add question, options and solution, or raise `RowError`."""
    question_type = item.dimensions["question_type"]
    problem = text_of(row, "question")
    if question_type in CHOICE_TYPES:
        options = letter_options(row["options"])
        solution = letter_of_answer(row["ground_truth"], options)
        return replace(item, problem=problem, options=options, solution=solution)
    if question_type not in NUMBER_TYPES:
        known = ", ".join((*CHOICE_TYPES, *NUMBER_TYPES))
        raise RowError(f"'question_type' is {row['question_type']!r:.200}; known: {known}")
    if row["options"]:
        raise RowError(f"a question of {question_type} with options; a number is its answer")
    return replace(item, problem=problem, solution=number_of(row["ground_truth"]))


def number_of(value: Any) -> str:
    """Return a published number as text.

    Raises:
        RowError: it is none.
    """
    text = "" if value is None or isinstance(value, bool) else str(value).strip()
    if strict_number(text) is None:
        raise RowError(f"answer {value!r:.200} is no number")
    return text
