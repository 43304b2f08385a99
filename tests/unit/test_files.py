"""What everything does with files."""

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from strive.errors import DiskError
from strive.files import (
    append_text,
    atomic_file,
    content_digest,
    drop_torn_line,
    expanded,
    file_digest,
    modified_ns,
    wait_for_lock,
    whole_lines,
    write_atomically,
)


def at(seconds: int) -> int:
    status: Any = SimpleNamespace(st_mtime_ns=seconds * 10**9 + 7)
    return modified_ns(status)


def test_a_time_stamp_fits_64_bits_and_ordinary_ones_are_themselves() -> None:
    assert at(1_700_000_000) == 1_700_000_000 * 10**9 + 7 and at(-5) == -5 * 10**9 + 7
    times = [at(seconds) for seconds in range(-15_000_000_000, 15_000_000_000, 10**9)]
    assert len(set(times[:18])) == 18 and all(-(2**63) <= time < 2**63 for time in times)


def test_a_home_is_put_in_the_place_of_a_tilde(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded(Path("~/a/b")) == tmp_path / "a" / "b"
    assert expanded("~") == str(tmp_path)
    for path in ("a/~/b", "no_such_user", "~no_such_user_here/x", ""):
        assert expanded(path) == path


def test_a_file_changes_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.json"
    write_atomically(path, "first")
    with pytest.raises(RuntimeError, match="midway"), atomic_file(path) as temporary:
        temporary.write_text("half of the sec")
        raise RuntimeError("midway")
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]
    named = path.with_name("state.json.tmp")
    with atomic_file(path, temporary=named) as temporary:
        assert temporary == named
        temporary.write_text("second")
    assert path.read_text() == "second" and list(path.parent.iterdir()) == [path]


def test_a_disk_that_refuses_is_one_line_that_names_the_knob(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for write in (
        lambda path: write_atomically(path, "x", knob="--out"),
        lambda path: append_text(path, "x\n", sync=True, knob="--out"),
    ):
        with pytest.raises(DiskError, match=r"cannot write .*another folder with --out"):
            write(tmp_path / "file" / "x")


def test_a_torn_last_line_is_not_read_and_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_text(path, "1\n2\u2028\n\n", sync=False, knob="")
    append_text(path, "tor\u00e9"[:3], sync=False, knob="")
    assert list(whole_lines(path)) == [b"1\n", "2\u2028\n".encode(), b"\n"]
    drop_torn_line(path)
    append_text(path, "3\n", sync=True, knob="")
    assert list(whole_lines(path))[-1] == b"3\n"
    path.write_bytes(b"no end at all")
    drop_torn_line(path)
    assert path.read_bytes() == b"" and list(whole_lines(path)) == []
    drop_torn_line(tmp_path / "absent")


def test_digests_are_of_all_bytes(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * 5000)
    size, digest = content_digest(path)
    assert size == 1_280_000
    assert digest == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    assert file_digest(path).hex() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_pipe_has_no_digest(tmp_path: Path) -> None:
    """It would be waited for without end."""
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(OSError, match="not a regular file"):
        content_digest(tmp_path / "pipe.mp4")


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.lock"
    waited = []

    def give_up(num_tries: int) -> None:
        waited.append(num_tries)
        if num_tries == 2:
            raise InterruptedError

    with wait_for_lock(path), pytest.raises(InterruptedError), wait_for_lock(path, give_up):
        raise AssertionError("both have the lock")
    assert waited == [1, 2]
    with wait_for_lock(path, give_up):  # free again
        pass
    assert waited == [1, 2]
