"""Choosing tokens: by hand, against transformers' filters, and as a distribution."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from transformers import TopKLogitsWarper, TopPLogitsWarper

from strive.models.sampling import (
    IDS_PER_BLOCK,
    LARGEST_UNIFORM,
    choose_tokens,
    invert_by_blocks,
    invert_whole,
    kept_probabilities,
    threshold_by_bisection,
    threshold_by_sorting,
)

NONE = torch.tensor([], dtype=torch.long)


def draw(probabilities: list[float], uniforms: list[float], **options: float) -> list[int]:
    logits = torch.tensor(probabilities).log().expand(len(uniforms), -1)
    return choose_tokens(
        logits, torch.tensor(uniforms, dtype=torch.float64), never_sampled_ids=NONE, **options
    ).tolist()


def test_inverse_cdf_by_hand() -> None:
    # Cumulative: 0.2, 0.7, 0.7, 1.0. A uniform takes the first id whose cumulative exceeds it.
    chances = [0.2, 0.5, 0.0, 0.3]
    assert draw(chances, [0.0, 0.19, 0.21, 0.69, 0.71, 0.999999]) == [0, 0, 1, 1, 3, 3]


def test_nucleus_by_hand() -> None:
    # Sorted: 0.5, 0.3, 0.2. Sums before each: 0, 0.5, 0.8. top_p 0.6 keeps those below 0.6: the
    # first two. They are made to sum to 1: id 1 below 0.5 / 0.8 = 0.625, id 2 above.
    chances = [0.2, 0.5, 0.3]
    assert draw(chances, [0.0, 0.62, 0.63, 0.99], top_p=0.6) == [1, 1, 2, 2]
    assert draw(chances, [0.0, 0.99], top_p=0.4) == [1, 1]


def test_a_nucleus_ends_where_the_sum_is_just_reached() -> None:
    # Sums 0.5, 0.75, 0.875, ..., all exact: 0.75 needs two tokens, the next float above it three.
    chances = torch.tensor([[0.125, 0.5, 0.0625, 0.25, 0.0625]])
    for threshold in (threshold_by_sorting, threshold_by_bisection):
        assert threshold(chances, 0.5).item() == 0.5
        assert threshold(chances, 0.75).item() == 0.25
        assert threshold(chances, float(np.nextafter(0.75, 1.0))).item() == 0.125


def test_top_k_by_hand() -> None:
    # The two largest, 0.5 and 0.3, become 0.625 and 0.375.
    assert draw([0.2, 0.5, 0.3], [0.0, 0.62, 0.63, 0.99], top_k=2) == [1, 1, 2, 2]


def test_greedy_and_forbidden() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0]])
    assert choose_tokens(logits, None, never_sampled_ids=NONE).tolist() == [1]
    assert choose_tokens(logits, None, never_sampled_ids=torch.tensor([1])).tolist() == [2]
    for uniform in (0.0, 0.5, 1.0 - 1e-16):
        uniforms = torch.tensor([uniform], dtype=torch.float64)
        assert choose_tokens(logits, uniforms, never_sampled_ids=torch.tensor([1, 2])).item() == 0


@given(
    seed=st.integers(0, 10_000),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.95, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 10]),
)
def test_filters_equal_transformers(seed: int, top_p: float, top_k: int) -> None:
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(seed)) * 3
    kept = kept_probabilities(logits, top_p=top_p, top_k=top_k) > 0
    wanted = logits
    if top_k:
        wanted = TopKLogitsWarper(top_k)(None, wanted)
    if top_p < 1.0:
        wanted = TopPLogitsWarper(top_p)(None, wanted)
    assert torch.equal(kept, wanted > -torch.inf)


def test_a_nucleus_wider_than_everything() -> None:
    """Rounding can leave the sum of all below top_p; nothing is left out then."""
    logits = torch.randn(3, 500, generator=torch.Generator().manual_seed(0)) * 0.1
    top_p = 1.0 - 1e-12
    assert (kept_probabilities(logits, top_p=top_p, top_k=0) > 0).all()
    chances = logits.softmax(-1)
    for threshold in (threshold_by_sorting, threshold_by_bisection):
        assert (threshold(chances * 0.5, 0.9) <= chances.min(-1, keepdim=True).values * 0.5).all()


@given(
    seed=st.integers(0, 10_000),
    top_p=st.floats(0.01, 0.999),
    spread=st.sampled_from([0.1, 3.0, 40.0]),
    top_k=st.sampled_from([0, 7]),
)
def test_bisection_equals_sorting(seed: int, top_p: float, spread: float, top_k: int) -> None:
    """What a GPU does against what a CPU does, ties and probabilities of 0 included."""
    logits = torch.randn(3, 60, generator=torch.Generator().manual_seed(seed)) * spread
    logits[:, 10:14] = logits[:, 10:11]
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    chances = logits.softmax(-1)
    sums = chances.sort(descending=True).values.double().cumsum(-1)
    assume(((sums - top_p).abs() > 1e-9).all())  # the two add in another order
    assert torch.equal(
        chances >= threshold_by_sorting(chances, top_p),
        chances >= threshold_by_bisection(chances, top_p),
    )


@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.sampled_from([3, IDS_PER_BLOCK, IDS_PER_BLOCK + 1, 5 * IDS_PER_BLOCK - 7]),
    kept=st.sampled_from([1, 2, 40, None]),
    uniforms=st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4),
)
def test_blocks_draw_what_the_whole_draws(
    seed: int, vocabulary: int, kept: int | None, uniforms: list[float]
) -> None:
    """What a compiled step does against what others do; most tokens cannot be drawn at all."""
    logits = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(seed)) * 5
    if kept is not None and kept < vocabulary:
        logits = logits.masked_fill(logits < logits.topk(kept).values[:, -1:], -torch.inf)
    chances = logits.softmax(-1)
    uniforms_R1 = torch.tensor(uniforms).double()[:, None].clamp(max=LARGEST_UNIFORM)
    drawn = invert_by_blocks(chances, uniforms_R1)
    assert (chances.gather(1, drawn[:, None]) > 0).all()
    cdf = chances.double().cumsum(-1)
    # At the edge of a token the two sums may round to either side of it.
    assume(((cdf / cdf[:, -1:] - uniforms_R1).abs() > 1e-12).all())
    assert torch.equal(drawn, invert_whole(chances, uniforms_R1))


def test_the_largest_uniform_takes_the_last_token_that_can_be_drawn() -> None:
    chances = torch.zeros(2, 2 * IDS_PER_BLOCK)
    chances[0, [5, 700]] = 0.5
    chances[1, [5, 9]] = 0.5
    uniforms_R1 = torch.full((2, 1), LARGEST_UNIFORM, dtype=torch.float64)
    for invert in (invert_by_blocks, invert_whole):
        assert invert(chances, uniforms_R1).tolist() == [700, 9]
    assert invert_by_blocks(chances, uniforms_R1 * 0).tolist() == [5, 5]


def test_draws_follow_the_distribution() -> None:
    chances = np.array([0.1, 0.2, 0.3, 0.4])
    drawn = draw(chances.tolist(), np.random.default_rng(0).random(20_000).tolist())
    counts = np.bincount(drawn, minlength=4)
    assert stats.chisquare(counts, chances * len(drawn)).pvalue > 1e-3


# Chances 0.05, 0.1, 0.15, 0.3, 0.4 at temperature 0.5 (squared, of 0.285): 0.009, 0.035, 0.079,
# 0.316, 0.561; at 2 (square roots, of 2.107): 0.106, 0.150, 0.184, 0.260, 0.300.
@pytest.mark.parametrize(
    ("temperature", "options", "kept"),
    [
        (0.5, {}, [0, 1, 2, 3, 4]),
        (2.0, {}, [0, 1, 2, 3, 4]),
        (0.5, {"top_p": 0.8}, [3, 4]),  # 0.561, then 0.877 reaches it
        (2.0, {"top_p": 0.8}, [1, 2, 3, 4]),  # 0.300, 0.560, 0.744, then 0.894 reaches it
        (2.0, {"top_k": 3}, [2, 3, 4]),
        (0.5, {"top_k": 3, "top_p": 0.9}, [3, 4]),  # of 0.956: 0.587, then 0.917 reaches it
        (2.0, {"top_k": 3, "top_p": 0.9}, [2, 3, 4]),  # of 0.744: 0.403, 0.753, then 1
    ],
)
def test_draws_follow_the_kept_distribution(
    temperature: float, options: dict[str, float], kept: list[int]
) -> None:
    chances = np.array([0.05, 0.1, 0.15, 0.3, 0.4])
    logits = torch.tensor(np.log(chances) / temperature).expand(20_000, -1)
    uniforms = torch.from_numpy(np.random.default_rng(1).random(20_000))
    drawn = choose_tokens(logits, uniforms, never_sampled_ids=NONE, **options)  # type: ignore[arg-type]
    counts = np.bincount(drawn.numpy(), minlength=5)
    wanted = chances[kept] ** (1 / temperature)
    wanted *= len(drawn) / wanted.sum()
    assert counts[kept].sum() == len(drawn)
    assert stats.chisquare(counts[kept], wanted).pvalue > 1e-3
