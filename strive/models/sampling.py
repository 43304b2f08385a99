"""How completions are drawn, and choosing the next token from logits.

Randomness is handed in as uniform numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from strive.errors import ConfigError
from strive.models.family import VisionFeatures
from strive.models.inputs import PromptInputs

LARGEST_UNIFORM = 1.0 - 2.0**-40
IDS_PER_BLOCK = 512


@dataclass(frozen=True)
class Sampling:
    """How many completions are written of each prompt, how long, and how their tokens are drawn."""

    num_generations: int
    max_new_tokens: int
    sampling_temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.sampling_temperature <= 0:
            raise ConfigError(
                f"sampling_temperature is {self.sampling_temperature}; it must be above 0 (use "
                "greedy=True for the most probable token)"
            )


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
    """Writes completions for a rollout.

    `decoding.Decoder` is the built-in one. An engine that takes no uniform numbers derives
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
        """Write G completions of each prompt; arguments as of `Decoder`."""


def choose_tokens(
    logits_RV: Tensor,
    uniforms_R: Tensor | None,
    *,
    never_sampled_ids: Tensor,
    top_p: float = 1.0,
    top_k: int = 0,
) -> Tensor:
    """Pick one token per row: the most probable without uniforms, else by inverse CDF.

    `logits_RV` are already divided by the sampling temperature. The cumulative distribution runs
    over token ids, not over sorted probabilities, so that two nearly equal tokens which trade
    places in a sort (another batch size is enough) do not change the draw.
    """
    logits_RV = logits_RV.float()
    if len(never_sampled_ids):
        logits_RV = logits_RV.index_fill(1, never_sampled_ids, -torch.inf)
    if uniforms_R is None:
        return logits_RV.argmax(dim=-1)
    probabilities_RV = kept_probabilities(logits_RV, top_p=top_p, top_k=top_k)
    uniforms_R1 = uniforms_R.double().clamp(max=LARGEST_UNIFORM)[:, None]
    if torch.compiler.is_compiling():
        return invert_by_blocks(probabilities_RV, uniforms_R1)
    return invert_whole(probabilities_RV, uniforms_R1)


def invert_whole(probabilities_RV: Tensor, uniforms_R1: Tensor) -> Tensor:
    """The first id [R] up to which more than the share `uniforms_R1` of all probability lies."""
    cdf_RV = probabilities_RV.double().cumsum(dim=-1)
    target_R1 = uniforms_R1 * cdf_RV[:, -1:]
    return torch.searchsorted(cdf_RV, target_R1, right=True)[:, 0].clamp(max=cdf_RV.shape[1] - 1)


def invert_by_blocks(probabilities_RV: Tensor, uniforms_R1: Tensor) -> Tensor:
    """See `invert_whole`: first the block of ids, then the id in it.

    Inductor (torch 2.11) cannot compile one running sum over a vocabulary of 152,000.
    """
    padding = -probabilities_RV.shape[1] % IDS_PER_BLOCK
    probabilities_RBI = (
        nn.functional.pad(probabilities_RV, (0, padding)).double().unflatten(1, (-1, IDS_PER_BLOCK))
    )
    cdf_RB = probabilities_RBI.sum(dim=-1).cumsum(dim=-1)
    target_R1 = uniforms_R1 * cdf_RB[:, -1:]
    block_R1 = torch.searchsorted(cdf_RB, target_R1, right=True).clamp(max=cdf_RB.shape[1] - 1)
    before_R1 = nn.functional.pad(cdf_RB, (1, 0)).gather(1, block_R1)
    chosen_R1I = block_R1[..., None].expand(-1, -1, IDS_PER_BLOCK)
    in_block_RI = probabilities_RBI.gather(1, chosen_R1I)[:, 0]
    cdf_RI = before_R1 + in_block_RI.cumsum(dim=-1)
    id_R = torch.searchsorted(cdf_RI, target_R1, right=True)[:, 0]
    # The two sums round differently: what is past the block's end by a last bit is its last token.
    places_I = torch.arange(IDS_PER_BLOCK, device=id_R.device)
    last_R = torch.where(in_block_RI > 0, places_I, 0).amax(dim=-1)
    return block_R1[:, 0] * IDS_PER_BLOCK + torch.minimum(id_R, last_R)


def kept_probabilities(logits_RV: Tensor, *, top_p: float, top_k: int) -> Tensor:
    """Probabilities with everything outside top-k and then the nucleus set to 0.

    Top-k first, then top-p on what it leaves, as in transformers. Tokens tied with the last one
    kept are kept as well: a tie has no order that another batch would repeat.
    """
    vocabulary = logits_RV.shape[1]
    if 0 < top_k < vocabulary:
        smallest_R1 = logits_RV.topk(top_k, dim=-1).values[:, -1:]
        logits_RV = logits_RV.masked_fill(logits_RV < smallest_R1, -torch.inf)
    probabilities_RV = logits_RV.softmax(dim=-1)
    if top_p >= 1.0:
        return probabilities_RV
    threshold_R1 = nucleus_threshold(probabilities_RV, top_p)
    return probabilities_RV.masked_fill(probabilities_RV < threshold_R1, 0.0)


def nucleus_threshold(probabilities_RV: Tensor, top_p: float) -> Tensor:
    """Smallest probability [R, 1] within the smallest set of tokens whose sum reaches `top_p`.

    Where not even the sum of all reaches it, nothing is left out.
    """
    if probabilities_RV.device.type == "cpu" and not torch.compiler.is_compiling():
        return threshold_by_sorting(probabilities_RV, top_p)
    return threshold_by_bisection(probabilities_RV, top_p)


def threshold_by_sorting(probabilities_RV: Tensor, top_p: float) -> Tensor:
    """See `nucleus_threshold`.

    NumPy's sort of plain numbers is over ten times faster than torch's `sort` or a wide `topk`.
    """
    ascending_RV = torch.from_numpy(np.sort(probabilities_RV.numpy(), axis=-1))
    highest_RV = ascending_RV.flip(-1)
    sums_RV = highest_RV.double().cumsum(dim=-1)
    last_R1 = torch.searchsorted(sums_RV, sums_RV.new_full((len(sums_RV), 1), top_p))
    return highest_RV.gather(1, last_R1.clamp(max=sums_RV.shape[1] - 1))


def threshold_by_bisection(probabilities_RV: Tensor, top_p: float) -> Tensor:
    """See `nucleus_threshold`. Finds one bit after the other: no sort, and no wait for a GPU.

    Floats that are not negative are ordered as their bits are, so 31 halvings find it exactly.
    """
    bits_RV = probabilities_RV.view(torch.int32)
    low_R1 = torch.zeros_like(bits_RV[:, :1])
    for bit in reversed(range(31)):
        candidate_R1 = low_R1 | (1 << bit)
        kept_RV = probabilities_RV.masked_fill(bits_RV < candidate_R1, 0.0)
        enough_R1 = kept_RV.sum(dim=-1, keepdim=True, dtype=torch.float64) >= top_p
        low_R1 = torch.where(enough_R1, candidate_R1, low_R1)
    return low_R1.view(torch.float32)
