"""Asks about a scene: records of Video-R1's five problem types, with balanced answer letters."""

from dataclasses import dataclass

import numpy as np

from strive.lab.scene import (
    COLOURS,
    GLYPHS,
    QUADRANTS,
    SHAPES,
    TYPICAL_COLOUR,
    TYPICAL_SHAPE,
    Scene,
    Sprite,
)
from strive.records import ProblemType, Record

QUESTIONS_PER_CLIP = 4
LETTERS = "ABCDEF"
_SHUFFLED_OPTIONS = 4


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of question.

    Args:
        share: how often it is asked.
        problem_type: its Video-R1 problem type.
        phrases: its wordings, with `{shape}`, `{colour}`, `{other}` to fill in.
    """

    share: float
    problem_type: ProblemType
    phrases: tuple[str, ...]


KINDS = {
    "colour": Kind(
        0.27,
        "multiple choice",
        ("What color is the {shape}?", "Which color does the {shape} have?"),
    ),
    "shape": Kind(
        0.22, "multiple choice", ("Which shape is {colour}?", "What shape is the {colour} one?")
    ),
    "quadrant": Kind(
        0.18,
        "multiple choice",
        ("Where is the {shape}?", "In which corner does the {shape} appear?"),
    ),
    "order": Kind(
        0.13,
        "multiple choice",
        (
            "Which appears first, the {shape} or the {other}?",
            "What is shown first, the {shape} or the {other}?",
        ),
    ),
    "count": Kind(
        0.06, "numerical", ("How many shapes appear?", "How many shapes are shown in the video?")
    ),
    "glyph": Kind(0.06, "OCR", ("Which letter is shown?", "What letter appears in the video?")),
    "describe": Kind(
        0.04, "free-form", ("Describe the {shape}.", "Describe how the {shape} looks.")
    ),
    "when": Kind(
        0.04,
        "regression",
        (
            "At what second does the {shape} appear?",
            "After how many seconds is the {shape} shown?",
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question before it becomes a record.

    Args:
        kind: a key of `KINDS`.
        problem: the question's text.
        answer: the correct answer in words (`red`, `3`, `top left`).
        options: answers to choose from, in words and in order; empty if the answer is free.
        prior_answer: what a language prior would answer, in words; empty if there is none.
        targets: positions in `scene.sprites` of the sprites that the answer depends on.
    """

    kind: str
    problem: str
    answer: str
    options: tuple[str, ...]
    prior_answer: str
    targets: tuple[int, ...]

    @property
    def problem_type(self) -> ProblemType:
        """The Video-R1 problem type."""
        return KINDS[self.kind].problem_type

    def solution_of(self, answer: str) -> str:
        """Return the text between the answer tags for an answer in words."""
        return LETTERS[self.options.index(answer)] if self.options else answer


def ask(
    scene: Scene,
    kind: str,
    targets: tuple[int, ...],
    rng: np.random.Generator,
    *,
    letter: int | None = None,
) -> Question:
    """Word one question.

    Args:
        scene: the clip.
        kind: a key of `KINDS`.
        targets: sprites asked about (two for `order`, ignored by `count` and `glyph`).
        rng: draws the phrase and the options.
        letter: where the correct option is to stand if options are shuffled; drawn if not given.
    """
    if kind == "count":
        targets = tuple(i for i, sprite in enumerate(scene.sprites) if not sprite.is_glyph)
    elif kind == "glyph":
        targets = tuple(i for i, sprite in enumerate(scene.sprites) if sprite.is_glyph)
    sprites = [scene.sprites[i] for i in targets]
    first = sprites[0]
    phrases = KINDS[kind].phrases
    phrase = phrases[int(rng.integers(len(phrases)))]
    problem = phrase.format(
        shape=SHAPES[first.shape],
        colour=COLOURS[first.colour],
        other=SHAPES[sprites[-1].shape],
    )
    answer, prior, pool = _answer(scene, kind, sprites)
    options: tuple[str, ...] = ()
    if KINDS[kind].problem_type == "multiple choice":
        options = _options(scene, answer, prior, pool, rng, letter)
    return Question(kind, problem, answer, options, prior, targets)


