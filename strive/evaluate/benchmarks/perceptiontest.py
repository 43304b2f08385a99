"""PerceptionTest, multiple choice of the validation split: 19,140 questions of three options."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from strive.errors import RecordsError
from strive.evaluate.benchmarks.files import (
    Layout,
    Row,
    VideoIndex,
    find_questions,
    read_object,
    read_rows,
    require_columns,
)
from strive.evaluate.benchmarks.published import (
    PublishedBenchmark,
    collect,
    id_of,
    label_of,
    letter_of_index,
    letter_options,
    text_of,
)
from strive.evaluate.items import Item, Reading
from strive.records import Record

DIMENSIONS = ("area", "reasoning")
CUT = "validation_cut"
"""The split whose videos end where `CUT_FILE` says."""
CUT_FILE = "cut_frame_mapping_valid.json"
COLUMNS = ("question", "options", "answer_id", *DIMENSIONS)


class PerceptionTest(PublishedBenchmark):
    """PerceptionTest (arXiv:2305.13786), multiple choice, validation.

    Question ids are `<video>/<id>`: the official ids count within a video. The direct prompt is
    lmms-eval's with every option under its own letter (there all from the third on are "C.").
    Video-R1's evaluation has no PerceptionTest: its prompt is asked with the same lettered options.

    `--split validation_cut` shows no frame from the index on that the official
    cut_frame_mapping_valid.json gives a video (cups games that reveal the answer at their end; the
    test videos are cut so). Whether that frame itself is still to be seen is not published: here it
    is not.
    """

    name = "perceptiontest"
    default_split = "validation"
    splits = ("validation", CUT)
    layout = Layout(
        datasets=("lmms-lab/PerceptionTest_Val", "lmms-eval/PerceptionTest_Val"),
        size="75 GB",
        folders=("perceptiontest_val", "perception_test", "PerceptionTest"),
        videos=("videos", "videos_chunked_*/videos", "videos_chunked_*", "data", "video", ""),
    )
    questions = (
        "mc_question_val/validation-*.parquet",
        "mc_question_valid.json",
        "*/mc_question_valid.json",
        "validation-*.parquet",
        "mc_question_val.jsonl",
    )

    def read_published(self, root: Path, split: str) -> Reading:
        """Read the published Parquet, or the official JSON of mc_question_valid_annotations.zip.

        Raises:
            MissingInputError, RecordsError: as `Benchmark.read`.
        """
        index = VideoIndex(root, self.layout)
        files = find_questions(root, self.layout, self.questions)
        cuts: dict[str, int] = {}
        if split == CUT:
            [cut_file] = find_questions(root, self.layout, [CUT_FILE, f"*/{CUT_FILE}"])
            cuts = read_cuts(cut_file)
            files = (*files, cut_file)

        def outline(where: str, row: Row) -> Item:
            video = id_of(row, "video_name", where)
            return Item(
                question_id=f"{video}/{id_of(row, 'question_id', where)}",
                video_id=index.path_of(video),
                problem="",
                problem_type="multiple choice",
                options=(),
                solution="",
                dimensions={name: label_of(row[name]) for name in DIMENSIONS},
                cluster=video,
                end_frame=cuts.get(video),
            )

        def complete(item: Item, row: Row) -> Item:
            options = letter_options(row["options"])
            return replace(
                item,
                problem=text_of(row, "question"),
                options=options,
                solution=letter_of_index(row["answer_id"], options),
            )

        rows = (row for path in files if path.name != CUT_FILE for row in _rows(path))
        items, failures = collect(self.name, rows, outline, complete)
        return Reading(items, failures, files)

    def direct_prompt(self, item: Record) -> str:
        """Return lmms-eval's prompt with its letters put right."""
        options = "\n".join(item.options)
        return (
            f"{item.problem}\n{options}\n"
            "Answer with the option's letter from the given choices directly."
        )


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (where, row); rows of the official JSON get the columns of the Parquet."""
    if path.suffix != ".json":
        yield from read_rows(path, ("video_name", "question_id", *COLUMNS))
        return
    for video, entry in read_object(path).items():
        where = f"{path}, video {video}"
        questions: Any = entry.get("mc_question") if isinstance(entry, dict) else None
        if not isinstance(questions, list):
            raise RecordsError(f"{where}: a list of questions under 'mc_question' is expected")
        for number, row in enumerate(questions, start=1):
            at = f"{where}, question {number}"
            if not isinstance(row, dict):
                raise RecordsError(f"{at}: an object is expected, found {type(row).__name__}")
            require_columns(at, ("id", *COLUMNS), list(row))
            yield at, {**row, "video_name": video, "question_id": row["id"]}


def read_cuts(path: Path) -> dict[str, int]:
    """Read {video: index of the first frame that is not shown}.

    Raises:
        RecordsError: it is damaged, or an index is no whole number above 0.
    """
    cuts = read_object(path)
    for video, frame in cuts.items():
        if isinstance(frame, bool) or not isinstance(frame, int) or frame < 1:
            raise RecordsError(
                f"{path}, video {video}: {frame!r:.200} is no index of a frame above 0"
            )
    return cuts
