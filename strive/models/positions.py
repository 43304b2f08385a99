"""Three-axis position ids (time, height, width): the parts that families share, in plain NumPy.

Computed here once and used by rollouts, log-probs and evaluation alike, because three pieces of
code that each guess them is how trainers come to train on other positions than they sampled with.

Two rules for Qwen2.5-VL (`position_rule`):

* `published`: text after the video starts at the video's maximum position plus 1. The model's
  original code, and what its weights were trained with.
* `transformers`: text after the video starts at the video's start plus max(rows, columns), as
  transformers does since 5.3. For a video that lasts longer than it is wide in tokens, the text
  then lies inside the video's time range.

Qwen3-VL puts a timestamp and a one-slice grid per slice, for which both rules agree.

A completion continues from the prompt's last position plus 1, equal on all three axes; that is
what `generate` of transformers does under either rule.
"""

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from strive.choices import PositionRule
from strive.errors import unknown_name

POSITION_RULES: tuple[str, ...] = get_args(PositionRule)
Grid = tuple[int, int, int]


def next_position(position_ids_3P: NDArray[np.int64]) -> int:
    """Position of the first completion token: the prompt's last position plus 1."""
    return int(position_ids_3P[0, -1]) + 1


def mean_seconds_per_slice(
    pts_seconds_K: NDArray[np.float64], temporal_patch_size: int = 2
) -> float:
    """Time between two slices when the frames are spread evenly over their span, as a float.

    Qwen2.5-VL knows one interval per video: the mean spacing of the frames times the frames per
    slice, 2 x span / (K - 1) with two frames a slice. Its weights saw 2 / fps, of frames at an even
    rate: the same number where frames are 1 / fps apart, and a mean where they are not. A single
    frame has no spacing; with one slice the interval is multiplied by 0 only.
    """
    if len(pts_seconds_K) < 2:
        return 0.0
    span = float(pts_seconds_K[-1]) - float(pts_seconds_K[0])
    return temporal_patch_size * span / (len(pts_seconds_K) - 1)


def check_rule(rule: str) -> None:
    """Raise `UnknownNameError` unless `rule` is one of the two."""
    if rule not in POSITION_RULES:
        raise unknown_name("position_rule", rule, POSITION_RULES)


def grid_positions(times_T: NDArray[np.int64], rows: int, columns: int) -> NDArray[np.int64]:
    """Time, row and column of every merged token, slice by slice in raster order: [3, N]."""
    shape = (len(times_T), rows, columns)
    axes = (times_T[:, None, None], np.arange(rows)[None, :, None], np.arange(columns))
    return np.stack([np.broadcast_to(axis, shape).reshape(-1) for axis in axes])


def runs_of(mask_P: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open [start, end) of each run of true values."""
    padded = np.concatenate([[False], np.asarray(mask_P, dtype=bool), [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
