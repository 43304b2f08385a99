"""Choosing the next token from logits, with the randomness handed in as uniform numbers."""

import numpy as np
import torch
from torch import Tensor

LARGEST_UNIFORM = 1.0 - 2.0**-40


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
    cdf_RV = probabilities_RV.double().cumsum(dim=-1)
    target_R1 = (uniforms_R.double().clamp(max=LARGEST_UNIFORM) * cdf_RV[:, -1])[:, None]
    return torch.searchsorted(cdf_RV, target_R1, right=True)[:, 0].clamp(max=cdf_RV.shape[1] - 1)


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
