"""The shipped policies: a real rollout, whose log-probs all three ways of computing them share."""

import numpy as np
import pytest
import torch

from strive.lab.models import lab_model_path
from strive.models.decoding import Decoder
from strive.models.inputs import VideoFrames, prepare_prompts
from strive.models.loading import load_policy
from strive.models.logprobs import completion_logprobs_batch
from strive.models.sampling import Sampling
from strive.models.vision import count_encodes, encode_videos

torch.set_num_threads(1)
NUM_PROMPTS, NUM_GENERATIONS, MAX_NEW_TOKENS = 6, 4, 24


def make_video(seed: int) -> VideoFrames:
    """Sixteen frames of noise from uneven places of a 10 s clip."""
    rng = np.random.default_rng(seed)
    source_index_K = np.sort(rng.choice(250, size=16, replace=False))
    return VideoFrames(
        frames_KHWC=rng.integers(0, 256, (16, 64, 64, 3), dtype=np.uint8),
        pts_seconds_K=source_index_K / 25.0,
        source_index_K=source_index_K,
    )


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("rule", ["published", "transformers"])
def test_rollout_packed_and_plain_agree(name: str, rule: str) -> None:
    policy = load_policy(lab_model_path(name), position_rule=rule)  # type: ignore[arg-type]
    texts = ["Which colour was it?" + " Really?" * (i % 3) for i in range(NUM_PROMPTS)]
    videos = [make_video(i) for i in range(NUM_PROMPTS)]
    prompts = prepare_prompts(policy, texts, videos)
    shape = (NUM_PROMPTS, NUM_GENERATIONS, MAX_NEW_TOKENS)
    with count_encodes(policy.model) as count:
        features = encode_videos(policy, prompts)
        rollout = Decoder(policy)(
            prompts,
            features,
            sampling=Sampling(
                num_generations=NUM_GENERATIONS, max_new_tokens=MAX_NEW_TOKENS, top_p=0.95
            ),
            uniforms_RGL=np.random.default_rng(0).random(shape),
        )
        packed, plain = (
            completion_logprobs_batch(
                policy, prompts, features, rollout.tokens_RGL, rollout.lengths_RG, mode=mode
            )
            for mode in ("packed", "plain")
        )
    assert count.videos == NUM_PROMPTS
    assert (packed.logprobs - plain.logprobs).abs().max() <= 1e-5
    assert (packed.logprobs - rollout.logprobs_RGL).abs().max() <= 1e-5
