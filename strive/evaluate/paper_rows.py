"""Published accuracies that evaluations are read beside."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A row of a paper's table: percent by benchmark; what the paper leaves out is not there."""

    name: str
    accuracy_percent: dict[str, float]
    mean_percent: float | None
    """The mean of the six as it is printed; None where the paper gives none."""


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A paper's table and where it stands."""

    source: str
    remark: str
    rows: tuple[PublishedRow, ...]


SIX = ("videomme", "vsibench", "perceptiontest", "tempcompass", "videommmu", "mmvu")
"""The benchmarks of the paper's Table 1, in its order, whose mean is its average."""


def _row(name: str, figures: str) -> PublishedRow:
    """Read a row as the paper prints it: six figures and their mean, `-` for none."""
    *six, mean = [None if text == "-" else float(text) for text in figures.split()]
    found = {key: value for key, value in zip(SIX, six, strict=True) if value is not None}
    return PublishedRow(name, found, mean)


STRIVE_TABLE_1 = PublishedTable(
    source="arXiv:2604.01824, Table 1",
    remark=(
        "at most 32 frames; the paper states neither prompt, pixels nor answer extraction, nor "
        "TempCompass's tasks, nor VSI-Bench's average; * from public weights"
    ),
    rows=(
        _row("GPT-4o", "71.9 34.0 - 75.1 61.2 75.4 -"),
        _row("Gemini-1.5-Pro", "75.0 48.8 - 70.5 - - -"),
        _row("VILA-1.5-8B", "- 28.9 - - 20.8 - -"),
        _row("LongVA-7B", "52.6 29.2 - - 23.9 - -"),
        _row("LLaVA-OV-7B", "58.2 32.4 57.1 69.5 - 64.7 -"),
        _row("Qwen2.5-VL-7B-SFT", "55.4 33.3 68.4 69.9 49.4 63.5 56.6"),
        _row("Arrow RL*", "60.9 36.1 66.8 72.5 47.9 62.4 57.7"),
        _row("Video-R1", "59.3 35.8 67.8 73.2 52.3 63.8 58.6"),
        _row("Qwen2.5-VL-7B", "57.8 34.3 68.2 72.8 48.6 63.8 57.6"),
        _row("GRPO (Qwen2.5-VL-7B)", "61.1 35.9 67.7 75.1 49.5 64.6 59.0"),
        _row("STRIVE (Qwen2.5-VL-7B)", "61.7 36.6 69.4 75.1 50.1 65.7 59.8"),
        _row("Qwen3-VL-8B", "62.1 53.3 68.7 77.8 56.5 67.0 64.2"),
        _row("GRPO (Qwen3-VL-8B)", "60.3 53.0 70.0 78.1 55.7 68.6 64.3"),
        _row("STRIVE (Qwen3-VL-8B)", "62.1 54.4 70.2 78.3 56.5 69.6 65.2"),
    ),
)
