"""Video-MMMU: lectures, and questions at three depths about them (arXiv:2501.13826)."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from strive.answers import strict_number
from strive.choices import EvaluationGrading, EvaluationProtocol
from strive.evaluate.benchmarks.files import Layout, Row, VideoIndex, find_questions, read_rows
from strive.evaluate.benchmarks.published import (
    PublishedBenchmark,
    RowError,
    collect,
    id_of,
    letter_of_answer,
    letter_options,
    text_of,
)
from strive.evaluate.grading import grade_videommmu, published_solutions
from strive.evaluate.items import MICRO, Failure, Grade, Graded, Item, Reading, Total
from strive.evaluate.samples import Sample
from strive.progress import say
from strive.records import ProblemType, Record

ADAPTATION = "Adaptation"
TRACKS = ("Perception", "Comprehension", ADAPTATION)
DISCIPLINES: Mapping[str, tuple[str, ...]] = {
    "Art": ("Art", "Art_Theory", "Design", "Music"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Humanities": ("History", "Literature", "Sociology", "Psychology"),
    "Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
    "Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
}
"""{folder of videos: subjects}."""
_DISCIPLINE_OF = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects}
UNKNOWN = "(unknown)"
OPEN_TYPES = ("open", "open-ended")
QUESTION_CLIPS = "question_only"
"""The folder of clips of two seconds that show nothing but the question's image."""


class VideoMMMU(PublishedBenchmark):
    """Video-MMMU: 900 questions, three tracks about each of 300 lectures.

    Any row with options is multiple choice, whatever its type says (one says nothing). Of the open
    answers most are numbers, two are letters of options that only the image shows, and one is a
    list that was published as text, any entry of which is right.

    The image that Adaptation asks about is the last frame of the video, so that under both
    protocols the frames end at the very last one: `fps` and `linspace` do, `--frames-mode uniform`
    and a single frame do not.

    `video_r1` asks the bare question with lettered options, a number as "numerical" and a letter
    without options as multiple choice: how Video-R1 words these is not known. Its copy of the
    questions does not say the track, so that `direct` cannot word them; its released file is said
    to name the clips of the question's image in the place of the lectures (Video-R1#69), which is
    warned of.

    Reported by `track`, `discipline` (the folder) and `subject`; `tracks`, the mean of the
    three, equals the plain mean when all 900 are there.
    """

    name = "videommmu"
    layout = Layout(
        datasets=("lmms-lab/VideoMMMU", "lmms-eval/VideoMMMU"),
        size="13 GB",
        folders=("video_mmmu",),
        videos=("", "videos", "video"),
        video_r1="eval_videommmu.json",
    )

    def read_published(self, root: Path, split: str) -> Reading:
        """Read the three tracks."""
        index = VideoIndex(root, self.layout)
        items: list[Item] = []
        failures: list[Failure] = []
        files: list[Path] = []
        for track in TRACKS:
            found = find_questions(root, self.layout, _patterns(track))
            files.extend(found)

            def outline(where: str, row: Row, track: str = track) -> Item:
                return _outline(id_of(row, "id", where), track, index, bool(row["options"]))

            columns = ("id", "question", "options", "answer")
            rows = (pair for path in found for pair in read_rows(path, columns, ("question_type",)))
            some, bad = collect(self.name, rows, outline, _complete)
            items.extend(some)
            failures.extend(bad)
        return Reading(tuple(items), tuple(failures), tuple(files))

    def read_video_r1(self, root: Path) -> Reading:
        """Read Video-R1's copy; say where it shows the question's image alone."""
        reading = super().read_video_r1(root)
        num_clips = sum(QUESTION_CLIPS in item.video_id for item in reading.items)
        if num_clips:
            say(
                f"warning: {num_clips} of {len(reading.items)} questions of {reading.files[0]} "
                f"show a clip of the question's image ({QUESTION_CLIPS}/) and not the lecture; "
                "published scores are not comparable"
            )
        return reading

    def asked(self, reading: Reading, protocol: EvaluationProtocol) -> Reading:
        """Leave out of `direct` what does not say its track."""
        if protocol != "direct":
            return reading
        items = tuple(item for item in reading.items if "track" in item.dimensions)
        failures = tuple(row for row in reading.failures if "track" in row.dimensions)
        num_left = len(reading.items) + len(reading.failures) - len(items) - len(failures)
        why = "Video-R1's copy does not say a question's track, by which direct words it"
        left_out = {why: num_left} if num_left else {}
        return replace(reading, items=items, failures=failures, left_out=left_out)

    def direct_prompt(self, item: Record) -> str:
        """Return the official prompt (lmms-eval)."""
        text = "\n".join((item.problem, *item.options))
        if Item.of(item).dimensions["track"] != ADAPTATION:
            return f"{text}\nPlease ignore the Quiz question in last frame of the video."
        kind = "multi-choice" if item.options else "open-ended"
        return (
            "You should watch and learn the video content. Then apply what you learned to answer "
            f"the following {kind} question. The image for this question is at the end of the "
            f"video.\n{text}"
        )

    def grade(self, sample: Sample, grading: EvaluationGrading) -> Grade:
        """Grade an answer; of several solutions the one counts that it earns most of."""
        grade_one = super().grade
        solutions = published_solutions(sample.solution)
        grades = [grade_one(replace(sample, solution=text), grading) for text in solutions]
        return max(grades, key=lambda grade: grade.score)

    def direct_grade(self, sample: Sample) -> Grade:
        """Read a letter, or an open answer as MMMU does."""
        return grade_videommmu(sample.output, sample.options, sample.solution)

    def totals(self, grading: EvaluationGrading) -> tuple[Total, ...]:
        """Return the plain mean, and the mean of the tracks."""
        return (MICRO, Total("tracks", _track_path, groups=TRACKS))


