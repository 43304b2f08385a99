"""Video-MME, PerceptionTest and MMVU: published rows, written by hand, in every published form."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from strive.errors import ConfigError, MissingInputError, RecordsError
from strive.evaluate.benchmarks import BENCHMARKS, read_benchmark
from strive.evaluate.benchmarks.mmvu import DISCIPLINES
from strive.evaluate.items import Item, Reading
from strive.evaluate.samples import Sample

GOLDEN = Path(__file__).parent / "golden"
Row = dict[str, Any]

VIDEOMME: Row = {
    "video_id": "001",
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Humanity & History",
    "url": "https://www.youtube.com/watch?v=fFjv93ACGo8",
    "videoID": "fFjv93ACGo8",
    "question_id": "001-1",
    "task_type": "Counting Problem",
    "question": "When demonstrating the Germany modern Christmas tree is initially decorated with "
    "apples, candles and berries, which kind of the decoration has the largest number?",
    "options": [
        "A. Apples.",
        "B. Candles.",
        "C. Berries.",
        "D. The three kinds are of the same number.",
    ],
    "answer": "C",
}
PERCEPTION: Row = {
    "video_name": "video_1234",
    "question": "Which object does the person put on the table last?",
    "question_id": "5",
    "options": ["a red cup", "a book", "A spoon"],
    "answer_id": "2",
    "area": "Memory",
    "reasoning": "Descriptive",
    "tag": ["Object permanence", "Solidity"],
}
PERCEPTION_OFFICIAL: Row = {
    "video_1234": {
        "metadata": {"split": "valid", "video_id": "video_1234", "frame_rate": 29.97},
        "mc_question": [
            {
                "id": 5,
                "question": "Which object does the person put on the table last?",
                "options": ["a red cup", "a book", "A spoon"],
                "answer_id": 2,
                "area": "Memory",
                "reasoning": "Descriptive",
                "tag": ["Object permanence", "Solidity"],
            }
        ],
    },
    "video_99": {"metadata": {"split": "valid"}, "mc_question": []},
}
MMVU: Row = {
    "id": "validation_0",
    "video": "https://huggingface.co/datasets/yale-nlp/MMVU/resolve/main/videos/Art/0.mp4",
    "youtube_url": "https://www.youtube.com/watch?v=x",
    "question_type": "multiple-choice",
    "metadata": {"subject": "History", "textbook": "", "rationale": "secret", "knowledge": []},
    "question": "Which art style is the video about?",
    "choices": {
        "A": "Rococo",
        "B": "Cubism",
        "C": "Pointillism",
        "D": "Baroque",
        "E": "Fauvism",
    },
    "answer": "C",
}
OPEN: Row = {
    **MMVU,
    "id": "validation_1",
    "question_type": "open-ended",
    "choices": dict.fromkeys("ABCDE", ""),
    "answer": "Seurat",
}
ROWS = {"videomme": VIDEOMME, "perceptiontest": PERCEPTION, "mmvu": MMVU}
QUESTIONS = {
    "videomme": "videomme/test-00000-of-00001.parquet",
    "perceptiontest": "mc_question_val/validation-00000-of-00001.parquet",
    "mmvu": "validation.json",
}
VIDEOS = {
    "videomme": "data/fFjv93ACGo8.mp4",
    "perceptiontest": "videos/video_1234.mp4",
    "mmvu": "videos/Art/0.mp4",
}
IDS = {"videomme": "001-1", "perceptiontest": "video_1234/5", "mmvu": "validation_0"}
CLUSTERS = {"videomme": "fFjv93ACGo8", "perceptiontest": "video_1234", "mmvu": "Art/0"}


def write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))


def read(name: str, root: Path, *rows: Row, split: str | None = None) -> Reading:
    """Read rows that lie where they are published."""
    if rows:
        write(root / QUESTIONS[name], list(rows))
    return read_benchmark(name, BENCHMARKS[name], root, split)


def only(reading: Reading) -> Item:
    [item] = reading.items
    assert reading.failures == ()
    return item


@pytest.mark.parametrize("name", ROWS)
def test_a_published_row_becomes_an_item(tmp_path: Path, name: str) -> None:
    item = only(read(name, tmp_path, ROWS[name]))
    assert item.question_id == IDS[name]
    assert item.video_id == VIDEOS[name]
    assert item.cluster == CLUSTERS[name]
    assert (item.problem, item.solution) == (ROWS[name]["question"], "C")
    assert item.options[2] == {"videomme": "C. Berries.", "perceptiontest": "C. A spoon"}.get(
        name, "C. Pointillism"
    )
    assert item.end_frame is None
    assert (
        item.dimensions
        == {
            "videomme": {
                "duration": "short",
                "domain": "Knowledge",
                "sub_category": "Humanity & History",
                "task_type": "Counting Problem",
            },
            "perceptiontest": {"area": "Memory", "reasoning": "Descriptive"},
            # The folder counts where metadata.subject says another.
            "mmvu": {"discipline": "Humanities_and_Social_Science", "subject": "Art"},
        }[name]
    )


FORMS = {
    "videomme": ["test-00000-of-00001.parquet", "videomme.jsonl", "test.json"],
    "perceptiontest": ["validation-00000-of-00001.parquet", "mc_question_val.jsonl"],
    "mmvu": ["data/validation-00000-of-00001.parquet", "validation.jsonl"],
}


@pytest.mark.parametrize(("name", "form"), [(n, f) for n, forms in FORMS.items() for f in forms])
def test_every_form_gives_the_same_items(tmp_path: Path, name: str, form: str) -> None:
    published = read(name, tmp_path / "published", ROWS[name])
    write(tmp_path / "other" / form, [ROWS[name]])
    other = read(name, tmp_path / "other")
    assert other.items == published.items
    assert other.files == (tmp_path / "other" / form,)


def test_the_official_json_of_perceptiontest_gives_the_same_items(tmp_path: Path) -> None:
    published = read("perceptiontest", tmp_path / "published", PERCEPTION)
    path = tmp_path / "official" / "annotations" / "mc_question_valid.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(PERCEPTION_OFFICIAL))
    assert read("perceptiontest", tmp_path / "official").items == published.items


LAYOUTS = {
    # {benchmark: (folder of the questions under the root, video)}, as lmms-eval leaves $HF_HOME
    "videomme": (
        "hub/datasets--lmms-eval--Video-MME/snapshots/1a2b",
        "videomme/data/fFjv93ACGo8.mp4",
    ),
    "perceptiontest": (
        "hub/datasets--lmms-lab--PerceptionTest_Val/snapshots/1a2b",
        "perceptiontest_val/videos/video_1234.MP4",
    ),
    "mmvu": ("hub/datasets--lmms-lab--MMVU/snapshots/1a2b/data", "mmvu/videos/Art/0.mp4"),
}
PARQUET = {**QUESTIONS, "mmvu": "validation-00000-of-00001.parquet"}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_lmms_eval_leaves_is_found(tmp_path: Path, name: str) -> None:
    folder, video = LAYOUTS[name]
    write(tmp_path / folder / PARQUET[name], [ROWS[name]])
    (tmp_path / video).parent.mkdir(parents=True)
    (tmp_path / video).write_bytes(b"x")
    assert only(read(name, tmp_path)).video_id == video


def test_what_vlmevalkit_leaves_is_found(tmp_path: Path) -> None:
    # The snapshot of the hub's cache, with all videos flat in a folder of it.
    write(tmp_path / QUESTIONS["videomme"], [VIDEOMME])
    (tmp_path / "video").mkdir()
    (tmp_path / "video" / "fFjv93ACGo8.mp4").write_bytes(b"x")
    assert only(read("videomme", tmp_path)).video_id == "video/fFjv93ACGo8.mp4"


@pytest.mark.parametrize("protocol", ["video_r1", "direct"])
@pytest.mark.parametrize("name", ROWS)
def test_prompts_are_the_reference_to_the_letter(tmp_path: Path, name: str, protocol: Any) -> None:
    item = only(read(name, tmp_path, ROWS[name]))
    wanted = (GOLDEN / f"{name}_{protocol}.txt").read_bytes().decode()
    assert BENCHMARKS[name].prompt(item, protocol) == wanted


def answered(item: Item, output: str) -> Sample:
    return Sample(
        benchmark="any",
        question_id=item.question_id,
        prompt_hash="",
        video_id=item.video_id,
        problem_type=item.problem_type,
        kind="",
        prompt="",
        solution=item.solution,
        source_index=(),
        evidence_seen=None,
        output=output,
        num_tokens=1,
        truncated=False,
        options=item.options,
    )


# {output: (its grade by Video-R1's rules, and by the benchmark's own)}, the answer being C
OUTPUTS = {
    "C": (1.0, 1.0),
    "<think>It is A.</think> <answer>C</answer>": (1.0, 1.0),
    "C.": (0.0, 1.0),
    "Therefore, the final answer is: $C": (0.0, 1.0),
    "A person walks in. So C": (0.0, 1.0),
    "B": (0.0, 0.0),
    "": (0.0, 0.0),
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", ROWS)
def test_answers_are_graded_by_the_protocols_rules(tmp_path: Path, name: str, output: str) -> None:
    sample = answered(only(read(name, tmp_path, ROWS[name])), output)
    grades = tuple(
        BENCHMARKS[name].grade(sample, grading).score for grading in ("video_r1", "direct")
    )
    assert grades == OUTPUTS[output]


@pytest.mark.parametrize("name", ROWS)
def test_protocols_choose_frames_by_their_own_rules(name: str) -> None:
    benchmark = BENCHMARKS[name]
    assert benchmark.frames_mode("video_r1") == "fps"
    assert benchmark.frames_mode("direct") == "linspace"
    assert [total.name for total in benchmark.totals("direct")] == ["accuracy"]


def test_open_ended_questions_of_mmvu_are_left_out_and_counted(tmp_path: Path) -> None:
    reading = read("mmvu", tmp_path, MMVU, OPEN)
    assert only(reading).question_id == "validation_0"
    assert reading.left_out == {"open-ended questions": 1}


def test_mmvu_has_27_subjects() -> None:
    assert len(DISCIPLINES) == 27
    assert set(DISCIPLINES.values()) == {
        "Science",
        "Engineering",
        "Healthcare",
        "Humanities_and_Social_Science",
    }


def test_the_rationale_of_mmvu_is_in_no_prompt(tmp_path: Path) -> None:
    item = only(read("mmvu", tmp_path, MMVU))
    for protocol in ("video_r1", "direct"):
        assert "secret" not in BENCHMARKS["mmvu"].prompt(item, protocol)


# {case: (benchmark, changes of the published row, what the failure says)}
BAD: dict[str, tuple[str, Row, str]] = {
    "empty options": ("videomme", {"options": []}, "0 options; 2 to 26"),
    "null options": ("videomme", {"options": None}, "options are None"),
    "answer no option": ("videomme", {"answer": "E"}, "answer 'E' is no option; they are A to D"),
    "null answer": ("videomme", {"answer": None}, "answer None is no option"),
    "blank question": ("videomme", {"question": ""}, "'question' is ''; a text is wanted"),
    "index no option": ("perceptiontest", {"answer_id": "3"}, "answer '3' is no option; they"),
    "letter for index": ("perceptiontest", {"answer_id": "C"}, "answer 'C' is no option"),
    "empty options, 3": ("perceptiontest", {"options": []}, "0 options"),
    "null type": ("mmvu", {"question_type": None}, "'question_type' is None; known: multiple-"),
    "unknown type": ("mmvu", {"question_type": "essay"}, "'question_type' is 'essay'; known"),
    "empty choices": ("mmvu", {"choices": dict.fromkeys("ABCDE", "")}, "choices are {'A': ''"),
    "choices no dict": ("mmvu", {"choices": None}, "choices are None; a text under each letter"),
    "a letter left out": ("mmvu", {"choices": {"A": "x", "C": "y"}}, "a text under each letter"),
    "answer past E": ("mmvu", {"answer": "K"}, "answer 'K' is no option; they are A to E"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_counts_as_wrong(tmp_path: Path, case: str) -> None:
    name, change, message = BAD[case]
    second = {"question_id": "001-2"} if name != "mmvu" else {"id": "validation_2"}
    write(tmp_path / "rows.json", [])  # an unrelated file
    form = {"videomme": "test.json", "perceptiontest": "mc_question_val.jsonl"}.get(
        name, "validation.json"
    )
    write(tmp_path / form, [ROWS[name], {**ROWS[name], **second, **change}])
    reading = read(name, tmp_path)
    assert len(reading.items) == 1
    [failure] = reading.failures
    assert (failure.error, failure.score, failure.benchmark) == ("bad_row", 0.0, name)
    assert f"{form}, row 2: " in failure.message and message in failure.message
    assert failure.dimensions == reading.items[0].dimensions
    assert failure.cluster == CLUSTERS[name]


@pytest.mark.parametrize(
    ("name", "column"),
    [("videomme", "task_type"), ("perceptiontest", "answer_id"), ("mmvu", "choices")],
)
def test_a_missing_column_is_named_with_those_found(tmp_path: Path, name: str, column: str) -> None:
    row = {key: value for key, value in ROWS[name].items() if key != column}
    with pytest.raises(RecordsError, match=f"no column '{column}'; there are: ") as raised:
        read(name, tmp_path, row)
    assert QUESTIONS[name] in str(raised.value) and "question" in str(raised.value)


@pytest.mark.parametrize("name", ROWS)
def test_missing_files_are_named_with_where_they_are_published(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingInputError, match=r"huggingface\.co/datasets") as raised:
        read(name, tmp_path)
    layout = BENCHMARKS[name].layout
    assert layout is not None and layout.datasets[0] in str(raised.value)
    assert f"{tmp_path}" in str(raised.value)


def test_the_same_question_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'001-1' twice"):
        read("videomme", tmp_path, VIDEOMME, VIDEOMME)


def test_an_official_json_of_another_form_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mc_question_valid.json"
    for content, message in (
        ([], "an object is expected, found list"),
        ({"video_1": []}, "video video_1: a list of questions under 'mc_question'"),
        ({"video_1": {"mc_question": [1]}}, "question 1: an object is expected, found int"),
        ({"video_1": {"mc_question": [{"id": 1}]}}, "no column 'question'; there are: id"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(RecordsError, match=message):
            read("perceptiontest", tmp_path)


# --- videos that are cut ------------------------------------------------------------------------


def test_cut_videos_of_perceptiontest_end_before_the_cut(tmp_path: Path) -> None:
    cut_file = tmp_path / "annotations" / "cut_frame_mapping_valid.json"
    cut_file.parent.mkdir()
    cut_file.write_text(json.dumps({"video_1234": 60, "video_7": 31}))
    other = {**PERCEPTION, "video_name": "video_8"}
    whole = read("perceptiontest", tmp_path, PERCEPTION, other)
    assert [item.end_frame for item in whole.items] == [None, None]
    cut = read("perceptiontest", tmp_path, split="validation_cut")
    assert [item.end_frame for item in cut.items] == [60, None]
    assert cut.files == (*whole.files, cut_file)


def test_cuts_that_are_missing_or_none(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"cut_frame_mapping_valid\.json"):
        read("perceptiontest", tmp_path, PERCEPTION, split="validation_cut")
    for value in (0, "60", None, True):
        (tmp_path / "cut_frame_mapping_valid.json").write_text(json.dumps({"video_1": value}))
        with pytest.raises(RecordsError, match=r"video video_1: .* is no index of a frame"):
            read("perceptiontest", tmp_path, split="validation_cut")
