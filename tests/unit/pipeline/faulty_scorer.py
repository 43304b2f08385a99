"""Scorers that fail on one video (of five frames): by an exception, by ending the process."""

import os
import time
from typing import Any

import numpy as np

from pipeline.toy_scorer import Toy
from strive.scorers import ScorerRequest

SHORT = 10


class Raising(Toy):
    def identity(self) -> dict[str, Any]:
        return {"model": "raising"}

    def embed_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        if len(frames_FHWC) < SHORT:
            raise ValueError("a fault of the user's own")
        return super().embed_frames(frames_FHWC)


class Batched(Toy):
    """Toy's embeddings in batches across videos; fails on a whole batch."""

    batch_size = 8

    def identity(self) -> dict[str, Any]:
        return {"model": "batched"}

    def prepare_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        prepared = super().embed_frames(frames_FHWC)
        return -prepared if len(frames_FHWC) < SHORT else prepared

    def embed_prepared(self, prepared_B: np.ndarray) -> np.ndarray:
        if (prepared_B < 0).any():
            raise ValueError("a fault that names no video")
        return prepared_B


class Killing(Toy):
    def identity(self) -> dict[str, Any]:
        return {"model": "killing"}

    def embed_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        if len(frames_FHWC) < SHORT:
            os._exit(1)
        return super().embed_frames(frames_FHWC)


class Slow(Toy):
    """Takes a second for each video."""

    def identity(self) -> dict[str, Any]:
        return {"model": "slow"}

    def embed_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        time.sleep(1.0)
        return super().embed_frames(frames_FHWC)


def make_raising(request: ScorerRequest) -> Toy:
    return Raising()


def make_batched(request: ScorerRequest) -> Toy:
    return Batched()


def make_killing(request: ScorerRequest) -> Toy:
    return Killing()


def make_slow(request: ScorerRequest) -> Toy:
    return Slow()


class Unsound(Toy):
    """Does one thing wrong, the one that its request's `model` names."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        if fault == "made":
            raise RuntimeError("no begin\nand a second line")

    def identity(self) -> Any:
        if self.fault == "identity raises":
            raise KeyError("x")
        bad = {"identity none": None, "identity object": {"model": object()}}
        return bad.get(self.fault, {"model": "unsound"})

    def embed_frames(self, frames_FHWC: np.ndarray) -> Any:
        return "text" if self.fault == "frames text" else super().embed_frames(frames_FHWC)

    def embed_questions(self, questions: Any) -> np.ndarray:
        if self.fault == "questions raise":
            raise ValueError("a fault of the user's own\nand a second line")
        rows = super().embed_questions(questions)
        shapes = {"questions few": rows[:1], "questions narrow": rows[:, :5]}
        return shapes.get(self.fault, rows)

    def text_lengths(self, questions: Any) -> list[Any]:
        return [] if self.fault == "lengths few" else [None] * len(questions)


class UnsoundBatches(Batched):
    """Gives fewer rows than it was given frames, as its request's `model` says where."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def prepare_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        prepared = Toy.embed_frames(self, frames_FHWC)
        return prepared[:-1] if self.fault == "prepared few" else prepared

    def embed_prepared(self, prepared_B: np.ndarray) -> np.ndarray:
        if self.fault == "batch raises":
            raise ValueError("a fault of the user's own")
        return prepared_B[:-1] if self.fault == "embedded few" else prepared_B


def make_unsound(request: ScorerRequest) -> Toy:
    return Unsound(request.model or "")


def make_unsound_batches(request: ScorerRequest) -> Toy:
    return UnsoundBatches(request.model or "")
