"""What everything does with files: whole or not at all, lines that a kill cuts, digests, `~`."""

import dataclasses
import errno
import hashlib
import math
import os
import re
import secrets
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from strive.errors import DiskError, OutsideRootError

PathOrText = TypeVar("PathOrText", str, Path)
TEMPORARY_PREFIX = ".tmp-"
_BLOCK_BYTES = 1 << 20
_NO_ROOM = "free some space and run the same command again{again}"
_REASONS = {
    errno.ENOSPC: f"the disk is full; {_NO_ROOM}",
    errno.EDQUOT: f"the disk quota is used up; {_NO_ROOM}",
    errno.EROFS: "the file system is read-only; choose another folder with {knob}",
    errno.EACCES: "no permission to write there; choose another folder with {knob}",
    errno.EPERM: "no permission to write there; choose another folder with {knob}",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another folder with {knob}",
    errno.EEXIST: "a file stands where a folder is needed; choose another folder with {knob}",
    errno.EFBIG: "the file is larger than this system allows{smaller}",
    errno.EIO: "the disk answers with an error",
}
_KEPT_FROM_REMOVING = (errno.ENOTDIR, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def expanded(path: PathOrText) -> PathOrText:
    """Return a path with a leading `~` or `~name` replaced by that home, if there is one."""
    try:
        return type(path)(Path(path).expanduser()) if str(path).startswith("~") else path
    except RuntimeError:  # no such user: a file may have that name
        return path


# --- whole or not at all -------------------------------------------------------------------------


def disk_error(path: Path, error: OSError, knob: str = "--cache") -> DiskError:
    """Turn an `OSError` from writing `path` into one clear line; `knob` chooses another folder."""
    is_run = knob == "--run-dir"
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error)).format(
        knob=knob,
        again=" with --resume" if is_run else "",
        smaller="" if is_run else "; use --frame-codec jpeg",
    )
    return DiskError(f"cannot write {path}: {reason}; what was committed before is intact")


def as_disk_error(error: BaseException | None) -> OSError | None:
    """Tell what a disk refuses, whichever library reports it, from all other errors.

    safetensors and tokenizers name the system's error in a text; torch tells of bytes that did not
    arrive, and not why: the disk is taken to be full.
    """
    if isinstance(error, DiskError):
        return as_disk_error(error.__cause__)
    if isinstance(error, OSError):
        return error if error.errno in _REASONS else None
    if told := re.search(r"Os \{ code: (\d+)|\(os error (\d+)\)", str(error)):
        number = int(told[1] or told[2])
        return OSError(number, os.strerror(number)) if number in _REASONS else None
    if isinstance(error, RuntimeError) and re.search(
        "inline_container|PytorchStreamWriter", str(error)
    ):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


@contextmanager
def atomic_file(
    path: Path, *, temporary: Path | None = None, knob: str = "--cache"
) -> Iterator[Path]:
    """Give a temporary path to write; on success it is fsynced and renamed to `path`.

    It lies in the same folder, under a hidden name of its own where none is given.

    Raises:
        DiskError: writing failed; nothing under the final name has changed.
    """
    hidden = f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{path.name}"
    temporary = temporary or path.parent / hidden
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            fsync(temporary)
            os.replace(temporary, path)
            fsync(path.parent)
        except OSError as error:
            if isinstance(error, DiskError):
                raise
            raise disk_error(path, error, knob) from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError as error:
            # A folder that never came to be, or a disk that turned read-only: the write itself has
            # already raised, and the hidden temporary name is invisible to readers.
            if error.errno not in _KEPT_FROM_REMOVING:
                raise


def write_atomically(
    path: Path, text: str, *, temporary: Path | None = None, knob: str = "--cache"
) -> None:
    """Replace a file of text as a whole.

    Raises:
        DiskError: as `atomic_file`.
    """
    with atomic_file(path, temporary=temporary, knob=knob) as place:
        place.write_text(text, encoding="utf-8")


