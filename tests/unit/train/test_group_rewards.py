"""Group rewards: T-GRPO, ArrowRL, DAPO's length penalty, majority; all golden numbers by hand."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strive.configs.schema import TrainConfig
from strive.errors import ConfigError, RewardError
from strive.records import Record
from strive.train.advantages import group_advantages
from strive.train.group_rewards import overlong_penalty
from strive.train.rewards import REWARDS, compute_rewards, load_rewards, reward_columns, try_rewards

OPTIONS = ("A. x", "B. y", "C. z")
RECORD = Record("7", "a.mp4", "Which?", "multiple choice", OPTIONS, "<answer>B</answer>")
GROUPED = ("temporal", "temporal_strict", "length", "reverse", "overlong", "majority")


def said(answer, is_formatted=True):
    """A completion with an answer in tags, in Video-R1's format or with a tail that breaks it."""
    return f"<think>so</think><answer>{answer}</answer>" + ("" if is_formatted else ".")


def right(*marks):
    """Completions that are right for 1 and wrong for 0."""
    return [said("B" if mark else "A") for mark in marks]


def judged(weights, completions, *, contrast=(), lengths=None, record=RECORD, limit=768):
    """Totals and each reward's values of one group."""
    lengths = lengths or [100] * len(completions)
    return compute_rewards(
        load_rewards(list(weights)),
        weights,
        prompts=["p"] * len(completions),
        completions=completions,
        columns=reward_columns(
            record,
            [[1] * length for length in lengths],
            grading="video_r1",
            contrast_completions=contrast,
            duration_seconds=40.0,
            max_new_tokens=limit,
        ),
    )


def values(name, completions, **more):
    return judged({name: 1.0}, completions, **more)[1][name].tolist()


def advantages(totals_N):
    return group_advantages(np.reshape(totals_N, (1, -1)))[0][0]


# --- T-GRPO --------------------------------------------------------------------------------------

T_GRPO = {"accuracy": 1.0, "format": 1.0, "temporal": 0.3, "length": 0.2}
# Accuracy 1,1,0,0,1,0,0,0; the seventh is out of format.
ORDERED = [*right(1, 1, 0, 0, 1, 0), said("A", is_formatted=False), *right(0)]
LENGTHS = [400, 600, 350, 300, 320, 500, 10, 512]


def test_t_grpo_where_order_helps():
    """p = 3/8 = 0.375 against 0.8 x 1/4 = 0.2: the three right rows earn 0.3.

    Of these the first (400 tokens) and the fifth (320) earn 0.2 as well, the second (600) not.
    """
    totals_N, by_name = judged(T_GRPO, ORDERED, contrast=right(1, 0, 0, 0), lengths=LENGTHS)
    np.testing.assert_allclose(totals_N, [2.5, 2.3, 1, 1, 2.5, 1, 0, 1])
    assert by_name["temporal"].tolist() == [1, 1, 0, 0, 1, 0, 0, 0]
    assert by_name["length"].tolist() == [1, 0, 0, 0, 1, 0, 0, 0]
    np.testing.assert_allclose(
        advantages(totals_N),
        [1.191634, 0.972483, -0.451999, -0.451999, 1.191634, -0.451999, -1.547755, -0.451999],
        atol=1e-6,
    )


def test_t_grpo_where_order_does_not_help():
    """p~ = 2/4: 0.375 < 0.8 x 0.5 = 0.4, so that only the length is rewarded."""
    totals_N, _ = judged(T_GRPO, ORDERED, contrast=right(1, 1, 0, 0), lengths=LENGTHS)
    np.testing.assert_allclose(totals_N, [2.2, 2, 1, 1, 2.2, 1, 0, 1])
    low = -0.389105
    np.testing.assert_allclose(
        advantages(totals_N),
        [1.167316, 0.907913, low, low, 1.167316, low, -1.686123, low],
        atol=1e-6,
    )


def test_the_code_rewards_what_the_papers_equation_does_not():
    """p = 5/8 = 0.625, p~ = 3/4: at least 0.8 x 0.75 = 0.6, but below 0.75."""
    completions, contrast = right(1, 1, 1, 1, 1, 0, 0, 0), right(1, 1, 1, 0)
    for name, total in (("temporal", 2.3), ("temporal_strict", 2.0)):
        weights = {"accuracy": 1.0, "format": 1.0, name: 0.3, "length": 0.2}
        totals_N, _ = judged(weights, completions, contrast=contrast)
        np.testing.assert_allclose(totals_N, [total] * 5 + [1] * 3)


