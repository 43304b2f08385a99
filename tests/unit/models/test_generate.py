"""Rollouts equal the model's own `generate`, and a draw depends on its own uniforms alone."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from strive.errors import ConfigError
from strive.models.inputs import PromptInputs, prepare_prompts
from strive.models.loading import Policy, checkpoint_activations, make_policy
from strive.models.sampling import Completions, Sampling
from strive.models.vision import count_encodes, encode_videos

from .conftest import QUESTIONS, generate, make_prompts, make_video


def with_rule(policy: Policy, rule: str) -> Policy:
    return make_policy(policy.model, policy.processor, position_rule=rule)  # type: ignore[arg-type]


def checkpointed(policy: Policy) -> Policy:
    """A copy in training mode with gradient checkpointing."""
    model = copy.deepcopy(policy.model)
    checkpoint_activations(model)
    model.train()
    return make_policy(model, policy.processor)


def uniforms(prompts: int, generations: int, tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((prompts, generations, tokens))


def greedy(policy: Policy, prompts: list[PromptInputs], length: int = 12) -> Completions:
    return generate(
        policy, prompts, sampling=Sampling(num_generations=1, max_new_tokens=length), greedy=True
    )


def their_greedy(policy: Policy, prompt: PromptInputs, length: int) -> list[int]:
    """`generate` of transformers on the same ids and pixels; it computes its own positions."""
    ids = torch.from_numpy(prompt.input_ids_P)[None]
    types = torch.from_numpy(prompt.video_mask_P)[None].long() * 2
    output = their_tokens(policy, [prompt], ids, torch.ones_like(ids), types, length)
    return output[0, ids.shape[1] :].tolist()


def their_tokens(
    policy: Policy,
    prompts: list[PromptInputs],
    ids: torch.Tensor,
    attention: torch.Tensor,
    types: torch.Tensor,
    length: int,
) -> torch.Tensor:
    more = {}
    if policy.family.name == "qwen2_5_vl":
        seconds = [prompt.seconds_per_slice for prompt in prompts]
        more["second_per_grid_ts"] = torch.tensor(seconds)
    return policy.model.generate(
        input_ids=ids,
        attention_mask=attention,
        mm_token_type_ids=types,
        pixel_values_videos=torch.cat([prompt.pixel_values for prompt in prompts]),
        video_grid_thw=torch.tensor([prompt.video_grid_thw for prompt in prompts]),
        max_new_tokens=length,
        do_sample=False,
        suppress_tokens=policy.never_sampled_ids.tolist(),
        eos_token_id=list(policy.eos_ids),
        **more,
    )


def uneven_prompts(policy: Policy, count: int = 50) -> list[PromptInputs]:
    """Prompts of many lengths: four lengths of video, three questions, up to six more words."""
    videos = [make_video(seed=i, num_frames=2 + 2 * (i % 4)) for i in range(count)]
    texts = [QUESTIONS[i % 3] + " Really?" * (i % 7) for i in range(count)]
    prompts = prepare_prompts(policy, texts, videos)
    assert len({len(prompt.input_ids_P) for prompt in prompts}) > count // 2
    return prompts


def test_greedy_equals_transformers_token_for_token(policy: Policy) -> None:
    """Fifty prompts of different lengths in one batch against one call each."""
    policy = ending_often(with_rule(policy, "transformers"))
    prompts = uneven_prompts(policy)
    ours = greedy(policy, prompts, length=16)
    for prompt, tokens, length in zip(
        prompts, ours.tokens_RGL[:, 0], ours.lengths_RG[:, 0], strict=True
    ):
        assert tokens[:length].tolist() == their_greedy(policy, prompt, 16)
    assert (ours.lengths_RG < 16).any() and (ours.lengths_RG == 16).any()


def test_greedy_equals_one_left_padded_batch_of_transformers(policy: Policy) -> None:
    """Both in one batch: padding on the left changes neither."""
    policy = with_rule(policy, "transformers")
    prompts = uneven_prompts(policy)
    ours = greedy(policy, prompts, length=8)
    width = max(len(prompt.input_ids_P) for prompt in prompts)
    shape = (len(prompts), width)
    ids, attention, types = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    ids.fill_(policy.pad_id)
    for row, prompt in enumerate(prompts):
        columns = slice(width - len(prompt.input_ids_P), width)
        ids[row, columns] = torch.from_numpy(prompt.input_ids_P)
        attention[row, columns] = 1
        types[row, columns] = torch.from_numpy(prompt.video_mask_P) * 2
    theirs = their_tokens(policy, prompts, ids, attention, types, length=8)
    for tokens, length, row in zip(
        ours.tokens_RGL[:, 0], ours.lengths_RG[:, 0], theirs[:, width:].tolist(), strict=True
    ):
        assert tokens[:length].tolist() == row[:length]


def plain_greedy(policy: Policy, prompt: PromptInputs, length: int) -> list[int]:
    """The slow definition: the whole row again for every token, positions given."""
    ids, positions = prompt.input_ids_P, prompt.position_ids_3P
    for step in range(length):
        with torch.no_grad():
            logits = policy.model(
                input_ids=torch.from_numpy(ids)[None],
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                position_ids=torch.from_numpy(positions)[:, None],
                pixel_values_videos=prompt.pixel_values,
                video_grid_thw=torch.tensor([prompt.video_grid_thw]),
                use_cache=False,
            ).logits[0, -1]
        token = logits.index_fill(0, policy.never_sampled_ids, -torch.inf).argmax().item()
        ids = np.append(ids, token)
        positions = np.concatenate([positions, np.full((3, 1), prompt.next_position + step)], 1)
        if token in policy.eos_ids:
            break
    return ids[len(prompt.input_ids_P) :].tolist()


@pytest.mark.parametrize("rule", ["published", "transformers"])
def test_greedy_equals_a_plain_forward(policy: Policy, rule: str) -> None:
    """Sixteen prompts in one batch against each alone, all of it again for every token."""
    policy = with_rule(policy, rule)
    prompts = uneven_prompts(policy, count=16)
    ours = greedy(policy, prompts, length=8)
    for i, prompt in enumerate(prompts):
        length = ours.lengths_RG[i, 0]
        assert ours.tokens_RGL[i, 0, :length].tolist() == plain_greedy(policy, prompt, 8)


def test_the_two_rules_differ(policies: dict[str, Policy]) -> None:
    """Else the tests above would not see which rule was used."""
    policy = policies["qwen2_5_vl"]
    logprobs = []
    for rule in ("published", "transformers"):
        each = with_rule(policy, rule)
        prompts = prepare_prompts(each, ["What moved?"], [make_video(num_frames=8)])
        logprobs.append(greedy(each, prompts, length=1).logprobs_RGL)
    assert not torch.allclose(*logprobs, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.5])
@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.8, 0), (1.0, 12), (0.9, 30)])
def test_first_tokens_follow_the_models_distribution(
    policy: Policy, temperature: float, top_p: float, top_k: int
) -> None:
    """Frequencies over 4,000 completions of one prompt, against the filters in plain NumPy."""
    prompt = make_prompts(policy, count=1)[0]
    out = generate(
        policy,
        [prompt],
        sampling=Sampling(
            num_generations=4000,
            max_new_tokens=1,
            sampling_temperature=temperature,
            top_p=top_p,
            top_k=top_k,
        ),
        uniforms_RGL=uniforms(1, 4000, 1, seed=1),
    )
    logits_V = first_logits(policy, prompt).index_fill(0, policy.never_sampled_ids, -torch.inf)
    chances_V = (logits_V.double() / temperature).softmax(-1).numpy()
    kept = np.argsort(-chances_V)[: top_k or None]
    chances = chances_V[kept] / chances_V[kept].sum()
    kept = kept[: np.searchsorted(chances.cumsum(), top_p) + 1]
    chances = chances_V[kept] / chances_V[kept].sum()
    counts_V = np.bincount(out.tokens_RGL.flatten().numpy(), minlength=len(chances_V))
    assert counts_V[kept].sum() == 4000
    # Tokens too rare for the test count together.
    common = 4000 * chances >= 5
    counts = np.append(counts_V[kept][common], counts_V[kept][~common].sum())
    wanted = 4000 * np.append(chances[common], chances[~common].sum())
    cells = wanted > 0
    assert cells.sum() > 2
    assert stats.chisquare(counts[cells], wanted[cells]).pvalue > 1e-3


def first_logits(policy: Policy, prompt: PromptInputs) -> torch.Tensor:
    """Logits [V] of the first token, from the whole model on pixels."""
    with torch.no_grad():
        return policy.model(
            input_ids=torch.from_numpy(prompt.input_ids_P)[None],
            attention_mask=torch.ones(1, len(prompt.input_ids_P), dtype=torch.long),
            position_ids=torch.from_numpy(prompt.position_ids_3P)[:, None],
            pixel_values_videos=prompt.pixel_values,
            video_grid_thw=torch.tensor([prompt.video_grid_thw]),
        ).logits[0, -1]


def ending_often(policy: Policy) -> Policy:
    """Forty tokens end a completion, so that rows end at many different steps."""
    return dataclasses.replace(policy, eos_ids=tuple(range(40)))


def test_draws_do_not_depend_on_the_batch_or_on_g(policy: Policy) -> None:
    policy = ending_often(policy)
    prompts = make_prompts(policy)
    draws = uniforms(3, 4, 14)
    sampling = Sampling(4, 14, sampling_temperature=0.8, top_p=0.9)
    together = generate(policy, prompts, sampling=sampling, uniforms_RGL=draws)
    # More than half end before the last step, so the others have moved to a smaller batch.
    assert 6 < (together.lengths_RG < 13).sum() < 12
    for r, prompt in enumerate(prompts):
        for g in range(4):
            one = dataclasses.replace(sampling, num_generations=1)
            alone = generate(
                policy, [prompt], sampling=one, uniforms_RGL=draws[r : r + 1, g : g + 1]
            )
            length = alone.lengths_RG[0, 0]
            assert length == together.lengths_RG[r, g]
            assert torch.equal(alone.tokens_RGL[0, 0, :length], together.tokens_RGL[r, g, :length])
            torch.testing.assert_close(
                alone.logprobs_RGL[0, 0, :length],
                together.logprobs_RGL[r, g, :length],
                atol=1e-5,
                rtol=0,
            )


def test_shape_lengths_truncation_and_padding(policy: Policy) -> None:
    policy = ending_often(policy)
    prompts = make_prompts(policy)
    out = generate(
        policy,
        prompts,
        sampling=Sampling(num_generations=8, max_new_tokens=25, sampling_temperature=1.5),
        uniforms_RGL=uniforms(3, 8, 25, seed=4),
    )
    assert out.tokens_RGL.shape == out.logprobs_RGL.shape
    assert out.tokens_RGL.shape[:2] == (3, 8)
    assert out.tokens_RGL.shape[2] == out.lengths_RG.max() <= 25
    past = torch.arange(out.tokens_RGL.shape[2]) >= out.lengths_RG[..., None]
    assert (out.tokens_RGL[past] == policy.pad_id).all()
    assert (out.logprobs_RGL[past] == 0).all()
    last = out.tokens_RGL.gather(2, out.lengths_RG[..., None] - 1)[..., 0]
    assert torch.equal(out.truncated_RG, ~torch.isin(last, torch.tensor(policy.eos_ids)))
    assert (out.lengths_RG[out.truncated_RG] == 25).all()
    assert out.truncated_RG.any() and not out.truncated_RG.all()
    assert not torch.isin(out.tokens_RGL[~past], policy.never_sampled_ids).any()
    assert [len(row) for row in out.texts] == [8, 8, 8]
    length = out.lengths_RG[1, 2]
    assert out.texts[1][2] == policy.tokenizer.decode(
        out.tokens_RGL[1, 2, :length], skip_special_tokens=True
    )


def test_vision_tokens_are_never_sampled(policy: Policy) -> None:
    """Even by a model that wants nothing else."""
    head = policy.model.lm_head
    weight = head.weight.detach().clone()
    try:
        with torch.no_grad():
            head.weight[policy.never_sampled_ids] *= 50
        out = generate(
            policy,
            make_prompts(policy),
            sampling=Sampling(num_generations=2, max_new_tokens=6),
            uniforms_RGL=uniforms(3, 2, 6),
        )
    finally:
        with torch.no_grad():
            head.weight.copy_(weight)
    assert not torch.isin(out.tokens_RGL, policy.never_sampled_ids).any()


def test_one_encode_per_prompt(policy: Policy) -> None:
    prompts = make_prompts(policy)
    with count_encodes(policy.model) as count:
        generate(
            policy,
            prompts,
            sampling=Sampling(num_generations=4, max_new_tokens=3),
            uniforms_RGL=uniforms(3, 4, 3),
        )
        assert (count.calls, count.videos) == (1, 3)
        features = encode_videos(policy, prompts)
        generate(
            policy,
            prompts,
            features,
            sampling=Sampling(num_generations=4, max_new_tokens=3),
            uniforms_RGL=uniforms(3, 4, 3),
        )
    assert (count.calls, count.videos) == (2, 6)


def test_training_mode_and_checkpointing_change_nothing(policy: Policy) -> None:
    prompts = make_prompts(policy)
    wanted = greedy(policy, prompts)
    policy = checkpointed(policy)
    assert torch.equal(greedy(policy, prompts).tokens_RGL, wanted.tokens_RGL)
    assert policy.model.training


def test_sampling_needs_enough_uniforms(policy: Policy) -> None:
    prompts = make_prompts(policy, count=1)
    with pytest.raises(ConfigError, match="greedy=True"):
        generate(policy, prompts, sampling=Sampling(num_generations=2, max_new_tokens=3))
    with pytest.raises(ConfigError, match=r"\(1, 2, 3\)"):
        generate(
            policy,
            prompts,
            sampling=Sampling(num_generations=2, max_new_tokens=3),
            uniforms_RGL=uniforms(1, 2, 2),
        )
    with pytest.raises(ConfigError, match="sampling_temperature is 0"):
        generate(
            policy,
            prompts,
            sampling=Sampling(num_generations=1, max_new_tokens=3, sampling_temperature=0.0),
            greedy=True,
        )
