"""Rows of tokens for the language model: prompts side by side, or a prompt with its completions.

A row is a sequence with a segment number per position: 0 for the prompt, g + 1 for completion g,
-1 for padding. A position sees the prompt and its own segment, up to itself; that one rule makes
the mask of a padded prompt, of a plain row and of a packed row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strive.models.family import MergedFeatures
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
    is_causal: bool
    """True when the mask is the ordinary causal one, so that none has to be made."""


def prompt_rows(policy: Policy, prompts: Sequence[PromptInputs]) -> Rows:
    """Prompts padded on the left, so that all of them end in the last column."""
    width = max(len(prompt.input_ids_P) for prompt in prompts)
    blank = _BlankRows(len(prompts), width, policy.pad_id)
    for row, prompt in enumerate(prompts):
        blank.put_prompt(row, width - len(prompt.input_ids_P), prompt)
    return blank.finish(policy, is_causal=blank.is_full())


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
    is_causal = generations == 1 and blank.is_full()
    return blank.finish(policy, is_causal=is_causal), source_BGL


def attention_mask(rows: Rows) -> Tensor | None:
    """Boolean mask [B, 1, T, T], true where a position (row) sees another (column).

    None when that is the ordinary causal mask. Padding sees padding, because a position that sees
    nothing gives NaN.
    """
    if rows.is_causal:
        return None
    seen_BT, seer_BT = rows.segments_BT[:, None, :], rows.segments_BT[:, :, None]
    width = rows.segments_BT.shape[1]
    causal_TT = torch.ones(width, width, dtype=torch.bool, device=seen_BT.device).tril()
    return (causal_TT & ((seen_BT == PROMPT) | (seen_BT == seer_BT)))[:, None]


def language_forward(
    policy: Policy,
    model: Any,
    rows: Rows,
    merged: MergedFeatures,
    *,
    mask: Tensor | None,
    cache: Any = None,
) -> Tensor:
    """Hidden states [B, T, H] of the language model over rows with video features filled in."""
    embeds_BTH = model.get_input_embeddings()(rows.ids_BT)
    video_H = merged.embeds_NH.to(embeds_BTH.dtype)
    embeds_BTH = embeds_BTH.masked_scatter(rows.video_mask_BT[..., None], video_H)
    output = model.model.language_model(
        inputs_embeds=embeds_BTH,
        position_ids=rows.position_ids_3BT,
        attention_mask=policy.family.mask_argument(mask),
        past_key_values=cache,
        use_cache=cache is not None,
        **policy.family.vision_arguments(rows.video_mask_BT, merged),
    )
    return output.last_hidden_state


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

    def is_full(self) -> bool:
        return bool((self.segments_BT != PADDING).all())

    def finish(self, policy: Policy, *, is_causal: bool) -> Rows:
        device = policy.device
        return Rows(
            ids_BT=torch.from_numpy(self.ids_BT).to(device),
            position_ids_3BT=torch.from_numpy(self.positions_3BT).to(device),
            segments_BT=torch.from_numpy(self.segments_BT).to(device),
            video_mask_BT=torch.from_numpy(self.video_mask_BT).to(device),
            is_causal=is_causal,
        )
