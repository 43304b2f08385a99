import subprocess
import sys

import numpy as np
import pytest

from strive.errors import MissingInputError, UnknownNameError
from strive.lab.models import WEIGHTS_ROOT, describe, lab_model_names, lab_model_path
from strive.lab.scene import Difficulty, draw_scene
from strive.lab.world import build_world
from strive.records import read_records

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def question_frames():
    """A question and the 16 uniform frames of its clip, drawn in memory."""
    from strive.lab.render import render_slots

    scene = draw_scene(0, 3, Difficulty(other_size_share=0.0))
    slots_K = np.rint(np.linspace(0, 63, 16)).astype(int)
    frames = render_slots(scene, slots_K, height=scene.height, width=scene.width)
    return scene, slots_K, frames


def test_names_and_paths():
    assert lab_model_names() == ("siglip2", "llava_ov", "qwen2_5_vl", "qwen3_vl")
    with pytest.raises(UnknownNameError, match="did you mean 'siglip2'"):
        lab_model_path("siglip")


def test_missing_weights_name_the_recipe(monkeypatch, tmp_path):
    monkeypatch.setattr("strive.lab.models.WEIGHTS_ROOT", tmp_path)
    with pytest.raises(MissingInputError, match=r"-m recipes qwen3_vl"):
        lab_model_path("qwen3_vl")


def test_shipped_weights_are_small_and_carry_their_recipe():
    models = describe()
    assert [model.name for model in models] == list(lab_model_names())
    assert sum(model.size_bytes for model in models) < 15_000_000
    for model in models:
        assert model.recipe["name"] == model.name
        assert "seed" in model.recipe and "measured" in model.recipe
    assert not [f for f in WEIGHTS_ROOT.rglob("*") if f.suffix in (".bin", ".pt", ".pkl")]


def test_names_world_and_models_load_no_torch():
    code = (
        "import sys, strive.lab.models, strive.lab.world;"
        "assert not {'torch', 'transformers', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_siglip2_opens_with_open_clip_and_prefers_the_evidence(question_frames):
    import open_clip
    from PIL import Image

    scene, _, _ = question_frames
    from strive.lab.render import render_slots
    from strive.lab.scene import SHAPES

    folder = f"local-dir:{lab_model_path('siglip2')}"
    model, preprocess = open_clip.create_model_from_pretrained(folder)
    tokenizer = open_clip.get_tokenizer(folder)
    sprite = next(s for s in scene.sprites if s.brief and not s.is_glyph)
    shown = sprite.visible_at(np.arange(64))
    frames = render_slots(scene, np.arange(64), height=scene.height, width=scene.width)
    pixels = torch.stack([preprocess(Image.fromarray(frame)) for frame in frames])
    tokens = tokenizer([f"What color is the {SHAPES[sprite.shape]}?"])
    assert tokens.shape == (1, 64)
    with torch.no_grad():
        image = model.float().encode_image(pixels, normalize=True)
        text = model.encode_text(tokens, normalize=True)
    scores = (image @ text.T)[:, 0].numpy()
    assert scores[shown].mean() > scores[~shown].mean() + 0.1


def test_llava_ov_opens_with_the_auto_classes_and_answers(question_frames):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = lab_model_path("llava_ov")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    prompt = processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "video"}, {"type": "text", "text": "Where is it?"}],
            }
        ],
        add_generation_prompt=True,
    )
    inputs = processor(text=[prompt], videos=[question_frames[2][:4]], return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert written.shape[1] == inputs["input_ids"].shape[1] + 4
    assert model.config.text_config.max_position_embeddings >= 32768


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_policies_open_with_the_auto_classes_and_answer(name, question_frames):
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.video_utils import VideoMetadata

    scene, slots_K, frames = question_frames
    folder = lab_model_path(name)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    rope = model.config.text_config.rope_parameters
    assert len(rope["mrope_section"]) == 3 and min(rope["mrope_section"]) > 0
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Où? é 世界"}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    metadata = VideoMetadata(
        total_num_frames=scene.num_frames, fps=scene.fps, frames_indices=slots_K.tolist()
    )
    inputs = processor(
        text=[prompt], videos=[frames], video_metadata=[metadata], return_tensors="pt"
    )
    written = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert written.shape[0] == 1
    assert processor.tokenizer.decode(inputs["input_ids"][0]).count("世界") == 1


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_policies_answer_a_real_clip_in_the_taught_form(name, tmp_path):
    from recipes.measure import decode_clip
    from recipes.policy_measure import run_view
    from strive.answers import has_think_answer_format
    from strive.models.loading import load_policy

    world = build_world(tmp_path, num_clips=4, seed=7)
    records = read_records([world.records_file("held_out")]).records
    clips = {record.video_id: decode_clip(tmp_path / record.video_id) for record in records}
    outcome = run_view(load_policy(lab_model_path(name)), "evidence", records, clips)
    assert all(has_think_answer_format(texts[0]) for texts in outcome.texts_RG)
