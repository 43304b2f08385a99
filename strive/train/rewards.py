"""Reward functions: accuracy and format (Sec. 4.1), and a user's own by `module:function`.

Every reward function has TRL's signature, `f(prompts, completions, **columns) -> list[float|None]`:
lists of equal length, one row per completion, by keyword. Completions are text; the columns are the
record's fields by name (see `record_columns`) and `completion_ids`, a list of token ids each, so
that TRL's functions of the length work unchanged. None means "does not apply"; a completion to
which no function applies has reward NaN.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strive.answers import GradingRules, extract_answer, grade, has_think_answer_format
from strive.errors import ConfigError
from strive.named import check_name, load_function
from strive.records import Record

FloatArray = NDArray[np.floating]
RewardFunction = Callable[..., Sequence[float | None]]


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
    rows = zip(problem_type, completions, solution, grading, strict=True)
    return [
        grade(kind, extract_answer(completion), gold, rules=rules)
        for kind, completion, gold, rules in rows
    ]


def format_reward(
    prompts: Sequence[str], completions: Sequence[str], **columns: Any
) -> list[float | None]:
    """1 for a completion that is `<think>...</think><answer>...</answer>` as a whole, else 0."""
    return [float(has_think_answer_format(completion)) for completion in completions]


REWARDS: dict[str, RewardFunction] = {"accuracy": accuracy_reward, "format": format_reward}


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
        if inspect.iscoroutinefunction(function):
            raise ConfigError(
                f"reward '{name}' is {type(function).__name__}; a plain function "
                "f(prompts, completions, **columns) -> list[float | None] is expected"
            )
        functions[name] = function
    return functions


def record_columns(
    record: Record, num_completions: int, *, grading: GradingRules
) -> dict[str, list[Any]]:
    """Repeat a record's fields once per completion: the `columns` that reward functions get."""
    values = {
        "question_id": record.question_id,
        "video_id": record.video_id,
        "problem": record.problem,
        "problem_type": record.problem_type,
        "options": list(record.options),
        "solution": record.solution,
        "data_source": record.data_source,
        "grading": grading,
    }
    return {name: [value] * num_completions for name, value in values.items()}


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
        ConfigError: a function returned another number of rows, or something not a finite number.
    """
    by_name = {
        name: _checked(name, function(prompts=prompts, completions=completions, **columns), prompts)
        for name, function in functions.items()
    }
    values_RN = np.stack([weights[name] * values_N for name, values_N in by_name.items()])
    known_RN = np.isfinite(values_RN)
    totals_N = np.where(known_RN, values_RN, 0.0).sum(axis=0)
    return np.where(known_RN.any(axis=0), totals_N, np.nan), by_name


def _checked(name: str, values: Any, prompts: Sequence[str]) -> FloatArray:
    if not isinstance(values, (list, tuple, np.ndarray)) or len(values) != len(prompts):
        found = f"{len(values)} values" if hasattr(values, "__len__") else type(values).__name__
        raise ConfigError(f"reward '{name}' returned {found} for {len(prompts)} completions")
    numbers = []
    for value in values:
        if value is not None and not math.isfinite(float(value)):
            raise ConfigError(f"reward '{name}' returned {value}; a finite number or None is due")
        numbers.append(math.nan if value is None else float(value))
    return np.array(numbers, dtype=np.float64)
