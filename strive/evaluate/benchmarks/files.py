"""Published files as they lie on disk: rows of questions, videos by name, zips half unpacked.

A data root may be the folder into which a dataset was downloaded, the folder above it, or the
`$HF_HOME` in which lmms-eval (`$HF_HOME/<cache_dir>`) and VLMEvalKit (the hub's snapshot) leave it.
"""

import errno
import json
import os
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from strive.errors import MissingInputError, RecordsError
from strive.files import has_video, locate_video
from strive.records import iter_rows, video_id_of

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")
"""Of one video under several of them the first is taken; case does not matter."""
MAC_FOLDER = "__MACOSX"
"""What macOS adds to a zip: names of videos, and no videos."""
VIDEO_R1_DATASET = "Video-R1/Video-R1-eval"
_VIDEO_R1_FOLDERS = ("Evaluation", "src/r1-v/Evaluation", "Video-R1/src/r1-v/Evaluation")
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the files of a benchmark may be under a data root, and where they are published."""

    datasets: tuple[str, ...]
    """Ids on huggingface.co: the one that messages name, then its mirrors."""
    size: str
    """What is to be downloaded, such as "100 GB"."""
    folders: tuple[str, ...] = ()
    """More names of its folder, such as lmms-eval's under $HF_HOME."""
    videos: tuple[str, ...] = ("videos", "data", "video", "")
    """Folders of videos (globs) in the dataset's; "" is the dataset's folder itself."""
    archives: tuple[str, ...] = ("*.zip", "*/*.zip")
    """Zips (globs) in the dataset's folder."""
    video_r1: str = ""
    """Its file in Video-R1-eval, if that has one."""

    def places(self, root: Path) -> tuple[Path, ...]:
        """Return the folders under a data root that can hold the dataset, the likeliest first."""
        datasets, names = list(self.datasets), [*self.folders]
        if self.video_r1:
            datasets.append(VIDEO_R1_DATASET)
            names.extend(_VIDEO_R1_FOLDERS)
        names[:0] = [name for dataset in datasets for name in (dataset, dataset.split("/")[1])]
        found = [root, *(root / name for name in names)]
        for dataset in datasets:
            for hub in (root, root / "hub"):
                found.extend(_snapshots(hub / f"datasets--{dataset.replace('/', '--')}"))
        return tuple(dict.fromkeys(place for place in found if place.is_dir()))

    def video_folders(self, root: Path) -> tuple[Path, ...]:
        """Return the folders that can hold its videos, the likeliest first."""
        places = self.places(root)
        found = [
            folder
            for place in places
            for pattern in self.videos
            for folder in (sorted(place.glob(pattern)) if pattern else [place])
            if folder.is_dir() and MAC_FOLDER not in folder.parts
        ]
        return tuple(dict.fromkeys([*found, *places]))


def _snapshots(folder: Path) -> list[Path]:
    """Return the revisions of a dataset in the hub's cache, the one called main first."""
    main = folder / "refs" / "main"
    revision = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    found = sorted((folder / "snapshots").glob("*"))
    return sorted(found, key=lambda snapshot: snapshot.name != revision)


def find_questions(root: Path, layout: Layout, patterns: Sequence[str]) -> tuple[Path, ...]:
    """Return the files of the first glob that has any, all from one folder, sorted by name.

    `patterns` are the forms of the same questions, the preferred one first.

    Raises:
        MissingInputError: there are none; says what was looked for and where it is published.
    """
    places = layout.places(root)
    for pattern in patterns:
        for place in places:
            found = sorted(path for path in place.glob(pattern) if path.is_file())
            if found:
                return tuple(found)
    names = ", ".join([*layout.folders, layout.datasets[0].split("/")[1]])
    origins = layout.datasets
    if layout.video_r1 in patterns:
        origins = (VIDEO_R1_DATASET,)
    raise MissingInputError(
        f"no file of questions under {root}: looked for {', '.join(patterns)} there, in its "
        f"folders {names} and in a hub cache; published as {' = '.join(origins)} on "
        f"huggingface.co/datasets ({layout.size} with its videos); name its folder with --data-root"
    )


# --- rows ---------------------------------------------------------------------------------------


def read_rows(
    path: Path, columns: Collection[str], optional: Collection[str] = ()
) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) of a published JSON list, JSONL or Parquet file; null values are kept.

    Of Parquet only `columns` and `optional` are read.

    Raises:
        RecordsError: a column is missing, or the file or a row is malformed.
    """
    if path.suffix == ".parquet":
        require_columns(f"{path}", columns, _parquet_columns(path))
    for where, row in iter_rows(path, {*columns, *optional}):
        if isinstance(row, RecordsError):
            raise row
        require_columns(where, columns, list(row))
        yield where, row


def require_columns(where: str, columns: Collection[str], found: Sequence[str]) -> None:
    """Raise RecordsError, with what there is, unless all `columns` are among those found."""
    missing = [name for name in columns if name not in found]
    if missing:
        raise RecordsError(
            f"{where}: no column '{missing[0]}'; there are: {', '.join(found) or 'none'}"
        )


def _parquet_columns(path: Path) -> list[str]:
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowException

    try:
        names: list[str] = pq.read_schema(path).names
    except (ArrowException, OSError) as error:
        raise RecordsError(f"{path}: not valid Parquet ({str(error).splitlines()[0]})") from None
    return names


def read_object(path: Path) -> dict[str, Any]:
    """Read a published file that is one JSON object.

    Raises:
        RecordsError: it is damaged, or something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordsError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise RecordsError(f"{path}: an object is expected, found {type(found).__name__}")
    return found