@pytest.mark.parametrize(
    ("name", "marks", "contrast"),
    [
        # 3/5 is 0.8 x 3/4, and that product is a little more than 0.6 in floating point.
        ("temporal", (1, 1, 1, 0, 0), (1, 1, 1, 0)),
        ("temporal_strict", (1, 0), (0, 1)),
    ],
)
def test_equality_is_enough(name, marks, contrast):
    assert values(name, right(*marks), contrast=right(*contrast)) == list(marks)


def test_partial_credit_counts_as_its_value():
    """Regression, gold 10: 9, 9.5 and 0.5 score 0.9, 0.95 and 0.05, which is not accurate."""
    record = Record("7", "a.mp4", "How far?", "regression", (), "<answer>10</answer>")
    completions = [said("9"), said("0.5"), said("far")]
    # p = (0.9 + 0.05 + 0) / 3 = 0.3167 against p~ = 0.95: 0.76 is more. Against 0.05 / 1 it is not.
    assert values("temporal", completions, contrast=[said("9.5")], record=record) == [0, 0, 0]
    assert values("temporal", completions, contrast=[said("0.5")], record=record) == [1, 0, 0]


@pytest.mark.parametrize(
    ("marks", "lengths", "earned"),
    [
        ((1, 0, 0), (400, 400, 400), (0, 0, 0)),  # one right row alone
        ((1, 1, 0), (400, 100, 400), (1, 0, 0)),  # the other need not be long
        ((1, 1, 1, 1), (319, 320, 512, 513), (0, 1, 1, 0)),
        ((0, 0), (400, 400), (0, 0)),
    ],
)
def test_the_length_reward(marks, lengths, earned):
    assert values("length", right(*marks), lengths=lengths) == list(earned)


# --- ArrowRL -------------------------------------------------------------------------------------

ARROW = {"accuracy": 1.0, "reverse": 0.25}
ANSWERS = [said(letter) for letter in "BBCA"]


def test_arrow_rl_where_the_answer_turns():
    """Gold B, o~ = C: fidelity 1,1,0,0, 1 - sim 1,1,0,1; a wrong answer other than C earns 0.25."""
    totals_N, by_name = judged(ARROW, ANSWERS, contrast=[said("C")])
    assert by_name["reverse"].tolist() == [1, 1, 0, 1]
    np.testing.assert_allclose(totals_N, [1.25, 1.25, 0, 0.25])
    np.testing.assert_allclose(
        advantages(totals_N), [0.855398, 0.855398, -1.045486, -0.665309], atol=1e-6
    )


def test_arrow_rl_where_it_does_not():
    """o~ = B is the gold: the term is off for the whole question."""
    totals_N, _ = judged(ARROW, ANSWERS, contrast=[said("B")])
    np.testing.assert_allclose(totals_N, [1, 1, 0, 0])
    np.testing.assert_allclose(advantages(totals_N), np.array([1, 1, -1, -1]) * 0.865875, atol=1e-6)


@pytest.mark.parametrize(
    ("contrast", "earned"),
    [
        (["C", "C", "A", "A"], [1, 1, 0.5, 0.5]),  # means of similarities
        (["C", "B"], [0.5, 0.5, 0.5, 1]),  # sim(o~, gold) = 1/2, not above 0.75
        (["B", "B", "B", "C"], [0.25, 0.25, 0.75, 1]),  # 3/4 is not above either
        (["B", "B", "B", "B", "C"], [0, 0, 0, 0]),  # 4/5 is
        (["C", "hm"], [1, 1, 0, 1]),  # what cannot be read is left out
        (["hm", ""], [0, 0, 0, 0]),  # nothing can be read: off
    ],
)
def test_several_reversed_answers(contrast, earned):
    assert values("reverse", ANSWERS, contrast=[said(text) for text in contrast]) == earned


