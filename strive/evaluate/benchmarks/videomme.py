"""Video-MME without subtitles: 2,700 questions of four options about 900 videos."""

from dataclasses import replace
from pathlib import Path

from strive.evaluate.benchmarks.files import Layout, Row, VideoIndex, find_questions
from strive.evaluate.benchmarks.published import (
    PublishedBenchmark,
    id_of,
    label_of,
    letter_of_answer,
    letter_options,
    read_files,
    text_of,
)
from strive.evaluate.items import Item, Reading
from strive.records import Record

DIMENSIONS = ("duration", "domain", "sub_category", "task_type")


class VideoMME(PublishedBenchmark):
    """Video-MME (arXiv:2405.21075), asked without subtitles.

    Videos are `data/<videoID>.mp4`, as the published zips hold them. The direct prompt is the
    official one; lmms-eval's speaks of subtitles that are not shown. The headline is the mean over
    all questions, which is also the mean of the three durations, of 900 questions each.
    """

    name = "videomme"
    layout = Layout(
        datasets=("lmms-lab/Video-MME", "lmms-eval/Video-MME"),
        size="100 GB",
        folders=("videomme",),
        videos=("data", "video", "videos", "videos_chunked_*/data", "videos_chunked_*", ""),
        video_r1="eval_videomme.json",
    )
    questions = (
        "videomme/test-*.parquet",
        "test-*.parquet",
        "videomme.jsonl",
        "videomme.json",
        "test.jsonl",
        "test.json",
    )

    def read_published(self, root: Path, split: str) -> Reading:
        """Read the `test` rows, by the columns of the published Parquet.

        Raises:
            MissingInputError, RecordsError: as `Benchmark.read`.
        """
        index = VideoIndex(root, self.layout)

        def outline(where: str, row: Row) -> Item:
            video = id_of(row, "videoID", where)
            return Item(
                question_id=id_of(row, "question_id", where),
                video_id=index.path_of(video),
                problem="",
                problem_type="multiple choice",
                options=(),
                solution="",
                dimensions={name: label_of(row[name]) for name in DIMENSIONS},
                cluster=video,
            )

        def complete(item: Item, row: Row) -> Item:
            options = letter_options(row["options"])
            return replace(
                item,
                problem=text_of(row, "question"),
                options=options,
                solution=letter_of_answer(row["answer"], options),
            )

        columns = ("videoID", "question_id", "question", "options", "answer", *DIMENSIONS)
        files = find_questions(root, self.layout, self.questions)
        return read_files(self.name, files, columns, outline, complete)

    def direct_prompt(self, item: Record) -> str:
        """Return the official prompt."""
        options = "\n".join(item.options)
        return (
            "Select the best answer to the following multiple-choice question based on the video. "
            "Respond with only the letter (A, B, C, or D) of the correct option.\n"
            f"{item.problem}\n{options}\nThe best answer is:"
        )
