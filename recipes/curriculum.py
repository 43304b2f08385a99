"""What the policies' supervised warm-up shows: frames of a clip, questions about it, noisy labels.

The labels of the last stage are wrong on purpose in a fixed share of cases (`LabelNoise`), so that
reinforcement learning starts from a policy with a language prior that is often wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recipes.frames import SceneBank
from recipes.rows import Row, RowMaker, Tail, question_body
from strive.lab.questions import KINDS, Question, ask, possible_targets
from strive.lab.scene import NUM_SLOTS, TYPICAL_COLOUR, Scene
from strive.variants import segment_bounds, uniform_frames

STRONG_SHAPES = ("circle", "square", "triangle")
_STRONG_COLOURS = tuple(TYPICAL_COLOUR[shape] for shape in STRONG_SHAPES)


@dataclass(frozen=True, slots=True)
class LabelNoise:
    """Shares of labels that are replaced.

    Args:
        strong_prior: share replaced by the typical answer where the question names one of
            `STRONG_SHAPES` or their typical colours.
        weak_prior: the same share for the other shapes and colours.
        random_option: share of multiple choice labels replaced by any option.
    """

    strong_prior: float = 0.0
    weak_prior: float = 0.0
    random_option: float = 0.0

    def label(self, question: Question, rng: np.random.Generator) -> str:
        """Return the answer, in words, that is taught."""
        strong = any(word in question.problem for word in (*STRONG_SHAPES, *_STRONG_COLOURS))
        share = self.strong_prior if strong else self.weak_prior
        has_prior = question.kind in ("colour", "shape", "describe")
        draw, other = rng.random(2)
        if has_prior and draw < share:
            return question.prior_answer
        if question.options and other < self.random_option:
            return question.options[int(rng.integers(len(question.options)))]
        return question.answer


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a stage's rows are made of.

    Args:
        noise: wrong labels.
        num_tails: questions a row.
        with_options: write the options of multiple choice questions; without them rows are a third
            as long, and their letters can be answered all the same, since their order is fixed.
        emphasis: question kinds that are asked more often than in the world, and how much.
        brief_only: ask about evidence sprites only, as the world does.
        evidence_share: share of rows whose frames show the evidence of their first question.
        visible_share: share of questions that are redrawn until their evidence is shown.
        frame_counts: how many frames a row can have.
    """

    noise: LabelNoise = LabelNoise()
    num_tails: int = 6
    with_options: bool = True
    emphasis: tuple[tuple[str, float], ...] = ()
    brief_only: bool = False
    evidence_share: float = 0.4
    visible_share: float = 0.0
    frame_counts: tuple[int, ...] = (16,)


def draw_slots(
    rng: np.random.Generator, num_frames: int, evidence_slots: Sequence[int] = ()
) -> np.ndarray:
    """Draw pool frames: uniform or one of each segment; where given, evidence is preferred."""
    if not evidence_slots and rng.random() < 0.3:
        return uniform_frames(NUM_SLOTS, num_frames)
    bounds_K2 = segment_bounds(NUM_SLOTS, num_frames)
    slots_K = rng.integers(bounds_K2[:, 0], bounds_K2[:, 1])
    for slot in evidence_slots:
        slots_K[slot * num_frames // NUM_SLOTS] = slot
    return slots_K


def draw_row(
    maker: RowMaker,
    bank: SceneBank,
    mixture: Mixture,
    num_frames: int,
    rng: np.random.Generator,
) -> tuple[Row, np.ndarray]:
    """Draw a row and the rows of `bank.looks_L` that are its frames, [K]."""
    number = int(rng.integers(len(bank.scenes)))
    scene = bank.scenes[number]
    evidence: list[int] = []
    if rng.random() < mixture.evidence_share:
        sprite = scene.sprites[int(rng.integers(len(scene.sprites)))]
        if sprite.brief:
            evidence = list(range(sprite.start_slot, sprite.end_slot))
    slots_K = draw_slots(rng, num_frames, evidence)
    tails = [_question_tail(maker, scene, slots_K, mixture, rng) for _ in range(mixture.num_tails)]
    ids, positions_3P = maker.prefix(scene, slots_K)
    return Row(ids, positions_3P, tuple(tails)), bank.look_of_slot[number, slots_K]


def _question_tail(
    maker: RowMaker,
    scene: Scene,
    slots_K: np.ndarray,
    mixture: Mixture,
    rng: np.random.Generator,
) -> Tail:
    question = _draw_question(scene, mixture, rng)
    if rng.random() < mixture.visible_share:
        for _ in range(6):
            if all(scene.sprites[i].visible_at(slots_K).any() for i in question.targets):
                break
            question = _draw_question(scene, mixture, rng)
    label = mixture.noise.label(question, rng)
    body = question_body(scene, question) if mixture.with_options else question.problem
    return maker.tail(body, label, question.solution_of(label))


def _draw_question(scene: Scene, mixture: Mixture, rng: np.random.Generator) -> Question:
    emphasis = dict(mixture.emphasis)
    kinds = list(KINDS)
    weights = np.array([kind.share * emphasis.get(name, 1.0) for name, kind in KINDS.items()])
    while True:
        kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        choices = possible_targets(scene, kind, brief_only=mixture.brief_only)
        if choices:
            targets = choices[int(rng.integers(len(choices)))]
            return ask(scene, kind, targets, rng)
