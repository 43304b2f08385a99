"""The tower in few calls: transformers' values, names and files, without asking the device."""

import copy
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from strive.models.family import TOWER_ATTENTION, Segments, VisionFeatures, slice_of_rows
from strive.models.loading import Policy, checkpoint_activations, load_policy, save_policy
from strive.models.vision import encode_videos, merge_features

from .conftest import make_prompts, make_video, prepare_prompts
from .test_vision import their_features

GRIDS = [
    # (height, width) of each video: within one window, several with edges, sizes that interleave.
    [(28, 28)],
    [(120, 180)],
    [(84, 140), (112, 112), (84, 140), (30, 200)],
]


@pytest.fixture
def pair(policy: Policy, folders: dict[str, Path]) -> tuple[Policy, Policy]:
    """One policy twice: ours, and one that transformers alone has touched."""
    folder = folders[policy.family.name]
    return load_policy(folder), load_policy(folder)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """Counts attention calls, and what would make the host wait for a device."""
    count: Counter = Counter()
    for owner, name in (
        (nn.functional, "scaled_dot_product_attention"),
        (torch.Tensor, "tolist"),
        (torch.Tensor, "item"),
    ):

        def counted(*arguments, _real=getattr(owner, name), _name=name, **named):
            count[_name] += 1
            return _real(*arguments, **named)

        monkeypatch.setattr(owner, name, counted)
    yield count


def prompts_of(policy: Policy, sizes: list[tuple[int, int]]) -> list:
    videos = [
        make_video(seed=i, num_frames=4 + 2 * (i % 2), height=height, width=width)
        for i, (height, width) in enumerate(sizes)
    ]
    return prepare_prompts(policy, ["What moved?"] * len(videos), videos)


@pytest.mark.parametrize("sizes", GRIDS)
def test_values_are_transformers(pair: tuple[Policy, Policy], sizes: list) -> None:
    ours, plain = pair
    prompts = prompts_of(ours, sizes)
    merged = merge_features(ours, encode_videos(ours, prompts))
    embeds, deepstack = their_features(plain, prompts)
    assert plain.model.model.visual.config._attn_implementation == "sdpa"
    assert ours.model.model.visual.config._attn_implementation == TOWER_ATTENTION
    torch.testing.assert_close(merged.embeds_NH, embeds, atol=1e-5, rtol=0)
    for left, right in zip(merged.deepstack_SNH, deepstack, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=0)
    # Whoever else calls our tower, without our segments: `generate` of transformers does.
    again, _ = their_features(ours, prompts)
    torch.testing.assert_close(again, embeds, atol=1e-5, rtol=0)


def test_one_call_for_all_segments_of_a_length(pair: tuple[Policy, Policy], calls: Counter) -> None:
    ours, plain = pair
    prompts = prompts_of(ours, [(84, 140)] * 3)
    calls.clear()
    encode_videos(ours, prompts)
    few = calls["scaled_dot_product_attention"]
    calls.clear()
    their_features(plain, prompts)
    many = calls["scaled_dot_product_attention"]
    # Three videos, 2 + 3 + 2 slices of two frames in three layers.
    if ours.family.name == "qwen3_vl":
        assert (few, many) == (3, 3 * 7)
    else:
        # 3 x 5 merged tokens in windows of 2 x 2: two of 4, one of 2 to the right, two of 2 below
        # and one of 1. Two layers see windows of three lengths, one sees slices.
        assert (few, many) == (2 * 3 + 1, 2 * 7 * 6 + 7)


def test_no_layer_asks_the_device(pair: tuple[Policy, Policy], calls: Counter) -> None:
    policy, _ = pair
    prompts = prompts_of(policy, GRIDS[2])
    asked: Counter = Counter()
    for block in policy.model.model.visual.blocks:
        block.register_forward_pre_hook(lambda *_: asked.subtract(calls))
        block.register_forward_hook(lambda *_: asked.update(calls))
    encode_videos(policy, prompts)
    assert asked["scaled_dot_product_attention"] > 0
    assert asked["tolist"] == asked["item"] == 0


def test_segments_by_hand() -> None:
    # Two videos: 2 slices of 1 x 2 patches, 1 slice of 1 x 3, and once more the first.
    grids = torch.tensor([[2, 1, 2], [1, 1, 3], [2, 1, 2]])
    segment_N = slice_of_rows(grids)
    assert segment_N.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4]
    segments = Segments(segment_N, torch.device("cpu"))
    # Four of length 2, then one of 3.
    assert segments.shapes == [(4, 2), (1, 3)] and segments.longest == 3
    assert segments.order_N.tolist() == [0, 1, 2, 3, 7, 8, 9, 10, 4, 5, 6]
    assert segments.order_N[segments.back_N].tolist() == list(range(11))
    # Of one length they stay where they are.
    assert Segments(torch.tensor([0, 0, 1, 1]), torch.device("cpu")).order_N is None


def test_a_patch_is_one_product(pair: tuple[Policy, Policy]) -> None:
    """To 1e-5 of the values in float32, and in bfloat16 as near to the truth as the convolution."""
    ours, _ = pair
    prompts = make_prompts(ours, count=1, height=84, width=112)
    encode_videos(ours, prompts)
    product, convolution = (policy.model.model.visual.patch_embed for policy in pair)
    pixels = prompts[0].pixel_values
    exact = copy.deepcopy(convolution).double()(pixels.double())
    scale = exact.abs().max()
    assert (product(pixels) - convolution(pixels)).abs().max() <= 1e-5 * scale
    assert (product(pixels) - exact).abs().max() <= 1e-6 * scale
    errors = [
        (copy.deepcopy(embed).bfloat16()(pixels).double() - exact).abs().max() / scale
        for embed in (product, convolution)
    ]
    # The inputs and weights are rounded to 8 bits, hence the result to about as much.
    assert errors[0] <= 1.5 * errors[1] and errors[0] <= 2**-6


def test_names_and_files_are_transformers_own(pair: tuple[Policy, Policy], tmp_path: Path) -> None:
    ours, plain = pair
    prompts = make_prompts(ours, count=1)
    encode_videos(ours, prompts)
    assert list(ours.model.state_dict()) == list(plain.model.state_dict())
    save_policy(ours, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert TOWER_ATTENTION not in json.dumps(written)
    opened = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert opened.model.visual.config._attn_implementation == "sdpa"
    assert type(opened.model.visual.patch_embed.proj) is nn.Conv3d
    for name, weight in opened.state_dict().items():
        assert torch.equal(weight, plain.model.state_dict()[name]), name


def test_a_trained_tower_has_transformers_gradients(pair: tuple[Policy, Policy]) -> None:
    """With its layers computed again in the backward pass, which must be as the first time."""
    ours, plain = pair
    checkpoint_activations(ours.model)
    ours.model.train()
    prompts = prompts_of(ours, GRIDS[2])
    features: list[VisionFeatures] = encode_videos(ours, prompts, with_graph=True, in_one_call=True)
    merged = merge_features(ours, features)
    embeds, deepstack = their_features(plain, prompts)
    for parts in ([merged.embeds_NH, *merged.deepstack_SNH], [embeds, *deepstack]):
        sum((part**2).sum() for part in parts).backward()
    theirs = dict(plain.model.model.visual.named_parameters())
    for name, weight in ours.model.model.visual.named_parameters():
        grad = theirs[name].grad
        assert (weight.grad - grad).norm() <= 1e-5 * grad.norm() + 1e-7, name