def _track_path(row: Graded) -> tuple[str, ...] | None:
    return (row.dimensions["track"],) if "track" in row.dimensions else None


def _patterns(track: str) -> list[str]:
    stems = (f"{track}/test*", track, track.lower())
    return [f"{stem}{suffix}" for stem in stems for suffix in (".parquet", ".jsonl", ".json")]


def _outline(row_id: str, track: str, index: VideoIndex, has_options: bool) -> Item:
    # "validation_Basic_Medical_Science_10"
    subject = "_".join(row_id.split("_")[1:-1])
    discipline = _DISCIPLINE_OF.get(subject, UNKNOWN)
    in_folder = f"{discipline}/{row_id}"
    # Some leave the videos of all disciplines in one folder.
    video_id = index.find(in_folder) or index.find(row_id) or index.path_of(in_folder)
    return Item(
        question_id=f"{track}/{row_id}",
        video_id=video_id,
        problem="",
        problem_type="multiple choice" if has_options else "numerical",
        options=(),
        solution="",
        dimensions={"track": track, "discipline": discipline, "subject": subject or UNKNOWN},
        cluster=row_id,
    )


def _complete(item: Item, row: Row) -> Item:
    """Add question, options and solution, or raise `RowError`."""
    if item.dimensions["discipline"] == UNKNOWN:
        known = ", ".join(_DISCIPLINE_OF)
        raise RowError(f"'id' is {row['id']!r:.200}, of no known subject; known: {known}")
    problem = text_of(row, "question")
    if row["options"]:
        options = letter_options(row["options"])
        solution = letter_of_answer(row["answer"], options)
        return replace(item, problem=problem, options=options, solution=solution)
    question_type = row.get("question_type")
    if question_type not in OPEN_TYPES:
        raise RowError(
            f"no options, and 'question_type' is {question_type!r:.200}; without options it must "
            f"be {' or '.join(OPEN_TYPES)}"
        )
    solution = text_of(row, "answer").strip()
    return replace(item, problem=problem, solution=solution, problem_type=_open_type(solution))


def _open_type(solution: str) -> ProblemType:
    """Return what an open question asks for, by its solution."""
    if re.fullmatch("[A-Z]", solution):
        return "multiple choice"
    is_number = any(strict_number(text) is not None for text in published_solutions(solution))
    return "numerical" if is_number else "free-form"
