"""The registered plan: arms, their number of seeds, the order of the runs, and the contrasts.

Fixed before any contrast was run. All arms share the world, the questions and their order per seed,
8 completions a question, K=16 of F=64, tau 0.4, beta 0.04, and are judged by their last checkpoint.
Whoever departs from it adds a dated line with the reason to the notes of `docs/lab-results.md`.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

from strive.errors import unknown_name

Stage = Literal["primary", "power", "dose", "rate", "compute", "exploratory", "methods"]

WORLD_SEED = 0
NUM_CLIPS = 2500
"""500 of them are test clips, with 2,000 questions."""
NUM_TEST_QUESTIONS = 2000
STEPS = 150
LEARNING_RATE = 2e-4
"""Of the lab presets."""
WARMUPS = (0, 1)
"""0: the policy that ships; 1: one more by the same recipe with seed 1, taken as it comes."""
PRIMARY_SEEDS = 8
POWER_SEEDS = 18
"""Of the arms of the primary contrasts. The plan has more runs made where their paired deviation
asks for more to reach 80 % power; that of the first 8 seeds, 5.3 points, asks for 36 pairs."""
SMALLEST_OF_INTEREST = 3.0
"""Percentage points."""
CONFIDENCE = 0.95
ACCURACY_BIN = 0.05
"""Width of the bins of training accuracy in which measures are compared first."""
DOSES = (0.03, 0.1, 0.3, 1.0)
"""Gaps of the oracle between evidence and other frames; 0.03 is what real scorers show."""

UNTRAINED = "untrained"
"""Stands for an arm where a warm-up is judged as it is."""
SIGLIP2 = "siglip2"
PERMUTED = "strive.lab.scorers:permuted_siglip2"


def oracle(gap: float, *, permuted: bool = False) -> str:
    """Name of the oracle scorer of one dose."""
    dose = f"{gap:g}".replace(".", "_")
    return f"strive.lab.scorers:{'permuted_' if permuted else ''}oracle_{dose}"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train; `settings` are what it changes of the preset `lab_strive`."""

    name: str
    stage: Stage
    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_seeds: int = 3
    warmups: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class Contrast:
    """`treatment - control` in held-out accuracy, paired by warm-up and seed."""

    name: str
    treatment: str
    control: str
    question: str


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One run: an arm from a warm-up with a seed."""

    arm: str
    warmup: int
    seed: int

    @property
    def name(self) -> str:
        """`ARM-wWARMUP-sSEED`, the name of its kept result."""
        return f"{self.arm}-w{self.warmup}-s{self.seed}"


CONTRASTS = (
    Contrast("grouping", "strive", "strive_per_variant", "joint against per-variant advantages"),
    Contrast("relevance", "strive", "strive_permuted", "scores against the same scores permuted"),
    Contrast("paper", "strive", "grpo", "STRIVE against GRPO"),
)
"""The primary ones, corrected after Holm over the three."""
BESIDE = Contrast("paper_random", "strive", "grpo_random", "STRIVE against GRPO on random frames")
"""What the paper's contrast is read beside: frames that change from step to step, no variants."""

WITHIN: dict[str, tuple[Contrast, ...]] = {
    "rate": tuple(
        Contrast(f"rate_{rate:g}", f"strive_rate_{rate:g}", f"grpo_rate_{rate:g}", "")
        for rate in (0.5, 2.0)
    ),
    "exploratory": (
        Contrast("dr_grpo", "strive_dr_grpo", "dr_grpo", ""),
        Contrast("k8", "strive_k8", "strive_random_k8", ""),
        Contrast("k4", "strive_k4", "strive_random_k4", ""),
    ),
}
"""By stage, pairs of its own arms (amendments 2 and 8, Table 3); exploratory."""

_GRPO = {"variants": "none", "num_variants": 1, "num_generations": 8}
_RANDOM = {**_GRPO, "variants": "random"}


def _primary(name: str, about: str, **settings: Any) -> Arm:
    return Arm(name, "primary", about, settings, PRIMARY_SEEDS, WARMUPS)


