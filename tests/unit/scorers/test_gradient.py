"""The gradient scorer against a plain reference from the words of Sec. 4.2, in float64.

The reference runs the model's own forward over the whole prompt, without checkpointing, and takes
the gradient with respect to frames, which it cuts into patches itself.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from scorers.small_policies import KINDS, frames, policy_folder
from strive.errors import DecodeError, MissingInputError
from strive.lab.models import lab_model_path
from strive.models.inputs import VideoFrames, prepare_prompt
from strive.models.loading import Policy, load_policy
from strive.scorers import JointScorer, ScorerRequest, SplitScorer, load_scorer
from strive.scorers.gradient import GradientScorer

QUESTION = "What colour is the star that comes last?"


@dataclass(frozen=True)
class Case:
    scorer: GradientScorer
    policy: Policy
    """The same weights in float64."""
    size: tuple[int, int]
    """Height and width that the policy reads as they are."""


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, source = request.param
    folder = policy_folder(family, source, tmp_path_factory.mktemp(family))
    policy = load_policy(folder, dtype=torch.float64)
    cell = 2 * policy.config.vision_config.patch_size
    return Case(made(folder), policy, (2 * cell, 2 * cell) if source == "lab" else (2 * cell, cell))


def made(folder: Path) -> GradientScorer:
    scorer = load_scorer("gradient", ScorerRequest(model=str(folder)))
    assert isinstance(scorer, GradientScorer) and isinstance(scorer, JointScorer)
    assert not isinstance(scorer, SplitScorer)
    return scorer


def pool(case: Case, num_frames: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Frames of the size that the policy reads, at uneven times."""
    coarse = torch.from_numpy(frames(num_frames, seed=seed)).permute(0, 3, 1, 2)
    resized = transforms.resize(coarse, list(case.size), antialias=True)
    times = np.cumsum(np.random.default_rng(seed).uniform(0.2, 2.0, num_frames))
    return resized.permute(0, 2, 3, 1).numpy(), times


class Reference:
    """Loss of the question as a function of the normalised frames [F, 3, H, W]."""

    def __init__(self, policy: Policy, frames_FHWC: np.ndarray, times_F: np.ndarray) -> None:
        self.policy = policy
        video = VideoFrames(frames_FHWC, times_F, np.arange(len(times_F)))
        self.prompt = prepare_prompt(policy, QUESTION, video)
        processor = policy.processor.video_processor
        mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
        x = torch.from_numpy(frames_FHWC).permute(0, 3, 1, 2).double() / 255
        self.pixels = (x - mean[:, None, None]) / std[:, None, None]

    def patches(self, pixels_FCHW: Tensor) -> Tensor:
        """Patches in the processors' order, one by one; an odd video repeats its last frame."""
        p = self.policy.config.vision_config.patch_size
        pairs = list(pixels_FCHW)
        if len(pairs) % 2:
            pairs.append(pairs[-1])
        rows, columns = (side // p for side in pixels_FCHW.shape[2:])
        out = []
        for first, second in zip(pairs[::2], pairs[1::2], strict=True):
            for r in range(0, rows, 2):
                for c in range(0, columns, 2):
                    for y, z in ((r, c), (r, c + 1), (r + 1, c), (r + 1, c + 1)):
                        box = (slice(None), slice(y * p, y * p + p), slice(z * p, z * p + p))
                        out.append(torch.stack([first[box], second[box]], dim=1).flatten())
        return torch.stack(out)

    def loss(self, pixels_FCHW: Tensor) -> Tensor:
        """Mean -log p over the question's tokens, found by their place in the text."""
        ids = torch.from_numpy(self.prompt.input_ids_P)
        output: Any = self.policy.model(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            position_ids=torch.from_numpy(self.prompt.position_ids_3P)[:, None],
            pixel_values_videos=self.patches(pixels_FCHW),
            video_grid_thw=torch.tensor([self.prompt.video_grid_thw]),
            mm_token_type_ids=2 * torch.from_numpy(self.prompt.video_mask_P).int()[None],
            use_cache=False,
        )
        wanted = self.policy.tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
        size = len(wanted)
        (start,) = (i for i in range(len(ids)) if ids[i : i + size].tolist() == wanted)
        logprobs = output.logits[0, start - 1 : start + size - 1].log_softmax(-1)
        return -logprobs[torch.arange(size), torch.tensor(wanted)].mean()

    def gradient(self) -> Tensor:
        """Gradient [F, 3, H, W] with respect to the frames."""
        pixels = self.pixels.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(pixels), pixels)
        return gradient

    def weights(self) -> np.ndarray:
        """Frame by frame: L2 norm over the channels of every pixel, averaged over the pixels."""
        return np.array([frame.norm(dim=0).mean().item() for frame in self.gradient()])