def _answer(scene: Scene, kind: str, sprites: list[Sprite]) -> tuple[str, str, tuple[str, ...]]:
    """Return (answer, prior answer, words that may serve as options)."""
    first = sprites[0]
    if kind == "colour":
        return COLOURS[first.colour], TYPICAL_COLOUR[SHAPES[first.shape]], COLOURS
    if kind == "shape":
        return SHAPES[first.shape], TYPICAL_SHAPE[COLOURS[first.colour]], SHAPES
    if kind == "quadrant":
        return QUADRANTS[first.quadrant], "", QUADRANTS
    if kind == "order":
        names = tuple(SHAPES[sprite.shape] for sprite in sprites)
        earliest = int(np.argmin([sprite.start_slot for sprite in sprites]))
        return names[earliest], "", SHAPES
    if kind == "count":
        return str(len(sprites)), "4", ()
    if kind == "glyph":
        return GLYPHS[first.glyph], "", ()
    if kind == "describe":
        look = f"a {COLOURS[first.colour]} {SHAPES[first.shape]}"
        typical = f"a {TYPICAL_COLOUR[SHAPES[first.shape]]} {SHAPES[first.shape]}"
        return look, typical, ()
    return f"{scene.span_seconds(first)[0]:.1f}", "", ()


def _options(
    scene: Scene,
    answer: str,
    prior: str,
    pool: tuple[str, ...],
    rng: np.random.Generator,
    letter: int | None,
) -> tuple[str, ...]:
    """All words in fixed order; or four, the wrong ones being the prior's and those in sight."""
    if not scene.difficulty.shuffled_options:
        return pool
    wrong = [word for word in rng.permutation(list(pool)).tolist() if word != answer]
    seen = {COLOURS[s.colour] for s in scene.sprites if not s.is_glyph}
    if pool == SHAPES:
        seen = {SHAPES[s.shape] for s in scene.sprites if not s.is_glyph}
    wrong.sort(key=lambda word: (word != prior, word not in seen and rng.random() < 0.5))
    wrong = wrong[: _SHUFFLED_OPTIONS - 1]
    wrong = [wrong[i] for i in rng.permutation(len(wrong))]
    place = int(rng.integers(len(wrong) + 1)) if letter is None else letter % (len(wrong) + 1)
    return (*wrong[:place], answer, *wrong[place:])


def possible_targets(scene: Scene, kind: str, *, brief_only: bool = True) -> list[tuple[int, ...]]:
    """List the sprites, or pairs of sprites, that a kind of question can ask about."""
    shapes = [i for i, sprite in enumerate(scene.sprites) if not sprite.is_glyph]
    if kind == "count":
        return [tuple(shapes)]
    if kind == "glyph":
        glyphs = [i for i, sprite in enumerate(scene.sprites) if sprite.is_glyph]
        return [tuple(glyphs)] if glyphs else []
    if kind == "order":
        starts = {i: scene.sprites[i].start_slot for i in shapes}
        return [
            (i, j) for i in shapes for j in shapes if i != j and abs(starts[i] - starts[j]) >= 4
        ]
    return [(i,) for i in shapes if scene.sprites[i].brief or not brief_only]


def draw_questions(
    scene: Scene, rng: np.random.Generator, *, count: int = QUESTIONS_PER_CLIP
) -> list[Question]:
    """Draw different questions about a clip; with shuffled options, letters are spread evenly."""
    letters = rng.permutation(_SHUFFLED_OPTIONS)
    kinds = list(KINDS)
    weights = np.array([kind.share for kind in KINDS.values()])
    weights /= weights.sum()
    asked: set[tuple[str, tuple[int, ...]]] = set()
    questions: list[Question] = []
    while len(questions) < count:
        kind = kinds[int(rng.choice(len(kinds), p=weights))]
        choices = [
            t
            for t in possible_targets(scene, kind)
            if (kind, t) not in asked and (kind, t[::-1]) not in asked
        ]
        if not choices:
            continue
        targets = choices[int(rng.integers(len(choices)))]
        asked.add((kind, targets))
        letter = int(letters[len(questions) % len(letters)])
        questions.append(ask(scene, kind, targets, rng, letter=letter))
    return questions


def to_record(scene: Scene, question: Question, *, problem_id: int, video_id: str) -> Record:
    """Turn a question into a record of Video-R1's schema, with its evidence spans in seconds."""
    options = tuple(
        f"{letter}. {word}" for letter, word in zip(LETTERS, question.options, strict=False)
    )
    spans = sorted(scene.span_seconds(scene.sprites[i]) for i in question.targets)
    return Record(
        question_id=str(problem_id),
        video_id=video_id,
        problem=question.problem,
        problem_type=question.problem_type,
        options=options,
        solution=f"<answer>{question.solution_of(question.answer)}</answer>",
        data_source=f"lab/{question.kind}",
        evidence_spans_seconds=tuple(spans),
    )
