"""Position ids: worked by hand, and against transformers' own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from strive.errors import ModelError, UnknownNameError
from strive.models.inputs import prepare_prompts
from strive.models.loading import Policy, make_policy
from strive.models.positions import PositionRule, mean_seconds_per_slice, next_position
from strive.models.qwen2_5_vl import Qwen25VL, slice_time_positions
from strive.models.qwen3_vl import Qwen3VL

from .conftest import QUESTIONS, make_video


def mask(text: str) -> np.ndarray:
    """`t` is text, `v` a video token."""
    return np.array([letter == "v" for letter in text])


def qwen2_5_vl_positions(
    video_mask_P: np.ndarray,
    grid_thw: tuple[int, int, int],
    *,
    tokens_per_second: float,
    seconds_per_slice: float,
    rule: PositionRule = "published",
) -> np.ndarray:
    vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=tokens_per_second)
    config = SimpleNamespace(vision_config=vision)
    return Qwen25VL().position_ids(config, video_mask_P, grid_thw, seconds_per_slice, rule)


def qwen3_vl_positions(video_mask_P: np.ndarray, grid_thw: tuple[int, int, int]) -> np.ndarray:
    config = SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))
    return Qwen3VL().position_ids(config, video_mask_P, grid_thw, 1.0, "published")


def test_qwen2_5_vl_published_by_hand() -> None:
    # 2 tokens of text, 3 slices of 1 x 2 merged tokens, 2 tokens of text. One slice a second at 4
    # positions a second: slices stand at 0, 4, 8 after the start, which is 2.
    # The video's maximum is 2 + 8 = 10, so the text after it stands at 11 and 12.
    positions = qwen2_5_vl_positions(
        mask("ttvvvvvvtt"),
        (3, 2, 4),
        tokens_per_second=4,
        seconds_per_slice=1.0,
        rule="published",
    )
    assert positions.tolist() == [
        [0, 1, 2, 2, 6, 6, 10, 10, 11, 12],
        [0, 1, 2, 2, 2, 2, 2, 2, 11, 12],
        [0, 1, 2, 3, 2, 3, 2, 3, 11, 12],
    ]
    assert next_position(positions) == 13


def test_qwen2_5_vl_transformers_by_hand() -> None:
    # As above, but the text after the video stands at start + max(rows, columns) = 2 + 2 = 4:
    # inside the video's time range, and before its last slice.
    positions = qwen2_5_vl_positions(
        mask("ttvvvvvvtt"),
        (3, 2, 4),
        tokens_per_second=4,
        seconds_per_slice=1.0,
        rule="transformers",
    )
    assert positions[:, 8:].tolist() == [[4, 5]] * 3
    assert next_position(positions) == 6


def test_wide_and_short_video_is_followed_by_its_width() -> None:
    # 1 slice of 1 x 3: the maximum is the last column, 1 + 2 = 3; both rules go on at 4.
    for rule in ("published", "transformers"):
        positions = qwen2_5_vl_positions(
            mask("tvvvt"),
            (1, 2, 6),
            tokens_per_second=2,
            seconds_per_slice=0.0,
            rule=rule,
        )
        assert positions.tolist() == [[0, 1, 1, 1, 4], [0, 1, 1, 1, 4], [0, 1, 2, 3, 4]]


def test_short_intervals_do_not_collapse() -> None:
    # 0.4 s per slice at 4 positions a second: 0, 1.6, 3.2, 4.8 -> 0, 1, 3, 4. Cast to an integer
    # before the product, the interval would be 0 and every slice would stand at 0.
    assert slice_time_positions(4, 0.4, 4, "published").tolist() == [0, 1, 3, 4]
    assert slice_time_positions(4, 0.4, 4, "transformers").tolist() == [0, 1, 3, 4]
    # 0.2 s at 2 positions a second: 0, 0.4, 0.8, 1.2 -> slices share a position, as published.
    assert slice_time_positions(4, 0.2, 2, "published").tolist() == [0, 0, 0, 1]


def test_qwen3_vl_by_hand() -> None:
    # Timestamps between slices: text 0, slice of 1 x 2 at 1 (columns 1 and 2), text at 1 + 2 = 3,
    # slice at 4, text at 6. Time stands still within a slice.
    positions = qwen3_vl_positions(mask("tvvtvvt"), (2, 2, 4))
    assert positions.tolist() == [
        [0, 1, 1, 3, 4, 4, 6],
        [0, 1, 1, 3, 4, 4, 6],
        [0, 1, 2, 3, 4, 5, 6],
    ]


def test_mean_interval() -> None:
    # Frames at 0, 1, 2 and 6 s: mean spacing 2 s, two frames a slice, so 4 s a slice.
    assert mean_seconds_per_slice(np.array([0.0, 1.0, 2.0, 6.0])) == 4.0
    assert mean_seconds_per_slice(np.array([3.0])) == 0.0
    # At an even rate it is what the weights saw, 2 / fps: 1 s at 2 frames a second, K odd or not.
    assert mean_seconds_per_slice(np.arange(16) / 2) == 1.0
    assert mean_seconds_per_slice(np.arange(5) / 2) == 1.0


def test_tokens_that_do_not_fit_the_frames_are_refused() -> None:
    with pytest.raises(ModelError, match="5 video tokens"):
        qwen2_5_vl_positions(mask("tvvvvvt"), (3, 2, 4), tokens_per_second=2, seconds_per_slice=1.0)
    with pytest.raises(ModelError, match="2 runs"):
        qwen2_5_vl_positions(mask("vvtvv"), (1, 2, 4), tokens_per_second=2, seconds_per_slice=1.0)
    with pytest.raises(ModelError, match="2 slices of 2"):
        qwen3_vl_positions(mask("vvvv"), (2, 2, 4))
    with pytest.raises(UnknownNameError, match="published"):
        slice_time_positions(1, 1.0, 1.0, "newest")  # type: ignore[arg-type]


@given(
    before=st.integers(0, 5),
    after=st.integers(1, 5),
    slices=st.integers(1, 6),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    seconds=st.floats(0.0, 5.0),
)
def test_published_text_is_above_everything_before_it(
    before: int, after: int, slices: int, rows: int, columns: int, seconds: float
) -> None:
    tokens = np.array([False] * before + [True] * slices * rows * columns + [False] * after)
    positions = qwen2_5_vl_positions(
        tokens,
        (slices, 2 * rows, 2 * columns),
        tokens_per_second=2,
        seconds_per_slice=seconds,
    )
    start = len(tokens) - after
    assert (positions[:, start:] == positions[0, start:]).all()
    assert positions[0, start] == positions[:, :start].max(initial=-1) + 1
    assert next_position(positions) == positions.max() + 1


@pytest.mark.parametrize("num_frames", [1, 5, 8])
def test_transformers_rule_equals_transformers(policy: Policy, num_frames: int) -> None:
    policy = make_policy(policy.model, policy.processor, position_rule="transformers")
    video = make_video(seed=3, num_frames=num_frames, height=60, width=130)
    prompt = prepare_prompts(policy, [QUESTIONS[0]], [video])[0]
    arguments = {"second_per_grid_ts": torch.tensor([prompt.seconds_per_slice])}
    wanted, _ = policy.model.model.get_rope_index(
        torch.from_numpy(prompt.input_ids_P)[None],
        mm_token_type_ids=torch.from_numpy(prompt.video_mask_P)[None].int() * 2,
        video_grid_thw=torch.tensor([prompt.video_grid_thw]),
        attention_mask=torch.ones(1, len(prompt.input_ids_P)),
        **(arguments if policy.family.name == "qwen2_5_vl" else {}),
    )
    np.testing.assert_array_equal(prompt.position_ids_3P, wanted[:, 0].numpy())
