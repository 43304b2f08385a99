"""Rows of tokens for the language model: prompts side by side, or a prompt with its completions.

A row is a sequence with a segment number per position: 0 for the prompt, g + 1 for completion g,
-1 for padding. A position sees the prompt and its own segment, up to itself: that one rule holds
for a padded prompt, a plain row and a packed row (`language.py` follows it).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strive.models.inputs import PromptInputs
from strive.models.loading import Policy

PROMPT, PADDING = 0, -1


@dataclass(frozen=True)
class Rows:
    """B rows of T tokens, on the model's device."""

    ids_BT: Tensor
    position_ids_3BT: Tensor
    segments_BT: Tensor
    video_mask_BT: Tensor
    runs_B: tuple[tuple[tuple[int, int], ...], ...]
    """Of each row, (segment, length) of its runs of equal segments, from left to right."""

    @property
    def is_causal(self) -> bool:
        """True when every token sees all before it: at most one completion, no padding before it.

        What padding behind it sees does not matter.
        """
        return all(
            runs[0][0] == PROMPT and all(segment == PADDING for segment, _ in runs[2:])
            for runs in self.runs_B
        )


def prompt_rows(policy: Policy, prompts: Sequence[PromptInputs]) -> Rows:
    """Prompts padded on the left, so that all of them end in the last column."""
    rows = [
        (p.input_ids_P, p.position_ids_3P, np.full(len(p.input_ids_P), PROMPT), p.video_mask_P)
        for p in prompts
    ]
    return _padded(policy, rows, on_left=True)


def packed_rows(
    policy: Policy,
    prompts: Sequence[PromptInputs],
    tokens_BGL: NDArray[np.int64],
    lengths_BG: NDArray[np.int64],
) -> tuple[Rows, NDArray[np.int64]]:
    """Rows `[prompt | completion 1 | ... | completion G]`, padded on the right.

    Every completion's positions continue from its prompt's last position. A completion's last
    token is left out: nothing follows that it would predict. Also returns source_BGL: the column
    whose output predicts each token.
    """
    steps_L = np.arange(tokens_BGL.shape[2])
    source_BGL = np.zeros(tokens_BGL.shape, dtype=np.int64)
    rows = []
    for b, prompt in enumerate(prompts):
        length = len(prompt.input_ids_P)
        fed_G = np.maximum(lengths_BG[b] - 1, 0)
        is_fed_GL = steps_L < fed_G[:, None]
        after_N = prompt.next_position + np.nonzero(is_fed_GL)[1]
        rows.append(
            (
                np.concatenate([prompt.input_ids_P, tokens_BGL[b][is_fed_GL]]),
                np.concatenate([prompt.position_ids_3P, np.tile(after_N, (3, 1))], axis=1),
                np.repeat(np.arange(PROMPT, len(fed_G) + 1), [length, *fed_G]),
                np.pad(prompt.video_mask_P, (0, len(after_N))),
            )
        )
        first_G = length + fed_G.cumsum() - fed_G
        source_BGL[b] = first_G[:, None] - 1 + steps_L
        source_BGL[b, :, 0] = length - 1
    return _padded(policy, rows, on_left=False), source_BGL


def _padded(policy: Policy, rows: Sequence[tuple[NDArray[Any], ...]], *, on_left: bool) -> Rows:
    """Rows of ids [T], positions [3, T], segments [T] and video mask [T] side by side."""
    shape = (len(rows), max(len(ids_T) for ids_T, *_ in rows))
    ids_BT = np.full(shape, policy.pad_id, dtype=np.int64)
    position_ids_3BT = np.zeros((3, *shape), dtype=np.int64)
    segments_BT = np.full(shape, PADDING, dtype=np.int64)
    video_mask_BT = np.zeros(shape, dtype=bool)
    for b, (ids_T, positions_3T, segments_T, video_mask_T) in enumerate(rows):
        columns = slice(shape[1] - len(ids_T), None) if on_left else slice(len(ids_T))
        ids_BT[b, columns] = ids_T
        position_ids_3BT[:, b, columns] = positions_3T
        segments_BT[b, columns] = segments_T
        video_mask_BT[b, columns] = video_mask_T
    runs_B = []
    for segments_T in segments_BT:
        starts = np.flatnonzero(np.diff(segments_T, prepend=PADDING - 1))
        lengths = np.diff(starts, append=len(segments_T))
        runs_B.append(tuple(zip(segments_T[starts].tolist(), lengths.tolist(), strict=True)))
    return Rows(
        ids_BT=torch.from_numpy(ids_BT).to(policy.device),
        position_ids_3BT=torch.from_numpy(position_ids_3BT).to(policy.device),
        segments_BT=torch.from_numpy(segments_BT).to(policy.device),
        video_mask_BT=torch.from_numpy(video_mask_BT).to(policy.device),
        runs_B=tuple(runs_B),
    )
