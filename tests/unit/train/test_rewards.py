import numpy as np
import pytest

from strive.errors import ConfigError, UnknownNameError
from strive.records import Record
from strive.train.rewards import compute_rewards, load_rewards, record_columns

RECORD = Record("7", "a.mp4", "Which?", "multiple choice", ("A. x", "B. y"), "<answer>B</answer>")
GOOD = "<think>it is y</think><answer>B</answer>"
BARE = "<answer>B</answer>"
WRONG = "<think>it is x</think><answer>A</answer>"
DOTTED = "<think>hm</think><answer>(B).</answer>"


def length_reward(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


def only_when_short(prompts, completions, *, question_id, **columns):
    assert question_id == ["7"] * len(completions)
    return [1.0 if len(text) < 20 else None for text in completions]


def too_few(prompts, completions, **columns):
    return [1.0]


def not_a_number(prompts, completions, **columns):
    return [float("inf")] * len(completions)


async def coroutine(prompts, completions, **columns):
    return []


def rewards(weights, completions, grading="video_r1"):
    return compute_rewards(
        load_rewards(list(weights)),
        weights,
        prompts=["p"] * len(completions),
        completions=completions,
        columns=record_columns(RECORD, len(completions), grading=grading),
    )


def test_accuracy_and_format_add_up():
    totals_N, by_name = rewards({"accuracy": 1.0, "format": 1.0}, [GOOD, BARE, WRONG, "B"])
    assert by_name["accuracy"].tolist() == [1, 1, 0, 0]
    assert by_name["format"].tolist() == [1, 0, 1, 0]
    assert totals_N.tolist() == [2, 1, 1, 0]


# Video-R1's grading of whole completions, worked out by hand.
BY_TYPE = [
    ("multiple choice", "B", "B", 1.0),
    ("multiple choice", "B.", "B", 0.0),  # equality and nothing else
    ("numerical", "3.141", "3.14", 1.0),  # equal to two places
    ("numerical", "5.0", "5", 0.0),  # one has a ".", the other not
    ("OCR", "hello world", "hello big world", 2 / 3),  # one word of three is missing
    # ROUGE-1, -2, -L of the stems: 2 of 3 words, 1 of 2 pairs, 2 of 3 in order.
    ("free-form", "a cat runs", "the cats running", (2 / 3 + 1 / 2 + 2 / 3) / 3),
    ("regression", "9", "10", 0.9),  # 1 - |9 - 10| / 10
    ("regression", "25", "10", 0.0),  # off by 150 %, clipped
]


def test_every_problem_type_by_hand_in_one_call():
    kinds, answers, golds, wanted = zip(*BY_TYPE, strict=True)
    columns = {
        "problem_type": list(kinds),
        "solution": [f"<answer>{gold}</answer>" for gold in golds],
        "grading": ["video_r1"] * len(kinds),
        "data_source": ["test"] * len(kinds),
    }

    def accuracy_of(template):
        _, by_name = compute_rewards(
            load_rewards(["accuracy"]),
            {"accuracy": 1.0},
            prompts=["p"] * len(kinds),
            completions=[template.format(answer) for answer in answers],
            columns=columns,
        )
        return by_name["accuracy"]

    tagged = "<think>so</think>\n<answer> {} </answer>"
    np.testing.assert_allclose(accuracy_of(tagged), wanted, atol=1e-8)
    # The first answer counts, whatever follows; without tags there is none.
    np.testing.assert_allclose(accuracy_of(tagged + "<answer>no</answer>"), wanted, atol=1e-8)
    assert not accuracy_of("{}").any() and not accuracy_of("<answer>{}").any()


def test_weights_scale_each_function():
    totals_N, _ = rewards({"accuracy": 0.9, "format": 0.1}, [GOOD, WRONG])
    np.testing.assert_allclose(totals_N, [1.0, 0.1])


def test_grading_by_name():
    assert rewards({"accuracy": 1.0}, [DOTTED])[0].tolist() == [0]
    assert rewards({"accuracy": 1.0}, [DOTTED], "tolerant")[0].tolist() == [1]


def test_a_users_own_function_and_none():
    own = f"{__name__}:only_when_short"
    totals_N, by_name = rewards({own: 1.0, "accuracy": 2.0}, [GOOD, BARE])
    np.testing.assert_array_equal(by_name[own], [np.nan, 1.0])
    assert totals_N.tolist() == [2, 3]
    np.testing.assert_array_equal(rewards({own: 1.0}, [GOOD, BARE])[0], [np.nan, 1.0])
    assert rewards({f"{__name__}:length_reward": 0.5}, ["abcd"])[0].tolist() == [2]


def test_bad_functions_are_clear_errors():
    with pytest.raises(UnknownNameError, match="did you mean 'accuracy'"):
        load_rewards(["acuracy"])
    with pytest.raises(ConfigError, match="has no 'nothing'"):
        load_rewards([f"{__name__}:nothing"])
    with pytest.raises(ConfigError, match="a plain function"):
        load_rewards([f"{__name__}:coroutine"])
    with pytest.raises(ConfigError, match="1 values for 2 completions"):
        rewards({f"{__name__}:too_few": 1.0}, [GOOD, BARE])
    with pytest.raises(ConfigError, match="finite number or None"):
        rewards({f"{__name__}:not_a_number": 1.0}, [GOOD])
