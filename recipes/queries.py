"""Texts to score frames with, and which sprite each of them is about."""

from dataclasses import dataclass

import numpy as np

from recipes.frames import SceneBank
from strive.lab.questions import KINDS
from strive.lab.scene import COLOURS, GLYPHS, SHAPES, Sprite


@dataclass(frozen=True, slots=True)
class Query:
    """A text and the sprites that it is about.

    Args:
        text: a question without options, or a caption.
        shapes: indices of shapes it names.
        colour: index of the colour it names, or -1.
        glyph: index of the glyph it names, -1 for none, -2 for any glyph.
        any_shape: whether every shape is meant.
        weight: how often it is drawn in training.
    """

    text: str
    shapes: tuple[int, ...] = ()
    colour: int = -1
    glyph: int = -1
    any_shape: bool = False
    weight: float = 1.0

    def is_about(self, sprite: Sprite) -> bool:
        """Whether a frame that shows the sprite is relevant."""
        if sprite.is_glyph:
            return self.glyph == -2 or self.glyph == sprite.glyph
        if self.any_shape:
            return True
        if self.shapes:
            return sprite.shape in self.shapes and self.colour in (-1, sprite.colour)
        return self.colour == sprite.colour


def all_queries() -> list[Query]:
    """Return every question the lab can ask (without options), and captions."""
    queries: list[Query] = []
    for kind in ("colour", "quadrant", "describe", "when"):
        for phrase in KINDS[kind].phrases:
            queries += [
                Query(phrase.format(shape=name), shapes=(index,))
                for index, name in enumerate(SHAPES)
            ]
    for phrase in KINDS["shape"].phrases:
        queries += [
            Query(phrase.format(colour=name), colour=index, weight=2.0)
            for index, name in enumerate(COLOURS)
        ]
    for phrase in KINDS["order"].phrases:
        queries += [
            Query(phrase.format(shape=first, other=second), shapes=(i, j), weight=0.25)
            for i, first in enumerate(SHAPES)
            for j, second in enumerate(SHAPES)
            if i != j
        ]
    queries += [Query(text, any_shape=True, weight=2.0) for text in KINDS["count"].phrases]
    queries += [Query(text, glyph=-2, weight=3.0) for text in KINDS["glyph"].phrases]
    return queries + _captions()


def _captions() -> list[Query]:
    captions = [Query(f"a {shape}", shapes=(i,)) for i, shape in enumerate(SHAPES)]
    captions += [Query(colour, colour=j) for j, colour in enumerate(COLOURS)]
    captions += [
        Query(f"a {colour} {shape}", shapes=(i,), colour=j, weight=0.3)
        for i, shape in enumerate(SHAPES)
        for j, colour in enumerate(COLOURS)
    ]
    captions += [
        Query(f"the letter {glyph}", glyph=g, weight=0.3) for g, glyph in enumerate(GLYPHS)
    ]
    return captions


def relevance_of_looks(bank: SceneBank, queries: list[Query]) -> np.ndarray:
    """Return which pictures of the bank each query is about, float32 0/1 [L, Q]."""
    relevance_LQ = np.zeros((len(bank.looks_L), len(queries)), dtype=np.float32)
    about: dict[tuple[int, int, int], np.ndarray] = {}
    for number, scene in enumerate(bank.scenes):
        for sprite in scene.sprites:
            key = (sprite.shape, sprite.colour, sprite.glyph)
            if key not in about:
                about[key] = np.array([query.is_about(sprite) for query in queries])
            rows = np.unique(bank.look_of_slot[number, sprite.start_slot : sprite.end_slot])
            relevance_LQ[np.ix_(rows, np.flatnonzero(about[key]))] = 1.0
    return relevance_LQ
