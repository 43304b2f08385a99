"""Pools that bench/jpeg reads: of lab clips and of camera clips, raw and through JPEG."""

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bench.clips import camera_clip
from bench.harness import BUILD
from strive.lab.world import build_world
from strive.records import Record, read_records
from strive.video.decode import decode_frames
from strive.video.frame_plan import FramePlan

QUALITIES = (92, 95)
MAX_PIXELS = 128 * 28 * 28
CAMERA_QUESTIONS = {
    "bigbuckbunny": [
        ("What colour is the grass?", ("A. red", "B. green", "C. blue", "D. yellow"), "B"),
        ("What does the rabbit do after it has left the hole?",
         ("A. It sleeps", "B. It eats", "C. It stretches its arms", "D. It digs"), "C"),
    ],
    "bikes": [
        ("What is written on the sign of the car?",
         ("A. BUS", "B. POLICE", "C. SHOP", "D. TAXI"), "D"),
        ("Where does the bicycle with the covered saddle stand?",
         ("A. At a wall", "B. In a garage", "C. On a bridge", "D. In a field"), "A"),
    ],
    "carphone_pristine": [
        ("What colour is the man's bow tie?",
         ("A. red", "B. green", "C. blue", "D. yellow"), "A"),
        ("Where does the man sit?", ("A. In a train", "B. In a car", "C. At home",
         "D. In a boat"), "B"),
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Pool:
    """One clip's frames with its questions."""

    source: str
    frames_FHWC: np.ndarray
    pts_seconds_F: np.ndarray
    records: tuple[Record, ...]


def through_jpeg(frames_FHWC: np.ndarray, quality: int) -> np.ndarray:
    """Encode and decode every frame, chroma at full size, as the cache's codec does at 92."""
    out = []
    for frame_HWC in frames_FHWC:
        data = io.BytesIO()
        Image.fromarray(frame_HWC).save(data, "JPEG", quality=quality, subsampling=0)
        out.append(np.asarray(Image.open(data).convert("RGB")))
    return np.stack(out)


def lab_pools(num_clips: int) -> Iterator[Pool]:
    """Yield pools of a small lab world."""
    root = BUILD / f"jpeg-lab-{num_clips}"
    build_world(root, num_clips=num_clips, seed=11)
    by_video: dict[str, list[Record]] = defaultdict(list)
    for split in ("train", "held_out"):
        for record in read_records([root / f"{split}.jsonl"]).records:
            by_video[record.video_id].append(record)
    for video_id, records in sorted(by_video.items()):
        yield _pool("lab", root / video_id, records)


def camera_pools() -> Iterator[Pool]:
    """Yield pools of the three camera clips, with questions written for them."""
    for name, questions in CAMERA_QUESTIONS.items():
        records = [
            Record(f"{name}-{n}", name, text, "multiple choice", options, _answer(letter))
            for n, (text, options, letter) in enumerate(questions)
        ]
        yield _pool("camera", camera_clip(name), records)


def _answer(letter: str) -> str:
    return f"<answer>{letter}</answer>"


def _pool(source: str, path: Path, records: Sequence[Record]) -> Pool:
    video = decode_frames(path, FramePlan("uniform", 64), max_pixels=MAX_PIXELS)
    return Pool(source, video.frames_FHWC, video.facts.pts_seconds_F, tuple(records))
