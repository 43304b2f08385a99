"""Rewards of a completion that depend on the others of its question (and on its own length).

TRL's signature: one call sees all M x G rows of one question, variant by variant. Where a source
has one group of G completions of one video, the pool of all M x G stands for it here (ours). Plain
Python; every function returns [] for no rows.

The columns `contrast_completions` hold texts about the frames in another order (`contrast`): the
same list in every row.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from strive.answers import answer_key, extract_answer, extract_graded, grade, is_parsed
from strive.choices import GradingRules

# T-GRPO (Video-R1, arXiv:2503.21776); its code has the share of 0.8, its paper's equation has 1.
TEMPORAL_SHARE = 0.8
ACCURATE_ABOVE = 0.1
LENGTH_TOKENS = (320, 512)
# ArrowRL (arXiv:2506.03340); gamma as a summary has it, unverified.
REVERSE_GATE = 0.75
# DAPO (arXiv:2503.14476): 4,096 of 20,480 tokens.
OVERLONG_SHARE = 0.2

# Means of accuracies differ in their last bits by the order of their rows.
_EQUAL_WITHIN = 1e-9


def grade_rows(
    completions: Sequence[str],
    *,
    problem_type: Sequence[str],
    solution: Sequence[str],
    grading: Sequence[GradingRules],
) -> list[float]:
    """Accuracy of each completion, in [0, 1]: what stands in its answer tags, by problem type."""
    rows = zip(problem_type, completions, solution, grading, strict=True)
    return [
        grade(kind, extract_graded(kind, text), gold, rules=rules)
        for kind, text, gold, rules in rows
    ]


# --- T-GRPO --------------------------------------------------------------------------------------


def temporal_reward(
    prompts: Sequence[str], completions: Sequence[str], **columns: Any
) -> list[float | None]:
    """T-GRPO's temporal reward, as its code has it: 1 for accurate rows if p >= 0.8 p~, else 0.

    p is the mean accuracy of the question's completions, p~ that of its contrast completions;
    accurate is above 0.1, and partial credit counts as its value.

    Raises:
        ValueError: there are no contrast completions.
    """
    return _temporal(completions, TEMPORAL_SHARE, "temporal", **columns)


def temporal_strict_reward(
    prompts: Sequence[str], completions: Sequence[str], **columns: Any
) -> list[float | None]:
    """T-GRPO's temporal reward, as its paper's equation has it: `temporal`, with p >= p~.

    Raises:
        ValueError: there are no contrast completions.
    """
    return _temporal(completions, 1.0, "temporal_strict", **columns)


def _temporal(
    completions: Sequence[str],
    share: float,
    name: str,
    *,
    problem_type: Sequence[str],
    solution: Sequence[str],
    grading: Sequence[GradingRules],
    contrast_completions: Sequence[Sequence[str]],
    **columns: Any,
) -> list[float | None]:
    if not completions:
        return []
    contrast = _contrast_texts(contrast_completions, name)
    accuracies = grade_rows(
        completions, problem_type=problem_type, solution=solution, grading=grading
    )
    contrast_accuracies = grade_rows(
        contrast,
        problem_type=[problem_type[0]] * len(contrast),
        solution=[solution[0]] * len(contrast),
        grading=[grading[0]] * len(contrast),
    )
    is_earned = _mean(accuracies) >= share * _mean(contrast_accuracies) - _EQUAL_WITHIN
    return [float(is_earned and accuracy > ACCURATE_ABOVE) for accuracy in accuracies]


def length_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    problem_type: Sequence[str],
    solution: Sequence[str],
    grading: Sequence[GradingRules],
    completion_ids: Sequence[Sequence[int]],
    **columns: Any,
) -> list[float | None]:
    """T-GRPO's length reward: 1 for accurate rows of 320 to 512 tokens, the end token included.

    Only where more than one row is accurate (above 0.1); else 0 for all.
    """
    accuracies = grade_rows(
        completions, problem_type=problem_type, solution=solution, grading=grading
    )
    accurate = [accuracy > ACCURATE_ABOVE for accuracy in accuracies]
    shortest, longest = LENGTH_TOKENS
    return [
        float(sum(accurate) > 1 and is_accurate and shortest <= len(ids) <= longest)
        for is_accurate, ids in zip(accurate, completion_ids, strict=True)
    ]


# --- ArrowRL -------------------------------------------------------------------------------------


def reverse_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    problem_type: Sequence[str],
    solution: Sequence[str],
    grading: Sequence[GradingRules],
    contrast_completions: Sequence[Sequence[str]],
    **columns: Any,
) -> list[float | None]:
    """ArrowRL's reverse reward: 1 - sim(o, o~), o~ the answer to the reversed video.

    Similarity is `answers.grade` of one answer with the other as the solution (the source has a
    judge for texts). 0 for the whole question where sim(o~, gold) > 0.75, that is, where the order
    of frames does not change the answer. Ours: of several o~ both similarities are means, those
    without a readable answer are left out, and without a readable one the reward is 0. A text that
    has no tags at all is an answer, since ArrowRL asks for none. A row that cannot be read is like
    no o~, and earns 1, as any answer but o~ does.

    Raises:
        ValueError: there are no contrast completions.
    """
    if not completions:
        return []
    contrast = _contrast_texts(contrast_completions, "reverse")
    kind, rules = problem_type[0], grading[0]
    turned = [_answer_in(text) for text in contrast]
    turned = [answer for answer in turned if is_parsed(kind, answer)]
    if not turned:
        return [0.0] * len(completions)
    fidelity = _mean([grade(kind, answer, solution[0], rules=rules) for answer in turned])
    if fidelity > REVERSE_GATE:
        return [0.0] * len(completions)
    return [
        1.0 - _mean([grade(kind, _answer_in(text), other, rules=rules) for other in turned])
        for text in completions
    ]


def _answer_in(text: str) -> str:
    """The answer in tags, or the whole of a text that has none; of one cut short nothing."""
    has_tags = "<think>" in text or "<answer>" in text
    return extract_answer(text) if has_tags else text.strip()


# --- DAPO, majority ------------------------------------------------------------------------------


def overlong_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    completion_ids: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    **columns: Any,
) -> list[float | None]:
    """DAPO's soft overlong penalty (Eq. 13): 0 up to L - c tokens, then linear to -1 at L and on.

    L is `max_new_tokens`, c a fifth of it.
    """
    return [
        overlong_penalty(len(ids), limit)
        for ids, limit in zip(completion_ids, max_new_tokens, strict=True)
    ]


def overlong_penalty(num_tokens: int, limit: int) -> float:
    """Return the penalty of one completion, in [-1, 0]; see `overlong_reward`."""
    margin = OVERLONG_SHARE * limit
    return -min(1.0, max(0.0, (num_tokens - (limit - margin)) / margin))


def majority_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    problem_type: Sequence[str],
    **columns: Any,
) -> list[float | None]:
    """1 for the answer that most completions of the question give, else 0; needs no solution.

    Answers in tags are equal as `answers.answer_key` has it. A tie goes to the answer that was
    written first; what cannot be read is no candidate and gets 0.
    """
    keys: list[Hashable | None] = [
        answer_key(kind, extract_graded(kind, text))
        for kind, text in zip(problem_type, completions, strict=True)
    ]
    # The first of equal counts is the first that was put in.
    counted = Counter(key for key in keys if key is not None).most_common(1)
    return [float(bool(counted) and key == counted[0][0]) for key in keys]


def _contrast_texts(contrast_completions: Sequence[Sequence[str]], name: str) -> Sequence[str]:
    """The contrast completions of a question: the same in every row."""
    if not contrast_completions or not contrast_completions[0]:
        raise ValueError(
            f"'{name}' needs completions about frames in another order, and the run has none; set "
            f"contrast={'reverse' if name == 'reverse' else 'shuffle'}, or take it out of rewards"
        )
    return contrast_completions[0]


def _mean(values: Sequence[float]) -> float:
    # The exact sum, so that the order of rows changes nothing.
    return math.fsum(values) / len(values)
