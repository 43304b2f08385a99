"""A small synthetic cache, written with the cache's own writers: random frames, random scores."""

import numpy as np
import pytest

from strive.cache.frames import EncodedVideo, FrameCodec, FrameWriter, frames_checksum
from strive.cache.layout import create_cache, ensure_settings
from strive.cache.questions import write_questions
from strive.cache.scores import QuestionScores, commit_scores, query_digest
from strive.configs.schema import TrainConfig
from strive.records import Record, VideoFacts

FRAMES_KEY, SCORER_KEY = "uniform-test", "siglip2-test"


def make_cache(
    root,
    *,
    num_questions=6,
    num_frames=24,
    size=56,
    unscored=(),
    kind="similarity",
    seed=0,
    notes=None,
):
    rng = np.random.default_rng(seed)
    layout = create_cache(root)
    ensure_settings(layout.frames(FRAMES_KEY), {"fields": {"codec": {"name": "raw"}}})
    codec = FrameCodec("raw")
    writer = FrameWriter(layout, FRAMES_KEY, writer="test")
    records, rows = [], []
    for number in range(num_questions):
        video_id = f"clip{number}.mp4"
        frames = rng.integers(0, 256, (num_frames, size, size, 3), dtype=np.uint8)
        facts = VideoFacts(
            source_index_F=np.arange(num_frames) * 3,
            pts_seconds_F=np.arange(num_frames) * 0.25,
            source_fps=12.0,
            source_num_frames=num_frames * 3,
            duration_seconds=num_frames * 0.25,
            height=size,
            width=size,
            orientation=1,
            codec="h264",
            decoder="pyav",
            notes=(notes or {}).get(video_id, ()),
        )
        encoded = tuple(codec.encode(frame) for frame in frames)
        writer.add(EncodedVideo(video_id, facts, 1, "digest", encoded))
        question_id = f"q{number}"
        spans = ((1.0, 2.0),) if number % 2 else None
        records.append(
            Record(
                question_id,
                video_id,
                "Which colour?",
                "multiple choice",
                ("A. red", "B. blue"),
                "<answer>B</answer>",
                "test",
                spans,
            )
        )
        if question_id not in unscored:
            scores_F = rng.random(num_frames).astype(np.float32)
            made_from = query_digest(records[-1]), frames_checksum(encoded)
            rows.append(QuestionScores(question_id, video_id, scores_F, 3, False, *made_from))
    writer.commit()
    write_questions(layout, records)
    transforms = ["none"] if kind == "weight" else ["none", "zscore", "minmax", "logit"]
    ensure_settings(
        layout.scores(SCORER_KEY),
        {
            "name": "siglip2",
            "kind": kind,
            "allowed_transforms": transforms,
            "fields": {"frames_key": FRAMES_KEY},
            "details": {"logit_scale": 14.0},
        },
    )
    commit_scores(layout, SCORER_KEY, rows, writer="test")
    return root


@pytest.fixture(scope="session")
def cache_root(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cache") / "cache")


@pytest.fixture
def make_config(cache_root):
    def make(**changes):
        options = {
            "model": "strive/lab/weights/qwen2_5_vl",
            "cache": cache_root,
            "num_frames": 8,
            "questions_per_step": 2,
            "prompt_template": "short",
            "max_new_tokens": 8,
        }
        return TrainConfig(**(options | changes))

    return make


@pytest.fixture
def new_cache(tmp_path):
    return lambda **options: make_cache(tmp_path / "cache", **options)
