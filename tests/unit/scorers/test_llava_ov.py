"""The llava_ov scorer against a slow, plain reference from the words of Sec. 3.3."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from strive.errors import ModelError
from strive.lab.models import lab_model_path
from strive.scorers import BatchedScorer, ScorerRequest, load_scorer
from strive.scorers.llava_ov import LlavaOnevisionScorer

FOLDER = lab_model_path("llava_ov")
QUESTIONS = ["What colour is the star?", "a", "which shape " * 400]


def wide_folder(folder: Path) -> Path:
    """A random model with an odd grid (3 x 3 patches pooled to 2 x 2) and two feature layers."""
    shutil.copytree(FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= {"image_size": 42, "hidden_size": 32, "intermediate_size": 48}
    config["vision_feature_layer"] = [1, -2]
    (folder / "config.json").write_text(json.dumps(config))
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["video_processor"]["size"] = {"height": 42, "width": 42}
    processor["video_processor"]["image_mean"] = [0.4, 0.5, 0.6]
    processor["video_processor"]["image_std"] = [0.2, 0.3, 0.5]
    (folder / "processor_config.json").write_text(json.dumps(processor))
    from transformers import AutoConfig

    torch.manual_seed(3)
    model = LlavaOnevisionForConditionalGeneration(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.15)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["lab", "random"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "lab":
        return FOLDER
    return wide_folder(tmp_path_factory.mktemp("llava") / "random")


def made(folder: Path, **changes: object) -> LlavaOnevisionScorer:
    values = {"batch_size": 8, **changes}
    scorer = load_scorer("llava_ov", ScorerRequest(model=str(folder), **values))  # type: ignore[arg-type]
    assert isinstance(scorer, LlavaOnevisionScorer) and isinstance(scorer, BatchedScorer)
    return scorer


def frames(num_frames: int, height: int = 90, width: int = 120, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num_frames, 9, 12, 3), dtype=np.uint8)
    return coarse.repeat(height // 9, axis=1).repeat(width // 12, axis=2)


class Reference:
    """Frames one by one; what the model makes of a video of one frame, through its own method."""

    def __init__(self, folder: Path) -> None:
        self.model = LlavaOnevisionForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        settings = json.loads((folder / "processor_config.json").read_text())["video_processor"]
        self.size = settings["size"]["height"]
        self.mean, self.std = settings["image_mean"], settings["image_std"]

    def pixels(self, frame_HWC: np.ndarray) -> torch.Tensor:
        x = torch.tensor(frame_HWC).permute(2, 0, 1)[None].float() / 255
        x = torch.nn.functional.interpolate(
            x, (self.size, self.size), mode="bicubic", antialias=True
        ).clamp(0, 1)
        return (x - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]

    def visual_tokens(self, pixels_F3SS: torch.Tensor) -> torch.Tensor:
        """Tokens [F, N, D] of a video; the model puts one newline token after all frames."""
        with torch.no_grad():
            output = self.model.get_video_features(pixels_F3SS[None]).pooler_output[0]
        num_frames = len(pixels_F3SS)
        per_frame = len(output) // num_frames if num_frames > 1 else len(output) - 1
        return output[: per_frame * num_frames].reshape(num_frames, per_frame, -1)

    def frame(self, frame_HWC: np.ndarray) -> np.ndarray:
        z = self.visual_tokens(self.pixels(frame_HWC))[0].double().mean(0)
        return (z / z.norm()).numpy()

    def question(self, text: str) -> np.ndarray:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        table = self.model.get_input_embeddings().weight.detach().double()
        z = sum(table[i] for i in ids) / len(ids)
        return (z / z.norm()).numpy()


def test_embeddings_and_scores_equal_one_by_one(folder: Path) -> None:
    scorer, reference = made(folder), Reference(folder)
    pool = frames(11)  # more than one batch
    embedded = scorer.embed_frames(pool)
    assert embedded.shape[0] == 11 and embedded.dtype == np.float32
    expected = np.stack([reference.frame(frame) for frame in pool])
    np.testing.assert_allclose(embedded, expected, atol=1e-5)
    texts = scorer.embed_questions(QUESTIONS)
    expected_texts = np.stack([reference.question(text) for text in QUESTIONS])
    np.testing.assert_allclose(texts, expected_texts, atol=1e-5)
    stored = embedded.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(stored @ texts.T, expected @ expected_texts.T, atol=5e-4)


def test_tokens_are_those_of_a_whole_video(folder: Path) -> None:
    scorer, reference = made(folder), Reference(folder)
    pixels = scorer.prepare_frames(frames(5))
    with torch.no_grad():
        tokens = scorer.visual_tokens(pixels)
    torch.testing.assert_close(tokens, reference.visual_tokens(pixels), atol=1e-5, rtol=0)
    side = scorer.pixel_rule.size[0] // 14
    assert tokens.shape[1] == (-(-side // 2)) ** 2


def test_rows_do_not_depend_on_place_or_neighbours(folder: Path) -> None:
    scorer = made(folder)
    wanted = scorer.prepare_frames(frames(1, seed=1))
    others = scorer.prepare_frames(frames(20, 180, 60, seed=2))
    assert wanted.shape[1:] == others.shape[1:]
    alone = scorer.embed_prepared(wanted)
    for place in range(scorer.batch_size):
        for size in (place + 1, scorer.batch_size):
            rows = torch.cat([others[:place], wanted, others[place + 1 : size]])
            np.testing.assert_array_equal(scorer.embed_prepared(rows)[place], alone[0])
    texts = scorer.embed_questions(QUESTIONS)
    np.testing.assert_array_equal(scorer.embed_questions(QUESTIONS[1:2])[0], texts[1])


def test_batches_may_be_embedded_by_several_threads_at_once(folder: Path) -> None:
    scorer = made(folder)
    batches = [scorer.prepare_frames(frames(8, seed=seed)) for seed in range(12)]
    alone = [scorer.embed_prepared(batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(scorer.embed_prepared, batches))
    np.testing.assert_array_equal(together, alone)


def test_no_question_is_too_long() -> None:
    (length,) = made(FOLDER).text_lengths(["star " * 3000])
    assert length.num_tokens >= 3000 and not length.truncated


def test_identity_follows_the_content_not_the_place(tmp_path: Path) -> None:
    copied = tmp_path / "llava_ov"
    shutil.copytree(FOLDER, copied)
    assert made(copied).identity() == made(FOLDER).identity()
    config = json.loads((copied / "config.json").read_text())
    config["vision_feature_layer"] = -2
    (copied / "config.json").write_text(json.dumps(config))
    assert made(copied).identity() != made(FOLDER).identity()
    assert copied / "config.json" in made(copied).files


@pytest.mark.parametrize(
    ("model", "text"),
    [("/nowhere/at/all", "cannot be opened"), ("nobody/no-such-model", "lab:llava_ov"),
     (str(lab_model_path("qwen2_5_vl")), "is of family 'qwen2_5_vl'")],
)  # fmt: skip
def test_wrong_models_are_named(model: str, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        load_scorer("llava_ov", ScorerRequest(model=model))


def test_size_that_the_tower_does_not_take(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(FOLDER, broken)
    processor = json.loads((broken / "processor_config.json").read_text())
    processor["video_processor"]["size"] = {"height": 84, "width": 84}
    (broken / "processor_config.json").write_text(json.dumps(processor))
    with pytest.raises(ModelError, match="84 x 84 pixels"):
        load_scorer("llava_ov", ScorerRequest(model=str(broken)))
