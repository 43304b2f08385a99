"""One scorer on one set of frames: its key and settings in the cache, and its rows of scores."""

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from strive.cache.commit import commit_json, read_json
from strive.cache.layout import CacheLayout, ensure_settings, make_key, read_settings
from strive.cache.scores import QuestionScores, VideoEmbeddings, query_digest, query_of
from strive.errors import CacheDamageError, DecodeError, ModelError, ScorerError
from strive.records import Record
from strive.scorers import (
    ALLOWED_TRANSFORMS,
    FrameFreeScorer,
    JointScorer,
    Scorer,
    ScorerRequest,
    SplitScorer,
    TextLength,
    cosines,
    load_scorer,
    scorer_faults,
)


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
        self._scorer: Scorer | None = None
        # Key and settings, once they are known: those of an earlier call like this one, if nothing
        # that they depend on has changed since.
        self._known = _recall(layout, self._asked())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scorer": None}

    # --- what the scorer is ---------------------------------------------------------------------

    @property
    def scorer(self) -> Scorer:
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
        return self._identified()[0]

    @property
    def settings(self) -> dict[str, Any]:
        """What is kept of the scorer, known like its key; `split`: texts are embedded apart."""
        return self._identified()[1]

    def loaded_key(self) -> str:
        """Load the scorer and return the key of what was loaded, whatever is remembered.

        On another machine `auto` may mean another device and number type, hence other scores.
        """
        return self._key_and_settings()[0]

    def can_score(self, record: Record) -> bool:
        """Whether the scorer has what it needs to score a question; loads nothing known."""
        return bool(record.evidence_spans_seconds) or not self.settings.get("needs_spans")

    def digest_of(self, record: Record) -> str:
        """Return a digest of what of a record its scores are made from; loads nothing known."""
        needs_spans = bool(self.settings.get("needs_spans"))
        return query_digest(record, self.template, needs_spans=needs_spans)

    def commit_settings(self) -> None:
        """Write the settings of this key, and what recalls it without loading."""
        if self._scorer is None:
            return
        key, settings = self._key_and_settings()
        folder = self.layout.scores(key)
        if self.scorer.files is not None:
            settings["recall"] = {
                "asked": self._asked(),
                "files": {str(path): _stamp(Path(path)) for path in self.scorer.files},
                "packages": {name: _version(name) for name in self.scorer.packages},
            }
        ensure_settings(folder, settings)
        if "recall" in settings and read_recall(folder) != settings["recall"]:
            commit_json(
                folder / "settings.json", {**read_settings(folder), "recall": settings["recall"]}
            )

    def _identified(self) -> tuple[str, dict[str, Any]]:
        if self._known is None:
            self._known = self._key_and_settings()
        return self._known

    def _key_and_settings(self) -> tuple[str, dict[str, Any]]:
        """Return the key of the loaded scorer and the settings that are kept of it.

        Raises:
            ScorerError: `identity()` raised, or what it gave is no JSON object.
        """
        scorer = self.scorer
        with scorer_faults(self.name, "in identity()"):
            identity = json.loads(json.dumps(scorer.identity(), allow_nan=False))
        if not isinstance(identity, dict):
            raise ScorerError(f"scorer '{self.name}': identity() gives {identity!r}, not a dict")
        fields = {
            "scorer": self.name,
            "query": self.template,
            "frames_key": self.frames_key,
            "embed_batch_size": self.request.batch_size,
            **identity,
        }
        model = str(identity.get("model", ""))
        readable = self.name if model in ("", self.name) else f"{self.name}-{model}"
        settings = {
            "name": self.name,
            "kind": scorer.kind,
            "allowed_transforms": list(ALLOWED_TRANSFORMS[scorer.kind]),
            "split": isinstance(scorer, SplitScorer),
            "needs_spans": bool(scorer.needs_spans),
            "fields": fields,
            "details": scorer.details,
        }
        return make_key(readable, fields), settings

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

    # --- what it gives --------------------------------------------------------------------------

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
    ) -> list[QuestionScores]:
        """Score the given questions of embedded videos: cosines in float32 from stored float16.

        A question whose embedding is not finite (it has no token, say) has NaN scores.

        Raises:
            ScorerError: the scorer raised.
            ModelError: it embeds the questions as an array of another shape.
        """
        assert isinstance(self.scorer, SplitScorer)
        pairs = [(video, record) for video in videos for record in records[video.video_id]]
        if not pairs:
            return []
        queries = [query_of(record, self.template) for _, record in pairs]
        dimension = pairs[0][0].embeddings_FD.shape[1]
        with scorer_faults(self.name, "in embed_questions"):
            raw_QD = np.asarray(self.scorer.embed_questions(queries), np.float32)
        if raw_QD.shape != (len(queries), dimension):
            raise ModelError(
                f"scorer '{self.name}' embeds {len(queries)} questions as an array of shape "
                f"{raw_QD.shape}; [{len(queries)}, {dimension}] is expected, as its frames are"
            )
        return [
            self._row(record, cosines(video.embeddings_FD, question_D), video.frames_checksum, size)
            for (video, record), question_D, size in zip(
                pairs, _unit_rows(raw_QD), self._text_lengths(queries), strict=True
            )
        ]

    def score_one(
        self,
        record: Record,
        frames_FHWC: np.ndarray | None,
        pts_seconds_F: np.ndarray,
        checksum: str,
    ) -> QuestionScores | None:
        """Score one question with a scorer that gives scores; None if this one cannot be scored.

        Raises:
            DecodeError: `nonfinite`: this question's failure row.
            ModelError: the scores have another shape.
        """
        scorer, size = self.scorer, None
        if isinstance(scorer, FrameFreeScorer):
            scores_F = scorer.score_record(record, pts_seconds_F)
            if scores_F is None:
                return None
        else:
            assert isinstance(scorer, JointScorer) and frames_FHWC is not None
            query = query_of(record, self.template)
            (size,) = self._text_lengths([query])
            scores_F = scorer.score(frames_FHWC, query, pts_seconds_F=pts_seconds_F)
        scores_F = np.asarray(scores_F, np.float32)
        num_frames = len(pts_seconds_F)
        if scores_F.shape != (num_frames,):
            raise ModelError(
                f"scorer '{self.name}' scores {num_frames} frames as an array of shape "
                f"{scores_F.shape}; [{num_frames}] is expected"
            )
        if not np.isfinite(scores_F).all():
            raise DecodeError("nonfinite", f"scorer '{self.name}' gives scores that are NaN")
        return self._row(record, scores_F, checksum, size)

    def _row(
        self, record: Record, scores_F: np.ndarray, checksum: str, size: TextLength | None
    ) -> QuestionScores:
        return QuestionScores(
            record.question_id,
            record.video_id,
            scores_F,
            None if size is None else size.num_tokens,
            None if size is None else size.truncated,
            self.digest_of(record),
            checksum,
        )

    def _text_lengths(self, queries: list[str]) -> Sequence[TextLength | None]:
        with scorer_faults(self.name, "in text_lengths"):
            lengths = list(self.scorer.text_lengths(queries))
        if len(lengths) != len(queries):
            num_texts = f"{len(lengths)} text_lengths of {len(queries)} texts"
            raise ModelError(f"scorer '{self.name}' gives {num_texts}")
        return lengths


def _unit_rows(x_ND: np.ndarray) -> np.ndarray:
    norms_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit_ND: np.ndarray = x_ND / norms_N1
    return unit_ND


# --- knowing a scorer without loading it ---------------------------------------------------------


def _recall(layout: CacheLayout, asked: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Find key and settings that the same call had before, if what they depend on is unchanged."""
    for key in layout.scorer_keys():
        folder = layout.scores(key)
        recall = read_recall(folder)
        if recall is None or recall["asked"] != asked:
            continue
        same_files = all(_stamp(Path(path)) == was for path, was in recall["files"].items())
        same_packages = all(_version(name) == was for name, was in recall["packages"].items())
        if same_files and same_packages:
            settings = read_settings(folder)
            if isinstance(settings.get("split"), bool):
                return key, settings
    return None


def read_recall(folder: Path) -> dict[str, Any] | None:
    """Read how a scorer was asked for (`asked`), and what it depends on (`files`, `packages`).

    It only saves time, so one that makes no sense is none.
    """
    try:
        recall = read_settings(folder).get("recall")
        if recall is None and (folder / "recall.json").is_file():
            recall = read_json(folder / "recall.json")  # where earlier versions kept it
    except CacheDamageError:
        return None
    if not isinstance(recall, dict):
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
