"""`cache info`, `cache failures`, `cache verify` and `cache prune`."""

import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from strive.commands.common import (
    CacheOption,
    JsonOption,
    WorkspaceOption,
    find_cache,
    make_console,
    option,
    print_json,
    print_result,
    show,
)
from strive.errors import FAILURE_KINDS, ConfigError, way_out
from strive.files import plain_json
from strive.progress import size_text
from strive.report.format import count_of, counts_text, facts_table, titled_table

if TYPE_CHECKING:
    from strive.cache.care import CacheInfo, Contents

SHOWN_PATHS = 20
"""As many files as a dry run lists by name; the rest are counted."""


def cache_info(
    cache: CacheOption = None, as_json: JsonOption = False, workspace: WorkspaceOption = None
) -> None:
    """Show a cache's keys, counts and sizes."""
    from strive.cache.care import cache_info as describe

    print_result(describe(find_cache(cache, workspace)), print_cache_info, as_json=as_json)


def cache_failures(
    cache: CacheOption = None, as_json: JsonOption = False, workspace: WorkspaceOption = None
) -> None:
    """What failed: which video or question, why, what to do."""
    from strive.cache.failures import read_failures
    from strive.cache.layout import open_cache

    layout = open_cache(find_cache(cache, workspace))
    rows = [
        {
            "video": failure.video_id,
            "question": failure.question_id,
            "stage": failure.stage,
            "kind": failure.error,
            "reason": failure.message,
            "what_to_do": way_out(failure.error),
            "key": failure.key,
        }
        for failure in read_failures(layout)
    ]
    print_result({"root": layout.root, "failures": rows}, print_failures, as_json=as_json)


