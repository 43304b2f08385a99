"""The registered analysis: contrasts with Holm's correction, matched accuracy, mediation.

Pure functions of kept results. Differences in accuracy are in percentage points, treatment minus
control, one unit a pair of runs with the same warm-up and seed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from strive.experiments.claims.plan import (
    ACCURACY_BIN,
    CONFIDENCE,
    CONTRASTS,
    SMALLEST_OF_INTEREST,
    Cell,
    Contrast,
)
from strive.experiments.claims.results import RunResult
from strive.statistics import PairedDifference, paired_difference

Runs = Mapping[Cell, RunResult]

HOLDS = "holds as a difference of interest"
THERE = "there, size not settled"
NONE = "no difference of interest"
UNTOLD = "the seeds cannot tell"
OPPOSITE = "the opposite"


def verdict(low: float, high: float) -> str:
    """Word an interval of a difference in points, as the plan fixed it (amendment 7)."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return UNTOLD
    if low > SMALLEST_OF_INTEREST:
        return HOLDS
    if low > 0:
        return THERE
    if high < 0:
        return OPPOSITE
    if low >= -SMALLEST_OF_INTEREST and high <= SMALLEST_OF_INTEREST:
        return NONE
    return UNTOLD


@dataclass(frozen=True, slots=True)
class ContrastResult:
    """One contrast over the pairs that are there.

    `low` and `high` are the interval after Holm: it leaves out 0 exactly where Holm's adjusted
    p-value is below 1 - confidence. `plain` has the interval and the p-value of this test alone.
    """

    contrast: Contrast
    differences: tuple[float, ...]
    plain: PairedDifference
    p_value: float
    """Adjusted after Holm over the primary contrasts; that of the test where it stands alone."""
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """The plan's wording."""
        return verdict(self.low, self.high)


def pair_runs(runs: Runs, treatment: str, control: str) -> list[tuple[RunResult, RunResult]]:
    """Pair the runs of two arms by warm-up and seed, in that order; what lacks its pair waits."""
    return [
        (runs[cell], runs[other])
        for cell in sorted(runs)
        if cell.arm == treatment and (other := Cell(control, cell.warmup, cell.seed)) in runs
    ]


def accuracy_difference(runs: Runs, contrast: Contrast) -> PairedDifference | None:
    """Test a contrast in held-out accuracy, in points; None below two pairs."""
    return paired(pair_runs(runs, contrast.treatment, contrast.control), lambda r: 100 * r.accuracy)


def paired(
    pairs: Sequence[tuple[RunResult, RunResult]], measure: Callable[[RunResult], float]
) -> PairedDifference | None:
    """Test a measure over pairs of runs, treatment minus control; None below two pairs."""
    known = [(measure(a), measure(b)) for a, b in pairs]
    known = [pair for pair in known if not any(map(math.isnan, pair))]
    if len(known) < 2:
        return None
    return paired_difference([a for a, _ in known], [b for _, b in known], confidence=CONFIDENCE)


def test_contrasts(runs: Runs, contrasts: Sequence[Contrast] = CONTRASTS) -> list[ContrastResult]:
    """Test contrasts together, corrected after Holm over those that have two pairs or more."""
    tested = [(c, d) for c in contrasts if (d := accuracy_difference(runs, c)) is not None]
    shares = holm_shares([d.p_value for _, d in tested])
    found = []
    for (contrast, plain), share in zip(tested, shares, strict=True):
        half = plain.standard_error * _quantile(share * (1 - CONFIDENCE), plain.num_units)
        pairs = pair_runs(runs, contrast.treatment, contrast.control)
        found.append(
            ContrastResult(
                contrast=contrast,
                differences=tuple(100 * (a.accuracy - b.accuracy) for a, b in pairs),
                plain=plain,
                p_value=min(1.0, plain.p_value / share),
                low=plain.difference - half,
                high=plain.difference + half,
            )
        )
    return found


