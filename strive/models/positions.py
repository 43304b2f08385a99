"""Three-axis position ids (time, height, width) of a prompt with one video, in plain NumPy.

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

import numpy as np
from numpy.typing import NDArray

from strive.choices import PositionRule
from strive.errors import ModelError, unknown_name

POSITION_RULES: tuple[str, ...] = ("published", "transformers")
Grid = tuple[int, int, int]


def slice_time_positions(
    num_slices: int, seconds_per_slice: float, tokens_per_second: float, rule: PositionRule
) -> NDArray[np.int64]:
    """Time position of each slice: floor(slice x seconds_per_slice x tokens_per_second).

    The interval stays a float until after the product: cast earlier, anything under one second
    would put all slices at time 0. The product is taken in float32 and in the order of the code
    that each rule names, so that a value on the edge of an integer falls to the same side.
    """
    check_rule(rule)
    slices_T = np.arange(num_slices, dtype=np.float32)
    seconds, rate = np.float32(seconds_per_slice), np.float32(tokens_per_second)
    times_T = slices_T * (seconds * rate) if rule == "transformers" else slices_T * seconds * rate
    return times_T.astype(np.int64)


def qwen2_5_vl_positions(
    video_mask_P: NDArray[np.bool_],
    grid_thw: Grid,
    *,
    merge_size: int,
    tokens_per_second: float,
    seconds_per_slice: float,
    rule: PositionRule = "published",
) -> NDArray[np.int64]:
    """Position ids [3, P] of a Qwen2.5-VL prompt: text, one run of video tokens, text.

    `grid_thw` counts patches (slices, rows, columns) before merging; `seconds_per_slice` is the
    time between two slices of two frames each.
    """
    start, end = _single_run(video_mask_P)
    slices, rows, columns = _merged_grid(grid_thw, merge_size, end - start)
    times_T = slice_time_positions(slices, seconds_per_slice, tokens_per_second, rule)
    positions_3P = np.empty((3, len(video_mask_P)), dtype=np.int64)
    positions_3P[:, :start] = np.arange(start)
    positions_3P[:, start:end] = start + _grid_positions(times_T, rows, columns)
    after = start + max(rows, columns)
    if rule == "published":
        after = int(positions_3P[:, start:end].max()) + 1
    positions_3P[:, end:] = after + np.arange(len(video_mask_P) - end)
    return positions_3P


def qwen3_vl_positions(
    video_mask_P: NDArray[np.bool_], grid_thw: Grid, *, merge_size: int
) -> NDArray[np.int64]:
    """Position ids [3, P] of a Qwen3-VL prompt: each slice is a run of its own between timestamps.

    Within a slice the time axis stands still; the text after it starts at the slice's start plus
    max(rows, columns), which is its maximum plus 1.
    """
    runs = _runs(video_mask_P)
    slices, rows, columns = grid_thw[0], grid_thw[1] // merge_size, grid_thw[2] // merge_size
    if len(runs) != slices or any(end - start != rows * columns for start, end in runs):
        raise ModelError(
            f"the prompt holds {[end - start for start, end in runs]} video tokens in "
            f"{len(runs)} slices, but the frames make {slices} slices of {rows * columns} tokens; "
            "the processor and the frames disagree"
        )
    grid_3N = _grid_positions(np.zeros(1, dtype=np.int64), rows, columns)
    positions_3P = np.empty((3, len(video_mask_P)), dtype=np.int64)
    cursor = position = 0
    for start, end in runs:
        positions_3P[:, cursor:start] = position + np.arange(start - cursor)
        position += start - cursor
        positions_3P[:, start:end] = position + grid_3N
        position += max(rows, columns)
        cursor = end
    positions_3P[:, cursor:] = position + np.arange(len(video_mask_P) - cursor)
    return positions_3P


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


def _grid_positions(times_T: NDArray[np.int64], rows: int, columns: int) -> NDArray[np.int64]:
    """Time, row and column of every merged token, slice by slice in raster order: [3, N]."""
    shape = (len(times_T), rows, columns)
    axes = (times_T[:, None, None], np.arange(rows)[None, :, None], np.arange(columns))
    return np.stack([np.broadcast_to(axis, shape).reshape(-1) for axis in axes])


def _runs(mask_P: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open [start, end) of each run of true values."""
    padded = np.concatenate([[False], np.asarray(mask_P, dtype=bool), [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _single_run(mask_P: NDArray[np.bool_]) -> tuple[int, int]:
    runs = _runs(mask_P)
    if len(runs) != 1:
        raise ModelError(
            f"the prompt holds {len(runs)} runs of video tokens where one is expected; text with "
            "a video placeholder in it cannot be used"
        )
    return runs[0]


def _merged_grid(grid_thw: Grid, merge_size: int, num_tokens: int) -> Grid:
    slices, rows, columns = grid_thw[0], grid_thw[1] // merge_size, grid_thw[2] // merge_size
    if slices * rows * columns != num_tokens:
        raise ModelError(
            f"the prompt holds {num_tokens} video tokens, but the frames make {slices} x {rows} x "
            f"{columns}; the processor and the frames disagree"
        )
    return slices, rows, columns
