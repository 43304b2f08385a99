"""TempCompass: four tasks in Parquet and in the official JSON, prompts, totals, bad rows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_rows import TEMPCOMPASS, Row, tempcompass_questions, video_r1_row, write_rows

from strive.answers import build_question
from strive.errors import MissingInputError, RecordsError
from strive.evaluate.benchmarks import BENCHMARKS, read_benchmark
from strive.evaluate.benchmarks.published import unlettered
from strive.evaluate.benchmarks.tempcompass import TASKS, split_question
from strive.evaluate.items import Reading
from strive.evaluate.results import grade_sample, summarise_benchmark
from strive.evaluate.samples import Sample

GOLDEN = Path(__file__).parent / "golden"
TEMP = BENCHMARKS["tempcompass"]
FIVE = ("action", "direction", "speed", "order", "attribute_change")


def write(root: Path, form: str = "test-00000-of-00001.parquet", **rows: list[Row]) -> None:
    """Write one row a task, or the rows given by the task's name."""
    for task in TASKS:
        write_rows(root / task / form, rows.get(task, [TEMPCOMPASS[task]]))


def write_official(root: Path, rows: dict[str, list[Row]]) -> None:
    for name, content in tempcompass_questions(rows).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))


def read(root: Path) -> Reading:
    return read_benchmark("tempcompass", TEMP, root)


def test_published_rows_become_lettered_items(tmp_path: Path) -> None:
    write(tmp_path)
    reading = read(tmp_path)
    assert reading.failures == () and len(reading.files) == 4
    found = {item.dimensions["task"]: item for item in reading.items}
    assert list(found) == list(TASKS)
    three = ("A. passing a basketball", "B. dunking a basketball", "C. dribbling a basketball")
    assert {task: item.options for task, item in found.items()} == {
        "multi-choice": three,
        "yes_no": ("A. yes", "B. no"),
        "caption_matching": (
            "A. The man is dribbling a basketball.",
            "B. A man is dunking a basketball.",
        ),
        "captioning": three,
    }
    assert [item.solution for item in found.values()] == ["B", "A", "B", "B"]
    assert found["captioning"].question_id == "captioning/1034419625/action/1"
    for item in found.values():
        assert (item.video_id, item.cluster) == ("videos/1034419625.mp4", "1034419625")
        assert item.problem_type == "multiple choice"
    assert found["yes_no"].dimensions == {
        "task": "yes_no",
        "dim": "action",
        "task and dim": "yes_no action",
    }


def test_json_lines_and_the_official_json_give_the_same_items(tmp_path: Path) -> None:
    # Two yes-or-no questions of one aspect and one of another: ids count within an aspect.
    asked = [
        TEMPCOMPASS["yes_no"],
        {**TEMPCOMPASS["yes_no"], "question": "Is he passing it?", "answer": "no"},
        {**TEMPCOMPASS["yes_no"], "question": "Is it fast?", "dim": "speed"},
    ]
    write(tmp_path / "parquet", yes_no=asked)
    write(tmp_path / "lines", "test.jsonl", yes_no=asked)
    write_official(tmp_path / "official", {**{t: [TEMPCOMPASS[t]] for t in TASKS}, "yes_no": asked})
    published = read(tmp_path / "parquet")
    assert [item.question_id for item in published.items[1:4]] == [
        "yes_no/1034419625/action/1",
        "yes_no/1034419625/action/2",
        "yes_no/1034419625/speed/1",
    ]
    assert read(tmp_path / "lines").items == published.items
    # There captioning is asked by the first multiple-choice question of the video and aspect.
    assert read(tmp_path / "official").items == published.items


def test_fine_aspects_come_from_the_official_repository(tmp_path: Path) -> None:
    order = {**TEMPCOMPASS["yes_no"], "dim": "order"}
    write(tmp_path, yes_no=[TEMPCOMPASS["yes_no"], order])
    meta = {"1034419625": {"eval_dim": {"action": {"type": "fine-grained action"}}}}
    (tmp_path / "meta_info.json").write_text(json.dumps(meta))
    found = [item.dimensions["fine aspect"] for item in read(tmp_path).items]
    assert found == ["fine-grained action"] * 2 + ["order"] + ["fine-grained action"] * 2
    (tmp_path / "meta_info.json").write_text("{}")
    assert read(tmp_path).items[0].dimensions["fine aspect"] == "(none)"


def test_what_lmms_eval_leaves_is_found(tmp_path: Path) -> None:
    write(tmp_path / "hub" / "datasets--lmms-lab--TempCompass" / "snapshots" / "1a2b")
    video = tmp_path / "tempcompass" / "videos" / "1034419625.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(b"x")
    assert {i.video_id for i in read(tmp_path).items} == {"tempcompass/videos/1034419625.mp4"}


