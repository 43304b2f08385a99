"""Rollouts: one vision encode and one prefill per prompt, then all completions decode together.

The key-value cache of a prompt is copied to its G completions. Randomness is handed in as uniform
numbers per (prompt, generation, token), so that a draw does not depend on what else is in the
batch, on G, or on how many processes share the work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from strive.errors import ConfigError
from strive.models.family import VisionFeatures
from strive.models.inputs import PromptInputs
from strive.models.loading import Policy, evaluation_mode
from strive.models.rows import PADDING, Rows, attention_mask, language_forward, prompt_rows
from strive.models.sampling import choose_tokens
from strive.models.vision import encode_videos, merge_features


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


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: Sequence[PromptInputs],
    features: Sequence[VisionFeatures] | None = None,
    *,
    num_generations: int,
    max_new_tokens: int,
    sampling_temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    greedy: bool = False,
    uniforms_RGL: NDArray[np.floating] | None = None,
) -> Completions:
    """Write `num_generations` completions for each prompt.

    `uniforms_RGL` ([prompts, generations, at least max_new_tokens], each in [0, 1)) decides every
    draw; leave it out only with `greedy`. Without `features` the videos are encoded here.
    """
    if sampling_temperature <= 0:
        raise ConfigError(
            f"sampling_temperature is {sampling_temperature}; it must be above 0 (use greedy=True "
            "for the most probable token)"
        )
    _check_uniforms(uniforms_RGL, greedy, (len(prompts), num_generations, max_new_tokens))
    with evaluation_mode(policy.model):
        if features is None:
            features = encode_videos(policy, prompts)
        decoding = _Decoding(policy, prompts, features, num_generations, max_new_tokens)
        uniforms = None if uniforms_RGL is None or greedy else torch.from_numpy(uniforms_RGL)
        if uniforms is not None:
            uniforms = uniforms.reshape(decoding.num_rows, -1).to(policy.device)
        for step in range(max_new_tokens):
            logits_RV = decoding.logits().float() / sampling_temperature
            tokens_R = choose_tokens(
                logits_RV,
                None if uniforms is None else uniforms[decoding.rows_R, step],
                never_sampled_ids=decoding.never_sampled_ids,
                top_p=top_p,
                top_k=top_k,
            )
            logprobs_R = logits_RV.log_softmax(-1).gather(1, tokens_R[:, None])[:, 0]
            if not decoding.accept(step, tokens_R, logprobs_R):
                break
    return decoding.completions()


class _Decoding:
    """The state of one call: cache, last hidden states, and what has been written so far.

    Rows that have ended still take part (a gap in a batch saves nothing) until half have ended;
    then the others move together.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[PromptInputs],
        features: Sequence[VisionFeatures],
        num_generations: int,
        max_new_tokens: int,
    ) -> None:
        self.policy, self.model = policy, policy.model
        self.max_new_tokens = max_new_tokens
        self.shape = (len(prompts), num_generations)
        self.num_rows = len(prompts) * num_generations
        device = policy.device
        self.never_sampled_ids = policy.never_sampled_ids.to(device)
        self.eos_ids = torch.tensor(policy.eos_ids, device=device)
        self.rows_R = torch.arange(self.num_rows, device=device)
        self.ended_R = torch.zeros(self.num_rows, dtype=torch.bool, device=device)
        shape = (self.num_rows, max_new_tokens)
        self.tokens_RL = torch.full(shape, policy.pad_id, device=device)
        self.logprobs_RL = torch.zeros(shape, device=device)
        self.lengths_R = torch.full((self.num_rows,), max_new_tokens, device=device)
        self.ended_all_R = self.ended_R.clone()
        self._prefill(prompts, features, num_generations)

    def _prefill(
        self,
        prompts: Sequence[PromptInputs],
        features: Sequence[VisionFeatures],
        num_generations: int,
    ) -> None:
        rows = prompt_rows(self.policy, prompts)
        cache = DynamicCache(config=self.model.config)
        hidden_BTH = language_forward(
            self.policy,
            self.model,
            rows,
            merge_features(self.policy, features),
            mask=attention_mask(rows),
            cache=cache,
        )
        self.hidden_RH = hidden_BTH[:, -1].repeat_interleave(num_generations, dim=0)
        self.cache: Any = _expand_cache(cache, num_generations, self.max_new_tokens)
        next_B = torch.tensor([prompt.next_position for prompt in prompts])
        self.position_R = next_B.to(self.policy.device).repeat_interleave(num_generations)
        self.seen_RT = _visible_columns(rows, num_generations, self.max_new_tokens)

    def logits(self) -> Tensor:
        """Logits [R, V] of the next token of every row still in the batch."""
        return self.model.lm_head(self.hidden_RH)

    def accept(self, step: int, tokens_R: Tensor, logprobs_R: Tensor) -> bool:
        """Write one token per running row and move on; False when there is nothing left to do."""
        running_R = ~self.ended_R
        rows_R = self.rows_R[running_R]
        self.tokens_RL[rows_R, step] = tokens_R[running_R]
        self.logprobs_RL[rows_R, step] = logprobs_R[running_R]
        ends_R = running_R & torch.isin(tokens_R, self.eos_ids)
        self.lengths_R[self.rows_R[ends_R]] = step + 1
        self.ended_all_R[self.rows_R[ends_R]] = True
        self.ended_R = self.ended_R | ends_R
        left = int((~self.ended_R).sum())
        if left == 0 or step + 1 == self.max_new_tokens:
            return False
        if left <= len(self.rows_R) // 2:
            tokens_R = self._keep_running(tokens_R)
        self._forward(tokens_R, step)
        return True

    def _forward(self, tokens_R: Tensor, step: int) -> None:
        mask = None
        if self.seen_RT is not None:
            width = self.cache.get_seq_length() + 1
            mask = self.seen_RT[:, None, None, :width]
        positions_3R1 = (self.position_R + step)[None, :, None].expand(3, -1, -1)
        output = self.model.model.language_model(
            inputs_embeds=self.model.get_input_embeddings()(tokens_R[:, None]),
            position_ids=positions_3R1,
            attention_mask=self.policy.family.mask_argument(mask),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.hidden_RH = output.last_hidden_state[:, -1]

    def _keep_running(self, tokens_R: Tensor) -> Tensor:
        keep = (~self.ended_R).nonzero()[:, 0]
        for layer in self.cache.layers:
            layer.batch_select_indices(keep)
        self.rows_R, self.position_R = self.rows_R[keep], self.position_R[keep]
        self.ended_R = self.ended_R[keep]
        if self.seen_RT is not None:
            self.seen_RT = self.seen_RT[keep]
        return tokens_R[keep]

    def completions(self) -> Completions:
        """Everything written, cut to the longest completion."""
        lengths_R = self.lengths_R.cpu()
        longest = int(lengths_R.max())
        tokens_RL = self.tokens_RL[:, :longest].cpu()
        rows = [row[:n] for row, n in zip(tokens_RL.tolist(), lengths_R.tolist(), strict=True)]
        texts = self.policy.tokenizer.batch_decode(rows, skip_special_tokens=True)
        prompts, generations = self.shape
        return Completions(
            tokens_RGL=tokens_RL.reshape(prompts, generations, longest),
            lengths_RG=lengths_R.reshape(prompts, generations),
            truncated_RG=~self.ended_all_R.cpu().reshape(prompts, generations),
            logprobs_RGL=self.logprobs_RL[:, :longest].cpu().reshape(prompts, generations, longest),
            texts=[texts[r * generations : (r + 1) * generations] for r in range(prompts)],
        )


class _RoomyLayer(DynamicLayer):
    """One layer's keys and values with room for all tokens to come, so that none is copied twice.

    The usual layer concatenates, which moves the whole cache for every token.
    """

    keys: Any
    values: Any

    def __init__(self, layer: Any, repeats: int, room: int) -> None:
        super().__init__()
        self.filled = layer.keys.shape[-2]
        self.dtype, self.device = layer.keys.dtype, layer.keys.device
        self.keys = self._with_room(layer.keys, repeats, room)
        self.values = self._with_room(layer.values, repeats, room)
        self.is_initialized = True

    @staticmethod
    def _with_room(states: Tensor, repeats: int, room: int) -> Tensor:
        batch, heads, length, width = states.shape
        grown = states.new_empty(batch, repeats, heads, length + room, width)
        grown[:, :, :, :length] = states[:, None]
        return grown.reshape(batch * repeats, heads, length + room, width)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        end = self.filled + key_states.shape[-2]
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.filled


def _expand_cache(cache: DynamicCache, num_generations: int, max_new_tokens: int) -> Cache:
    """Copy each prompt's keys and values to its G completions, with room for their tokens."""
    room = max(max_new_tokens - 1, 0)
    return Cache(layers=[_RoomyLayer(layer, num_generations, room) for layer in cache.layers])


def _visible_columns(rows: Rows, num_generations: int, max_new_tokens: int) -> Tensor | None:
    """Which cache columns a completion may see: all but the padding left of its prompt."""
    if rows.is_causal:
        return None
    prompt_BT = rows.segments_BT != PADDING
    written = prompt_BT.new_ones(len(prompt_BT), max_new_tokens)
    return torch.cat([prompt_BT, written], dim=1).repeat_interleave(num_generations, dim=0)


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
