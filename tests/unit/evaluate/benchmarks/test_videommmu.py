"""Video-MMMU: three tracks, many options, open answers, the last frame, bad rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_rows import VIDEOMMMU, VIDEOMMMU_OPEN, Row, video_r1_row, write_rows

from strive.errors import MissingInputError, RecordsError
from strive.evaluate.benchmarks import BENCHMARKS, read_benchmark
from strive.evaluate.benchmarks.videommmu import DISCIPLINES, TRACKS
from strive.evaluate.items import Item, Reading
from strive.evaluate.results import grade_sample, summarise_benchmark
from strive.evaluate.samples import Sample
from strive.video.frame_plan import FramePlan
from strive.video.source import VideoSource

GOLDEN = Path(__file__).parent / "golden"
MMMU = BENCHMARKS["videommmu"]
PARQUET = "{track}/test-00000-of-00001.parquet"


def write(root: Path, form: str = PARQUET, **rows: list[Row]) -> None:
    """Write one row a track, or the rows given by the track's name."""
    for track in TRACKS:
        path = root / form.format(track=track, lower=track.lower())
        write_rows(path, rows.get(track, [VIDEOMMMU[track]]))


def read(root: Path) -> Reading:
    return read_benchmark("videommmu", MMMU, root)


def open_rows(root: Path, **change: Any) -> Reading:
    """Read JSON lines, whose Adaptation has an open row with changes as its second one."""
    image = {"image": None}
    rows = [{**VIDEOMMMU["Adaptation"], **image}, {**VIDEOMMMU_OPEN, **image, **change}]
    for track in TRACKS[:2]:
        write_rows(root / f"{track}.jsonl", [VIDEOMMMU[track]])
    write_rows(root / "Adaptation.jsonl", rows)
    return read(root)


def test_published_rows_become_items(tmp_path: Path) -> None:
    write(tmp_path)
    reading = read(tmp_path)
    assert reading.failures == () and len(reading.files) == 3
    assert [item.question_id for item in reading.items] == [f"{t}/dev_Biology_3" for t in TRACKS]
    for track, item in zip(TRACKS, reading.items, strict=True):
        # One file serves all tracks: it is one cluster.
        assert (item.video_id, item.cluster) == ("Science/dev_Biology_3.mp4", "dev_Biology_3")
        assert item.problem_type == "multiple choice"
        assert item.dimensions == {
            "track": track,
            "discipline": "Science",
            "subject": "Biology",
        }
    assert reading.items[0].options[9] == "J. 10" and reading.items[0].solution == "J"


def test_json_without_types_gives_the_same_items(tmp_path: Path) -> None:
    write(tmp_path / "parquet")
    bare = {
        track: [{name: row[name] for name in ("id", "question", "options", "answer")}]
        for track, row in VIDEOMMMU.items()
    }
    for form in ("{lower}.json", "{track}.jsonl", "{track}/test.jsonl"):
        root = tmp_path / form.replace("/", "_")
        write(root, form, **bare)
        assert read(root).items == read(tmp_path / "parquet").items


def test_what_is_left_on_disk_is_found(tmp_path: Path) -> None:
    write(tmp_path / "hub" / "datasets--lmms-lab--VideoMMMU" / "snapshots" / "1a2b")
    for place in ("video_mmmu/Science", "video_mmmu/question_only", "video_mmmu/__MACOSX/Science"):
        (tmp_path / place).mkdir(parents=True)
    junk = (
        "video_mmmu/question_only/dev_Biology_3_image.mp4",
        "video_mmmu/__MACOSX/Science/._dev_Biology_3.mp4",
    )
    for name in (*junk, "video_mmmu/Science/dev_Biology_3.mp4"):
        (tmp_path / name).write_bytes(b"x")
    found = {item.video_id for item in read(tmp_path).items}
    assert found == {"video_mmmu/Science/dev_Biology_3.mp4"}


def test_videos_of_all_disciplines_may_lie_in_one_folder(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "dev_Biology_3.mp4").write_bytes(b"x")
    assert {item.video_id for item in read(tmp_path).items} == {"videos/dev_Biology_3.mp4"}


def test_six_disciplines_have_thirty_subjects() -> None:
    subjects = [subject for some in DISCIPLINES.values() for subject in some]
    assert len(DISCIPLINES) == 6 and len(subjects) == len(set(subjects)) == 30


def test_a_subject_of_several_words(tmp_path: Path) -> None:
    item = open_rows(tmp_path).items[-1]
    assert item.dimensions["subject"] == "Architecture_and_Engineering"
    assert item.video_id == "Engineering/validation_Architecture_and_Engineering_12.mp4"


