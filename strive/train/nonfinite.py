"""The batch of a step whose loss or gradient was not finite, on disk, to be looked at.

    RUN/nonfinite/step-000012/rank-0.json          questions, prompts, completions, rewards
                              rank-0.safetensors   tokens, lengths, advantages, log-probs

A group whose reward function failed is kept likewise, before there are rewards:

    RUN/failed_reward/step-000012/rank-0.json     question, prompt, completions, the trace

Every process writes its own questions, or of a question that it shares its own variants
(`variants`). Tensors are named `GROUP/NAME`, where GROUP is the place of the question in the JSON
file. Axes: M variants, G completions, L tokens (padded; `lengths_MG` says how many count).
"""

import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from strive.errors import NonFiniteError, RewardError
from strive.train.metrics import GroupOutcome
from strive.train.rollout import PreparedQuestion, VariantRollout


@dataclass(frozen=True)
class BatchGroup:
    """One process's variants of one question of a step."""

    rollouts: Sequence[VariantRollout]
    outcome: GroupOutcome
    """Of the whole group."""
    logprobs_MGL: Mapping[str, Tensor]
    """By name (`policy`, `old`, `reference`), those that were computed; of these variants."""

    @property
    def variants(self) -> list[int]:
        """Numbers of the variants."""
        return [rollout.variant for rollout in self.rollouts]


def with_batch(
    error: NonFiniteError, folder: Path, groups: Sequence[BatchGroup], *, step: int, rank: int
) -> NonFiniteError:
    """Write a process's share of the batch; return the error with the folder named.

    A disk that takes no more must not hide the error itself, so it says that instead.
    """
    try:
        write_batch(folder, groups, step=step, rank=rank, reason=str(error))
    except OSError as failure:
        return NonFiniteError(f"{error}; the batch could not be written to {folder} ({failure})")
    return NonFiniteError(f"{error}; the batch is in {folder}")


def with_completions(
    error: RewardError,
    folder: Path,
    prepared: PreparedQuestion,
    texts_MG: Sequence[Sequence[str]],
    *,
    step: int,
    rank: int,
) -> RewardError:
    """Write the group that a reward function failed at; return the error with the file named."""
    record = prepared.question.record
    described = {
        "step": step,
        "rank": rank,
        "reason": str(error),
        "question_id": record.question_id,
        "video_id": record.video_id,
        "solution": record.solution,
        "frame_index": prepared.question.frame_index_MK.tolist(),
        "prompt": prepared.text,
        "completions": texts_MG,
        "trace": traceback.format_exception(error.__cause__ or error),
    }
    file = folder / f"rank-{rank}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(file, described)
    except OSError as failure:
        return RewardError(f"{error}; its completions could not be written to {file} ({failure})")
    return RewardError(f"{error}; its completions and the trace are in {file}")


def write_batch(
    folder: Path, groups: Sequence[BatchGroup], *, step: int, rank: int, reason: str
) -> None:
    """Write one process's groups as JSON and safetensors.

    Raises:
        OSError: the disk takes no more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        # Copies: safetensors takes no views of one storage.
        f"{number}/{name}": tensor.detach().cpu().clone().contiguous()
        for number, group in enumerate(groups)
        for name, tensor in _tensors(group).items()
    }
    save_file(tensors, folder / f"rank-{rank}.safetensors")
    described = {
        "step": step,
        "rank": rank,
        "reason": reason,
        "groups": [_describe(number, group) for number, group in enumerate(groups)],
    }
    _write_json(folder / f"rank-{rank}.json", described)


def _write_json(file: Path, described: Mapping[str, Any]) -> None:
    # A text may hold half a surrogate pair, which no encoding has.
    text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8", errors="backslashreplace")


def _tensors(group: BatchGroup) -> dict[str, Tensor]:
    outcome, own = group.outcome, group.variants
    return {
        "tokens_MGL": torch.stack([rollout.tokens_GL for rollout in group.rollouts]),
        "lengths_MG": torch.from_numpy(outcome.lengths_MG[own]),
        "rewards_MG": torch.from_numpy(outcome.rewards_MG[own]),
        "advantages_MG": torch.from_numpy(outcome.advantages_MG[own]),
        "frame_index_MK": torch.from_numpy(outcome.frame_index_MK[own]),
        **{f"{name}_logprobs_MGL": values for name, values in group.logprobs_MGL.items()},
    }


def _describe(number: int, group: BatchGroup) -> dict[str, Any]:
    outcome, own = group.outcome, group.variants
    record = group.rollouts[0].prepared.question.record
    return {
        "group": number,
        "question_id": record.question_id,
        "video_id": record.video_id,
        "solution": record.solution,
        "variants": own,
        "frame_index": outcome.frame_index_MK[own].tolist(),
        "prompts": [rollout.prompt.text for rollout in group.rollouts],
        "completions": [rollout.texts for rollout in group.rollouts],
        "lengths": outcome.lengths_MG[own].tolist(),
        "rewards": _plain(outcome.rewards_MG[own].tolist()),
        "advantages": _plain(outcome.advantages_MG[own].tolist()),
        "finite_logprobs": {
            name: bool(torch.isfinite(values).all()) for name, values in group.logprobs_MGL.items()
        },
    }


def _plain(grid: list[list[float]]) -> list[list[float | str]]:
    """Numbers as JSON knows them; what is not finite as its name."""
    return [[v if abs(v) < float("inf") else str(v) for v in row] for row in grid]
