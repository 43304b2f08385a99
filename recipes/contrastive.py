"""Sigmoid contrastive training of a two-tower scorer on frames and the texts they answer.

Axis legend: B frames of a batch, L looks of the bank, Q queries, D embedding width.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.frames import Log, SceneBank, noisy
from recipes.queries import Query, relevance_of_looks


@dataclass(frozen=True, slots=True)
class ContrastiveSettings:
    """Hyper-parameters.

    Args:
        num_scenes: training scenes.
        num_steps: optimiser steps.
        frames_per_step: pictures in a batch.
        queries_per_step: texts in a batch.
        learning_rate: peak; warms up and decays to zero.
    """

    num_scenes: int = 1500
    num_steps: int = 700
    frames_per_step: int = 128
    queries_per_step: int = 48
    learning_rate: float = 2e-3


class SigmoidHead(nn.Module):
    """Scale and bias that turn cosines into logits."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(2.3026))
        self.logit_bias = nn.Parameter(torch.tensor(-5.0))

    def forward(self, cosines: Tensor) -> Tensor:
        """Logits of cosines."""
        return self.logit_scale.exp() * cosines + self.logit_bias


def fit_contrastive(
    bank: SceneBank,
    queries: list[Query],
    encode_frames: Callable[[Tensor], Tensor],
    encode_queries: Callable[[Tensor], Tensor],
    to_logits: Callable[[Tensor], Tensor],
    parameters: Iterable[nn.Parameter],
    settings: ContrastiveSettings,
    *,
    seed: int,
    log: Log,
) -> float:
    """Train until a frame's cosine with a query tells whether the frame shows what it is about.

    Args:
        bank: pictures to learn from.
        queries: texts to learn from.
        encode_frames: frames [B, 3, H, W] in [0, 1] to embeddings [B, D].
        encode_queries: positions in `queries` [Q] to embeddings [Q, D].
        to_logits: cosines to logits.
        parameters: what is trained.
        settings: hyper-parameters.
        seed: order and noise.
        log: receives progress lines.

    Returns:
        The smoothed loss at the end.
    """
    trained = list(parameters)
    optimiser = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=settings.num_steps, pct_start=0.1
    )
    generator = torch.Generator().manual_seed(seed)
    weights_Q = torch.tensor([query.weight for query in queries])
    relevance_LQ = torch.from_numpy(relevance_of_looks(bank, queries))
    recent = 0.0
    for step in range(settings.num_steps):
        looks = torch.randint(len(bank.looks_L), (settings.frames_per_step,), generator=generator)
        picked = torch.multinomial(weights_Q, settings.queries_per_step, generator=generator)
        pixels = noisy(bank.looks_L[looks], generator).permute(0, 3, 1, 2)
        frames = functional.normalize(encode_frames(pixels), dim=-1)
        texts = functional.normalize(encode_queries(picked), dim=-1)
        loss = _balanced_loss(to_logits(frames @ texts.T), relevance_LQ[looks][:, picked])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
        if (step + 1) % 50 == 0:
            log(f"step {step + 1}/{settings.num_steps} loss {recent:.3f}")
    return round(recent, 4)


def _balanced_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid loss in which both classes weigh the same, however rare a relevant frame is."""
    losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    share = labels.mean().clamp(1e-3, 1 - 1e-3)
    return (losses * torch.where(labels > 0, 0.5 / share, 0.5 / (1 - share))).mean()