def _list_arms() -> Iterator[Arm]:
    yield _primary("grpo", "1 x 8, uniform frames", **_GRPO)
    yield _primary("grpo_random", "1 x 8, one random frame a segment, fresh each step", **_RANDOM)
    yield _primary("importance_m1", "1 x 8, importance", num_variants=1, num_generations=8)
    yield _primary("strive", "2 x 4, importance, joint advantages")
    yield _primary(
        "strive_per_variant", "2 x 4, importance, advantages per variant", grouping="per_variant"
    )
    yield _primary("strive_permuted", "2 x 4, scores permuted in time", scorer=PERMUTED)
    yield _primary("strive_random", "2 x 4, one random frame a segment", variants="random")
    for gap in DOSES:
        for permuted in (False, True):
            name = f"{'permuted' if permuted else 'strive'}_gap_{gap:g}"
            about = f"2 x 4, oracle scores {'permuted in time, ' if permuted else ''}gap {gap:g}"
            yield Arm(name, "dose", about, {"scorer": oracle(gap, permuted=permuted)}, 4)
    for factor in (0.5, 2.0):
        for name in ("grpo", "strive"):
            changed = {**(_GRPO if name == "grpo" else {}), "learning_rate": factor * LEARNING_RATE}
            about = f"{name} at {factor:g} times the learning rate"
            yield Arm(f"{name}_rate_{factor:g}", "rate", about, changed, 4)
    by_name: dict[str, dict[str, Any]] = {"grpo": _GRPO, "grpo_random": _RANDOM}
    for name, settings in by_name.items():
        about = f"{name} for {2 * STEPS} steps: as many encoded frames as strive"
        yield Arm(f"{name}_frames", "compute", about, {**settings, "steps": 2 * STEPS}, 4)
        about = f"{name} for {4 * STEPS // 3} steps: about the seconds of strive"
        yield Arm(f"{name}_seconds", "compute", about, {**settings, "steps": 4 * STEPS // 3}, 4)
    exploratory: list[tuple[str, str, dict[str, Any]]] = [
        ("deterministic", "2 x 4, strided frames (Table 2)", {"variants": "deterministic"}),
        ("stochastic", "2 x 4, random crop, spatial augmentation (Table 2)",
         {"variants": "stochastic", "spatial": True}),
        ("strive_spatial", "2 x 4, importance with spatial augmentation", {"spatial": True}),
        ("strive_gradient", "2 x 4, gradient norms of the policy", {"scorer": "gradient"}),
        ("dr_grpo", "1 x 8, uniform frames, Dr. GRPO (Table 3)", {**_GRPO, "objective": "dr_grpo"}),
        ("strive_dr_grpo", "2 x 4, importance, Dr. GRPO (Table 3)", {"objective": "dr_grpo"}),
        ("strive_m4", "4 x 2, importance (Table 5)", {"num_variants": 4, "num_generations": 2}),
        ("strive_zscore", "2 x 4, z-scored cosines", {"score_transform": "zscore"}),
        ("strive_llava_ov", "2 x 4, LLaVA-OneVision scores (Table 4)", {"scorer": "llava_ov"}),
        ("strive_policy", "2 x 4, the policy's own scores (Table 4)", {"scorer": "policy"}),
        *(
            (f"strive{suffix}_k{frames}", f"2 x 4, {kind} frames, K={frames}",
             {"variants": kind, "num_frames": frames})
            for frames in (8, 4)
            for suffix, kind in (("", "importance"), ("_random", "random"))
        ),
    ]  # fmt: skip
    for name, about, settings in exploratory:
        yield Arm(name, "exploratory", about, settings)
    # Three other answers to groups without signal.
    noisy = {"variants": "uniform", "views": ["none", "noise"], "update_view": "first"}
    yield Arm("noisy", "methods", "2 x 4, one of two noisy, learned on the clean view", noisy)
    settings = {**_GRPO, "std": "ema_per_type"}
    yield Arm("ema_std", "methods", "1 x 8, an average std of each problem type", settings)
    settings = {**_GRPO, "resample_rounds": 3}
    yield Arm("resample", "methods", "1 x 8, groups without signal replaced, 3 rounds", settings)


ARMS = {arm.name: arm for arm in _list_arms()}
STAGES: tuple[Stage, ...] = (
    "primary", "power", "dose", "rate", "compute", "exploratory", "methods",
)  # fmt: skip


def list_cells(stages: tuple[Stage, ...] = STAGES) -> list[Cell]:
    """Return the runs of the plan in their order: any stop leaves a balanced design.

    Stage by stage, and within a stage seed by seed over all arms and warm-ups. `power` is more
    seeds of the arms of the primary contrasts.
    """
    cells = [Cell(UNTRAINED, warmup, 0) for warmup in WARMUPS]
    contrasted = dict.fromkeys(name for c in CONTRASTS for name in (c.treatment, c.control))
    for stage in stages:
        arms = [arm for arm in ARMS.values() if arm.stage == stage]
        first = 0
        if stage == "power":
            first = PRIMARY_SEEDS
            arms = [replace(ARMS[name], num_seeds=POWER_SEEDS) for name in contrasted]
        for seed in range(first, max((arm.num_seeds for arm in arms), default=0)):
            for warmup in WARMUPS:
                cells += [
                    Cell(arm.name, warmup, seed)
                    for arm in arms
                    if seed < arm.num_seeds and warmup in arm.warmups
                ]
    return cells


def left_cells(stages: Sequence[str], done: Collection[Cell]) -> list[Cell]:
    """Return the runs of some stages that are not kept yet, in the order of the plan.

    Raises:
        UnknownNameError: there is no such stage.
    """
    for stage in stages:
        if stage not in STAGES:
            raise unknown_name("stage (--stage)", stage, STAGES)
    chosen = tuple(stage for stage in STAGES if stage in stages)
    return [cell for cell in list_cells(chosen) if cell not in done]


def arm_values(arm: Arm) -> dict[str, Any]:
    """Config keys of an arm over the preset `lab_strive`."""
    needs_scores = arm.settings.get("variants", "importance") == "importance"
    scorer = {"scorer": SIGLIP2} if needs_scores else {}
    return {"steps": STEPS, "beta": 0.04, **scorer, **arm.settings}


def scorers_of(cells: list[Cell]) -> tuple[str, ...]:
    """Return the scorers that some runs read, each once."""
    values = [arm_values(ARMS[cell.arm]).get("scorer") for cell in cells if cell.arm in ARMS]
    return tuple(dict.fromkeys(value for value in values if value is not None))


def plan_digest() -> str:
    """Return a digest of what was frozen: arms, doses, seeds, contrasts.

    The arms of `methods` were registered with the others, but the trainer could not express them
    when the rest was frozen; nothing that was frozen depends on them.
    """
    arms = [
        [arm.name, arm.stage, arm_values(arm), arm.num_seeds, list(arm.warmups)]
        for arm in ARMS.values()
        if arm.stage != "methods"
    ]
    contrasts = [[c.name, c.treatment, c.control] for c in (*CONTRASTS, BESIDE)]
    fixed = [WORLD_SEED, NUM_CLIPS, STEPS, PRIMARY_SEEDS, SMALLEST_OF_INTEREST, CONFIDENCE]
    text = json.dumps([fixed, arms, contrasts, ACCURACY_BIN], sort_keys=True)
    return sha256(text.encode()).hexdigest()[:16]
