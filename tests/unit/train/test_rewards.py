import sys

import numpy as np
import pytest
import torch

from strive.answers import build_question
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError, RewardError, UnknownNameError
from strive.records import Record
from strive.train.rewards import compute_rewards, load_rewards, reward_columns, try_rewards

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


async def coroutine(prompts, completions, **columns):
    return []


def columns_of(record, completion_ids, grading="video_r1"):
    return reward_columns(record, completion_ids, grading=grading, max_new_tokens=64)


def rewards(weights, completions, grading="video_r1"):
    return compute_rewards(
        load_rewards(list(weights)),
        weights,
        prompts=["p"] * len(completions),
        completions=completions,
        columns=columns_of(RECORD, [[1]] * len(completions), grading=grading),
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
    with pytest.raises(ConfigError, match=r"test_rewards.py\) has no 'nothing'"):
        load_rewards([f"{__name__}:nothing"])
    with pytest.raises(ConfigError, match="is an async function; a plain function"):
        load_rewards([f"{__name__}:coroutine"])
    with pytest.raises(ConfigError, match="is a class; a plain function"):
        load_rewards([f"{__name__}:Judge"])


class Judge:
    """Called as an object; gives back whatever it holds."""

    def __init__(self, values):
        self.values = values

    def __call__(self, prompts, completions, **columns):
        return self.values(completions) if callable(self.values) else self.values


class AsyncJudge:
    async def __call__(self, prompts, completions, **columns):
        return [1.0]


def judged(function, completions=(GOOD, BARE), **columns):
    columns = columns_of(RECORD, [[1]] * len(completions)) | columns
    totals_N, _ = compute_rewards(
        {"own:judge": function},
        {"own:judge": 1.0},
        prompts=["p"] * len(completions),
        completions=list(completions),
        columns=columns,
    )
    return totals_N.tolist()


@pytest.mark.parametrize(
    "values",
    [
        [1, 0.5],
        (True, 0.5),
        np.array([1.0, 0.5], dtype=np.float16),
        torch.tensor([1.0, 0.5], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(1.0), np.float32(0.5)],
    ],
    ids=repr,
)
def test_numbers_of_any_kind_are_taken(values):
    assert judged(Judge(values)) == [1.0, 0.5]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0], "returned 1 values for 2 completions; a list with a number or None for each"),
        (1.0, "returned 1.0; a list with a number or None for each completion is wanted"),
        (None, "returned None; a list"),
        (torch.tensor(1.0), "returned 1.0; a list"),
        (lambda texts: (1.0 for _ in texts), "returned a generator; a list"),
        ({"a": 1.0, "b": 2.0}, "returned a dict; a list"),
        ("ab", "returned 'ab'; a list"),
        (torch.ones(2, 1), "returned a list for completion 1 of 2; a finite number or None is due"),
        ([1.0, "0.5"], "returned '0.5' for completion 2 of 2; a finite number"),
        ([1.0, []], "returned a list for completion 2 of 2"),
        ([float("nan"), 1.0], "returned nan for completion 1 of 2"),
        ([1.0, float("-inf")], "returned -inf for completion 2 of 2"),
        ([1.0, -1e300], r"returned -1e\+300 for completion 2 of 2; .* of a size up to 1e\+150"),
        ([1.0, 10**400], "returned 1000+ for completion 2 of 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_list_of_numbers_is_named(values, said):
    with pytest.raises(RewardError, match=f"reward 'own:judge' {said}") as error:
        judged(Judge(values))
    assert "docs/own-rewards.md" in str(error.value) and "\n" not in str(error.value)
    assert error.value.exit_code == 1


def test_an_async_object_is_told_and_leaves_no_warning(recwarn):
    with pytest.raises(RewardError, match="returned a coroutine; a list"):
        judged(AsyncJudge())
    assert not recwarn.list


def test_weights_that_leave_the_numbers_are_an_error():
    with pytest.raises(RewardError, match=r"weighted sum of rewards is 1e\+20\d, above 1e\+150"):
        compute_rewards(
            {"a": Judge([1e105])}, {"a": 1e100}, prompts=["p"], completions=["c"], columns={}
        )


def longest_word(prompts, completions, **columns):
    return [max(len(word) for word in text.split()) for text in completions]


def chat_shaped(completions, **columns):
    return [1.0 if c[0]["content"] else 0.0 for c in completions]


def fails_by_place(completions, **columns):
    return [1 / (1 - number) for number in range(len(completions))]


def lacks_keywords(completions, solution):
    return [0.0 for _ in completions]


def wants_another_column(completions, answer, **columns):
    return [0.0 for _ in completions]


# The text of blanks has no longest word, and is the second completion.
IN_FILE = r"\(.*test_rewards.py, line \d+\) for question '7'"


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (longest_word, rf"raised ValueError: .*empty.* {IN_FILE}, completion 2 of 2 \(' '\)"),
        (chat_shaped, r"raised TypeError: string indices .* completion 1 of 2 .*are texts here"),
        (fails_by_place, rf"raised ZeroDivisionError: .* {IN_FILE} \(docs"),
        (lacks_keywords, r"cannot be called as rewards are .*'prompts'.*solution.*\*\*columns"),
        (wants_another_column, r"cannot be called as rewards are .*'answer'.* with prompts, compl"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_exception_names_reward_question_and_completion(function, said):
    with pytest.raises(RewardError, match=f"reward 'own:judge' {said}") as error:
        judged(function, (GOOD, " "))
    assert "\n" not in str(error.value)


def writes_into_everything(prompts, completions, *, options, completion_ids, **columns):
    options[0].append("C. z")
    completion_ids[0].clear()
    completions[0] = prompts[0] = "mine"
    columns["solution"].clear()
    return [1.0] * len(completions)


def test_a_reward_cannot_change_what_the_next_one_sees():
    ids = [[5, 6], [7]]
    columns = columns_of(RECORD, ids)

    def looks(prompts, completions, *, options, completion_ids, solution, **columns):
        assert (prompts, completions) == (["p", "p"], [GOOD, BARE])
        assert options == [["A. x", "B. y"]] * 2 and completion_ids == [[5, 6], [7]]
        assert solution == ["<answer>B</answer>"] * 2
        return [1.0, 1.0]

    for _ in range(2):
        compute_rewards(
            {"first": writes_into_everything, "second": looks},
            {"first": 1.0, "second": 1.0},
            prompts=["p", "p"],
            completions=[GOOD, BARE],
            columns=columns,
        )
    assert ids == [[5, 6], [7]]


def test_rewards_are_tried_with_the_records_own_solution():
    seen = []

    def looks(prompts, completions, *, completion_ids, solution, **columns):
        seen.append((prompts, completions, solution))
        assert all(isinstance(token, int) for row in completion_ids for token in row)
        return [None] * len(completions)

    config = TrainConfig(rewards={"own:looks": 1.0}, num_variants=2, num_generations=2)
    try_rewards({"own:looks": looks}, config, RECORD)
    [(prompts, completions, solution)] = seen
    assert (
        prompts == [build_question(RECORD, "video_r1")] * 4
        and solution == ["<answer>B</answer>"] * 4
    )
    assert completions[1] == "" and len(completions) == 4
    both = load_rewards(["accuracy", "format"])
    assert compute_rewards(
        both,
        {"accuracy": 1.0, "format": 1.0},
        prompts=prompts,
        completions=completions,
        columns=columns_of(RECORD, [[1]] * 4),
    )[0].tolist() == [2, 0, 0, 2]
    with pytest.raises(
        ConfigError, match=r"raised ValueError.*tried before the run.*check_rewards"
    ):
        try_rewards({"own:words": longest_word}, TrainConfig(rewards={"own:words": 1.0}), RECORD)


def test_the_strict_format_takes_each_tag_once():
    texts = {
        GOOD: 1,
        f"{GOOD}</answer></answer>": 0,
        "<think>x</think><answer></answer>": 0,
        "<think>a</think><think>b</think><answer>B</answer>": 0,
        BARE: 0,
    }
    strict = load_rewards(["format_strict"])["format_strict"]
    assert strict(prompts=[], completions=list(texts)) == list(texts.values())
    # Those that the source's own format lets pass.
    plain = load_rewards(["format"])["format"]
    assert plain(prompts=[], completions=list(texts)) == [1, 1, 1, 1, 0]


def test_a_reward_that_exits_is_an_error():
    def leaves(prompts, completions, **columns):
        sys.exit(0)

    with pytest.raises(RewardError, match="'leaves' raised SystemExit: 0"):
        compute_rewards(
            {"leaves": leaves}, {"leaves": 1.0}, prompts=["?"], completions=["a"], columns={}
        )