def fsync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- files of lines, whose last one a kill can cut off -------------------------------------------


def append_text(path: Path, text: str, *, sync: bool, knob: str) -> None:
    """Append whole lines; with `sync` they are on the disk afterwards.

    Raises:
        DiskError: the disk refused; what was appended before is intact.
    """
    try:
        with path.open("a", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            if sync:
                os.fsync(out.fileno())
    except OSError as error:
        raise disk_error(path, error, knob) from error


def whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file with their ends; a last one without an end is left out."""
    with path.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield line


def drop_torn_line(path: Path) -> None:
    """Cut a last line that a killed run left unfinished, so that appending stays line by line."""
    if not path.is_file():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as out:
            out.truncate(content.rfind(b"\n") + 1)


# --- locks ---------------------------------------------------------------------------------------

# Of file systems without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_SECONDS_BETWEEN_TRIES = 0.2


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file: whether no other process had; None where files cannot be locked.

    The kernel holds the lock until the file is closed or its process ends, however that ends.
    """
    from filelock import lock_descriptor  # here: importing it takes longer than all of this file

    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None


@contextmanager
def wait_for_lock(
    path: Path, on_wait: Callable[[int], None] = lambda num_tries: None
) -> Iterator[None]:
    """Be the only process or thread with this lock file while the block runs, after any other.

    `on_wait` is called with 1, 2, ... each time that another one has it; what it raises ends the
    waiting. A file system without locks keeps nobody out. The file stays.

    Raises:
        DiskError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise disk_error(path, error, "--workspace") from error
    try:
        num_tries = 0
        while try_lock(descriptor) is False:
            num_tries += 1
            on_wait(num_tries)
            time.sleep(_SECONDS_BETWEEN_TRIES)
        yield
    finally:
        os.close(descriptor)


# --- JSON ----------------------------------------------------------------------------------------


def plain_json(value: Any) -> Any:
    """Turn dataclasses, arrays and paths into what `json.dumps` takes; NaN and inf become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return plain_json(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has neither
    return str(value) if isinstance(value, Path) else value


# --- what a file is known by ---------------------------------------------------------------------


def modified_ns(status: os.stat_result) -> int:
    """Return a file's time of modification in nanoseconds since 1970, as 64 bits with a sign.

    A time outside the years 1678 to 2261 wraps around: it is only ever compared with another, and
    two that differ stay different.
    """
    return (status.st_mtime_ns + (1 << 63)) % (1 << 64) - (1 << 63)


def content_digest(path: Path) -> tuple[int, str]:
    """Return a file's size in bytes and a digest of all of them.

    Raises:
        OSError: it cannot be read, or is no regular file: a pipe would be waited for, and a device
            may never end.
    """
    if not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            size += len(block)
            digest.update(block)
    return size, digest.hexdigest()


def file_digest(path: Path, algorithm: str = "sha256") -> bytes:
    """Return a digest of a file's bytes by one of hashlib's algorithms.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).digest()


# --- where a record's video lies -----------------------------------------------------------------


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


def follow_video(video_root: Path, video_id: str) -> Path:
    """Return the file of a video under a root whose own links are trusted, wherever they lead.

    A hub's snapshot holds links into `blobs`, and a folder of videos may be a link to another disk.
    A path that is written to leave the root (absolute, or with "..") is resolved as by
    `resolve_video`.

    Raises:
        OutsideRootError: the path leaves the root.
    """
    root = video_root.absolute()
    path = locate_video(root, video_id)
    is_within = path.is_relative_to(root) and ".." not in path.relative_to(root).parts
    return path if is_within else resolve_video(video_root, video_id)


def has_video(video_root: Path, video_id: str) -> bool:
    """Whether `follow_video` finds a file; a name that no file can have is not there."""
    try:
        return follow_video(video_root, video_id).is_file()
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a NUL, outside
        return False


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
    """Return a folder's names with accents by their composed form."""
    # Kept while the folder stays as it is: of 100,000 missing videos each would list it.
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
