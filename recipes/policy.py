"""Recipe of `qwen2_5_vl` and `qwen3_vl`: a supervised warm-up in four stages.

1. `tower`: the vision tower learns to name what stands in each merged token, in the language
   model's own word embeddings.
2. `look`: many questions about each video, mostly such as its frames can answer, without options.
3. `skill`: the same with options.
4. `prior`: questions as the world asks them, part of the labels replaced by the typical answer.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes.curriculum import LabelNoise, Mixture, draw_row
from recipes.folders import FRAME_SIZE, new_policy, new_processor, save_policy
from recipes.frames import Log, SceneBank, make_bank, noisy
from recipes.rows import Row, RowMaker
from recipes.tokenizers import build_policy_tokenizer
from recipes.tower import encode_square, learned_losses
from strive.lab.scene import COLOURS, GLYPHS, SHAPES
from strive.models.family import MergedFeatures
from strive.models.loading import make_policy
from strive.seeding import derive_rng

_PLACES = ("top", "bottom", "left", "right")
_WORDS = (*SHAPES, *COLOURS, *GLYPHS, *_PLACES)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of supervised learning.

    Args:
        name: for the log.
        num_steps: optimiser steps.
        rows_per_step: videos a step.
        learning_rate: peak.
        mixture: what rows are made of; None trains the tower alone.
        naming_weight: weight of naming what stands in each merged token.
    """

    name: str
    num_steps: int
    rows_per_step: int
    learning_rate: float
    mixture: Mixture | None = None
    naming_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Hyper-parameters of the recipe: scenes to learn from, and the stages."""

    num_scenes: int
    stages: tuple[Stage, ...]


def default_settings(family: str) -> PolicySettings:
    """Return the settings that the shipped weights were made with.

    Qwen3-VL, whose prompts are twice as long, looks for longer and is taught a weaker prior, so
    that both start near the same accuracy.
    """
    weaker = family == "qwen3_vl"
    emphasis = (
        ("glyph", 3.0),
        ("shape", 1.4 if weaker else 1.0),
        ("quadrant", 1.5),
        ("order", 0.5),
    )
    look = Mixture(num_tails=10, with_options=False, emphasis=emphasis, visible_share=0.8)
    skill = Mixture(emphasis=emphasis, visible_share=0.6)
    prior = Mixture(
        LabelNoise(0.38, 0.12, 0.08) if weaker else LabelNoise(0.5, 0.15, 0.1),
        emphasis=(("glyph", 3.0), ("shape", 1.4)) if weaker else (),
        brief_only=True,
        visible_share=0.4 if weaker else 0.0,
        frame_counts=(16, 16, 16, 32),
    )
    return PolicySettings(
        num_scenes=3000,
        stages=(
            Stage("tower", 300, 12, 2e-3, None, 1.0),
            Stage("look", 700 if weaker else 450, 12, 1.5e-3, look, 0.5),
            Stage("skill", 120, 12, 1e-3, skill, 0.2),
            Stage("prior", 150 if weaker else 120, 12, 6e-4 if weaker else 3e-4, prior),
        ),
    )


class Naming(nn.Module):
    """Reads from a video token which words apply to it, by the language model's embeddings."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        spaced = [tokenizer.encode(f" {word}", add_special_tokens=False)[-1] for word in _WORDS]
        plain = [tokenizer.encode(word, add_special_tokens=False)[-1] for word in _WORDS]
        self.ids = torch.tensor([spaced, plain])
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.bias = nn.Parameter(torch.full((len(_WORDS),), -3.0))

    def forward(self, tokens_ND: Tensor, table: Tensor) -> Tensor:
        """Logits [N, words] of video tokens [N, D]."""
        words = table[self.ids].sum(0)
        return self.scale * tokens_ND @ words.T + self.bias


