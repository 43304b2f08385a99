"""What a step failed at, on disk, to be looked at: a batch that is not finite, a group of a reward.

    RUN/nonfinite/step-000012/rank-0.json          questions, prompts, completions, rewards
                              rank-0.safetensors   tokens, lengths, advantages, log-probs
    RUN/failed_reward/step-000012/rank-0.json      question, prompt, completions, the trace

Every process writes its own questions, or of a question that it shares its own variants
(`variants`). Tensors are named `GROUP/NAME`, where GROUP is the place of the question in the JSON
file. Axes: M variants, G completions, L tokens (padded; `lengths_MG` says how many count).
"""

import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from strive.errors import NonFiniteError, RewardError
from strive.records import Record
from strive.train.metrics import GroupOutcome
from strive.train.processes import Processes
from strive.train.rollout import MicroBatch, PreparedVariant


@contextmanager
def keeping_batch(
    folder: Path | None,
    micro_batches: Sequence[MicroBatch],
    outcomes: Sequence[GroupOutcome],
    processes: Processes,
    step: int,
) -> Iterator[None]:
    """Where the block finds the batch not finite, write this process's share of it.

    Raises:
        NonFiniteError: the block's own, with the folder named, or with what the disk said.
    """
    try:
        yield
    except NonFiniteError as error:
        if folder is None:
            raise
        groups, tensors = _batch(micro_batches, outcomes)
        rank, place = processes.rank, f"the batch is in {folder}"
        described = {"step": step, "rank": rank, "reason": str(error), "groups": groups}
        try:
            _write_json(folder / f"rank-{rank}.json", described)
            save_file(tensors, folder / f"rank-{rank}.safetensors")
        # A disk that takes no more must not hide the error.
        except OSError as failure:
            place = f"the batch could not be written to {folder} ({failure})"
        raise processes.told_once(NonFiniteError(f"{error}; {place}")) from error


@contextmanager
def keeping_completions(
    folder: Path | None,
    prepared: PreparedVariant,
    texts_MG: Sequence[Sequence[str]],
    *,
    step: int,
    rank: int,
) -> Iterator[None]:
    """Where a reward function fails in the block, write the group that it failed at.

    Raises:
        RewardError: the block's own, with the file named, or with what the disk said.
    """
    try:
        yield
    except RewardError as error:
        if folder is None:
            raise
        described = {
            "step": step,
            "rank": rank,
            "reason": str(error),
            **_named(prepared.question.record),
            "frame_index": prepared.question.frame_index_MK.tolist(),
            "prompt": prepared.text,
            "completions": texts_MG,
            "trace": traceback.format_exception(error.__cause__ or error),
        }
        file = folder / f"rank-{rank}.json"
        try:
            _write_json(file, described)
            place = f"its completions and the trace are in {file}"
        except OSError as failure:
            place = f"its completions could not be written to {file} ({failure})"
        raise RewardError(f"{error}; {place}") from error


def _batch(
    micro_batches: Sequence[MicroBatch], outcomes: Sequence[GroupOutcome]
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """One process's groups, as JSON and as tensors."""
    outcome_of = {outcome.question_id: outcome for outcome in outcomes}
    rollouts = [rollout for batch in micro_batches for rollout in batch.rollouts]
    rows_of: dict[str, list[int]] = {}
    for row, rollout in enumerate(rollouts):
        rows_of.setdefault(rollout.prepared.question.record.question_id, []).append(row)
    computed = {
        "policy": [batch.policy_logprobs_NL for batch in micro_batches],
        "old": [batch.old_logprobs_NL for batch in micro_batches],
        "reference": [batch.reference_logprobs_NL for batch in micro_batches],
    }
    logprobs_VGL = {
        name: torch.cat([v for v in values if v is not None]).unflatten(0, (len(rollouts), -1))
        for name, values in computed.items()
        if values[0] is not None
    }
    groups: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for number, (question_id, rows) in enumerate(rows_of.items()):
        some, outcome = [rollouts[row] for row in rows], outcome_of[question_id]
        own = [rollout.prepared.variant for rollout in some]
        arrays = {
            "lengths_MG": outcome.lengths_MG[own],
            "rewards_MG": outcome.rewards_MG[own],
            "advantages_MG": outcome.advantages_MG[own],
            "frame_index_MK": outcome.frame_index_MK[own],
        }
        of_group = {
            "tokens_MGL": torch.stack([rollout.tokens_GL for rollout in some]),
            **{name: torch.from_numpy(values) for name, values in arrays.items()},
            **{f"{name}_logprobs_MGL": values[rows] for name, values in logprobs_VGL.items()},
        }
        for name, tensor in of_group.items():
            # A copy: safetensors takes no views of one storage.
            tensors[f"{number}/{name}"] = tensor.detach().cpu().clone().contiguous()
        groups.append(
            {
                "group": number,
                **_named(some[0].prepared.question.record),
                "variants": own,
                "frame_index": arrays["frame_index_MK"].tolist(),
                "prompts": [rollout.prepared.prompt.text for rollout in some],
                "completions": [rollout.texts for rollout in some],
                "lengths": arrays["lengths_MG"].tolist(),
                "rewards": _plain(arrays["rewards_MG"].tolist()),
                "advantages": _plain(arrays["advantages_MG"].tolist()),
                "finite_logprobs": {
                    name: bool(torch.isfinite(values[rows]).all())
                    for name, values in logprobs_VGL.items()
                },
            }
        )
    return groups, tensors


def _named(record: Record) -> dict[str, str]:
    return {name: getattr(record, name) for name in ("question_id", "video_id", "solution")}


def _write_json(file: Path, described: Mapping[str, Any]) -> None:
    # A text may hold half a surrogate pair, which no encoding has.
    text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", errors="backslashreplace")


def _plain(grid: list[list[float]]) -> list[list[float | str]]:
    """Numbers as JSON knows them; what is not finite as its name."""
    return [[v if abs(v) < float("inf") else str(v) for v in row] for row in grid]