def cache_verify(
    cache: CacheOption = None,
    video_root: Annotated[
        Path | None,
        option(
            "Also digest the videos under it and list those that changed.", default="not looked at"
        ),
    ] = None,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Check every part and every frame; exit 1 on damage."""
    from strive.cache.verify import check_videos, verify_cache

    root = find_cache(cache, workspace)
    problems = verify_cache(root)
    check = None if video_root is None else check_videos(root, video_root)
    if as_json:
        print_json({"root": str(root), "problems": problems, "videos": plain_json(check)})
    else:
        for problem in problems:
            show(f"damaged: {problem}")
        if check is not None:
            for video_id in check.changed:
                show(
                    f"changed: {video_id} is not the file that was cached; precompute decodes it "
                    "anew"
                )
            num_missing = len(check.missing)
            show(
                f"{video_root}: {check.num_same} videos are as they were cached, "
                f"{len(check.changed)} changed"
                + (f", {num_missing} not there (the cache serves without)" if num_missing else "")
            )
    if problems or (check is not None and check.changed):
        raise typer.Exit(1)
    if not as_json:
        show(f"{root}: every part and frame is whole")


def cache_prune(
    cache: CacheOption = None,
    scorer: Annotated[
        list[str] | None,
        option("Drop this scorer (name or key) with its embeddings. Repeatable.", default="none"),
    ] = None,
    frames_key: Annotated[
        list[str] | None,
        option("Drop this set of frames with its scorers. Repeatable.", default="none"),
    ] = None,
    superseded: Annotated[
        bool,
        option(
            "Also rows and pixels that later ones replace; not while a training reads them.",
            "--superseded",
        ),
    ] = False,
    dry_run: Annotated[
        bool, option("Say what would go and how large it is, then stop.", "--dry-run")
    ] = False,
    yes: Annotated[bool, option("Do not ask before dropping a set.", "--yes", "-y")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Remove leftovers of killed runs, or sets that you name."""
    from strive.cache.care import apply_prune, plan_drop, walk_cache

    root = find_cache(cache, workspace)
    is_drop = bool(scorer or frames_key)
    if is_drop:
        plan = plan_drop(root, scorers=tuple(scorer or ()), frames_keys=tuple(frames_key or ()))
    else:
        plan = walk_cache(root, superseded=superseded)
    if not as_json:
        print_plan(plan, make_console(), names=dry_run or is_drop)
    if is_drop and not (dry_run or yes):
        if not sys.stdin.isatty():
            raise ConfigError("dropping a set asks first, and nobody is there to ask; add --yes")
        typer.confirm("Drop these for good?", abort=True, err=True)
    freed = 0 if dry_run else apply_prune(plan)
    if as_json:
        removals = [
            {
                "path": str(removal.path.relative_to(plan.root)),
                "why": removal.why,
                "num_bytes": removal.num_bytes,
                "rows_kept": None if removal.keep is None else len(removal.keep),
            }
            for removal in plan.removals
        ]
        print_json(
            {
                "root": str(plan.root),
                "num_bytes": plan.num_bytes,
                "num_young": plan.num_young,
                "damaged": list(plan.damaged),
                "removals": removals,
                "dry_run": dry_run,
                "freed_bytes": freed,
            }
        )
    elif plan.removals and not dry_run:
        show(f"freed {size_text(freed)}")
    if plan.damaged:
        raise typer.Exit(1)


# --- what they look like ------------------------------------------------------------------------


def print_cache_info(info: "CacheInfo", console: Console) -> None:
    """Print a cache's sets of frames, scorers and leftovers."""
    failed = counts_text(info.failed_by_error)
    left = "none"
    if info.num_orphan_files:
        left = (
            f"{info.num_orphan_files}, {size_text(info.num_orphan_bytes)}: strive-cli cache prune"
        )
    if info.num_young_files:
        left += f"; {info.num_young_files} of a running or just ended writer"
    facts = {
        "questions": f"{info.num_questions}",
        "failures": f"{failed}: strive-cli cache failures" if failed else "none",
        "leftovers": left,
        "size": f"{size_text(info.num_bytes)}, cache format {info.format_version}",
    }
    console.print(facts_table(f"Cache {escape(str(info.root))}", facts))
    for frames in info.frames:
        facts = {
            "videos": f"{frames.num_videos} with {frames.num_frames} frames",
            "size": size_text(frames.num_bytes),
            "notes": counts_text(frames.notes),
        }
        table = facts_table(f"Frames {escape(frames.key)}", facts)
        for name, value in frames.fields.items():
            if isinstance(value, dict):
                value = ", ".join(
                    str(item) if key in ("name", "kind") else f"{key.replace('_', ' ')} {item}"
                    for key, item in value.items()
                )
            table.add_row(name.replace("_", " "), escape(str(value)))
        console.print(table)
    for size in info.scorers:
        scorer = size.scorer
        facts = {
            "key": escape(scorer.key),
            "scored": f"{scorer.num_questions} questions, kind {scorer.kind}",
            "of frames": escape(scorer.frames_key),
            "size": f"{size_text(size.num_bytes)} with embeddings",
        }
        console.print(facts_table(f"Scorer {escape(scorer.name)}", facts))


def print_failures(found: dict[str, Any], console: Console) -> None:
    """Print each failure, then for each kind what it means and what to do."""
    root, rows = found["root"], found["failures"]
    if not rows:
        console.print(f"{root}: no failures", markup=False, soft_wrap=True)
        return
    names = ("video", "question", "stage", "kind", "reason")
    table = titled_table(f"Cache {escape(str(root))}", names)
    for row in rows:
        table.add_row(*(escape(str(row[name] or "")) for name in names))
    console.print(table)
    ways = titled_table("What to do", ["kind"], ["rows"])
    for name in ("what it is", "what to do"):
        ways.add_column(name, overflow="fold")
    what_to_do = {row["kind"]: row["what_to_do"] for row in rows}
    for kind, count in Counter(row["kind"] for row in rows).most_common():
        known = FAILURE_KINDS.get(kind)
        ways.add_row(escape(kind), str(count), known.reason if known else "", what_to_do[kind])
    console.print(ways)


def print_plan(plan: "Contents", console: Console, *, names: bool) -> None:
    """Print what goes, by reason, and with `names` which files."""
    say_plainly = partial(console.print, markup=False, soft_wrap=True)
    if plan.removals:
        table = titled_table(f"Cache {escape(str(plan.root))}", ["what goes"], ["count", "bytes"])
        for why, (count, num_bytes) in plan.by_reason.items():
            table.add_row(why, str(count), size_text(num_bytes))
        console.print(table)
    else:
        say_plainly(f"{plan.root}: nothing to remove")
    for removal in plan.removals[:SHOWN_PATHS] if names else ():
        shorter = "" if removal.keep is None else f" (rewritten with {len(removal.keep)} rows)"
        path = removal.path.relative_to(plan.root)
        say_plainly(f"  {path}{shorter}, {size_text(removal.num_bytes)}")
    more = len(plan.removals) - SHOWN_PATHS
    if names and more > 0:
        say_plainly(f"  and {more} more")
    if plan.num_young:
        leftovers = count_of(plan.num_young, "leftover")
        console.print(f"not yet: {leftovers}, younger than an hour or of a running precompute")
    for problem in plan.damaged:
        say_plainly(f"left alone: {problem}")
