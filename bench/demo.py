"""What `strive-cli demo` ends with, for the README. What is there of a demonstration is kept.

python -m bench.demo --workspace strive-workspace
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.harness import write_result
from strive.evaluate.compare import compare
from strive.evaluate.results import read_results
from strive.report.format import markdown_table
from strive.report.tables import (
    EVALUATION_HEADERS,
    EvaluatedModel,
    accuracy,
    evaluation_rows,
)

MODELS = ("untrained", "GRPO", "STRIVE")


def read_figures(evaluations: Path) -> dict[str, Any]:
    """Read a demonstration's table, and the paired difference of its two trainings."""
    outs = {name: evaluations / name.lower() for name in MODELS}
    start = outs["untrained"] / "uniform"
    models = [
        EvaluatedModel(
            name=name,
            results=read_results(out / "uniform"),
            change=None if name == "untrained" else compare(out / "uniform", start).overall,
            blind=read_results(out / "blank"),
            evidence=read_results(out / "evidence"),
        )
        for name, out in outs.items()
    ]
    between = compare(outs["STRIVE"] / "uniform", outs["GRPO"] / "uniform").overall
    asked = accuracy(models[0].results)
    assert asked is not None
    return {
        "headers": list(EVALUATION_HEADERS),
        "rows": evaluation_rows(models),
        "strive_minus_grpo": [between.difference, between.low, between.high],
        "num_questions": asked["num_questions"],
        "num_videos": asked["num_videos"],
    }


def readme_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """The README's table, and what it does not say."""
    figures = result["figures"]
    difference, low, high = figures["strive_minus_grpo"]
    yield ""
    yield from markdown_table(figures["headers"], figures["rows"]).rstrip("\n").split("\n")
    yield ""
    yield (
        f"Accuracy in percent ± one standard error, on {figures['num_questions']} questions about "
        f"{figures['num_videos']} videos"
    )
    yield (
        f"that no training saw; changes are paired by question. STRIVE minus GRPO is "
        f"{difference:+.1f} points"
    )
    yield (
        f"({low:+.1f} to {high:+.1f}): **one seed of each, as here, cannot tell the two methods "
        "apart.** It shows"
    )
    yield "that the way works, on tiny models and synthetic clips; nothing follows for 7B models."
    yield ""


def main() -> None:
    """Run the demonstration and write what it ended with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, default=Path("strive-workspace"))
    workspace = parser.parse_args().workspace
    command = [sys.executable, "-m", "strive.cli", "demo", "--workspace", str(workspace)]
    subprocess.run(command, check=True)
    figures = read_figures(workspace / "demo" / "evaluations")
    packages = ("strive-rl", "torch", "transformers", "deepspeed")
    print(f"wrote {write_result('demo', figures, packages=packages)}")


if __name__ == "__main__":
    main()
