"""Scorers give every frame of a pool a relevance score for a question.

A scorer is made by a function that takes a `ScorerRequest` and returns one of four kinds of
`Scorer`: it embeds frames and questions apart (`SplitScorer`: scores are their cosines, and a new
question on a known video costs a matmul; `BatchedScorer` if its batches may mix videos), or scores
them together (`JointScorer`), or scores a record without pixels (`FrameFreeScorer`). An object of
any class that has the methods of one of them will do: `as_scorer` makes a `Scorer` of it.

To add one, write the function and enter it in `SCORERS`; a user's own is named `module:function`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from strive.choices import LongText
from strive.errors import ModelError, ScorerError, StriveError
from strive.named import check_name, load_function
from strive.records import Record

ScorerKind = Literal["similarity", "weight"]
# How a scorer is fed: frames in batches across videos, all frames of one video, frames with each
# question, or no frames at all.
ScorerMode = Literal["batched", "split", "joint", "frame_free"]

# Imported only when a scorer is made: most of them load torch.
SCORERS: dict[str, str] = {
    "siglip2": "strive.scorers.siglip2:OpenClipScorer",
    "llava_ov": "strive.scorers.llava_ov:LlavaOnevisionScorer",
    "policy": "strive.scorers.policy:PolicyScorer",
    "gradient": "strive.scorers.gradient:GradientScorer",
    "random": "strive.scorers.controls:RandomScorer",
    "oracle": "strive.scorers.controls:OracleScorer",
}

ALLOWED_TRANSFORMS: dict[str, tuple[str, ...]] = {
    "similarity": ("none", "zscore", "minmax", "logit"),
    # Weights are used as they are, normalised per segment (Sec. 4.2).
    "weight": ("none",),
}


@dataclass(frozen=True, slots=True)
class ScorerRequest:
    """The options of one scorer; `model` None means its default, `dtype` None the device's.

    `long_text` says what becomes of a question that is longer than the scorer's context.
    """

    model: str | None = None
    device: str = "auto"
    dtype: str | None = None
    batch_size: int = 64
    long_text: LongText = "truncate"


@dataclass(frozen=True, slots=True)
class TextLength:
    """Number of tokens of a question, and whether the scorer's context cut some off."""

    num_tokens: int
    truncated: bool


class Scorer(ABC):
    """Base class of all scorers; everything but `identity` has a default."""

    kind: ScorerKind = "similarity"
    """Decides what training may do with the scores: see `ALLOWED_TRANSFORMS`."""
    mode: ClassVar[ScorerMode]
    files: Sequence[Path] | None = None
    """Files that the numbers depend on: while they are unchanged, a later call knows the scorer
    without loading it. None: every call loads it."""
    packages: Sequence[str] = ()
    """Installed distributions whose version matters as `files` do."""
    needs_spans: bool = False
    """Whether records without evidence spans cannot be scored."""
    details: Mapping[str, Any] = {}
    """Facts for readers that do not change the numbers (logit scale, ...), as JSON values."""
    device_type: str = "cpu"
    """Kind of device that it computes on."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return everything that changes the numbers, as JSON values; hashed into the scorer key.

        `model` in it is shown in the key's name.
        """

    def text_lengths(self, questions: Sequence[str]) -> Sequence[TextLength | None]:
        """Count each question's tokens; None where that is not known."""
        return [None] * len(questions)


class SplitScorer(Scorer):
    """Embeds frames and questions into one space; rows need not be of unit length."""

    mode: ClassVar[ScorerMode] = "split"

    @abstractmethod
    def embed_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """Embed uint8 RGB frames of one video: float32 [F, D]."""

    @abstractmethod
    def embed_questions(self, questions: Sequence[str]) -> np.ndarray:
        """Embed questions: float32 [Q, D]."""


class BatchedScorer(SplitScorer):
    """A split scorer whose batches may hold frames of several videos.

    A row's embedding depends, to the last bit, on that row alone. Both methods may be called from
    several threads at once.
    """

    mode: ClassVar[ScorerMode] = "batched"
    batch_size: int = 64

    @abstractmethod
    def prepare_frames(self, frames_FHWC: np.ndarray) -> Any:
        """Bring uint8 frames of any size to rows of one shape and dtype: [F, ...]."""

    @abstractmethod
    def embed_prepared(self, prepared_B: Any) -> np.ndarray:
        """Embed at most `batch_size` prepared rows, padded to that size inside: float32 [B, D]."""

    def embed_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """Embed the frames of one video, `batch_size` rows at a time: float32 [F, D]."""
        prepared = self.prepare_frames(frames_FHWC)
        starts = range(0, len(prepared), self.batch_size)
        return np.concatenate(
            [self.embed_prepared(prepared[start : start + self.batch_size]) for start in starts]
        )


