"""Reward functions by name: accuracy and format (Sec. 4.1), other methods', and a user's own.

Every reward function has TRL's signature, `f(prompts, completions, **columns) -> list[float|None]`:
lists of equal length, one row per completion, by keyword. One call sees all M x G completions of a
question, variant by variant. Completions are text; the columns are the record's fields by name, the
run's (see `reward_columns`) and `completion_ids`, a list of token ids each, so that TRL's functions
of the length work unchanged. None means "does not apply"; a completion to which no function applies
has reward NaN. For users: `docs/own-rewards.md`.
"""

import copy
import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from strive.answers import (
    GradingRules,
    build_question,
    extract_answer,
    extract_answer_or_text,
    extract_graded,
    grade,
    has_think_answer_clues_format,
    has_think_answer_format,
)
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError, RewardError
from strive.named import check_name, load_function, raised
from strive.records import Record
from strive.train.advantages import FloatArray
from strive.train.group_rewards import (
    grade_rows,
    length_reward,
    majority_reward,
    overlong_reward,
    reverse_reward,
    temporal_reward,
    temporal_strict_reward,
)
from strive.train.interval_rewards import (
    clue_iou_reward,
    grounding_iou_reward,
    grounding_iou_timed_reward,
)
from strive.train.two_answer_rewards import (
    accuracy_first_reward,
    accuracy_second_reward,
    fallback_reward,
    format_twice_reward,
)

RewardFunction = Callable[..., Sequence[float | None]]
# Largest size of a reward: the squares that a group's std needs are still finite.
LARGEST = 1e150
PAGE = "docs/own-rewards.md"
_TRIED_SECONDS = 60.0
# What a function says that was written for lists of messages, and got texts.
_CHAT_ERRORS = ("string indices must be", "'str' object has no attribute", "string index out of")
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def accuracy_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    problem_type: Sequence[str],
    solution: Sequence[str],
    grading: Sequence[GradingRules],
    **columns: Any,
) -> list[float | None]:
    """Grade the text within the answer tags by the question's problem type."""
    return list(
        grade_rows(completions, problem_type=problem_type, solution=solution, grading=grading)
    )


def accuracy_untagged_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    problem_type: Sequence[str],
    solution: Sequence[str],
    grading: Sequence[GradingRules],
    **columns: Any,
) -> list[float | None]:
    """As `accuracy_reward`, but a text without answer tags is the answer as a whole.

    For prompts that ask for no tags (`direct`), as ArrowRL's do.
    """
    rows = zip(problem_type, completions, solution, grading, strict=True)
    return [
        grade(kind, extract_graded(kind, completion) or completion, gold, rules=rules)
        for kind, completion, gold, rules in rows
    ]


def format_reward(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    problem_type: Sequence[str] | None = None,
    **columns: Any,
) -> list[float | None]:
    """1 for a completion that is `<think>...</think><answer>...</answer>` as a whole, else 0.

    For `grounded multiple choice` a well-formed list of clues in `<glue>` tags follows.
    """
    kinds = problem_type or [""] * len(completions)
    return [
        float(
            has_think_answer_clues_format(completion)
            if kind == "grounded multiple choice"
            else has_think_answer_format(completion)
        )
        for kind, completion in zip(kinds, completions, strict=True)
    ]


def format_strict_reward(
    prompts: Sequence[str], completions: Sequence[str], **columns: Any
) -> list[float | None]:
    """As `format_reward`, and each of the four tags comes once, and the answer is not empty."""
    formats = format_reward(prompts, completions, **columns)
    return [
        float(
            has_format == 1
            and all(completion.count(tag) == 1 for tag in _TAGS)
            and extract_answer(completion) != ""
        )
        for has_format, completion in zip(formats, completions, strict=True)
    ]


