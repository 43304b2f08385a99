"""Supervised rows for the policies: one video and several question-and-answer tails behind it.

All tails of a row see the video and themselves, not each other, and each starts at the same
position: exactly what a single prompt with that question reads, at a fraction of the cost.

Axis legend: B rows, T tokens of a row, P prefix tokens, K frames, N video tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strive.answers import build_question
from strive.lab.questions import Question, to_record
from strive.lab.scene import NUM_SLOTS, Scene
from strive.models.positions import mean_seconds_per_slice, next_position

MERGED_TOKENS_PER_SLICE = 4
_ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True)
class Tail:
    """Tokens of one question and its completion; `learn` marks those to be predicted."""

    ids: np.ndarray
    learn: np.ndarray


@dataclass(frozen=True, slots=True)
class Row:
    """A video prefix with its positions, and tails."""

    prefix_ids: np.ndarray
    prefix_positions_3P: np.ndarray
    tails: tuple[Tail, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded rows, ready for the language model.

    Args:
        input_ids_BT: token ids.
        positions_3BT: position ids, three axes.
        video_mask_BT: where video tokens stand.
        allowed_BTT: which token (first T) may attend to which (second T).
        learn_BT: which tokens are predicted.
    """

    input_ids_BT: Tensor
    positions_3BT: Tensor
    video_mask_BT: Tensor
    allowed_BTT: Tensor
    learn_BT: Tensor


class RowMaker:
    """Builds rows for one family and tokenizer; keeps the tokens of texts it has seen."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.tokenizer = policy.tokenizer
        self._known: dict[str, np.ndarray] = {}

    def tokens(self, text: str) -> np.ndarray:
        """Return the token ids of a text, [length]."""
        if text not in self._known:
            if len(self._known) > 200_000:
                self._known.clear()
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            self._known[text] = np.asarray(ids, dtype=np.int64)
        return self._known[text]

    def tail(self, body: str, think: str, answer: str) -> Tail:
        """Return the tail of one question; the whole completion is learned."""
        question = self.tokens(body + _ASSISTANT)
        completion = self.tokens(
            f"<think>It is {think}</think><answer>{answer}</answer>{self.tokenizer.eos_token}"
        )
        learn = np.zeros(len(question) + len(completion), dtype=bool)
        learn[len(question) :] = True
        return Tail(np.concatenate([question, completion]), learn)

    def prefix(self, scene: Scene, slots_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids [P], position ids [3, P]) of the prompt up to the end of the video."""
        times_K = slot_times(scene, slots_K)
        video = self.tokenizer.convert_tokens_to_ids("<|video_pad|>")
        pads = np.full(MERGED_TOKENS_PER_SLICE, video)
        start, end = self.tokens("<|vision_start|>"), self.tokens("<|vision_end|>")
        parts = [self.tokens("<|im_start|>user\n")]
        num_slices = len(slots_K) // 2
        if self.policy.family.name == "qwen3_vl":
            for seconds in times_K.reshape(-1, 2).mean(axis=1):
                parts += [self.tokens(f"<{seconds:.1f} seconds>"), start, pads, end]
        else:
            parts += [start, np.tile(pads, num_slices), end]
        ids = np.concatenate(parts)
        positions_3P = self.policy.family.position_ids(
            self.policy.config,
            ids == video,
            (num_slices, 4, 4),
            mean_seconds_per_slice(times_K),
            self.policy.position_rule,
        )
        return ids, positions_3P

    def batch(self, rows: Sequence[Row]) -> Batch:
        """Pad rows to one length."""
        lengths = [len(r.prefix_ids) + sum(len(t.ids) for t in r.tails) for r in rows]
        shape = (len(rows), max(lengths))
        ids = np.full(shape, self.policy.pad_id, dtype=np.int64)
        segment = np.full(shape, -1, dtype=np.int64)
        learn = np.zeros(shape, dtype=bool)
        positions = np.zeros((3, *shape), dtype=np.int64)
        for b, row in enumerate(rows):
            end = len(row.prefix_ids)
            ids[b, :end] = row.prefix_ids
            segment[b, :end] = 0
            positions[:, b, :end] = row.prefix_positions_3P
            first = next_position(row.prefix_positions_3P) if end else 0
            for number, tail in enumerate(row.tails, start=1):
                place = slice(end, end + len(tail.ids))
                ids[b, place] = tail.ids
                learn[b, place] = tail.learn
                segment[b, place] = number
                positions[:, b, place] = first + np.arange(len(tail.ids))
                end += len(tail.ids)
        segment_BT = torch.from_numpy(segment)
        query, key = segment_BT[:, :, None], segment_BT[:, None, :]
        causal = torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
        allowed = causal & ((key == query) | ((key == 0) & (query > 0)))
        video = self.tokenizer.convert_tokens_to_ids("<|video_pad|>")
        input_ids = torch.from_numpy(ids)
        return Batch(
            input_ids,
            torch.from_numpy(positions),
            input_ids == video,
            allowed,
            torch.from_numpy(learn),
        )


def slot_times(scene: Scene, slots_K: np.ndarray) -> np.ndarray:
    """Return the presentation times [K] of pool frames, in seconds; a scene's rate is constant."""
    middle = (np.asarray(slots_K) + 0.5) / NUM_SLOTS
    return np.floor(middle * scene.num_frames) / scene.fps


def question_body(scene: Scene, question: Question) -> str:
    """Return the text of the user turn that follows the video."""
    record = to_record(scene, question, problem_id=0, video_id="")
    return build_question(record, "short")
