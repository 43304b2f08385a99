"""The frame pool: writing parts of it, and reading K frames of one video by mmap.

Pixels lie in `frames-*.arrow` (one record batch a video, one row a frame); `videos-*.parquet` says
where: `offsets` and `lengths` are bytes from the start of the file, so a reader slices a memory map
and touches only the frames that it was asked for.
"""

import hashlib
import mmap
from collections import Counter, OrderedDict
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from strive.cache.codec import FRAME_CODECS, FrameCodec
from strive.cache.commit import commit_parquet, last_rows, list_parts, new_part_path, read_parts
from strive.cache.layout import CacheLayout, is_plain_name, read_fields, read_settings
from strive.errors import CacheDamageError, CacheError, DiskError
from strive.files import atomic_file, disk_error

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
_FRAME_SCHEMA = pa.schema([pa.field("frame", pa.large_binary(), nullable=False)])
_MAX_OPEN_SHARDS = 64


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What the cache knows about one video.

    `source_index_F` counts in the file, `pts_seconds_F` from the file's first frame; `height` and
    `width` are those of the pool's frames, as shown and resized; `codec` is the video's;
    `orientation` is numbered as EXIF does (1: as stored); `way` is `index` where packets told the
    pictures, `decode` where the whole file was decoded; `notes` say what is odd about the file.
    `repaired` is "" for a file that was read as it is, else `remuxed` or `transcoded`: then frames
    are counted in the repaired copy.
    """

    video_id: str
    num_frames: int
    source_index_F: np.ndarray
    pts_seconds_F: np.ndarray
    source_fps: float
    source_num_frames: int
    duration_seconds: float
    height: int
    width: int
    orientation: int
    codec: str
    decoder: str
    repaired: str = ""
    way: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EncodedVideo:
    """One video ready to be written: its facts and its encoded frames.

    `size_bytes`, `content_digest` and `modified_ns` (a hint alone: copying changes it) are those of
    the file in the video root, repaired or not.
    """

    info: VideoInfo
    path: str
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
        self._videos: list[EncodedVideo] = []  # without their frames
        self._lengths: list[list[int]] = []
        self._checksums: list[str] = []
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
                self._open()
            assert self._out is not None
            frames = pa.array(video.frames, pa.large_binary())
            self._out.write_batch(pa.record_batch([frames], schema=_FRAME_SCHEMA))
        self._videos.append(replace(video, frames=()))
        self._lengths.append([len(frame) for frame in video.frames])
        self._checksums.append(frames_checksum(video.frames))
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
            {**_row(video, shard.name, offsets), "lengths": lengths, "checksum": checksum}
            for video, offsets, lengths, checksum in zip(
                self._videos, _frame_offsets(shard), self._lengths, self._checksums, strict=True
            )
        ]
        table = pa.Table.from_pylist(rows, schema=VIDEOS_SCHEMA)
        commit_parquet(new_part_path(self.folder, "videos", ".parquet", self.writer), table)
        self._forget()
        return shard.stat().st_size

    def discard(self) -> None:
        """Forget what was not committed; the hidden file goes."""
        if self._shard is not None:
            error = InterruptedError("discarded")
            with suppress(OSError):
                self._stack.__exit__(type(error), error, None)
        self._forget()

    def _open(self) -> None:
        self._shard = new_part_path(self.folder, "frames", ".arrow", self.writer)
        temporary = self._stack.enter_context(atomic_file(self._shard))
        sink = self._stack.enter_context(pa.OSFile(str(temporary), "wb"))
        self._out = self._stack.enter_context(pa.ipc.new_file(sink, _FRAME_SCHEMA))

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
        self._videos, self._lengths, self._checksums = [], [], []
        self.num_bytes, self._shard, self._out = 0, None, None
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


def _row(video: EncodedVideo, shard: str, offsets: list[int]) -> dict[str, Any]:
    info = video.info
    return {
        "video_id": info.video_id,
        "path": video.path,
        "size_bytes": video.size_bytes,
        "content_digest": video.content_digest,
        "num_frames": info.num_frames,
        "source_index": info.source_index_F.tolist(),
        "pts_seconds": info.pts_seconds_F.tolist(),
        "source_fps": info.source_fps,
        "source_num_frames": info.source_num_frames,
        "duration_seconds": info.duration_seconds,
        "height": info.height,
        "width": info.width,
        "codec": info.codec,
        "decoder": info.decoder,
        "shard": shard,
        "offsets": offsets,
        "lengths": [len(frame) for frame in video.frames],
        "checksum": frames_checksum(video.frames),
        "modified_ns": video.modified_ns,
        "repaired": info.repaired,
        "orientation": info.orientation,
        "way": info.way,
        "notes": list(info.notes),
        "rotation": None,
    }


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
    table = read_parts(layout.frames(frames_key), "videos", VIDEOS_SCHEMA, ["video_id", *columns])
    values = [table.column(name).to_pylist() for name in columns]
    video_ids = table.column("video_id").to_pylist()
    return {
        video_id: VideoState(*row)
        for video_id, row in zip(video_ids, zip(*values, strict=True), strict=True)
    }


class FrameReader:
    """Reads frames of one frames key; the videos themselves are not needed."""

    def __init__(self, layout: CacheLayout, frames_key: str) -> None:
        self.folder = layout.frames(frames_key)
        self.frames_key = frames_key
        self.settings = read_settings(self.folder)
        self.codec = _codec_of(self.folder)
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

    def info(self, video_id: str) -> VideoInfo:
        """Return what the cache knows about a video."""
        row = self.row(video_id)
        return VideoInfo(
            video_id=video_id,
            num_frames=row["num_frames"],
            source_index_F=np.asarray(row["source_index"], np.int64),
            pts_seconds_F=np.asarray(row["pts_seconds"], np.float64),
            source_fps=row["source_fps"],
            source_num_frames=row["source_num_frames"],
            duration_seconds=row["duration_seconds"],
            height=row["height"],
            width=row["width"],
            orientation=_orientation_of(row),
            codec=row["codec"],
            decoder=row["decoder"],
            repaired=row["repaired"] or "",
            way=row["way"] or "",
            notes=tuple(row["notes"] or ()),
        )

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

    def read_encoded(self, video_id: str) -> list[bytes]:
        """Return all frames of a video as stored (copied out of the memory map)."""
        row = self.row(video_id)
        return [bytes(self._bytes(row, index)) for index in range(row["num_frames"])]

    def close(self) -> None:
        """Unmap all shards."""
        while self._maps:
            self._maps.popitem()[1].close()

    def _bytes(self, row: dict[str, Any], index: int) -> bytes:
        mapped = self._map(row["shard"])
        start, length = row["offsets"][index], row["lengths"][index]
        if start + length > len(mapped):
            raise CacheDamageError(
                f"{self.folder / row['shard']} is damaged: frame {index} of '{row['video_id']}' "
                f"ends at byte {start + length} of {len(mapped)}"
            )
        return mapped[start : start + length]

    def _map(self, shard: str) -> mmap.mmap:
        if shard in self._maps:
            self._maps.move_to_end(shard)
            return self._maps[shard]
        path = shard_path(self.folder, shard)
        try:
            with path.open("rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CacheDamageError(f"{path} is damaged: {error}") from None
        if len(self._maps) > _MAX_OPEN_SHARDS:
            self._maps.popitem(last=False)[1].close()
        return self._maps[shard]


def _orientation_of(row: dict[str, Any]) -> int:
    """Return a row's orientation; that of an older row follows from its rotation."""
    known = row["orientation"]
    return known if known is not None else {90: 8, 180: 3, 270: 6}.get(row["rotation"], 1)


def _codec_of(folder: Path) -> FrameCodec:
    codec = read_fields(folder).get("codec")
    name = codec.get("name") if isinstance(codec, dict) else None
    if name not in FRAME_CODECS:
        raise CacheDamageError(f"{folder / 'settings.json'} is damaged: its codec is {codec!r}")
    return FrameCodec(name)


def shard_path(folder: Path, shard: str) -> Path:
    """Return the pixel file that a row lists.

    Raises:
        CacheDamageError: the row lists no file of this folder.
    """
    if not is_plain_name(shard):
        raise CacheDamageError(f"{folder} is damaged: a row lists the pixel file {shard!r}")
    return folder / shard


def frame_shards(layout: CacheLayout, frames_key: str) -> list[Path]:
    """Return the pixel files of a frames key."""
    return list_parts(layout.frames(frames_key), "frames", ".arrow")