REWARDS: dict[str, RewardFunction] = {
    "accuracy": accuracy_reward,
    "accuracy_untagged": accuracy_untagged_reward,
    "format": format_reward,
    "format_strict": format_strict_reward,
    # Of a group (T-GRPO, ArrowRL, DAPO): `group_rewards.py`.
    "temporal": temporal_reward,
    "temporal_strict": temporal_strict_reward,
    "length": length_reward,
    "reverse": reverse_reward,
    "overlong": overlong_reward,
    "majority": majority_reward,
    # Of answers in time (Time-R1, VideoChat-R1): `interval_rewards.py`.
    "grounding_iou": grounding_iou_reward,
    "grounding_iou_timed": grounding_iou_timed_reward,
    "clue_iou": clue_iou_reward,
    # Of two answers (VideoAuto-R1): `two_answer_rewards.py`.
    "accuracy_first": accuracy_first_reward,
    "accuracy_second": accuracy_second_reward,
    "format_twice": format_twice_reward,
    "fallback": fallback_reward,
}


def load_rewards(names: Sequence[str]) -> dict[str, RewardFunction]:
    """Look up the named reward functions.

    Raises:
        UnknownNameError, ConfigError: no such name, or `module:function` cannot be used.
    """
    functions = {}
    for name in names:
        if name in REWARDS:
            functions[name] = REWARDS[name]
            continue
        check_name("reward", name, REWARDS)
        function = load_function(f"reward '{name}'", name)
        if inspect.isclass(function) or inspect.iscoroutinefunction(function):
            kind = "a class" if inspect.isclass(function) else "an async function"
            raise ConfigError(
                f"reward '{name}' is {kind}; a plain function (or an object that is called) "
                f"f(prompts, completions, **columns) -> list[float | None] is wanted ({PAGE})"
            )
        functions[name] = function
    return functions


def reward_columns(
    record: Record,
    completion_ids: list[list[int]],
    *,
    grading: GradingRules,
    max_new_tokens: int,
    contrast_completions: Sequence[str] = (),
    duration_seconds: float | None = None,
) -> dict[str, list[Any]]:
    """The `columns` that reward functions get: token ids, and for each the same of all the rest.

    `contrast_completions` are the question's completions about frames in another order (none where
    the run has no contrast), `duration_seconds` is the video's, None where it is unknown.
    """
    spans = record.evidence_spans_seconds
    values = {
        "question_id": record.question_id,
        "video_id": record.video_id,
        "problem": record.problem,
        "problem_type": record.problem_type,
        "options": list(record.options),
        "solution": record.solution,
        "data_source": record.data_source,
        "evidence_spans_seconds": None if spans is None else [list(span) for span in spans],
        "grading": grading,
        "contrast_completions": list(contrast_completions),
        "duration_seconds": duration_seconds,
        "max_new_tokens": max_new_tokens,
    }
    repeated = {name: [value] * len(completion_ids) for name, value in values.items()}
    return repeated | {"completion_ids": completion_ids}


def try_rewards(
    functions: Mapping[str, RewardFunction], config: TrainConfig, record: Record
) -> None:
    """Call every function once, as a step calls it, on M x G completions that any policy may write.

    The first is the record's own solution, the second is empty. Token ids are stand-ins, as are the
    duration and, where the run has a contrast, the contrast completions: texts of the same kind.

    Raises:
        ConfigError: one raises something or returns what is no list of numbers.
    """
    answer = extract_answer_or_text(record.solution)
    texts = (f"<think>...</think>\n<answer>{answer}</answer>", "", "I cannot tell.")
    num_completions = config.num_variants * config.num_generations
    completions = [texts[number % len(texts)] for number in range(num_completions)]
    completion_ids = [[*text.encode(), 0] for text in completions]
    has_contrast = getattr(config, "contrast", "none") != "none"
    num_contrast = getattr(config, "contrast_generations", len(texts)) if has_contrast else 0
    contrast = [texts[number % len(texts)] for number in range(num_contrast)]
    try:
        compute_rewards(
            functions,
            config.rewards,
            prompts=[build_question(record, config.prompt_template)] * num_completions,
            completions=completions,
            columns=reward_columns(
                record,
                completion_ids,
                grading=config.grading,
                max_new_tokens=config.max_new_tokens,
                contrast_completions=contrast,
                duration_seconds=_TRIED_SECONDS,
            ),
        )
    except RewardError as error:
        raise ConfigError(
            f"{error} (tried before the run, on texts made for it; check_rewards=false omits that)"
        ) from error


