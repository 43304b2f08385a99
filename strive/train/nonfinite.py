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
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from strive.errors import NonFiniteError, RewardError
from strive.train.metrics import GroupOutcome
from strive.train.processes import Processes
from strive.train.rollout import MicroBatch, PreparedQuestion


@contextmanager
def keeping_batch(
    folder: Path | None,
    micro_batches: Sequence[MicroBatch],
    outcomes: Sequence[GroupOutcome],
    processes: Processes,
    *,
    step: int,
) -> Iterator[None]:
    """Where the block finds the batch not finite, write this process's share of it.

    Raises:
        NonFiniteError: the block's own, with the folder named. A disk that takes no more must not
            hide it, so it says that instead.
    """
    try:
        yield
    except NonFiniteError as error:
        if folder is None:
            raise
        try:
            write_batch(
                folder, micro_batches, outcomes, step=step, rank=processes.rank, reason=str(error)
            )
            place = f"the batch is in {folder}"
        except OSError as failure:
            place = f"the batch could not be written to {folder} ({failure})"
        raise processes.told_once(NonFiniteError(f"{error}; {place}")) from error


@contextmanager
def keeping_completions(
    folder: Path | None,
    prepared: PreparedQuestion,
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
            _write_json(file, described)
            place = f"its completions and the trace are in {file}"
        except OSError as failure:
            place = f"its completions could not be written to {file} ({failure})"
        raise RewardError(f"{error}; {place}") from error


def write_batch(
    folder: Path,
    micro_batches: Sequence[MicroBatch],
    outcomes: Sequence[GroupOutcome],
    *,
    step: int,
    rank: int,
    reason: str,
) -> None:
    """Write one process's groups as JSON and safetensors.

    Raises:
        OSError: the disk takes no more.
    """
    outcome_of = {outcome.question_id: outcome for outcome in outcomes}
    # Each variant with the log-probs [G, L] that were computed of it.
    variants = [
        (rollout, {name: rows[place] for name, rows in _logprobs(batch).items()})
        for batch in micro_batches
        for place, rollout in enumerate(batch.rollouts)
    ]
    groups: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for question_id, members in groupby(
        variants, key=lambda pair: pair[0].prepared.question.record.question_id
    ):
        rollouts, logprobs = zip(*members, strict=True)
        own = [rollout.variant for rollout in rollouts]
        outcome, record = outcome_of[question_id], rollouts[0].prepared.question.record
        logprobs_MGL = {
            name: torch.stack([of_one[name] for of_one in logprobs]) for name in logprobs[0]
        }
        of_group = {
            "tokens_MGL": torch.stack([rollout.tokens_GL for rollout in rollouts]),
            "lengths_MG": torch.from_numpy(outcome.lengths_MG[own]),
            "rewards_MG": torch.from_numpy(outcome.rewards_MG[own]),
            "advantages_MG": torch.from_numpy(outcome.advantages_MG[own]),
            "frame_index_MK": torch.from_numpy(outcome.frame_index_MK[own]),
            **{f"{name}_logprobs_MGL": values for name, values in logprobs_MGL.items()},
        }
        for name, tensor in of_group.items():
            # A copy: safetensors takes no views of one storage.
            tensors[f"{len(groups)}/{name}"] = tensor.detach().cpu().clone().contiguous()
        groups.append(
            {
                "group": len(groups),
                "question_id": question_id,
                "video_id": record.video_id,
                "solution": record.solution,
                "variants": own,
                "frame_index": outcome.frame_index_MK[own].tolist(),
                "prompts": [rollout.prompt.text for rollout in rollouts],
                "completions": [rollout.texts for rollout in rollouts],
                "lengths": outcome.lengths_MG[own].tolist(),
                "rewards": _plain(outcome.rewards_MG[own].tolist()),
                "advantages": _plain(outcome.advantages_MG[own].tolist()),
                "finite_logprobs": {
                    name: bool(torch.isfinite(values).all())
                    for name, values in logprobs_MGL.items()
                },
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f"rank-{rank}.safetensors")
    described = {"step": step, "rank": rank, "reason": reason, "groups": groups}
    _write_json(folder / f"rank-{rank}.json", described)


def _logprobs(batch: MicroBatch) -> dict[str, Tensor]:
    """The log-probs [B, G, L] of a micro-batch by name, as far as they were computed."""
    computed = {
        "policy": batch.policy_logprobs_NL,
        "old": batch.old_logprobs_NL,
        "reference": batch.reference_logprobs_NL,
    }
    return {
        name: values_NL.unflatten(0, (len(batch.rollouts), -1))
        for name, values_NL in computed.items()
        if values_NL is not None
    }


def _write_json(file: Path, described: Mapping[str, Any]) -> None:
    # A text may hold half a surrogate pair, which no encoding has.
    text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", errors="backslashreplace")


def _plain(grid: list[list[float]]) -> list[list[float | str]]:
    """Numbers as JSON knows them; what is not finite as its name."""
    return [[v if abs(v) < float("inf") else str(v) for v in row] for row in grid]