@pytest.mark.parametrize("protocol", ["video_r1", "direct"])
def test_prompts_are_the_reference_to_the_letter(tmp_path: Path, protocol: Any) -> None:
    write(tmp_path)
    items = TEMP.asked(read(tmp_path), protocol).items
    assert len(items) == {"video_r1": 4, "direct": 3}[protocol]
    for item in items:
        name = f"tempcompass_{item.dimensions['task']}_{protocol}.txt"
        assert TEMP.prompt(item, protocol) == (GOLDEN / name).read_bytes().decode()
        # Other templates do not show the options twice either.
        assert build_question(item, "short").count(unlettered(item.options[0])) == 1
    assert TEMP.frames_mode(protocol) == {"video_r1": "fps", "direct": "linspace"}[protocol]


def test_direct_leaves_captioning_out_and_says_so(tmp_path: Path) -> None:
    bad = {**TEMPCOMPASS["captioning"], "mc_answer": "Z. flying", "dim": "speed"}
    write(tmp_path, captioning=[TEMPCOMPASS["captioning"], bad])
    reading = read(tmp_path)
    assert len(reading.items) == 4 and len(reading.failures) == 1
    assert TEMP.asked(reading, "video_r1") == reading
    asked = TEMP.asked(reading, "direct")
    assert [item.dimensions["task"] for item in asked.items] == list(TASKS[:3])
    assert asked.failures == ()
    assert asked.left_out == {"captions are graded by a judge model, which direct does without": 2}


