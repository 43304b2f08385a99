"""Published accuracies that evaluations are read beside."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A row of a paper's table: percent by benchmark; what the paper leaves out is not there."""

    name: str
    accuracy_percent: dict[str, float]
    mean_percent: float | None
    """The mean of the table's benchmarks as it is printed; None where the paper gives none."""


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A paper's table and where it stands."""

    source: str
    remark: str
    rows: tuple[PublishedRow, ...]


SIX = ("videomme", "vsibench", "perceptiontest", "tempcompass", "videommmu", "mmvu")
"""The benchmarks of the paper's Table 1, in its order, whose mean is its average."""


FOUR = ("videomme", "vsibench", "tempcompass", "mmvu")
"""The benchmarks of its Tables 2 to 5, in their order."""


def _row(name: str, figures: str, benchmarks: Sequence[str] = SIX) -> PublishedRow:
    """Read a row as the paper prints it: a figure a benchmark and their mean, `-` for none."""
    *scores, mean = [None if text == "-" else float(text) for text in figures.split()]
    found = {key: value for key, value in zip(benchmarks, scores, strict=True) if value is not None}
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


# --- Tables 2 to 5 -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PublishedAblation:
    """One of the paper's Tables 2 to 5: Qwen2.5-VL-7B after 500 steps, on `FOUR` (Sec. 4.2)."""

    number: int
    title: str
    baseline: str
    """The preset that the others are read against."""
    rows: dict[str, PublishedRow]
    """By the preset that is the row's run, in the paper's order."""

    @property
    def source(self) -> str:
        """Where it stands."""
        return f"arXiv:2604.01824, Table {self.number}"


def _rows_of_four(**rows: tuple[str, str]) -> dict[str, PublishedRow]:
    return {preset: _row(name, figures, FOUR) for preset, (name, figures) in rows.items()}


ABLATIONS = {
    2: PublishedAblation(
        number=2,
        title="Variant construction",
        baseline="table2_grpo",
        rows=_rows_of_four(
            table2_grpo=("GRPO Baseline", "58.0 32.5 72.1 65.3 57.0"),
            table2_deterministic=("Deterministic Temporal", "57.1 31.8 73.1 65.0 56.8"),
            table2_stochastic=("Stochastic", "58.4 34.3 73.2 65.8 57.9"),
            table2_importance_sim=("Importance-Based (Sim)", "59.0 34.2 72.8 66.2 58.1"),
            table2_importance_grad=("Importance-Based (Grad)", "61.1 32.2 72.8 64.8 57.7"),
            table2_importance_sim_spatial=(
                "Importance-Based (Sim) + Spatial",
                "58.2 35.2 73.1 65.4 58.0",
            ),
        ),
    ),
    3: PublishedAblation(
        number=3,
        title="Other algorithms",
        baseline="table3_grpo",
        rows=_rows_of_four(
            table3_grpo=("GRPO", "58.0 32.5 72.1 65.3 57.0"),
            table3_strive=("STRIVE", "58.2 35.2 73.1 65.4 58.0"),
            table3_dr_grpo=("Dr.GRPO", "59.0 32.2 72.3 64.3 57.0"),
            table3_strive_dr_grpo=("Dr.GRPO (STRIVE)", "58.5 32.8 72.6 66.4 57.6"),
        ),
    ),
    4: PublishedAblation(
        number=4,
        title="Scoring model",
        # No row of it is GRPO. The scorer of the STRIVE rows of Tables 2, 3 and 5, which the paper
        # settles on (Sec. 4.2), is what the two others would replace.
        baseline="table4_llava_ov",
        rows=_rows_of_four(
            table4_policy=("Policy Model (Same)", "61.85 33.4 75.1 64.0 58.6"),
            table4_siglip2=("SigLIP-2", "60.74 32.1 72.4 64.48 57.4"),
            table4_llava_ov=("LLaVA-OV-0.5B", "58.2 35.2 73.1 65.4 58.0"),
        ),
    ),
    5: PublishedAblation(
        number=5,
        title="Visual variants M and generations G",
        baseline="table5_m1_g8",
        rows=_rows_of_four(
            table5_m1_g8=("M=1, G=8", "58.0 32.5 72.1 65.3 57.0"),
            table5_m2_g4=("M=2, G=4", "58.2 35.2 73.1 65.4 58.0"),
            table5_m4_g2=("M=4, G=2", "58.1 34.5 73.0 65.3 57.7"),
        ),
    ),
}
"""By their numbers."""
