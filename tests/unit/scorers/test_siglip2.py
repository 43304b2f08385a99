"""The siglip2 scorer against a slow, plain reference, with the lab's small model."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from strive.errors import ModelError
from strive.lab.models import lab_model_path
from strive.scorers import BatchedScorer, ScorerRequest, SplitScorer, load_scorer
from strive.scorers.siglip2 import OpenClipScorer

FOLDER = str(lab_model_path("siglip2"))
QUESTIONS = ["What colour is the star?", "", "At 0:15, what does Mr. Lee do?", "which shape " * 40]


@pytest.fixture(scope="module")
def scorer() -> OpenClipScorer:
    made = load_scorer("siglip2", ScorerRequest(model=FOLDER, batch_size=8))
    assert isinstance(made, OpenClipScorer)
    return made


def frames(num_frames: int, height: int = 90, width: int = 120, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num_frames, 9, 12, 3), dtype=np.uint8)
    return coarse.repeat(height // 9, axis=1).repeat(width // 12, axis=2)


def reference_image(model: torch.nn.Module, frame_HWC: np.ndarray) -> np.ndarray:
    """One frame alone, straight through open_clip's model."""
    x = torch.tensor(frame_HWC).permute(2, 0, 1)[None].float() / 255
    x = torch.nn.functional.interpolate(x, (56, 56), mode="bicubic", antialias=True)
    x = (x.clamp(0, 1) - 0.5) / 0.5
    with torch.no_grad():
        z = model.encode_image(x)[0].double()
    return (z / z.norm()).numpy()


def reference_text(model: torch.nn.Module, text: str) -> np.ndarray:
    """One question alone, tokenised by open_clip itself."""
    import open_clip

    tokens = open_clip.get_tokenizer(f"local-dir:{FOLDER}")([text])
    with torch.no_grad():
        z = model.encode_text(tokens)[0].double()
    return (z / z.norm()).numpy()


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    import open_clip

    return open_clip.create_model(f"local-dir:{FOLDER}").eval()


def test_embeddings_equal_one_by_one(scorer: OpenClipScorer, model: torch.nn.Module) -> None:
    pool = frames(11)  # more than one batch
    embedded = scorer.embed_frames(pool)
    assert embedded.shape == (11, 64) and embedded.dtype == np.float32
    expected = np.stack([reference_image(model, frame) for frame in pool])
    np.testing.assert_allclose(embedded, expected, atol=1e-5)
    texts = scorer.embed_questions(QUESTIONS)
    expected = np.stack([reference_text(model, text) for text in QUESTIONS])
    np.testing.assert_allclose(texts, expected, atol=1e-5)


def test_numbers_do_not_depend_on_company(scorer: OpenClipScorer) -> None:
    # What makes resumed, sharded and plain runs equal to the last bit.
    pool = frames(16)
    whole = scorer.embed_frames(pool)
    np.testing.assert_array_equal(scorer.embed_frames(pool[:5]), whole[:5])
    np.testing.assert_array_equal(scorer.embed_frames(pool[5:]), whole[5:])
    texts = [f"question number {i} about a star" for i in range(40)]
    together = scorer.embed_questions(texts)
    np.testing.assert_array_equal(scorer.embed_questions(texts[33:34])[0], together[33])
    np.testing.assert_array_equal(scorer.embed_questions(texts[::-1])[::-1], together)


def test_rows_do_not_depend_on_place_or_neighbours(scorer: OpenClipScorer) -> None:
    # Batches hold frames of several videos, so a frame may stand anywhere, beside anything.
    assert isinstance(scorer, BatchedScorer)
    wanted = scorer.prepare_frames(frames(1, seed=1))
    others = scorer.prepare_frames(frames(20, 180, 60, seed=2))
    assert wanted.shape[1:] == others.shape[1:] and wanted.dtype == others.dtype
    alone = scorer.embed_prepared(wanted)
    for place in range(scorer.batch_size):
        for size in (place + 1, scorer.batch_size):
            rows = torch.cat([others[:place], wanted, others[place + 1 : size]])
            np.testing.assert_array_equal(scorer.embed_prepared(rows)[place], alone[0])


