"""Packed rows equal plain rows, values and gradients; both equal what the rollout reported."""

import copy

import pytest
import torch

from strive.errors import UnknownNameError
from strive.models.inputs import PromptInputs, prepare_prompts
from strive.models.loading import Policy, make_policy
from strive.models.logprobs import (
    LogProbs,
    completion_logprobs_batch,
    token_logprobs,
)
from strive.models.sampling import Sampling
from strive.models.vision import encode_videos

from .conftest import generate, make_prompts, make_video
from .test_generate import checkpointed, ending_often, uniforms


def completions(
    policy: Policy, prompts: list[PromptInputs], lengths: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Arbitrary tokens of the given lengths."""
    lengths_BG = torch.tensor(lengths)
    shape = (*lengths_BG.shape, int(lengths_BG.max()))
    tokens = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(5))
    past = torch.arange(shape[2]) >= lengths_BG[..., None]
    return tokens.masked_fill(past, policy.pad_id), lengths_BG


def weighted_sum(result: LogProbs) -> torch.Tensor:
    """A loss in which every token has its own weight, as advantages give it."""
    weights = torch.randn(result.logprobs.shape, generator=torch.Generator().manual_seed(6))
    return (weights * result.logprobs).sum()


def run(
    policy: Policy, mode: str, lengths: list[list[int]], trained_tower: bool, **options: object
) -> tuple[LogProbs, dict[str, torch.Tensor]]:
    prompts = make_prompts(policy)[: len(lengths)]
    tokens, lengths_BG = completions(policy, prompts, lengths)
    return run_on(policy, mode, prompts, tokens, lengths_BG, trained_tower, **options)


def run_on(
    policy: Policy,
    mode: str,
    prompts: list[PromptInputs],
    tokens: torch.Tensor,
    lengths_BG: torch.Tensor,
    trained_tower: bool,
    **options: object,
) -> tuple[LogProbs, dict[str, torch.Tensor]]:
    """Log-probs of the completions and the gradients of a weighted sum of them."""
    policy.model.zero_grad()
    features = encode_videos(policy, prompts, with_graph=trained_tower)
    result = completion_logprobs_batch(
        policy,
        prompts,
        features,
        tokens,
        lengths_BG,
        mode=mode,
        **options,  # type: ignore[arg-type]
    )
    weighted_sum(result).backward()
    grads = {
        name: weight.grad.clone()
        for name, weight in policy.model.named_parameters()
        if weight.grad is not None
    }
    policy.model.zero_grad()
    return result, grads


UNEVEN = {
    "three prompts, G = 4": [[5, 9, 1, 3], [2, 2, 7, 4], [1, 1, 1, 9]],
    "three prompts, G = 1": [[6], [3], [1]],
    "one prompt, G = 4": [[5, 9, 1, 3]],
    "one prompt, G = 1": [[6]],
}


@pytest.mark.parametrize("trained_tower", [False, True])
@pytest.mark.parametrize("case", UNEVEN)
@pytest.mark.parametrize("rule", ["published", "transformers"])
def test_packed_equals_plain(policy: Policy, case: str, trained_tower: bool, rule: str) -> None:
    """Uneven completions, prompts of three lengths."""
    policy = make_policy(policy.model, policy.processor, position_rule=rule)  # type: ignore[arg-type]
    packed = run(policy, "packed", UNEVEN[case], trained_tower)
    plain = run(policy, "plain", UNEVEN[case], trained_tower)
    assert_equal(packed, plain, trained_tower)


def assert_equal(
    packed_result: tuple[LogProbs, dict[str, torch.Tensor]],
    plain_result: tuple[LogProbs, dict[str, torch.Tensor]],
    trained_tower: bool,
) -> None:
    """Float32: log-probs to 1e-5, the gradient of every parameter to 1e-4 of its norm."""
    (packed, packed_grads), (plain, plain_grads) = packed_result, plain_result
    assert (packed.logprobs - plain.logprobs).abs().max() <= 1e-5
    assert (packed.entropy - plain.entropy).abs().max() <= 1e-5
    assert torch.equal(packed.mask, plain.mask)
    assert packed_grads.keys() == plain_grads.keys()
    tower = [name for name in packed_grads if "visual.blocks" in name]
    assert bool(tower) == trained_tower
    assert any("merger" in name for name in packed_grads)
    for name, grad in plain_grads.items():
        assert (packed_grads[name] - grad).norm() <= 1e-4 * grad.norm() + 1e-7, name


@pytest.mark.parametrize("trained_tower", [False, True])
def test_packed_equals_plain_on_a_left_padded_rollout(policy: Policy, trained_tower: bool) -> None:
    """What training does: sampled completions that end at different steps, at a temperature."""
    prompts = make_prompts(policy)
    out = generate(
        ending_often(policy),
        prompts,
        sampling=Sampling(
            num_generations=4, max_new_tokens=12, sampling_temperature=0.7, top_p=0.95
        ),
        uniforms_RGL=uniforms(3, 4, 12),
    )
    assert len(set(out.lengths_RG.flatten().tolist())) > 4
    assert len({len(prompt.input_ids_P) for prompt in prompts}) == 3
    packed, plain = (
        run_on(policy, mode, prompts, out.tokens_RGL, out.lengths_RG, trained_tower,
               sampling_temperature=0.7)
        for mode in ("packed", "plain")
    )  # fmt: skip
    assert_equal(packed, plain, trained_tower)


def test_plain_equals_the_whole_model_on_pixels(policy: Policy) -> None:
    """The reference path itself, against the model fed with pixels and sliced by hand."""
    prompt = make_prompts(policy, count=1)[0]
    tokens, lengths = completions(policy, [prompt], [[5, 3]])
    features = encode_videos(policy, [prompt])
    ours = completion_logprobs_batch(
        policy, [prompt], features, tokens, lengths, sampling_temperature=0.7, mode="plain"
    )
    for g, length in enumerate(lengths[0].tolist()):
        ids = torch.cat([torch.from_numpy(prompt.input_ids_P), tokens[0, g, :length]])
        after = (prompt.next_position + torch.arange(length)).expand(3, -1)
        logits = policy.model(
            input_ids=ids[None],
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            position_ids=torch.cat([torch.from_numpy(prompt.position_ids_3P), after], 1)[:, None],
            pixel_values_videos=prompt.pixel_values,
            video_grid_thw=torch.tensor([prompt.video_grid_thw]),
        ).logits[0]
        every = (logits[len(prompt.input_ids_P) - 1 : -1] / 0.7).log_softmax(-1)
        wanted = every.gather(1, tokens[0, g, :length, None])[:, 0]
        torch.testing.assert_close(ours.logprobs[0, g, :length], wanted, atol=1e-5, rtol=0)
        assert (ours.logprobs[0, g, length:] == 0).all()
        entropy = -(every.exp() * every).sum(-1)
        torch.testing.assert_close(ours.entropy[0, g, :length], entropy, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["packed", "plain"])
@pytest.mark.parametrize("rule", ["published", "transformers"])
@pytest.mark.parametrize("kept", [{}, {"top_p": 0.8}, {"top_k": 5}, {"top_p": 0.9, "top_k": 9}])
def test_rollout_logprobs_are_teacher_forced_ones(
    policy: Policy, mode: str, rule: str, kept: dict[str, float]
) -> None:
    """Reported at the sampling temperature, before top-k and top-p, as the loss computes them."""
    policy = make_policy(policy.model, policy.processor, position_rule=rule)  # type: ignore[arg-type]
    prompts = prepare_prompts(
        policy, ["Why?", "What is it that moved?"], [make_video(i, 4 + 4 * i) for i in range(2)]
    )
    features = encode_videos(policy, prompts)
    out = generate(
        policy,
        prompts,
        features,
        sampling=Sampling(4, 16, sampling_temperature=0.6, **kept),  # type: ignore[arg-type]
        uniforms_RGL=uniforms(2, 4, 16),
    )
    result = completion_logprobs_batch(
        policy, prompts, features, out.tokens_RGL, out.lengths_RG,
        sampling_temperature=0.6, mode=mode,  # type: ignore[arg-type]
    )  # fmt: skip
    assert (result.logprobs - out.logprobs_RGL).abs().max() <= 1e-5
    assert (result.logprobs < 0).sum() == out.lengths_RG.sum()


def test_one_prompt_equals_its_part_of_the_batch(policy: Policy) -> None:
    prompts = make_prompts(policy)
    tokens, lengths = completions(policy, prompts, [[4, 2], [7, 1], [3, 3]])
    features = encode_videos(policy, prompts)
    batch = completion_logprobs_batch(policy, prompts, features, tokens, lengths)
    for i, prompt in enumerate(prompts):
        part = slice(i, i + 1)
        alone = completion_logprobs_batch(
            policy, [prompt], features[part], tokens[part], lengths[part]
        )
        torch.testing.assert_close(alone.logprobs, batch.logprobs[part], atol=1e-5, rtol=0)


def test_a_reference_shares_features_and_takes_no_gradient(policy: Policy) -> None:
    prompts = make_prompts(policy)
    tokens, lengths = completions(policy, prompts, [[4, 2], [7, 1], [3, 3]])
    features = encode_videos(policy, prompts)
    reference = copy.deepcopy(policy.model).requires_grad_(False)
    own = completion_logprobs_batch(policy, prompts, features, tokens, lengths)
    same = completion_logprobs_batch(policy, prompts, features, tokens, lengths, model=reference)
    assert torch.equal(own.logprobs, same.logprobs)
    assert own.logprobs.requires_grad and not same.logprobs.requires_grad
    assert not own.entropy.requires_grad
    with torch.no_grad():
        reference.lm_head.weight.mul_(1.5)
    other = completion_logprobs_batch(policy, prompts, features, tokens, lengths, model=reference)
    assert not torch.allclose(own.logprobs, other.logprobs)


def test_gradient_checkpointing_changes_nothing(policy: Policy) -> None:
    lengths = [[5, 2], [3, 3], [1, 4]]
    wanted, wanted_grads = run(policy, "packed", lengths, True)
    policy = checkpointed(policy)
    result, grads = run(policy, "packed", lengths, True)
    assert run(policy, "packed", lengths, False)[1].keys() < grads.keys()
    torch.testing.assert_close(result.logprobs, wanted.logprobs, atol=1e-6, rtol=0)
    assert grads.keys() == wanted_grads.keys()
    for name, grad in wanted_grads.items():
        assert (grads[name] - grad).norm() <= 1e-5 * grad.norm() + 1e-7, name


def test_chunks_equal_the_whole() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False)
    hidden = torch.randn(33, 8, requires_grad=True)
    targets = torch.randint(0, 50, (33,))
    results = []
    for limit in (2**25, 50 * 4):
        head.zero_grad()
        hidden.grad = None
        logprobs, entropy = token_logprobs(
            head, hidden, targets, sampling_temperature=0.9, logits_per_chunk=limit
        )
        (logprobs * torch.arange(33)).sum().backward()
        results.append((logprobs, entropy, head.weight.grad, hidden.grad))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole)


def test_unknown_mode(policy: Policy) -> None:
    prompts = make_prompts(policy, count=1)
    tokens, lengths = completions(policy, prompts, [[2]])
    features = encode_videos(policy, prompts)
    with pytest.raises(UnknownNameError, match="packed"):
        completion_logprobs_batch(
            policy,
            prompts,
            features,
            tokens,
            lengths,
            mode="paged",  # type: ignore[arg-type]
        )
