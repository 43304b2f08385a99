"""K frames of one video with their times: what a policy is asked about."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class VideoFrames:
    """K frames of one video with their true places in the source.

    Frames are RGB. `pts_seconds_K` are the times at which they are shown, from the file's first
    frame. `source_index_K` counts frames of the file, from which no time follows: a file's rate
    may vary.
    """

    frames_KHWC: NDArray[np.uint8]
    pts_seconds_K: NDArray[np.float64]
    source_index_K: NDArray[np.int64]