# --- what a row asks for ------------------------------------------------------------------------


def test_options_may_go_past_j_and_be_lettered_already(tmp_path: Path) -> None:
    fourteen = {
        **VIDEOMMMU["Perception"],
        "options": [f"{n} s" for n in range(14)],
        "answer": "N",
    }
    lettered = {**fourteen, "id": "dev_Art_1", "options": ["A. x", "B. y"], "answer": "A"}
    write(tmp_path, Perception=[fourteen, lettered])
    first, second = read(tmp_path).items[:2]
    assert first.options[13] == "N. 13 s" and first.solution == "N"
    assert second.options == ("A. x", "B. y")


@pytest.mark.parametrize("question_type", [None, "open", "essay", "multiple-choice"])
def test_any_row_with_options_is_multiple_choice(tmp_path: Path, question_type: str | None) -> None:
    row = {**VIDEOMMMU["Adaptation"], "question_type": question_type}
    write(tmp_path, Adaptation=[row])
    item = read(tmp_path).items[-1]
    assert (item.problem_type, item.options) == ("multiple choice", ("A. a cell", "B. a leaf"))
    assert "multi-choice question" in MMMU.prompt(item, "direct")


@pytest.mark.parametrize(
    ("answer", "problem_type"),
    [
        ("12.97", "numerical"),
        ("7243000", "numerical"),
        ("['24/7', '3.429', '3.43]", "numerical"),
        ("A", "multiple choice"),
        ("carbon", "free-form"),
    ],
)
def test_open_answers(tmp_path: Path, answer: str, problem_type: str) -> None:
    reading = open_rows(tmp_path, answer=answer)
    item = reading.items[-1]
    assert (item.problem_type, item.solution, item.options) == (problem_type, answer, ())
    assert "open-ended question" in MMMU.prompt(item, "direct")
    assert "Options:" not in MMMU.prompt(item, "video_r1")


@pytest.mark.parametrize("protocol", ["video_r1", "direct"])
def test_prompts_are_the_reference_to_the_letter(tmp_path: Path, protocol: Any) -> None:
    named = dict(zip((*TRACKS, "open"), open_rows(tmp_path).items, strict=True))
    for name, item in named.items():
        wanted = (GOLDEN / f"videommmu_{name}_{protocol}.txt").read_bytes().decode()
        assert MMMU.prompt(item, protocol) == wanted


@pytest.mark.parametrize("protocol", ["video_r1", "direct"])
@pytest.mark.parametrize("num_frames", [2, 3, 32])
def test_frames_end_at_the_very_last_one(protocol: Any, num_frames: int) -> None:
    plan = FramePlan(MMMU.frames_mode(protocol), num_frames)
    for length in (2, 7, 50, 1201):
        source = VideoSource(Path("a.mp4"), "mp4", "h264", length, stated_fps=25.0)
        indices = plan.indices(source)
        assert indices[-1] == length - 1 and np.all(np.diff(indices) > 0)


