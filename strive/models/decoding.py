"""The built-in sampler: one prefill a prompt, then all completions decode together.

The key-value cache of a prompt is copied to its G completions. Randomness is handed in as uniform
numbers per (prompt, generation, token), so that a draw does not depend on what else is in the
batch, on G, or on how many processes share the work.

A step is tensors in, tensors changed in place: nothing in it waits for the device. With a static
cache its shapes stay the same as well, so that it can be compiled; then the host looks at who has
ended only now and then.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from strive.choices import DecodeMode
from strive.errors import ConfigError, unknown_name
from strive.models.family import VisionFeatures
from strive.models.inputs import PromptInputs
from strive.models.language import Backend, compile_whole, language_forward
from strive.models.loading import Policy, evaluation_mode
from strive.models.rows import PADDING, prompt_rows
from strive.models.sampling import Completions, Sampling, choose_tokens
from strive.models.vision import encode_videos, merge_features

DECODE_MODES: tuple[str, ...] = get_args(DecodeMode)
COLUMNS_PER_BLOCK = 256
"""A static cache has a multiple of this many columns, and grows by it: attention reads all of them,
written or not, and each new width may be compiled once more."""
STEPS_PER_LOOK = 16
"""Steps of a static decoding between two looks at which rows have ended."""
FEWEST_ROWS = 2
"""A static decoding does not go down to one row: torch.compile takes 1 for a special case."""


class Decoder:
    """Writes completions with a policy as it is at each call; a `Sampler`."""

    def __init__(
        self, policy: Policy, *, mode: DecodeMode = "auto", backend: Backend | None = None
    ) -> None:
        """Choose how to decode.

        `static` keeps the shapes of a decode step fixed, `dynamic` lets the cache grow, `auto` is
        static on a GPU. `backend` is torch.compile's for a static step; not given: inductor on a
        GPU, no compiling on a CPU.

        Raises:
            UnknownNameError: no such mode.
        """
        if mode not in DECODE_MODES:
            raise unknown_name("decode mode", mode, DECODE_MODES)
        on_gpu = policy.device.type == "cuda"
        self.policy = policy
        self.is_static = mode == "static" or (mode == "auto" and on_gpu)
        if backend is None and on_gpu:
            backend = "inductor"
        self._backend = backend if self.is_static else None

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[PromptInputs],
        features: Sequence[VisionFeatures] | None = None,
        *,
        sampling: Sampling,
        greedy: bool = False,
        uniforms_RGL: NDArray[np.floating] | None = None,
    ) -> Completions:
        """Write `sampling.num_generations` completions of each prompt.

        `uniforms_RGL` ([prompts, generations, at least max_new_tokens], each in [0, 1)) decides
        every draw; leave it out only with `greedy`. Without `features` the videos are encoded here.

        Raises:
            ConfigError: the uniform numbers do not fit.
            ModelError: the step cannot be compiled.
        """
        uniforms_RL = None
        if not greedy:
            wanted = (len(prompts), sampling.num_generations, sampling.max_new_tokens)
            if uniforms_RGL is None:
                raise ConfigError("sampling needs uniforms_RGL; pass them, or greedy=True")
            if uniforms_RGL.shape[:2] != wanted[:2] or uniforms_RGL.shape[2] < wanted[2]:
                raise ConfigError(
                    f"uniforms_RGL has shape {uniforms_RGL.shape}; "
                    f"(prompts, generations, at least max_new_tokens) is {wanted}"
                )
            uniforms_RL = torch.from_numpy(uniforms_RGL).flatten(0, 1).to(self.policy.device)
        with evaluation_mode(self.policy.model):
            if features is None:
                features = encode_videos(self.policy, prompts)
            state, hidden_RH = self._prefill(prompts, features, sampling, uniforms_RL)
            self._decode(state, hidden_RH)
        return _completions(state)

    def _prefill(
        self,
        prompts: Sequence[PromptInputs],
        features: Sequence[VisionFeatures],
        sampling: Sampling,
        uniforms_RL: Tensor | None,
    ) -> tuple["DecodingState", Tensor]:
        """Read each prompt once; its completions' state and what predicts their first tokens."""
        policy, device, repeats = self.policy, self.policy.device, sampling.num_generations
        rows = prompt_rows(policy, prompts)
        prompt_cache = DynamicCache(config=policy.config)
        merged = merge_features(policy, features)
        hidden_BTH = language_forward(policy, policy.model, rows, merged, cache=prompt_cache)
        num_rows, columns = len(prompts) * repeats, rows.ids_BT.shape[1]
        column = torch.tensor([columns], device=device)
        layers: list[Any]
        if self.is_static:
            width = padded_width(columns + 1)
            layers = [StaticLayer(layer, repeats, width, column) for layer in prompt_cache.layers]
        else:
            width = columns + sampling.max_new_tokens
            layers = [RoomyLayer(layer, repeats, width) for layer in prompt_cache.layers]
        seen_RT = None
        if self.is_static or not rows.is_causal:
            prompt_BT = rows.segments_BT != PADDING
            written = prompt_BT.new_ones(len(prompt_BT), width - columns)
            seen_RT = torch.cat([prompt_BT, written], dim=1).repeat_interleave(repeats, dim=0)
        next_B = torch.tensor([prompt.next_position for prompt in prompts], device=device)
        shape = (num_rows, sampling.max_new_tokens)
        state = DecodingState(
            policy=policy,
            sampling=sampling,
            never_sampled_ids=policy.never_sampled_ids.to(device),
            eos_ids=torch.tensor(policy.eos_ids, device=device),
            cache=Cache(layers=layers),
            is_static=self.is_static,
            tokens_AL=torch.full(shape, policy.pad_id, device=device),
            logprobs_AL=torch.zeros(shape, device=device),
            rows_R=torch.arange(num_rows, device=device),
            tokens_R=torch.full((num_rows,), policy.pad_id, device=device),
            ended_R=torch.zeros(num_rows, dtype=torch.bool, device=device),
            position_R=next_B.repeat_interleave(repeats) - 1,
            column=column,
            step=torch.zeros(1, dtype=torch.long, device=device),
            uniforms_RL=uniforms_RL,
            seen_RT=seen_RT,
        )
        state.mark_sizes()
        return state, hidden_BTH[:, -1].repeat_interleave(repeats, dim=0)

    def _decode(self, state: "DecodingState", hidden_RH: Tensor) -> None:
        """Write all rows to their ends or the longest length; `hidden_RH` predicts token 0."""
        steps_per_look = STEPS_PER_LOOK if self.is_static else 1
        first_column = int(state.column)
        advance = _advance if self._backend is None else compiled(self._backend)
        write_next(state, hidden_RH)
        for step in range(1, state.sampling.max_new_tokens):
            if step % steps_per_look == 0 and not state.drop_ended():
                return
            if self.is_static and padded_width(first_column + step) > state.width:
                state.widen(padded_width(first_column + step))
            advance(state)


