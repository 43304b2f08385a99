"""Adapters: what they change, what they leave, and what they merge into."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from strive.errors import ConfigError
from strive.models.loading import Policy, load_policy, save_policy
from strive.models.logprobs import completion_logprobs_batch
from strive.models.lora import adapters_off, add_adapters, base_parameters, merged_state_dict
from strive.models.sampling import Sampling
from strive.models.vision import encode_videos

from .conftest import FAMILIES, generate, make_prompts


@pytest.fixture(params=FAMILIES)
def plain(request: pytest.FixtureRequest, policies: dict[str, Policy]) -> Policy:
    return policies[request.param]


@pytest.fixture
def adapted(plain: Policy, folders: dict[str, Path]) -> Policy:
    """The same policy with adapters that have learned something (B is no longer 0)."""
    policy = load_policy(folders[plain.family.name])
    add_adapters(policy, targets="language+projector", rank=4, alpha=8, seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0.0, 0.1, generator=generator)
    return policy


def tokens(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, 5), generator=generator), torch.tensor([[5, 2, 4]] * 2)


def logprobs(policy: Policy, mode: str = "packed") -> torch.Tensor:
    prompts = make_prompts(policy, 2)
    features = encode_videos(policy, prompts)
    return completion_logprobs_batch(policy, prompts, features, *tokens(), mode=mode).logprobs


def learned(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def test_adapters_change_nothing_until_they_learn(plain: Policy, folders: dict[str, Path]) -> None:
    policy = load_policy(folders[plain.family.name])
    add_adapters(policy, targets="language", rank=4, alpha=8, seed=3)
    assert torch.equal(logprobs(policy), logprobs(plain))


@torch.no_grad()
def test_with_adapters_off_it_is_the_model_it_was(plain: Policy, adapted: Policy) -> None:
    with adapters_off(adapted.model):
        assert torch.equal(logprobs(adapted), logprobs(plain))
    assert (logprobs(adapted) - logprobs(plain)).abs().max() > 1e-2
    assert learned(adapted.model)  # they train again
    with adapters_off(plain.model):  # a model without adapters stays as it is
        assert torch.isfinite(logprobs(plain)).all()


@torch.no_grad()
def test_packed_equals_plain_and_the_rollout(adapted: Policy) -> None:
    torch.testing.assert_close(logprobs(adapted), logprobs(adapted, "plain"), atol=1e-5, rtol=0)
    prompts = make_prompts(adapted, 2)
    features = encode_videos(adapted, prompts)
    written = generate(
        adapted,
        prompts,
        features,
        sampling=Sampling(num_generations=2, max_new_tokens=4),
        greedy=True,
    )
    again = completion_logprobs_batch(
        adapted, prompts, features, written.tokens_RGL, written.lengths_RG
    )
    mask = again.mask
    torch.testing.assert_close(again.logprobs[mask], written.logprobs_RGL[mask], atol=1e-5, rtol=0)


def test_only_adapters_get_a_gradient(adapted: Policy) -> None:
    logprobs(adapted).sum().backward()
    parameters = dict(adapted.model.named_parameters())
    trained = {name for name, parameter in parameters.items() if parameter.grad is not None}
    assert trained == {name for name in parameters if ".lora_" in name}
    assert all((parameters[name].grad != 0).any() for name in trained)
    # 7 linear layers in each of 3 blocks, A and B each; and the mergers' two layers (Qwen3-VL has
    # two more mergers for its deepstack).
    mergers = {"qwen2_5_vl": 1, "qwen3_vl": 3}[adapted.family.name]
    assert len(trained) == 2 * (7 * 3 + 2 * mergers)
    blocks = [name for name in trained if "visual" in name and "merger" not in name]
    assert not blocks


@torch.no_grad()
def test_merged_is_a_plain_folder_with_the_same_outputs(adapted: Policy, tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in adapted.model.named_parameters()}
    save_policy(adapted, tmp_path / "final", merged_state_dict(adapted.model))
    after = dict(adapted.model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "final")
    assert not any("lora" in name or "base_layer" in name for name in model.state_dict())
    merged = load_policy(tmp_path / "final")
    torch.testing.assert_close(logprobs(merged), logprobs(adapted), atol=1e-5, rtol=0)
    assert sorted(path.name for path in (tmp_path / "final").glob("adapter*")) == []


def test_the_base_keeps_its_names(plain: Policy, adapted: Policy) -> None:
    base, found = dict(plain.model.named_parameters()), dict(base_parameters(adapted.model))
    assert list(base) == list(found)
    assert all(torch.equal(base[name], found[name]) for name in base)


def test_adapters_derive_from_the_seed_alone(folders: dict[str, Path]) -> None:
    def build(seed: int, **options: object) -> dict[str, torch.Tensor]:
        policy = load_policy(folders["qwen2_5_vl"], **options)
        add_adapters(policy, targets="language", rank=4, alpha=8, seed=seed)
        return learned(policy.model)

    torch.manual_seed(11)
    state = torch.get_rng_state()
    one = build(3)
    assert torch.equal(torch.get_rng_state(), state)  # no draw from the global generator
    torch.manual_seed(12)
    two, other, half = build(3), build(4), build(3, dtype="bfloat16")
    assert all(torch.equal(one[name], two[name]) for name in one)
    a = [name for name in one if ".lora_A." in name]
    assert all((one[name] != other[name]).all() for name in a)
    assert all(torch.equal(one[name].bfloat16(), half[name].bfloat16()) for name in a)
    assert all((one[name] == 0).all() for name in one if ".lora_B." in name)
    # Kaiming uniform with a = sqrt(5) is uniform within 1 / sqrt(fan_in); fan_in is 64 here.
    q = next(one[name] for name in a if "layers.0.self_attn.q_proj" in name)
    assert q.shape == (4, 64) and 0.9 / 8 < q.abs().max() <= 1 / 8


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("nothing", "matches no linear layer"),
        (r"model\.visual\..*", r"layers that cannot have adapters, such as 'model.visual"),
        ("lm_head", "such as 'lm_head'"),
        ("(", "nor a regular expression"),
    ],
)
def test_targets_that_cannot_be(plain: Policy, targets: str, message: str) -> None:
    model = copy.deepcopy(plain.model)
    with pytest.raises(ConfigError, match=message):
        add_adapters(replace(plain, model=model), targets=targets, rank=4, alpha=8, seed=0)
    assert not any("lora" in name for name, _ in model.named_parameters())
