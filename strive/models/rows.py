"""Rows of tokens for the language model: prompts side by side, or a prompt with its completions.

A row is a sequence with a segment number per position: 0 for the prompt, g + 1 for completion g,
-1 for padding. A position sees the prompt and its own segment, up to itself: that one rule holds
for a padded prompt, a plain row and a packed row (`attention.py` follows it).
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
    width = max(len(prompt.input_ids_P) for prompt in prompts)
    blank = _BlankRows(len(prompts), width, policy.pad_id)
    for row, prompt in enumerate(prompts):
        blank.put_prompt(row, width - len(prompt.input_ids_P), prompt)
    return blank.finish(policy)


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
    batch, generations, longest = tokens_BGL.shape
    fed_BG = np.maximum(lengths_BG - 1, 0)
    prompt_B = np.array([len(prompt.input_ids_P) for prompt in prompts])
    blank = _BlankRows(batch, int((prompt_B + fed_BG.sum(axis=1)).max()), policy.pad_id)
    source_BGL = np.zeros((batch, generations, longest), dtype=np.int64)
    steps_L = np.arange(longest)
    for row, prompt in enumerate(prompts):
        blank.put_prompt(row, 0, prompt)
        cursor = prompt_B[row]
        for g in range(generations):
            count = fed_BG[row, g]
            columns = slice(cursor, cursor + count)
            blank.ids_BT[row, columns] = tokens_BGL[row, g, :count]
            blank.positions_3BT[:, row, columns] = prompt.next_position + steps_L[:count]
            blank.segments_BT[row, columns] = g + 1
            source_BGL[row, g] = cursor - 1 + steps_L
            cursor += count
        source_BGL[row, :, 0] = prompt_B[row] - 1
    return blank.finish(policy), source_BGL


class _BlankRows:
    """Padding everywhere, to be written into."""

    def __init__(self, batch: int, width: int, pad_id: int) -> None:
        self.ids_BT = np.full((batch, width), pad_id, dtype=np.int64)
        self.positions_3BT = np.zeros((3, batch, width), dtype=np.int64)
        self.segments_BT = np.full((batch, width), PADDING, dtype=np.int64)
        self.video_mask_BT = np.zeros((batch, width), dtype=bool)

    def put_prompt(self, row: int, start: int, prompt: PromptInputs) -> None:
        columns = slice(start, start + len(prompt.input_ids_P))
        self.ids_BT[row, columns] = prompt.input_ids_P
        self.positions_3BT[:, row, columns] = prompt.position_ids_3P
        self.segments_BT[row, columns] = PROMPT
        self.video_mask_BT[row, columns] = prompt.video_mask_P

    def finish(self, policy: Policy) -> Rows:
        device = policy.device
        return Rows(
            ids_BT=torch.from_numpy(self.ids_BT).to(device),
            position_ids_3BT=torch.from_numpy(self.positions_3BT).to(device),
            segments_BT=torch.from_numpy(self.segments_BT).to(device),
            video_mask_BT=torch.from_numpy(self.video_mask_BT).to(device),
            runs_B=tuple(_runs(segments_T) for segments_T in self.segments_BT),
        )


def _runs(segments_T: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    starts = np.flatnonzero(np.diff(segments_T, prepend=PADDING - 1))
    lengths = np.diff(starts, append=len(segments_T))
    return tuple(zip(segments_T[starts].tolist(), lengths.tolist(), strict=True))
