"""Measures lab models on clips decoded from their real files, never on in-memory renderings.

Axis legend: F pool frames (64), V videos, H height and width.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes.frames import shrink
from strive.lab.world import SPLITS, build_world
from strive.records import Record, read_records
from strive.statistics import roc_auc

POOL_FRAMES = 64


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """The frame pool of one clip.

    Args:
        frames_F: uint8 RGB [F, H, W, 3].
        pts_seconds_F: presentation times.
        source_index_F: frame numbers in the file.
    """

    frames_F: np.ndarray
    pts_seconds_F: np.ndarray
    source_index_F: np.ndarray

    def evidence_F(self, record: Record) -> np.ndarray:
        """Return which pool frames lie in the record's evidence spans."""
        inside_F = np.zeros(len(self.pts_seconds_F), dtype=bool)
        for start, end in record.evidence_spans_seconds or ():
            inside_F |= (self.pts_seconds_F >= start) & (self.pts_seconds_F < end)
        return inside_F

    def square_frames(self, size: int) -> Tensor:
        """Return the frames squashed to `size` squared, uint8 [F, size, size, 3]."""
        return shrink(torch.from_numpy(self.frames_F), size)


def decode_clip(path: Path) -> DecodedClip:
    """Decode the uniform 64-frame plan: middles of 64 equal parts of the file's frames."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    num = len(reader)
    index_F = np.floor((np.arange(POOL_FRAMES) + 0.5) * num / POOL_FRAMES).astype(np.int64)
    frames_F = reader.get_batch(index_F).asnumpy()
    pts_seconds_F = reader.get_frame_timestamp(index_F)[:, 0].astype(np.float64)
    return DecodedClip(frames_F, pts_seconds_F, index_F)


def world_questions(
    root: Path, *, num_clips: int, seed: int, splits: tuple[str, ...] = ("held_out", "test")
) -> tuple[list[Record], dict[str, DecodedClip]]:
    """Build (or reuse) a world and decode the clips of the named splits."""
    assert set(splits) <= set(SPLITS)
    world = build_world(root, num_clips=num_clips, seed=seed, workers=1)
    records = list(read_records([world.records_file(split) for split in splits]).records)
    videos = sorted({record.video_id for record in records})
    return records, {video: decode_clip(root / video) for video in videos}


def scorer_quality(
    scores: list[np.ndarray], records: list[Record], clips: dict[str, DecodedClip]
) -> dict[str, float]:
    """Summarise how well scores [F] of each record find its evidence frames.

    Returns:
        Mean AUC over all questions, over those with one short span, the mean score gap between
        evidence and other frames, and the standard deviation of the scores within a video.
    """
    areas: list[float] = []
    local_areas: list[float] = []
    gaps: list[float] = []
    for scores_F, record in zip(scores, records, strict=True):
        evidence_F = clips[record.video_id].evidence_F(record)
        if not 0 < evidence_F.sum() < len(evidence_F):
            continue
        area = float(roc_auc(scores_F, evidence_F))
        areas.append(area)
        if record.data_source not in ("lab/order", "lab/count"):
            local_areas.append(area)
            gaps.append(float(scores_F[evidence_F].mean() - scores_F[~evidence_F].mean()))
    return {
        "num_questions": len(areas),
        "auc": round(float(np.mean(areas)), 4),
        "auc_local_questions": round(float(np.mean(local_areas)), 4),
        "score_gap": round(float(np.mean(gaps)), 4),
        "score_std": round(float(np.mean([scores_F.std() for scores_F in scores])), 4),
    }
