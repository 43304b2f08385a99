"""Several processes, on one machine or many, that answer parts of one evaluation.

Each part is a whole evaluation folder under `OUT/shards/`; the process that finds all of them
finished joins them into `OUT`. Joining twice changes nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strive.evaluate.benchmarks import RECORDS, grader_of
from strive.evaluate.items import Failure
from strive.evaluate.results import (
    EvaluationResults,
    read_json_object,
    read_results,
    require_same,
    summarise_samples,
    write_results,
)
from strive.evaluate.samples import read_samples, rewrite_samples
from strive.files import write_atomically
from strive.progress import say

Shard = tuple[int, int]
PART = "part.json"
"""A part's word that it is done, with what it was asked."""


def shard_folder(out: Path, shard: Shard) -> Path:
    """Return where one part's answers lie."""
    return out / "shards" / f"{shard[0]}of{shard[1]}"


def start_shard(out: Path, shard: Shard) -> Path:
    """Return where one part's answers lie; it is not done until it says so again."""
    folder = shard_folder(out, shard)
    (folder / PART).unlink(missing_ok=True)
    return folder


def join_shards(out: Path, shard: Shard, questions: Mapping[str, str]) -> EvaluationResults | None:
    """Say that this part is done, and join all parts if it was the last one.

    `questions` tells each benchmark's questions over all parts from others. Returns None, and says
    which, while other parts are missing or were asked other questions.

    Raises:
        ConfigError: a part was asked with other settings.
    """
    index, count = shard
    asked = dict(sorted(questions.items()))
    write_atomically(shard_folder(out, shard) / PART, json.dumps(asked), knob="--out")
    folders = [shard_folder(out, (i, count)) for i in range(count)]
    waiting = [i for i, folder in enumerate(folders) if not _is_done(folder, asked)]
    if waiting:
        missing = ", ".join(f"{i}/{count}" for i in waiting)
        say(f"part {index}/{count} is done; the results come with the last of: {missing}")
        return None
    found: list[dict[str, Any]] = [read_results(folder) for folder in folders]
    for folder, part in zip(folders, found, strict=True):
        require_same(folder, part["settings"], found[index]["settings"])
    rows = [row for results in found for row in results["benchmarks"]]
    benchmarks = {row["benchmark"]: grader_of(row.get("graded_by", RECORDS)) for row in rows}
    samples = [
        s for folder in folders for s in read_samples(folder / "samples.jsonl", or_none=True)
    ]
    results = summarise_samples(
        benchmarks,
        samples,
        [Failure(**row) for results in found for row in results["failures"]],
        settings=found[index]["settings"],
        versions=found[index]["versions"],
        grading=found[index]["grading"],
        num_resumed=sum(results["num_resumed"] for results in found),
        seconds=max(results["seconds"] for results in found),
    )
    settings = json.dumps(results.settings, indent=2, ensure_ascii=False) + "\n"
    write_atomically(out / "settings.json", settings, knob="--out")
    rewrite_samples(out / "samples.jsonl", samples)
    write_results(out, results)
    return results


def _is_done(folder: Path, asked: Mapping[str, str]) -> bool:
    """Whether a part answered its share of the same questions."""
    part = folder / PART
    is_there = part.is_file() and (folder / "results.json").is_file()
    return is_there and read_json_object(part) == asked
