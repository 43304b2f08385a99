import numpy as np
import pytest

from strive.errors import ConfigError
from strive.lab.scene import COLOURS, NUM_SLOTS, SHAPES, Difficulty, draw_scene


def test_scene_depends_on_seed_and_clip_alone():
    assert draw_scene(3, 7, Difficulty()) == draw_scene(3, 7, Difficulty())
    assert draw_scene(3, 7, Difficulty()) != draw_scene(4, 7, Difficulty())
    assert draw_scene(3, 7, Difficulty()) != draw_scene(3, 8, Difficulty())


@pytest.mark.parametrize("clip", range(40))
def test_sprites_are_distinct_and_never_share_a_quadrant(clip):
    scene = draw_scene(0, clip, Difficulty())
    shapes = [sprite for sprite in scene.sprites if not sprite.is_glyph]
    assert len({sprite.shape for sprite in shapes}) == len(shapes)
    assert len({sprite.colour for sprite in shapes}) == len(shapes)
    for slot in range(NUM_SLOTS):
        shown = [s.quadrant for s in scene.sprites if s.visible_at(np.array([slot]))[0]]
        assert len(set(shown)) == len(shown)
    for sprite in scene.sprites:
        length = sprite.end_slot - sprite.start_slot
        assert (1 <= length <= 3) if sprite.brief else (10 <= length <= 28)
    assert 6.0 - 1 / scene.fps <= scene.duration_seconds <= 16.0 + 1 / scene.fps
    assert scene.num_frames >= 80, "every slot needs a frame of its own"


def test_uniform_frames_show_brief_sprites_about_half_of_the_time():
    seen = []
    for clip in range(300):
        scene = draw_scene(1, clip, Difficulty())
        shown = np.rint(np.linspace(0, NUM_SLOTS - 1, 16)).astype(int)
        seen += [s.visible_at(shown).any() for s in scene.sprites if s.brief]
    assert 0.4 < np.mean(seen) < 0.6


def test_typical_share_is_a_parameter():
    def share(difficulty):
        from strive.lab.scene import TYPICAL_COLOUR

        sprites = [s for clip in range(200) for s in draw_scene(0, clip, difficulty).sprites]
        typical = [
            TYPICAL_COLOUR[SHAPES[s.shape]] == COLOURS[s.colour] for s in sprites if not s.is_glyph
        ]
        return np.mean(typical)

    assert share(Difficulty(typical_share=0.0)) < 0.05
    assert 0.12 < share(Difficulty()) < 0.28
    assert share(Difficulty(typical_share=0.9)) > 0.7


@pytest.mark.parametrize(
    ("field", "value"),
    [("min_evidence_slots", 0), ("max_radius", 0.5), ("typical_share", 1.5)],
)
def test_difficulty_refuses_values_out_of_range(field, value):
    with pytest.raises(ConfigError, match=str(value)):
        Difficulty(**{field: value})
