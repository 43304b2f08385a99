"""The section of docs/scorers.md that bench/jpeg fills, between its two marks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from strive.report.format import replace_section

PAGE = Path(__file__).parents[1] / "docs" / "scorers.md"
START, END = "<!-- jpeg -->", "<!-- /jpeg -->"
_CODECS = {"q92": "JPEG 92", "q95": "JPEG 95", "neighbours": "raw, next frames"}


def write_section(result: dict[str, Any]) -> str:
    """Put the tables of a result between the page's marks; return them."""
    text = "\n".join(section(result))
    page = replace_section(PAGE.read_text(encoding="utf-8"), START, END, text)
    PAGE.write_text(page, encoding="utf-8")
    return text


def section(result: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the section."""
    figures = result["figures"]
    yield (
        f"Measured by `python -m bench.jpeg` ({result['date']}, {result['machine']['processor']}, "
        f"float32): {figures['num_lab_clips']} lab clips at their own 112x112 pixels and three "
        "camera clips at up to 100,352, pools of up to 64 frames, JPEG 4:4:4 against raw."
    )
    yield ""
    yield from _scorer_rows(figures)
    yield ""
    yield from _policy_rows(figures)


def _scorer_rows(figures: dict[str, Any]) -> Iterator[str]:
    yield (
        "| scorer | clips | codec | mean (max) change of a score | spread in a video | mean change "
        "/ spread | rank correlation (worst) | clear pairs swapped | mean (max) change of P(t), "
        f"tau {figures['tau']} | the same after zscore |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, found in figures["scorers"].items():
        for source in ("lab", "camera"):
            for codec, row in found[source].items():
                after = "weights: none"
                if "p_mean_zscore" in row:
                    after = f"{row['p_mean_zscore']:.4f} ({row['p_max_zscore']:.3f})"
                yield (
                    f"| `{name}` | {source} | {_CODECS[codec]} "
                    f"| {row['mean_abs']:.5f} ({row['max_abs']:.4f}) | {row['spread']:.4f} "
                    f"| {row['mean_abs_over_spread']:.3f} "
                    f"| {row['rank_correlation']:.4f} ({row['worst_rank_correlation']:.3f}) "
                    f"| {100 * row['clear_pairs_swapped']:.2f} % "
                    f"| {row['p_mean_none']:.5f} ({row['p_max_none']:.4f}) | {after} |"
                )


def _policy_rows(figures: dict[str, Any]) -> Iterator[str]:
    yield (
        "| policy | clips | frames | mean (max) change of a token's log-probability | mean change "
        "of an answer's | KL per token, nats: mean (max) |"
    )
    yield "|---|---|---|---|---|---|"
    for found in figures["policies"].values():
        for source in ("lab", "camera"):
            for codec, label in _CODECS.items():
                row = found[source][codec]
                yield (
                    f"| `{found['model']}` | {source} | {label} "
                    f"| {row['mean_abs']:.4f} ({row['max_abs']:.3f}) "
                    f"| {row['answer_mean_abs']:.4f} | {row['mean_kl']:.2e} ({row['max_kl']:.1e}) |"
                )
