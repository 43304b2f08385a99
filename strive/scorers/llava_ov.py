"""The `llava_ov` scorer: LLaVA-OneVision's own visual and word tokens, through transformers.

Sec. 3.3, read literally: a frame is the mean of its projected visual tokens, a question the mean of
its token embeddings, both scaled to length 1. The visual tokens are those that the model hands to
its language model for a video: vision tower, projector, then the bilinear pooling that halves each
side. A frame's tokens do not depend on the other frames of the video.

The language model itself is not run, and a question is never too long.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strive.errors import ModelError, short_reason
from strive.models.loading import DTYPES, go_offline_if_unreachable, open_weights, require_tokenizer
from strive.scorers import ScorerRequest
from strive.scorers.common import (
    ImageTowerScorer,
    PixelRule,
    TransformersScorer,
    mean_token_embeddings,
)

# Neither the language model nor what stands behind the tower's last layer is run.
_UNUSED = ("language_model.layers", "language_model.norm", "lm_head", "post_layernorm", ".head.")


class LlavaOnevisionScorer(TransformersScorer, ImageTowerScorer):
    """A LLaVA-OneVision of transformers, frozen; its language model is dropped.

    Raises:
        ModelError: the model cannot be found or loaded, or is of another kind.
    """

    default_model = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"

    def __init__(self, request: ScorerRequest) -> None:
        super().__init__(request)
        model, processor = _open(self.model_name, DTYPES[self.dtype_name], self.device)
        self.tokenizer = processor.tokenizer
        side, video = model.config.vision_config.image_size, processor.video_processor
        size = (int(video.size["height"]), int(video.size["width"]))
        if size != (side, side):
            raise ModelError(
                f"the video processor of '{self.model_name}' makes frames of {size[0]} x {size[1]} "
                f"pixels, its vision tower takes {side} x {side}"
            )
        self.pixel_rule = PixelRule(size, tuple(video.image_mean), tuple(video.image_std))
        self.model = model.model.to(self.device)
        self.model.language_model.layers = torch.nn.ModuleList()
        self.digest_files()

    def identity(self) -> dict[str, Any]:
        """Everything that changes the numbers."""
        return {
            **super().identity(),
            "frame": "mean of projected and pooled visual tokens",
            "question": "mean of input embeddings, no template, no special tokens",
            "preprocess": self.pixel_rule.fields(),
        }

    def image_features(self, pixels_BCHW: Tensor) -> Tensor:
        """Average each frame's visual tokens: [B, D]."""
        return self.visual_tokens(pixels_BCHW).float().mean(1)

    def visual_tokens(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the tokens that the language model would be given for each frame: [B, N, D]."""
        config = self.model.config
        wanted = config.vision_feature_layer
        layers = [wanted] if isinstance(wanted, int) else list(wanted)
        # Only these layers' states are kept; all of them would be gigabytes for a large tower.
        states = self.model.vision_tower(pixels_BCHW, output_hidden_states=layers).hidden_states
        hidden = torch.cat([states[layer] for layer in layers], dim=-1)
        if config.vision_feature_select_strategy == "default":
            hidden = hidden[:, 1:]
        tokens: Tensor = self.model.apply_pooling(self.model.multi_modal_projector(hidden))
        return tokens

    @torch.inference_mode()
    def embed_questions(self, questions: Sequence[str]) -> np.ndarray:
        """Average each question's token embeddings: float32 [Q, D], unit length."""
        return mean_token_embeddings(self.model.get_input_embeddings(), self.tokenizer, questions)


def _open(name: str, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoProcessor, LlavaOnevisionForConditionalGeneration

    if not Path(name).is_dir():
        go_offline_if_unreachable()
    try:
        kind = AutoConfig.from_pretrained(name).model_type
        if kind != "llava_onevision":
            raise ModelError(
                f"'{name}' is of family '{kind}'; scorer 'llava_ov' takes a llava_onevision model "
                "(--scorer-model llava_ov=ID_OR_DIR); a policy scores with --scorer policy"
            )
        model = open_weights(
            LlavaOnevisionForConditionalGeneration, name, device=device, unused=_UNUSED, dtype=dtype
        )
        processor = AutoProcessor.from_pretrained(name)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = short_reason(error)
        raise ModelError(
            f"model '{name}' cannot be opened as a LLaVA-OneVision ({reason}); give a folder with "
            "--scorer-model llava_ov=DIR, or the lab's small model with "
            "--scorer-model llava_ov=lab:llava_ov"
        ) from error
    require_tokenizer(processor.tokenizer, name)
    return model.eval().requires_grad_(False), processor
