"""Which stretches of a file have to be decoded to get some of its frames."""

from dataclasses import dataclass, replace

import numpy as np

from strive.video.source import VideoSource


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of stored frames, decoded without a gap.

    `start_rank` and `stop_rank` (inclusive) are places in the order of storage; `anchor_pts` is the
    stamp of the keyframe at which the run starts and `seek_stamp` what to ask the demuxer for, None
    for the start of the file; `wanted_pts` are the stamps of the frames to keep, increasing.
    """

    start_rank: int
    stop_rank: int
    anchor_pts: int | None
    seek_stamp: int | None
    wanted_pts: tuple[int, ...]


def decode_runs(source: VideoSource, indices_F: np.ndarray) -> list[Run]:
    """Return the runs that cover `indices_F` (increasing): each from a keyframe to its last frame.

    A frame needs the keyframe at or before it in display order and all that is stored from there up
    to the frame itself: what is stored later cannot be referred to. (A frame that is shown before a
    keyframe but stored after it may refer to the group of pictures before; its keyframe in display
    order is the start of that group.) Runs that touch or overlap are one.

    Raises:
        ValueError: the source has no stamps.
    """
    if source.pts_N is None:
        raise ValueError("frames without stamps cannot be sought")
    runs: list[Run] = []
    before_F = np.searchsorted(source.keyframes_K, indices_F, side="right") - 1
    for index, before in zip(indices_F.tolist(), before_F.tolist(), strict=True):
        pts = int(source.pts_N[index])
        stop = int(source.decode_rank_N[index])
        start, anchor_pts, seek_stamp = 0, None, None
        if before >= 0:
            anchor = int(source.keyframes_K[before])
            start = int(source.decode_rank_N[anchor])
            if start > 0:
                anchor_pts = int(source.pts_N[anchor])
                seek_stamp = int(source.seek_stamps_K[before])
        if runs and start <= runs[-1].stop_rank + 1:
            last = runs[-1]
            wanted = (*last.wanted_pts, pts)
            runs[-1] = replace(last, stop_rank=max(last.stop_rank, stop), wanted_pts=wanted)
        else:
            runs.append(Run(start, stop, anchor_pts, seek_stamp, (pts,)))
    return runs


def one_run(source: VideoSource, indices_F: np.ndarray) -> list[Run]:
    """Return the run from the start of the file to the last of `indices_F` (increasing).

    Raises:
        ValueError: the source has no stamps.
    """
    if source.pts_N is None:
        raise ValueError("frames without stamps cannot be told apart")
    wanted = tuple(source.pts_N[indices_F].tolist())
    return [Run(0, int(source.decode_rank_N[indices_F].max()), None, None, wanted)]


def split_runs(runs: list[Run], num_parts: int) -> list[list[Run]]:
    """Split runs into at most `num_parts` neighbouring parts of about equally many packets."""
    lengths_R = np.array([run.stop_rank + 1 - run.start_rank for run in runs])
    middles_R = np.cumsum(lengths_R) - lengths_R / 2
    part_R = (middles_R * num_parts / max(lengths_R.sum(), 1)).astype(int)
    parts = [[run for run, p in zip(runs, part_R, strict=True) if p == i] for i in range(num_parts)]
    return [part for part in parts if part]
