"""The page of the claims, made from the kept results alone, however many there are."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from strive.experiments.claims.analysis import (
    EVIDENCE,
    MEASURES,
    PAPER_CLAIMS,
    ContrastResult,
    Runs,
    accuracy_difference,
    goes_with_evidence_alone,
    log_deviation_of_norm,
    matched,
    mediators,
    over_steps,
    pair_runs,
    paired,
    pairs_for_power,
    test_contrasts,
    verdict,
)
from strive.experiments.claims.plan import (
    ARMS,
    BESIDE,
    CONTRASTS,
    DOSES,
    POWER_SEEDS,
    PRIMARY_SEEDS,
    SMALLEST_OF_INTEREST,
    STAGES,
    UNTRAINED,
    WARMUPS,
    WITHIN,
    Arm,
    Contrast,
    list_cells,
)
from strive.experiments.claims.results import RunResult, read_runs
from strive.report.format import markdown_table, number
from strive.statistics import PairedDifference, standard_error

NOTES = "## Notes, by date"
TITLE = "# A test of STRIVE's mechanism at 2 M parameters"
_INTRO = """
Tiny policies (about 2 million parameters) on synthetic clips, by a plan that was fixed before any
contrast was run. This page says whether the mechanism works as the paper says; it says nothing
about 7B accuracy. Results stand here whichever way they fall. It is made from the files under
`docs/lab-results/` by

    strive-cli lab claims --page-only

and the runs go on, where they stopped, with `strive-cli lab claims`.
"""


def write_page(folder: Path, page: Path) -> Path:
    """Write the page and its figures from the kept results; dated notes at its end stay.

    Raises:
        RecordsError: a kept result is damaged.
    """
    from strive.experiments.claims.figures import draw_figures

    runs = read_runs(folder)
    figures = draw_figures(runs, folder)
    frozen = folder / "frozen.json"
    facts = json.loads(frozen.read_text(encoding="utf-8")) if frozen.is_file() else {}
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    notes = before.partition(NOTES)[2].strip()
    page.parent.mkdir(parents=True, exist_ok=True)
    paths = {
        name: Path(os.path.relpath(path, page.parent)).as_posix() for name, path in figures.items()
    }
    text = "\n".join(render(runs, facts, paths))
    page.write_text(f"{text}\n{NOTES}\n\n{notes}\n", encoding="utf-8")
    return page


def render(runs: Runs, frozen: Mapping[str, Any], figures: Mapping[str, str]) -> Iterator[str]:
    """Yield the page's lines, without its notes."""
    yield TITLE
    yield _INTRO
    yield from _fixed(runs, frozen)
    yield from _primary(runs)
    yield from _other_claims(runs)
    yield from _arms(runs)
    yield from _figure_3(runs, figures)
    yield from _mediation(runs)
    yield from _doses(runs)
    yield from _against(runs, "rate", "## Learning rate", "strive and grpo at half and twice it.")
    yield from _against(runs, "compute", "## Fair compute", _COMPUTE)
    yield from _against(runs, "exploratory", "## Exploratory arms", _EXPLORATORY)
    yield from _against(runs, "methods", "## Other answers to groups without signal", _METHODS)
    yield from _probe(runs)


# --- figures as text ----------------------------------------------------------------------------


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign; a missing one is a dash."""
    return "–" if not math.isfinite(value) else f"{value:+.{digits}f}"


def interval(low: float, high: float, digits: int = 1) -> str:
    """An interval in words."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "–"
    return f"{signed(low, digits)} to {signed(high, digits)}"


def difference(found: PairedDifference | None, digits: int = 1) -> str:
    """A difference and its interval; a dash where there are not two pairs."""
    if found is None:
        return "–"
    return f"{signed(found.difference, digits)} ({interval(found.low, found.high, digits)})"