class JointScorer(Scorer):
    """Scores the frames of one video for one question."""

    mode: ClassVar[ScorerMode] = "joint"

    @abstractmethod
    def score(
        self, frames_FHWC: np.ndarray, question: str, *, pts_seconds_F: np.ndarray
    ) -> np.ndarray:
        """Score uint8 RGB frames, shown at given times, for a question: float32 [F]."""


class FrameFreeScorer(Scorer):
    """Scores from a record and the times of its video's pool, without looking at pixels."""

    mode: ClassVar[ScorerMode] = "frame_free"

    @abstractmethod
    def score_record(self, record: Record, pts_seconds_F: np.ndarray) -> np.ndarray | None:
        """Score the pool for a record: float32 [F]; None if this record cannot be scored."""


# The methods that make an object a scorer of each kind, the first kind that fits; and what else is
# taken from it where it has it.
_METHODS: dict[Any, tuple[str, ...]] = {
    FrameFreeScorer: ("score_record",),
    BatchedScorer: ("embed_frames", "embed_questions", "prepare_frames", "embed_prepared"),
    SplitScorer: ("embed_frames", "embed_questions"),
    JointScorer: ("score",),
}
_OPTIONAL = ("files", "packages", "needs_spans", "details", "text_lengths", "batch_size")


def as_scorer(name: str, made: Any) -> Scorer:
    """Return what a scorer's function made as a `Scorer`, whatever its class.

    Raises:
        ModelError: it lacks what a scorer must have.
    """
    scorer = made if isinstance(made, Scorer) else _adapted(name, made)
    if scorer.kind not in ALLOWED_TRANSFORMS:
        raise ModelError(
            f"scorer '{name}' has kind {scorer.kind!r}; use one of {', '.join(ALLOWED_TRANSFORMS)}"
        )
    return scorer


def _adapted(name: str, made: Any) -> Scorer:
    what = f"scorer '{name}' made a {type(made).__name__}, which"
    fitting = [
        kind
        for kind, methods in _METHODS.items()
        if all(callable(getattr(made, method, None)) for method in methods)
    ]
    if not hasattr(made, "batch_size"):
        fitting = [kind for kind in fitting if kind is not BatchedScorer]
    if not fitting:
        raise ModelError(
            f"{what} has none of score(), score_record(), and embed_frames() with embed_questions()"
        )
    if not callable(getattr(made, "identity", None)):
        raise ModelError(
            f"{what} lacks identity(): what it returns, a dict of whatever changes the numbers, "
            "becomes part of the scorer's key"
        )
    kind = fitting[0]
    members = {"kind": getattr(made, "kind", None)}
    for member in ("identity", *_METHODS[kind], *_OPTIONAL):
        if hasattr(made, member):
            members[member] = getattr(made, member)
    members["device_type"] = str(getattr(getattr(made, "device", None), "type", "cpu"))
    if kind is JointScorer and not getattr(made, "wants_times", False):
        members["score"] = lambda frames_FHWC, question, **times: made.score(frames_FHWC, question)
    of_class = {name: staticmethod(m) if callable(m) else m for name, m in members.items()}
    scorer: Scorer = type(type(made).__name__, (kind,), of_class)()
    return scorer


def load_scorer(name: str, request: ScorerRequest) -> Scorer:
    """Make a scorer by its name in `SCORERS` or as `module:function`.

    Raises:
        UnknownNameError: no such scorer.
        ModelError: what the function returned is not a scorer.
        ScorerError: the function raised what is no StriveError.
    """
    check_scorer_name(name)
    factory = load_function(f"scorer '{name}'", SCORERS.get(name, name))
    with scorer_faults(name, "while it was made"):
        return as_scorer(name, factory(request))


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

    s_f = <v_f, q> / (|v_f| |q|), with a question of unit length.
    """
    # Summed per row in float64, so that the result does not depend on how many questions are scored
    # together, as it would with a matrix product.
    v_FD = embeddings_FD.astype(np.float64)
    dots_F = (v_FD * question_D.astype(np.float64)).sum(axis=1)
    norms_F = np.sqrt((v_FD * v_FD).sum(axis=1))
    return (dots_F / norms_F).astype(np.float32)
