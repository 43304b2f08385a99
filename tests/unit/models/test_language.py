"""Segment attention equals sdpa under a mask of all positions, by either way."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

from strive.errors import ConfigError, ModelError, UnknownNameError
from strive.models import language
from strive.models.language import (
    NAME,
    FlexSegments,
    SplitSegments,
    attend,
    compiled_flex,
    segment_attention,
    segments_block_mask,
)
from strive.models.loading import Policy, load_policy, save_policy
from strive.models.logprobs import completion_logprobs_batch
from strive.models.rows import PADDING, PROMPT, Rows, packed_rows, prompt_rows
from strive.models.vision import encode_videos

from .conftest import make_prompts

HEADS, KEY_HEADS, WIDTH = 4, 2, 16


def seen_by_rule(rows: Rows) -> Tensor:
    """The slow reading of the rule of `rows.py`: [B, T, T], true where q (row) sees k (column)."""
    batch, width = rows.segments_BT.shape
    seen = torch.zeros(batch, width, width, dtype=torch.bool)
    segments = rows.segments_BT.tolist()
    for b in range(batch):
        for q in range(width):
            for k in range(q + 1):
                seen[b, q, k] = segments[b][k] in (PROMPT, segments[b][q])
    return seen


def make_rows(segments_B: list[list[int]]) -> Rows:
    """Rows of which only the segments matter."""
    runs = []
    for segments in segments_B:
        row: list[tuple[int, int]] = []
        for segment in segments:
            length = row.pop()[1] if row and row[-1][0] == segment else 0
            row.append((segment, length + 1))
        runs.append(tuple(row))
    segments_BT = torch.tensor(segments_B)
    blank = torch.zeros_like(segments_BT)
    return Rows(blank, blank.expand(3, -1, -1), segments_BT, blank.bool(), tuple(runs))


def queries_keys_values(rows: Rows, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, width = rows.segments_BT.shape
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(batch, heads, width, WIDTH, generator=generator)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    return query, key, value


def masked(rows: Rows, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The definition: softmax over what a position sees, [B, T, heads, D]."""
    key, value = (x.repeat_interleave(HEADS // KEY_HEADS, dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scale
    scores = scores.masked_fill(~seen_by_rule(rows)[:, None], -torch.inf)
    return (scores.softmax(-1).nan_to_num() @ value).transpose(1, 2)


LAYOUTS = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(0, 4), min_size=1, max_size=4)),
    min_size=1,
    max_size=3,
)


def laid_out(layouts: list[tuple[int, list[int]]], padding_left: bool = False) -> Rows:
    """A prompt and completions of the given lengths per row, padded to one width."""
    rows = [
        [PROMPT] * prompt + [g + 1 for g, length in enumerate(lengths) for _ in range(length)]
        for prompt, lengths in layouts
    ]
    width = max(len(row) for row in rows)
    padded = []
    for row in rows:
        padding = [PADDING] * (width - len(row))
        padded.append(padding + row if padding_left else row + padding)
    return make_rows(padded)


@settings(max_examples=60)
@given(layouts=LAYOUTS, padding_left=st.booleans(), seed=st.integers(0, 1000))
def test_split_equals_masked_values_and_gradients(
    layouts: list[tuple[int, list[int]]], padding_left: bool, seed: int
) -> None:
    rows = laid_out(layouts, padding_left)
    tensors = [x.double().requires_grad_() for x in queries_keys_values(rows, seed)]
    is_token = rows.segments_BT != PADDING
    ours = SplitSegments(rows)(nn.Module(), *tensors, scale=0.3)
    wanted = masked(rows, *tensors, scale=0.3)
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours[is_token], wanted[is_token], atol=1e-12, rtol=0)
    weights = torch.randn(wanted[is_token].shape, dtype=torch.float64)
    grads = torch.autograd.grad((ours[is_token] * weights).sum(), tensors, retain_graph=True)
    wanted_grads = torch.autograd.grad((wanted[is_token] * weights).sum(), tensors)
    for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(grad, wanted_grad, atol=1e-12, rtol=0)


# Without a GPU it runs as separate products, and says so.
UNFUSED = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@UNFUSED
@settings(max_examples=10, deadline=None)
@given(layouts=LAYOUTS, padding_left=st.booleans(), seed=st.integers(0, 1000))
@torch.no_grad()
def test_flex_equals_masked(
    layouts: list[tuple[int, list[int]]], padding_left: bool, seed: int
) -> None:
    """The forward of flex-attention, which runs on a CPU as well (uncompiled)."""
    rows = laid_out(layouts, padding_left)
    tensors = queries_keys_values(rows, seed)
    is_token = rows.segments_BT != PADDING
    ours = FlexSegments(rows)(nn.Module().eval(), *tensors, scale=0.3)
    assert torch.isfinite(ours).all()
    wanted = masked(rows, *tensors, scale=0.3)
    torch.testing.assert_close(ours[is_token], wanted[is_token], atol=1e-5, rtol=0)


