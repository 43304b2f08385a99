"""Controls that look at no pixels: `random` and `oracle`.

What a scorer is worth shows between the two: `random` draws without knowledge, `oracle` knows which
frames lie in a record's evidence spans (those of the lab, or a user's own).
"""

from typing import Any

import numpy as np

from strive.errors import ConfigError
from strive.records import Record
from strive.scorers import FrameFreeScorer, ScorerRequest
from strive.seeding import derive_rng
from strive.variants import evidence_mask


class RandomScorer(FrameFreeScorer):
    """Standard normal scores, drawn anew for every question from the seed and its id.

    `request.model` is the seed (default 0).

    Raises:
        ConfigError: the seed is not a whole number.
    """

    files = ()

    def __init__(self, request: ScorerRequest) -> None:
        text = request.model or "0"
        try:
            self.seed = int(text)
        except ValueError:
            raise ConfigError(
                f"the seed of scorer 'random' is '{text}'; write --scorer-model random=SEED with a "
                "whole number"
            ) from None

    def identity(self) -> dict[str, Any]:
        """Everything that changes the numbers."""
        return {"model": f"seed-{self.seed}", "draw": "standard normal per question id"}

    def score_record(self, record: Record, pts_seconds_F: np.ndarray) -> np.ndarray:
        """Draw scores: float32 [F]."""
        rng = derive_rng("scorer-random", self.seed, record.question_id)
        return rng.standard_normal(len(pts_seconds_F)).astype(np.float32)


class OracleScorer(FrameFreeScorer):
    """`gap` for frames whose time lies in an evidence span [start, end), 0 for the others.

    `request.model` is the gap between evidence and other frames (default 1).

    Raises:
        ConfigError: the gap is not a finite number.
    """

    files = ()
    needs_spans = True

    def __init__(self, request: ScorerRequest) -> None:
        text = request.model or "1"
        try:
            self.gap = float(text)
        except ValueError:
            self.gap = float("nan")
        if not np.isfinite(self.gap):
            raise ConfigError(
                f"the gap of scorer 'oracle' is '{text}'; write --scorer-model oracle=GAP with a "
                "number, such as 0.3"
            )

    def identity(self) -> dict[str, Any]:
        """Everything that changes the numbers but the spans, which are the records'."""
        return {"model": f"gap-{self.gap:g}", "spans": "half-open"}

    def score_record(self, record: Record, pts_seconds_F: np.ndarray) -> np.ndarray | None:
        """Score by the record's spans: float32 [F]; None for a record without spans."""
        spans = record.evidence_spans_seconds
        if not spans:
            return None
        inside_F = evidence_mask(pts_seconds_F, spans)
        return np.where(inside_F, np.float32(self.gap), np.float32(0.0))
