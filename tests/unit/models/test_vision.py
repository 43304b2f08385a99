"""The tower once, the mergers apart: exactly what the model computes in one go."""

import copy

import pytest
import torch

from strive.models import vision
from strive.models.inputs import prepare_prompts
from strive.models.loading import Policy
from strive.models.vision import count_encodes, encode_videos, merge_features

from .conftest import QUESTIONS, make_prompts, make_video


def their_features(policy: Policy, prompts: list) -> tuple[torch.Tensor, list[torch.Tensor]]:
    output = policy.model.model.get_video_features(
        torch.cat([prompt.pixel_values for prompt in prompts]),
        torch.tensor([prompt.video_grid_thw for prompt in prompts]),
    )
    deepstack = getattr(output, "deepstack_features", None) or []
    return torch.cat(output.pooler_output), [torch.cat(layer) for layer in deepstack]


def test_encode_then_merge_equals_the_model(policy: Policy) -> None:
    # 120 x 180: several attention windows a slice in the windowed tower.
    prompts = make_prompts(policy, height=120, width=180)
    embeds, deepstack = their_features(policy, prompts)
    merged = merge_features(policy, encode_videos(policy, prompts))
    torch.testing.assert_close(merged.embeds_NH, embeds, atol=1e-5, rtol=0)
    assert len(merged.deepstack_SNH) == len(deepstack)
    for ours, theirs in zip(merged.deepstack_SNH, deepstack, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_one_video_alone_equals_its_part_of_several(policy: Policy) -> None:
    prompts = make_prompts(policy, height=120, width=180)
    for prompt, together in zip(prompts, encode_videos(policy, prompts), strict=True):
        [alone] = encode_videos(policy, [prompt])
        torch.testing.assert_close(alone.hidden_ND, together.hidden_ND, atol=1e-5, rtol=0)
        assert alone.grid_thw == together.grid_thw


def test_questions_about_one_video_share_its_encode(policy: Policy) -> None:
    first, second = make_video(seed=0), make_video(seed=1, height=96)
    videos = [first, second, first]
    prompts = prepare_prompts(policy, list(QUESTIONS), videos)
    with count_encodes(policy.model) as count:
        together = encode_videos(policy, prompts)
    assert count.videos == 2
    for text, video, prompt, features in zip(QUESTIONS, videos, prompts, together, strict=True):
        [alone] = prepare_prompts(policy, [text], [video])
        assert prompt.input_ids_P.tolist() == alone.input_ids_P.tolist()
        assert torch.equal(prompt.pixel_values, alone.pixel_values)
        [expected] = encode_videos(policy, [alone])
        torch.testing.assert_close(features.hidden_ND, expected.hidden_ND, atol=1e-5, rtol=0)


def test_many_videos_take_several_calls(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = make_prompts(policy)
    together = encode_videos(policy, prompts)
    # 48, 72 and 96 patches: the first two fit into 120, the third goes alone.
    monkeypatch.setattr(vision, "PATCHES_PER_CALL", 120)
    with count_encodes(policy.model) as count:
        apart = encode_videos(policy, prompts)
    assert (count.calls, count.videos) == (2, 3)
    for left, right in zip(together, apart, strict=True):
        torch.testing.assert_close(left.hidden_ND, right.hidden_ND, atol=1e-5, rtol=0)


def test_frozen_features_carry_no_graph_and_trained_ones_do(policy: Policy) -> None:
    prompt = make_prompts(policy, count=1)[0]
    assert not encode_videos(policy, [prompt])[0].hidden_ND.requires_grad
    [features] = encode_videos(policy, [prompt], with_graph=True)
    assert features.hidden_ND.requires_grad


def test_gradients_equal_the_models(policy: Policy) -> None:
    prompts = make_prompts(policy)
    tower = policy.model.model.visual
    grads = []
    for ours in (True, False):
        tower.zero_grad()
        if ours:
            merged = merge_features(policy, encode_videos(policy, prompts, with_graph=True))
            parts = [merged.embeds_NH, *merged.deepstack_SNH]
        else:
            embeds, deepstack = their_features(policy, prompts)
            parts = [embeds, *deepstack]
        sum((part**2).sum() for part in parts).backward()
        grads.append({name: weight.grad for name, weight in tower.named_parameters()})
    tower.zero_grad()
    for name, grad in grads[1].items():
        assert (grads[0][name] - grad).norm() <= 1e-5 * grad.norm() + 1e-7, name


def test_each_model_applies_its_own_merger(policy: Policy) -> None:
    features = encode_videos(policy, make_prompts(policy, count=1))
    other = copy.deepcopy(policy.model)
    with torch.no_grad():
        for weight in other.model.visual.merger.parameters():
            weight.mul_(2.0)
    own = merge_features(policy, features)
    theirs = merge_features(policy, features, model=other)
    assert not torch.allclose(own.embeds_NH, theirs.embeds_NH)
    assert own.embeds_NH.requires_grad


def test_encodes_are_counted(policy: Policy) -> None:
    prompts = make_prompts(policy)
    with count_encodes(policy.model) as count:
        encode_videos(policy, prompts)
        their_features(policy, prompts[:1])
    assert (count.calls, count.videos) == (2, 4)
    encode_videos(policy, prompts)
    assert count.videos == 4
