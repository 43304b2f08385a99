"""A scorer's results: frame embeddings, a row a video, and relevance scores, a row a question.

With the embeddings a new question on a known video costs a matmul. Scores are float32, one for each
frame of the video's pool; any rescaling before Eq. 4 happens online (`score_transform`), so raw
values are what is stored. A row is current only for the text and the frames that it was made from;
readers are given no other.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from strive.cache.commit import (
    commit_part,
    flat_lists,
    last_rows,
    list_parts,
    read_part,
    read_parts,
    read_rows,
)
from strive.cache.frames import read_video_states
from strive.cache.layout import CacheLayout, is_plain_name, read_fields, read_settings
from strive.cache.questions import read_questions
from strive.errors import CacheDamageError, CacheError, ConfigError, nearest
from strive.records import Record
from strive.variants import DEFAULT_LOGIT_SCALE, DrawRule, ScoreKind

SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("num_text_tokens", pa.int32()),
        pa.field("text_truncated", pa.bool_()),
        # What the scores were made from: a changed question text or video makes the row stale.
        pa.field("query_digest", pa.string(), nullable=False),
        pa.field("frames_checksum", pa.string(), nullable=False),
    ]
)


EMBEDDINGS_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("embeddings", pa.large_list(pa.float16()), nullable=False),
        # Embeddings of frames that were since decoded anew are stale.
        pa.field("frames_checksum", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class QuestionScores:
    """The scores of one question, and the text and frames that they were made from.

    The token count is None where a scorer does not tell.
    """

    question_id: str
    video_id: str
    scores_F: np.ndarray
    num_text_tokens: int | None
    text_truncated: bool | None
    query_digest: str
    frames_checksum: str


@dataclass(frozen=True, slots=True)
class ScoreState:
    """The little that planning needs to know about a stored score."""

    query_digest: str
    frames_checksum: str
    text_truncated: bool | None


@dataclass(frozen=True, slots=True)
class ScorerInfo:
    """One scorer that a cache holds scores of."""

    name: str
    key: str
    kind: str
    frames_key: str
    num_questions: int


# --- embeddings ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VideoEmbeddings:
    """The embeddings of one video's pool, float16 [F, D], rows of unit length."""

    video_id: str
    embeddings_FD: np.ndarray
    frames_checksum: str


def commit_embeddings(
    layout: CacheLayout, scorer_key: str, videos: Sequence[VideoEmbeddings], *, writer: str
) -> int:
    """Commit one part of embeddings; return its bytes."""
    if not videos:
        return 0
    flat = np.concatenate([video.embeddings_FD.astype(np.float16).ravel() for video in videos])
    bounds = np.cumsum([0] + [video.embeddings_FD.size for video in videos])
    values = pa.array(flat, pa.float16())
    table = pa.table(
        [
            pa.array([video.video_id for video in videos], pa.string()),
            pa.array([len(video.embeddings_FD) for video in videos], pa.int32()),
            pa.LargeListArray.from_arrays(pa.array(bounds, pa.int64()), values),
            pa.array([video.frames_checksum for video in videos], pa.string()),
        ],
        schema=EMBEDDINGS_SCHEMA,
    )
    return commit_part(layout.embeddings(scorer_key), table, writer=writer)


def read_embedding_states(layout: CacheLayout, scorer_key: str) -> dict[str, str]:
    """Map each embedded video to the checksum of the frames that its embeddings were made from."""
    columns = ["video_id", "frames_checksum"]
    return dict(read_rows(layout.embeddings(scorer_key), "part", EMBEDDINGS_SCHEMA, columns))


def iter_embeddings(
    layout: CacheLayout, scorer_key: str, wanted: dict[str, str]
) -> Iterator[VideoEmbeddings]:
    """Yield the embeddings of the wanted videos ({video_id: frames_checksum}), part by part.

    A video is yielded once, from the last part that holds it with that checksum.
    """
    for path, held in find_embeddings(layout, scorer_key, wanted):
        yield from read_embeddings(path, held)


