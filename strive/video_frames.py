"""K frames of one video with their times: what a policy is asked about."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class VideoFrames:
    """K frames of one video with their true places in the source.

    Frames are RGB. `source_index_K` counts frames of the file, from which `pts_seconds_K` follow
    only at a constant rate; `source_fps` is the file's mean rate.
    """

    frames_KHWC: NDArray[np.uint8]
    pts_seconds_K: NDArray[np.float64]
    source_index_K: NDArray[np.int64]
    source_fps: float
    source_num_frames: int
    duration_seconds: float
