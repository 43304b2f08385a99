"""What a terminal shows of scores: a cache, some questions, one question, two scorers compared."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from strive.answers import extract_answer_or_text
from strive.report.compare import QuestionComparison, ScorerComparison
from strive.report.format import COMPACT, add_facts, facts_table, number, percent, titled_table
from strive.report.inspect import (
    DatasetSummary,
    QuestionStats,
    QuestionView,
    ScorerSummary,
    ScoreSource,
    Suggestion,
)

BARS = "▁▂▃▄▅▆▇█"
LABEL_WIDTH = 11
VARIANT_STYLES = ("bold dark_orange3", "bold dodger_blue2", "bold magenta", "bold green4")
SCORER_STYLES = (("cyan", "bright_cyan"), ("magenta", "bright_magenta"))


# --- the dataset --------------------------------------------------------------------------------


def print_summary(summary: DatasetSummary, console: Console) -> None:
    """Print what a cache holds."""
    console.print(_cache_table(summary))
    for row in summary.scorers:
        console.print(_scorer_table(row, summary))
    if not summary.scorers:
        console.print(
            f"No scores yet; make them with: strive-cli precompute --cache {escape(summary.cache)} "
            "--scorer siglip2",
            soft_wrap=True,
        )
    for problem in summary.problems:
        console.print(f"[bold red]problem[/] {escape(problem)}")


def _cache_table(summary: DatasetSummary) -> Table:
    failed = summary.num_videos_named - summary.num_videos_ok - summary.num_videos_pending
    pending = f", {summary.num_videos_pending} not tried yet" if summary.num_videos_pending else ""
    videos = f"{summary.num_videos_ok} of {summary.num_videos_named} cached, {failed} failed"
    table = facts_table(f"Cache {escape(summary.cache)}", {"videos": videos + pending})
    for error, count in sorted(summary.failures_by_error.items(), key=lambda item: -item[1]):
        table.add_row("  failure", f"[red]{escape(error)}[/]: {count}")
    types = ", ".join(f"{name} {n}" for name, n in sorted(summary.questions_by_type.items()))
    no_frames, known = summary.num_questions_without_frames, summary.num_questions_with_evidence
    short = (
        f"{summary.num_videos_short} with fewer frames than the {summary.settings.num_segments} "
        "segments, so all variants show all of them"
    )
    repeated = summary.num_videos_with_repeated_frames
    facts = {
        "questions": f"{summary.num_questions}  ({types})" if types else "0",
        "  no frames": f"{no_frames} questions" if no_frames else "",
        "  evidence": f"span known for {known}" if known else "",
        "frames": _histogram(summary.frames_per_video),
        "  short": short if summary.num_videos_short else "",
        "  repeated": f"{repeated} videos" if repeated else "",
        "duration": f"{summary.duration_seconds_total:.1f} s in all",
        "frames key": escape(summary.frames_key or "–"),
    }
    if summary.num_frames_keys > 1:
        facts["  one of"] = f"{summary.num_frames_keys} sets (strive-cli cache info)"
    add_facts(table, facts)
    return table


def _histogram(frames_per_video: dict[int, int], num_bins: int = 4) -> str:
    """`64 frames x 100` for few distinct counts, ranges otherwise."""
    if not frames_per_video:
        return "none"
    counts = list(frames_per_video.items())
    if len(counts) > num_bins:
        lows = np.linspace(counts[0][0], counts[-1][0] + 1, num_bins + 1).astype(int)
        binned = []
        for low, high in pairwise(lows.tolist()):
            total = sum(videos for frames, videos in counts if low <= frames < high)
            label = f"{low}" if high - low == 1 else f"{low}-{high - 1}"
            binned.append(f"{label}: {total}")
        return "per video  " + "   ".join(binned)
    return "per video  " + "   ".join(f"{frames}: {videos}" for frames, videos in counts)


def _scorer_table(row: ScorerSummary, summary: DatasetSummary) -> Table:
    settings = summary.settings
    missing = f", [yellow]{row.num_missing} without current scores[/]" if row.num_missing else ""
    stale = (
        f"[yellow]{row.num_stale} have scores of an earlier text or of earlier frames; "
        "precompute makes them anew[/]"
    )
    rule = f"{settings.num_segments} segments, weights normalised in each"
    if row.kind != "weight":
        rule = (
            f"{settings.num_segments} segments, frame_temperature {settings.frame_temperature:g}, "
            f"score_transform {row.score_transform}"
        )
    constant = f"[yellow]{percent(row.constant_share)} of questions[/]"
    peak = row.peak.text if row.peak is not None else ""
    overlap = f"{percent(row.expected_overlap)} of frames shared by two variants"
    evidence = (
        f"ROC-AUC {number(row.evidence_auc)}, lift {number(row.evidence_lift, 2)} over "
        f"{row.num_with_evidence} questions"
    )
    facts = {
        "scored": f"{row.num_scored} questions{missing}",
        "  stale": stale if row.num_stale else "",
        "scores": f"mean {number(row.score_mean)}  std {number(row.score_std)}  "
        f"min {number(row.score_min)}  max {number(row.score_max)}",
        "in a segment": f"std {number(row.within_segment_std, 4)}",
        "constant": constant if row.constant_share > 0 else "",
        "text cut": f"{percent(row.truncated_share)} of questions",
        "P(t)": rule,
        "  effective": f"{number(row.effective_frames, 2)} frames a segment, "
        f"{percent(row.effective_share)} of uniform",
        "  peak": f"[yellow]{peak}[/]" if row.peak is not None and row.peak.is_flat else peak,
        "  flat": f"{percent(row.flat_share)} of questions (peak within 10 % of uniform)",
        "  overlap": overlap if settings.num_variants > 1 else "",
        "evidence": evidence if row.num_with_evidence else "",
        "key": escape(row.key),
    }
    return facts_table(f"Scorer {escape(row.name)}", facts)


def print_suggestions(
    suggestions: Sequence[Suggestion], source: ScoreSource, console: Console
) -> None:
    """Print the tau to use under each transform, what it does, and how training is told."""
    table = titled_table(
        f"Scorer {escape(source.info.name)}: where the best frame has P 0.5",
        ["score_transform"],
        ["frame_temperature", "P", "uniform", "overlap", "questions"],
    )
    for row in suggestions:
        if row.peak is None:
            table.add_row(row.score_transform, "none does it", *["–"] * 4)
            continue
        table.add_row(
            row.score_transform,
            f"{row.frame_temperature:g}",
            number(row.peak.probability, 2),
            number(row.peak.uniform, 2),
            percent(row.peak.overlap),
            str(row.peak.num_questions),
        )
    console.print(table)
    known = [row for row in suggestions if row.peak is not None]
    if known:
        console.print(
            f"in training: --set frame_temperature={known[0].frame_temperature:g} --set "
            f"score_transform={known[0].score_transform}",
            soft_wrap=True,
        )


# --- several questions --------------------------------------------------------------------------


def print_questions(rows: Sequence[QuestionStats], console: Console, *, title: str) -> None:
    """Print one line a question."""
    if not rows:
        console.print(f"{escape(title)}: none")
        return
    table = titled_table(escape(title))
    table.add_column("question", no_wrap=True, max_width=16)
    # The figures keep their widths; the text of the question gets what is left of the line.
    problem_width = max(12, console.width - 72)
    table.add_column("problem", no_wrap=True, overflow="ellipsis", max_width=problem_width)
    for name, width in (("range", 6), ("effective", 11), ("overlap", 7), ("text", 7), ("AUC", 4)):
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    for row in rows:
        tokens = "–" if row.num_text_tokens is None else str(row.num_text_tokens)
        table.add_row(
            escape(row.question_id),
            escape(" ".join(row.problem.split())),
            number(row.score_max - row.score_min),
            f"{row.effective_frames:.2f} ({100 * row.effective_share:.0f}%)",
            percent(row.expected_overlap),
            f"{tokens} cut" if row.text_truncated else tokens,
            number(row.evidence_auc, 2),
        )
    console.print(table)


# --- one question -------------------------------------------------------------------------------


def print_question(view: QuestionView, console: Console, *, top: int = 8) -> None:
    """Print one question: its text, score curve, P(t), the variants' picks and the top frames."""
    record = view.record
    text = Text(" ".join(record.problem.split()), style="bold")
    gold = extract_answer_or_text(record.solution)
    for option in record.options:
        is_gold = option.startswith(gold)
        text.append(f"\n  {option}", style="green" if is_gold else "not bold")
        if is_gold:
            text.append("  ✓", style="green")
    if not record.options:
        text.append(f"\n  solution: {gold}", style="green")
    lines = [text, Text()]
    for start, end, scale in _stretches(len(view.scores_F), console.width - 4):
        lines += _curve_rows(view, start, end, scale)
    _print_panel([*lines, _measures(view)], view, console)
    console.print(_top_frames(view, top))


