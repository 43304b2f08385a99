"""`strive-cli presets`: what it shows is what the files say."""

import json
import re
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from strive.cli import app
from strive.configs.catalogue import method_changes, preset_about, presets_by_kind
from strive.configs.load import PRESETS, preset_names, read_config_file
from strive.errors import UnknownNameError

COLUMNS = (80, 160)


def run(*arguments: str, columns: int = 80) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns), "TERM": "dumb"})
    if isinstance(result.exception, Exception):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def shown_entries(columns: int) -> dict[str, list[str]]:
    """What stands beside each preset's name, line by line."""
    entries: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in run("presets", columns=columns).splitlines():
        name = line.partition(" ")[0]
        if name in preset_names():
            lines = entries.setdefault(name, [])
            line = line.removeprefix(name)
        elif name:
            lines = []  # a title
        lines.append(line.strip())
    return entries


@pytest.mark.parametrize("columns", COLUMNS)
def test_all_are_listed_in_groups_that_fit(columns: int) -> None:
    text = run("presets", columns=columns)
    assert max(len(line) for line in text.splitlines()) <= columns and "…" not in text
    names = [name for names in presets_by_kind().values() for name in names]
    assert list(shown_entries(columns)) == names and sorted(names) == preset_names()
    titles = [line.split()[0] for line in text.splitlines() if re.match("[A-Z]", line)]
    assert titles == ["Methods,", "Models", "The", "Runs,"]


@pytest.mark.parametrize("columns", COLUMNS)
def test_each_has_its_line(columns: int) -> None:
    """None is longer than the room beside the longest name, even at 80 columns."""
    for name, (about, *_) in shown_entries(columns).items():
        assert about == preset_about(name)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("method", presets_by_kind()["method"])
def test_the_differences_shown_are_those_of_the_files(method: str, columns: int) -> None:
    shown = " ".join(shown_entries(columns)[method][1:])
    found: dict[str, Any] = yaml.safe_load(f"{{{shown}}}") if shown else {}
    wanted = method_changes(method)
    if "system_prompt" in wanted:
        # A long text is cut, and is no YAML.
        shown, cut = re.subn(r"system_prompt: (.*?) \.\.\.,", "", shown)
        found, wanted = yaml.safe_load(f"{{{shown}}}"), dict(wanted)
        assert cut == 1 and wanted.pop("system_prompt").startswith("First give your answer")
    # YAML takes 1e-06 for a text.
    numbers = {k: float(v) for k, v in found.items() if isinstance(v, str) and v[0].isdigit()}
    assert found | numbers == wanted


def test_a_key_and_its_value_stand_in_one_line() -> None:
    lines = [line for lines in shown_entries(80).values() for line in lines]
    assert any(line.startswith("surrogate: cispo, objective: dapo") for line in lines)
    assert not [line for line in lines if line.endswith(":")]


def test_one_method_says_what_it_changes_first_and_where_it_is_from() -> None:
    lines = run("presets", "gspo").splitlines()
    assert lines[0] == f"gspo  {preset_about('gspo')}"
    at = lines.index("as grpo:")
    changed = [line.strip().partition(":")[0] for line in lines[1:at]]
    assert changed == list(method_changes("gspo"))
    same = [line.strip().partition(":")[0] for line in lines[at + 1 : -1]]
    assert sorted([*changed, *same]) == sorted(read_config_file("gspo"))
    assert lines[-1] == f"{PRESETS / 'gspo.yaml'} says where each comes from"
    # Of a run, everything alike.
    lines = run("presets", "table5_m4_g2").splitlines()
    assert "  num_variants: 4" in lines and "as grpo:" not in lines
    assert "as grpo:" not in run("presets", "grpo").splitlines()


def test_json_has_kinds_and_differences() -> None:
    found = json.loads(run("presets", "--json"))
    assert sorted(found) == preset_names()
    for name, one in found.items():
        assert one["about"] == preset_about(name) and one["sets"] == read_config_file(name)
        assert ("changes" in one) == (one["kind"] == "method")
    assert found["sapo"]["changes"] == method_changes("sapo")
    assert (found["lab"]["kind"], found["table3_grpo"]["kind"]) == ("lab", "run")
    assert list(json.loads(run("presets", "lab_grpo", "--json"))) == ["lab_grpo"]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown preset 'gsp'.*'gspo'"):
        run("presets", "gsp")
