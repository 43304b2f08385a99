"""Scorers of the lab's controls and doses: `--scorer strive.lab.scorers:NAME`.

`permuted_...` gives each video's scores in another order of time: as peaked as before, and without
meaning. `oracle_...` is the oracle at one gap between evidence and other frames.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np

from strive.lab.models import lab_model_path
from strive.records import Record
from strive.scorers import (
    FrameFreeScorer,
    Scorer,
    ScorerRequest,
    SplitScorer,
    TextLength,
    load_scorer,
)
from strive.scorers.controls import OracleScorer
from strive.seeding import derive_rng

HOW = "one permutation a video"


class PermutedEmbeddings(SplitScorer):
    """A split scorer whose frame embeddings are permuted in time, by the content of the frames."""

    def __init__(self, base: SplitScorer) -> None:
        self.base = base
        self.kind, self.device_type, self.details = base.kind, base.device_type, base.details
        self.files, self.packages = base.files, base.packages

    def identity(self) -> dict[str, Any]:
        """The base scorer's, and that it is permuted."""
        return {**self.base.identity(), "permuted": HOW}

    def embed_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """The base scorer's embeddings in another order: float32 [F, D]."""
        embeddings_FD = self.base.embed_frames(frames_FHWC)
        rng = derive_rng("permuted", sha256(frames_FHWC.tobytes()).hexdigest())
        return embeddings_FD[rng.permutation(len(embeddings_FD))]

    def embed_questions(self, questions: Sequence[str]) -> np.ndarray:
        """The base scorer's: float32 [Q, D]."""
        return self.base.embed_questions(questions)

    def text_lengths(self, questions: Sequence[str]) -> Sequence[TextLength | None]:
        """The base scorer's."""
        return self.base.text_lengths(questions)


class PermutedOracle(FrameFreeScorer):
    """The oracle's scores permuted in time, by the id of the video."""

    files = ()
    needs_spans = True

    def __init__(self, base: OracleScorer) -> None:
        self.base = base

    def identity(self) -> dict[str, Any]:
        """The oracle's, and that it is permuted."""
        return {**self.base.identity(), "permuted": HOW}

    def score_record(self, record: Record, pts_seconds_F: np.ndarray) -> np.ndarray | None:
        """The oracle's scores in another order: float32 [F]; None for a record without spans."""
        scores_F = self.base.score_record(record, pts_seconds_F)
        if scores_F is None:
            return None
        return scores_F[derive_rng("permuted", record.video_id).permutation(len(scores_F))]


def permuted_siglip2(request: ScorerRequest) -> Scorer:
    """The lab's SigLIP2-type scorer, permuted."""
    model = request.model or str(lab_model_path("siglip2"))
    base = load_scorer("siglip2", replace(request, model=model))
    assert isinstance(base, SplitScorer)
    return PermutedEmbeddings(base)


def _oracle(gap: float) -> Callable[[ScorerRequest], Scorer]:
    return lambda request: OracleScorer(replace(request, model=f"{gap:g}"))


def _permuted_oracle(gap: float) -> Callable[[ScorerRequest], Scorer]:
    return lambda request: PermutedOracle(OracleScorer(replace(request, model=f"{gap:g}")))


# The registered doses; 0.03 is what scorers of real videos show.
oracle_0_03, permuted_oracle_0_03 = _oracle(0.03), _permuted_oracle(0.03)
oracle_0_1, permuted_oracle_0_1 = _oracle(0.1), _permuted_oracle(0.1)
oracle_0_3, permuted_oracle_0_3 = _oracle(0.3), _permuted_oracle(0.3)
oracle_1, permuted_oracle_1 = _oracle(1.0), _permuted_oracle(1.0)
