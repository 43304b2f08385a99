"""Rewards in time and of two answers: golden numbers of Time-R1, VideoChat-R1 and VideoAuto-R1."""

import numpy as np
import pytest

from strive.records import PROBLEM_TYPES, Record
from strive.train.advantages import group_advantages
from strive.train.rewards import compute_rewards, load_rewards, reward_columns

OPTIONS = ("A. x", "B. y", "C. z")
EVENT = Record("1", "a.mp4", "When?", "grounding", (), "<answer>10 to 20</answer>")
GROUNDED = Record(
    "2", "a.mp4", "Which?", "grounded multiple choice", OPTIONS, "<answer>B</answer>", "",
    ((2.0, 5.0),),
)  # fmt: skip
CHOICE = Record("3", "a.mp4", "Which?", "multiple choice", OPTIONS, "<answer>B</answer>")


def judged(weights, completions, record, *, duration=40.0, grading="video_r1"):
    return compute_rewards(
        load_rewards(list(weights)),
        weights,
        prompts=["p"] * len(completions),
        completions=completions,
        columns=reward_columns(
            record,
            [[1]] * len(completions),
            grading=grading,
            duration_seconds=duration,
            max_new_tokens=64,
        ),
    )


def values(name, completions, record, **more):
    found = judged({name: 1.0}, completions, record, **more)[1][name]
    return [None if np.isnan(value) else value for value in found]


def advantages(totals_N):
    return group_advantages(np.reshape(totals_N, (1, -1)))[0][0]


def said(answer, clues=""):
    return f"<think>so</think><answer>{answer}</answer>" + clues


# --- Time-R1 -------------------------------------------------------------------------------------

# Gold (10, 20) in 40 s; IoU 1, 8/12, 10/40, 0 (tests/unit/test_intervals.py).
PREDICTED = [said("10 to 20"), said("12 to 22"), said("0 to 40"), said("25 to 30")]


def test_time_r1():
    totals_N, by_name = judged({"grounding_iou_timed": 1.0, "format": 1.0}, PREDICTED, EVENT)
    timed = [1, 0.601667, 0.09375, 0]
    np.testing.assert_allclose(by_name["grounding_iou_timed"], timed, atol=1e-6)
    np.testing.assert_allclose(totals_N, np.add(timed, 1), atol=1e-6)
    np.testing.assert_allclose(
        advantages(totals_N), [1.235422, 0.381281, -0.707838, -0.908865], atol=1e-6
    )


def test_plain_iou():
    totals_N, by_name = judged({"grounding_iou": 1.0, "format": 1.0}, PREDICTED, EVENT)
    np.testing.assert_allclose(by_name["grounding_iou"], [1, 2 / 3, 0.25, 0])
    np.testing.assert_allclose(
        advantages(totals_N), [1.175636, 0.423229, -0.51728, -1.081585], atol=1e-6
    )
    # Accuracy of an interval is its IoU: beside each other they count it twice.
    assert values("accuracy", PREDICTED, EVENT) == by_name["grounding_iou"].tolist()


def test_an_end_beyond_the_video_is_not_clipped():
    [value] = values("grounding_iou_timed", [said("10 to 100")], EVENT)
    assert value == pytest.approx(-0.111111, abs=1e-6)


def test_the_last_answer_block_is_read():
    twice = said("1 to 2") + "<answer>10 to 20</answer>"
    for name in ("grounding_iou", "grounding_iou_timed", "accuracy"):
        assert values(name, [twice, said("hm"), "10 to 20", ""], EVENT) == [1, 0, 0, 0]


def test_a_solution_of_several_intervals_is_met_by_any():
    record = Record("1", "a.mp4", "When?", "grounding", (), "10 to 20, 30 to 36")
    completions = [said("30 to 36"), said("10 to 20"), said("20 to 30")]
    for name in ("grounding_iou", "grounding_iou_timed", "accuracy"):
        assert values(name, completions, record) == [1, 1, 0]


@pytest.mark.parametrize("duration", [None, 0.0])
def test_a_video_of_unknown_duration_has_no_timed_reward(duration):
    assert values("grounding_iou_timed", PREDICTED, EVENT, duration=duration) == [None] * 4
    assert values("grounding_iou", PREDICTED, EVENT, duration=duration)[0] == 1


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_what_applies_to_which_type(problem_type):
    record = Record("1", "a.mp4", "?", problem_type, OPTIONS, "10 to 20", "", ((2.0, 5.0),))
    texts = [said("10 to 20", "<glue>[(2, 5)]</glue>")]
    is_event = problem_type == "grounding"
    is_grounded = problem_type == "grounded multiple choice"
    assert values("grounding_iou", texts, record) == [1 if is_event or is_grounded else None]
    assert values("grounding_iou_timed", texts, record) == [1 if is_event else None]
    assert values("clue_iou", texts, record) == [1 if is_grounded else None]


