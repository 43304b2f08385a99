"""The fixed-shape decoding writes what the growing one writes, as one graph."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from strive.errors import ModelError, UnknownNameError
from strive.models import decoding
from strive.models.inputs import PromptInputs
from strive.models.loading import Policy, checkpoint_activations, load_policy
from strive.models.lora import add_adapters
from strive.models.sampling import Completions, Sampling

from .conftest import FAMILIES, generate, make_prompts
from .test_generate import ending_often, uneven_prompts, uniforms


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So that a short completion meets all that a long one meets."""
    monkeypatch.setattr(decoding, "STEPS_PER_LOOK", 3)
    monkeypatch.setattr(decoding, "COLUMNS_PER_BLOCK", 8)
    torch.compiler.reset()
    decoding.compiled.cache_clear()
    yield
    torch.compiler.reset()
    decoding.compiled.cache_clear()


def write(
    policy: Policy,
    prompts: list[PromptInputs],
    *,
    top_p: float = 1.0,
    top_k: int = 0,
    **options: Any,
) -> Completions:
    sampling = Sampling(4, 20, sampling_temperature=0.8, top_p=top_p, top_k=top_k)
    draws = uniforms(len(prompts), 4, 20)
    return generate(policy, prompts, sampling=sampling, uniforms_RGL=draws, **options)


def assert_same(ours: Completions, wanted: Completions) -> None:
    assert torch.equal(ours.tokens_RGL, wanted.tokens_RGL)
    assert torch.equal(ours.lengths_RG, wanted.lengths_RG)
    assert torch.equal(ours.truncated_RG, wanted.truncated_RG)
    torch.testing.assert_close(ours.logprobs_RGL, wanted.logprobs_RGL, atol=1e-5, rtol=0)
    assert ours.texts == wanted.texts


@pytest.mark.parametrize("kept", [{}, {"top_p": 0.9}, {"top_k": 9, "top_p": 0.8}, {"greedy": True}])
def test_static_equals_dynamic(policy: Policy, kept: dict[str, Any]) -> None:
    """Uneven prompts, rows that end at many steps, a cache that is widened on the way."""
    policy = ending_often(policy)
    prompts = uneven_prompts(policy, count=14)
    wanted = write(policy, prompts, decode_mode="dynamic", **kept)
    assert len(set(wanted.lengths_RG.flatten().tolist())) > 5
    assert_same(write(policy, prompts, decode_mode="static", **kept), wanted)


def test_static_equals_dynamic_without_padding(policy: Policy) -> None:
    [prompt, *_] = make_prompts(policy)
    prompts = [prompt, prompt]
    assert_same(
        write(policy, prompts, decode_mode="static"), write(policy, prompts, decode_mode="dynamic")
    )


class CountingBackend:
    """A backend of torch.compile that counts graphs and the runs of each."""

    def __init__(self) -> None:
        self.graphs = 0
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        self.graphs += 1

        def run(*arguments: Any) -> Any:
            self.runs += 1
            return graph.forward(*arguments)

        return run


@pytest.mark.long
def test_a_decode_step_is_one_graph_that_is_never_made_again(policy: Policy) -> None:
    """Over rollouts of other widths and prompts, while rows end and the cache is widened."""
    policy = ending_often(policy)
    for parameter in policy.model.parameters():
        parameter.requires_grad_(True)
    backend = CountingBackend()
    prompts = uneven_prompts(policy, count=12)
    steps = 0
    for start, kept in ((0, {"top_p": 0.9}), (4, {"top_p": 0.9}), (8, {"top_p": 0.9})):
        part = prompts[start : start + 4]
        wanted = write(policy, part, decode_mode="dynamic", **kept)
        ours = write(policy, part, decode_mode="static", compile_backend=backend, **kept)
        assert_same(ours, wanted)
        # A look every three steps: up to two steps more than the longest completion needs.
        longest = int(wanted.lengths_RG.max())
        assert longest - 1 <= backend.runs - steps <= longest + 1
        steps = backend.runs
    assert backend.graphs == 1


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_and_checkpointing_leave_it_one_graph(
    family: str, folders: dict[str, Path]
) -> None:
    """As in training: adapters that learn between two rollouts, checkpointing in training mode."""
    policy = ending_often(load_policy(folders[family]))
    add_adapters(policy, targets="language", rank=4, alpha=8, seed=3)
    checkpoint_activations(policy.model)
    policy.model.train()
    backend = CountingBackend()
    prompts = uneven_prompts(policy, count=4)
    texts = []
    for seed in range(2):
        wanted = write(policy, prompts, decode_mode="dynamic")
        ours = write(policy, prompts, decode_mode="static", compile_backend=backend)
        assert_same(ours, wanted)
        texts.append(ours.texts)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if ".lora_B." in name:
                    parameter.normal_(0.0, 0.1, generator=generator)
    assert texts[0] != texts[1]
    assert backend.graphs == 1


def test_half_of_the_rows_go_at_a_time(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few sizes of a batch occur, never one row: a new size may be compiled again."""
    sizes = []
    keep = decoding.DecodingState.keep

    def noted(state: decoding.DecodingState, kept_K: torch.Tensor) -> None:
        sizes.append((len(state.rows_R), len(kept_K)))
        keep(state, kept_K)

    monkeypatch.setattr(decoding.DecodingState, "keep", noted)
    write(ending_often(policy), uneven_prompts(policy, count=14), decode_mode="static")
    assert len(sizes) >= 3
    assert sizes[0][0] == 56
    assert {after for _, after in sizes} <= {28, 14, 7, 4, 2}


@pytest.mark.long
def test_a_step_that_cannot_be_compiled_is_one_line(policy: Policy) -> None:
    def broken(graph: torch.fx.GraphModule, _: list[Any]) -> Callable[..., Any]:
        raise RuntimeError("no compiler here")

    with pytest.raises(ModelError, match=r"no compiler here.*; set decode=dynamic$"):
        write(policy, make_prompts(policy), decode_mode="static", compile_backend=broken)


def test_an_unknown_mode(policy: Policy) -> None:
    with pytest.raises(UnknownNameError, match=r"growing.*auto, dynamic, static"):
        write(policy, make_prompts(policy), decode_mode="growing")
