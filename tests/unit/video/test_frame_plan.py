from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strive.errors import ConfigError, UnknownNameError
from strive.video.frame_plan import (
    DEFAULT_MAX_PIXELS,
    FRAME_PLANS,
    FramePlan,
    fps_indices,
    keyframe_indices,
    linspace_indices,
    uniform_indices,
)
from strive.video.source import VideoSource


def facts(num_frames: int, keyframes: list[int] | None = None, fps: float = 25.0) -> VideoSource:
    keyframes_k = np.array(keyframes or [], np.int64)
    return VideoSource(
        Path("made_up.mp4"), "mov", "h264", num_frames, keyframes_K=keyframes_k, stated_fps=fps
    )


def test_uniform_takes_segment_midpoints() -> None:
    # 10 frames in 4 segments of 2.5: midpoints 1.25, 3.75, 6.25, 8.75
    assert uniform_indices(facts(10), 4).tolist() == [1, 3, 6, 8]


def test_short_clip_gives_each_frame_once() -> None:
    assert uniform_indices(facts(5), 64).tolist() == [0, 1, 2, 3, 4]
    assert uniform_indices(facts(1), 64).tolist() == [0]


@given(st.integers(1, 10**6), st.integers(1, 200))
def test_uniform_against_plain_reference(num_source: int, num_frames: int) -> None:
    plain = sorted({int((i + Fraction(1, 2)) * num_source / num_frames) for i in range(num_frames)})
    indices = uniform_indices(facts(num_source), num_frames)
    assert indices.tolist() == plain
    assert len(indices) == min(num_source, num_frames)
    assert (np.diff(indices) > 0).all()
    assert indices[0] >= 0 and indices[-1] < num_source


def test_linspace_includes_both_ends_and_rounds() -> None:
    # 10 frames, 4 indices: 0, 3, 6, 9. 11 frames: 0, 3.33, 6.67, 10.
    assert linspace_indices(facts(10), 4).tolist() == [0, 3, 6, 9]
    assert linspace_indices(facts(11), 4).tolist() == [0, 3, 7, 10]
    # 4 frames, 3 indices: 0, 1.5, 3: the half goes to the even 2. 6 frames: 0, 2.5 (to 2), 5.
    assert linspace_indices(facts(4), 3).tolist() == [0, 2, 3]
    assert linspace_indices(facts(6), 3).tolist() == [0, 2, 5]


def test_linspace_of_short_clips_gives_each_frame_once() -> None:
    assert linspace_indices(facts(3), 8).tolist() == [0, 1, 2]
    assert linspace_indices(facts(1), 8).tolist() == [0]
    assert linspace_indices(facts(9), 1).tolist() == [0]


@given(st.integers(1, 10**6), st.integers(2, 200))
def test_linspace_against_plain_reference(num_source: int, num_frames: int) -> None:
    # Python's round of a Fraction is exact and goes to the even neighbour.
    plain = {round(Fraction(i * (num_source - 1), num_frames - 1)) for i in range(num_frames)}
    indices = linspace_indices(facts(num_source), num_frames)
    assert indices.tolist() == sorted(plain)
    assert (indices[0], indices[-1]) == (0, num_source - 1)


@pytest.mark.parametrize(
    ("num_source", "fps", "most", "count"),
    [
        (250, 25.0, 64, 20),  # 10 s: 20 frames
        (275, 25.0, 64, 22),  # 11 s: 22 frames
        (265, 25.0, 64, 20),  # 10.6 s: 21.2 frames, floored to 20
        (250, 25.0, 16, 16),  # at most 16
        (250, 25.0, 15, 14),  # an odd limit is floored as well
        (25, 25.0, 64, 4),  # 1 s: 2 frames, raised to 4
        (3, 25.0, 64, 2),  # fewer frames than the minimum: the even number that there is
        (2, 25.0, 64, 2),
        (1, 25.0, 64, 1),  # one frame
        (40, 1.0, 64, 40),  # 40 s at 1 a second: 80 wanted, 40 exist
        (250, 25.0, 1, 1),
    ],
)
def test_fps_counts_two_a_second(num_source: int, fps: float, most: int, count: int) -> None:
    indices = fps_indices(facts(num_source, fps=fps), most)
    assert len(indices) == count
    assert indices.tolist() == linspace_indices(facts(num_source), count).tolist()
    assert indices[-1] == (num_source - 1 if count > 1 else 0)