# --- VideoChat-R1 --------------------------------------------------------------------------------


def test_videochat_r1():
    """Format, letter and IoU of the clues: gold (2, 5), clues (1, 4) and (3, 6) share 3 s of 5."""
    completions = [
        said("B", "<glue>[(1, 4), (3, 6)]</glue>"),  # 1 + 1 + 0.6
        said("B", "\n<glue>[(6, 9)]</glue>\n"),  # 1 + 1 + 0
        said("The answer is B.", "<glue>[(0, 2)]</glue>"),  # touching is not sharing
        "B (2, 5)",
    ]
    weights = {"accuracy": 1.0, "clue_iou": 1.0, "format": 1.0}
    totals_N, by_name = judged(weights, completions, GROUNDED)
    np.testing.assert_allclose(by_name["clue_iou"], [0.6, 0, 0, 0])
    np.testing.assert_allclose(totals_N, [2.6, 2, 2, 0])
    np.testing.assert_allclose(
        advantages(totals_N), [0.836355, 0.308131, 0.308131, -1.452616], atol=1e-6
    )
    assert values("grounding_iou", completions, GROUNDED) == by_name["clue_iou"].tolist()


@pytest.mark.parametrize(
    ("clues", "value", "has_format"),
    [
        ("[(2, 5)]", 1, 1),
        ("[]", 0, 1),
        ("[(5, 2)]", 0, 0),
        ("(2, 5)", 0, 0),
        ("[(2, 5), hm]", 0, 0),
        ("", 0, 0),
    ],
)
def test_malformed_clues_earn_nothing_and_have_no_format(clues, value, has_format):
    texts = [said("B", f"<glue>{clues}</glue>")]
    assert values("clue_iou", texts, GROUNDED) == [value]
    assert values("format", texts, GROUNDED) == [has_format]
    assert values("format_strict", texts, GROUNDED) == [has_format]


def test_a_record_without_clues():
    """No gold: the reward does not apply. An empty gold: so must the list be."""
    unknown = Record("2", "a.mp4", "?", "grounded multiple choice", OPTIONS, "B")
    none = Record("2", "a.mp4", "?", "grounded multiple choice", OPTIONS, "B", "", ())
    texts = [said("B", "<glue>[]</glue>"), said("B", "<glue>[(1, 2)]</glue>")]
    assert values("clue_iou", texts, unknown) == [None, None]
    assert values("clue_iou", texts, none) == [1, 0]


def test_only_a_grounded_answer_ends_in_clues():
    texts = [said("B", "<glue>[(2, 5)]</glue>"), said("B")]
    assert values("format", texts, GROUNDED) == [1, 0]
    assert values("format", texts, CHOICE) == [0, 1]


# --- VideoAuto-R1 --------------------------------------------------------------------------------

TWICE = {"accuracy_first": 0.9, "accuracy_second": 1.1, "format_twice": 1.0, "fallback": 0.3}


def twice(first, second):
    return f"\\boxed{{{first}}}<think>so</think>\\boxed{{{second}}}"


def test_videoauto_r1():
    """0.9 + 1.1 + 1; 1.1 + 1; 1.1 + 1 + 0.3; 0.9 + 1."""
    put_off = "Let's analyze the problem step by step."
    completions = [twice("B", "B"), twice("A", "B"), twice(put_off, "B"), twice("B", "A")]
    totals_N, by_name = judged(TWICE, completions, CHOICE)
    np.testing.assert_allclose(totals_N, [3.0, 2.1, 2.4, 1.9])
    assert by_name["fallback"].tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(
        advantages(totals_N), [1.355061, -0.521177, 0.104235, -0.938119], atol=1e-6
    )
    # Putting off a question that is then answered wrongly earns the format alone.
    assert judged(TWICE, [twice(put_off, "A"), "B"], CHOICE)[0].tolist() == [1, 0]


def test_two_answers_of_other_types():
    assert values("accuracy_first", [twice("12 to 22", "0 to 40")], EVENT) == [pytest.approx(2 / 3)]
    assert values("accuracy_second", [twice("12 to 22", "0 to 40")], EVENT) == [0.25]
    # Letter and best IoU with one of the record's spans: up to 2.
    assert values("accuracy_second", [twice("A", "B<>2 to 5")], GROUNDED) == [2]
    number = Record("4", "a.mp4", "How many?", "numerical", (), "<answer>5</answer>")
    assert values("accuracy_first", [twice("5.0", "5")], number) == [0]
    assert values("accuracy_first", [twice("5.0", "5")], number, grading="tolerant") == [1]


def test_the_fallback_needs_more_than_seven_tenths():
    """Of an interval: IoU 8/12 is too little, 10/12 is enough."""
    completions = [twice("Let's analyze it", span) for span in ("12 to 22", "10 to 22")]
    assert values("fallback", completions, EVENT) == [0, 1]
