"""The full rows that bench/step measures against compute what ours computes."""

import dataclasses

import numpy as np
import pytest
import torch

from bench.step_model import PROMPT_TEMPLATE, Setup, make_question
from bench.step_rows import SeparateRows, row_logprobs
from strive.configs.schema import TrainConfig
from strive.lab.models import lab_model_path
from strive.models.loading import load_policy
from strive.models.logprobs import completion_logprobs_batch
from strive.models.vision import count_encodes, encode_videos
from strive.train.rollout import prepare_variants

M, G, L = 2, 3, 5


@pytest.fixture(scope="module")
def rows():
    return SeparateRows(Setup(str(lab_model_path("qwen2_5_vl")), "language", M, G))


@pytest.fixture(scope="module")
def question():
    """Frames of the size that the lab's policy sees, so that neither side resizes them."""
    made = make_question(0, M)
    small = [
        dataclasses.replace(video, frames_KHWC=video.frames_KHWC[:, :56, :56])
        for video in made.videos
    ]
    return dataclasses.replace(made, videos=tuple(small))


@pytest.mark.parametrize("all_logits", [True, False])
def test_log_probs_equal_the_packed_ones(rows, question, all_logits):
    policy = load_policy(lab_model_path("qwen2_5_vl"), position_rule="transformers")
    prepared = prepare_variants(policy, [question], TrainConfig(prompt_template=PROMPT_TEMPLATE))
    prompts = [variant.prompt for variant in prepared]
    tokens_MGL = torch.from_numpy(np.random.default_rng(0).integers(0, 600, (M, G, L)))
    ours = completion_logprobs_batch(
        policy,
        prompts,
        encode_videos(policy, prompts),
        tokens_MGL,
        torch.full((M, G), L),
    )
    inputs = rows.rows(rows.inputs(question), tokens_MGL.flatten(0, 1))
    theirs_RL = row_logprobs(rows.model, inputs, L, all_logits=all_logits)
    torch.testing.assert_close(theirs_RL.unflatten(0, (M, G)), ours.logprobs, rtol=0, atol=2e-5)


def test_the_video_is_encoded_once_per_completion(rows, question):
    inputs = rows.inputs(question)
    with count_encodes(rows.model) as count:
        completions_RL = rows.generate(rows.expanded(inputs), 0, L)
    assert completions_RL.shape == (M * G, L)
    assert count.videos == M * G
