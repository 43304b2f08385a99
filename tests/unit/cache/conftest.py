import sys
from pathlib import Path

import numpy as np
import pytest

from strive.cache.frames import EncodedVideo, FrameCodec, FrameWriter, read_video_states
from strive.cache.layout import CacheLayout, create_cache, ensure_settings, make_key
from strive.cache.scores import QuestionScores, VideoEmbeddings, commit_embeddings, commit_scores
from strive.records import VideoFacts

# Helper modules of these tests are imported as `video.coded_clips` and so on.
sys.path.insert(0, str(Path(__file__).parents[1]))


def pictures(video_id: str, num_frames: int = 5) -> np.ndarray:
    """Smooth pictures, which JPEG keeps well, different for each video and frame."""
    rng = np.random.default_rng(sum(video_id.encode()))
    corners = rng.integers(0, 256, (num_frames, 2, 2, 3)).astype(np.float64)
    down, across = np.linspace(0, 1, 24)[:, None, None], np.linspace(0, 1, 32)[None, :, None]
    top = corners[:, 0, :1, None] * (1 - across) + corners[:, 0, 1:, None] * across
    low = corners[:, 1, :1, None] * (1 - across) + corners[:, 1, 1:, None] * across
    return (top * (1 - down) + low * down).astype(np.uint8)


def encoded(video_id: str, codec: FrameCodec, num_frames: int = 5) -> EncodedVideo:
    frames_FHWC = pictures(video_id, num_frames)
    facts = VideoFacts(
        source_index_F=np.arange(num_frames) * 3,
        pts_seconds_F=np.arange(num_frames) * 0.12,
        source_fps=25.0,
        source_num_frames=3 * num_frames,
        duration_seconds=0.12 * num_frames,
        height=24,
        width=32,
        orientation=1,
        codec="h264",
        decoder="pyav",
    )
    frames = tuple(codec.encode(frame) for frame in frames_FHWC)
    return EncodedVideo(video_id, facts, 1000, "digest", frames)


def add_frames(layout: CacheLayout, codec_name: str, *video_ids: str, num_frames: int = 5) -> str:
    codec = FrameCodec(codec_name)  # type: ignore[arg-type]
    fields = {"codec": codec.fields, "max_pixels": 100}
    key = make_key(f"uniform-{codec_name}", fields)
    ensure_settings(layout.frames(key), {"fields": fields})
    writer = FrameWriter(layout, key, writer="test")
    for video_id in video_ids:
        writer.add(encoded(video_id, codec, num_frames))
    writer.commit()
    return key


def add_scorer(layout: CacheLayout, name: str, frames_key: str, *question_ids: str) -> str:
    """Score question `q` of video `v`, for `q@v`."""
    fields = {"frames_key": frames_key, "model": name}
    key = make_key(name, fields)
    settings = {
        "name": name,
        "kind": "similarity",
        "allowed_transforms": ["none"],
        "fields": fields,
    }
    ensure_settings(layout.scores(key), settings)
    states = read_video_states(layout, frames_key)
    rows = []
    for number, text in enumerate(question_ids):
        video_id = text.partition("@")[2]
        scores_F = np.arange(5, dtype=np.float32) / 7 + number
        made_from = "query", states[video_id].checksum
        is_odd = number % 2 == 1
        rows.append(QuestionScores(text, video_id, scores_F, 4 + number, is_odd, *made_from))
    commit_scores(layout, key, rows, writer="test")
    videos = [
        VideoEmbeddings(video_id, np.eye(5, 3, dtype=np.float16), state.checksum)
        for video_id, state in states.items()
    ]
    commit_embeddings(layout, key, videos, writer="test")
    return key


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    return create_cache(tmp_path / "cache")
