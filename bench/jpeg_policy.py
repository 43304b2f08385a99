"""The part of bench/jpeg about policies: log-probabilities of the ground-truth answers."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.jpeg_pools import QUALITIES, Pool
from strive.answers import build_question
from strive.lab.models import lab_model_path
from strive.models.inputs import VideoFrames, prepare_prompt
from strive.models.language import language_forward
from strive.models.loading import Policy, load_policy
from strive.models.rows import packed_rows
from strive.models.vision import encode_videos, merge_features
from strive.records import Record
from strive.variants import uniform_frames

NUM_FRAMES = 16
TEMPLATE = "short"
"""What the lab's policies were trained with."""


def measure_policy(
    name: str, pools: Sequence[Pool], coded: dict[int, list[np.ndarray]]
) -> dict[str, Any]:
    """Source -> codec -> differences per token of the answer; `neighbours` are raw frames too.

    `neighbours` shows what it means to draw, in every segment, the frame after: the smallest change
    that a variant of the video makes.
    """
    policy = load_policy(lab_model_path(name))
    rows: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for number, pool in enumerate(pools):
        size = len(pool.frames_FHWC)
        drawn_K = uniform_frames(size, NUM_FRAMES)
        after_K = np.minimum(drawn_K + 1, size - 1)
        others = {
            f"q{quality}": _video(pool, coded[quality][number], drawn_K) for quality in QUALITIES
        }
        others["neighbours"] = _video(pool, pool.frames_FHWC, after_K)
        raw = _video(pool, pool.frames_FHWC, drawn_K)
        for record in pool.records:
            wanted_LV, targets_L = answer_logprobs(policy, record, raw)
            for codec, video in others.items():
                found_LV, _ = answer_logprobs(policy, record, video)
                rows[pool.source, codec].append(_compare(wanted_LV, found_LV, targets_L))
    figures: dict[str, Any] = {"model": f"lab:{name}", "frames": NUM_FRAMES}
    for (source, codec), found in sorted(rows.items()):
        figures.setdefault(source, {})[codec] = _summarise(found)
    print(f"policy {name}: done", flush=True)
    return figures


@torch.inference_mode()
def answer_logprobs(policy: Policy, record: Record, video: VideoFrames) -> tuple[Tensor, Tensor]:
    """Log-probabilities [L, V] at every token of the record's own answer, and its tokens [L]."""
    prompt = prepare_prompt(policy, build_question(record, TEMPLATE), video)
    ids = policy.tokenizer(record.solution, add_special_tokens=False)["input_ids"]
    tokens_L = np.array([*ids, policy.eos_ids[0]])
    rows, source_BGL = packed_rows(
        policy, [prompt], tokens_L[None, None], np.array([[len(tokens_L)]])
    )
    merged = merge_features(policy, encode_videos(policy, [prompt]))
    hidden_BTH = language_forward(policy, policy.model, rows, merged)
    logits_LV = policy.model.lm_head(hidden_BTH[0, torch.from_numpy(source_BGL[0, 0])])
    return logits_LV.double().log_softmax(-1), torch.from_numpy(tokens_L)


def _video(pool: Pool, frames_FHWC: np.ndarray, drawn_K: np.ndarray) -> VideoFrames:
    # Times of the raw draw for all, so that pixels are the only difference.
    times_K = pool.pts_seconds_F[uniform_frames(len(pool.pts_seconds_F), NUM_FRAMES)]
    return VideoFrames(frames_FHWC[drawn_K], times_K, drawn_K)


def _compare(wanted_LV: Tensor, found_LV: Tensor, targets_L: Tensor) -> dict[str, float]:
    steps_L = torch.arange(len(targets_L))
    difference_L = (found_LV - wanted_LV)[steps_L, targets_L]
    kl_L = (wanted_LV.exp() * (wanted_LV - found_LV)).sum(-1)
    return {
        "tokens": float(len(targets_L)),
        "sum_abs": float(difference_L.abs().sum()),
        "max_abs": float(difference_L.abs().max()),
        "answer_abs": float(difference_L.sum().abs()),
        "sum_kl": float(kl_L.sum()),
        "max_kl": float(kl_L.max()),
    }


def _summarise(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    tokens = sum(row["tokens"] for row in rows)
    return {
        "mean_abs": sum(row["sum_abs"] for row in rows) / tokens,
        "max_abs": max(row["max_abs"] for row in rows),
        "answer_mean_abs": sum(row["answer_abs"] for row in rows) / len(rows),
        "mean_kl": sum(row["sum_kl"] for row in rows) / tokens,
        "max_kl": max(row["max_kl"] for row in rows),
        "tokens": tokens,
        "questions": len(rows),
    }
