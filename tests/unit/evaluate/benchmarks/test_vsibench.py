"""VSI-Bench: published rows in every form, its prompts, its three averages, bad rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from published_rows import VSI_CHOICE, VSI_NUMBER, Row, video_r1_row, write_rows

from strive.errors import ConfigError, MissingInputError, RecordsError, UnknownNameError
from strive.evaluate.benchmarks import BENCHMARKS, read_benchmark
from strive.evaluate.benchmarks.vsibench import CHOICE_TYPES, NUMBER_TYPES
from strive.evaluate.items import Failure, Reading
from strive.evaluate.results import BenchmarkResults, grade_sample, summarise_benchmark
from strive.evaluate.samples import Sample

GOLDEN = Path(__file__).parent / "golden"
VSI = BENCHMARKS["vsibench"]


def read(root: Path, *rows: Row, form: str = "test.jsonl", split: str | None = None) -> Reading:
    if rows:
        write_rows(root / form, list(rows))
    return read_benchmark("vsibench", VSI, root, split)


def test_published_rows_become_items(tmp_path: Path) -> None:
    reading = read(tmp_path, VSI_CHOICE, VSI_NUMBER)
    choice, number = reading.items
    assert (choice.question_id, choice.video_id) == ("0", "arkitscenes/41069025.mp4")
    assert choice.cluster == "arkitscenes/41069025"
    assert (choice.problem_type, choice.options) == ("multiple choice", ("A. left", "B. right"))
    assert choice.solution == "B" and choice.problem == VSI_CHOICE["question"]
    assert choice.dimensions == {
        "question_type": "object_rel_direction_easy",
        "dataset": "arkitscenes",
    }
    assert (number.problem_type, number.options, number.solution) == ("regression", (), "4")
    assert number.video_id == "scannet/scene0015_00.mp4"
    assert reading.failures == () and reading.files == (tmp_path / "test.jsonl",)


# {split: the forms in which it is published}; "" is the default one.
FORMS = [
    ("", "test-00000-of-00001.parquet"),
    ("full", "full/test-00000-of-00001.parquet"),
    ("full", "hub/datasets--nyu-visionx--VSI-Bench/snapshots/1a2b/test.jsonl"),
    ("debiased", "test_debiased.parquet"),
    ("pruned", "test_pruned.parquet"),
]


@pytest.mark.parametrize(("split", "form"), FORMS)
def test_every_form_gives_the_same_items(tmp_path: Path, split: str, form: str) -> None:
    published = read(tmp_path / "published", VSI_CHOICE, VSI_NUMBER)
    rows = ({**row, "pruned": False} for row in (VSI_CHOICE, VSI_NUMBER))
    other = read(tmp_path / "other", *rows, form=form, split=split or None)
    assert other.items == published.items and other.failures == ()


def test_splits_are_files_of_their_own(tmp_path: Path) -> None:
    write_rows(tmp_path / "test_debiased.parquet", [VSI_CHOICE])
    both = read(tmp_path, VSI_CHOICE, VSI_NUMBER)
    assert len(both.items) == 2
    assert len(read(tmp_path, split="debiased").items) == 1
    with pytest.raises(MissingInputError, match=r"test_pruned\.parquet.*nyu-visionx/VSI-Bench"):
        read(tmp_path, split="pruned")
    with pytest.raises(UnknownNameError, match="debiased, full, pruned, video_r1"):
        read(tmp_path, split="test")


def test_what_lmms_eval_leaves_is_found(tmp_path: Path) -> None:
    video = tmp_path / "vsibench" / "arkitscenes" / "41069025.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(b"x")
    form = "hub/datasets--nyu-visionx--VSI-Bench/snapshots/1a2b/test.jsonl"
    [item] = read(tmp_path, VSI_CHOICE, form=form).items
    assert item.video_id == "vsibench/arkitscenes/41069025.mp4"


@pytest.mark.parametrize("protocol", ["video_r1", "direct"])
def test_prompts_are_the_reference_to_the_letter(tmp_path: Path, protocol: Any) -> None:
    items = read(tmp_path, VSI_CHOICE, VSI_NUMBER).items
    for kind, item in zip(("choice", "number"), items, strict=True):
        wanted = (GOLDEN / f"vsibench_{kind}_{protocol}.txt").read_bytes().decode()
        assert VSI.prompt(item, protocol) == wanted
    assert VSI.frames_mode(protocol) == {"video_r1": "fps", "direct": "linspace"}[protocol]


BAD: dict[str, tuple[Row, str]] = {
    "no options": ({**VSI_CHOICE, "options": None}, "options are None; a list of texts is wanted"),
    "empty options": ({**VSI_CHOICE, "options": []}, "0 options; 2 to 26 are wanted"),
    "past the options": (
        {**VSI_CHOICE, "ground_truth": "C"},
        "answer 'C' is no option; they are A to B",
    ),
    "null answer": ({**VSI_CHOICE, "ground_truth": None}, "answer None is no option"),
    "unknown type": ({**VSI_CHOICE, "question_type": "colour"}, "'question_type' is 'colour'; kn"),
    "null type": ({**VSI_NUMBER, "question_type": None}, "'question_type' is None; known: obj_"),
    "a word for a number": ({**VSI_NUMBER, "ground_truth": "four"}, "answer 'four' is no number"),
    "no number": ({**VSI_NUMBER, "ground_truth": None}, "answer None is no number"),
    "not finite": ({**VSI_NUMBER, "ground_truth": "nan"}, "answer 'nan' is no number"),
    "options of a number": (
        {**VSI_NUMBER, "options": ["A. 3", "B. 4"]},
        "a question of object_counting with options; a number is its answer",
    ),
    "no question": ({**VSI_NUMBER, "question": None}, "'question' is None; a text is wanted"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_counts_as_wrong(tmp_path: Path, case: str) -> None:
    row, message = BAD[case]
    reading = read(tmp_path, VSI_NUMBER, {**row, "id": 7})
    [failure] = reading.failures
    assert [item.question_id for item in reading.items] == ["1"]
    assert (failure.question_id, failure.error) == ("7", "bad_row")
    assert "test.jsonl, row 2: " in failure.message and message in failure.message
    results = summarise_benchmark("vsibench", VSI, [right(reading)], [failure], "direct")
    # (1 + 0) / 2: the row stays in the denominator.
    assert results.totals["micro"].accuracy_percent == 50


def test_wrong_files_are_one_line(tmp_path: Path) -> None:
    wrong = {**VSI_CHOICE, "answer": "B"}
    del wrong["ground_truth"]
    with pytest.raises(RecordsError, match="row 1: no column 'ground_truth'; there are: id, data"):
        read(tmp_path, wrong)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(MissingInputError, match=r"test\.jsonl.*huggingface\.co"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="'0' twice"):
        read(tmp_path, VSI_CHOICE, VSI_CHOICE)


# --- grading and averages -----------------------------------------------------------------------


def answered(question_id: str, question_type: str, output: str, solution: str) -> Sample:
    """Return an answer as the runner stores it."""
    is_choice = question_type in CHOICE_TYPES
    return Sample(
        benchmark="vsibench", question_id=question_id, prompt_hash="", video_id="a.mp4",
        problem_type="multiple choice" if is_choice else "regression", kind="", prompt="",
        solution=solution, source_index=(), evidence_seen=None, output=output, num_tokens=1,
        truncated=False, options=("A. left", "B. right") if is_choice else (),
        dimensions={"question_type": question_type, "dataset": "scannet"}, cluster="scannet/a",
    )  # fmt: skip


def right(reading: Reading) -> Sample:
    item = reading.items[0]
    sample = answered(item.question_id, item.dimensions["question_type"], "4", item.solution)
    return grade_sample(sample, VSI, "direct")


def test_numbers_have_both_borders() -> None:
    sample = answered("1", "object_counting", "<think>2 or 3</think><answer>3</answer>", "4")
    # |3 - 4| / 4 = 0.25, on the border of 1 - 0.75: six of ten officially, five for Video-R1.
    assert grade_sample(sample, VSI, "direct").score == pytest.approx(0.6)
    strict = grade_sample(sample, VSI, "video_r1")
    assert strict.score == pytest.approx(0.5) and strict.rule == "answer tag"
    assert grade_sample(replace(sample, output="3 chairs"), VSI, "direct").score == pytest.approx(
        0.6
    )
    assert grade_sample(replace(sample, output="3 chairs"), VSI, "video_r1").score == 0
    choice = answered("2", "route_planning", "B. right", "B")
    assert grade_sample(choice, VSI, "direct").score == 1
    assert grade_sample(choice, VSI, "video_r1").score == 0


# One question a type save easy directions, of which there are three: {type: scores}.
SCORES = {
    "object_counting": (0.5,),
    "object_abs_distance": (0.1,),
    "object_size_estimation": (1.0,),
    "room_size_estimation": (0.0,),
    "object_rel_distance": (1.0,),
    "object_rel_direction_easy": (1.0, 1.0, 0.0),
    "object_rel_direction_medium": (0.0,),
    "object_rel_direction_hard": (1.0,),
    "route_planning": (0.0,),
    "obj_appearance_order": (1.0,),
}


def averages(grading: Any, *absent: str) -> BenchmarkResults:
    rows = [
        replace(answered(f"{name}{number}", name, "", ""), score=score)
        for name, scores in SCORES.items()
        if name not in absent
        for number, score in enumerate(scores)
    ]
    return summarise_benchmark("vsibench", VSI, rows, [], grading)


def test_three_averages_by_hand() -> None:
    assert set(SCORES) == {*CHOICE_TYPES, *NUMBER_TYPES}
    found = averages("direct")
    # Directions: (2/3 + 0 + 1) / 3 = 5/9, not the pooled 3/5. The eight:
    # (0.5 + 0.1 + 1 + 0 + 1 + 5/9 + 0 + 1) / 8 = 0.519444...
    assert found.headline == "official" and found.absent == {}
    assert found.totals["official"].accuracy_percent == pytest.approx(51.9444444)
    # Multiple choice: (1 + 2 + 0 + 1 + 0 + 1) of 8 = 0.625; numbers: 1.6 / 4 = 0.4; mean 0.5125.
    assert found.totals["video_r1"].accuracy_percent == pytest.approx(51.25)
    # 5 + 1.6 of 12.
    assert found.totals["micro"].accuracy_percent == pytest.approx(55.0)
    assert averages("video_r1").headline == "video_r1"
    assert set(found.by_dimension) == {"question_type", "dataset"}


def test_a_type_that_is_absent_is_named() -> None:
    found = averages("direct", "object_size_estimation", "object_rel_direction_medium")
    # Directions: (2/3 + 1) / 2 = 5/6. Seven: (0.5 + 0.1 + 0 + 1 + 5/6 + 0 + 1) / 7 = 0.490476...
    assert found.totals["official"].accuracy_percent == pytest.approx(49.0476190)
    assert found.absent == {"official": ("object_size_estimation",)}
    only_numbers = averages("direct", *CHOICE_TYPES)
    assert only_numbers.absent["video_r1"] == ("multiple choice",)
    # (0.5 + 0.1 + 1 + 0) / 4
    assert only_numbers.totals["video_r1"].accuracy_percent == pytest.approx(40.0)


def test_an_unknown_type_is_in_no_official_average() -> None:
    failure = Failure("vsibench", "x", "a.mp4", "bad_row", "", dimensions={"question_type": "?"})
    rows = [replace(answered("1", "object_counting", "", "1"), score=1.0)]
    found = summarise_benchmark("vsibench", VSI, rows, [failure], "direct")
    assert found.totals["official"].accuracy_percent == 100 and found.num_failed == 1
    assert found.totals["micro"].accuracy_percent == 50


@pytest.mark.parametrize("odd", ["", "None", "numerical", "regresion"])
def test_a_row_of_an_odd_type_is_no_half_of_its_own(odd: str) -> None:
    choices = [replace(answered(f"c{n}", "route_planning", "", ""), score=1.0) for n in range(3)]
    numbers = [replace(answered("n", "object_counting", "", ""), score=1.0)]
    failure = Failure("vsibench", "x", "a.mp4", "bad_row", "", problem_type=odd)
    found = summarise_benchmark("vsibench", VSI, [*choices, *numbers], [failure], "video_r1")
    # (3 of 4 + 1 of 1) / 2, where three groups would give (1 + 1 + 0) / 3.
    assert found.totals["video_r1"].accuracy_percent == pytest.approx(87.5)


def test_video_r1s_copy(tmp_path: Path) -> None:
    rows = [
        video_r1_row(0, "multiple choice", "./Evaluation/VSI-Bench/scannet/scene0015_00.mp4"),
        video_r1_row(1, "regression", "./Evaluation/VSI-Bench/scannet/scene0015_00.mp4"),
    ]
    write_rows(tmp_path / "eval_vsibench.json", rows)
    video = tmp_path / "scannet" / "scene0015_00.mp4"
    video.parent.mkdir()
    video.write_bytes(b"x")
    reading = read(tmp_path)
    assert [(item.problem_type, item.solution) for item in reading.items] == [
        ("multiple choice", "B"),
        ("regression", "1.5"),
    ]
    assert {item.video_id for item in reading.items} == {"scannet/scene0015_00.mp4"}
    # It does not say the types: there is no official average, and another one is the headline.
    sample = replace(answered("0", "route_planning", "B", "B"), dimensions={}, score=1.0)
    found = summarise_benchmark("vsibench", VSI, [sample], [], "direct")
    assert found.headline == "video_r1" and found.totals["official"].num_questions == 0
