"""One scorer in one call: its key (recalled without loading, if possible) and its numbers."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from strive.cache.commit import commit_json, read_json
from strive.cache.embeddings import VideoEmbeddings
from strive.cache.layout import CacheLayout, ensure_settings, make_key, read_settings
from strive.cache.scores import QuestionScores, ScoreRow
from strive.errors import DecodeError, ModelError
from strive.pipeline.scorers import (
    ALLOWED_TRANSFORMS,
    JointScorer,
    ScorerRequest,
    SplitScorer,
    TextLength,
    load_scorer,
)
from strive.records import Record

QUERY_TEMPLATE = "question"


def query_of(record: Record) -> str:
    """Return the text that a record's frames are scored against: the question alone."""
    return record.problem.strip()


def query_digest(record: Record) -> str:
    """Return a digest of the query: a changed text makes the stored scores stale."""
    return hashlib.blake2b(query_of(record).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class KnownScorer:
    """What later calls need to know about a scorer without loading it."""

    key: str
    is_split: bool


class ScorerSession:
    """A scorer that is loaded only when it has work to do."""

    def __init__(
        self, name: str, request: ScorerRequest, layout: CacheLayout, frames_key: str
    ) -> None:
        self.name, self.request = name, request
        self.layout, self.frames_key = layout, frames_key
        self._scorer: SplitScorer | JointScorer | None = None
        self._known = _recall(layout, self._asked())

    @property
    def scorer(self) -> SplitScorer | JointScorer:
        """The scorer itself, loaded on first use."""
        if self._scorer is None:
            # Decode workers keep the cores busy: OpenMP threads that spin while they wait for one
            # another would slow both (measured: 4 to 10 times). Read when torch is first loaded.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            self._scorer = load_scorer(self.name, self.request)
        return self._scorer

    @property
    def key(self) -> str:
        """The scorer key; loads the scorer if no earlier call left it."""
        return self._identified().key

    @property
    def is_split(self) -> bool:
        """Whether frames and questions are embedded apart."""
        return self._identified().is_split

    def commit_settings(self) -> None:
        """Write the settings of this key, and what recalls it without loading."""
        folder = self.layout.scores(self.key)
        if self._scorer is None:
            return
        ensure_settings(
            folder,
            {
                "name": self.name,
                "kind": self.scorer.kind,
                "allowed_transforms": list(ALLOWED_TRANSFORMS[self.scorer.kind]),
                "split": self.is_split,
                "fields": self._fields(),
                "details": getattr(self.scorer, "details", {}),
            },
        )
        files = getattr(self.scorer, "files", None)
        if files is not None:
            packages = getattr(self.scorer, "packages", ())
            recall = {
                "asked": self._asked(),
                "files": {str(path): _stamp(path) for path in files},
                "packages": {name: _version(name) for name in packages},
            }
            if _read_recall(folder) != recall:
                commit_json(folder / "recall.json", recall)

    def embed(self, video_id: str, frames_FHWC: np.ndarray, checksum: str) -> VideoEmbeddings:
        """Embed a video's frames as read back from the cache.

        Raises:
            DecodeError: `nonfinite`: this video's failure row.
        """
        assert isinstance(self.scorer, SplitScorer)
        raw_FD = np.asarray(self.scorer.embed_frames(frames_FHWC), np.float32)
        if raw_FD.ndim != 2 or len(raw_FD) != len(frames_FHWC):
            raise ModelError(
                f"scorer '{self.name}' embeds {len(frames_FHWC)} frames as an array of shape "
                f"{raw_FD.shape}; [{len(frames_FHWC)}, D] is expected"
            )
        unit_FD = _unit_rows(raw_FD)
        if not np.isfinite(unit_FD).all():
            raise DecodeError("nonfinite", f"scorer '{self.name}' gives embeddings that are NaN")
        return VideoEmbeddings(video_id, unit_FD.astype(np.float16), checksum)

    def score_split(
        self, videos: Sequence[VideoEmbeddings], records: dict[str, list[Record]]
    ) -> list[ScoreRow]:
        """Score the given questions of embedded videos: cosines in float32 from stored float16."""
        assert isinstance(self.scorer, SplitScorer)
        pairs = [(video, record) for video in videos for record in records[video.video_id]]
        if not pairs:
            return []
        queries = [query_of(record) for _, record in pairs]
        questions_QD = _unit_rows(np.asarray(self.scorer.embed_questions(queries), np.float32))
        return [
            self._row(record, cosines(video.embeddings_FD, question_D), video.frames_checksum, size)
            for (video, record), question_D, size in zip(
                pairs, questions_QD, self._text_lengths(queries), strict=True
            )
        ]

    def score_joint(
        self, frames_FHWC: np.ndarray, records: Sequence[Record], checksum: str
    ) -> list[ScoreRow]:
        """Score the questions of one video with a scorer that needs both at once.

        Raises:
            DecodeError: `nonfinite`: this video's failure row.
        """
        assert isinstance(self.scorer, JointScorer)
        queries = [query_of(record) for record in records]
        rows = []
        for record, query, size in zip(records, queries, self._text_lengths(queries), strict=True):
            scores_F = np.asarray(self.scorer.score(frames_FHWC, query), np.float32)
            if scores_F.shape != (len(frames_FHWC),):
                raise ModelError(
                    f"scorer '{self.name}' scores {len(frames_FHWC)} frames as an array of shape "
                    f"{scores_F.shape}; [{len(frames_FHWC)}] is expected"
                )
            if not np.isfinite(scores_F).all():
                raise DecodeError("nonfinite", f"scorer '{self.name}' gives scores that are NaN")
            rows.append(self._row(record, scores_F, checksum, size))
        return rows

    def _row(
        self, record: Record, scores_F: np.ndarray, checksum: str, size: TextLength | None
    ) -> ScoreRow:
        scores = QuestionScores(
            record.question_id,
            record.video_id,
            scores_F,
            None if size is None else size.num_tokens,
            None if size is None else size.truncated,
        )
        return ScoreRow(scores, query_digest(record), checksum)

    def _text_lengths(self, queries: list[str]) -> Sequence[TextLength | None]:
        if hasattr(self.scorer, "text_lengths"):
            lengths: list[TextLength] = self.scorer.text_lengths(queries)
            return lengths
        return [None] * len(queries)

    def _identified(self) -> KnownScorer:
        if self._known is None:
            key = make_key(self._readable_name(), self._fields())
            self._known = KnownScorer(key, isinstance(self.scorer, SplitScorer))
        return self._known

    def _readable_name(self) -> str:
        model = str(self.scorer.identity().get("model", ""))
        return self.name if model in ("", self.name) else f"{self.name}-{model}"

    def _fields(self) -> dict[str, Any]:
        return {
            "scorer": self.name,
            "query": QUERY_TEMPLATE,
            "frames_key": self.frames_key,
            "embed_batch_size": self.request.batch_size,
            **self.scorer.identity(),
        }

    def _asked(self) -> dict[str, Any]:
        return {
            "scorer": self.name,
            "model": self.request.model,
            "device": self.request.device,
            "dtype": self.request.dtype,
            "embed_batch_size": self.request.batch_size,
            "query": QUERY_TEMPLATE,
            "frames_key": self.frames_key,
        }


def cosines(embeddings_FD: np.ndarray, question_D: np.ndarray) -> np.ndarray:
    """Return the cosines [F] of stored frame embeddings and one question (Sec. 3.3).

    s_f = <v_f, q> / (|v_f| |q|). Summed per row in float64, so that the result does not depend on
    how many questions are scored together, as it would with a matrix product.
    """
    v_FD = embeddings_FD.astype(np.float64)
    dots_F = (v_FD * question_D.astype(np.float64)).sum(axis=1)
    norms_F = np.sqrt((v_FD * v_FD).sum(axis=1))
    return (dots_F / norms_F).astype(np.float32)


def _unit_rows(x_ND: np.ndarray) -> np.ndarray:
    norms_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit_ND: np.ndarray = x_ND / norms_N1
    return unit_ND


def _recall(layout: CacheLayout, asked: dict[str, Any]) -> KnownScorer | None:
    """Find the key that the same call had before, if nothing that it depends on has changed."""
    for key in layout.scorer_keys():
        folder = layout.scores(key)
        recall = _read_recall(folder)
        if recall is None or recall["asked"] != asked:
            continue
        same_files = all(_stamp(Path(path)) == was for path, was in recall["files"].items())
        same_packages = all(_version(name) == was for name, was in recall["packages"].items())
        if same_files and same_packages:
            return KnownScorer(key, bool(read_settings(folder)["split"]))
    return None


def _read_recall(folder: Path) -> dict[str, Any] | None:
    path = folder / "recall.json"
    return read_json(path) if path.is_file() else None


def _stamp(path: Path) -> list[int] | None:
    if not path.is_file():
        return None
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