@given(st.integers(1, 3000), st.integers(1, 120), st.integers(1, 128))
def test_fps_against_the_published_rule(num_source: int, fps: int, most: int) -> None:
    # The steps of the rule one by one, in exact numbers.
    wanted = max(Fraction(num_source, fps) * 2, 4)
    count = int(min(wanted, most // 2 * 2, num_source)) // 2 * 2
    # Our measured rate comes from stamps and is a little off an integer.
    for rate in (fps, fps * (1 + 1e-12), fps * (1 - 1e-12)):
        indices = fps_indices(facts(num_source, fps=rate), most)
        assert len(indices) == max(count, 1)
        assert (np.diff(indices) > 0).all()


def test_keyframe_snaps_to_the_nearest_of_dense_keyframes() -> None:
    # Stride 100 / 4 = 25, midpoints 12, 37, 62, 87. Keyframes every 10: at most 12.5 apart.
    # 12 -> 10, 37 -> 40, 62 -> 60, 87 -> 90 (90 is 3 away, 80 is 7).
    assert keyframe_indices(facts(100, list(range(0, 100, 10))), 4).tolist() == [10, 40, 60, 90]


def test_keyframe_takes_the_earlier_of_two_at_the_same_distance() -> None:
    # Stride 20, midpoints 10, 30, 50, 70, 90; keyframes every 4: 10 lies midway of 8 and 12.
    indices = keyframe_indices(facts(100, list(range(0, 100, 4))), 5)
    assert indices.tolist() == [8, 28, 48, 68, 88]


def test_keyframes_half_a_stride_apart_are_dense_enough() -> None:
    # Stride 80 / 4 = 20, midpoints 10, 30, 50, 70; keyframes 4, 14, ...: each sample moves by 4.
    indices = keyframe_indices(facts(80, list(range(4, 80, 10))), 4)
    assert indices.tolist() == [14, 34, 54, 74]
    # Of 79 frames the stride is 19.75: 9, 29, 49, 69 stay where they are.
    indices = keyframe_indices(facts(79, list(range(4, 79, 10))), 4)
    assert indices.tolist() == [9, 29, 49, 69]


def test_sparse_keyframes_leave_plain_uniform() -> None:
    # Stride 25: keyframes 13 apart are farther than half of it.
    assert keyframe_indices(facts(100, list(range(0, 100, 13))), 4).tolist() == [12, 37, 62, 87]
    assert keyframe_indices(facts(100, [0]), 4).tolist() == [12, 37, 62, 87]
    assert keyframe_indices(facts(100), 4).tolist() == [12, 37, 62, 87]
    # One frame of many: the stride is the whole clip, the group up to its end too long.
    assert keyframe_indices(facts(100, [0]), 1).tolist() == [50]


def test_keyframe_snaps_each_sample_by_its_own_neighbours() -> None:
    # Stride 25, midpoints 12, 37, 62, 87. Dense in the first half (0, 10, .., 50), then one group
    # of 50 frames: 12 -> 10, 37 -> 40, the others stay.
    keyframes = [0, 10, 20, 30, 40, 50]
    assert keyframe_indices(facts(100, keyframes), 4).tolist() == [10, 40, 62, 87]
    # Nothing before the first keyframe can be snapped: a cut file begins between two.
    assert keyframe_indices(facts(100, [16, 26, 36, 46]), 4).tolist() == [12, 36, 62, 87]


@given(st.data(), st.integers(1, 2000), st.integers(1, 100))
def test_keyframe_moves_little_and_keeps_the_number_of_frames(
    data: st.DataObject, num_source: int, num_frames: int
) -> None:
    keyframes = data.draw(st.lists(st.integers(0, num_source - 1), unique=True).map(sorted))
    uniform = uniform_indices(facts(num_source), num_frames)
    indices = keyframe_indices(facts(num_source, keyframes), num_frames)
    assert len(indices) == len(uniform)
    assert (np.diff(indices) > 0).all()
    stride = Fraction(num_source, num_frames)
    bounds = [*keyframes, num_source]
    for plain, index in zip(uniform.tolist(), indices.tolist(), strict=True):
        before = [k for k in keyframes if k <= plain]
        if not before:
            assert index == plain
            continue
        start, end = before[-1], bounds[len(before)]
        if 2 * (end - start) > stride:
            assert index == plain
            continue
        near = [k for k in (start, end) if k in keyframes]
        assert index == min(near, key=lambda k: (abs(k - plain), k))


def test_every_plan_has_a_budget() -> None:
    assert DEFAULT_MAX_PIXELS.keys() == FRAME_PLANS.keys()
    assert DEFAULT_MAX_PIXELS["uniform"] == 100_352


def test_uniform_keeps_its_fields() -> None:
    # Hashed into the frames key: another text would make every existing cache a new one.
    assert FramePlan("uniform", 64).fields == {"kind": "uniform", "num_frames": 64}


def test_unknown_plan_and_size_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown frame plan 'unifrom'.*'uniform'"):
        FramePlan("unifrom")
    with pytest.raises(ConfigError, match="--frames"):
        FramePlan("uniform", 0)