BAD: dict[str, tuple[str, Row, str]] = {
    "answer no option": ("multi-choice", {"answer": "D. flying"}, "answer 'D. flying' is no opt"),
    "another option's letter": ("multi-choice", {"answer": "A. dunking a basketball"}, "is no op"),
    "null answer": ("multi-choice", {"answer": None}, "'answer' is None; a text is wanted"),
    "no options": ("multi-choice", {"question": "What?"}, "no options at the end of the question"),
    "one option": ("multi-choice", {"question": "What?\nA. it"}, "no options at the end"),
    "a letter left out": ("multi-choice", {"question": "What?\nA. x\nC. y"}, "no options at the"),
    "neither": ("yes_no", {"answer": "perhaps"}, "answer 'perhaps' is no option, or several; they"),
    "no caption": ("caption_matching", {"answer": "Option 3: x"}, "answer 'Option 3: x' is no op"),
    "no mc_answer": ("captioning", {"mc_answer": None}, "'mc_answer' is None; a text is wanted"),
    "no mc_question": ("captioning", {"mc_question": ""}, "'mc_question' is ''; a text is wanted"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_counts_as_wrong(tmp_path: Path, case: str) -> None:
    task, change, message = BAD[case]
    good = TEMPCOMPASS[task]
    write(tmp_path, **{task: [good, {**good, **change}]})
    reading = read(tmp_path)
    assert len(reading.items) == 4
    [failure] = reading.failures
    assert failure.question_id == f"{task}/1034419625/action/2"
    assert (failure.error, failure.dimensions["task"]) == ("bad_row", task)
    assert ".parquet, row 2: " in failure.message and message in failure.message


def test_wrong_files_are_one_line(tmp_path: Path) -> None:
    write(tmp_path / "a")
    (tmp_path / "a" / "yes_no" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(MissingInputError, match=r"yes_no/test.*lmms-lab/TempCompass"):
        read(tmp_path / "a")
    row = {**TEMPCOMPASS["yes_no"], "aspect": "action"}
    del row["dim"]
    write(tmp_path / "b", yes_no=[row])
    with pytest.raises(RecordsError, match="no column 'dim'; there are: video_id"):
        read(tmp_path / "b")
    official = {task: [TEMPCOMPASS[task]] for task in TASKS}
    for content, message in (
        ([], "an object is expected, found list"),
        ({"1": []}, r"video '1': \{aspect: \[\{question, answer\}\]\} is expected, found \[\]"),
        ({"1": {"action": ["x"]}}, "is expected, found"),
        ({"1": {"action": [{"question": "x"}]}}, "'1', action 1: no column 'answer'; there are: q"),
    ):
        write_official(tmp_path / "c", official)
        (tmp_path / "c" / "questions" / "yes_no.json").write_text(json.dumps(content))
        with pytest.raises(RecordsError, match=message):
            read(tmp_path / "c")


@pytest.mark.parametrize(
    ("question", "labels"),
    [
        ("Which?\nA. x: y\nB. a\nb", []),  # an option of two lines is not guessed at
        ("Which?\nA. x\nB) y ", ["A", "B"]),
        ("Is A. this?\nA. x\nB. y\n", ["A", "B"]),
        ("Which?\nSentence A: it: x\nSentence B: y", ["Sentence A", "Sentence B"]),
        ("Which?\nCaption 1: x\nCaption 2: y", ["Caption 1", "Caption 2"]),
        ("Which?\nOption 2: x\nOption 1: y", []),
        ("A. x\nB. y", []),
    ],
)
def test_options_are_the_last_lines(question: str, labels: list[str]) -> None:
    stem, options = split_question(question)
    assert [label for label, _ in options] == labels
    assert stem == (question if not labels else question.split("\n")[0])


ONE_LINE = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)


@given(st.lists(ONE_LINE, min_size=2, max_size=5), st.sampled_from(["{}. ", "{}) ", "{}."]))
def test_whatever_options_say_they_are_split_off(texts: list[str], label: str) -> None:
    lines = [label.format(letter) + text for letter, text in zip("ABCDE", texts, strict=False)]
    stem, options = split_question("\n".join(["What is it?", *lines]))
    assert stem == "What is it?"
    assert options == list(zip("ABCDE", texts, strict=False))


# --- grading and totals -------------------------------------------------------------------------


def answered(root: Path, outputs: dict[str, str], grading: Any) -> dict[str, Sample]:
    """Return each task's item as it is stored with an answer, graded."""
    write(root)
    found = {}
    for item in read(root).items:
        task = item.dimensions["task"]
        sample = Sample(
            benchmark="tempcompass", question_id=item.question_id, prompt_hash="",
            video_id=item.video_id, problem_type=item.problem_type, kind="", prompt="",
            solution=item.solution, source_index=(), evidence_seen=None, output=outputs[task],
            num_tokens=1, truncated=False, options=item.options, dimensions=item.dimensions,
            cluster=item.cluster,
        )  # fmt: skip
        found[task] = grade_sample(sample, TEMP, grading)
    return found


# {output: the tasks under which it is right by the rules of `direct`}
DIRECT = {
    "dunking a basketball": {"multi-choice", "captioning"},
    "B": {"multi-choice", "caption_matching", "captioning"},
    "Yes, he is.": {"yes_no"},
    "not sure": set(),
    "A": {"yes_no"},  # the letter of "yes", as Video-R1's prompt asks for it
    "Option 2": {"caption_matching"},
    "Option 2: A man is dunking a basketball.": {"caption_matching"},
    "A man is dunking a basketball.": {"caption_matching"},
    "": set(),
}


@pytest.mark.parametrize("output", DIRECT)
def test_direct_grades_by_task(tmp_path: Path, output: str) -> None:
    graded = answered(tmp_path, dict.fromkeys(TASKS, output), "direct")
    assert {task for task, sample in graded.items() if sample.score == 1} == DIRECT[output]


def test_video_r1_grades_letters_only(tmp_path: Path) -> None:
    output = "<think>so</think><answer>B</answer>"
    graded = answered(tmp_path, dict.fromkeys(TASKS, output), "video_r1")
    assert {task: sample.score for task, sample in graded.items()} == {
        "multi-choice": 1,
        "yes_no": 0,
        "caption_matching": 1,
        "captioning": 1,
    }
    spelled = answered(tmp_path, dict.fromkeys(TASKS, "<answer>B. dunking</answer>"), "video_r1")
    assert {sample.score for sample in spelled.values()} == {0}


def test_totals_by_hand(tmp_path: Path) -> None:
    one = answered(tmp_path, dict.fromkeys(TASKS, ""), "direct")
    rows = [
        replace(one[task], question_id=f"{task}{number}", score=float(score))
        for task, scores in {
            "multi-choice": (1, 1, 0),
            "yes_no": (1, 0, 0, 0, 0),
            "caption_matching": (1, 0),
            "captioning": (1, 1),
        }.items()
        for number, score in enumerate(scores)
    ]
    found = summarise_benchmark("tempcompass", TEMP, rows, [], "video_r1")
    percents = {name: score.accuracy_percent for name, score in found.totals.items()}
    assert found.headline == "video_r1"
    assert percents == {
        "video_r1": pytest.approx(50.0),  # 6 of 12
        "mc": pytest.approx(100 * 2 / 3),
        "rule3_micro": pytest.approx(40.0),  # 4 of 10
        "rule3_macro": pytest.approx(100 * (2 / 3 + 1 / 5 + 1 / 2) / 3),
    }
    direct = summarise_benchmark("tempcompass", TEMP, rows[:-2], [], "direct")
    assert direct.headline == "rule3_micro" and "video_r1" not in direct.totals
    few = summarise_benchmark("tempcompass", TEMP, rows[:3], [], "direct")
    assert few.absent == {"rule3_macro": ("yes_no", "caption_matching")}
    assert found.by_dimension["task"]["yes_no"].accuracy_percent == pytest.approx(20.0)


def test_video_r1s_copy_is_asked_by_its_protocol_only(tmp_path: Path) -> None:
    row = video_r1_row(0, "multiple choice", "./Evaluation/TempCompass/videos/7.mp4")
    write_rows(tmp_path / "eval_tempcompass.json", [row])
    reading = read(tmp_path)
    [item] = reading.items
    assert TEMP.prompt(item, "video_r1").startswith(
        "What is shown?Options:\nA. a cat\nB. a dog\n\n"
    )
    direct = TEMP.asked(reading, "direct")
    assert direct.items == () and [*direct.left_out.values()] == [1]
    assert "does not say a question's task" in next(iter(direct.left_out))
    results = summarise_benchmark("tempcompass", TEMP, [], [], "video_r1")
    assert results.totals["video_r1"].num_questions == 0
