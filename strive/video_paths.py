"""Where a record's video lies: under the video root, whatever form its name has on disk."""

import os
import unicodedata
from functools import lru_cache
from pathlib import Path

from strive.errors import OutsideRootError


def resolve_video(video_root: Path, video_id: str, *, allow_outside: bool = False) -> Path:
    """Return the file of a video, refusing whatever leaves the root.

    With `allow_outside` the path is taken as it is written, relative to the root unless absolute.

    Raises:
        OutsideRootError: the resolved file lies outside `video_root`.
    """
    if allow_outside:
        return locate_video(video_root, video_id)
    root = video_root.resolve()
    path = locate_video(root, video_id).resolve()
    if not path.is_relative_to(root):
        raise OutsideRootError(f"video '{video_id}' resolves outside the video root {video_root}")
    return path


def locate_video(video_root: Path, video_id: str) -> Path:
    """Return where a video lies under its root; the path as it is written if nothing is there.

    Accents are stored composed on some systems and decomposed on others: a name that is not there
    is the one file or folder whose name is the same text in the other form, if there is just one.
    """
    path = video_root / video_id
    if video_id.isascii() or _exists(path):
        return path
    found = Path(path.anchor) if path.is_absolute() else Path()
    for part in path.relative_to(found).parts:
        if part != ".." and not part.isascii() and not _exists(found / part):
            try:
                names = _names_by_form(found, found.stat().st_mtime_ns)
            except (OSError, ValueError):
                return path
            same = names.get(unicodedata.normalize("NFC", part), ())
            if len(same) != 1:
                return path
            part = same[0]
        found = found / part
    return found


@lru_cache(maxsize=8)
def _names_by_form(folder: Path, modified_ns: int) -> dict[str, list[str]]:
    """Return a folder's names with accents by their composed form.

    Kept while the folder stays as it is: of 100,000 videos that are not there, each would list it.
    """
    names: dict[str, list[str]] = {}
    for entry in os.scandir(folder):
        if not entry.name.isascii():
            names.setdefault(unicodedata.normalize("NFC", entry.name), []).append(entry.name)
    return names


def resolves_into_blobs(path: Path) -> bool:
    """Whether a path is a link as a model hub's cache makes them: SNAPSHOT/x -> ../../blobs/y."""
    try:
        return path.is_symlink() and path.resolve().parent.name == "blobs"
    except (OSError, RuntimeError, ValueError):
        return False


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL byte
        return False
