"""A user's own scorer that takes frames of any size: mean colour and brightness, no model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from strive.scorers import ScorerRequest


class MeanColour:
    kind = "similarity"
    files = ()

    def identity(self) -> dict[str, Any]:
        return {"model": "mean-colour"}

    def embed_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        colour_F3 = frames_FHWC.mean(axis=(1, 2))
        return np.concatenate([colour_F3 + 1, frames_FHWC.std(axis=(1, 2)) + 1], axis=1)

    def embed_questions(self, questions: Sequence[str]) -> np.ndarray:
        return np.array([[len(text) % 7 + i for i in range(6)] for text in questions], np.float32)


def make(request: ScorerRequest) -> MeanColour:
    return MeanColour()
