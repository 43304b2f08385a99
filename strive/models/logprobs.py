"""Log-probabilities of given completions, with gradients: `packed` rows or the `plain` reference.

`packed` runs one row `[prompt | completion 1 | ... | completion G]` per prompt, so the prompt is
read once instead of G times. `plain` runs one full row per completion through the model's own
forward. Both give the same numbers (float32: to 1e-5) and the same gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from strive.choices import AttentionMode, LogProbMode
from strive.errors import unknown_name
from strive.models.family import VisionFeatures
from strive.models.inputs import PromptInputs
from strive.models.language import language_forward
from strive.models.loading import Policy
from strive.models.rows import packed_rows
from strive.models.vision import merge_features

MODES: tuple[str, ...] = get_args(LogProbMode)
LOGITS_PER_CHUNK = 2**25
"""Most logits that exist at once: 128 MiB in float32, 220 tokens of a 152,000-word vocabulary."""


@dataclass(frozen=True)
class LogProbs:
    """Per token of a batch of prompts, [B, G, L]; 0 past a length."""

    logprobs: Tensor
    entropy: Tensor
    """Entropy of the distribution each token was drawn from; with a gradient where one was asked
    for. All 0 where it was not asked for at all."""
    mask: Tensor
    """True where there is a token."""


def completion_logprobs_batch(
    policy: Policy,
    prompts: Sequence[PromptInputs],
    features: Sequence[VisionFeatures],
    tokens_BGL: Tensor,
    lengths_BG: Tensor,
    *,
    sampling_temperature: float = 1.0,
    mode: LogProbMode = "packed",
    attention: AttentionMode = "auto",
    with_entropy: bool = True,
    entropy_learns: bool = False,
    model: Any = None,
) -> LogProbs:
    """Log-probabilities [B, G, L] of several prompts' completions in one forward.

    Logits are divided by `sampling_temperature` (as TRL), so these are the log-probabilities that
    the rollout reports. `model` is the reference for a KL term, else the policy's own model; it
    applies its own mergers to the shared `features`. `attention` is that of packed rows; see
    `attention.segment_attention`. Entropy costs two passes over the logits, and a gradient through
    it (`entropy_learns`) two more.

    Raises:
        UnknownNameError: no such mode or attention.
    """
    if mode not in MODES:
        raise unknown_name("logprobs mode", mode, MODES)
    model = policy.model if model is None else model
    tokens, lengths = tokens_BGL.cpu().numpy(), lengths_BG.cpu().numpy()
    mask_BGL = np.arange(tokens.shape[2]) < lengths[..., None]
    if mode == "packed":
        rows, source_BGL = packed_rows(policy, prompts, tokens, lengths)
        merged = merge_features(policy, features, model=model)
        hidden_BTH = language_forward(policy, model, rows, merged, attention=attention)
        row_N = torch.from_numpy(np.nonzero(mask_BGL)[0]).to(policy.device)
        hidden_NH = hidden_BTH[row_N, torch.from_numpy(source_BGL[mask_BGL]).to(policy.device)]
    else:
        hidden_NH = _plain_hidden(policy, model, prompts, features, tokens, lengths)
    targets_N = torch.from_numpy(tokens[mask_BGL]).to(policy.device)
    logprobs_N, entropy_N = token_logprobs(
        model.lm_head,
        hidden_NH,
        targets_N,
        sampling_temperature=sampling_temperature,
        with_entropy=with_entropy,
        entropy_learns=entropy_learns,
    )
    mask = torch.from_numpy(mask_BGL).to(policy.device)
    blank = torch.zeros(mask.shape, device=policy.device)
    return LogProbs(
        logprobs=blank.masked_scatter(mask, logprobs_N),
        entropy=blank.masked_scatter(mask, entropy_N),
        mask=mask,
    )


def token_logprobs(
    head: nn.Module,
    hidden_NH: Tensor,
    targets_N: Tensor,
    *,
    sampling_temperature: float,
    with_entropy: bool = True,
    entropy_learns: bool = False,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy [N] of each target under softmax(head(hidden) / temperature).

    Entropy is 0 without `with_entropy`. Runs in chunks whose logits are made again in the backward
    pass, so the [N, vocabulary] matrix never exists whole.
    """
    # Not the weight's shape: under ZeRO-3 the partitioned weight is empty between its uses.
    vocabulary: Any = head.out_features
    size = max(1, logits_per_chunk // vocabulary)
    options = (sampling_temperature, with_entropy, entropy_learns)
    if len(targets_N) <= size:
        return _chunk_logprobs(head, hidden_NH, targets_N, *options)
    chunks = [
        checkpoint(_chunk_logprobs, head, hidden_CH, targets_C, *options, use_reentrant=False)
        for hidden_CH, targets_C in zip(hidden_NH.split(size), targets_N.split(size), strict=True)
    ]
    return torch.cat([chunk[0] for chunk in chunks]), torch.cat([chunk[1] for chunk in chunks])


def _chunk_logprobs(
    head: nn.Module,
    hidden_CH: Tensor,
    targets_C: Tensor,
    sampling_temperature: float,
    with_entropy: bool,
    entropy_learns: bool,
) -> tuple[Tensor, Tensor]:
    # Not through the module: at ZeRO-3 every call of it gathers its weight, and processes with
    # other lengths would gather in other numbers. The engine holds the weight for the whole pass.
    weights: Any = head
    logits_CV = nn.functional.linear(hidden_CH, weights.weight, weights.bias).float()
    if sampling_temperature != 1.0:
        logits_CV = logits_CV / sampling_temperature
    logprobs_CV = logits_CV.log_softmax(dim=-1)
    chosen_C = logprobs_CV.gather(1, targets_C[:, None])[:, 0]
    # Last: a checkpoint's second run stops once it has what the backward pass needs.
    with torch.set_grad_enabled(entropy_learns and torch.is_grad_enabled()):
        entropy_C = torch.zeros_like(chosen_C)
        if with_entropy:
            entropy_C = -torch.linalg.vecdot(logprobs_CV.exp(), logprobs_CV)
    return chosen_C, entropy_C


def _plain_hidden(
    policy: Policy,
    model: Any,
    prompts: Sequence[PromptInputs],
    features: Sequence[VisionFeatures],
    tokens_BGL: NDArray[np.int64],
    lengths_BG: NDArray[np.int64],
) -> Tensor:
    """Hidden states [N, H] that predict each token, from one full row per completion.

    Through the model's own forward.
    """
    hidden: list[Tensor] = []
    for prompt, video, tokens_GL, lengths_G in zip(
        prompts, features, tokens_BGL, lengths_BG, strict=True
    ):
        for tokens_L, length in zip(tokens_GL, lengths_G.tolist(), strict=True):
            merged = merge_features(policy, [video], model=model)
            ids_T = np.concatenate([prompt.input_ids_P, tokens_L[:length]])
            after_3L = np.broadcast_to(prompt.next_position + np.arange(length), (3, length))
            positions_3T = np.concatenate([prompt.position_ids_3P, after_3L], axis=1)
            output = model.model(
                input_ids=torch.from_numpy(ids_T)[None].to(policy.device),
                attention_mask=torch.ones(1, len(ids_T), dtype=torch.long, device=policy.device),
                position_ids=torch.from_numpy(positions_3T)[:, None].to(policy.device),
                mm_encoder_outputs={"video": policy.family.encoder_outputs(merged)},
                use_cache=False,
            )
            start = len(prompt.input_ids_P) - 1
            hidden.append(output.last_hidden_state[0, start : start + length])
    return torch.cat(hidden)