def mean_error(values: Sequence[float], digits: int = 1) -> str:
    """A mean over runs and its standard error."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "–"
    error = standard_error(known)
    shown = "" if math.isnan(error) else f" ± {error:.{digits}f}"
    return f"{np.mean(known):.{digits}f}{shown}"


def of_arm(runs: Runs, arm: str) -> list[RunResult]:
    """The runs of an arm in order."""
    return [runs[c] for c in sorted(runs) if c.arm == arm]


# --- sections -----------------------------------------------------------------------------------


def _fixed(runs: Runs, frozen: Mapping[str, Any]) -> Iterator[str]:
    yield "## What was fixed, and how much of it is done"
    yield ""
    if not frozen:
        yield "Nothing is frozen yet: the first run builds the world and writes what it froze."
    else:
        yield (
            f"Frozen on {frozen['date']} at commit {frozen['commit']}, before the first run: "
            f"questions {frozen['world']} "
            f"(of {frozen['num_clips']} clips), warm-ups "
            f"{' and '.join(frozen[f'warmup_{n}'] for n in WARMUPS)}, scorer {frozen['scorer']}, "
            f"plan {frozen['plan']} (first 16 digits of SHA-256), {frozen['steps']} steps."
        )
    commits = sorted({str(run.about.get("commit", "")) for run in runs.values()} - {""})
    if commits:
        yield f"The runs were made at commit{'s' * (len(commits) > 1)} {', '.join(commits)}."
    yield ""
    rows = []
    for stage in STAGES:
        cells = [cell for cell in list_cells((stage,)) if cell.arm != UNTRAINED]
        done = sum(cell in runs for cell in cells)
        arms = len({cell.arm for cell in cells})
        rows.append([stage, str(arms), f"{done} of {len(cells)}"])
    yield markdown_table(("stage", "arms", "runs done"), rows)
    yield (
        "All arms: the same questions in the same order per seed, 8 completions a question, K=16 "
        "of F=64, tau 0.4, beta 0.04, the last checkpoint. Accuracy is greedy, on uniform 32 "
        "frames of 2,000 questions about 500 test clips. Runs are paired by warm-up and seed. The "
        "arms of `methods` were registered with the others; the trainer could express them later."
    )
    yield ""


def _primary(runs: Runs) -> Iterator[str]:
    found = test_contrasts(runs)
    yield "## The three claims"
    yield ""
    planned = PRIMARY_SEEDS * len(WARMUPS)
    if not found:
        yield f"No contrast has two pairs of runs yet; the plan asks for {planned} of each."
        yield ""
        return
    first = {cell: run for cell, run in runs.items() if cell.seed < PRIMARY_SEEDS}
    has_more = any(len(result.differences) > planned for result in found)
    wanted = POWER_SEEDS * len(WARMUPS) if has_more else planned
    for result in found:
        yield f"- {_claim(result, runs, wanted)}"
    beside = accuracy_difference(runs, BESIDE)
    if beside is not None:
        yield (
            f"- Beside the third: STRIVE minus GRPO on random frames is {difference(beside)} "
            "points (95 %, not corrected)."
        )
    yield ""
    yield _contrast_table(found, wanted)
    yield _power(test_contrasts(first))
    yield ""
    if has_more:
        yield (
            f"The plan has more seeds made where that asks for them: {POWER_SEEDS} of each arm "
            f"above, {wanted} pairs. At the {planned} pairs that it began with:"
        )
        yield ""
        yield _contrast_table(test_contrasts(first), planned)


def _contrast_table(found: Sequence[ContrastResult], wanted: int) -> str:
    rows = [
        [
            f"`{r.contrast.treatment}` - `{r.contrast.control}`",
            f"{len(r.differences)} of {wanted}",
            signed(r.plain.difference, 2),
            interval(r.low, r.high, 2),
            interval(r.plain.low, r.plain.high, 2),
            f"{r.p_value:.3f}",
            r.verdict,
        ]
        for r in found
    ]
    headers = (
        "contrast",
        "pairs",
        "points",
        "95 % after Holm",
        "95 % alone",
        "p (Holm)",
        "verdict",
    )
    return markdown_table(headers, rows)


def _claim(result: ContrastResult, runs: Runs, wanted: int) -> str:
    contrast = result.contrast
    text = (
        f"**{contrast.name.capitalize()}** ({contrast.question}): **{result.verdict}**: "
        f"{signed(result.plain.difference)} points ({interval(result.low, result.high)})"
    )
    if contrast.name == "relevance":
        text += f". {_dose_sentence(runs)}"
    if goes_with_evidence_alone(result.plain, mediators(runs, contrast)):
        text += ". This difference goes with the evidence seen while training alone"
    if len(result.differences) < wanted:
        text += f". So far {len(result.differences)} of {wanted} pairs"
    return text + "."


def _dose_sentence(runs: Runs) -> str:
    """The dose at which relevance holds, if any does."""
    found = {gap: accuracy_difference(runs, _dose(gap)) for gap in DOSES}
    known = {gap: d for gap, d in found.items() if d is not None}
    if not known:
        return "With the learned scorer's cosines, whose gap is about 0.8; no dose has been run yet"
    holding = [f"{gap:g}" for gap, d in known.items() if d.low > 0]
    at = f"it is there at gap {', '.join(holding)}" if holding else "it is there at none of them"
    doses = ", ".join(f"{gap:g}" for gap in known)
    return f"With the learned scorer's cosines (gap about 0.8); of the doses {doses}, {at}"


def _dose(gap: float) -> Contrast:
    return Contrast(f"gap {gap:g}", f"strive_gap_{gap:g}", f"permuted_gap_{gap:g}", "relevance")


def _power(found: Sequence[ContrastResult]) -> str:
    deviations = [np.std(r.differences, ddof=1) for r in found if len(r.differences) > 2]
    if not any(deviations):
        return "The paired deviation is not known yet."
    largest = float(max(deviations))
    return (
        f"The largest paired deviation of the first {PRIMARY_SEEDS} seeds is {largest:.2f} points: "
        f"{pairs_for_power(largest)} pairs find a true difference of "
        f"{SMALLEST_OF_INTEREST:g} points with 80 % power at Holm's strictest level."
    )


def _other_claims(runs: Runs) -> Iterator[str]:
    """What the paper says of STRIVE against GRPO beside accuracy, each by its interval."""
    paper = CONTRASTS[-1]
    pairs = pair_runs(runs, paper.treatment, paper.control)
    if len(pairs) < 2:
        return
    yield "## What else the paper says of STRIVE against GRPO"
    yield ""
    yield (
        f"`strive` - `grpo` over {len(pairs)} pairs of runs, 95 % intervals, not corrected. A "
        "measure of the steps is read at matched training accuracy first (bins of 5 points): "
        "groups spread less, and more of them are without a signal, as a policy gets better. The "
        "last two are of the last checkpoint, which is held against its own warm-up too."
    )
    yield ""
    starts = {run.warmup: run for run in of_arm(runs, UNTRAINED)}
    trained = [run for run, _ in pairs if run.warmup in starts]
    since = [(run, starts[run.warmup]) for run in trained]
    rows = []
    for claim in PAPER_CLAIMS:
        of_steps, of_run = claim.by_step, claim.by_run or claim.by_policy
        columns = (
            matched(pairs, of_steps) if of_steps else None,
            over_steps(pairs, of_steps) if of_steps else paired(pairs, of_run) if of_run else None,
            paired(since, claim.by_policy) if claim.by_policy else None,
        )
        digits = 1 if "%" in claim.name else 3
        rows.append(
            [claim.name]
            + [
                "–" if found is None else f"{difference(found, digits)}: {claim.word(found)}"
                for found in columns
            ]
        )
    headers = ("claim: measure", "at matched accuracy", "over the run", "`strive` - its warm-up")
    yield markdown_table(headers, rows, num_texts=4)


_HEADERS = (
    "arm", "what it is", "runs", "accuracy (%)", "gain", "grey frames (%)", "variants agree (%)",
    "evidence seen (%)", "median seconds",
)  # fmt: skip


def _row(runs: Runs, name: str) -> list[str]:
    own = of_arm(runs, name)
    starts = {run.warmup: run for run in of_arm(runs, UNTRAINED)}
    gains = [100 * (r.accuracy - starts[r.warmup].accuracy) for r in own if r.warmup in starts]
    return [
        f"`{name}`",
        ARMS[name].about if name in ARMS else "the warm-up as it is",
        str(len(own)),
        mean_error([100 * run.accuracy for run in own]),
        "–" if name == UNTRAINED or not gains else f"{np.mean(gains):+.1f}",
        mean_error([100 * run.blind_accuracy for run in own]),
        mean_error([100 * run.agreement for run in own]),
        mean_error([_mean_curve(run, "variants/evidence_seen", 100) for run in own]),
        number(_median([run.seconds.get("train", math.nan) for run in own]), 0),
    ]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.median(known)) if known else math.nan


def _mean_curve(run: RunResult, metric: str, factor: float = 1.0) -> float:
    return math.nan if metric not in run.curves else factor * _mean(run.curve(metric).tolist())


def _arms(runs: Runs) -> Iterator[str]:
    if not runs:
        return
    yield "## Arms"
    yield ""
    yield "Means over runs ± one standard error; gains in points over the run's own warm-up."
    yield ""
    names = [UNTRAINED, *(arm.name for arm in ARMS.values() if arm.stage == "primary")]
    yield markdown_table(_HEADERS, [_row(runs, name) for name in names], num_texts=2)


def _figure_3(runs: Runs, figures: Mapping[str, str]) -> Iterator[str]:
    if not figures:
        return
    yield "## The paper's three curves"
    yield ""
    yield (
        "Higher reward variance is no merit by itself: it falls as a policy gets better. So the "
        "measures are compared at matched training accuracy first (bins of 5 points), over steps "
        "second; treatment minus control, 95 % intervals over pairs of runs."
    )
    yield ""
    for contrast in (*CONTRASTS, BESIDE):
        pairs = pair_runs(runs, contrast.treatment, contrast.control)
        rows = [
            [
                name,
                difference(matched(pairs, measure), 3),
                difference(over_steps(pairs, measure), 3),
            ]
            for name, measure in MEASURES.items()
        ]
        deviation = paired(pairs, log_deviation_of_norm)
        rows.append(["deviation of the log gradient norm", "–", difference(deviation, 3)])
        title = f"`{contrast.treatment}` - `{contrast.control}`, {len(pairs)} pairs"
        yield markdown_table((title, "at matched accuracy", "over steps"), rows)
    for name, path in figures.items():
        yield f"![{name}]({path})"
        yield ""


def _mediation(runs: Runs) -> Iterator[str]:
    rows = []
    for contrast in CONTRASTS:
        found = mediators(runs, contrast)
        if found:
            cells = [difference(found.get(name), 2) for name in (EVIDENCE, *_OTHERS)]
            accuracy = difference(accuracy_difference(runs, contrast))
            rows.append([f"`{contrast.treatment}` - `{contrast.control}`", accuracy, *cells])
    if rows:
        yield "## What a difference goes with"
        yield ""
        yield markdown_table(("contrast", "accuracy (points)", EVIDENCE, *_OTHERS), rows)


_OTHERS = ("zero-std groups (%)", "gradient norm, active groups")


def _doses(runs: Runs) -> Iterator[str]:
    rows = []
    for gap in DOSES:
        contrast = _dose(gap)
        pairs = pair_runs(runs, contrast.treatment, contrast.control)
        found = accuracy_difference(runs, contrast)
        word = "–" if found is None else verdict(found.low, found.high)
        rows.append([f"{gap:g}", str(len(pairs)), difference(found), word])
    if not any(ARMS[cell.arm].stage == "dose" for cell in runs if cell.arm in ARMS):
        return
    yield "## Doses of relevance"
    yield ""
    yield (
        "Oracle scores with a gap between evidence and other frames, against the same scores "
        "permuted in time. 0.03 is what scorers of real videos show. Exploratory: no correction."
    )
    yield ""
    yield markdown_table(("gap", "pairs", "accuracy (points)", "by the plan's wording"), rows)
    yield _arms_of(runs, "dose")


_COMPUTE = (
    "GRPO given as many encoded frames as STRIVE (twice the steps), and about its seconds (a third "
    "more steps)."
)
_METHODS = (
    "Noise instead of relevance, a std that is no group's own, other questions instead. Registered "
    "with the rest and frozen later, when the trainer could express them; no claim of significance."
)
_EXPLORATORY = "Intervals, and no claim of significance. Gains are over the run's own warm-up."


def _against(runs: Runs, stage: str, title: str, about: str) -> Iterator[str]:
    """A stage's arms, and the contrasts within it."""
    if not any(cell.arm in ARMS and ARMS[cell.arm].stage == stage for cell in runs):
        return
    yield title
    yield ""
    yield about
    yield ""
    yield _arms_of(runs, stage)
    rows = [
        [
            f"`{contrast.treatment}` - `{contrast.control}`",
            str(found.num_pairs),
            difference(found),
        ]
        for contrast in WITHIN.get(stage, ())
        if (found := accuracy_difference(runs, contrast)) is not None
    ]
    if rows:
        yield markdown_table(("contrast", "pairs", "accuracy (points)"), rows)


