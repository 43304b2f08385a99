"""What `strive-cli compare` can find: its power for a true difference of one point, by benchmark.

And how many trainings of each method the differences of the paper's Table 1 would need. From
formulas and assumptions, which the page states; nothing is measured.

    python -m bench.power [--page docs/grading.md]

With `--page` the tables go between their marks there.
"""

import argparse
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from strive.evaluate.paper_rows import SIX, STRIVE_TABLE_1
from strive.report.format import markdown_table, replace_section
from strive.statistics import design_effect, detectable_difference, paired_power, pairs_needed

START, END = "<!-- power -->", "<!-- /power -->"
DISAGREEMENTS = (0.1, 0.2, 0.3)
DISAGREEMENT = 0.2
"""Share of the questions that just one of two policies answers right."""
CORRELATION = 0.1
"""Of the differences of two questions about one video."""
TRAINING_DEVIATION = 0.5
"""Points by which a training as a whole is better or worse by chance, beside single answers."""
DIFFERENCE = 1.0
MAX_SHOWN = 1000


@dataclass(frozen=True, slots=True)
class Size:
    """A benchmark, or a part of it that is scored: its name in Table 1, questions and videos."""

    title: str
    benchmark: str
    num_questions: int
    num_videos: int


SIZES = (
    Size("VideoMME", "videomme", 2700, 900),
    Size("VSI-Bench", "vsibench", 5130, 288),
    # All videos of the validation split; how many of them have such questions is not published.
    Size("PerceptionTest (validation)", "perceptiontest", 19140, 5900),
    Size("TempCompass, all four tasks", "tempcompass", 7540, 410),
    Size("TempCompass, multiple choice", "tempcompass", 1580, 410),
    Size("VideoMMMU", "videommmu", 900, 300),
    Size("MMVU (mc)", "mmvu", 625, 379),
)


def error_of_difference(size: Size, disagreement: float, difference: float = DIFFERENCE) -> float:
    """Standard error, in points, of the difference of two policies on a benchmark.

    A question's difference is -1, 0 or 1, and not 0 with probability q: its variance is q minus the
    squared mean. Questions of a video multiply it by 1 + (m - 1) rho, with m questions a video.
    """
    variance = disagreement - (difference / 100) ** 2
    effect = design_effect(size.num_questions / size.num_videos, CORRELATION)
    return 100 * sqrt(variance * effect / size.num_questions)


def power_table() -> str:
    """Power for a true difference of one point, at several shares of disagreement."""
    headers = ["benchmark", "questions", "videos", "standard error"]
    headers += [f"power, q = {100 * q:.0f} %" for q in DISAGREEMENTS]
    headers += ["power, Holm over six", "found with 80 %"]
    rows = []
    for size in SIZES:
        error = error_of_difference(size, DISAGREEMENT)
        powers = [
            paired_power(DIFFERENCE, error_of_difference(size, q), size.num_videos)
            for q in DISAGREEMENTS
        ]
        # The smallest of six p-values is held against 0.05 / 6.
        adjusted = paired_power(DIFFERENCE, error, size.num_videos, alpha=0.05 / 6)
        rows.append(
            [
                size.title,
                f"{size.num_questions:,}",
                f"{size.num_videos:,}",
                f"{error:.2f}",
                *(f"{100 * power:.0f} %" for power in (*powers, adjusted)),
                f"{detectable_difference(error, size.num_videos):.1f}",
            ]
        )
    return markdown_table(headers, rows)


def claims() -> dict[str, dict[str, float]]:
    """STRIVE minus GRPO in points, by model and benchmark, and their mean as it is printed."""
    rows = {row.name: row for row in STRIVE_TABLE_1.rows}
    found = {}
    for model in ("Qwen2.5-VL-7B", "Qwen3-VL-8B"):
        a, b = (rows[f"{method} ({model})"] for method in ("STRIVE", "GRPO"))
        gains = {name: a.accuracy_percent[name] - b.accuracy_percent[name] for name in SIX}
        assert a.mean_percent is not None and b.mean_percent is not None
        found[model] = {**gains, "mean": a.mean_percent - b.mean_percent}
    return found


def seeds_table() -> str:
    """Trainings of each method at which a paired t-test over seeds finds each claim with 80 %."""
    by_benchmark = {size.benchmark: size for size in reversed(SIZES)}  # all of TempCompass
    errors = {name: error_of_difference(by_benchmark[name], DISAGREEMENT, 0.0) for name in SIX}
    errors["mean"] = sqrt(sum(error**2 for error in errors.values())) / len(SIX)
    # A training that is better as a whole is so on all six: that part does not average out.
    deviations = {
        name: sqrt(error**2 + 2 * TRAINING_DEVIATION**2) for name, error in errors.items()
    }
    titles = {name: by_benchmark[name].title for name in SIX} | {"mean": "mean of the six"}
    found = claims()
    headers = ["benchmark", "deviation of a pair"]
    headers += [text for model in found for text in (f"{model}: points", "seeds")]
    rows = []
    for name, deviation in deviations.items():
        row = [titles[name], f"{deviation:.2f}"]
        for gains in found.values():
            row += [f"{gains[name]:+.1f}", _seeds(deviation, gains[name])]
        rows.append(row)
    return markdown_table(headers, rows)


def _seeds(deviation: float, gain: float) -> str:
    # The paper prints one digit: of less than 0.05 nothing is known.
    if abs(gain) < 0.05:
        return "–"
    needed = pairs_needed(deviation, gain)
    return str(needed) if needed <= MAX_SHOWN else f"over {MAX_SHOWN:,}"


def section() -> str:
    """Both tables with what they assume, in Markdown."""
    return "\n".join(
        [
            f"Power for a true difference of {DIFFERENCE:.0f} point (two-sided, p < 0.05), and the "
            "difference that is found with 80 %, in points. Assumed: two policies disagree on a "
            f"share q of the questions (one is right, the other wrong), {100 * DISAGREEMENT:.0f} % "
            "where none is named; the differences of two questions about a video correlate by "
            f"{CORRELATION}; every video has the mean number of questions.",
            "",
            power_table(),
            "Trainings (seeds) of each method at which a paired t-test over seeds finds STRIVE "
            "minus GRPO of Table 1 with 80 %, if the printed difference is the true one. Assumed: "
            "the same disagreement and correlation between two trainings of one method, by chance, "
            f"and a deviation of {TRAINING_DEVIATION} points between trainings as a whole, on all "
            "six benchmarks alike.",
            "",
            seeds_table().rstrip("\n"),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--page", type=Path, help="page whose section is replaced")
    page = parser.parse_args().page
    print(section())
    if page is not None:
        text = replace_section(page.read_text(encoding="utf-8"), START, END, section())
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
