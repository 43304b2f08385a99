"""What is printed: no control character of data reaches a stream."""

import ast
import io
import unicodedata
from pathlib import Path

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from strive.progress import CleanConsole, clean, make_console, one_line, say, show

NASTY = "a\x1b[2Jb\x07c\rd\x7fe\x9b1mf\u202eg\x00h\ud800i"


def controls(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"}


def test_signs_stand_in_the_place_of_control_characters() -> None:
    assert clean("\x1b]0;owned\x07") == "\u241b]0;owned\u2407"
    assert not controls(clean(NASTY)) and "\u202e" not in clean(NASTY)
    ordinary = "说 héllo\tund\nzweite Zeile \u200f\U0001f600"
    assert clean(ordinary) == ordinary
    assert one_line("a\nerror: b\x1b") == "a error: b\u241b"


def test_a_console_cleans_whatever_it_is_given() -> None:
    console = make_console()
    console.file = io.StringIO()
    table = Table(NASTY, title=NASTY)
    table.add_row(NASTY)
    table.add_row(Text(NASTY))
    for item in (NASTY, Text(NASTY), table, Panel(NASTY, title=NASTY), Text(NASTY, "red")):
        console.print(item, markup=False)
        console.print(item)
    console.rule(NASTY)
    assert not controls(console.file.getvalue())
    assert console.file.getvalue().count("\u241b") >= 10


def test_a_cleaning_console_still_colours() -> None:
    out = io.StringIO()
    console = CleanConsole(file=out, force_terminal=True, color_system="standard", width=60)
    console.print("[red]warm[/] \x1b[2J")
    assert "\x1b[31mwarm\x1b[0m" in out.getvalue() and "\x1b[2J" not in out.getvalue()


def test_plain_lines_are_cleaned(capsys: pytest.CaptureFixture[str]) -> None:
    say(NASTY)
    show(NASTY)
    captured = capsys.readouterr()
    assert captured.out == captured.err and not controls(captured.out)


def test_nothing_else_prints() -> None:
    """Results and messages go through `terminal.py`, where text of data is cleaned."""
    root = Path(__file__).parents[2] / "strive"
    found = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "Console"):
                found.append(str(path.relative_to(root)))
    assert sorted(set(found)) == ["cli.py", "progress.py"]
