"""Choosing the next token from logits, with the randomness handed in as uniform numbers."""

import torch
from torch import Tensor

NUCLEUS_FIRST_LOOK = 1024
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
    threshold_R1 = _nucleus_threshold(probabilities_RV, top_p, min(NUCLEUS_FIRST_LOOK, vocabulary))
    return probabilities_RV.masked_fill(probabilities_RV < threshold_R1, 0.0)


def _nucleus_threshold(probabilities_RV: Tensor, top_p: float, look: int) -> Tensor:
    """Smallest probability within the smallest set of tokens whose sum reaches `top_p`.

    Looks at the `look` most probable tokens first; sorting 150,000 of them per row and step would
    cost more than the model. Where those do not reach `top_p`, all are sorted.
    """
    highest_RK = probabilities_RV.topk(look, dim=-1).values
    before_RK = highest_RK.double().cumsum(dim=-1) - highest_RK.double()
    needed_RK = before_RK < top_p
    if look < probabilities_RV.shape[1] and bool(needed_RK[:, -1].any()):
        return _nucleus_threshold(probabilities_RV, top_p, probabilities_RV.shape[1])
    last_R1 = needed_RK.sum(dim=-1, keepdim=True) - 1
    return highest_RK.gather(1, last_R1)