@dataclass
class DecodingState:
    """R rows that are being written, of A in all, and what has been written so far.

    `tokens_R` are the last tokens written, `position_R` their positions; `column` [1] is where the
    cache takes their keys, `step` [1] the number of the next token.
    """

    policy: Policy
    sampling: Sampling
    never_sampled_ids: Tensor
    eos_ids: Tensor
    cache: Any
    is_static: bool
    tokens_AL: Tensor
    logprobs_AL: Tensor
    rows_R: Tensor
    tokens_R: Tensor
    ended_R: Tensor
    position_R: Tensor
    column: Tensor
    step: Tensor
    uniforms_RL: Tensor | None
    """None: the most probable token."""
    seen_RT: Tensor | None
    """Columns that a row may see once they are written: all but the padding left of its prompt;
    None where there is no padding and the cache hands out no unwritten column."""

    @property
    def width(self) -> int:
        """Columns of a static cache."""
        return self.cache.layers[0].keys.shape[2]

    def drop_ended(self) -> bool:
        """Drop rows that have ended once half have; False when all have.

        A gap in a batch saves nothing, and a new batch costs a copy of the cache. With a static
        cache the number of rows is halved, so that few numbers occur.
        """
        rows = len(self.ended_R)
        left = int((~self.ended_R).sum())
        if left == 0:
            return False
        size = rows
        fewest = min(rows, FEWEST_ROWS) if self.is_static else 1
        while size > fewest and left <= size // 2:
            size = (size + 1) // 2 if self.is_static else left
        if size < rows:
            running_first = torch.argsort(self.ended_R.int(), stable=True)
            self.keep(running_first[:size])
        return True

    def keep(self, kept_K: Tensor) -> None:
        """Go on with some of the rows."""
        for layer in self.cache.layers:
            layer.batch_select_indices(kept_K)
        self.rows_R, self.tokens_R = self.rows_R[kept_K], self.tokens_R[kept_K]
        self.ended_R, self.position_R = self.ended_R[kept_K], self.position_R[kept_K]
        if self.uniforms_RL is not None:
            self.uniforms_RL = self.uniforms_RL[kept_K]
        if self.seen_RT is not None:
            self.seen_RT = self.seen_RT[kept_K]
        self.mark_sizes()

    def mark_sizes(self) -> None:
        """Tell torch.compile which sizes will change: rows and columns, and nothing else."""
        if not self.is_static:
            return
        by_rows = [self.rows_R, self.tokens_R, self.ended_R, self.position_R]
        by_both = [self.tokens_AL, self.logprobs_AL, self.uniforms_RL, self.seen_RT]
        cached = [states for layer in self.cache.layers for states in (layer.keys, layer.values)]
        for tensors, sizes in ((by_rows, [0]), (by_both, [0, 1]), (cached, [0, 2])):
            for tensor in tensors:
                if tensor is not None:
                    torch._dynamo.maybe_mark_dynamic(tensor, sizes)

    def widen(self, width: int) -> None:
        """Give a static cache more columns."""
        assert self.seen_RT is not None  # as it always is with a static cache
        for layer in self.cache.layers:
            layer.widen(width)
        more = self.seen_RT.new_ones(len(self.seen_RT), width - self.seen_RT.shape[1])
        self.seen_RT = torch.cat([self.seen_RT, more], dim=1)
        self.mark_sizes()


