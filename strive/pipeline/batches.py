"""Embedding batches across videos: a short clip's frames share a batch with the next clip's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from strive.records import Record


@dataclass(slots=True)
class VideoSlot:
    """One video on its way through one scorer; `parts` are its embeddings so far."""

    scorer_key: str
    video_id: str
    checksum: str
    records: Sequence[Record]
    num_frames: int
    parts: list[np.ndarray] = field(default_factory=list)
    num_done: int = 0

    def take(self, embeddings_BD: np.ndarray) -> bool:
        """Take the embeddings of the next frames; return whether they were the last."""
        self.parts.append(embeddings_BD)
        self.num_done += len(embeddings_BD)
        return self.num_done >= self.num_frames


@dataclass(frozen=True, slots=True)
class Batch:
    """Prepared rows of one or several videos; `spans` says how many rows are whose, in order."""

    scorer_key: str
    prepared: Any
    spans: tuple[tuple[VideoSlot, int], ...]


class Batcher:
    """Cuts prepared frames into batches of one size, in the order in which they come.

    Rows stay where the scorer put them (numpy, torch on any device); whole batches of one video are
    slices, not copies.
    """

    def __init__(self, scorer_key: str, batch_size: int, *, pinned: bool = False) -> None:
        self.scorer_key, self.batch_size, self.pinned = scorer_key, batch_size, pinned
        self._pieces: list[tuple[VideoSlot, Any]] = []
        self._num_rows = 0

    def add(self, slot: VideoSlot, prepared: Any) -> Iterator[Batch]:
        """Take all prepared frames of a video; yield the batches that are full now."""
        start = 0
        while start < len(prepared):
            stop = min(len(prepared), start + self.batch_size - self._num_rows)
            self._pieces.append((slot, prepared[start:stop]))
            self._num_rows += stop - start
            start = stop
            if self._num_rows == self.batch_size:
                yield self._cut()

    def flush(self) -> Iterator[Batch]:
        """Yield what is left, if anything; the scorer pads it."""
        if self._pieces:
            yield self._cut()

    def _cut(self) -> Batch:
        pieces, self._pieces, self._num_rows = self._pieces, [], 0
        spans = tuple((slot, len(rows)) for slot, rows in pieces)
        return Batch(self.scorer_key, _join([rows for _, rows in pieces], self.pinned), spans)


def _join(pieces: list[Any], pinned: bool) -> Any:
    if isinstance(pieces[0], np.ndarray):
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    import torch

    joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    # Page-locked memory lets the copy to the GPU run beside its computing.
    return joined.pin_memory() if pinned and joined.device.type == "cpu" else joined
