"""Finished policies and checkpoints: folders that appear and go as wholes.

Each lists the files that the run wrote into it, so that removing it removes no others, and none
that somebody has edited since.
"""

import hashlib
import os
import shutil
import stat
from pathlib import Path

from strive.files import fsync
from strive.progress import say

CHECKPOINT_STATE = "state.json"
BEST_STATE = "best.json"
WRITTEN = ".strive-files"
"""The list: on each line what a file held (`_content`), and its path relative to the folder."""
_MOST_DIGESTED_BYTES = 2**20
TEMPORARY_ENDS = (".tmp", "-old.tmp")
"""Ends of a folder's name while it is written, and while it is removed."""
# What tells a folder as a run's; earlier versions wrote no list.
_MARKS = (WRITTEN, CHECKPOINT_STATE, BEST_STATE)


def put_finished(temporary: Path, target: Path) -> None:
    """Let a finished folder appear under its name, in the place of the one there.

    Its files are on the disk by then, and have the modes that the user's umask gives: some
    libraries write theirs for the user alone.
    """
    listed = temporary / WRITTEN
    files = [path for path in _files(temporary) if path != listed]
    lines = sorted(f"{_content(p)} {_relative(p, temporary)}\n" for p in files)
    listed.write_text("".join(lines), encoding="utf-8")
    mode = stat.S_IMODE(listed.stat().st_mode)
    for path in (*files, listed):
        if path.is_symlink():
            continue
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)
        fsync(path)
    for path in {temporary, *(path.parent for path in files)}:
        fsync(path)
    remove(target)
    temporary.rename(target)
    fsync(target.parent)


def damage(folder: Path) -> str | None:
    """What of a finished folder is missing or changed, by its own list; None where nothing is.

    A small file is known by its content, a large one by its size; `state.json`, which readers check
    themselves, may have been edited. Earlier versions wrote no list.
    """
    listed = folder / WRITTEN
    if not listed.is_file():
        return None
    lines = listed.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines:
        return f"{WRITTEN} is empty"
    for content, _, name in (line.partition(" ") for line in lines):
        if not os.path.lexists(folder / name):
            return f"{name} is missing"
        if name != CHECKPOINT_STATE and _content(folder / name) != content:
            return f"{name} is not as it was written"
    return None


def remove(path: Path) -> None:
    """Remove a finished policy or checkpoint, so that no half of it is ever seen under its name.

    What no run wrote stays as `NAME-kept`: files that were put into it, or all of another folder.
    """
    if path.is_dir() and not path.is_symlink() and any((path / m).is_file() for m in _MARKS):
        leftover = path.with_name(f"{path.name}{TEMPORARY_ENDS[1]}")
        path.rename(leftover)
        remove_unnamed(leftover)
    elif os.path.lexists(path):
        path.rename(_name_to_keep(path))


def remove_unnamed(leftover: Path) -> None:
    """Remove a folder that has no more, or not yet, a name of its own."""
    listed = leftover / WRITTEN
    if listed.is_file():
        written = set(listed.read_text(encoding="utf-8", errors="replace").splitlines())
        others = [
            path
            for path in _files(leftover)
            if path != listed and f"{_content(path)} {_relative(path, leftover)}" not in written
        ]
        name = leftover.name.removesuffix(".tmp").removesuffix("-old")
        kept = _name_to_keep(leftover.with_name(name)) if others else leftover
        for path in others:
            target = kept / path.relative_to(leftover)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    shutil.rmtree(leftover)


def _name_to_keep(path: Path) -> Path:
    """A free name for what no run wrote; it is said, so that it can be found."""
    kept, number = path.with_name(f"{path.name}-kept"), 1
    while os.path.lexists(kept):
        number += 1
        kept = path.with_name(f"{path.name}-kept-{number}")
    say(f"train: what no run wrote in {path} is now in {kept}")
    return kept


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]


def _content(path: Path) -> str:
    """What tells an edited file: its digest, and of a large one (weights) its size."""
    size = path.lstat().st_size
    if path.is_symlink() or size > _MOST_DIGESTED_BYTES:
        return str(size)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
