"""A thing by its name, or of a user's own as `module:function`."""

import os
import re
import sys
from pathlib import Path

import pytest

from strive.errors import ConfigError, MissingInputError, UnknownNameError
from strive.named import check_name, load_function, raised


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
        (
            f"{name}:number",
            ConfigError,
            f"reward 'x': module '{name}' .*{name}.py. names no function but a int by",
        ),
        (f"{name}:", ConfigError, "has no ''"),
        (f"{name}_bad:make", MissingInputError, "imports 'no_such_package_here', which is not"),
        (f"{name}_old:make", ConfigError, "cannot be imported: ImportError: cannot import name"),
        ("no_such_module_here:make", MissingInputError, "no module 'no_such_module_here' in the"),
    ):
        with pytest.raises(error, match=text):
            load_function("reward 'x'", place)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:\n    pass\n", r"cannot be imported: SyntaxError: .*line 1\)"),
        ("x = 1 / 0\n", r"cannot be imported: ZeroDivisionError: division by zero \(.*, line 1\)"),
        ("import sys\nsys.exit(3)\n", r"cannot be imported: SystemExit: 3 \(.*, line 2\)"),
    ],
)
def test_a_users_file_may_fail_in_any_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    name = f"named_failing_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"reward 'x' {said}") as error:
        load_function("reward 'x'", f"{name}:f")
    assert "\n" not in str(error.value)


def test_a_module_that_is_not_the_users_is_named_with_its_file() -> None:
    with pytest.raises(ConfigError, match=r"module 'code' \(.*code.py\) has no 'mine'"):
        load_function("reward 'x'", "code:mine")


def test_what_was_raised_is_one_line_with_a_place_in_the_users_file() -> None:
    with pytest.raises(ValueError) as caught:
        int("no\nnumber")
    assert re.fullmatch(
        r"ValueError: invalid literal for int\(\) with base 10: 'no\\nnumber' "
        rf"\({re.escape(__file__)}, line \d+\)",
        raised(caught.value),
    )
