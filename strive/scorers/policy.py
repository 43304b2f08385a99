"""The `policy` scorer: the policy's own visual and word tokens (Table 4, "Policy Model (Same)").

Sec. 3.3 with the policy in the place of the scoring model: a frame is the mean of its merged visual
tokens, a question the mean of its token embeddings, both scaled to length 1.

Every frame is encoded as an image of its own, repeated to fill the tower's temporal patch, so that
no two frames are fused; it is normalised as the policy's video processor does it, since those are
the pixels that the policy reads in training. Of a Qwen3-VL only the tokens that enter the language
model are used, not the deepstack features that are added to its first layers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strive.errors import MissingInputError, ModelError
from strive.models.inputs import snap_frames
from strive.models.loading import load_policy
from strive.scorers import ScorerRequest, SplitScorer
from strive.scorers.common import TransformersScorer, mean_token_embeddings, pad_batch, unit_rows


class ScoringPolicy(TransformersScorer):
    """A frozen Qwen2.5-VL or Qwen3-VL, base of the `policy` and `gradient` scorers.

    Raises:
        ModelError: the model cannot be opened, or is of another family.
        MissingInputError: there is no such folder.
    """

    default_model = "Qwen/Qwen2.5-VL-7B-Instruct"

    def __init__(self, request: ScorerRequest) -> None:
        super().__init__(request)
        try:
            self.policy = load_policy(self.model_name, dtype=self.dtype_name, device=self.device)
        except (MissingInputError, ModelError) as error:
            # The option of `precompute` that names a scorer's policy.
            raise type(error)(str(error).replace("--model", "--policy")) from error
        self.policy.model.requires_grad_(False)
        self.tokenizer = self.policy.tokenizer
        self.digest_files()

    def identity(self) -> dict[str, Any]:
        """Everything of the policy that changes the numbers."""
        return {**super().identity(), "family": self.policy.family.name}


class PolicyScorer(ScoringPolicy, SplitScorer):
    """A policy of whose language model only the embedding table is kept."""

    def __init__(self, request: ScorerRequest) -> None:
        super().__init__(request)
        self.policy.family.drop_language_layers(self.policy.model)
        processor = self.policy.processor
        self.max_pixels = int(processor.image_processor.size["longest_edge"])
        self.mean = list(processor.video_processor.image_mean)
        self.std = list(processor.video_processor.image_std)

    def identity(self) -> dict[str, Any]:
        """Everything that changes the numbers."""
        return {
            **super().identity(),
            "frame": "mean of merged visual tokens of the frame as an image",
            "question": "mean of input embeddings, no template, no special tokens",
            "max_pixels": self.max_pixels,
            "mean": self.mean,
            "std": self.std,
        }

    @torch.inference_mode()
    def embed_frames(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """Embed frames, `batch_size` a call, blanks in the place of missing ones: float32 [F, D].

        A row does not depend on how many frames the video has, or which.
        """
        parts = []
        for start in range(0, len(frames_FHWC), self.batch_size):
            frames = snap_frames(
                self.policy, frames_FHWC[start:][: self.batch_size], self.max_pixels
            )
            parts.append(self._embed(pad_batch(frames, self.batch_size))[: len(frames)])
        return torch.cat(parts).numpy()

    def _embed(self, frames_BCHW: Tensor) -> Tensor:
        """Embed uint8 frames on the patch grid: float32 [B, D] on the CPU."""
        patches = self.policy.processor.image_processor(
            images=list(frames_BCHW.to(self.device)),
            do_resize=False,
            image_mean=self.mean,
            image_std=self.std,
            return_tensors="pt",
        )
        pixels = patches["pixel_values"].to(self.device, self.policy.dtype)
        grid = patches["image_grid_thw"].to(self.device)
        tower = self.policy.family.tower(self.policy.model)
        tokens_ND = tower(pixels, grid_thw=grid).pooler_output
        tokens_BND = tokens_ND.float().view(len(frames_BCHW), -1, tokens_ND.shape[-1])
        return unit_rows(tokens_BND.mean(1)).cpu()

    @torch.inference_mode()
    def embed_questions(self, questions: Sequence[str]) -> np.ndarray:
        """Average each question's token embeddings: float32 [Q, D], unit length."""
        table = self.policy.model.get_input_embeddings()
        return mean_token_embeddings(table, self.tokenizer, questions)