# --- videos -------------------------------------------------------------------------------------


class VideoIndex:
    """The videos under a data root by their names without suffix, "abc" or "Art/0".

    Folders are listed once, when a name in them is first asked for.
    """

    def __init__(self, root: Path, layout: Layout) -> None:
        self.root = root
        self.layout = layout
        self._listed: dict[Path, dict[str, str]] = {}

    @cached_property
    def folders(self) -> tuple[Path, ...]:
        """The folders in which names are looked for, in this order."""
        return self.layout.video_folders(self.root)

    def find(self, name: str) -> str | None:
        """Return a video's POSIX path relative to the root, None if it is not there.

        Raises:
            MissingInputError: the system does not let a folder be listed.
        """
        wanted = PurePosixPath(_relative(name))
        for folder in self.folders:
            within = folder / wanted.parent
            file = self._list(within).get(wanted.name)
            if file is not None:
                return (within / file).relative_to(self.root).as_posix()
        return None

    def path_of(self, name: str) -> str:
        """Return a video's path, or where it should be: reading it then fails, and is counted.

        An absent one should be beside others, or where the published zips would put it.
        """
        found = self.find(name)
        if found is not None:
            return found
        file = f"{_relative(name)}.mp4"
        likely = [folder for folder in self.folders if self._list((folder / file).parent)]
        folder = likely[0] if likely else self.root / self.layout.videos[0]
        return (folder / file).relative_to(self.root).as_posix()

    def path_by_tail(self, path: str) -> str:
        """Return the video that the longest tail of another system's path names.

        "./Evaluation/VideoMME/abc.mp4" may lie at "data/abc.mp4". An absent one keeps its path.
        """
        given = PurePosixPath(video_id_of(path))
        name = given.with_suffix("") if given.suffix.lower() in VIDEO_SUFFIXES else given
        parts = [part for part in name.parts if part not in ("/", "..")]
        for start in range(len(parts)):
            found = self.find("/".join(parts[start:]))
            if found is not None:
                return found
        return given.as_posix()

    def _list(self, folder: Path) -> dict[str, str]:
        """Return {name without suffix: file name} of a folder's videos."""
        if folder not in self._listed:
            found: dict[str, str] = {}
            try:
                names = sorted(os.listdir(folder))
            except (FileNotFoundError, NotADirectoryError, ValueError):
                names = []  # no such folder, or a name that none can have
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    return {}
                raise MissingInputError(f"cannot look into {folder}: {error.strerror}") from None
            for suffix in VIDEO_SUFFIXES:
                for name in names:
                    stem, dot, own = name.rpartition(".")
                    if dot and dot + own.lower() == suffix:
                        found.setdefault(stem, name)
            self._listed[folder] = found
        return self._listed[folder]


def _relative(name: str) -> str:
    """Take a name of a published row for one within a folder, whatever it begins with."""
    return video_id_of(name).lstrip("/")


@dataclass(frozen=True, slots=True)
class VideoReport:
    """What is on disk of the videos that are asked about."""

    found: tuple[str, ...]
    missing: tuple[str, ...]
    """Paths relative to the root, each where the video should be."""
    archives: tuple[str, ...]
    """A line for each zip that holds videos which are not, or not wholly, unpacked."""


def describe_videos(root: Path, layout: Layout, video_ids: Iterable[str]) -> VideoReport:
    """Look for videos, and for the zips that still hold them; nothing is opened but zips."""
    wanted = sorted(set(video_ids))
    found = [video_id for video_id in wanted if has_video(root, video_id)]
    archives = [
        path
        for place in layout.places(root)
        for pattern in layout.archives
        for path in sorted(place.glob(pattern))
    ]
    lines = [_archive_line(path, root, wanted) for path in dict.fromkeys(archives)]
    return VideoReport(
        found=tuple(found),
        missing=tuple(sorted(set(wanted) - set(found))),
        archives=tuple(line for line in lines if line),
    )


def _archive_line(path: Path, root: Path, video_ids: Sequence[str]) -> str:
    """Return what a zip holds that is not on disk as it is in there, or an empty text."""
    shown = path.relative_to(root)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        return f"{shown}: cannot be opened ({error}); damaged, or one of several parts"
    by_tail: dict[str, list[str]] = {}
    for video_id in video_ids:
        for tail in _tails(video_id):
            by_tail.setdefault(tail, []).append(video_id)
    num_asked = num_absent = num_other = 0
    for member in members:
        if MAC_FOLDER in member.filename:
            continue
        meant = next((by_tail[tail] for tail in _tails(member.filename) if tail in by_tail), [])
        if len(meant) != 1:
            continue
        num_asked += 1
        if not has_video(root, meant[0]):
            num_absent += 1
        elif locate_video(root, meant[0]).stat().st_size != member.file_size:
            num_other += 1
    if not num_absent and not num_other:
        return ""
    state = "not unpacked" if num_absent == num_asked else "half unpacked"
    return (
        f"{shown}: {state}, of {num_asked} videos that are asked about {num_absent} are not on "
        f"disk and {num_other} are of another size; unzip -o {path} -d {path.parent}"
    )


def _tails(path: str) -> list[str]:
    """Return a video's path without its suffix and ever fewer folders; of other files nothing."""
    name = PurePosixPath(path)
    if name.suffix.lower() not in VIDEO_SUFFIXES:
        return []
    parts = name.with_suffix("").parts
    return ["/".join(parts[start:]) for start in range(len(parts))]
