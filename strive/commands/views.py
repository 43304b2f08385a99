"""What the offline stage's results look like on a terminal."""

import shlex
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from strive.progress import number_text, size_text, time_text
from strive.report.format import facts_table

if TYPE_CHECKING:
    from strive.pipeline.summary import PrecomputeSummary
    from strive.train.loop import TrainSummary

_SHOWN_REDONE = 5


def print_precompute(summary: "PrecomputeSummary", console: Console) -> None:
    """Print what a precompute call did and what the cache now holds of what was asked for."""
    table = facts_table(f"Cache {escape(str(summary.cache))}")
    failed = ", ".join(
        f"{count} {escape(error)}" for error, count in sorted(summary.failed_by_error.items())
    )
    table.add_row(
        "videos",
        f"{summary.num_ok} of {summary.num_videos} ok" + (f", failed: {failed}" if failed else ""),
    )
    unscored = ", ".join(
        f"{count} {escape(error)}"
        for error, count in sorted(summary.failed_questions_by_error.items())
    )
    table.add_row(
        "questions",
        f"{summary.num_questions}" + (f", not scored: {unscored}" if unscored else ""),
    )
    if summary.num_bad_rows:
        table.add_row("bad rows", f"{summary.num_bad_rows} left out (--skip-bad-records)")
    if summary.notes:
        noted = ", ".join(f"{count} {note}" for note, count in summary.notes.most_common())
        table.add_row("notes", f"{noted} (docs/files.md)")
    if summary.redone:
        names = ", ".join(summary.redone[:_SHOWN_REDONE])
        more = len(summary.redone) - _SHOWN_REDONE
        table.add_row(
            "redone",
            f"{len(summary.redone)} turned, mirrored or repaired by older rules: "
            + escape(names + (f" and {more} more" if more > 0 else "")),
        )
    if summary.num_image_rows:
        table.add_row("image rows", f"{summary.num_image_rows} passed over")
    if summary.subset_file is not None:
        table.add_row("sample", f"ids in {escape(str(summary.subset_file))}")
    for name, share in summary.truncated_share.items():
        text = "" if share is None else f", text cut in {share:.1%} of the questions"
        table.add_row(f"scorer {escape(name)}", f"{summary.scorer_keys.get(name, '')}{text}")
        _add_peak(table, summary, name)
    if summary.num_unscorable:
        table.add_row(
            "no score", f"{summary.num_unscorable} questions that a scorer cannot score (no spans)"
        )
    _add_unmatched(table, summary)
    if summary.nothing_to_do:
        text = "nothing to do: the cache is complete for this call"
        if failed or unscored:
            # What has failed is not there: the cache is not complete, and there is something to do.
            text = (
                "nothing new: what failed before is tried again when its file or text changes, or "
                "now with --retry-failed"
            )
        table.add_row("this run", text)
        table.add_row("time", time_text(summary.total_seconds))
    else:
        _add_this_run(table, summary)
    if failed or unscored:
        table.add_row(
            "what to do", f"strive-cli cache failures --cache {escape(str(summary.cache))}"
        )
    console.print(table)


def _add_peak(table: Table, summary: "PrecomputeSummary", name: str) -> None:
    """Add how far from uniform training would draw from a scorer's scores."""
    peak = summary.peaks.get(name)
    if peak is not None:
        way_out = (
            f"; strive-cli inspect-scores --scorer {name} --suggest-temperature"
            if peak.is_flat
            else ""
        )
        text = escape(f"{summary.draws}: {peak.text}{way_out}")
        label = f"importance {escape(name)}" if summary.estimate else "  importance"
        table.add_row(label, f"[yellow]{text}[/]" if peak.is_flat else text)


def _add_unmatched(table: Table, summary: "PrecomputeSummary") -> None:
    if summary.unmatched is not None:
        table.add_row("solutions", f"[yellow]{escape(summary.unmatched.text())}[/]")


def _add_this_run(table: Table, summary: "PrecomputeSummary") -> None:
    """Add what one call did and where its time went."""
    repaired = f", {summary.num_repaired} of them repaired" if summary.num_repaired else ""
    table.add_row(
        "this run",
        f"{summary.num_decoded} decoded{repaired}, {summary.num_embedded} embedded, "
        f"{summary.num_scored} questions scored, {size_text(summary.bytes_written)} written",
    )
    if summary.engine != "local":
        table.add_row("engine", escape(summary.engine))
    table.add_row("time", time_text(summary.total_seconds))
    shares = summary.time_shares
    for name, seconds, text in (
        ("decode", summary.decode_seconds, f"of {summary.num_workers} workers' time"),
        ("prepare", summary.prepare_seconds, "of the run"),
        ("embed", summary.embed_seconds, "of the run"),
        ("write", summary.write_seconds, "of the run"),
    ):
        if seconds:
            table.add_row(f"  {name}", f"{time_text(seconds)}, {shares[name]:.0%} {text}")
    if summary.bottleneck:
        table.add_row("slowest", summary.bottleneck)


def print_estimate(summary: "PrecomputeSummary", console: Console) -> None:
    """Print what a precompute call would cost."""
    estimate = summary.estimate
    assert estimate is not None
    table = facts_table("Estimate; nothing was written")
    table.add_row(
        "to do",
        f"{estimate.num_videos_to_decode} videos to decode, {estimate.num_videos_to_embed} to "
        f"embed, {estimate.num_questions_to_score} questions to score",
    )
    table.add_row(
        "time", f"about {time_text(estimate.seconds)} with {estimate.num_workers} workers"
    )
    table.add_row(
        "disk",
        f"about {size_text(estimate.bytes_on_disk)}; {size_text(estimate.bytes_free)} are free",
    )
    table.add_row(
        "measured on",
        f"{estimate.num_videos_tried} videos ({estimate.num_tried_failed} failed): each "
        f"{estimate.decode_seconds_per_video:.2f} s to decode, "
        f"{estimate.embed_seconds_per_video:.2f} s to embed",
    )
    for name in summary.peaks:
        _add_peak(table, summary, name)
    _add_unmatched(table, summary)
    console.print(table)


def print_training(summary: "TrainSummary", console: Console) -> None:
    """Print where a finished run is and its last step's figures."""
    last = summary.last_metrics
    table = facts_table(f"Run {escape(str(summary.run_dir))}")
    table.add_row("policy", f"{escape(str(summary.final))} (a Hugging Face folder)")
    done = summary.num_steps - summary.first_step
    table.add_row(
        "steps",
        f"{summary.num_steps} ({done} in this call, {time_text(summary.seconds)}, "
        f"{summary.num_questions} questions)",
    )
    rewards = ", ".join(
        f"{escape(name.removeprefix('reward/'))} {_figure(value)}"
        for name, value in last.items()
        if name.startswith("reward/") and name != "reward/mean"
    )
    if last:
        table.add_row(
            "last step",
            f"reward {_figure(last['reward/mean'])} ({rewards}), group std "
            f"{_figure(last['group/reward_std'])}, zero-std groups "
            f"{last['group/zero_std_fraction']:.0%}, "
            f"gradient norm {_figure(last['optim/grad_norm'])}",
        )
    best = summary.best
    if best is not None:
        table.add_row(
            "best",
            f"held-out {best.metric} {best.value:.1%} after step {best.step}: "
            f"{escape(str(summary.run_dir / 'best'))}",
        )
    table.add_row("look", f"strive-cli report {escape(shlex.quote(str(summary.run_dir)))}")
    console.print(table)


def _figure(value: float | None) -> str:
    """A metric, which is null where it does not apply: no reward was given, for one."""
    return "none" if value is None else number_text(value, 3)