def padded_width(columns: int) -> int:
    """Columns of a static cache that holds at least `columns`."""
    return -(-columns // COLUMNS_PER_BLOCK) * COLUMNS_PER_BLOCK


@functools.cache
def compiled(backend: Backend) -> Callable[[DecodingState], None]:
    """The step as one graph. A compiled step that falls apart would be slow without a word.

    Raises:
        ModelError: by the step, when it cannot be compiled.
    """
    # Of inductor's own plan for a large vocabulary: nothing that a user could change.
    warnings.filterwarnings("ignore", message=r"\s*Online softmax is disabled")
    return compile_whole(_advance, backend, name="the decode step", without="decode=dynamic")


def _advance(state: DecodingState) -> None:
    """Feed the last tokens and write the next ones."""
    family, model = state.policy.family, state.policy.model
    mask = state.seen_RT
    if mask is not None and state.is_static:
        columns_T = torch.arange(mask.shape[1], device=mask.device)
        mask = mask & (columns_T <= state.column)
    elif mask is not None:
        mask = mask[:, : state.cache.get_seq_length() + 1]
    output = family.language_model(model)(
        inputs_embeds=model.get_input_embeddings()(state.tokens_R[:, None]),
        position_ids=state.position_R[None, :, None].expand(3, -1, -1),
        attention_mask=family.mask_argument(None if mask is None else mask[:, None, None]),
        past_key_values=state.cache,
        use_cache=True,
    )
    state.column.add_(1)
    write_next(state, output.last_hidden_state[:, -1])


def write_next(state: DecodingState, hidden_RH: Tensor) -> None:
    """Choose each row's next token and write it down; a row that has ended gets padding."""
    sampling, pad_id = state.sampling, state.policy.pad_id
    logits_RV = state.policy.model.lm_head(hidden_RH).float() / sampling.sampling_temperature
    tokens_R = choose_tokens(
        logits_RV,
        None if state.uniforms_RL is None else state.uniforms_RL.index_select(1, state.step)[:, 0],
        never_sampled_ids=state.never_sampled_ids,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
    ).masked_fill(state.ended_R, pad_id)
    logprobs_R = logits_RV.log_softmax(-1).gather(1, tokens_R[:, None])[:, 0]
    at_step = (state.rows_R, state.step.expand(len(state.rows_R)))
    state.tokens_AL.index_put_(at_step, tokens_R)
    state.logprobs_AL.index_put_(at_step, logprobs_R.masked_fill(state.ended_R, 0.0))
    state.tokens_R.copy_(tokens_R)
    state.ended_R.logical_or_((tokens_R[:, None] == state.eos_ids).any(dim=1))
    state.position_R.add_(1)
    state.step.add_(1)


def _completions(state: DecodingState) -> Completions:
    """Everything written, cut to the longest completion."""
    policy, num_generations = state.policy, state.sampling.num_generations
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


# --- key-value caches ----------------------------------------------------------------------------


class _CopiedLayer(DynamicLayer):
    """One layer's keys and values, each row `repeats` times over, in `width` columns."""

    keys: Any
    values: Any

    def __init__(self, layer: Any, repeats: int, width: int) -> None:
        super().__init__()
        self.dtype, self.device = layer.keys.dtype, layer.keys.device
        self.keys = _repeat_with_room(layer.keys, repeats, width)
        self.values = _repeat_with_room(layer.values, repeats, width)
        self.is_initialized = True


class RoomyLayer(_CopiedLayer):
    """One layer's keys and values with room for all tokens to come, so that none is copied twice.

    The usual layer concatenates, which moves the whole cache for every token. This one hands out
    the columns written so far, a slice that grows with every token.
    """

    def __init__(self, layer: Any, repeats: int, width: int) -> None:
        super().__init__(layer, repeats, width)
        self.filled = layer.keys.shape[-2]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the next columns and return everything written."""
        end = self.filled + key_states.shape[-2]
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Columns written."""
        return self.filled


class StaticLayer(_CopiedLayer):
    """One layer's keys and values in a fixed number of columns, of which `column` is written next.

    It hands out all of its columns, so that no shape changes from token to token; a mask hides what
    is not written yet. `column` is a tensor [1], shared by all layers and moved on by the step.
    """

    is_compileable = True

    def __init__(self, layer: Any, repeats: int, width: int, column: Tensor) -> None:
        super().__init__(layer, repeats, width)
        self.column = column

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one column and return all, written or not."""
        self.keys.index_copy_(2, self.column, key_states)
        self.values.index_copy_(2, self.column, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Columns written."""
        return int(self.column)

    def widen(self, width: int) -> None:
        """Make room for tokens up to column `width`."""
        self.keys = _repeat_with_room(self.keys, 1, width)
        self.values = _repeat_with_room(self.values, 1, width)


def _repeat_with_room(states: Tensor, repeats: int, width: int) -> Tensor:
    """Repeat each row and add columns of zeros up to `width`: a masked column must be finite."""
    batch, heads, length, head_width = states.shape
    grown = states.new_empty(batch * repeats, heads, width, head_width)
    grown[:, :, length:] = 0
    grown.unflatten(0, (batch, repeats))[:, :, :, :length] = states[:, None]
    return grown
