"""The policy scorer against a slow, plain reference from the words of Sec. 3.3."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from scorers.small_policies import KINDS, frames, policy_folder
from strive.errors import MissingInputError, ModelError
from strive.lab.models import lab_model_path
from strive.scorers import BatchedScorer, ScorerRequest, SplitScorer, load_scorer
from strive.scorers.policy import PolicyScorer

QUESTIONS = ["What colour is the star?", "a", "which shape " * 300]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, source = request.param
    return policy_folder(family, source, tmp_path_factory.mktemp(family))


def made(folder: Path, batch_size: int = 8) -> PolicyScorer:
    scorer = load_scorer("policy", ScorerRequest(model=str(folder), batch_size=batch_size))
    assert isinstance(scorer, PolicyScorer) and isinstance(scorer, SplitScorer)
    assert not isinstance(scorer, BatchedScorer)  # frames keep their shape, so no mixed batches
    return scorer


class Reference:
    """Frames one by one, each as an image through the model's own method."""

    def __init__(self, folder: Path, max_pixels: int) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.max_pixels = max_pixels
        self.cell = 2 * self.processor.image_processor.patch_size

    def frame(self, frame_HWC: np.ndarray) -> np.ndarray:
        x = torch.tensor(frame_HWC).permute(2, 0, 1)
        rows, columns = (max(1, round(side / self.cell)) for side in x.shape[1:])
        if rows * columns * self.cell**2 > self.max_pixels:
            shrink = (x.shape[1] * x.shape[2] / self.max_pixels) ** 0.5
            rows, columns = (max(1, int(side / shrink / self.cell)) for side in x.shape[1:])
        from torchvision.transforms.v2 import functional as transforms

        x = transforms.resize(x, [rows * self.cell, columns * self.cell], 3, antialias=True)
        video = self.processor.video_processor
        mean, std = torch.tensor(video.image_mean), torch.tensor(video.image_std)
        pixels = (x.float() / 255 - mean[:, None, None]) / std[:, None, None]
        p = self.cell // 2
        patches = []
        for r in range(rows):
            for c in range(columns):
                for y in (2 * r, 2 * r + 1):
                    for z in (2 * c, 2 * c + 1):
                        patch = pixels[:, y * p : (y + 1) * p, z * p : (z + 1) * p]
                        patches.append(torch.stack([patch, patch], dim=1).flatten())
        with torch.no_grad():
            (tokens,) = self.model.get_image_features(
                torch.stack(patches), torch.tensor([[1, 2 * rows, 2 * columns]])
            ).pooler_output
        z = tokens.double().mean(0)
        return (z / z.norm()).numpy()

    def question(self, text: str) -> np.ndarray:
        ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        table = self.model.get_input_embeddings().weight.detach().double()
        z = sum(table[i] for i in ids) / len(ids)
        return (z / z.norm()).numpy()


def test_embeddings_and_scores_equal_one_by_one(folder: Path) -> None:
    scorer = made(folder)
    reference = Reference(folder, scorer.max_pixels)
    pool = frames(11, 63, 84)  # more than one batch
    embedded = scorer.embed_frames(pool)
    assert embedded.shape[0] == 11 and embedded.dtype == np.float32
    expected = np.stack([reference.frame(frame) for frame in pool])
    np.testing.assert_allclose(embedded, expected, atol=1e-5)
    texts = scorer.embed_questions(QUESTIONS)
    expected_texts = np.stack([reference.question(text) for text in QUESTIONS])
    np.testing.assert_allclose(texts, expected_texts, atol=1e-5)
    stored = embedded.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(stored @ texts.T, expected @ expected_texts.T, atol=5e-4)


def test_no_two_frames_are_fused(folder: Path) -> None:
    # And a row depends neither on its place nor on how many frames the pool has.
    scorer = made(folder)
    pool = frames(16)
    whole = scorer.embed_frames(pool)
    for place in range(16):
        np.testing.assert_array_equal(scorer.embed_frames(pool[place : place + 1])[0], whole[place])
    np.testing.assert_array_equal(scorer.embed_frames(pool[3:12]), whole[3:12])
    assert np.abs(whole[0] - whole[1]).max() > 1e-3


def test_odd_sizes(folder: Path) -> None:
    for height, width in ((9, 12), (180, 12), (9, 240)):
        embedded = made(folder).embed_frames(frames(3, height, width))
        np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)


def test_no_question_is_too_long() -> None:
    (length,) = made(lab_model_path("qwen2_5_vl")).text_lengths(["star " * 3000])
    assert length.num_tokens >= 3000 and not length.truncated


def test_families_and_weights_have_keys_of_their_own(folder: Path) -> None:
    identity = made(folder).identity()
    assert identity == made(folder, batch_size=4).identity()
    other = "qwen3_vl" if identity["family"] == "qwen2_5_vl" else "qwen2_5_vl"
    assert made(lab_model_path(other)).identity() != identity


def test_wrong_models_name_the_option() -> None:
    with pytest.raises(MissingInputError, match="--policy takes a folder or a hub id"):
        load_scorer("policy", ScorerRequest(model="/nowhere/at/all"))
    with pytest.raises(ModelError, match="--policy lab:qwen2_5_vl"):
        load_scorer("policy", ScorerRequest(model="nobody/no-such-model"))
    with pytest.raises(ModelError, match="is of family 'llava_onevision'"):
        load_scorer("policy", ScorerRequest(model=str(lab_model_path("llava_ov"))))