@UNFUSED
@torch.no_grad()
def test_logprobs_by_flex_equal_those_by_sdpa(policy: Policy) -> None:
    """Through both families' layers, uneven completions, prompts of three lengths."""
    prompts = make_prompts(policy)
    features = encode_videos(policy, prompts)
    tokens = torch.randint(0, 256, (3, 4, 7), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([[5, 7, 1, 3], [2, 2, 7, 4], [1, 1, 1, 6]])
    flex, sdpa = (
        completion_logprobs_batch(policy, prompts, features, tokens, lengths, attention=mode)
        for mode in ("flex", "sdpa")
    )
    torch.testing.assert_close(flex.logprobs, sdpa.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(flex.entropy, sdpa.entropy, atol=1e-5, rtol=0)


@given(layouts=LAYOUTS, padding_left=st.booleans(), stretch=st.integers(1, 60))
def test_blocks_are_those_of_torchs_own_mask(
    layouts: list[tuple[int, list[int]]], padding_left: bool, stretch: int
) -> None:
    rows = laid_out(layouts, padding_left)
    segments_BT = rows.segments_BT.repeat_interleave(stretch, dim=1)
    batch, width = segments_BT.shape
    ours = segments_block_mask(segments_BT)
    theirs = create_block_mask(ours.mask_mod, batch, None, width, width, device="cpu")
    assert ours.shape == theirs.shape
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(ours.to_dense(), theirs.to_dense())


class CountingBackend:
    """Runs what dynamo gives it as it is, and keeps it."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs.append(graph)
        return graph.forward


@pytest.fixture
def backend() -> Iterator[CountingBackend]:
    torch._dynamo.reset()
    yield CountingBackend()
    compiled_flex.cache_clear()
    torch._dynamo.reset()


@torch.no_grad()
def check_compiled(
    layouts: list[tuple[int, list[int]]], backend: CountingBackend, heads: int = 4
) -> None:
    rows = laid_out(layouts)
    shape = (len(rows.segments_BT), heads, rows.segments_BT.shape[1], WIDTH)
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    is_token = rows.segments_BT != PADDING
    ours = FlexSegments(rows, backend)(nn.Module(), *tensors, scale=0.25)
    wanted = SplitSegments(rows)(nn.Module(), *tensors, scale=0.25)
    torch.testing.assert_close(ours[is_token], wanted[is_token], atol=1e-5, rtol=0)


@pytest.mark.long
def test_twenty_steps_of_other_sizes_are_few_graphs(backend: CountingBackend) -> None:
    """Sizes are variables of a graph: each new one would otherwise be a kernel of its own."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        prompts = rng.integers(100, 400, size=rng.integers(1, 5)).tolist()
        check_compiled([(n, rng.integers(1, 60, size=3).tolist()) for n in prompts], backend)
    # One row and several differ, and the first graph of each takes some sizes to be equal.
    assert 2 <= len(backend.graphs) <= 5


def test_past_the_limit_of_graphs_is_an_error(
    backend: CountingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the way without a kernel, which would be slow and large without a word."""
    monkeypatch.setattr(language, "MOST_GRAPHS", 1)
    with torch._dynamo.config.patch(recompile_limit=1):
        check_compiled([(9, [3, 2])], backend, heads=4)
        with pytest.raises(ModelError, match=r"cannot compile flex-attention.*set attention=sdpa"):
            check_compiled([(9, [3, 2])], backend, heads=8)
    assert len(backend.graphs) == 1


def test_causal_rows_need_no_segments(policy: Policy) -> None:
    """One completion per prompt, or prompts of one length: plainly causal, the fastest kernel."""
    [prompt, *_] = make_prompts(policy)
    language = policy.model.model.language_model
    assert segment_attention(language, prompt_rows(policy, [prompt, prompt])) == {}
    tokens, lengths = torch.tensor([[[1, 2, 3]]]).numpy(), torch.tensor([[3]]).numpy()
    assert segment_attention(language, packed_rows(policy, [prompt], tokens, lengths)[0]) == {}


def test_modes_that_cannot_be(policy: Policy) -> None:
    rows = laid_out([(2, [2, 2])])
    language = policy.model.model.language_model
    with pytest.raises(UnknownNameError, match=r"flash.*auto, flex, sdpa"):
        segment_attention(language, rows, "flash")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="on a GPU only; set attention=auto"):
        segment_attention(language, rows, "flex")
    query, key, value = queries_keys_values(rows, 0)
    with pytest.raises(ModelError, match=r"attention_dropout is 0\.1"):
        attend(nn.Module(), query, key, value, None, scaling=1.0, dropout=0.1,
               segment_attention=SplitSegments(rows))  # fmt: skip


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_saved_policy_knows_nothing_of_it(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The name of our attention means nothing to other programs."""
    policy = load_policy(folders[family])
    prompts = make_prompts(policy)
    tokens = torch.ones(3, 2, 4, dtype=torch.long)
    features = encode_videos(policy, prompts)
    completion_logprobs_batch(policy, prompts, features, tokens, torch.full((3, 2), 4))
    assert policy.model.model.language_model.config._attn_implementation == NAME
    save_policy(policy, tmp_path / "saved")
    for path in (tmp_path / "saved").glob("*.json"):
        assert NAME not in json.dumps(json.loads(path.read_text())), path
    load_policy(tmp_path / "saved")
