"""Make docs/performance.md, its plot, and the README's tables, from bench/results.

Nothing is measured here. A result file that is not there is said to be missing.

    python -m bench.performance
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench import demo, performance_offline, performance_step
from bench.harness import RESULTS, flat
from strive.report.format import replace_section

DOCS = Path(__file__).parents[1] / "docs"
README = DOCS.parent / "README.md"
MARK, END_MARK = "<!-- {}: made by `python -m bench.performance` -->", "<!-- made until here -->"
README_TABLES: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "demo": demo.readme_lines,
    "step": performance_step.readme_lines,
}
PLOT = "performance-growth.svg"
Result = Mapping[str, Any]
Lines = Iterator[str]

SECTIONS: tuple[tuple[str, str, Callable[[Result], Lines]], ...] = (
    ("step", "One training step", performance_step.step_lines),
    ("data", "A step's frames", performance_step.data_lines),
    ("growth", "How cost grows with G and M", lambda r: performance_step.growth_lines(r, PLOT)),
    ("decode", "Decoding long clips", performance_offline.decode_lines),
    ("precompute", "The offline stage as a whole", performance_offline.precompute_lines),
    ("scale", "Ten times the clips", performance_offline.scale_lines),
    ("embed", "The embed loop", performance_offline.embed_lines),
    ("evaluate", "A whole evaluation", performance_offline.evaluate_lines),
    ("jpeg", "What JPEG does to scores", performance_offline.jpeg_lines),
)
GPU_NOTE = """A step of the 7B shapes with random weights and a LoRA adapter. *First seconds* holds
compiling, once a run. The floor of decoding is what reading all weights and the cache once per
token allows. Random weights with a head as sharp as a trained one make rounding in bfloat16 show
most in *rollout mismatch*."""
INTRODUCTION = """# Performance

<!-- Made by `python -m bench.performance` from bench/results/*.json. Do not edit. -->

`make bench` measures everything on this page and makes the page; each program also runs alone.
Contenders take turns, and the figures are medians. A ratio says how many times as much the other
one takes as ours: above 1 ours is faster, or smaller. Ratios move by some percent from run to run,
and more from machine to machine; seconds of two machines cannot be compared at all.
"""


def read_results(folder: Path = RESULTS) -> dict[str, Result]:
    """Read every result file, by name."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {result["name"]: result for result in found}


def page(results: Mapping[str, Result]) -> str:
    """Make the whole page."""
    lines = [INTRODUCTION]
    for name, title, section in SECTIONS:
        lines += [f"## {title}", ""]
        if name in results:
            lines += [*section(results[name]), "", origin(results[name]), ""]
        else:
            lines += [f"Not measured yet: `python -m bench.{name}` does.", ""]
    lines += ["## On a GPU", "", *gpu_lines(results)]
    return "\n".join(lines).rstrip() + "\n"


def origin(result: Result) -> str:
    """Say where a result is from: command, date, machine, versions."""
    machine = result["machine"]
    where = [
        machine["processor"],
        *([machine["gpu"]] if "gpu" in machine else []),
        f"{machine['cores']} cores",
        f"{machine['memory_gib']:g} GiB",
    ]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    others = result["figures"].get("cpu_share_of_others")
    busy = "" if others is None else f" Other processes took {others:.1%} of the CPU time."
    return f"`{result['command']}`, {result['date']}, {', '.join(where)}; {versions}.{busy}"


def gpu_lines(results: Mapping[str, Result]) -> Lines:
    """What the check on a GPU found, and whatever was measured there, figure by figure."""
    on_gpu = [result for result in results.values() if result["figures"].get("on_gpu")]
    if "gpu_check" in results:
        parts = results["gpu_check"]["figures"]
        yield from ("| part of [the check](gpu.md) | | seconds |", "|---|---|---|")
        for name, part in parts.items():
            yield f"| {name} | {'right' if part['ok'] else 'wrong'} | {part['seconds']} |"
        yield from ("", origin(results["gpu_check"]), "")
    if not on_gpu:
        yield "Not measured yet. Everything above ran on a CPU."
        return
    yield from (GPU_NOTE, "")
    for result in on_gpu:
        yield from ("| figure | value |", "|---|---|")
        for name, value in flat(result["figures"]):
            yield f"| {name} | {value} |"
        yield from ("", origin(result), "")


def with_tables(readme: str, results: Mapping[str, Result]) -> str:
    """Put each table of `README_TABLES` between its two marks."""
    for name, table in README_TABLES.items():
        lines = table(results[name]) if name in results else ()
        readme = replace_section(readme, MARK.format(name), END_MARK, "\n".join(lines))
    return readme


def main() -> None:
    """Write the page, the plot and the table."""
    results = read_results()
    if "growth" in results:
        performance_step.plot_growth(results["growth"], DOCS / PLOT)
    path = DOCS / "performance.md"
    path.write_text(page(results), encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    README.write_text(with_tables(readme, results), encoding="utf-8")
    missing = [name for name, _, _ in SECTIONS if name not in results]
    print(f"wrote {path}" + (f"; not measured yet: {', '.join(missing)}" if missing else ""))


if __name__ == "__main__":
    main()
