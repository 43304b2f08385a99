"""MMVU, multiple choice of the validation split: 625 questions of five options, 379 videos."""

from dataclasses import replace
from pathlib import Path, PurePosixPath
from string import ascii_uppercase
from typing import Any

from strive.evaluate.benchmarks.files import Layout, Row, VideoIndex, find_questions
from strive.evaluate.benchmarks.published import (
    PublishedBenchmark,
    RowError,
    id_of,
    letter_of_answer,
    read_files,
    text_of,
    unlettered,
)
from strive.evaluate.items import Item, Reading
from strive.records import Record

MULTIPLE_CHOICE = "multiple-choice"
OPEN_ENDED = "open-ended"
SUBJECTS = {
    "Science": (
        "Biology", "Chemistry", "Modern_Physics", "Astronomy", "Geography", "Materials_Science",
        "Neurobiology", "Electromagnetism", "Thermodynamics", "Mechanics",
    ),
    "Engineering": (
        "Civil_Engineering", "Electrical_Engineering", "Mechanical_Engineering",
        "Biomedical_Engineering", "Electronics_and_Communication", "Computer_Science",
    ),
    "Healthcare": (
        "Clinical_Medicine", "Basic_Medicine", "Preventive_Medicine", "Pharmacy", "Dentistry",
    ),
    "Humanities_and_Social_Science": (
        "Art", "Literature", "History", "Law", "Economics", "Management",
    ),
}  # fmt: skip
"""The 27 subjects by discipline."""
DISCIPLINES = {subject: name for name, subjects in SUBJECTS.items() for subject in subjects}


class MMVU(PublishedBenchmark):
    """MMVU (arXiv:2501.12380), its multiple-choice questions; open-ended ones are left out.

    The subject is the video's folder, as in lmms-eval: for a few rows `metadata.subject` says
    another. The direct prompt is the official one that asks for the letter alone; lmms-eval's has
    a line more ("Visual Information: processed video"). Whether the mirror's `video_path` begins
    with `videos/` is not published, so videos are found by the subject and number of `video`.
    """

    name = "mmvu"
    default_split = "validation"
    layout = Layout(
        datasets=("yale-nlp/MMVU", "lmms-lab/MMVU", "lmms-eval/MMVU"),
        size="1 GB",
        folders=("mmvu",),
        videos=("videos", "data/videos", "data", ""),
        video_r1="eval_mmvu.json",
    )
    questions = (
        "validation.json",
        "data/validation-*.parquet",
        "validation-*.parquet",
        "validation.jsonl",
    )

    def read_published(self, root: Path, split: str) -> Reading:
        """Read the published JSON, or the mirror's Parquet.

        Raises:
            MissingInputError, RecordsError: as `Benchmark.read`.
        """
        index = VideoIndex(root, self.layout)

        def outline(where: str, row: Row) -> Item:
            video = _subject_and_number(id_of(row, "video", where))
            return Item(
                question_id=id_of(row, "id", where),
                video_id=index.path_of(video),
                problem="",
                problem_type="multiple choice",
                options=(),
                solution="",
                dimensions=_dimensions(video),
                cluster=video,
            )

        columns = ("id", "video", "question_type", "question", "choices", "answer")
        files = find_questions(root, self.layout, self.questions)
        return read_files(self.name, files, columns, outline, _complete, _why_left_out)

    def direct_prompt(self, item: Record) -> str:
        """Return the official prompt."""
        letters = zip(ascii_uppercase, item.options, strict=False)
        options = "".join(f"{letter}: {unlettered(option)}\n" for letter, option in letters)
        return (
            f"\nQuestion: {item.problem}\n{options}\n"
            "Do not generate any intermediate reasoning process. Answer directly with the option "
            "letter from the given choices.\n"
        )

    def video_r1_dimensions(self, row: Row) -> dict[str, str]:
        """Return the subject that the folder of the row's video names."""
        return _dimensions(_subject_and_number(str(row["path"])))


def _why_left_out(row: Row) -> str:
    return f"{OPEN_ENDED} questions" if row["question_type"] == OPEN_ENDED else ""


def _complete(item: Item, row: Row) -> Item:
    if row["question_type"] != MULTIPLE_CHOICE:
        known = f"{MULTIPLE_CHOICE}, {OPEN_ENDED}"
        raise RowError(f"'question_type' is {row['question_type']!r:.200}; known: {known}")
    options = lettered_choices(row["choices"])
    return replace(
        item,
        problem=text_of(row, "question"),
        options=options,
        solution=letter_of_answer(row["answer"], options),
    )


def lettered_choices(choices: Any) -> tuple[str, ...]:
    """Return the choices {"A": "a cat", ...} as options, "A. a cat".

    Raises:
        RowError: no texts under the letters from A on.
    """
    given = choices if isinstance(choices, dict) else {}
    texts = [given.get(letter) for letter in ascii_uppercase[: len(given)]]
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise RowError(f"choices are {choices!r:.200}; a text under each letter from A is wanted")
    return tuple(f"{letter}. {text}" for letter, text in zip(ascii_uppercase, texts, strict=False))


def _subject_and_number(video: str) -> str:
    """Return "Art/0" of ".../videos/Art/0.mp4"."""
    return "/".join(PurePosixPath(video).with_suffix("").parts[-2:])


def _dimensions(video: str) -> dict[str, str]:
    subject = video.split("/")[0]
    return {"discipline": DISCIPLINES.get(subject, "(none)"), "subject": subject}