def _arms_of(runs: Runs, stage: str) -> str:
    """A stage's arms beside the untrained policy, `grpo` and `strive` from the same warm-ups."""
    arms: list[Arm] = [arm for arm in ARMS.values() if arm.stage == stage]
    same = {cell: run for cell, run in runs.items() if cell.warmup in arms[0].warmups}
    rows = []
    for name in (UNTRAINED, "grpo", "strive", *(arm.name for arm in arms)):
        row = _row(same, name)
        versus = [
            "–" if name in (UNTRAINED, control) else difference(accuracy_difference(same, contrast))
            for control in ("grpo", "strive")
            for contrast in (Contrast("", name, control, ""),)
        ]
        rows.append([*row[:-1], *versus, row[-1]])
    headers = (*_HEADERS[:-1], "minus `grpo` (points)", "minus `strive` (points)", _HEADERS[-1])
    return markdown_table(headers, rows, num_texts=2)


_PROBED = {
    "group/reward_std": "reward std",
    "group/zero_std_fraction": "zero-std (%)",
    "group/accuracy_zero_std_fraction": "zero-std, accuracy (%)",
    "group/between_variant_share": "between variants (%)",
    "reward/accuracy": "accuracy (%)",
    "variants/evidence_seen": "evidence seen (%)",
}


def _probe(runs: Runs) -> Iterator[str]:
    rows = [row for run in runs.values() for row in run.probe]
    if not rows:
        return
    yield "## Fixed checkpoints, every sampler"
    yield ""
    yield (
        "No training: rollouts of 96 held-out questions, means over warm-ups, arms and seeds. More "
        "variance from worse frames is no merit: read it beside accuracy."
    )
    yield ""
    places = dict.fromkeys((row["checkpoint"], row["sampler"]) for row in rows)
    order = {name: number for number, name in enumerate(("start", "middle", "final"))}
    table = []
    for checkpoint, sampler in sorted(places, key=lambda place: order[place[0]]):
        own = [r for r in rows if (r["checkpoint"], r["sampler"]) == (checkpoint, sampler)]
        cells = []
        for metric, name in _PROBED.items():
            value = _mean([math.nan if r[metric] is None else r[metric] for r in own])
            cells.append(number(100 * value, 1) if "%" in name else number(value, 3))
        table.append([checkpoint, sampler, str(len(own)), *cells])
    yield markdown_table(
        ("checkpoint", "sampler", "policies", *_PROBED.values()), table, num_texts=2
    )