def test_answers_without_tags():
    """ArrowRL asks for none."""
    assert values("reverse", list("BBCA"), contrast=["C"]) == [1, 1, 0, 1]
    # A thought that was cut short before its answer is none, whatever it says.
    assert values("reverse", list("BBCA"), contrast=["<think>The answer is C"]) == [0, 0, 0, 0]
    assert values("accuracy_untagged", [*"BBCA", said("B"), ""]) == [1, 1, 0, 0, 1, 0]
    assert values("accuracy", list("BBCA")) == [0, 0, 0, 0]


def test_texts_are_compared_by_their_grade():
    record = Record("7", "a.mp4", "What?", "OCR", (), "<answer>a b</answer>")
    # 1 - word errors: of "c d" the texts "c d", "c x", "a b" are 0, 1 and 2 words of 2 off.
    completions = [said("c d"), said("c x"), said("a b")]
    assert values("reverse", completions, contrast=[said("c d")], record=record) == [0, 0.5, 1]


# --- DAPO, majority ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_tokens", "penalty"), [(0, 0), (79, 0), (80, 0), (90, -0.5), (100, -1), (101, -1)]
)
def test_the_overlong_penalty(num_tokens, penalty):
    """L = 100, c = 20: nothing up to 80, a twentieth for each token from there, -1 from 100 on."""
    assert overlong_penalty(num_tokens, 100) == pytest.approx(penalty)


def test_dapo():
    """Accuracy x 2 plus the penalties 0, -0.5, 0, -1."""
    totals_N, by_name = judged(
        {"accuracy": 2.0, "overlong": 1.0}, right(1, 1, 0, 0), lengths=[80, 90, 80, 100], limit=100
    )
    np.testing.assert_allclose(by_name["overlong"], [0, -0.5, 0, -1])
    np.testing.assert_allclose(
        advantages(totals_N), [0.998553, 0.635443, -0.453888, -1.180108], atol=1e-6
    )


@pytest.mark.parametrize(
    ("problem_type", "answers", "earned"),
    [
        ("multiple choice", ["A", "B", "(B)", "hm", ""], [0, 1, 1, 0, 0]),
        ("multiple choice", ["C", "A", "A", "C"], [1, 0, 0, 1]),  # a tie: C was first
        ("multiple choice", ["", "hm"], [0, 0]),  # nobody's answer has no majority
        ("numerical", ["1,000", "1000.004", "999", "ten"], [1, 1, 0, 0]),
        ("regression", ["2.5 m", "2.50", "2.504"], [1, 1, 0]),
        ("OCR", ["EXIT", "Exit ", "in"], [1, 1, 0]),
        ("free-form", ["a red  ball", "A red ball", "a ball"], [1, 1, 0]),
        ("grounding", ["5 to 9", "10 to 20", "from 10.0 to 20", "soon"], [0, 1, 1, 0]),
        ("grounded multiple choice", ["A", "The answer is B", "B"], [0, 1, 1]),
    ],
)
def test_the_majority(problem_type, answers, earned):
    record = Record("7", "a.mp4", "?", problem_type, OPTIONS, "", "", ((0.0, 1.0),))
    assert values("majority", [said(answer) for answer in answers], record=record) == earned


def test_the_majority_reads_no_untagged_text():
    assert values("majority", ["B", "B", said("A")]) == [0, 0, 1]


# --- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_no_rows_no_rewards(name):
    columns = reward_columns(RECORD, [], grading="video_r1", max_new_tokens=8)
    assert list(REWARDS[name](prompts=[], completions=[], **columns)) == []


@pytest.mark.parametrize(
    ("name", "contrast"),
    [("temporal", "shuffle"), ("temporal_strict", "shuffle"), ("reverse", "reverse")],
)
def test_without_contrast_completions_they_say_what_to_set(name, contrast):
    with pytest.raises(ValueError, match=f"'{name}' needs .* set contrast={contrast}, or take"):
        REWARDS[name](
            prompts=["p"],
            completions=["x"],
            **reward_columns(RECORD, [[1]], grading="video_r1", max_new_tokens=8),
        )
    with pytest.raises(RewardError, match=f"reward '{name}' raised ValueError.*for question '7'"):
        values(name, ANSWERS)
    config = TrainConfig(rewards={name: 1.0})
    with pytest.raises(
        ConfigError, match=f"set contrast={contrast}.*tried before the run"
    ) as error:
        try_rewards(load_rewards([name]), config, RECORD)
    assert "\n" not in str(error.value)


