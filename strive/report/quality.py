"""How well scores find known evidence, measured without any training.

A question with evidence spans labels its video's pool frames: those shown inside a span, and the
others. A scorer is good when it ranks the former above the latter (ROC-AUC, recall@k) and when the
draws of Eq. 4 show them more often than uniform draws do (lift, evidence seen). Only the cache is
read: no model, no pixels, no torch. Axes: Q questions, F pool frames.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from strive import measures
from strive.cache.layout import CacheLayout, open_cache
from strive.cache.pools import Pools
from strive.cache.questions import read_questions
from strive.cache.scores import ScoreReader, ScorerInfo, find_scorer, list_scorers
from strive.errors import CacheError, ConfigError, MissingInputError, RecordsError, unknown_name
from strive.records import Record
from strive.statistics import Interval, mean_interval
from strive.variants import DEFAULT_LOGIT_SCALE, SCORE_TRANSFORMS

Spans = tuple[tuple[float, float], ...]

MEASURES = (
    "auc", "recall_at_k", "recall_at_evidence", "lift", "lift_pool", "evidence_seen",
    "evidence_seen_uniform", "effective_frames", "effective_share", "expected_overlap",
)  # fmt: skip
"""What each question is measured by; `docs/scorers.md` and `measure_scorer` say how."""
GROUPS = ("data_source", "problem_type")
ALL = "all"
NO_SPANS = "no spans"
COVERS_NOTHING = "span shows no pool frame"
COVERS_ALL = "span covers the whole pool"
NO_FRAMES = "video not cached"
NO_SCORES = "no scores"
STALE = "scores of an earlier text or earlier frames"
NOT_FINITE = "scores not finite"
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class QualitySettings:
    """How draws are made from the scores; the fields are those of a training config."""

    frame_temperature: float = 0.4
    score_transform: str = "none"
    num_segments: int = 16

    def __post_init__(self) -> None:
        """Refuse what Eq. 4 cannot use."""
        if not self.frame_temperature > 0:
            raise ConfigError(
                f"--frame-temperature is {self.frame_temperature:g}; it must be above 0"
            )
        if self.score_transform not in SCORE_TRANSFORMS:
            raise unknown_name("--score-transform", self.score_transform, SCORE_TRANSFORMS)
        if self.num_segments < 1:
            raise ConfigError(f"--num-segments is {self.num_segments}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class QualityRow:
    """One scorer over one group of questions (`all`, or a data source, or a problem type).

    `measures` holds the mean of each of `MEASURES` over the questions used, with the standard error
    clustered by video; `score_transform` is `none` where the scorer's kind allows no other.
    """

    scorer: str
    key: str
    kind: str
    score_transform: str
    group: str
    num_used: int
    num_videos: int
    left_out: dict[str, int]
    measures: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class QualityReport:
    """The rows of all scorers, and what they were measured on."""

    cache: str
    spans_from: str
    num_questions: int
    num_with_spans: int
    num_unknown_ids: int
    """Ids of the spans file that the cache does not hold."""
    settings: QualitySettings
    rows: tuple[QualityRow, ...]


def score_quality(
    cache: Path,
    *,
    scorers: Sequence[str] = (),
    spans_file: Path | None = None,
    by: str | None = None,
    settings: QualitySettings | None = None,
) -> QualityReport:
    """Measure scorers of a cache (all of them by default) on the questions with evidence spans.

    Raises:
        CacheError: no cache, no such scorer, or no question has spans.
        RecordsError: the spans file is malformed, or names no question of the cache.
    """
    if by is not None and by not in GROUPS:
        raise unknown_name("--by", by, GROUPS)
    settings = settings or QualitySettings()
    layout = open_cache(cache)
    records = read_questions(layout)
    own = {r.question_id: r.evidence_spans_seconds for r in records if r.evidence_spans_seconds}
    spans = own if spans_file is None else read_spans(spans_file)
    known = spans.keys() & {record.question_id for record in records}
    if not known:
        raise _nothing_to_measure(cache, spans_file, len(spans))
    infos = [find_scorer(layout, name) for name in scorers] or list_scorers(layout)
    if not infos:
        infos = [find_scorer(layout, None)]  # raises what to do about it
    names = _unique_names(infos)
    pools = {key: Pools(layout, key) for key in {info.frames_key for info in infos}}
    rows: list[QualityRow] = []
    for info, name in zip(infos, names, strict=True):
        rows += _scorer_rows(layout, info, name, records, spans, pools, settings, by)
    return QualityReport(
        cache=str(cache),
        spans_from="the cache" if spans_file is None else str(spans_file),
        num_questions=len(records),
        num_with_spans=len(known),
        num_unknown_ids=len(spans) - len(known),
        settings=settings,
        rows=tuple(rows),
    )


def _nothing_to_measure(cache: Path, spans_file: Path | None, num_spans: int) -> Exception:
    if spans_file is None:
        return CacheError(
            f"no question of {cache} has evidence spans; give them with --spans FILE.json: "
            "{question_id: [[start, end], ...]} in seconds"
        )
    return RecordsError(
        f"--spans {spans_file} names {num_spans} questions and none of them is in {cache}; its "
        "keys are question ids"
    )


def _unique_names(infos: Sequence[ScorerInfo]) -> list[str]:
    """Scorers by name, or by key where two of them share one."""
    counts = Counter(info.name for info in infos)
    return [info.name if counts[info.name] == 1 else info.key for info in infos]


# --- spans --------------------------------------------------------------------------------------


def read_spans(path: Path) -> dict[str, Spans]:
    """Read `{question_id: [[start, end], ...]}`, in seconds from the video's first frame.

    Raises:
        MissingInputError: there is no such file.
        RecordsError: it is not JSON, or an entry is not a list of spans with start < end.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingInputError(f"no file at --spans {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordsError(f"--spans {path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise RecordsError(
            f"--spans {path} holds a {type(content).__name__}; an object "
            "{question_id: [[start, end], ...]} is expected"
        )
    return {
        str(question_id): tuple(_span(path, question_id, item) for item in _listed(value))
        for question_id, value in content.items()
    }


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _span(path: Path, question_id: str, item: Any) -> tuple[float, float]:
    if (
        isinstance(item, list)
        and len(item) == 2
        and all(type(second) in (int, float) and math.isfinite(second) for second in item)
        and item[0] < item[1]
    ):
        return float(item[0]), float(item[1])
    raise RecordsError(
        f"--spans {path}: question '{question_id}' has the span {json.dumps(item)}; [start, end] "
        "in seconds with start < end is expected"
    )


# --- one scorer ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Labelled:
    """One question that can be measured: its scores and which frames are evidence."""

    record: Record
    scores_F: np.ndarray
    evidence_F: np.ndarray


def _scorer_rows(
    layout: CacheLayout,
    info: ScorerInfo,
    name: str,
    records: Sequence[Record],
    spans: Mapping[str, Spans],
    pools: Mapping[str, Pools],
    settings: QualitySettings,
    by: str | None,
) -> Iterator[QualityRow]:
    reader = ScoreReader(layout, info.key, records)
    transform = settings.score_transform
    if transform not in reader.allowed_transforms:
        transform = "none"
    labelled: list[_Labelled] = []
    left_out: list[tuple[Record, str]] = []
    for record in records:
        found = _label(record, reader, pools[info.frames_key], spans.get(record.question_id, ()))
        if isinstance(found, str):
            left_out.append((record, found))
        else:
            labelled.append(found)
    figures = measure_scorer(
        [item.scores_F for item in labelled],
        [item.evidence_F for item in labelled],
        kind=info.kind,
        settings=settings,
        score_transform=transform,
        logit_scale=reader.logit_scale,
    )
    for group in _groups(records, by):
        inside = np.array([_is_in(item.record, by, group) for item in labelled], dtype=bool)
        videos = [item.record.video_id for item, yes in zip(labelled, inside, strict=True) if yes]
        yield QualityRow(
            scorer=name,
            key=info.key,
            kind=info.kind,
            score_transform=transform,
            group=group,
            num_used=int(inside.sum()),
            num_videos=len(set(videos)),
            left_out=dict(Counter(why for record, why in left_out if _is_in(record, by, group))),
            measures={
                measure: mean_interval(values_Q[inside], clusters=videos)
                for measure, values_Q in figures.items()
            },
        )


def _groups(records: Sequence[Record], by: str | None) -> list[str]:
    if by is None:
        return [ALL]
    return [ALL, *sorted({str(getattr(record, by)) for record in records})]


def _is_in(record: Record, by: str | None, group: str) -> bool:
    return by is None or group == ALL or str(getattr(record, by)) == group


def _label(record: Record, reader: ScoreReader, pools: Pools, spans: Spans) -> _Labelled | str:
    """Return a question's scores and labels, or why it cannot be measured."""
    if not spans:
        return NO_SPANS
    if record.video_id not in pools:
        return NO_FRAMES
    found = reader.get(record.question_id)
    pts_seconds_F = pools[record.video_id]
    if found is None and record.question_id in reader.stale:
        return STALE
    if found is None or len(found.scores_F) != len(pts_seconds_F):
        return NO_SCORES
    if not np.isfinite(found.scores_F).all():
        return NOT_FINITE
    evidence_F = measures.evidence_mask(pts_seconds_F, spans)
    if not evidence_F.any():
        return COVERS_NOTHING
    if evidence_F.all():
        return COVERS_ALL
    return _Labelled(record, found.scores_F, evidence_F)


def measure_scorer(
    scores: Sequence[np.ndarray],
    evidence: Sequence[np.ndarray],
    *,
    kind: str = "similarity",
    settings: QualitySettings | None = None,
    score_transform: str | None = None,
    logit_scale: float = DEFAULT_LOGIT_SCALE,
) -> dict[str, np.ndarray]:
    """Measure each question: {name of `MEASURES`: [Q]}, from scores [F] and evidence flags [F].

    `auc`: chance that an evidence frame outscores another one. `recall_at_k`, `recall_at_evidence`:
    share of the evidence among the K, or as many as there is evidence, highest scores (of what so
    many frames can hold). `lift`: evidence frames expected in a variant drawn by Eq. 4, over those
    of a uniform draw; `lift_pool`: the same with the softmax over the whole pool instead of each
    segment. `evidence_seen`: chance that a variant shows evidence, and `..._uniform` that of a
    uniform draw. `effective_frames`, `effective_share`: exp(entropy of P) per segment, and as a
    share of its frames. `expected_overlap`: chance that two variants show the same frame.
    """
    settings = settings or QualitySettings()
    result = {name: np.full(len(scores), np.nan) for name in MEASURES}
    by_size: dict[int, list[int]] = {}
    for number, scores_F in enumerate(scores):
        by_size.setdefault(len(scores_F), []).append(number)
    for numbers in by_size.values():
        for start in range(0, len(numbers), _ROWS_AT_ONCE):
            chunk = numbers[start : start + _ROWS_AT_ONCE]
            figures = _measure_rows(
                np.stack([scores[number] for number in chunk]).astype(np.float64),
                np.stack([evidence[number] for number in chunk]),
                num_segments=settings.num_segments,
                draws={
                    "score_kind": kind,
                    "frame_temperature": settings.frame_temperature,
                    "score_transform": score_transform or settings.score_transform,
                    "logit_scale": logit_scale,
                },
            )
            for name, values_Q in figures.items():
                result[name][chunk] = values_Q
    return result


def _measure_rows(
    scores_QF: np.ndarray, evidence_QF: np.ndarray, *, num_segments: int, draws: dict[str, Any]
) -> dict[str, np.ndarray]:
    num_frames = scores_QF.shape[1]
    p_QF = measures.probability_rows(scores_QF, num_segments=num_segments, **draws)
    pool_QF = measures.probability_rows(scores_QF, num_segments=1, **draws)
    uniform_QF = np.broadcast_to(measures.uniform_rows(num_frames, num_segments), scores_QF.shape)
    effective_Q, share_Q = measures.effective_rows(p_QF, num_segments)
    num_evidence_Q = evidence_QF.sum(axis=1)
    return {
        "auc": measures.auc_rows(scores_QF, evidence_QF),
        "recall_at_k": measures.recall_rows(scores_QF, evidence_QF, num_segments),
        "recall_at_evidence": measures.recall_rows(scores_QF, evidence_QF, num_evidence_Q),
        "lift": measures.lift_rows(p_QF, evidence_QF, num_segments),
        "lift_pool": measures.lift_rows(pool_QF, evidence_QF, 1),
        "evidence_seen": measures.seen_rows(p_QF, evidence_QF, num_segments),
        "evidence_seen_uniform": measures.seen_rows(uniform_QF, evidence_QF, num_segments),
        "effective_frames": effective_Q,
        "effective_share": share_Q,
        "expected_overlap": measures.overlap_rows(p_QF, num_segments),
    }
