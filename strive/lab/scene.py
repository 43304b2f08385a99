"""Content of a lab clip: sprites on a timeline of 64 slots, drawn from `(seed, clip number)` alone.

A scene is plain numbers and no pixels; `render.py` draws it and `questions.py` asks about it. Every
sprite of a clip has its own shape and its own colour, so that a question has one answer.
"""

from dataclasses import dataclass, field

import numpy as np

from strive.errors import ConfigError
from strive.seeding import derive_rng

NUM_SLOTS = 64
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
GLYPHS = "AEHKLTXZ"
TYPICAL_COLOUR = dict(
    zip(SHAPES, ("yellow", "blue", "green", "red", "cyan", "purple"), strict=True)
)
"""Each shape's most expected colour: what a language prior answers without looking."""
TYPICAL_SHAPE = {colour: shape for shape, colour in TYPICAL_COLOUR.items()}

FRAME_RATES = (10.0, 12.0, 15.0, 24.0, 25.0, 30000 / 1001)
CODECS = ("h264", "hevc", "vp9", "av1")
SQUARE_SIZE = (112, 112)
OTHER_SIZES = ((84, 112), (112, 84), (90, 160))


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Difficulty of the world; a built folder is identified by it too.

    Args:
        min_evidence_slots: shortest visibility of an asked-about sprite, in slots of 1/64 clip.
        max_evidence_slots: longest visibility of an asked-about sprite, in slots.
        min_distractor_slots: shortest visibility of a distractor, in slots.
        max_distractor_slots: longest visibility of a distractor, in slots.
        typical_share: share of sprites that wear their shape's typical colour where it is free.
        min_radius: smallest sprite radius as a fraction of the frame's short side.
        max_radius: largest sprite radius as a fraction of the frame's short side.
        other_codec_share: share of clips encoded as HEVC, VP9 or AV1.
        other_size_share: share of clips with another aspect ratio.
        shuffled_options: give four options in random order rather than all words in fixed order;
            the shipped policies know the fixed order alone.
    """

    min_evidence_slots: int = 1
    max_evidence_slots: int = 3
    min_distractor_slots: int = 10
    max_distractor_slots: int = 28
    typical_share: float = 0.2
    min_radius: float = 0.18
    max_radius: float = 0.22
    other_codec_share: float = 0.04
    other_size_share: float = 0.04
    shuffled_options: bool = False

    def __post_init__(self) -> None:
        spans = (
            ("evidence_slots", self.min_evidence_slots, self.max_evidence_slots, 8),
            ("distractor_slots", self.min_distractor_slots, self.max_distractor_slots, NUM_SLOTS),
        )
        for name, low, high, limit in spans:
            if not 1 <= low <= high <= limit:
                raise ConfigError(
                    f"difficulty: min_{name}={low} and max_{name}={high} must satisfy "
                    f"1 <= min <= max <= {limit}"
                )
        if not 0.05 <= self.min_radius <= self.max_radius <= 0.24:
            raise ConfigError(
                f"difficulty: min_radius={self.min_radius} and max_radius={self.max_radius} must "
                "satisfy 0.05 <= min <= max <= 0.24 (a sprite stays inside its quadrant)"
            )
        for name in ("typical_share", "other_codec_share", "other_size_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"difficulty: {name}={getattr(self, name)} must lie in [0, 1]")


@dataclass(frozen=True, slots=True)
class Sprite:
    """One thing that is visible in `[start_slot, end_slot)`.

    Args:
        shape: index into `SHAPES`, or -1 for a glyph.
        colour: index into `COLOURS`, or -1 for a glyph (drawn white).
        glyph: index into `GLYPHS`, or -1 for a shape.
        quadrant: index into `QUADRANTS`.
        start_slot: first slot that shows it.
        end_slot: first slot that no longer shows it.
        centre_x: centre as a fraction of the frame's width.
        centre_y: centre as a fraction of the frame's height.
        radius: radius as a fraction of the frame's short side.
        rgb: colour with its jitter, each channel in [0, 1].
        brief: whether it is evidence (short) rather than a distractor (long).
    """

    shape: int
    colour: int
    glyph: int
    quadrant: int
    start_slot: int
    end_slot: int
    centre_x: float
    centre_y: float
    radius: float
    rgb: tuple[float, float, float]
    brief: bool

    @property
    def is_glyph(self) -> bool:
        """Whether this is a written character rather than a shape."""
        return self.glyph >= 0

    def visible_at(self, slots_K: np.ndarray) -> np.ndarray:
        """Return, for every slot number, whether the sprite is visible there."""
        return (slots_K >= self.start_slot) & (slots_K < self.end_slot)


@dataclass(frozen=True, slots=True)
class Scene:
    """A clip before it has pixels. `num_frames` frames at `fps`; height and width in pixels."""

    clip: int
    sprites: tuple[Sprite, ...]
    fps: float
    num_frames: int
    height: int
    width: int
    codec: str
    background_seed: int
    difficulty: Difficulty = field(default_factory=Difficulty)

    @property
    def duration_seconds(self) -> float:
        """Length of the clip."""
        return self.num_frames / self.fps

    def slot_of_frames(self) -> np.ndarray:
        """Return the slot that each file frame shows (by the middle of its display time), [N]."""
        middles_N = (np.arange(self.num_frames) + 0.5) / self.num_frames
        return np.floor(middles_N * NUM_SLOTS).astype(np.int64)

    def span_seconds(self, sprite: Sprite) -> tuple[float, float]:
        """Return the sprite's time span `[start, end)` by file frames.

        Both ends are set back by a quarter of a frame, so that rounded presentation times of the
        frames fall on the right side of them.
        """
        slots_N = self.slot_of_frames()
        first, end = np.searchsorted(slots_N, [sprite.start_slot, sprite.end_slot])
        start_seconds = max(0.0, (float(first) - 0.25) / self.fps)
        return round(start_seconds, 5), round((float(end) - 0.25) / self.fps, 5)


_BASE_RGB = np.array(
    [
        (0.90, 0.12, 0.12),
        (0.12, 0.72, 0.15),
        (0.15, 0.25, 0.95),
        (0.95, 0.88, 0.10),
        (0.68, 0.15, 0.85),
        (0.10, 0.85, 0.90),
    ]
)


def draw_scene(seed: int, clip: int, difficulty: Difficulty) -> Scene:
    """Draw the scene of clip number `clip`; it does not depend on how many clips there are."""
    rng = derive_rng("lab-scene", seed, clip)
    fps = float(FRAME_RATES[int(rng.integers(len(FRAME_RATES)))])
    shortest_seconds = max(6.0, 80 / fps)
    num_frames = round(fps * float(rng.uniform(shortest_seconds, 16.0)))
    codec = CODECS[0]
    if rng.random() < difficulty.other_codec_share:
        codec = CODECS[1 + int(rng.integers(len(CODECS) - 1))]
    height, width = SQUARE_SIZE
    if rng.random() < difficulty.other_size_share:
        height, width = OTHER_SIZES[int(rng.integers(len(OTHER_SIZES)))]
    return Scene(
        clip=clip,
        sprites=_draw_sprites(rng, difficulty),
        fps=fps,
        num_frames=num_frames,
        height=height,
        width=width,
        codec=codec,
        background_seed=int(rng.integers(2**31)),
        difficulty=difficulty,
    )


def _draw_sprites(rng: np.random.Generator, difficulty: Difficulty) -> tuple[Sprite, ...]:
    num_long, num_brief = int(rng.integers(1, 3)), int(rng.integers(2, 4))
    with_glyph = bool(rng.random() < 0.4)
    shapes = rng.permutation(len(SHAPES))[: num_long + num_brief].tolist()
    colours = _draw_colours(rng, shapes, difficulty.typical_share)
    busy = np.zeros((len(QUADRANTS), NUM_SLOTS), dtype=bool)
    sprites: list[Sprite] = []
    looks = list(zip(shapes, colours, strict=True))
    for shape, colour in looks[:num_long]:
        low, high = difficulty.min_distractor_slots, difficulty.max_distractor_slots
        length = int(rng.integers(low, high + 1))
        start = int(rng.integers(0, NUM_SLOTS - length + 1))
        span = (start, start + length)
        sprites.append(_place(rng, busy, span, difficulty, shape=shape, colour=colour))
    spans = _brief_spans(rng, num_brief + with_glyph, difficulty)
    for (shape, colour), span in zip(looks[num_long:], spans, strict=False):
        sprite = _place(rng, busy, span, difficulty, shape=shape, colour=colour, brief=True)
        sprites.append(sprite)
    if with_glyph:
        glyph = int(rng.integers(len(GLYPHS)))
        sprites.append(_place(rng, busy, spans[-1], difficulty, glyph=glyph, brief=True))
    return tuple(sprites)


def _draw_colours(rng: np.random.Generator, shapes: list[int], typical_share: float) -> list[int]:
    free = list(range(len(COLOURS)))
    colours: list[int] = []
    for shape in shapes:
        typical = COLOURS.index(TYPICAL_COLOUR[SHAPES[shape]])
        others = [colour for colour in free if colour != typical] or free
        if typical in free and rng.random() < typical_share:
            chosen = typical
        else:
            chosen = others[int(rng.integers(len(others)))]
        free.remove(chosen)
        colours.append(chosen)
    return colours


def _brief_spans(
    rng: np.random.Generator, count: int, difficulty: Difficulty
) -> list[tuple[int, int]]:
    """Draw spans that are at least two slots apart, so that no two onsets are confused."""
    lengths = rng.integers(
        difficulty.min_evidence_slots, difficulty.max_evidence_slots + 1, size=count
    )
    spare = NUM_SLOTS - int(lengths.sum()) - 2 * count
    gaps = np.sort(rng.integers(0, spare + 1, size=count))
    starts = gaps + np.concatenate([[0], np.cumsum(lengths[:-1] + 2)])
    spans = [(int(s), int(s + n)) for s, n in zip(starts, lengths, strict=True)]
    return [spans[i] for i in rng.permutation(count)]


def _place(
    rng: np.random.Generator,
    busy: np.ndarray,
    span: tuple[int, int],
    difficulty: Difficulty,
    *,
    shape: int = -1,
    colour: int = -1,
    glyph: int = -1,
    brief: bool = False,
) -> Sprite:
    """Put a sprite into a quadrant that is free during its span; marks it busy."""
    start, end = span
    free = [q for q in range(len(QUADRANTS)) if not busy[q, start:end].any()]
    quadrant = free[int(rng.integers(len(free)))]
    busy[quadrant, start:end] = True
    radius = float(rng.uniform(difficulty.min_radius, difficulty.max_radius))
    slack = 0.24 - radius + 0.015
    centre_x = 0.25 + 0.5 * (quadrant % 2) + float(rng.uniform(-slack, slack))
    centre_y = 0.25 + 0.5 * (quadrant // 2) + float(rng.uniform(-slack, slack))
    base = np.array([0.95, 0.95, 0.95]) if colour < 0 else _BASE_RGB[colour]
    rgb = np.clip(base + rng.uniform(-0.06, 0.06, size=3), 0.0, 1.0)
    return Sprite(
        shape=shape,
        colour=colour,
        glyph=glyph,
        quadrant=quadrant,
        start_slot=start,
        end_slot=end,
        centre_x=centre_x,
        centre_y=centre_y,
        radius=radius,
        rgb=(float(rgb[0]), float(rgb[1]), float(rgb[2])),
        brief=brief,
    )
