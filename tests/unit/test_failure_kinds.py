"""Every kind of failure has a reason and a way out, and the way out can be gone."""

import ast
import re
from pathlib import Path

import pytest
from typer.main import get_command

from strive.cli import app
from strive.errors import FAILURE_KINDS, way_out

ROOT = Path(__file__).parents[2] / "strive"
OPTIONS = {
    option
    for parameter in get_command(app).commands["precompute"].params
    for option in parameter.opts
}
# Kinds that are handed on from an error that was raised with one of its own.
HANDED_ON = {"telling[-1]", "first.kind", "error.kind"}


def raised_kinds() -> dict[str, set[str]]:
    """{kind: files} of every `DecodeError(kind, ...)`; names of constants are resolved."""
    found: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text())
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "DecodeError":
                continue
            first = node.args[0]
            text = ast.unparse(first)
            kind = first.value if isinstance(first, ast.Constant) else constants.get(text, text)
            found.setdefault(str(kind), set()).add(str(path.relative_to(ROOT)))
    return found


def test_every_kind_that_can_be_raised_has_a_way_out() -> None:
    raised = raised_kinds()
    assert len(raised) > 20
    without = {kind: files for kind, files in raised.items() if kind not in FAILURE_KINDS}
    assert set(without) <= HANDED_ON, without


@pytest.mark.parametrize("kind", FAILURE_KINDS)
def test_a_way_out_names_options_that_there_are(kind: str) -> None:
    known = FAILURE_KINDS[kind]
    assert known.reason and known.way_out and not known.way_out.endswith(".")
    for name in set(re.findall(r"--[a-z][a-z-]*", known.way_out)):
        assert name in OPTIONS, name


def test_a_kind_of_another_version_has_a_way_out_too() -> None:
    assert "--retry-failed" in way_out("of_tomorrow")


def test_the_page_of_failures_has_every_kind() -> None:
    page = (ROOT.parent / "docs" / "failures.md").read_text()
    for kind, known in FAILURE_KINDS.items():
        row = next((line for line in page.splitlines() if line.startswith(f"| `{kind}` ")), "")
        assert row == f"| `{kind}` | {known.reason} | {known.way_out} |", kind
