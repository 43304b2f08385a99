"""Writing completions token by token, all rows of a call together.

A step is tensors in, tensors changed in place: nothing in it waits for the device. With a fixed
cache its shapes stay the same as well, so that it can be compiled; then the host looks at who has
ended only now and then.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from strive.models.compiling import Backend, compile_whole
from strive.models.family import Family
from strive.models.loading import Policy
from strive.models.sampling import choose_tokens

COLUMNS_PER_BLOCK = 256
"""A fixed cache has a multiple of this many columns, and grows by it: attention reads all of them,
written or not, and each new width may be compiled once more."""
STEPS_PER_LOOK = 16
"""Steps of a fixed-shape decoding between two looks at which rows have ended."""
FEWEST_ROWS = 2
"""A fixed-shape decoding does not go down to one row: torch.compile takes 1 for a special case."""


@dataclass(frozen=True)
class TokenRule:
    """How the next token is chosen; ids are tensors on the model's device."""

    sampling_temperature: float
    top_p: float
    top_k: int
    never_sampled_ids: Tensor
    eos_ids: Tensor
    pad_id: int


@dataclass
class DecodingState:
    """R rows that are being written, of A in all, and what has been written so far.

    `tokens_R` are the last tokens written, `position_R` their positions; `column` [1] is where the
    cache takes their keys, `step` [1] the number of the next token.
    """

    model: Any
    family: Family
    rule: TokenRule
    cache: Any
    is_fixed: bool
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
        """Columns of a fixed cache."""
        return self.cache.layers[0].keys.shape[2]

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
        if not self.is_fixed:
            return
        by_rows = [self.rows_R, self.tokens_R, self.ended_R, self.position_R]
        by_both = [self.tokens_AL, self.logprobs_AL, self.uniforms_RL, self.seen_RT]
        cached = [states for layer in self.cache.layers for states in (layer.keys, layer.values)]
        for tensors, sizes in ((by_rows, [0]), (by_both, [0, 1]), (cached, [0, 2])):
            for tensor in tensors:
                if tensor is not None:
                    torch._dynamo.maybe_mark_dynamic(tensor, sizes)

    def widen(self, width: int) -> None:
        """Give a fixed cache more columns."""
        assert self.seen_RT is not None  # as it always is with a fixed cache
        for layer in self.cache.layers:
            layer.widen(width)
        more = self.seen_RT.new_ones(len(self.seen_RT), width - self.seen_RT.shape[1])
        self.seen_RT = torch.cat([self.seen_RT, more], dim=1)
        self.mark_sizes()


def new_state(
    policy: Policy,
    rule: TokenRule,
    cache: Any,
    *,
    column: Tensor,
    next_position_R: Tensor,
    uniforms_RL: Tensor | None,
    seen_RT: Tensor | None,
    max_new_tokens: int,
    is_fixed: bool,
) -> DecodingState:
    """A state in which nothing is written yet."""
    num_rows, device = len(next_position_R), policy.device
    shape = (num_rows, max_new_tokens)
    state = DecodingState(
        model=policy.model,
        family=policy.family,
        rule=rule,
        cache=cache,
        is_fixed=is_fixed,
        tokens_AL=torch.full(shape, rule.pad_id, device=device),
        logprobs_AL=torch.zeros(shape, device=device),
        rows_R=torch.arange(num_rows, device=device),
        tokens_R=torch.full((num_rows,), rule.pad_id, device=device),
        ended_R=torch.zeros(num_rows, dtype=torch.bool, device=device),
        position_R=next_position_R - 1,
        column=column,
        step=torch.zeros(1, dtype=torch.long, device=device),
        uniforms_RL=uniforms_RL,
        seen_RT=seen_RT,
    )
    state.mark_sizes()
    return state


def decode(state: DecodingState, hidden_RH: Tensor, *, backend: Backend | None) -> None:
    """Write all rows to their ends, or as far as there is room; `hidden_RH` predicts token 0.

    `backend` is torch.compile's, for the steps of a fixed cache; None runs them as they are.
    """
    max_new_tokens = state.tokens_AL.shape[1]
    steps_per_look = STEPS_PER_LOOK if state.is_fixed else 1
    first_column = int(state.column)
    advance = _advance if backend is None else compiled(backend)
    write_next(state, hidden_RH)
    for step in range(1, max_new_tokens):
        if step % steps_per_look == 0 and not _keep_running(state):
            return
        if state.is_fixed and padded_width(first_column + step) > state.width:
            state.widen(padded_width(first_column + step))
        advance(state)


def padded_width(columns: int) -> int:
    """Columns of a fixed cache that holds at least `columns`."""
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
    mask = state.seen_RT
    if mask is not None and state.is_fixed:
        columns_T = torch.arange(mask.shape[1], device=mask.device)
        mask = mask & (columns_T <= state.column)
    elif mask is not None:
        mask = mask[:, : state.cache.get_seq_length() + 1]
    output = state.family.language_model(state.model)(
        inputs_embeds=state.model.get_input_embeddings()(state.tokens_R[:, None]),
        position_ids=state.position_R[None, :, None].expand(3, -1, -1),
        attention_mask=state.family.mask_argument(None if mask is None else mask[:, None, None]),
        past_key_values=state.cache,
        use_cache=True,
    )
    state.column.add_(1)
    write_next(state, output.last_hidden_state[:, -1])


def write_next(state: DecodingState, hidden_RH: Tensor) -> None:
    """Choose each row's next token and write it down; a row that has ended gets padding."""
    rule = state.rule
    logits_RV = state.model.lm_head(hidden_RH).float() / rule.sampling_temperature
    tokens_R = choose_tokens(
        logits_RV,
        None if state.uniforms_RL is None else state.uniforms_RL.index_select(1, state.step)[:, 0],
        never_sampled_ids=rule.never_sampled_ids,
        top_p=rule.top_p,
        top_k=rule.top_k,
    ).masked_fill(state.ended_R, rule.pad_id)
    logprobs_R = logits_RV.log_softmax(-1).gather(1, tokens_R[:, None])[:, 0]
    place = (state.rows_R, state.step.expand(len(state.rows_R)))
    state.tokens_AL.index_put_(place, tokens_R)
    state.logprobs_AL.index_put_(place, logprobs_R.masked_fill(state.ended_R, 0.0))
    state.tokens_R.copy_(tokens_R)
    state.ended_R.logical_or_((tokens_R[:, None] == rule.eos_ids).any(dim=1))
    state.position_R.add_(1)
    state.step.add_(1)


def _keep_running(state: DecodingState) -> bool:
    """Drop rows that have ended once half have; False when all have.

    A gap in a batch saves nothing, and a new batch costs a copy of the cache. With a fixed cache
    the number of rows is halved, so that few numbers occur.
    """
    rows = len(state.ended_R)
    left = int((~state.ended_R).sum())
    if left == 0:
        return False
    size = rows
    fewest = min(rows, FEWEST_ROWS) if state.is_fixed else 1
    while size > fewest and left <= size // 2:
        size = (size + 1) // 2 if state.is_fixed else left
    if size < rows:
        running_first = torch.argsort(state.ended_R.int(), stable=True)
        state.keep(running_first[:size])
    return True
