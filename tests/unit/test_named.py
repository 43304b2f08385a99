"""A thing by its name, or of a user's own as `module:function`."""

import os
import sys
from pathlib import Path

import pytest

from strive.errors import ConfigError, MissingInputError, UnknownNameError
from strive.named import check_name, load_function


def test_a_name_is_known_or_of_a_module() -> None:
    known = {"random": "x:y", "oracle": "x:z"}
    check_name("scorer", "random", known)
    check_name("scorer", "mine:make", known)
    with pytest.raises(UnknownNameError, match=r"unknown scorer 'orcale' .*'oracle'.*module:func"):
        check_name("scorer", "orcale", known)


def test_the_working_directory_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    name = f"named_things_{os.getpid()}"
    (folder / f"{name}.py").write_text("def make(): return 5\nnumber = 3\n")
    (folder / f"{name}_bad.py").write_text("import no_such_package_here\n")
    (folder / f"{name}_old.py").write_text("from os import no_such_thing\n")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(folder)
    assert load_function("reward 'x'", f"{name}:make")() == 5
    for place, error, text in (
        (f"{name}:number", ConfigError, f"reward 'x': module '{name}' has no 'number'"),
        (f"{name}:", ConfigError, "has no ''"),
        (f"{name}_bad:make", MissingInputError, "imports 'no_such_package_here', which is not"),
        (f"{name}_old:make", ConfigError, "cannot be imported: cannot import name"),
        ("no_such_module_here:make", MissingInputError, "no module 'no_such_module_here' in the"),
    ):
        with pytest.raises(error, match=text):
            load_function("reward 'x'", place)