def find_embeddings(
    layout: CacheLayout, scorer_key: str, wanted: dict[str, str]
) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield each part that holds wanted videos, with those that are to be taken from it."""
    remaining = dict(wanted)
    for path in reversed(list_parts(layout.embeddings(scorer_key), "part")):
        if not remaining:
            return
        table = read_part(path, ["video_id", "frames_checksum"])
        ids, checksums = (table.column(name).to_pylist() for name in table.column_names)
        held = {
            video_id: checksum
            for video_id, checksum in zip(ids, checksums, strict=True)
            if remaining.get(video_id) == checksum
        }
        if held:
            for video_id in held:
                del remaining[video_id]
            yield path, held


def read_embeddings(path: Path, wanted: dict[str, str]) -> Iterator[VideoEmbeddings]:
    """Yield the embeddings of the wanted videos of one part."""
    remaining, columns = dict(wanted), ("video_id", "frames_checksum")
    for row in read_part(path).to_batches(max_chunksize=1):
        video_id, checksum = (row.column(name)[0].as_py() for name in columns)
        if remaining.get(video_id) == checksum:
            del remaining[video_id]
            flat = row.column("embeddings")[0].values.to_numpy(zero_copy_only=False)
            num_frames = row.column("num_frames")[0].as_py()
            yield VideoEmbeddings(video_id, flat.reshape(num_frames, -1), checksum)


# --- scores -------------------------------------------------------------------------------------


def query_of(record: Record, template: str = "question") -> str:
    """Return the text that a record's frames are scored against.

    The question alone; with `question+options` its options follow, one a line.
    """
    if template == "question+options":
        return "\n".join([record.problem.strip(), *record.options])
    return record.problem.strip()


def query_digest(record: Record, template: str = "question", *, needs_spans: bool = False) -> str:
    """Return a digest of what of a record its scores are made from: a change makes them stale.

    That is the query, and the evidence spans for a scorer that needs them.
    """
    text = query_of(record, template)
    if needs_spans:
        text += "\n" + json.dumps(record.evidence_spans_seconds)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_scorer_settings(layout: CacheLayout, scorer_key: str) -> dict[str, Any]:
    """Read a scorer's settings; what readers rely on is there and of its kind.

    Raises:
        CacheDamageError: something is not; the message names the file and what.
    """
    folder = layout.scores(scorer_key)
    settings = read_settings(folder)
    transforms, details = settings.get("allowed_transforms"), settings.get("details", {})
    is_right = {
        "name": isinstance(settings.get("name"), str),
        "kind": settings.get("kind") in ("similarity", "weight"),
        "allowed_transforms": isinstance(transforms, list)
        and all(isinstance(transform, str) for transform in transforms),
        "details": isinstance(details, dict),
        "frames_key": is_plain_name(read_fields(folder).get("frames_key")),
    }
    wrong = [name for name, right in is_right.items() if not right]
    if wrong:
        raise CacheDamageError(
            f"{folder / 'settings.json'} is damaged: '{wrong[0]}' is missing or of another kind"
        )
    return settings


def commit_scores(
    layout: CacheLayout, scorer_key: str, rows: Sequence[QuestionScores], *, writer: str
) -> int:
    """Commit one part of scores; return its bytes."""
    if not rows:
        return 0
    names = [name for name in SCHEMA.names if name != "scores"]
    columns = {name: [getattr(row, name) for row in rows] for name in names}
    columns["scores"] = [np.asarray(row.scores_F, np.float32) for row in rows]
    table = pa.Table.from_pydict(columns, schema=SCHEMA)
    return commit_part(layout.scores(scorer_key), table, writer=writer)


def read_score_states(layout: CacheLayout, scorer_key: str) -> dict[str, ScoreState]:
    """Read which questions are scored, without the scores."""
    columns = ["question_id", "query_digest", "frames_checksum", "text_truncated"]
    rows = read_rows(layout.scores(scorer_key), "part", SCHEMA, columns)
    return {question_id: ScoreState(*row) for question_id, *row in rows}


class ScoreReader:
    """Reads the current scores of one scorer key.

    Scores of another text of a question than that in `records` (not given: the cache's questions),
    or of frames that were since decoded anew, are `stale`: they are counted and not given.
    """

    def __init__(
        self, layout: CacheLayout, scorer_key: str, records: Iterable[Record] | None = None
    ) -> None:
        self.scorer_key = scorer_key
        self.settings = read_scorer_settings(layout, scorer_key)
        self.name: str = self.settings["name"]
        self.kind: ScoreKind = self.settings["kind"]
        self.allowed_transforms: tuple[str, ...] = tuple(self.settings["allowed_transforms"])
        self.frames_key: str = self.settings["fields"]["frames_key"]
        table = read_parts(layout.scores(scorer_key), "part", SCHEMA).combine_chunks()
        self._columns = {
            name: table.column(name).to_pylist() for name in SCHEMA.names if name != "scores"
        }
        video_ids, checksums = self._columns["video_id"], self._columns["frames_checksum"]
        digests = self._columns["query_digest"]
        videos = read_video_states(layout, self.frames_key)
        template = self.settings["fields"].get("query", "question")
        needs_spans = bool(self.settings.get("needs_spans"))
        known = read_questions(layout) if records is None else records
        by_id = {record.question_id: record for record in known}
        self.stale: dict[str, Literal["text", "frames"]] = {}
        """Questions whose scores were made from another text, or from other frames."""
        self._rows: dict[str, int] = {}
        for question_id, row in last_rows(table, "question_id").items():
            record, video = by_id.get(question_id), videos.get(video_ids[row])
            is_moved = record is not None and record.video_id != video_ids[row]
            if is_moved or video is None or video.checksum != checksums[row]:
                self.stale[question_id] = "frames"
            elif record is not None and digests[row] != query_digest(
                record, template, needs_spans=needs_spans
            ):
                self.stale[question_id] = "text"
            else:
                self._rows[question_id] = row
        self._scores, self._bounds = flat_lists(table, "scores")

    @property
    def logit_scale(self) -> float:
        """The scorer's own learned scale, which the transform `logit` multiplies by."""
        scale = self.settings.get("details", {}).get("logit_scale")
        return float(scale or DEFAULT_LOGIT_SCALE)

    def draw_rule(self, rule: DrawRule, *, drop_transform: bool = False) -> DrawRule:
        """Complete a rule of drawing frames with this scorer's kind and logit scale.

        With `drop_transform` a transform that the kind does not allow becomes `none`.

        Raises:
            ConfigError: the kind does not allow the transform.
        """
        transform = rule.score_transform
        if transform not in self.allowed_transforms:
            if not drop_transform:
                raise ConfigError(
                    f"score_transform is '{transform}' but scorer '{self.name}' gives scores of "
                    f"kind '{self.kind}'; allowed: {', '.join(self.allowed_transforms)}"
                )
            transform = "none"
        return replace(
            rule, score_transform=transform, score_kind=self.kind, logit_scale=self.logit_scale
        )

    @property
    def question_ids(self) -> list[str]:
        """All questions with current scores, in the order in which they were first committed."""
        return list(self._rows)

    def __contains__(self, question_id: str) -> bool:
        return question_id in self._rows

    def get(self, question_id: str) -> QuestionScores | None:
        """Return the current scores of a question, or None if it has none."""
        row = self._rows.get(question_id)
        if row is None:
            return None
        scores_F = self._scores[self._bounds[row] : self._bounds[row + 1]].copy()
        stored = {name: values[row] for name, values in self._columns.items()}
        return QuestionScores(scores_F=scores_F, **stored)


def list_scorers(layout: CacheLayout) -> list[ScorerInfo]:
    """Return all scorers of a cache."""
    infos = []
    for key in layout.scorer_keys():
        settings = read_scorer_settings(layout, key)
        infos.append(
            ScorerInfo(
                name=settings["name"],
                key=key,
                kind=settings["kind"],
                frames_key=settings["fields"]["frames_key"],
                num_questions=len(read_score_states(layout, key)),
            )
        )
    return infos


def find_scorer(layout: CacheLayout, name: str | None) -> ScorerInfo:
    """Choose a scorer by name or key; without a name, the only one.

    Raises:
        CacheError: none matches, or several do; the message lists them and names the knob.
    """
    infos = list_scorers(layout)
    if not infos:
        command = f"strive-cli precompute --cache {layout.root} --scorer {name or 'siglip2'}"
        raise CacheError(f"{layout.root} holds no scores; make them with `{command}`")
    listed = ", ".join(
        f"{info.name} ({info.key}, {info.num_questions} questions)" for info in infos
    )
    if name is None:
        if len(infos) == 1:
            return infos[0]
        raise CacheError(f"{layout.root} has several scorers: {listed}; choose one with --scorer")
    matching = [info for info in infos if name in (info.name, info.key)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        keys = ", ".join(info.key for info in matching)
        raise CacheError(
            f"{layout.root} has several scorers named '{name}'; choose one by its key with "
            f"--scorer: {keys}"
        )
    known = [info.name for info in infos] + [info.key for info in infos]
    raise CacheError(
        f"{layout.root} has no scorer '{name}'{nearest(name, known)}; it has {listed}; "
        f"make it with `strive-cli precompute --cache {layout.root} --scorer {name}`"
    )