def _print_panel(lines: Sequence[Text], view: QuestionView, console: Console) -> None:
    title = f"question {escape(view.record.question_id)} · {escape(view.record.video_id)}"
    console.print(Panel(Group(*lines), title=title, title_align="left"))


def _stretches(num_frames: int, width: int) -> Iterator[tuple[int, int, int]]:
    """Yield the stretches of the pool that fit beside the labels, and the columns of a frame."""
    columns = max(8, width - LABEL_WIDTH)
    scale = 2 if num_frames * 2 <= columns else 1
    for start in range(0, num_frames, columns // scale):
        yield start, min(start + columns // scale, num_frames), scale


def sparkline(values: Sequence[float] | np.ndarray, low: float, high: float) -> str:
    """One block character a value, from `low` to `high`; equal bounds give the lowest block."""
    span = high - low
    if span <= 0:
        return BARS[0] * len(values)
    return "".join(
        BARS[int(np.clip((value - low) / span * len(BARS), 0, len(BARS) - 1))] for value in values
    )


def _bars(view: QuestionView, start: int, end: int) -> tuple[str, str]:
    """Return the blocks of a stretch's scores, over their own range, and of its P(t), from 0."""
    scores_F, p_F = view.scores_F, view.probabilities_F
    return (
        sparkline(scores_F[start:end], float(scores_F.min()), float(scores_F.max())),
        sparkline(p_F[start:end], 0.0, float(p_F.max())),
    )


def _segments(view: QuestionView) -> np.ndarray:
    """Number of the segment that each frame is of."""
    return np.repeat(np.arange(len(view.bounds_K2)), np.diff(view.bounds_K2, axis=1)[:, 0])


def _curve_rows(view: QuestionView, start: int, end: int, scale: int) -> list[Text]:
    segment_F = _segments(view)[start:end]
    score_bars, p_bars = _bars(view, start, end)
    rows = [
        _row("score", score_bars, scale, ("cyan", "bright_cyan"), segment_F),
        _row("P(t)", p_bars, scale, ("yellow", "bright_yellow"), segment_F),
    ]
    for variant, picks_K in enumerate(view.picks_MK):
        picked = set(picks_K.tolist())
        marks = "".join("▲" if index in picked else "·" for index in range(start, end))
        style = VARIANT_STYLES[variant % len(VARIANT_STYLES)]
        rows.append(_row(f"variant {variant + 1}", marks, scale, (style,)))
    if view.evidence_F is not None:
        rows.append(_evidence_row(view.evidence_F[start:end], scale))
    rows.append(_axis(view, start, end, scale))
    return rows


def _evidence_row(evidence_F: np.ndarray, scale: int) -> Text:
    marks = "".join("━" if is_evidence else " " for is_evidence in evidence_F)
    return _row("evidence", marks, scale, ("bold green",))


def _row(
    label: str,
    marks: str,
    scale: int,
    styles: tuple[str, ...],
    segment_F: np.ndarray | None = None,
) -> Text:
    """One row of the chart: a label and a mark a frame, the segments in turn in two styles."""
    short = label if len(label) < LABEL_WIDTH else label[: LABEL_WIDTH - 2] + "…"
    row = Text(short.ljust(LABEL_WIDTH), style="dim", no_wrap=True)
    for index, mark in enumerate(marks):
        style = styles[0] if segment_F is None else styles[int(segment_F[index]) % 2]
        # A pick is one frame: its second column stays empty.
        cell = mark + (" " if mark in "▲·" else mark) * (scale - 1)
        row.append(cell, style=f"not dim {style}" if mark != "·" else "dim")
    return row


def _axis(view: QuestionView, start: int, end: int, scale: int) -> Text:
    """Times below the columns, as many as fit."""
    width = (end - start) * scale
    cells = [" "] * (width + 8)
    column = 0
    while column <= width - 6:
        label = f"|{view.video.pts_seconds_F[start + column // scale]:.1f}s"
        cells[column : column + len(label)] = label
        column += 16 if width > 40 else max(8, width // 2)
    return Text(" " * LABEL_WIDTH + "".join(cells).rstrip(), style="dim", no_wrap=True)


def _measures(view: QuestionView) -> Text:
    stats, settings = view.stats, view.settings
    rule = f"frame_temperature {settings.frame_temperature:g}, {settings.score_transform}"
    lines = [
        f"scorer {view.scorer_name} ({view.scorer_kind}), {rule}, seed {settings.seed}, "
        f"step {settings.step}",
        f"scores {stats.score_min:.4f} to {stats.score_max:.4f}; effective frames a segment "
        f"{stats.effective_frames:.2f} ({percent(stats.effective_share)} of uniform)",
    ]
    if len(view.picks_MK) > 1:
        lines.append(
            f"overlap of variants: {percent(view.frame_overlap)} here, "
            f"{percent(view.expected_overlap)} expected"
        )
    if view.evidence_seen_M is not None:
        seen = ", ".join(
            f"variant {m + 1} {'sees it' if seen else 'misses it'}"
            for m, seen in enumerate(view.evidence_seen_M)
        )
        lines.append(
            f"evidence: {seen}; ROC-AUC {number(stats.evidence_auc)}, "
            f"lift {number(stats.evidence_lift, 2)}"
        )
    if stats.text_truncated:
        lines.append(f"the scorer cut this text ({stats.num_text_tokens} tokens)")
    return Text("\n" + "\n".join(lines))


def _top_frames(view: QuestionView, top: int) -> Table:
    table = titled_table("Top frames")
    for name in ("frame", "time", "source", "segment", "score", "P(t)", "picked by", "evidence"):
        table.add_column(name, justify="left" if name == "picked by" else "right", no_wrap=True)
    segment_F = _segments(view)
    for index in np.argsort(-view.scores_F, kind="stable")[:top].tolist():
        picked = [f"V{m + 1}" for m, row in enumerate(view.picks_MK) if index in set(row.tolist())]
        evidence = "" if view.evidence_F is None else ("yes" if view.evidence_F[index] else "")
        table.add_row(
            str(index),
            f"{view.video.pts_seconds_F[index]:.2f} s",
            str(view.video.source_index_F[index]),
            str(segment_F[index] + 1),
            f"{view.scores_F[index]:.4f}",
            f"{view.probabilities_F[index]:.3f}",
            " ".join(picked),
            evidence,
        )
    return table


# --- two scorers --------------------------------------------------------------------------------


def print_comparison(comparison: ScorerComparison, console: Console, *, count: int = 5) -> None:
    """Print the agreement over all questions and the questions that differ most."""
    first, second = comparison.first, comparison.second
    num_segments = comparison.settings.num_segments
    left = ", ".join(
        f"{amount} scored by {escape(name)} only"
        for name, amount in (
            (first, comparison.num_only_first),
            (second, comparison.num_only_second),
        )
        if amount
    )
    facts = {"questions": f"{len(comparison.questions)}" + (f"; {left}" if left else "")}
    for name, label, note, show in (
        ("spearman", "Spearman", "ranks of a question's frames", number),
        ("top_k_jaccard", f"Jaccard @{num_segments}", "of the best frames", number),
        ("p_correlation", "P(t) corr.", "over the pool", number),
        ("expected_overlap", "overlap", "frames shared by a variant of each", percent),
    ):
        mean = comparison.means[name]
        facts[label] = f"{show(mean.value)} ± {show(mean.standard_error)}  {note}"
    difference = comparison.auc_difference
    if difference is not None:
        facts["AUC"] = (
            f"{difference.difference:+.3f} ± {number(difference.standard_error)} "
            f"({escape(first)} minus {escape(second)}, {difference.num_pairs} questions)"
        )
    console.print(facts_table(f"{escape(first)} and {escape(second)}", facts))
    has_auc = difference is not None
    table = titled_table("least alike", **COMPACT)
    table.add_column("question", no_wrap=True)
    for name in ("Spearman", "Jaccard", "P corr."):
        table.add_column(name, justify="right", no_wrap=True)
    if has_auc:
        table.add_column("AUCs", justify="right", no_wrap=True)
    table.add_column("text")  # the one that gives way
    for row in comparison.questions[:count]:
        aucs = f"{number(row.first_auc, 2)} {number(row.second_auc, 2)}"
        table.add_row(
            Text(row.question_id), number(row.spearman, 2), number(row.top_k_jaccard, 2),
            number(row.p_correlation, 2), *([aucs] if has_auc else []),
            Text(" ".join(row.problem.split()), no_wrap=True, overflow="ellipsis"),
        )  # fmt: skip
    console.print(table)


def print_compared(
    row: QuestionComparison, views: Sequence[QuestionView], names: Sequence[str], console: Console
) -> None:
    """Print one question: scores and P(t) of both scorers under one another."""
    lines = [Text(" ".join(row.problem.split()), style="bold"), Text("")]
    evidence_F = views[0].evidence_F
    for start, end, scale in _stretches(row.num_frames, max(20, console.width - 4)):
        for name, view, styles in zip(names, views, SCORER_STYLES, strict=True):
            score_bars, p_bars = _bars(view, start, end)
            lines.append(_row(name, score_bars, scale, styles[:1]))
            lines.append(_row("  P(t)", p_bars, scale, styles[1:]))
        if evidence_F is not None:
            lines.append(_evidence_row(evidence_F[start:end], scale))
    aucs = ""
    if not math.isnan(row.first_auc):
        aucs = f"; ROC-AUC {number(row.first_auc, 2)} and {number(row.second_auc, 2)}"
    lines += [
        Text(""),
        Text(
            f"Spearman {number(row.spearman, 2)}, Jaccard {number(row.top_k_jaccard, 2)}, "
            f"P(t) correlation {number(row.p_correlation, 2)}, overlap of variants "
            f"{percent(row.expected_overlap)}{aucs}"
        ),
    ]
    _print_panel(lines, views[0], console)
