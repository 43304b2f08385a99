"""The pools of all videos at once, without pixels: what looking at a whole cache needs.

`FrameReader` answers for one video at a time and knows where its pixels lie; an overview of 100,000
videos reads a few columns instead.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from strive.cache.commit import last_rows, read_parts
from strive.cache.frames import VIDEOS_SCHEMA
from strive.cache.layout import CacheLayout

_COLUMNS = ["video_id", "num_frames", "pts_seconds", "source_index", "duration_seconds", "checksum"]


class Pools(Mapping[str, np.ndarray]):
    """Presentation times of every cached video's pool frames: {video_id: pts_seconds [F]}."""

    def __init__(self, layout: CacheLayout, frames_key: str) -> None:
        table = read_parts(layout.frames(frames_key), "videos", VIDEOS_SCHEMA, _COLUMNS)
        self._rows = last_rows(table, "video_id")
        self._pts, self._bounds = flat_lists(table, "pts_seconds")
        self._source, self._source_bounds = flat_lists(table, "source_index")
        self._durations = table.column("duration_seconds").to_numpy()
        self._checksums = table.column("checksum").to_pylist()

    def __getitem__(self, video_id: str) -> np.ndarray:
        row = self._rows[video_id]
        return self._pts[self._bounds[row] : self._bounds[row + 1]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._rows

    def num_frames(self, video_id: str) -> int:
        """Return the size of a video's pool."""
        row = self._rows[video_id]
        return int(self._bounds[row + 1] - self._bounds[row])

    def has_repeats(self, video_id: str) -> bool:
        """Whether a frame of the file stands in the pool more than once."""
        row = self._rows[video_id]
        index_F = self._source[self._source_bounds[row] : self._source_bounds[row + 1]]
        return len(np.unique(index_F)) < len(index_F)

    def duration_seconds(self, video_id: str) -> float:
        """Return the length of a video."""
        return float(self._durations[self._rows[video_id]])

    def checksum(self, video_id: str) -> str:
        """Return the checksum of a video's stored frames."""
        return str(self._checksums[self._rows[video_id]])


def flat_lists(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of a list column behind one another, and where each row begins."""
    chunks = table.column(column).chunks
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks if len(chunk)]
    lengths = [chunk.value_lengths().to_numpy() for chunk in chunks if len(chunk)]
    if not values:
        return np.empty(0), np.zeros(1, np.int64)
    bounds = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    return np.concatenate(values), bounds
