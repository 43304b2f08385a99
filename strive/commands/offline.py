"""`precompute`, and what its summary and its estimate look like."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from strive.commands.common import (
    LAB_LINE,
    JsonOption,
    WorkspaceOption,
    find_workspace,
    make_console,
    print_json,
    say,
)
from strive.commands.configs import configured
from strive.configs.load import Given
from strive.configs.schema import PrecomputeConfig
from strive.files import plain_json
from strive.progress import size_text, time_text
from strive.report.format import add_facts, counts_text, facts_table
from strive.scorers import SCORERS

if TYPE_CHECKING:
    from strive.pipeline.run import PrecomputeSummary

SHOWN_REDONE = 5

OPTIONS = {
    "Records": "data video_root allow_outside_root filters skip_bad_records subset seed for_config "
    "limit",
    "Scorers": "scorers scorer_models policy query long_text device dtype embed_batch_size",
    "Frames": "frames frame_plan max_pixels frame_codec decoder decode_timeout_seconds repair "
    "max_missing allow_damaged",
    "Running": "cache workers engine shard max_failure_fraction retry_failed overwrite dry_run",
}


@configured(PrecomputeConfig, OPTIONS, choices={"scorers": ", ".join(SCORERS)})
def precompute(
    given: Given, as_json: JsonOption = False, workspace: WorkspaceOption = None
) -> None:
    """Decode videos once, score their frames, fill the cache."""
    from strive.experiments.offline import resolve
    from strive.pipeline.run import precompute as run

    config = resolve(find_workspace(workspace), given, say_lab=lambda: say(LAB_LINE))

    def show(summary: "PrecomputeSummary") -> None:
        if as_json:
            values = plain_json(summary)
            del values["failed"], values["failed_questions"]  # `cache failures` says which failed
            counts = {
                "failed_by_error": summary.failed_by_error,
                "num_failed": summary.num_failed,
                "failed_questions_by_error": summary.failed_questions_by_error,
                "num_failed_questions": len(summary.failed_questions),
            }
            print_json(values | counts)
        elif summary.estimate is not None:
            print_estimate(summary, make_console())
        else:
            print_precompute(summary, make_console())

    # Also called before an error that ends the work, so that what was done is always seen.
    run(config, show)


# --- what they look like --------------------------------------------------------------------------


def print_precompute(summary: "PrecomputeSummary", console: Console) -> None:
    """Print what a precompute call did and what the cache now holds of what was asked for."""
    cache = escape(str(summary.cache))
    failed = counts_text(summary.failed_by_error)
    unscored = counts_text(summary.failed_questions_by_error)
    noted = ", ".join(f"{count} {note}" for note, count in summary.notes.most_common())
    names = ", ".join(summary.redone[:SHOWN_REDONE])
    if len(summary.redone) > SHOWN_REDONE:
        names += f" and {len(summary.redone) - SHOWN_REDONE} more"
    redone = f"{len(summary.redone)} turned, mirrored or repaired by older rules: {escape(names)}"
    bad, images = summary.num_bad_rows, summary.num_image_rows
    facts = {
        "videos": f"{summary.num_ok} of {summary.num_videos} ok"
        + (f", failed: {failed}" if failed else ""),
        "questions": f"{summary.num_questions}" + (f", not scored: {unscored}" if unscored else ""),
        "bad rows": f"{bad} left out (--skip-bad-records)" if bad else "",
        "notes": f"{noted} (docs/files.md)" if noted else "",
        "redone": redone if summary.redone else "",
        "image rows": f"{images} passed over" if images else "",
        "sample": f"ids in {escape(str(summary.subset_file))}" if summary.subset_file else "",
    }
    table = facts_table(f"Cache {cache}", facts)
    for name, share in summary.truncated_share.items():
        text = "" if share is None else f", text cut in {share:.1%} of the questions"
        table.add_row(f"scorer {escape(name)}", f"{summary.scorer_keys.get(name, '')}{text}")
        _add_peak(table, summary, name)
    unscorable = f"{summary.num_unscorable} questions that a scorer cannot score (no spans)"
    facts = {
        "no score": unscorable if summary.num_unscorable else "",
        "solutions": _unmatched_text(summary),
    }
    if not summary.nothing_to_do:
        facts |= _this_run(summary)
    elif failed or unscored:
        # What has failed is not there: the cache is not complete, and there is something to do.
        facts["this run"] = (
            "nothing new: what failed before is tried again when its file or text changes, or "
            "now with --retry-failed"
        )
    else:
        facts["this run"] = "nothing to do: the cache is complete for this call"
    facts.setdefault("time", time_text(summary.total_seconds))
    if failed or unscored:
        facts["what to do"] = f"strive-cli cache failures --cache {cache}"
    add_facts(table, facts)
    console.print(table)


def _add_peak(table: Table, summary: "PrecomputeSummary", name: str) -> None:
    """Add how far from uniform training would draw from a scorer's scores."""
    peak = summary.peaks.get(name)
    if peak is None:
        return
    text = f"{summary.draws}: {peak.text}"
    if peak.is_flat:
        text += f"; strive-cli inspect-scores --scorer {name} --suggest-temperature"
    label = f"importance {escape(name)}" if summary.estimate else "  importance"
    table.add_row(label, f"[yellow]{escape(text)}[/]" if peak.is_flat else escape(text))


def _unmatched_text(summary: "PrecomputeSummary") -> str:
    unmatched = summary.unmatched
    return "" if unmatched is None else f"[yellow]{escape(unmatched.text())}[/]"


def _this_run(summary: "PrecomputeSummary") -> dict[str, str]:
    """Return what one call did and where its time went."""
    repaired = f", {summary.num_repaired} of them repaired" if summary.num_repaired else ""
    facts = {
        "this run": f"{summary.num_decoded} decoded{repaired}, {summary.num_embedded} embedded, "
        f"{summary.num_scored} questions scored, {size_text(summary.bytes_written)} written",
        "engine": escape(summary.engine) if summary.engine != "local" else "",
        "time": time_text(summary.total_seconds),
    }
    shares = summary.time_shares
    for name, seconds, text in (
        ("decode", summary.decode_seconds, f"of {summary.num_workers} workers' time"),
        ("prepare", summary.prepare_seconds, "of the run"),
        ("embed", summary.embed_seconds, "of the run"),
        ("write", summary.write_seconds, "of the run"),
    ):
        if seconds:
            facts[f"  {name}"] = f"{time_text(seconds)}, {shares[name]:.0%} {text}"
    return facts | {"slowest": summary.bottleneck}


def print_estimate(summary: "PrecomputeSummary", console: Console) -> None:
    """Print what a precompute call would cost."""
    estimate = summary.estimate
    assert estimate is not None
    facts = {
        "to do": f"{estimate.num_videos_to_decode} videos to decode, "
        f"{estimate.num_videos_to_embed} to embed, "
        f"{estimate.num_questions_to_score} questions to score",
        "time": f"about {time_text(estimate.seconds)} with {estimate.num_workers} workers",
        "disk": f"about {size_text(estimate.bytes_on_disk)}; "
        f"{size_text(estimate.bytes_free)} are free",
        "measured on": f"{estimate.num_videos_tried} videos ({estimate.num_tried_failed} failed): "
        f"each {estimate.decode_seconds_per_video:.2f} s to decode, "
        f"{estimate.embed_seconds_per_video:.2f} s to embed",
    }
    table = facts_table("Estimate; nothing was written", facts)
    for name in summary.peaks:
        _add_peak(table, summary, name)
    add_facts(table, {"solutions": _unmatched_text(summary)})
    console.print(table)
