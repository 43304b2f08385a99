"""A user's own scorers, as `pipeline.toy_scorer:NAME`: plain numpy, no model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from strive.scorers import ScorerRequest


class Toy:
    kind = "similarity"
    files = ()

    def identity(self) -> dict[str, Any]:
        return {"model": "toy", "revision": 1}

    def embed_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        cells = frames_FHWC[:, ::24, ::32].reshape(len(frames_FHWC), -1)[:, :12]
        return cells.astype(np.float32) + 1

    def embed_questions(self, questions: Sequence[str]) -> np.ndarray:
        codes = [[(len(text) * (i + 3)) % 11 + 1 for i in range(12)] for text in questions]
        return np.array(codes, np.float32)


class Telling(Toy):
    """Tells the frames of a clip apart: the means of twelve strips of a frame, about their mean."""

    def identity(self) -> dict[str, Any]:
        return {"model": "telling"}

    def embed_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        strips = np.array_split(frames_FHWC, 12, axis=2)
        means_FD = np.stack([strip.mean(axis=(1, 2, 3)) for strip in strips], axis=1)
        return (means_FD - means_FD.mean(axis=1, keepdims=True) + 1).astype(np.float32)


class ToyWeights:
    kind = "weight"
    files = ()

    def identity(self) -> dict[str, Any]:
        return {"model": "toy-weights"}

    def score(self, frames_FHWC: np.ndarray, question: str) -> np.ndarray:
        return frames_FHWC.mean(axis=(1, 2, 3)).astype(np.float32) + len(question)


class NanOnShort(Toy):
    """Fails on videos with fewer than ten frames."""

    def identity(self) -> dict[str, Any]:
        return {"model": "nan-on-short"}

    def embed_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        value = super().embed_frames(frames_FHWC)
        return value * np.nan if len(frames_FHWC) < 10 else value


class NanQuestions(Toy):
    """Can embed no question."""

    def identity(self) -> dict[str, Any]:
        return {"model": "nan-questions"}

    def embed_questions(self, questions: Sequence[str]) -> np.ndarray:
        return super().embed_questions(questions) * np.nan


class NanWeightsOnShort(ToyWeights):
    """Fails on videos with fewer than ten frames."""

    def identity(self) -> dict[str, Any]:
        return {"model": "nan-weights"}

    def score(self, frames_FHWC: np.ndarray, question: str) -> np.ndarray:
        value = super().score(frames_FHWC, question)
        return value * np.nan if len(frames_FHWC) < 10 else value


class WrongShape(Toy):
    def embed_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        return np.ones((3, 4), np.float32)


def make(request: ScorerRequest) -> Toy:
    return Toy()


def make_weights(request: ScorerRequest) -> ToyWeights:
    return ToyWeights()


def make_nan(request: ScorerRequest) -> NanOnShort:
    return NanOnShort()


def make_nan_questions(request: ScorerRequest) -> NanQuestions:
    return NanQuestions()


def make_nan_weights(request: ScorerRequest) -> NanWeightsOnShort:
    return NanWeightsOnShort()


def make_wrong(request: ScorerRequest) -> WrongShape:
    return WrongShape()


def make_nothing(request: ScorerRequest) -> object:
    return object()


class RaisesOnShort(Toy):
    """A user's scorer with a fault of its own on videos with fewer than ten frames."""

    def identity(self) -> dict[str, Any]:
        return {"model": "raises-on-short"}

    def embed_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        if len(frames_FHWC) < 10:
            raise ValueError("too short for me")
        return super().embed_frames(frames_FHWC)


def make_raising(request: ScorerRequest) -> RaisesOnShort:
    return RaisesOnShort()


class Picky(Toy):
    """Can embed no question that begins with `nan`."""

    def identity(self) -> dict[str, Any]:
        return {"model": "picky"}

    def embed_questions(self, questions: Sequence[str]) -> np.ndarray:
        assert all(text.strip() for text in questions)
        values = super().embed_questions(questions)
        values[[text.startswith("nan") for text in questions]] = np.nan
        return values


def make_picky(request: ScorerRequest) -> Picky:
    return Picky()


def make_telling(request: ScorerRequest) -> Telling:
    return Telling()