def test_an_unknown_problem_type_is_named():
    record = Record("7", "a.mp4", "?", "essay", (), "B")  # type: ignore[arg-type]
    for name in ("temporal", "length", "reverse"):
        with pytest.raises(RewardError, match="problem_type 'essay'"):
            values(name, ANSWERS, contrast=ANSWERS, record=record)


def test_the_trial_has_contrast_completions_where_the_run_has():
    seen = {}

    def looks(prompts, completions, **columns):
        seen.update(columns)
        return [None] * len(completions)

    functions = {**load_rewards(GROUPED), "own:looks": looks}
    config = SimpleNamespace(
        rewards=dict.fromkeys(functions, 1.0),
        num_variants=2,
        num_generations=4,
        max_new_tokens=64,
        prompt_template="video_r1",
        grading="video_r1",
        contrast="shuffle",
        contrast_generations=4,
    )
    try_rewards(functions, config, RECORD)
    assert len(seen["contrast_completions"]) == 8 == len(seen["duration_seconds"])
    assert all(len(texts) == 4 for texts in seen["contrast_completions"])
    assert all(isinstance(text, str) for text in seen["contrast_completions"][0])
    assert seen["max_new_tokens"] == [64] * 8 and seen["duration_seconds"][0] > 0
    config.contrast = "none"
    try_rewards({"own:looks": looks}, config, RECORD)
    assert seen["contrast_completions"] == [[]] * 8


letters = st.sampled_from(["A", "B", "C", "hm", ""])
rows = st.lists(st.tuples(letters, st.integers(1, 900)), min_size=1, max_size=8)


@given(rows, st.lists(letters, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_rewards_move_with_their_rows(group, contrast, order):
    """Another order of the rows, and of the contrast's, changes nobody's reward."""
    contrast = [said(letter) for letter in contrast]
    shuffled = order.sample(range(len(group)), len(group))
    for name in GROUPED:
        if name == "majority" and not has_one_majority([letter for letter, _ in group]):
            continue
        kept = values(name, [said(a) for a, _ in group], lengths=[n for _, n in group],
                      contrast=contrast)  # fmt: skip
        moved = values(
            name,
            [said(group[place][0]) for place in shuffled],
            lengths=[group[place][1] for place in shuffled],
            contrast=order.sample(contrast, len(contrast)),
        )
        assert moved == [kept[place] for place in shuffled], name
        low, high = (-1, 0) if name == "overlong" else (0, 1)
        assert all(low <= value <= high for value in kept)


def has_one_majority(answers):
    counts = sorted(answers.count(letter) for letter in "ABC")
    return counts[-1] > counts[-2]


@given(rows)
def test_the_majority_is_one_answer(group):
    answers = [letter for letter, _ in group]
    earned = values("majority", [said(letter) for letter in answers])
    chosen = {letter for letter, value in zip(answers, earned, strict=True) if value}
    if not set(answers) & set("ABC"):
        assert not chosen
    else:
        [letter] = chosen
        assert sum(earned) == max(answers.count(other) for other in "ABC")
        assert sum(earned) == answers.count(letter)


@given(st.integers(1, 5000), st.integers(0, 6000), st.integers(0, 6000))
def test_the_penalty_falls_with_the_length(limit, fewer, more):
    fewer, more = sorted((fewer, more))
    assert -1 <= overlong_penalty(more, limit) <= overlong_penalty(fewer, limit) <= 0
    assert overlong_penalty(limit, limit) == pytest.approx(-1)
    assert overlong_penalty(int(0.8 * limit), limit) == 0


def test_all_variants_are_one_pool():
    """M x G rows, variant-major: p is over all of them, wherever the right ones lie."""
    of_two_variants = right(1, 1, 0, 0) + right(0, 0, 0, 0)
    # p = 2/8 = 0.25; with p~ = 1/4 it is enough, with 2/4 (0.4) not.
    assert values("temporal", of_two_variants, contrast=right(1, 0, 0, 0))[:2] == [1, 1]
    assert values("temporal", of_two_variants, contrast=right(1, 1, 0, 0))[:2] == [0, 0]
    mixed = random.Random(0).sample(of_two_variants, 8)
    assert sum(values("temporal", mixed, contrast=right(1, 0, 0, 0))) == 2