class Trainer:
    """Holds what the stages share: model, bank of scenes, and the generators."""

    def __init__(self, family: str, *, seed: int, settings: PolicySettings, log: Log) -> None:
        self.family, self.seed, self.settings, self.log = family, seed, settings, log
        self.tokenizer = build_policy_tokenizer()
        model = new_policy(family, self.tokenizer, seed=seed)
        self.policy = make_policy(model.train(), new_processor(family, self.tokenizer))
        self.maker = RowMaker(self.policy)
        self.naming = Naming(self.tokenizer)
        self.bank = make_bank(settings.num_scenes, seed=seed, size=FRAME_SIZE[family], log=log)
        self.words_of_slots = _words_of_slots(self.bank)
        self.letter_ids = torch.tensor(self.tokenizer.convert_tokens_to_ids(list("ABCDEF")))
        frame = ("<think>", "</think>", "<answer>", "</answer>", "<|im_end|>")
        self.frame_ids = torch.tensor(self.tokenizer.convert_tokens_to_ids(list(frame)))
        self.rng = derive_rng("lab-policy", family, seed)
        self.generator = torch.Generator().manual_seed(seed)

    def run(self, stage: Stage) -> dict[str, float]:
        """Run one stage; returns the smoothed metrics of its end."""
        parameters = [*self.policy.model.parameters(), *self.naming.parameters()]
        optimiser = torch.optim.AdamW(
            parameters, lr=stage.learning_rate, weight_decay=0.01, betas=(0.9, 0.98)
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            stage.learning_rate,
            total_steps=stage.num_steps,
            pct_start=min(0.3, 50 / stage.num_steps),
            final_div_factor=100,
        )
        recent: dict[str, float] = {}
        for step in range(stage.num_steps):
            loss, metrics = self._loss(stage)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            for name, value in metrics.items():
                recent[name] = 0.95 * recent.get(name, value) + 0.05 * value
            if (step + 1) % 25 == 0 or step + 1 == stage.num_steps:
                numbers = " ".join(f"{name} {value:.3f}" for name, value in recent.items())
                self.log(f"{stage.name} {step + 1}/{stage.num_steps} {numbers}")
        return {name: round(value, 4) for name, value in recent.items()}

    def _loss(self, stage: Stage) -> tuple[Tensor, dict[str, float]]:
        num_frames = 16
        if stage.mixture is not None:
            counts = stage.mixture.frame_counts
            num_frames = counts[int(self.rng.integers(len(counts)))]
        rows, looks = [], []
        for _ in range(max(1, stage.rows_per_step * 16 // num_frames)):
            if stage.mixture is None:
                looks.append(self.rng.integers(len(self.bank.looks_L), size=num_frames))
                continue
            row, look_K = draw_row(self.maker, self.bank, stage.mixture, num_frames, self.rng)
            rows.append(row)
            looks.append(look_K)
        looks_BK = torch.from_numpy(np.stack(looks))
        merged = encode_square(self.policy, noisy(self.bank.looks_L[looks_BK], self.generator))
        loss = torch.zeros(())
        metrics: dict[str, float] = {}
        if stage.naming_weight:
            naming_loss, metrics["naming"] = self._naming_loss(merged.embeds_NH, looks_BK)
            loss = loss + stage.naming_weight * naming_loss
        if rows:
            losses = self._learn(rows, merged, metrics)
            loss = loss + losses
        return loss, metrics

    def _learn(
        self, rows: list[Row], merged: MergedFeatures | None, metrics: dict[str, float]
    ) -> Tensor:
        """Mean loss of the learned tokens; notes those of letters and of other content apart."""
        batch = self.maker.batch(rows)
        losses = learned_losses(self.policy, batch, merged)
        targets = batch.input_ids_BT[:, 1:][batch.learn_BT[:, 1:]]
        letters = torch.isin(targets, self.letter_ids)
        content = ~letters & ~torch.isin(targets, self.frame_ids)
        for name, chosen in (("letter", letters), ("content", content)):
            if chosen.any():
                metrics[name] = losses[chosen].mean().item()
        return losses.mean()

    def _naming_loss(self, embeds_ND: Tensor, looks_BK: Tensor) -> tuple[Tensor, float]:
        labels_LQW = self.words_of_slots
        both = labels_LQW[looks_BK].view(*looks_BK.shape[:1], -1, 2, 4, len(_WORDS)).amax(2)
        labels = both.reshape(-1, len(_WORDS))
        logits = self.naming(embeds_ND, self.policy.model.model.language_model.embed_tokens.weight)
        loss = functional.binary_cross_entropy_with_logits(
            logits, labels, pos_weight=torch.tensor(4.0)
        )
        found = (logits > 0) == (labels > 0)
        occupied = labels.any(1)
        return loss, found[occupied].all(1).float().mean().item()


def _words_of_slots(bank: SceneBank) -> Tensor:
    """Which words apply to each quadrant of each look, float32 [L, 4, words]."""
    labels = torch.zeros(len(bank.looks_L), 4, len(_WORDS))
    for number, scene in enumerate(bank.scenes):
        for sprite in scene.sprites:
            looks = np.unique(bank.look_of_slot[number, sprite.start_slot : sprite.end_slot])
            if sprite.is_glyph:
                words = [len(SHAPES) + len(COLOURS) + sprite.glyph]
            else:
                words = [sprite.shape, len(SHAPES) + sprite.colour]
            row, column = divmod(sprite.quadrant, 2)
            words += [_WORDS.index("top") + row, _WORDS.index("left") + column]
            for word in words:
                labels[torch.from_numpy(looks), sprite.quadrant, word] = 1.0
    return labels


def train_policy(
    family: str,
    out: Path,
    *,
    seed: int,
    log: Log,
    settings: PolicySettings | None = None,
    checkpoints: Path | None = None,
) -> dict[str, Any]:
    """Warm a policy up and save its folder; returns its recipe (metrics of training only).

    Args:
        family: `qwen2_5_vl` or `qwen3_vl`.
        out: folder to write.
        seed: initial weights, scenes and order.
        log: receives progress lines.
        settings: hyper-parameters.
        checkpoints: folder for the weights after each stage.
    """
    settings = settings or default_settings(family)
    started = time.monotonic()
    trainer = Trainer(family, seed=seed, settings=settings, log=log)
    stages: dict[str, Any] = {}
    for stage in settings.stages:
        stages[stage.name] = trainer.run(stage)
        if checkpoints is not None:
            torch.save(trainer.policy.model.state_dict(), checkpoints / f"{stage.name}.pt")
    save_policy(trainer.policy.model, trainer.tokenizer, family, out)
    return {
        "name": family,
        "seed": seed,
        "settings": asdict(settings),
        "parameters": sum(p.numel() for p in trainer.policy.model.parameters()),
        "stages": stages,
        "training_seconds": round(time.monotonic() - started, 1),
    }
