import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strive.errors import ConfigError, UnknownNameError
from strive.video.frame_plan import FramePlan, SourceFacts, uniform_indices


def facts(num_frames: int) -> SourceFacts:
    return SourceFacts(num_frames, 25.0, num_frames / 25)


def test_uniform_takes_segment_midpoints() -> None:
    # 10 frames in 4 segments of 2.5: midpoints 1.25, 3.75, 6.25, 8.75
    assert uniform_indices(facts(10), 4).tolist() == [1, 3, 6, 8]


def test_short_clip_gives_each_frame_once() -> None:
    assert uniform_indices(facts(5), 64).tolist() == [0, 1, 2, 3, 4]
    assert uniform_indices(facts(1), 64).tolist() == [0]


@given(st.integers(1, 10**6), st.integers(1, 200))
def test_uniform_against_plain_reference(num_source: int, num_frames: int) -> None:
    from fractions import Fraction

    plain = sorted({int((i + Fraction(1, 2)) * num_source / num_frames) for i in range(num_frames)})
    indices = uniform_indices(facts(num_source), num_frames)
    assert indices.tolist() == plain
    assert len(indices) == min(num_source, num_frames)
    assert (np.diff(indices) > 0).all()
    assert indices[0] >= 0 and indices[-1] < num_source


def test_unknown_plan_and_size_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown frame plan 'unifrom'.*'uniform'"):
        FramePlan("unifrom")
    with pytest.raises(ConfigError, match="--frames"):
        FramePlan("uniform", 0)
