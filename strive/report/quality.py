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

from strive.cache.frames import Pools
from strive.cache.layout import open_cache
from strive.cache.questions import read_questions
from strive.cache.scores import find_scorer, list_scorers
from strive.errors import CacheError, MissingInputError, RecordsError, unknown_name
from strive.records import Record
from strive.report.scores import ScoreSource, measure
from strive.statistics import Interval, mean_interval
from strive.variants import DrawRule, evidence_mask

Spans = tuple[tuple[float, float], ...]

MEASURES = (
    "auc", "recall_at_k", "recall_at_evidence", "lift", "lift_pool", "evidence_seen",
    "evidence_seen_uniform", "effective_frames", "effective_share", "expected_overlap",
)  # fmt: skip
"""By what each question is measured; `docs/scorers.md` and `scores.measure` say how."""
GROUPS = ("data_source", "problem_type")
ALL = "all"
NO_SPANS = "no spans"
COVERS_NOTHING = "span shows no pool frame"
COVERS_ALL = "span covers the whole pool"
NO_FRAMES = "video not cached"
NO_SCORES = "no scores"
STALE = "scores of an earlier text or earlier frames"
NOT_FINITE = "scores not finite"


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
    settings: DrawRule
    """As asked; a scorer's row says what its kind allowed."""
    rows: tuple[QualityRow, ...]


def score_quality(
    cache: Path,
    *,
    scorers: Sequence[str] = (),
    spans_file: Path | None = None,
    by: str | None = None,
    settings: DrawRule | None = None,
) -> QualityReport:
    """Measure scorers of a cache (all of them by default) on the questions with evidence spans.

    Raises:
        CacheError: no cache, no such scorer, or no question has spans.
        RecordsError: the spans file is malformed, or names no question of the cache.
    """
    if by is not None and by not in GROUPS:
        raise unknown_name("--by", by, GROUPS)
    settings = settings or DrawRule()
    layout = open_cache(cache)
    records = read_questions(layout)
    own = {r.question_id: r.evidence_spans_seconds for r in records if r.evidence_spans_seconds}
    spans = own if spans_file is None else read_spans(spans_file)
    known = spans.keys() & {record.question_id for record in records}
    if not known:
        if spans_file is None:
            raise CacheError(
                f"no question of {cache} has evidence spans; give them with --spans FILE.json: "
                "{question_id: [[start, end], ...]} in seconds"
            )
        raise RecordsError(
            f"--spans {spans_file} names {len(spans)} questions and none of them is in {cache}; "
            "its keys are question ids"
        )
    infos = [find_scorer(layout, name) for name in scorers] or list_scorers(layout)
    if not infos:
        infos = [find_scorer(layout, None)]  # raises what to do about it
    # A scorer goes by its name, or by its key where two share one.
    counts = Counter(info.name for info in infos)
    pools = {key: Pools(layout, key) for key in {info.frames_key for info in infos}}
    rows: list[QualityRow] = []
    for info in infos:
        source = ScoreSource(layout, info.key, records=records, pools=pools[info.frames_key])
        name = info.name if counts[info.name] == 1 else info.key
        rows += _scorer_rows(source, name, spans, settings, by)
    return QualityReport(
        cache=str(cache),
        spans_from="the cache" if spans_file is None else str(spans_file),
        num_questions=len(records),
        num_with_spans=len(known),
        num_unknown_ids=len(spans) - len(known),
        settings=settings,
        rows=tuple(rows),
    )


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
    spans: dict[str, Spans] = {}
    for question_id, value in content.items():
        items = value if isinstance(value, list) else [value]
        spans[question_id] = tuple(_span(path, question_id, item) for item in items)
    return spans


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


def _scorer_rows(
    source: ScoreSource,
    name: str,
    spans: Mapping[str, Spans],
    settings: DrawRule,
    by: str | None,
) -> Iterator[QualityRow]:
    rule = source.scores.draw_rule(settings, drop_transform=True)
    records, scores, evidence = [], [], []
    left_out: list[tuple[Record, str]] = []
    for record in source.records.values():
        found = _label(source, record, spans.get(record.question_id, ()))
        if isinstance(found, str):
            left_out.append((record, found))
        else:
            records.append(record)
            scores.append(found[0])
            evidence.append(found[1])
    table = measure(scores, evidence, rule, MEASURES)
    groups = {} if by is None else {str(getattr(r, by)) for r in source.records.values()}

    def is_in(record: Record, group: str) -> bool:
        return by is None or group == ALL or str(getattr(record, by)) == group

    for group in [ALL, *sorted(groups)]:
        inside_Q = np.array([is_in(record, group) for record in records], dtype=bool)
        videos = [record.video_id for record in records if is_in(record, group)]
        yield QualityRow(
            scorer=name,
            key=source.info.key,
            kind=source.info.kind,
            score_transform=rule.score_transform,
            group=group,
            num_used=len(videos),
            num_videos=len(set(videos)),
            left_out=dict(Counter(why for record, why in left_out if is_in(record, group))),
            measures={
                name: mean_interval(values_Q[inside_Q], clusters=videos)
                for name, values_Q in table.items()
            },
        )


def _label(
    source: ScoreSource, record: Record, spans: Spans
) -> tuple[np.ndarray, np.ndarray] | str:
    """Return a question's scores [F] and evidence flags [F], or why it cannot be measured."""
    if not spans:
        return NO_SPANS
    if record.video_id not in source.pools:
        return NO_FRAMES
    found = source.scores.get(record.question_id)
    pts_seconds_F = source.pools[record.video_id]
    if found is None and record.question_id in source.scores.stale:
        return STALE
    if found is None or len(found.scores_F) != len(pts_seconds_F):
        return NO_SCORES
    if not np.isfinite(found.scores_F).all():
        return NOT_FINITE
    evidence_F = evidence_mask(pts_seconds_F, spans)
    if not evidence_F.any():
        return COVERS_NOTHING
    if evidence_F.all():
        return COVERS_ALL
    return found.scores_F, evidence_F
