"""The `gradient` scorer: how much the policy's reading of the question depends on each frame.

Sec. 4.2: the gradient of the language-modelling loss, restricted to the question's tokens, with
respect to the input pixels; the spatially averaged L2 norm of it, per frame, is used as sampling
weight. Read as follows:

* All frames of the pool are one video, before the question, in the policy's own chat template: a
  question before its video does not depend on it, and the gradient would be zero.
* The loss is the mean of -log p(token | video, earlier tokens) over the tokens of the question,
  its first included; nothing after the question is run.
* Pixels are the normalised ones that enter the tower, at the size at which the policy reads them.
* At every pixel the L2 norm over its colour channels, then the mean over the frame's pixels.
* A temporal patch covers two frames, whose gradients are told apart. An odd pool is filled up by
  repeating its last frame; that frame's gradient is the sum over both places, as the chain rule has
  it.

Cost: one forward and backward pass over the whole pool for every question. Layers are recomputed in
the backward pass, so that 64 frames fit.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strive.errors import DecodeError
from strive.models.inputs import PromptInputs, VideoFrames, prepare_prompt
from strive.models.language import language_forward
from strive.models.loading import Policy, checkpoint_activations
from strive.models.logprobs import token_logprobs
from strive.models.rows import packed_rows
from strive.models.vision import encode_videos, merge_features
from strive.scorers import JointScorer, ScorerRequest
from strive.scorers.common import token_ids
from strive.scorers.policy import ScoringPolicy


class GradientScorer(ScoringPolicy, JointScorer):
    """A policy whose pixels get the gradient."""

    kind = "weight"

    def __init__(self, request: ScorerRequest) -> None:
        super().__init__(request)
        # Activation checkpointing without training mode, and so without dropout: a layer
        # checkpoints while it is `training`; what lies inside it decides about dropout.
        checkpoint_activations(self.policy.model)
        for module in self.policy.model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True

    def identity(self) -> dict[str, Any]:
        """Everything that changes the numbers."""
        return {
            **super().identity(),
            "prompt": "chat template, video before question",
            "position_rule": self.policy.position_rule,
            "loss": "mean over the question's tokens",
            "weight": "mean over pixels of the L2 norm over channels of the gradient",
        }

    def score(
        self, frames_FHWC: np.ndarray, question: str, *, pts_seconds_F: np.ndarray
    ) -> np.ndarray:
        """Return each frame's weight, the mean gradient norm of its pixels: float32 [F].

        Raises:
            DecodeError: `no_text`: a question without a token has no loss; `too_long`: with the
                video it does not fit into the policy's context. Both are this question's row.
        """
        # The question alone first: the frames of one that is too long need no preparing.
        self._check_length(len(token_ids(self.tokenizer, question)))
        video = VideoFrames(
            frames_KHWC=frames_FHWC,
            pts_seconds_K=np.asarray(pts_seconds_F, np.float64),
            source_index_K=np.arange(len(frames_FHWC)),  # the pool's; a prompt shows times alone
        )
        prompt = prepare_prompt(self.policy, question, video)
        start, end = question_tokens(self.policy, prompt)
        self._check_length(end)
        if start == end:
            raise DecodeError("no_text", "the question has no token")
        pixels_ND = prompt.pixel_values.to(self.device).requires_grad_()
        with torch.enable_grad():
            loss = question_loss(self.policy, prompt, pixels_ND)
            (gradient_ND,) = torch.autograd.grad(loss, pixels_ND)
        vision = self.policy.config.vision_config
        frames_FNCP = frame_gradients(
            gradient_ND.float(),
            prompt.video_grid_thw,
            vision.temporal_patch_size,
            vision.patch_size,
        )
        # The last frame and its repetitions are one set of pixels.
        num_frames = len(frames_FHWC)
        frames_FNCP[num_frames - 1] = frames_FNCP[num_frames - 1 :].sum(0)
        weights_F: Tensor = frames_FNCP[:num_frames].norm(dim=2).mean(dim=(1, 2))
        return weights_F.cpu().numpy()

    def _check_length(self, num_tokens: int) -> None:
        context = int(self.policy.config.text_config.max_position_embeddings)
        if num_tokens > context:
            raise DecodeError(
                "too_long",
                f"the question (with its video) takes {num_tokens:,} tokens, the policy's context "
                f"holds {context:,}",
            )


def question_loss(policy: Policy, prompt: PromptInputs, pixels_ND: Tensor) -> Tensor:
    """Mean negative log-probability of the question's tokens, given the video's pixels."""
    start, end = question_tokens(policy, prompt)
    read = dataclasses.replace(
        prompt,
        input_ids_P=prompt.input_ids_P[:start],
        video_mask_P=prompt.video_mask_P[:start],
        position_ids_3P=prompt.position_ids_3P[:, :start],
        next_position=int(prompt.position_ids_3P[0, start]),
        pixel_values=pixels_ND,
    )
    targets_L = prompt.input_ids_P[start:end]
    rows, source_BGL = packed_rows(
        policy, [read], targets_L[None, None], np.array([[len(targets_L)]])
    )
    merged = merge_features(policy, encode_videos(policy, [read], with_graph=True))
    hidden_BTH = language_forward(policy, policy.model, rows, merged)
    logprobs_L, _ = token_logprobs(
        policy.model.lm_head,
        hidden_BTH[0, torch.from_numpy(source_BGL[0, 0]).to(policy.device)],
        torch.from_numpy(targets_L).to(policy.device),
        sampling_temperature=1.0,
    )
    return -logprobs_L.mean()


def question_tokens(policy: Policy, prompt: PromptInputs) -> tuple[int, int]:
    """Half-open range of the question's tokens in the prompt.

    The text between the video's end and the next control token; the prompt's text holds no others.
    """
    control = set(policy.tokenizer.all_special_ids)
    control |= {i for i, t in policy.tokenizer.added_tokens_decoder.items() if t.special}
    ids = prompt.input_ids_P.tolist()
    start = int(np.flatnonzero(prompt.video_mask_P)[-1]) + 1
    while start < len(ids) and ids[start] == policy.config.vision_end_token_id:
        start += 1
    end = start
    while end < len(ids) and ids[end] not in control:
        end += 1
    return start, end


def frame_gradients(
    gradient_ND: Tensor, grid_thw: tuple[int, int, int], temporal_size: int, patch_size: int
) -> Tensor:
    """Take patches apart into frames: [N, C * t * p * p] to [frames, patches, C, p * p].

    A patch holds, channel by channel, `temporal_size` frames of `patch_size` x `patch_size` pixels.
    """
    slices, rows, columns = grid_thw
    x = gradient_ND.view(slices, rows * columns, -1, temporal_size, patch_size * patch_size)
    return x.permute(0, 3, 1, 2, 4).reshape(
        slices * temporal_size, rows * columns, -1, patch_size**2
    )