BAD: dict[str, tuple[Row, str]] = {
    "null type, no options": ({"question_type": None}, "no options, and 'question_type' is None;"),
    "no type, null options": ({"question_type": None, "options": None}, "no options, and 'questi"),
    "choice, no options": ({"question_type": "multiple-choice"}, "is 'multiple-choice'; without"),
    "unknown type": ({"question_type": "essay"}, "must be open or open-ended"),
    "no answer": ({"answer": None}, "'answer' is None; a text is wanted"),
    "past the options": ({"options": ["x", "y"], "answer": "C"}, "answer 'C' is no option; they"),
    "several letters": ({"options": ["x", "y"], "answer": "AB"}, "answer 'AB' is no option"),
    "options no list": ({"options": "['x', 'y']", "answer": "A"}, "a list of texts is wanted"),
    "too many options": ({"options": ["x"] * 27, "answer": "A"}, "27 options; 2 to 26"),
    "no question": ({"question": " "}, "'question' is ' '; a text is wanted"),
    "unknown subject": ({"id": "dev_Alchemy_1"}, "'id' is 'dev_Alchemy_1', of no known subject"),
    "no subject": ({"id": "dev"}, "'id' is 'dev', of no known subject; known: Art, Art_Theory"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_counts_as_wrong(tmp_path: Path, case: str) -> None:
    change, message = BAD[case]
    reading = open_rows(tmp_path, **change)
    [failure] = reading.failures
    assert len(reading.items) == 3
    assert (failure.error, failure.dimensions["track"]) == ("bad_row", "Adaptation")
    assert "Adaptation.jsonl, row 2: " in failure.message and message in failure.message


def test_wrong_files_are_one_line(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / PARQUET.format(track="Comprehension")).unlink()
    with pytest.raises(MissingInputError, match=r"Comprehension/test.*lmms-lab/VideoMMMU"):
        read(tmp_path)
    row = {**VIDEOMMMU["Comprehension"], "choices": []}
    del row["options"]
    write(tmp_path, Comprehension=[row])
    with pytest.raises(RecordsError, match="no column 'options'; there are: id, question"):
        read(tmp_path)


# --- grading and totals -------------------------------------------------------------------------


def answered(item: Item, output: str) -> Sample:
    """Return an answer as the runner stores it."""
    return Sample(
        benchmark="videommmu", question_id=item.question_id, prompt_hash="",
        video_id=item.video_id, problem_type=item.problem_type, kind="", prompt="",
        solution=item.solution, source_index=(), evidence_seen=None, output=output, num_tokens=1,
        truncated=False, options=item.options, dimensions=item.dimensions, cluster=item.cluster,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "output", "direct", "video_r1"),
    [
        ("12.97", "<answer>12.97</answer>", 1, 1),
        ("12.97", "So the force is 12.97 N", 1, 0),
        ("12.97", "13", 0, 0),
        ("12.97", "", 0, 0),  # the harnesses leave it out of the denominator
        # Any entry of the list that was published as text.
        ("['24/7', '3.429', '3.43]", "<answer>3.43</answer>", 1, 1),
        ("['24/7', '3.429', '3.43]", "<answer>3.5</answer>", 0, 0),
        ("A", "<answer>A</answer>", 1, 1),
        ("A", "<answer>B</answer>", 0, 0),
    ],
)
def test_open_answers_are_graded(
    tmp_path: Path, answer: str, output: str, direct: float, video_r1: float
) -> None:
    sample = answered(open_rows(tmp_path, answer=answer).items[-1], output)
    assert grade_sample(sample, MMMU, "direct").score == direct
    assert grade_sample(sample, MMMU, "video_r1").score == video_r1


def test_letters_past_j_are_graded(tmp_path: Path) -> None:
    options = [f"{n} s" for n in range(14)]
    write(tmp_path, Perception=[{**VIDEOMMMU["Perception"], "options": options, "answer": "N"}])
    item = read(tmp_path).items[0]
    for grading in ("direct", "video_r1"):
        assert grade_sample(answered(item, "<answer>N</answer>"), MMMU, grading).score == 1
    assert grade_sample(answered(item, "The answer is (N)."), MMMU, "direct").score == 1


def test_totals_by_hand(tmp_path: Path) -> None:
    write(tmp_path)
    perception, comprehension, adaptation = (answered(i, "") for i in read(tmp_path).items)
    rows = [
        replace(perception, score=1.0),
        replace(perception, score=0.0),
        replace(comprehension, score=1.0),
        replace(adaptation, score=0.0),
        replace(adaptation, score=0.0),
    ]
    found = summarise_benchmark("videommmu", MMMU, rows, [], "direct")
    assert found.headline == "accuracy"
    assert found.totals["accuracy"].accuracy_percent == pytest.approx(40.0)  # 2 of 5
    # (1/2 + 1 + 0) / 3
    assert found.totals["tracks"].accuracy_percent == pytest.approx(50.0)
    assert found.by_dimension["track"]["Perception"].accuracy_percent == 50
    fewer = summarise_benchmark("videommmu", MMMU, rows[2:], [], "video_r1")
    assert fewer.absent == {"tracks": ("Perception",)}


def test_video_r1s_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        video_r1_row(0, "multiple choice", "./Evaluation/VideoMMMU/dev_Biology_3.mp4"),
        video_r1_row(1, "numerical", "./VideoMMMU/question_only/dev_Biology_3_image.mp4"),
    ]
    write_rows(tmp_path / "eval_videommmu.json", rows)
    (tmp_path / "Science").mkdir()
    (tmp_path / "Science" / "dev_Biology_3.mp4").write_bytes(b"x")
    reading = read(tmp_path)
    assert [item.problem_type for item in reading.items] == ["multiple choice", "numerical"]
    shown = " ".join(capsys.readouterr().err.split())
    assert "warning: 1 of 2 questions of" in shown and "not the lecture" in shown
    assert MMMU.asked(reading, "video_r1") == reading
    direct = MMMU.asked(reading, "direct")
    assert direct.items == () and [*direct.left_out.values()] == [2]
