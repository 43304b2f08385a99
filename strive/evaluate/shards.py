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
    summarise_samples,
    write_results,
)
from strive.evaluate.samples import read_samples, rewrite_samples
from strive.files import write_atomically
from strive.progress import say

Shard = tuple[int, int]


def shard_folder(out: Path, shard: Shard) -> Path:
    """Return where one part's answers lie."""
    return out / "shards" / f"{shard[0]}of{shard[1]}"


def join_shards(
    out: Path, shard: Shard, num_questions: Mapping[str, int]
) -> EvaluationResults | None:
    """Say that this part is done, and join all parts if it was the last one.

    `num_questions` counts each benchmark's questions over all parts. Returns None, and says which,
    while other parts are missing or were asked fewer questions.
    """
    index, count = shard
    asked = {name: num_questions[name] for name in sorted(num_questions)}
    write_atomically(shard_folder(out, shard) / "part.json", json.dumps(asked), knob="--out")
    folders = [shard_folder(out, (i, count)) for i in range(count)]
    waiting = [i for i, folder in enumerate(folders) if not _is_done(folder, asked)]
    if waiting:
        missing = ", ".join(f"{i}/{count}" for i in waiting)
        say(f"part {index}/{count} is done; the results come with the last of: {missing}")
        return None
    found: list[dict[str, Any]] = [read_results(folder) for folder in folders]
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


def _is_done(folder: Path, asked: Mapping[str, int]) -> bool:
    """Whether a part answered its share of the same questions."""
    part = folder / "part.json"
    return part.is_file() and read_json_object(part) == asked
