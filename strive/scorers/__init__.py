"""Scorers: what gives every pool frame a relevance score for a question.

A scorer is made by a function that takes a `ScorerRequest`. It has `kind` and `identity()`, and
either embeds frames and questions apart (`SplitScorer`: scores are their cosines, and a new
question on a known video costs a matmul; `BatchedScorer` if its batches may mix videos), or scores
them together (`JointScorer`), or scores a record without pixels (`FrameFreeScorer`). It may also
have

* `text_lengths(questions)`: tokens of each question and whether some were cut off;
* `files` and `packages`: files and installed distributions that its numbers depend on besides its
  name, so that a later call knows the scorer again without loading it;
* `needs_spans`: true if records without evidence spans cannot be scored;
* `details`: facts for readers that do not change the numbers (logit scale, ...).

To add one, write the function and enter it in `SCORERS`; a user's own is named `module:function`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from strive.choices import LongText
from strive.errors import ModelError, ScorerError, StriveError
from strive.named import check_name, load_function
from strive.records import Record

ScorerKind = Literal["similarity", "weight"]

# Imported only when a scorer is made: most of them load torch.
SCORERS: dict[str, str] = {
    "siglip2": "strive.scorers.siglip2:load_siglip2",
    "llava_ov": "strive.scorers.llava_ov:load_llava_ov",
    "policy": "strive.scorers.policy:load_policy_scorer",
    "gradient": "strive.scorers.gradient:load_gradient",
    "random": "strive.scorers.controls:load_random",
    "oracle": "strive.scorers.controls:load_oracle",
}

ALLOWED_TRANSFORMS: dict[str, tuple[str, ...]] = {
    "similarity": ("none", "zscore", "minmax", "logit"),
    # Weights are used as they are, normalised per segment (Sec. 4.2).
    "weight": ("none",),
}


@dataclass(frozen=True, slots=True)
class ScorerRequest:
    """What a scorer is asked to be; `model` None means its default, `dtype` None the device's.

    `long_text` says what becomes of a question that is longer than the scorer's context.
    """

    model: str | None = None
    device: str = "auto"
    dtype: str | None = None
    batch_size: int = 64
    long_text: LongText = "truncate"


@dataclass(frozen=True, slots=True)
class TextLength:
    """How many tokens a question has, and whether the scorer's context cut some off."""

    num_tokens: int
    truncated: bool


class Scorer(Protocol):
    """What every scorer has."""

    kind: ScorerKind

    def identity(self) -> dict[str, Any]:
        """Everything that changes the numbers, as JSON values; hashed into the scorer key."""


@runtime_checkable
class SplitScorer(Scorer, Protocol):
    """Embeds frames and questions into one space; rows need not be of unit length."""

    def embed_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """Embed uint8 RGB frames of one video: float32 [F, D]."""

    def embed_questions(self, questions: Sequence[str]) -> np.ndarray:
        """Embed questions: float32 [Q, D]."""


@runtime_checkable
class BatchedScorer(SplitScorer, Protocol):
    """A split scorer whose batches may hold frames of several videos.

    A row's embedding depends, to the last bit, on that row alone. Both methods may be called from
    several threads at once.
    """

    batch_size: int

    def prepare_frames(self, frames_FHWC: np.ndarray) -> Any:
        """Bring uint8 frames of any size to rows of one shape and dtype: [F, ...]."""

    def embed_prepared(self, prepared_B: Any) -> np.ndarray:
        """Embed at most `batch_size` prepared rows, padded to that size inside: float32 [B, D]."""


@runtime_checkable
class FrameFreeScorer(Scorer, Protocol):
    """Scores from a record and the times of its video's pool, without looking at pixels."""

    def score_record(self, record: Record, pts_seconds_F: np.ndarray) -> np.ndarray | None:
        """Score the pool for a record: float32 [F]; None if this record cannot be scored."""


@runtime_checkable
class JointScorer(Scorer, Protocol):
    """Scores the frames of one video for one question.

    With a class attribute `wants_times = True` it is also given `pts_seconds_F`.
    """

    def score(self, frames_FHWC: np.ndarray, question: str) -> np.ndarray:
        """Score uint8 RGB frames for a question: float32 [F]."""


AnyScorer = SplitScorer | JointScorer | FrameFreeScorer


def load_scorer(name: str, request: ScorerRequest) -> AnyScorer:
    """Make a scorer by its name in `SCORERS` or as `module:function`.

    Raises:
        UnknownNameError: no such scorer.
        ModelError: what the function returned is not a scorer.
        ScorerError: the function raised what is no StriveError.
    """
    check_scorer_name(name)
    factory = load_function(f"scorer '{name}'", SCORERS.get(name, name))
    with scorer_faults(name, "while it was made"):
        scorer = factory(request)
    what = f"scorer '{name}' made a {type(scorer).__name__}, which"
    ways = (("score",), ("score_record",), ("embed_frames", "embed_questions"))
    if not any(all(callable(getattr(scorer, name, None)) for name in way) for way in ways):
        raise ModelError(
            f"{what} has none of score(), score_record(), and embed_frames() with embed_questions()"
        )
    if not callable(getattr(scorer, "identity", None)):
        raise ModelError(
            f"{what} lacks identity(): what it returns, a dict of whatever changes the numbers, "
            "becomes part of the scorer's key"
        )
    if getattr(scorer, "kind", None) not in ALLOWED_TRANSFORMS:
        raise ModelError(
            f"scorer '{name}' has kind {getattr(scorer, 'kind', None)!r}; "
            f"use one of {', '.join(ALLOWED_TRANSFORMS)}"
        )
    return scorer


@contextmanager
def scorer_faults(name: str, when: str) -> Iterator[None]:
    """Make one clear line of what a scorer raises.

    Raises:
        ScorerError: in place of what is no StriveError; the first one stays as its cause.
    """
    try:
        yield
    except StriveError:
        raise
    except Exception as error:
        line = (str(error).splitlines() or [""])[0][:300]
        raise ScorerError(
            f"scorer '{name}' failed {when} ({type(error).__name__}: {line})"
        ) from error


def check_scorer_name(name: str) -> None:
    """Refuse a name that cannot be a scorer, before any work is done."""
    check_name("scorer (--scorer)", name, SCORERS)


def cosines(embeddings_FD: np.ndarray, question_D: np.ndarray) -> np.ndarray:
    """Return the cosines [F] of stored frame embeddings and one question (Sec. 3.3).

    s_f = <v_f, q> / (|v_f| |q|). Summed per row in float64, so that the result does not depend on
    how many questions are scored together, as it would with a matrix product.
    """
    v_FD = embeddings_FD.astype(np.float64)
    dots_F = (v_FD * question_D.astype(np.float64)).sum(axis=1)
    norms_F = np.sqrt((v_FD * v_FD).sum(axis=1))
    return (dots_F / norms_F).astype(np.float32)
