"""Rollouts: one vision encode and one prefill per prompt, then all completions decode together.

The key-value cache of a prompt is copied to its G completions. Randomness is handed in as uniform
numbers per (prompt, generation, token), so that a draw does not depend on what else is in the
batch, on G, or on how many processes share the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import DynamicCache

from strive.choices import DecodeMode
from strive.errors import ConfigError, unknown_name
from strive.models.compiling import Backend
from strive.models.decoding import (
    DecodingState,
    TokenRule,
    decode,
    new_state,
    padded_width,
)
from strive.models.family import VisionFeatures
from strive.models.inputs import PromptInputs
from strive.models.kv_cache import fixed_cache, roomy_cache
from strive.models.language import language_forward
from strive.models.loading import Policy, evaluation_mode
from strive.models.rows import PADDING, Rows, prompt_rows
from strive.models.sampling import Sampling
from strive.models.vision import encode_videos, merge_features

DECODE_MODES: tuple[str, ...] = ("auto", "dynamic", "static")


@dataclass(frozen=True)
class Completions:
    """G completions of each of R prompts, on the CPU; positions past a length hold padding."""

    tokens_RGL: Tensor
    """Token ids, the end token included."""
    lengths_RG: Tensor
    truncated_RG: Tensor
    """True where `max_new_tokens` came before an end token."""
    logprobs_RGL: Tensor
    """Log-probability of each token at the sampling temperature, before top-k and top-p."""
    texts: list[list[str]]
    """Decoded text without special tokens, [R][G]."""


class Sampler(Protocol):
    """What a rollout asks of whatever writes completions.

    `functools.partial(generate, policy)` is one. An engine that takes no uniform numbers derives
    its seeds from them, so that a completion depends on its own numbers and the weights alone.
    """

    def __call__(
        self,
        prompts: Sequence[PromptInputs],
        features: Sequence[VisionFeatures],
        *,
        sampling: Sampling,
        uniforms_RGL: NDArray[np.floating],
    ) -> Completions:
        """Write G completions of each prompt; arguments as of `generate`."""


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: Sequence[PromptInputs],
    features: Sequence[VisionFeatures] | None = None,
    *,
    sampling: Sampling,
    greedy: bool = False,
    uniforms_RGL: NDArray[np.floating] | None = None,
    decode_mode: DecodeMode = "auto",
    compile_backend: Backend | None = None,
) -> Completions:
    """Write `sampling.num_generations` completions of each prompt.

    `uniforms_RGL` ([prompts, generations, at least max_new_tokens], each in [0, 1)) decides every
    draw; leave it out only with `greedy`. Without `features` the videos are encoded here.

    `decode_mode`: `static` keeps the shapes of a decode step fixed, `dynamic` lets the cache grow,
    `auto` is static on a GPU. `compile_backend` is torch.compile's for a static step; not given:
    inductor on a GPU, no compiling on a CPU.

    Raises:
        ConfigError: uniforms or mode cannot be.
    """
    num_generations, max_new_tokens = sampling.num_generations, sampling.max_new_tokens
    _check_uniforms(uniforms_RGL, greedy, (len(prompts), num_generations, max_new_tokens))
    is_fixed = _has_fixed_cache(decode_mode, policy)
    if compile_backend is None and policy.device.type == "cuda":
        compile_backend = "inductor"
    rule = TokenRule(
        sampling_temperature=sampling.sampling_temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        never_sampled_ids=policy.never_sampled_ids.to(policy.device),
        eos_ids=torch.tensor(policy.eos_ids, device=policy.device),
        pad_id=policy.pad_id,
    )
    uniforms_RL = None
    if uniforms_RGL is not None and not greedy:
        uniforms_RL = torch.from_numpy(uniforms_RGL).flatten(0, 1).to(policy.device)
    with evaluation_mode(policy.model):
        if features is None:
            features = encode_videos(policy, prompts)
        state, hidden_RH = _prefill(
            policy,
            prompts,
            features,
            rule,
            uniforms_RL,
            num_generations=num_generations,
            max_new_tokens=max_new_tokens,
            is_fixed=is_fixed,
        )
        decode(state, hidden_RH, backend=compile_backend if is_fixed else None)
    return _completions(policy, state, num_generations)


def _has_fixed_cache(decode_mode: DecodeMode, policy: Policy) -> bool:
    if decode_mode not in DECODE_MODES:
        raise unknown_name("decode mode", decode_mode, DECODE_MODES)
    return decode_mode == "static" or (decode_mode == "auto" and policy.device.type == "cuda")


def _prefill(
    policy: Policy,
    prompts: Sequence[PromptInputs],
    features: Sequence[VisionFeatures],
    rule: TokenRule,
    uniforms_RL: Tensor | None,
    *,
    num_generations: int,
    max_new_tokens: int,
    is_fixed: bool,
) -> tuple[DecodingState, Tensor]:
    """Read each prompt once; the state of its completions and what predicts their first tokens."""
    rows = prompt_rows(policy, prompts)
    cache = DynamicCache(config=policy.config)
    merged = merge_features(policy, features)
    hidden_BTH = language_forward(policy, policy.model, rows, merged, cache=cache)
    columns = rows.ids_BT.shape[1]
    column = torch.tensor([columns], device=policy.device)
    if is_fixed:
        width = padded_width(columns + 1)
        copied = fixed_cache(cache.layers, num_generations, width, column)
    else:
        width = columns + max_new_tokens
        copied = roomy_cache(cache.layers, num_generations, width - columns)
    next_B = torch.tensor([prompt.next_position for prompt in prompts], device=policy.device)
    has_hidden = is_fixed or not rows.is_causal
    state = new_state(
        policy,
        rule,
        copied,
        column=column,
        next_position_R=next_B.repeat_interleave(num_generations),
        uniforms_RL=uniforms_RL,
        seen_RT=_visible_columns(rows, num_generations, width) if has_hidden else None,
        max_new_tokens=max_new_tokens,
        is_fixed=is_fixed,
    )
    return state, hidden_BTH[:, -1].repeat_interleave(num_generations, dim=0)


def _visible_columns(rows: Rows, num_generations: int, width: int) -> Tensor:
    """Which of `width` cache columns a completion may see: all but the padding of its prompt."""
    prompt_BT = rows.segments_BT != PADDING
    written = prompt_BT.new_ones(len(prompt_BT), width - prompt_BT.shape[1])
    return torch.cat([prompt_BT, written], dim=1).repeat_interleave(num_generations, dim=0)


def _completions(policy: Policy, state: DecodingState, num_generations: int) -> Completions:
    """Everything written, cut to the longest completion."""
    tokens_AL, logprobs_AL = state.tokens_AL.cpu(), state.logprobs_AL.cpu()
    is_end_AL = torch.isin(tokens_AL, torch.tensor(policy.eos_ids))
    ended_A = is_end_AL.any(dim=1)
    lengths_A = torch.where(ended_A, is_end_AL.int().argmax(dim=1) + 1, tokens_AL.shape[1])
    longest = int(lengths_A.max())
    written = zip(tokens_AL.tolist(), lengths_A.tolist(), strict=True)
    texts = policy.tokenizer.batch_decode(
        [row[:length] for row, length in written], skip_special_tokens=True
    )
    shape = (-1, num_generations)
    return Completions(
        tokens_RGL=tokens_AL[:, :longest].unflatten(0, shape),
        lengths_RG=lengths_A.unflatten(0, shape),
        truncated_RG=~ended_A.unflatten(0, shape),
        logprobs_RGL=logprobs_AL[:, :longest].unflatten(0, shape),
        texts=[texts[i : i + num_generations] for i in range(0, len(texts), num_generations)],
    )


def _check_uniforms(
    uniforms_RGL: NDArray[np.floating] | None, greedy: bool, wanted: tuple[int, int, int]
) -> None:
    if greedy:
        return
    if uniforms_RGL is None:
        raise ConfigError("sampling needs uniforms_RGL; pass them, or greedy=True")
    if uniforms_RGL.shape[:2] != wanted[:2] or uniforms_RGL.shape[2] < wanted[2]:
        raise ConfigError(
            f"uniforms_RGL has shape {uniforms_RGL.shape}; "
            f"(prompts, generations, at least max_new_tokens) is {wanted}"
        )
