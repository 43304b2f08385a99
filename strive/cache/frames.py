"""The frame pool: writing parts of it, and reading K frames of one video by mmap.

Pixels lie in `frames-*.arrow` (one record batch a video, one row a frame); `videos-*.parquet` says
where: `offsets` and `lengths` are bytes from the start of the file, so a reader slices a memory map
and touches only the frames that it was asked for.
"""

import hashlib
import io
import mmap
from collections import Counter, OrderedDict
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from PIL import Image

from strive.cache.commit import (
    commit_part,
    flat_lists,
    last_rows,
    new_part_path,
    read_parts,
    read_rows,
)
from strive.cache.layout import CacheLayout, is_plain_name, read_fields, read_settings
from strive.choices import FrameCodecName
from strive.errors import CacheDamageError, CacheError, DiskError, unknown_name
from strive.files import atomic_file, disk_error
from strive.records import VideoFacts

JPEG_QUALITY = 92
FRAME_CODECS: tuple[str, ...] = get_args(FrameCodecName)

VIDEOS_SCHEMA = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("content_digest", pa.string(), nullable=False),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("source_index", pa.list_(pa.int64()), nullable=False),
        pa.field("pts_seconds", pa.list_(pa.float64()), nullable=False),
        pa.field("source_fps", pa.float64(), nullable=False),
        pa.field("source_num_frames", pa.int64(), nullable=False),
        pa.field("duration_seconds", pa.float64(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("codec", pa.string(), nullable=False),
        pa.field("decoder", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("offsets", pa.list_(pa.int64()), nullable=False),
        pa.field("lengths", pa.list_(pa.int64()), nullable=False),
        pa.field("checksum", pa.string(), nullable=False),
        # Nullable: parts that were written before these columns existed read as null.
        pa.field("modified_ns", pa.int64()),
        pa.field("repaired", pa.string()),
        pa.field("orientation", pa.int32()),
        pa.field("way", pa.string()),
        pa.field("notes", pa.list_(pa.string())),
        # Parts of before `orientation` have this in its place: degrees counter-clockwise.
        pa.field("rotation", pa.int32()),
    ]
)
# The facts are columns: {column: field}.
_FACTS = {field.name.removesuffix("_F"): field.name for field in fields(VideoFacts)}
_FRAME_SCHEMA = pa.schema([pa.field("frame", pa.large_binary(), nullable=False)])
_MAX_OPEN_SHARDS = 64


@dataclass(frozen=True, slots=True)
class FrameCodec:
    """How a frame is stored: JPEG (lossy, about a tenth of the size) or raw bytes.

    `fields` go into the frames key.
    """

    name: FrameCodecName = "jpeg"

    def __post_init__(self) -> None:
        if self.name not in FRAME_CODECS:
            raise unknown_name("frame codec", self.name, FRAME_CODECS)

    @property
    def fields(self) -> dict[str, Any]:
        """The codec as JSON values, which the frames key hashes."""
        if self.name == "raw":
            return {"name": "raw"}
        return {"name": "jpeg", "quality": JPEG_QUALITY, "subsampling": "4:4:4"}

    def encode(self, frame_HWC: np.ndarray) -> bytes:
        """Encode one uint8 RGB frame."""
        if self.name == "raw":
            return np.ascontiguousarray(frame_HWC).tobytes()
        out = io.BytesIO()
        # subsampling=0 is 4:4:4: chroma at full size, because colours are what questions ask about
        Image.fromarray(frame_HWC).save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return out.getvalue()

    def decode(self, data: bytes | memoryview, height: int, width: int) -> np.ndarray:
        """Decode one frame to uint8 [H, W, 3]."""
        if self.name == "raw":
            return np.frombuffer(data, np.uint8).reshape(height, width, 3)
        try:
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                frame_HWC = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise CacheDamageError(f"a stored frame is not a readable JPEG ({error})") from None
        if frame_HWC.shape != (height, width, 3):
            raise CacheDamageError(
                f"a stored frame is {frame_HWC.shape[1]}x{frame_HWC.shape[0]}, "
                f"its row says {width}x{height}"
            )
        return frame_HWC


@dataclass(frozen=True, slots=True)
class EncodedVideo:
    """One video ready to be written: its facts and its encoded frames.

    `size_bytes`, `content_digest` and `modified_ns` (a hint alone: copying changes it) are those of
    the file in the video root, repaired or not.
    """

    video_id: str
    facts: VideoFacts
    size_bytes: int
    content_digest: str
    frames: tuple[bytes, ...]
    modified_ns: int | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all frames together."""
        return sum(len(frame) for frame in self.frames)


def frames_checksum(frames: Sequence[bytes | memoryview]) -> str:
    """Return a checksum of a video's stored frames, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for frame in frames:
        digest.update(len(frame).to_bytes(8, "little"))
        digest.update(frame)
    return digest.hexdigest()


class FrameWriter:
    """Writes encoded videos as they come and commits them as one part.

    The pixels go to a hidden file that `commit` renames; `writer` makes the names unique.
    """

    def __init__(self, layout: CacheLayout, frames_key: str, *, writer: str) -> None:
        self.folder = layout.frames(frames_key)
        self.writer = writer
        self.num_bytes = 0
        self._rows: list[dict[str, Any]] = []  # without what is known of the whole shard alone
        self._shard: Path | None = None
        self._stack = ExitStack()
        self._out: pa.ipc.RecordBatchFileWriter | None = None

    def add(self, video: EncodedVideo) -> None:
        """Take one video into the next part.

        Raises:
            DiskError: nothing of this part will exist for readers.
        """
        with self._discarded_on_error():
            if self._out is None:
                self._shard = new_part_path(self.folder, "frames", ".arrow", self.writer)
                temporary = self._stack.enter_context(atomic_file(self._shard))
                sink = self._stack.enter_context(pa.OSFile(str(temporary), "wb"))
                self._out = self._stack.enter_context(pa.ipc.new_file(sink, _FRAME_SCHEMA))
            frames = pa.array(video.frames, pa.large_binary())
            self._out.write_batch(pa.record_batch([frames], schema=_FRAME_SCHEMA))
        facts = {column: getattr(video.facts, name) for column, name in _FACTS.items()}
        self._rows.append(
            {
                **facts,
                "video_id": video.video_id,
                "path": video.video_id,
                "size_bytes": video.size_bytes,
                "content_digest": video.content_digest,
                "modified_ns": video.modified_ns,
                "num_frames": video.facts.num_frames,
                "lengths": [len(frame) for frame in video.frames],
                "checksum": frames_checksum(video.frames),
            }
        )
        self.num_bytes += video.num_bytes

    def commit(self) -> int:
        """Make the part exist: pixels first, then the rows that list them; return its bytes.

        Raises:
            DiskError: nothing of this part exists for readers.
        """
        if self._shard is None:
            return 0
        shard = self._shard
        with self._discarded_on_error():
            self._stack.close()
        rows = [
            {**row, "shard": shard.name, "offsets": offsets}
            for row, offsets in zip(self._rows, _frame_offsets(shard), strict=True)
        ]
        table = pa.Table.from_pylist(rows, schema=VIDEOS_SCHEMA)
        commit_part(self.folder, table, writer=self.writer, prefix="videos")
        self._forget()
        return shard.stat().st_size

    def discard(self) -> None:
        """Forget what was not committed; the hidden file goes."""
        if self._shard is not None:
            error = InterruptedError("discarded")
            with suppress(OSError):
                self._stack.__exit__(type(error), error, None)
        self._forget()

    @contextmanager
    def _discarded_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            shard = self._shard
            self.discard()
            if isinstance(error, DiskError) or shard is None:
                raise
            raise disk_error(shard, error) from error

    def _forget(self) -> None:
        self._rows, self.num_bytes, self._shard, self._out = [], 0, None, None
        self._stack = ExitStack()


def _frame_offsets(shard: Path) -> list[list[int]]:
    """Return, for each batch of an Arrow file, the byte offset of each frame in the file."""
    with pa.memory_map(str(shard)) as source:
        start = source.read_buffer(source.size()).address
        source.seek(0)
        reader = pa.ipc.open_file(source)
        result = []
        for number in range(reader.num_record_batches):
            column = reader.get_batch(number).column(0)
            _, bounds, values = column.buffers()
            offsets = np.frombuffer(bounds, np.int64, len(column) + 1)[:-1]
            result.append((offsets + (values.address - start)).tolist())
        return result


@dataclass(frozen=True, slots=True)
class VideoState:
    """The little that planning needs to know about a cached video.

    `way` and `rotation`: of a row of before there were ways, `way` is None and `rotation` known.
    """

    num_frames: int
    size_bytes: int
    modified_ns: int | None
    content_digest: str
    checksum: str
    repaired: str | None = None
    way: str | None = None
    rotation: int | None = None
    notes: list[str] | None = None


def read_video_states(layout: CacheLayout, frames_key: str) -> dict[str, VideoState]:
    """Read which videos are cached, without their long columns."""
    columns = [field.name for field in fields(VideoState)]
    folder = layout.frames(frames_key)
    rows = read_rows(folder, "videos", VIDEOS_SCHEMA, ["video_id", *columns])
    return {video_id: VideoState(*row) for video_id, *row in rows}


class FrameReader:
    """Reads frames of one frames key; the videos themselves are not needed."""

    def __init__(self, layout: CacheLayout, frames_key: str) -> None:
        self.folder = layout.frames(frames_key)
        self.frames_key = frames_key
        self.settings = read_settings(self.folder)
        codec = read_fields(self.folder).get("codec")
        name = codec.get("name") if isinstance(codec, dict) else None
        if name not in FRAME_CODECS:
            file = self.folder / "settings.json"
            raise CacheDamageError(f"{file} is damaged: its codec is {codec!r}")
        self.codec = FrameCodec(name)
        self._table = read_parts(self.folder, "videos", VIDEOS_SCHEMA).combine_chunks()
        self._rows = last_rows(self._table, "video_id")
        self._maps: OrderedDict[str, mmap.mmap] = OrderedDict()

    @property
    def video_ids(self) -> list[str]:
        """All cached videos, in the order in which they were first committed."""
        return list(self._rows)

    def __contains__(self, video_id: str) -> bool:
        return video_id in self._rows

    def notes(self, video_ids: Container[str]) -> Counter[str]:
        """Count, of these videos, how many have each note (docs/files.md)."""
        notes = self._table.column("notes").to_pylist()
        return Counter(
            note
            for video_id, row in self._rows.items()
            if video_id in video_ids
            for note in notes[row] or ()
        )

    def sizes(self, video_ids: Sequence[str]) -> tuple[list[tuple[int, int]], float]:
        """Return height and width of each video's frames, and the longest duration in seconds."""
        columns = ("height", "width", "duration_seconds")
        height, width, seconds = (self._table.column(name).to_pylist() for name in columns)
        rows = [self._rows[video_id] for video_id in video_ids]
        longest = max((seconds[row] for row in rows), default=0.0)
        return [(height[row], width[row]) for row in rows], longest

    def row(self, video_id: str) -> dict[str, Any]:
        """Return a video's row as stored.

        Raises:
            CacheError: the video is not in the cache.
        """
        if video_id not in self._rows:
            raise CacheError(
                f"video '{video_id}' is not in {self.folder}; cache it with `strive-cli "
                f"precompute`, or see why not with `strive-cli cache failures --cache "
                f"{self.folder.parents[1]}`"
            )
        return self._table.slice(self._rows[video_id], 1).to_pylist()[0]

    def info(self, video_id: str) -> VideoFacts:
        """Return what the cache knows about a video."""
        row = self.row(video_id)
        facts = {name: row[column] for column, name in _FACTS.items()}
        facts["source_index_F"] = np.asarray(row["source_index"], np.int64)
        facts["pts_seconds_F"] = np.asarray(row["pts_seconds"], np.float64)
        # Columns that older rows lack; of those, the orientation follows from the rotation.
        facts["repaired"], facts["way"] = row["repaired"] or "", row["way"] or ""
        facts["notes"] = tuple(row["notes"] or ())
        if row["orientation"] is None:
            facts["orientation"] = {90: 8, 180: 3, 270: 6}.get(row["rotation"], 1)
        return VideoFacts(**facts)

    def read(self, video_id: str, frame_index_K: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return frames as uint8 [K, H, W, 3], in the order asked for; repeats are allowed."""
        row = self.row(video_id)
        indices = [int(index) for index in frame_index_K]
        outside = [index for index in indices if not 0 <= index < row["num_frames"]]
        if outside:
            raise IndexError(
                f"frame_index {outside[0]} of video '{video_id}'; "
                f"its pool has {row['num_frames']} frames"
            )
        height, width = row["height"], row["width"]
        frames_KHWC = np.empty((len(indices), height, width, 3), np.uint8)
        decoded: dict[int, np.ndarray] = {}
        for k, index in enumerate(indices):
            if index not in decoded:
                data = self._bytes(row, index)
                decoded[index] = self.codec.decode(data, height, width)
            frames_KHWC[k] = decoded[index]
        return frames_KHWC

    def close(self) -> None:
        """Unmap all shards."""
        while self._maps:
            self._maps.popitem()[1].close()

    def _bytes(self, row: dict[str, Any], index: int) -> bytes:
        shard = row["shard"]
        path = shard_path(self.folder, shard)
        if shard not in self._maps:
            try:
                with path.open("rb") as file:
                    self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise CacheDamageError(f"{path} is damaged: {error}") from None
            if len(self._maps) > _MAX_OPEN_SHARDS:
                self._maps.popitem(last=False)[1].close()
        self._maps.move_to_end(shard)
        mapped = self._maps[shard]
        start, length = row["offsets"][index], row["lengths"][index]
        if start + length > len(mapped):
            raise CacheDamageError(
                f"{path} is damaged: frame {index} of '{row['video_id']}' "
                f"ends at byte {start + length} of {len(mapped)}"
            )
        return mapped[start : start + length]


class Pools(dict[str, np.ndarray]):
    """Presentation times of every cached video's pool frames: {video_id: pts_seconds [F]}.

    `FrameReader` answers for one video at a time and knows where its pixels lie; an overview of
    100,000 videos reads a few columns instead.
    """

    def __init__(self, layout: CacheLayout, frames_key: str) -> None:
        columns = ["video_id", "pts_seconds", "source_index", "duration_seconds", "checksum"]
        table = read_parts(layout.frames(frames_key), "videos", VIDEOS_SCHEMA, columns)
        self._rows = last_rows(table, "video_id")
        pts, bounds = flat_lists(table, "pts_seconds")
        for video_id, row in self._rows.items():
            self[video_id] = pts[bounds[row] : bounds[row + 1]]
        self._source, self._source_bounds = flat_lists(table, "source_index")
        self._durations = table.column("duration_seconds").to_numpy()
        self._checksums = table.column("checksum").to_pylist()

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


def shard_path(folder: Path, shard: str) -> Path:
    """Return the pixel file that a row lists.

    Raises:
        CacheDamageError: the row lists no file of this folder.
    """
    if not is_plain_name(shard):
        raise CacheDamageError(f"{folder} is damaged: a row lists the pixel file {shard!r}")
    return folder / shard
