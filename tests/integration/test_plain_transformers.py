"""Given the same frames, a policy writes what plain transformers writes with its own processor."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

from strive.answers import build_question
from strive.lab.models import lab_model_path
from strive.lab.render import render_slots
from strive.lab.scene import Difficulty, draw_scene
from strive.lab.world import clip_records
from strive.models.decoding import Decoder
from strive.models.inputs import VideoFrames, prepare_prompts
from strive.models.loading import load_policy
from strive.models.sampling import Sampling

NEW_TOKENS = 8


def lab_questions(num_frames: int) -> list[tuple[str, VideoFrames]]:
    """Questions on clips of two shapes, 112 x 112 and others, with evenly spaced frames."""
    asked = []
    for clip, other_share in ((0, 0.0), (1, 0.0), (2, 1.0), (3, 1.0)):
        scene = draw_scene(0, clip, Difficulty(other_size_share=other_share))
        slots_K = np.rint(np.linspace(0, 63, num_frames)).astype(np.int64)
        frames = render_slots(scene, slots_K, height=scene.height, width=scene.width)
        record = clip_records(scene, 0)[0]
        video = VideoFrames(frames, np.arange(num_frames) * 1.0, slots_K)
        asked.append((build_question(record, "short"), video))
    assert len({video.frames_KHWC.shape[1:3] for _, video in asked}) > 1
    return asked


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_greedy_texts_are_plain_transformers(name: str) -> None:
    folder = lab_model_path(name)
    policy = load_policy(folder, position_rule="transformers")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    for num_frames in (4, 8, 16):
        asked = lab_questions(num_frames)
        texts, videos = zip(*asked, strict=True)
        prompts = prepare_prompts(policy, texts, videos)
        ours = Decoder(policy)(
            prompts,
            sampling=Sampling(num_generations=1, max_new_tokens=NEW_TOKENS),
            greedy=True,
        )
        for (text, video), prompt, (written,) in zip(asked, prompts, ours.texts, strict=True):
            turn = [{"type": "video"}, {"type": "text", "text": text}]
            inputs = processor(
                text=[
                    processor.apply_chat_template(
                        [{"role": "user", "content": turn}],
                        tokenize=False,
                        add_generation_prompt=True,
                    )
                ],
                videos=[torch.from_numpy(video.frames_KHWC).permute(0, 3, 1, 2)],
                # One frame a second, so that an index is a time.
                video_metadata=[
                    VideoMetadata(num_frames, fps=1.0, frames_indices=list(range(num_frames)))
                ],
                do_sample_frames=False,
                fps=1.0,
                return_tensors="pt",
            )
            assert list(prompt.video_grid_thw) == inputs["video_grid_thw"][0].tolist()
            with torch.inference_mode():
                tokens = model.generate(
                    **inputs,
                    max_new_tokens=NEW_TOKENS,
                    do_sample=False,
                    suppress_tokens=policy.never_sampled_ids.tolist(),
                )
            theirs = tokens[0, inputs["input_ids"].shape[1] :]
            assert written == processor.tokenizer.decode(theirs, skip_special_tokens=True)