def test_batches_may_be_embedded_by_several_threads_at_once(scorer: OpenClipScorer) -> None:
    batches = [scorer.prepare_frames(frames(8, seed=seed)) for seed in range(12)]
    alone = [scorer.embed_prepared(batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(scorer.embed_prepared, batches))
    np.testing.assert_array_equal(together, alone)


def test_the_logit_scale_is_the_weights_own_in_any_precision(model: torch.nn.Module) -> None:
    half = load_scorer("siglip2", ScorerRequest(model=FOLDER, dtype="bfloat16"))
    stored = model.logit_scale.double()
    assert half.details["logit_scale"] == pytest.approx(stored.exp().item(), rel=1e-6)  # type: ignore[attr-defined]
    # Rounded to 8 bits first, it would be another.
    assert abs(stored.bfloat16().double().exp() / stored.exp() - 1) > 1e-4


def test_text_lengths_and_truncation(scorer: OpenClipScorer) -> None:
    lengths = scorer.text_lengths([*QUESTIONS, "word " * 500])
    assert [length.truncated for length in lengths][:3] == [False, False, False]
    assert lengths[3].truncated and lengths[3].num_tokens > 64
    # What is cut off does not change the embedding: the first 64 tokens are all there is.
    same = scorer.embed_questions([QUESTIONS[3], QUESTIONS[3] + "of another colour"])
    np.testing.assert_array_equal(same[0], same[1])


def test_chunk_mean_is_the_mean_of_64_token_chunks(model: torch.nn.Module) -> None:
    scorer = load_scorer("siglip2", ScorerRequest(model=FOLDER, long_text="chunk-mean"))
    assert isinstance(scorer, OpenClipScorer)
    words = [f"word{i} of the star" for i in range(60)]
    long = " ".join(words)
    encode = scorer.tokenizer.tokenizer
    ids = encode(scorer.tokenizer.clean_fn(long), add_special_tokens=False)["input_ids"]
    end = [encode.eos_token_id]
    total, seen = np.zeros(64), []
    for start in range(0, len(ids), 63):
        chunk = ids[start : start + 63]
        seen += chunk
        row = (chunk + end + [encode.pad_token_id] * 64)[:64]
        with torch.no_grad():
            z = model.encode_text(torch.tensor([row]))[0].double()
        total += (z / z.norm()).numpy()
    assert seen == ids and len(ids) > 3 * 64
    embedded = scorer.embed_questions(["a star", long])
    np.testing.assert_allclose(embedded[1], total / np.linalg.norm(total), atol=1e-5)
    np.testing.assert_allclose(embedded[0], reference_text(model, "a star"), atol=1e-5)
    # Nothing is lost: the last word counts.
    other = scorer.embed_questions([long + " circle"])[0]
    assert np.abs(other - embedded[1]).max() > 1e-4
    # To the last bit, whatever is asked beside it.
    np.testing.assert_array_equal(scorer.embed_questions([long])[0], embedded[1])


def test_chunk_mean_truncates_nothing_and_has_a_key_of_its_own(scorer: OpenClipScorer) -> None:
    other = load_scorer(
        "siglip2", ScorerRequest(model=FOLDER, batch_size=8, long_text="chunk-mean")
    )
    assert isinstance(other, OpenClipScorer)
    (length,) = other.text_lengths(["word " * 500])
    assert not length.truncated and length.num_tokens > 500
    changed = {k for k, v in other.identity().items() if scorer.identity()[k] != v}
    assert changed == {"long_text"}


def test_chunks_of_clip_tokens() -> None:
    # open_clip's other kind of tokenizer puts a token before and one after the text.
    import open_clip

    scorer = object.__new__(OpenClipScorer)
    scorer.tokenizer = open_clip.get_tokenizer("ViT-B-32")
    scorer.context_length, scorer.model_name = 77, "ViT-B-32"
    long = " ".join(f"number{i}" for i in range(90))
    rows = scorer._chunks(long)
    assert rows.shape[1] == 77 and len(rows) > 1
    sot, eot = scorer.tokenizer.sot_token_id, scorer.tokenizer.eot_token_id
    body = [t for row in rows.tolist() for t in row if t not in (sot, eot, 0)]
    assert body == list(scorer.tokenizer.encode(long))
    assert all(row[0] == sot and row.count(eot) == 1 for row in rows.tolist())
    torch.testing.assert_close(scorer._chunks("a star"), scorer.tokenizer(["a star"]))


def test_odd_sizes_are_squashed(scorer: OpenClipScorer) -> None:
    for height, width in ((9, 12), (180, 12), (90, 240)):
        assert np.isfinite(scorer.embed_frames(frames(2, height, width))).all()


def test_left_padding_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "left"
    shutil.copytree(FOLDER, broken)
    made = load_scorer("siglip2", ScorerRequest(model=str(broken)))
    assert isinstance(made, OpenClipScorer)
    made.tokenizer.tokenizer.padding_side = "left"
    with pytest.raises(ModelError, match="does not pad on the right"):
        made.embed_questions(["a short question"])


def test_identity_follows_the_weights_not_the_place(scorer: OpenClipScorer, tmp_path: Path) -> None:
    copied = tmp_path / "siglip2"
    shutil.copytree(FOLDER, copied)
    other = load_scorer("siglip2", ScorerRequest(model=f"local-dir:{copied}", batch_size=8))
    assert other.identity() == scorer.identity()
    from safetensors.torch import load_file, save_file

    (weights,) = copied.glob("*.safetensors")
    state = load_file(weights)
    state[next(iter(state))] += 1e-3
    save_file(state, weights)
    changed = load_scorer("siglip2", ScorerRequest(model=str(copied)))
    assert changed.identity() != scorer.identity()
    assert isinstance(changed, SplitScorer)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("/nowhere/at/all", "no open_clip_config.json"),
        ("ViT-No-Such-Model", "no model of open_clip"),
        ("ViT-SO400M-16-SigLIP2-384/no_such_tag", "has the weights webli"),
    ],
)
def test_wrong_models_are_named(model: str, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        load_scorer("siglip2", ScorerRequest(model=model))


def test_missing_weights_are_an_error_not_random_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    shutil.copytree(FOLDER, folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ModelError, match="no weights"):
        load_scorer("siglip2", ScorerRequest(model=str(folder)))


def test_unreachable_hub_names_the_lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="--scorer-model siglip2=lab:siglip2"):
        load_scorer("siglip2", ScorerRequest())