@pytest.mark.parametrize("num_frames", [6, 5, 1])
def test_weights_equal_the_plain_reference(case: Case, num_frames: int) -> None:
    frames_FHWC, times = pool(case, num_frames)
    weights = case.scorer.score(frames_FHWC, QUESTION, pts_seconds_F=times)
    assert weights.shape == (num_frames,) and weights.dtype == np.float32
    expected = Reference(case.policy, frames_FHWC, times).weights()
    assert expected.min() > 0
    np.testing.assert_allclose(weights / expected.max(), expected / expected.max(), atol=5e-4)
    np.testing.assert_allclose(weights, expected, rtol=5e-3)


def test_gradient_equals_finite_differences(case: Case) -> None:
    frames_FHWC, times = pool(case, 5, seed=1)
    reference = Reference(case.policy, frames_FHWC, times)
    gradient = reference.gradient()
    rng = np.random.default_rng(0)
    # The models' norms compute in float32 even here, so that small steps are all noise: large
    # ones, and the difference formula of fourth order.
    step, factors = 0.1, {1: 8 / 12, -1: -8 / 12, 2: -1 / 12, -2: 1 / 12}
    for frame in (0, 1, 4):  # both halves of a temporal patch, and the frame that is repeated
        place = (frame, *(int(rng.integers(0, n)) for n in gradient.shape[1:]))
        slope = 0.0
        for steps, factor in factors.items():
            pixels = reference.pixels.clone()
            pixels[place] += steps * step
            with torch.no_grad():
                slope += factor * reference.loss(pixels).item() / step
        scale = gradient[frame].abs().mean().item()
        assert gradient[place].item() == pytest.approx(slope, rel=0.01, abs=0.01 * scale)


def test_the_frames_of_a_temporal_patch_are_told_apart(case: Case) -> None:
    # A tower that sees only the first frame of each pair.
    frames_FHWC, times = pool(case, 4)
    tower: Any = case.scorer.policy.model.model.visual
    weight = tower.patch_embed.proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[:, :, 1] = 0
    try:
        weights = case.scorer.score(frames_FHWC, QUESTION, pts_seconds_F=times)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert (weights[[1, 3]] == 0).all() and (weights[[0, 2]] > 0).all()


def test_the_same_call_gives_the_same_bits(case: Case) -> None:
    frames_FHWC, times = pool(case, 7)
    first = case.scorer.score(frames_FHWC, QUESTION, pts_seconds_F=times)
    case.scorer.score(*pool(case, 3)[:1], "Another?", pts_seconds_F=np.array([0.0, 1.0, 2.0]))
    again = case.scorer.score(frames_FHWC, QUESTION, pts_seconds_F=times)
    np.testing.assert_array_equal(first, again)


def test_short_odd_and_hostile_questions_are_defined(case: Case) -> None:
    frames_FHWC, times = pool(case, 3)
    for question in ("a", "?", "<|im_end|><|video_pad|> which one?", "who\nsaid <think>?"):
        weights = case.scorer.score(frames_FHWC, question, pts_seconds_F=times)
        assert np.isfinite(weights).all() and (weights > 0).all(), question
    with pytest.raises(DecodeError) as raised:
        case.scorer.score(frames_FHWC, "", pts_seconds_F=times)
    assert raised.value.kind == "no_text"


def test_a_question_beyond_the_context_is_one_quick_failure(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames_FHWC, times = pool(case, 3)
    context = case.scorer.policy.config.text_config.max_position_embeddings
    with monkeypatch.context() as patched:
        # Frames are not even prepared for a question that is too long by itself.
        patched.setattr("strive.scorers.gradient.prepare_prompt", None)
        with pytest.raises(DecodeError, match=r"tokens, the policy's context holds") as raised:
            case.scorer.score(frames_FHWC, "word " * (2 * context), pts_seconds_F=times)
    assert raised.value.kind == "too_long"
    # One that fits alone, and does not beside its video.
    num_tokens = len(case.scorer.policy.tokenizer(QUESTION, add_special_tokens=False)["input_ids"])
    config = case.scorer.policy.config.text_config
    monkeypatch.setattr(config, "max_position_embeddings", num_tokens + 1)
    with pytest.raises(DecodeError) as raised:
        case.scorer.score(frames_FHWC, QUESTION, pts_seconds_F=times)
    assert raised.value.kind == "too_long"


def test_layers_are_recomputed_and_nothing_drops_out(case: Case) -> None:
    model = case.scorer.policy.model
    layers = [*model.model.visual.blocks, *model.model.language_model.layers]
    assert layers and all(layer.gradient_checkpointing and layer.training for layer in layers)
    assert not any(layer.self_attn.training for layer in model.model.language_model.layers)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weights_are_weights_and_the_folder_is_named() -> None:
    scorer = made(lab_model_path("qwen2_5_vl"))
    assert scorer.kind == "weight" and scorer.mode == "joint"
    assert scorer.identity() != made(lab_model_path("qwen3_vl")).identity()
    with pytest.raises(MissingInputError, match="--policy takes a folder"):
        load_scorer("gradient", ScorerRequest(model="/nowhere/at/all"))
