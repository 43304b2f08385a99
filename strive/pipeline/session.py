"""One scorer in one call: its key (recalled without loading, if possible) and its numbers."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from strive.cache.commit import commit_json, read_json
from strive.cache.embeddings import VideoEmbeddings
from strive.cache.layout import CacheLayout, ensure_settings, make_key, read_settings
from strive.cache.scores import QuestionScores, ScoreRow, query_digest, query_of
from strive.errors import CacheDamageError, DecodeError, ModelError, ScorerError
from strive.records import Record
from strive.scorers import (
    ALLOWED_TRANSFORMS,
    AnyScorer,
    BatchedScorer,
    FrameFreeScorer,
    JointScorer,
    ScorerRequest,
    SplitScorer,
    TextLength,
    cosines,
    load_scorer,
    scorer_faults,
)

# How a scorer is fed: frames in batches across videos, all frames of one video, frames with each
# question, or no frames at all.
ScorerMode = Literal["batched", "split", "joint", "frame_free"]


@dataclass(frozen=True, slots=True)
class KnownScorer:
    """What later calls need to know about a scorer without loading it."""

    key: str
    is_split: bool
    needs_spans: bool = False


class ScorerSession:
    """A scorer that is loaded only when it has work to do; pickled without it."""

    def __init__(
        self,
        name: str,
        request: ScorerRequest,
        layout: CacheLayout,
        frames_key: str,
        template: str = "question",
    ) -> None:
        self.name, self.request, self.template = name, request, template
        self.layout, self.frames_key = layout, frames_key
        self._scorer: AnyScorer | None = None
        self._mode: ScorerMode | None = None
        self._known = _recall(layout, self._asked())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scorer": None}

    @property
    def scorer(self) -> AnyScorer:
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

    def loaded_key(self) -> str:
        """Load the scorer and return the key of what was loaded, whatever is remembered.

        On another machine `auto` may mean another device and number type, hence other scores.
        """
        self.scorer  # noqa: B018 - the fields of the key are those of the loaded scorer
        return make_key(self._readable_name(), self._fields())

    @property
    def is_split(self) -> bool:
        """Whether frames and questions are embedded apart."""
        return self._identified().is_split

    @property
    def mode(self) -> ScorerMode:
        """How the scorer is fed; loads it."""
        if self._mode is None:
            self._mode = _mode_of(self.scorer)
        return self._mode

    @property
    def device_type(self) -> str:
        """Kind of device that the scorer computes on (`cpu` where it does not say); loads it."""
        return str(getattr(getattr(self.scorer, "device", None), "type", "cpu"))

    def can_score(self, record: Record) -> bool:
        """Whether the scorer has what it needs to score a question; loads nothing known."""
        return bool(record.evidence_spans_seconds) or not self._identified().needs_spans

    def digest_of(self, record: Record) -> str:
        """Return a digest of what of a record its scores are made from; loads nothing known."""
        needs_spans = self._identified().needs_spans
        return query_digest(record, self.template, needs_spans=needs_spans)

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
                "needs_spans": self._identified().needs_spans,
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

    def to_embeddings(
        self, video_id: str, embeddings_FD: np.ndarray, num_frames: int, checksum: str
    ) -> VideoEmbeddings:
        """Turn what the model gave for a video's frames into what is stored: float16, unit length.

        Raises:
            DecodeError: `nonfinite`: this video's failure row.
            ModelError: the array has another shape.
        """
        with scorer_faults(self.name, "on a video's frames"):
            raw_FD = np.asarray(embeddings_FD, np.float32)
        if raw_FD.ndim != 2 or len(raw_FD) != num_frames:
            raise ModelError(
                f"scorer '{self.name}' embeds {num_frames} frames as an array of shape "
                f"{raw_FD.shape}; [{num_frames}, D] is expected"
            )
        unit_FD = _unit_rows(raw_FD)
        if not np.isfinite(unit_FD).all():
            raise DecodeError("nonfinite", f"scorer '{self.name}' gives embeddings that are NaN")
        return VideoEmbeddings(video_id, unit_FD.astype(np.float16), checksum)

    def score_split(
        self, videos: Sequence[VideoEmbeddings], records: Mapping[str, Sequence[Record]]
    ) -> list[ScoreRow]:
        """Score the given questions of embedded videos: cosines in float32 from stored float16.

        A question whose embedding is not finite (it has no token, say) has NaN scores.
        """
        assert isinstance(self.scorer, SplitScorer)
        pairs = [(video, record) for video in videos for record in records[video.video_id]]
        if not pairs:
            return []
        queries = [query_of(record, self.template) for _, record in pairs]
        questions_QD = self._embed_questions(queries, pairs[0][0].embeddings_FD.shape[1])
        return [
            self._row(record, cosines(video.embeddings_FD, question_D), video.frames_checksum, size)
            for (video, record), question_D, size in zip(
                pairs, questions_QD, self._text_lengths(queries), strict=True
            )
        ]

    def _embed_questions(self, queries: list[str], dimension: int) -> np.ndarray:
        """Embed texts as rows of unit length [Q, D].

        Raises:
            ScorerError: the scorer raised.
            ModelError: the array has another shape.
        """
        assert isinstance(self.scorer, SplitScorer)
        with scorer_faults(self.name, "in embed_questions"):
            raw_QD = np.asarray(self.scorer.embed_questions(queries), np.float32)
        if raw_QD.shape != (len(queries), dimension):
            raise ModelError(
                f"scorer '{self.name}' embeds {len(queries)} questions as an array of shape "
                f"{raw_QD.shape}; [{len(queries)}, {dimension}] is expected, as its frames are"
            )
        return _unit_rows(raw_QD)

    def score_joint(
        self,
        frames_FHWC: np.ndarray,
        pts_seconds_F: np.ndarray,
        records: Sequence[Record],
        checksum: str,
    ) -> list[ScoreRow]:
        """Score the questions of one video with a scorer that needs both at once.

        Raises:
            DecodeError: `nonfinite`: this video's failure row.
        """
        assert isinstance(self.scorer, JointScorer)
        queries = [query_of(record, self.template) for record in records]
        times: dict[str, Any] = {}
        if getattr(self.scorer, "wants_times", False):
            times = {"pts_seconds_F": pts_seconds_F}
        rows = []
        for record, query, size in zip(records, queries, self._text_lengths(queries), strict=True):
            scores_F = self.scorer.score(frames_FHWC, query, **times)
            checked_F = self._checked(scores_F, len(frames_FHWC))
            rows.append(self._row(record, checked_F, checksum, size))
        return rows

    def score_frame_free(
        self, pts_seconds_F: np.ndarray, records: Sequence[Record], checksum: str
    ) -> list[ScoreRow]:
        """Score the questions of one video from its frames' times; those it cannot get no row.

        Raises:
            DecodeError: `nonfinite`: this video's failure row.
        """
        assert isinstance(self.scorer, FrameFreeScorer)
        rows = []
        for record in records:
            scores_F = self.scorer.score_record(record, pts_seconds_F)
            if scores_F is not None:
                checked_F = self._checked(scores_F, len(pts_seconds_F))
                rows.append(self._row(record, checked_F, checksum, None))
        return rows

    def _checked(self, scores_F: np.ndarray, num_frames: int) -> np.ndarray:
        scores_F = np.asarray(scores_F, np.float32)
        if scores_F.shape != (num_frames,):
            raise ModelError(
                f"scorer '{self.name}' scores {num_frames} frames as an array of shape "
                f"{scores_F.shape}; [{num_frames}] is expected"
            )
        if not np.isfinite(scores_F).all():
            raise DecodeError("nonfinite", f"scorer '{self.name}' gives scores that are NaN")
        return scores_F

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
        return ScoreRow(scores, self.digest_of(record), checksum)

    def _text_lengths(self, queries: list[str]) -> Sequence[TextLength | None]:
        if hasattr(self.scorer, "text_lengths"):
            with scorer_faults(self.name, "in text_lengths"):
                lengths: list[TextLength] = list(self.scorer.text_lengths(queries))
            if len(lengths) != len(queries):
                num_texts = f"{len(lengths)} text_lengths of {len(queries)} texts"
                raise ModelError(f"scorer '{self.name}' gives {num_texts}")
            return lengths
        return [None] * len(queries)

    def _identified(self) -> KnownScorer:
        if self._known is None:
            key = make_key(self._readable_name(), self._fields())
            needs_spans = bool(getattr(self.scorer, "needs_spans", False))
            self._known = KnownScorer(key, isinstance(self.scorer, SplitScorer), needs_spans)
        return self._known

    def _readable_name(self) -> str:
        model = str(self._identity().get("model", ""))
        return self.name if model in ("", self.name) else f"{self.name}-{model}"

    def _fields(self) -> dict[str, Any]:
        return {
            "scorer": self.name,
            "query": self.template,
            "frames_key": self.frames_key,
            "embed_batch_size": self.request.batch_size,
            **self._identity(),
        }

    def _identity(self) -> dict[str, Any]:
        """Return the scorer's own part of the key.

        Raises:
            ScorerError: it raised, or what it gave is no JSON object.
        """
        with scorer_faults(self.name, "in identity()"):
            identity = json.loads(json.dumps(self.scorer.identity(), allow_nan=False))
        if not isinstance(identity, dict):
            raise ScorerError(f"scorer '{self.name}': identity() gives {identity!r}, not a dict")
        return identity

    def _asked(self) -> dict[str, Any]:
        long_text = self.request.long_text
        return {
            "scorer": self.name,
            "model": self.request.model,
            "device": self.request.device,
            "dtype": self.request.dtype,
            "embed_batch_size": self.request.batch_size,
            "query": self.template,
            "frames_key": self.frames_key,
            **({} if long_text == "truncate" else {"long_text": long_text}),
        }


def _mode_of(scorer: AnyScorer) -> ScorerMode:
    if isinstance(scorer, FrameFreeScorer):
        return "frame_free"
    if isinstance(scorer, BatchedScorer):
        return "batched"
    return "split" if isinstance(scorer, SplitScorer) else "joint"


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
            settings = read_settings(folder)
            is_split, needs_spans = settings.get("split"), settings.get("needs_spans", False)
            if isinstance(is_split, bool):
                return KnownScorer(key, is_split, bool(needs_spans))
    return None


def _read_recall(folder: Path) -> dict[str, Any] | None:
    """Read what recalls a scorer; it only saves time, so one that makes no sense is none."""
    path = folder / "recall.json"
    try:
        recall = read_json(path) if path.is_file() else {}
    except CacheDamageError:
        return None
    is_right = all(isinstance(recall.get(name), dict) for name in ("asked", "files", "packages"))
    return recall if is_right else None


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
