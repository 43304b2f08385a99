"""The packed row: layout by hand, and what its positions see against a slow reading of the rule."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strive.models.inputs import PromptInputs
from strive.models.loading import Policy
from strive.models.rows import packed_rows, prompt_rows

from .test_language import seen_by_rule


def fake_prompt(length: int, next_position: int = 50) -> PromptInputs:
    """Ids 100, 101, ...; the layout needs no real video."""
    return PromptInputs(
        input_ids_P=100 + np.arange(length),
        video_mask_P=np.arange(length) == 0,
        position_ids_3P=np.broadcast_to(np.arange(length), (3, length)),
        next_position=next_position,
        pixel_values=torch.zeros(0),
        video_grid_thw=(1, 2, 2),
        seconds_per_slice=1.0,
        text="",
    )


def test_packed_row_by_hand(policies: dict[str, Policy]) -> None:
    # A prompt of 2, then completions of 3, 1 and 2 tokens. The last token of each is left out:
    # 2 + 2 + 0 + 1 = 5 columns. Token 0 of each is predicted by the prompt's last column (1);
    # token 1 and 2 of the first by its columns 2 and 3; token 1 of the third by column 4.
    policy = policies["qwen2_5_vl"]
    tokens = np.array([[[1, 2, 3], [4, 0, 0], [5, 6, 0]]])
    rows, source = packed_rows(policy, [fake_prompt(2)], tokens, np.array([[3, 1, 2]]))
    assert rows.ids_BT.tolist() == [[100, 101, 1, 2, 5]]
    assert rows.segments_BT.tolist() == [[0, 0, 1, 1, 3]]
    assert rows.position_ids_3BT[:, 0].tolist() == [[0, 1, 50, 51, 50]] * 3
    assert source[0, 0].tolist() == [1, 2, 3]
    assert source[0, 1, :1].tolist() == [1]
    assert source[0, 2, :2].tolist() == [1, 4]
    assert rows.runs_B == (((0, 2), (1, 2), (3, 1)),)
    assert not rows.is_causal
    assert seen_by_rule(rows)[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],  # the third completion does not see the first
    ]


def test_one_completion_is_causal(policies: dict[str, Policy]) -> None:
    policy = policies["qwen2_5_vl"]
    tokens, lengths = np.array([[[1, 2, 3]]]), np.array([[3]])
    rows, _ = packed_rows(policy, [fake_prompt(2)], tokens, lengths)
    assert rows.is_causal
    assert prompt_rows(policy, [fake_prompt(2), fake_prompt(2)]).is_causal
    # Padding behind a completion changes nothing for it; padding before a prompt would be seen.
    uneven, _ = packed_rows(policy, [fake_prompt(2), fake_prompt(4)], tokens.repeat(2, 0),
                            lengths.repeat(2, 0))  # fmt: skip
    assert uneven.runs_B == (((0, 2), (1, 2), (-1, 2)), ((0, 4), (1, 2)))
    assert uneven.is_causal
    assert not prompt_rows(policy, [fake_prompt(2), fake_prompt(3)]).is_causal


def test_prompts_are_padded_on_the_left(policies: dict[str, Policy]) -> None:
    policy = policies["qwen2_5_vl"]
    rows = prompt_rows(policy, [fake_prompt(3), fake_prompt(1)])
    assert rows.ids_BT.tolist() == [[100, 101, 102], [policy.pad_id, policy.pad_id, 100]]
    assert rows.runs_B == (((0, 3),), ((-1, 2), (0, 1)))
    # The short prompt sees itself alone.
    assert seen_by_rule(rows)[1, 2].int().tolist() == [0, 0, 1]


@settings(max_examples=30)
@given(
    prompts=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    generations=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_rows_equal_the_slow_definition(
    policies: dict[str, Policy], prompts: list[int], generations: int, seed: int
) -> None:
    """What each position sees, in order, is its prompt and the completion before it."""
    policy = policies["qwen3_vl"]
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 5, (len(prompts), generations))
    lengths[0, 0] = max(lengths[0, 0], 1)
    tokens = rng.integers(0, 90, (len(prompts), generations, int(lengths.max())))
    rows, source = packed_rows(policy, [fake_prompt(n) for n in prompts], tokens, lengths)
    seen_BTT = seen_by_rule(rows)
    for b, n in enumerate(prompts):
        for g in range(generations):
            for t in range(lengths[b, g]):
                column = source[b, g, t]
                sees = seen_BTT[b, column]
                wanted = [100 + i for i in range(n)] + tokens[b, g, :t].tolist()
                assert rows.ids_BT[b][sees].tolist() == wanted
                positions = [*range(n), *range(50, 50 + t)]
                assert rows.position_ids_3BT[1, b][sees].tolist() == positions
