"""What everything does with files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from strive.files import expanded, modified_ns


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