def compute_rewards(
    functions: Mapping[str, RewardFunction],
    weights: Mapping[str, float],
    *,
    prompts: Sequence[str],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Total reward of each completion (weighted sum of what applies) and each function's own.

    Rewards are NaN where a function gave None, totals where all of them did.

    Raises:
        RewardError: a function raised something, or returned another number of rows or something
            that is no number of a usable size; it names the reward and, where known, the question
            and the completion.
    """
    by_name = {}
    for name, function in functions.items():
        # Copies, since a function may write into what it is given, and the next one must not see.
        arguments = copy.deepcopy(
            {"prompts": list(prompts), "completions": list(completions), **columns}
        )
        try:
            values = function(**arguments)
        except (Exception, SystemExit) as error:  # sys.exit() would end the run as if it were done
            raise RewardError(_failure(name, error, arguments)) from error
        by_name[name] = _checked(name, values, len(prompts))
    values_RN = np.stack([weights[name] * values_N for name, values_N in by_name.items()])
    known_RN = ~np.isnan(values_RN)
    totals_N = np.where(known_RN, values_RN, 0.0).sum(axis=0)
    if (np.abs(totals_N) > LARGEST).any():
        raise RewardError(
            f"the weighted sum of rewards is {np.abs(totals_N).max():.3g}, above {LARGEST:g}; "
            "lower the weights (rewards)"
        )
    return np.where(known_RN.any(axis=0), totals_N, np.nan), by_name


def _failure(name: str, error: BaseException, arguments: Mapping[str, Any]) -> str:
    """Say what a function raised, and of which question and completion where that can be told."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][1:]
    if not frames and isinstance(error, TypeError):
        return (
            f"reward '{name}' cannot be called as rewards are ({error}): by keyword, with "
            f"{', '.join(arguments)}; take **columns for what it does not use ({PAGE})"
        )
    where = ""
    if questions := arguments.get("question_id"):
        where = f" for question '{questions[0]}'"
    completions = arguments["completions"]
    # A loop's variable holds the text that it was at: the very object, and no other of them.
    for frame in reversed(frames):
        ids = {id(value) for value in frame.f_locals.values()}
        at = [number for number, text in enumerate(completions) if id(text) in ids]
        if len({id(completions[number]) for number in at}) == 1:
            where += f", completion {at[0] + 1} of {len(completions)} ({completions[at[0]][:60]!r})"
            break
    is_chat = any(text in str(error) for text in _CHAT_ERRORS)
    hint = "; prompts and completions are texts here, no lists of messages" if is_chat else ""
    return f"reward '{name}' raised {raised(error)}{where}{hint} ({PAGE})"


def _checked(name: str, values: Any, num_completions: int) -> FloatArray:
    """The numbers that a function returned, float64 [N]; NaN for None."""
    if inspect.iscoroutine(values):
        values.close()
    if hasattr(values, "tolist"):  # an array, or a tensor of any device
        values = values.tolist()
    wanted = "a list with a number or None for each completion is wanted"
    if not isinstance(values, (list, tuple)):
        raise RewardError(f"reward '{name}' returned {_shown(values)}; {wanted} ({PAGE})")
    if len(values) != num_completions:
        raise RewardError(
            f"reward '{name}' returned {len(values)} values for {num_completions} completions; "
            f"{wanted} ({PAGE})"
        )
    numbers_N = np.full(num_completions, np.nan)
    for place, value in enumerate(values):
        if value is None:
            continue
        try:
            number = math.nan if isinstance(value, (str, bytes)) else float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            number = math.nan
        if not abs(number) <= LARGEST:
            raise RewardError(
                f"reward '{name}' returned {_shown(value)} for completion {place + 1} of "
                f"{num_completions}; a finite number or None is due, of a size up to {LARGEST:g} "
                f"({PAGE})"
            )
        numbers_N[place] = number
    return numbers_N


def _shown(value: Any) -> str:
    if value is None or isinstance(value, (int, float, str)):
        return repr(value)[:60]
    return f"{'an' if type(value).__name__[0] in 'aeiouAEIOU' else 'a'} {type(value).__name__}"
