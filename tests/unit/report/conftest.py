"""A real tiny cache, made with the cache's own writers: three videos, five questions."""

from pathlib import Path

import numpy as np
import pytest

from strive.cache.failures import FailureRow, commit_failures
from strive.cache.frames import EncodedVideo, FrameCodec, FrameWriter, frames_checksum
from strive.cache.layout import create_cache, ensure_settings
from strive.cache.questions import write_questions
from strive.cache.scores import QuestionScores, commit_scores, query_digest
from strive.records import Record, VideoFacts

FRAMES_KEY = "uniform-64-test"
HOSTILE = '<script>alert("x")</script> & "quoted"'


def picture(frame: int, num_frames: int, height: int, width: int) -> np.ndarray:
    """A gradient with a square that moves from left to right."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 90)], axis=-1)
    left = int(frame / max(1, num_frames - 1) * (width - 20))
    image[20:40, left : left + 20] = (250, 220, 40)
    return image.astype(np.uint8)


def encoded_video(
    video_id: str, num_frames: int, height: int = 72, width: int = 96
) -> EncodedVideo:
    pts_seconds_F = np.arange(num_frames) * 0.25
    facts = VideoFacts(
        source_index_F=np.arange(num_frames) * 5,
        pts_seconds_F=pts_seconds_F,
        source_fps=20.0,
        source_num_frames=num_frames * 5,
        duration_seconds=num_frames * 0.25,
        height=height,
        width=width,
        orientation=1,
        codec="h264",
        decoder="pyav",
    )
    codec = FrameCodec("jpeg")
    frames = tuple(codec.encode(picture(i, num_frames, height, width)) for i in range(num_frames))
    return EncodedVideo(video_id, facts, 1000, "digest", frames)


def record(
    question_id: str, video_id: str, problem: str, spans: tuple[tuple[float, float], ...] | None
) -> Record:
    return Record(
        question_id=question_id,
        video_id=video_id,
        problem=problem,
        problem_type="multiple choice",
        options=("A. red", "B. <b>green</b>", "C. blue", "D. yellow"),
        solution="<answer>B</answer>",
        data_source="test/colour",
        evidence_spans_seconds=spans,
    )


RECORDS = (
    record("1", "clips/a.mp4", "What colour is the square?", ((5.25, 5.75),)),
    record("2", "clips/a.mp4", HOSTILE, None),
    record("3", "clips/b.mp4", "Which corner?", ((0.0, 0.5),)),
    record("4", "clips/broken.mp4", "Who?", None),
    record("5", "clips/later.mp4", "When?", None),
)


def scores_of(question_id: str) -> np.ndarray:
    if question_id == "1":
        # Evidence [5.25, 5.75) s is frames 21 and 22: they stand 0.5 above the rest.
        scores_F = 0.1 + 0.02 * np.sin(np.arange(64))
        scores_F[21:23] += 0.5
        return scores_F
    if question_id == "2":
        return np.full(64, 0.1)
    return np.linspace(0.3, 0.1, 9)


def score_row(record: Record, checksum: str) -> QuestionScores:
    return QuestionScores(
        record.question_id,
        record.video_id,
        scores_of(record.question_id),
        12,
        record.question_id == "2",
        query_digest(record),
        checksum,
    )


def write_cache(root: Path, *, scored: tuple[str, ...] = ("1", "2", "3")) -> Path:
    layout = create_cache(root)
    write_questions(layout, RECORDS)
    frames_settings = {"fields": {"codec": FrameCodec("jpeg").fields, "frames": 64}}
    ensure_settings(layout.frames(FRAMES_KEY), frames_settings)
    videos = [encoded_video("clips/a.mp4", 64), encoded_video("clips/b.mp4", 9)]
    checksums = {video.video_id: frames_checksum(video.frames) for video in videos}
    writer = FrameWriter(layout, FRAMES_KEY, writer="s0of1")
    for video in videos:
        writer.add(video)
    writer.commit()
    broken = "clips/broken.mp4"
    row = FailureRow(broken, broken, "decode", "not_a_video", "no header", 0.1, FRAMES_KEY)
    commit_failures(layout, [row], writer="s0of1")
    if scored:
        settings = {
            "name": "siglip2",
            "kind": "similarity",
            "allowed_transforms": ["none", "zscore", "minmax", "logit"],
            "fields": {"frames_key": FRAMES_KEY, "model": "test"},
        }
        ensure_settings(layout.scores("siglip2-test"), settings)
        rows = [score_row(r, checksums[r.video_id]) for r in RECORDS if r.question_id in scored]
        commit_scores(layout, "siglip2-test", rows, writer="s0of1")
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "cache")