def holm_shares(p_values: Sequence[float]) -> list[float]:
    """Return the share of the error that Holm's procedure leaves each test: 1 / m for the smallest
    p-value, then 1 / (m - 1), and so on; less where a smaller p-value was not rejected.

    A p-value divided by its share is Holm's adjusted one before it is cut at 1, so that the
    interval at that share of the error leaves out 0 exactly where Holm rejects.
    """
    order = np.argsort(p_values, kind="stable")
    shares = [1.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(order):
        left = len(p_values) - rank
        highest = max(highest, left * p_values[place])
        shares[place] = p_values[place] / highest if highest > 0 else 1 / left
    return shares


def _quantile(error: float, num_units: int) -> float:
    return float(stdtrit(num_units - 1, 1 - error / 2))


# --- measures of training -----------------------------------------------------------------------


def active_grad_norm(run: RunResult) -> np.ndarray:
    """Gradient norm by step over the share of groups with a signal; NaN in a step without any."""
    active = 1 - run.curve("group/zero_std_fraction")
    norm = run.curve("optim/grad_norm")
    return np.where((active > 0) & (norm > 0), norm / np.where(active > 0, active, 1), np.nan)


def log_deviation_of_norm(run: RunResult) -> float:
    """Deviation of the logarithm of the active gradient norm over steps."""
    norms = active_grad_norm(run)
    known = np.log(norms[np.isfinite(norms)])
    return float(known.std(ddof=1)) if len(known) > 1 else math.nan


MEASURES: dict[str, Callable[[RunResult], np.ndarray]] = {
    "group reward std": lambda run: run.curve("group/reward_std"),
    "group accuracy std": lambda run: run.curve("group/accuracy_std"),
    "zero-std groups (%)": lambda run: 100 * run.curve("group/zero_std_fraction"),
    "zero-std groups, accuracy alone (%)": (
        lambda run: 100 * run.curve("group/accuracy_zero_std_fraction")
    ),
    "groups all right (%)": lambda run: 100 * run.curve("group/all_correct_fraction"),
    "groups all wrong (%)": lambda run: 100 * run.curve("group/all_wrong_fraction"),
    "log gradient norm, active groups": lambda run: np.log(active_grad_norm(run)),
}
"""By step; read at matched training accuracy first, over steps second (amendment 9)."""


def over_steps(
    pairs: Sequence[tuple[RunResult, RunResult]], measure: Callable[[RunResult], np.ndarray]
) -> PairedDifference | None:
    """Test the mean of a measure over all steps, treatment minus control."""
    return paired(pairs, lambda run: _mean(measure(run)))


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def matched_difference(
    a: RunResult, b: RunResult, measure: Callable[[RunResult], np.ndarray]
) -> float:
    """Difference of a measure between two runs at equal training accuracy.

    Steps fall into bins of `ACCURACY_BIN` of the accuracy reward. In each bin that both runs have
    steps in, the means differ by d_b; the result is their mean, weighted by the smaller number of
    steps. NaN where no bin is common.
    """
    (bins_a, values_a), (bins_b, values_b) = (_binned(run, measure) for run in (a, b))
    total = weight = 0.0
    for bin_number in set(bins_a.tolist()) & set(bins_b.tolist()):
        in_a, in_b = values_a[bins_a == bin_number], values_b[bins_b == bin_number]
        shared = min(len(in_a), len(in_b))
        total += shared * float(in_a.mean() - in_b.mean())
        weight += shared
    return total / weight if weight else math.nan


def _binned(
    run: RunResult, measure: Callable[[RunResult], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The bin of training accuracy and the measure of each step that has both."""
    accuracy, values = run.curve("reward/accuracy"), measure(run)
    known = np.isfinite(accuracy) & np.isfinite(values)
    # A hair above, so that an accuracy on a bound falls into the bin that begins there.
    bins = np.floor(accuracy[known] / ACCURACY_BIN + 1e-9).astype(int)
    return bins, values[known]


def matched(
    pairs: Sequence[tuple[RunResult, RunResult]], measure: Callable[[RunResult], np.ndarray]
) -> PairedDifference | None:
    """Test a measure at matched training accuracy, treatment minus control, over pairs of runs."""
    differences = [matched_difference(a, b, measure) for a, b in pairs]
    known = [d for d in differences if math.isfinite(d)]
    if len(known) < 2:
        return None
    return paired_difference(known, [0.0] * len(known), confidence=CONFIDENCE)


# --- what else the paper says of STRIVE against GRPO ---------------------------------------------


@dataclass(frozen=True, slots=True)
class PaperClaim:
    """A measure of a run that the paper says STRIVE makes higher, or lower, than GRPO does."""

    name: str
    higher: bool
    by_step: Callable[[RunResult], np.ndarray] | None = None
    by_run: Callable[[RunResult], float] | None = None
    by_policy: Callable[[RunResult], float] | None = None
    """Of the last checkpoint, so that the untrained policy has it too."""

    def word(self, found: PairedDifference | None) -> str:
        """Say whether a difference, STRIVE minus GRPO, is the one claimed, by its interval."""
        if found is None or not is_clear(found):
            return UNTOLD
        return "as claimed" if (found.difference > 0) == self.higher else OPPOSITE


PAPER_CLAIMS = (
    PaperClaim("rewards spread more (Fig. 3a): std", True, MEASURES["group reward std"]),
    PaperClaim(
        "fewer groups without a signal (Fig. 3b): %", False, MEASURES["zero-std groups (%)"]
    ),
    PaperClaim(
        "a smoother gradient (Fig. 3c): deviation of the log norm",
        False,
        by_run=log_deviation_of_norm,
    ),
    PaperClaim(
        "variants agree more (Sec. 3.2): %", True, by_policy=lambda run: 100 * run.agreement
    ),
    PaperClaim(
        "fewer answers without the video (Sec. 3.2): accuracy on grey frames, %",
        False,
        by_policy=lambda run: 100 * run.blind_accuracy,
    ),
)


# --- mediation ----------------------------------------------------------------------------------

MEDIATORS: dict[str, Callable[[RunResult], float]] = {
    "evidence seen per variant (%)": lambda run: 100 * _mean(run.curve("variants/evidence_seen")),
    "zero-std groups (%)": lambda run: 100 * _mean(run.curve("group/zero_std_fraction")),
    "gradient norm, active groups": lambda run: _mean(active_grad_norm(run)),
}
"""What training differs in that could carry a difference in accuracy (amendment 4)."""
EVIDENCE = "evidence seen per variant (%)"


def mediators(runs: Runs, contrast: Contrast) -> dict[str, PairedDifference]:
    """Test each mediator, treatment minus control."""
    pairs = pair_runs(runs, contrast.treatment, contrast.control)
    found = {name: paired(pairs, measure) for name, measure in MEDIATORS.items()}
    return {name: difference for name, difference in found.items() if difference is not None}


def is_clear(difference: PairedDifference) -> bool:
    """Whether the 95 % interval leaves out 0."""
    return difference.low > 0 or difference.high < 0


def goes_with_evidence_alone(
    difference: PairedDifference, found: Mapping[str, PairedDifference]
) -> bool:
    """Whether accuracy and evidence seen differ, and no other mediator does."""
    others = [d for name, d in found.items() if name != EVIDENCE]
    evidence = found.get(EVIDENCE)
    return (
        is_clear(difference)
        and evidence is not None
        and is_clear(evidence)
        and not any(map(is_clear, others))
    )


# --- power --------------------------------------------------------------------------------------


def pairs_for_power(
    deviation: float,
    *,
    difference: float = SMALLEST_OF_INTEREST,
    power: float = 0.8,
    error: float = (1 - CONFIDENCE) / len(CONTRASTS),
) -> int:
    """Return how many pairs a t-test needs to find a difference with a given power.

    Args:
        deviation: standard deviation of the paired differences, in points.
        difference: the true one, in points.
        power: chance to find it.
        error: two-sided; Holm's strictest share by default.
    """
    from scipy.stats import nct

    for num_pairs in range(2, 10_000):
        critical = _quantile(error, num_pairs)
        centre = difference / deviation * math.sqrt(num_pairs)
        if 1 - nct.cdf(critical, num_pairs - 1, centre) >= power:
            return num_pairs
    return 10_000
