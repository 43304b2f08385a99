"""Whether the videos are still those that a cache was made from; nothing is decoded."""

from dataclasses import dataclass
from pathlib import Path

from strive.cache.commit import last_rows, read_parts
from strive.cache.frames import VIDEOS_SCHEMA
from strive.cache.layout import open_cache
from strive.errors import MissingInputError, OutsideRootError
from strive.files import content_digest, resolve_video
from strive.progress import show_progress


@dataclass(frozen=True, slots=True)
class VideoCheck:
    """The cached videos by what their files are today; `missing` ones are not under the root.

    Both lists are in order of ids, whatever order the videos were decoded in.
    """

    num_same: int
    changed: tuple[str, ...]
    missing: tuple[str, ...]


def check_videos(cache: Path, video_root: Path) -> VideoCheck:
    """Digest the file of every cached video again and compare with what was decoded.

    A changed video makes its frames and scores stale; `precompute` decodes it anew. A missing one
    is no fault: the cache serves without its videos.

    Raises:
        CacheError: there is no cache.
        MissingInputError: there is no such folder.
    """
    layout = open_cache(cache)
    if not video_root.is_dir():
        raise MissingInputError(f"no folder at --video-root {video_root}")
    digests: dict[str, set[str]] = {}
    for key in layout.frames_keys():
        columns = ["video_id", "content_digest"]
        table = read_parts(layout.frames(key), "videos", VIDEOS_SCHEMA, columns)
        values = table.column("content_digest").to_pylist()
        for video_id, row in last_rows(table, "video_id").items():
            digests.setdefault(video_id, set()).add(values[row])
    changed, missing = [], []
    with show_progress("videos", len(digests), "videos") as bar:
        for video_id, wanted in sorted(digests.items()):
            try:
                path = resolve_video(video_root, video_id)
                # Reading a pipe that took a video's place would wait for ever.
                found = content_digest(path)[1] if path.is_file() else None
            except (OSError, OutsideRootError, RuntimeError):  # RuntimeError: a loop of links
                found = None
            if found is None:
                missing.append(video_id)
            elif wanted != {found}:
                # Two sets of frames can have been made from two states of a file.
                changed.append(video_id)
            bar.advance()
    return VideoCheck(len(digests) - len(changed) - len(missing), tuple(changed), tuple(missing))
