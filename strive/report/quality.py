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

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from strive.cache.frames import Pools
from strive.cache.layout import open_cache
from strive.cache.questions import read_questions
from strive.cache.scores import find_scorer, list_scorers
from strive.errors import CacheError, MissingInputError, RecordsError, unknown_name
from strive.records import Record
from strive.report.format import COMPACT, markdown_table, number, percent, titled_table
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
        for item in items:
            if (
                not isinstance(item, list)
                or len(item) != 2
                or any(type(second) not in (int, float) for second in item)
                or not -math.inf < item[0] < item[1] < math.inf
            ):
                raise RecordsError(
                    f"--spans {path}: question '{question_id}' has the span {json.dumps(item)}; "
                    "[start, end] in seconds with start < end is expected"
                )
        spans[question_id] = tuple((float(start), float(end)) for start, end in items)
    return spans


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
    table = measure(scores, evidence, rule)
    groups = {} if by is None else {str(getattr(r, by)) for r in source.records.values()}

    def is_in(record: Record, group: str) -> bool:
        return by is None or group in (ALL, str(getattr(record, by)))

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
                name: mean_interval(table[name][inside_Q], clusters=videos) for name in MEASURES
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


# --- tables -------------------------------------------------------------------------------------

WIDE = 104
"""Columns from which the terminal shows every measure."""
NARROW_LEAVES_OUT = ("recall @n", "lift in pool", "uniform sees")


def _cells(report: QualityReport, row: QualityRow, *, is_wide: bool = True) -> dict[str, str]:
    """Return the cells of a row by their headings."""

    def figure(name: str, digits: int = 2, *, with_error: bool = False) -> str:
        interval = row.measures[name]
        error = f" ± {number(interval.standard_error, digits)}" if with_error else ""
        return number(interval.value, digits) + error

    def share(name: str) -> str:
        return percent(row.measures[name].value, 0)

    cells = {
        "questions" if is_wide else "used": str(row.num_used),
        "ROC-AUC": figure("auc", 3, with_error=True),
        f"recall @{report.settings.num_segments}": figure("recall_at_k"),
        "recall @n": figure("recall_at_evidence"),
        "lift": figure("lift", with_error=is_wide),
        "lift in pool": figure("lift_pool"),
        "sees evidence": share("evidence_seen"),
        "uniform sees": share("evidence_seen_uniform"),
        "effective frames" if is_wide else "eff. frames": figure("effective_frames"),
        "overlap": share("expected_overlap"),
    }
    if is_wide:
        return cells
    return {name: cell for name, cell in cells.items() if name not in NARROW_LEAVES_OUT}


def _left_out(report: QualityReport) -> list[str]:
    """One line for all scorers where they leave out the same questions, else one each."""
    lines: dict[str, list[str]] = {}
    for row in report.rows:
        if row.group == ALL:
            counts = sorted(row.left_out.items(), key=lambda item: -item[1])
            text = ", ".join(f"{count} ({why})" for why, count in counts) or "none"
            lines.setdefault(text, []).append(row.scorer)
    if len(lines) == 1:
        return [f"left out: {text}" for text in lines]
    return [f"left out under {', '.join(names)}: {text}" for text, names in lines.items()]


def _rule(report: QualityReport) -> str:
    s = report.settings
    return (
        f"frame_temperature {s.frame_temperature:g}, score_transform {s.score_transform}, "
        f"K = {s.num_segments}"
    )


def _name(report: QualityReport, row: QualityRow) -> str:
    """A scorer's name, marked where its scores are used without the transform that was asked."""
    return row.scorer + ("*" if row.score_transform != report.settings.score_transform else "")


def _ordered(report: QualityReport) -> list[QualityRow]:
    """All questions first, then group by group; the best scorer of a group on top."""
    groups = list(dict.fromkeys(row.group for row in report.rows))
    return sorted(
        report.rows,
        key=lambda row: (groups.index(row.group), not row.num_used, -row.measures["auc"].value),
    )


def print_quality(report: QualityReport, console: Console) -> None:
    """Print the table, and below it what was measured and what was not."""
    is_wide = console.width >= WIDE
    has_groups = len({row.group for row in report.rows}) > 1
    has_one_scorer = len({row.key for row in report.rows}) == 1
    title = f"Score quality, {escape(report.cache)}"
    headings = _cells(report, report.rows[0], is_wide=is_wide)
    two_lines = [heading.replace(" ", "\n", 1) for heading in headings]
    table = titled_table(title, ["scorer"], two_lines, **COMPACT)
    last = None
    for row in _ordered(report):
        label = _name(report, row)
        if has_groups and has_one_scorer:
            label = f"{label}, {row.group}" if row.group == ALL else f"  {row.group}"
        elif has_groups:
            if row.group != last:
                table.add_row(Text(row.group, style="cyan"))
            label = f"  {label}"
        cells = _cells(report, row, is_wide=is_wide)
        table.add_row(Text(label, style="bold"), *cells.values())
        last = row.group
    console.print(table)
    starred = any(_name(report, row).endswith("*") for row in report.rows)
    lines = [
        f"{report.num_with_spans} of {report.num_questions} questions have spans "
        f"(from {report.spans_from}); ± is the standard error over videos",
        _rule(report) + ("; * weights, used as they are" if starred else ""),
        *_left_out(report),
    ]
    if report.num_unknown_ids:
        lines.append(f"{report.num_unknown_ids} ids of the spans file are not in the cache")
    for line in lines:
        console.print(line, style="dim", markup=False)
    for row in report.rows:
        auc = row.measures["auc"]
        # By more than two standard errors: an AUC near one half is only uninformative.
        if row.group == ALL and auc.value + 2 * auc.standard_error < 0.5:
            console.print(
                f"below chance: {_name(report, row)} scores frames of the evidence lower than "
                "others, so that training would avoid them",
                style="yellow",
                markup=False,
            )


def quality_markdown(report: QualityReport, command: str) -> str:
    """Return the table as GitHub Markdown, with its settings and the command that makes it."""
    has_groups = len({row.group for row in report.rows}) > 1
    first = (["group"] if has_groups else []) + ["scorer"]
    rows = [
        [*([row.group] if has_groups else []), _name(report, row), *_cells(report, row).values()]
        for row in _ordered(report)
    ]
    headings = [*first, *_cells(report, report.rows[0])]
    table = markdown_table(headings, rows, num_texts=len(first))
    starred = any(_name(report, row).endswith("*") for row in report.rows)
    return (
        f"{table}\nSettings: {_rule(report)}. {report.num_with_spans} of {report.num_questions} "
        f"questions have spans; {'; '.join(_left_out(report))}. ± is the standard error, clustered "
        f"by video.{' * Weights, used as they are.' if starred else ''}\n\nMade by `{command}`."
    )
