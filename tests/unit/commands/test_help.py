"""What a newcomer meets: the help of every command, presets, keys, wrong names."""

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import typer.main
from typer.core import TyperArgument, TyperOption
from typer.testing import CliRunner

from strive import choices
from strive.cli import app
from strive.configs.keys import option_of
from strive.configs.load import preset_names
from strive.configs.schema import SCHEMAS
from strive.errors import ConfigError, StriveError, UnknownNameError
from strive.evaluate.benchmarks import BENCHMARKS
from strive.scorers import SCORERS
from strive.variants import VARIANT_KINDS
from strive.video.decode import DECODERS
from strive.video.frame_plan import FRAME_PLANS

ROOT = typer.main.get_command(app)


def commands(command: Any = ROOT, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    yield " ".join(path), command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


TREE = dict(commands())


def run(*arguments: str, columns: int = 80) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns), "TERM": "dumb"})
    if isinstance(result.exception, Exception):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def without_frame(text: str) -> str:
    """The words of a help in one line: no panels, no line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def test_the_tree_is_walked() -> None:
    assert {"", "train", "presets", "cache prune", "lab build"} <= set(TREE)
    assert len(TREE) > 15


@pytest.mark.parametrize("name", TREE)
def test_every_option_says_its_default(name: str) -> None:
    command = TREE[name]
    shown = without_frame(run(*name.split(), "--help", columns=200))
    options = [
        option for option in command.params if isinstance(option, (TyperOption, TyperArgument))
    ]
    assert options or not name or hasattr(command, "commands")
    for option in options:
        about = without_frame(str(option.help)).replace("\\[", "[")
        assert about in shown, f"{name} {option.name}"
        # What follows an option's own words: `[default: 64]` of typer's, or `[required]`.
        rest = shown[shown.index(about) + len(about) :].lstrip()
        assert "[default: " in about or rest.startswith(("[default: ", "[required]")), (
            f"{name} {option.name} does not say what holds without it"
        )


@pytest.mark.parametrize("name", TREE)
@pytest.mark.parametrize("columns", [80, 160])
def test_help_fits(name: str, columns: int) -> None:
    text = run(*name.split(), "--help", columns=columns)
    assert max(map(len, text.splitlines())) <= columns
    assert "…" not in text


def test_top_level_has_groups_and_ends_in_two_calls() -> None:
    lines = run("--help").splitlines()
    groups = [line.split()[1] for line in lines if line.startswith("╭─")]
    assert groups == ["Options", "Offline", "Train", "Evaluate", "Look", "Care"]
    # At 80 columns each command is one line.
    listed = [line.split()[1] for line in lines if re.match(r"│ [a-z]", line)]
    assert sorted(listed) == sorted(ROOT.commands)
    calls = [line.split() for line in lines if line.strip().startswith("strive-cli ")]
    assert len(calls) == 2 and lines.index("") > lines.index(lines[0])
    for _, name, *words in calls:
        with TREE[name].make_context(name, list(words)):  # every option of it exists
            pass


def test_dicts_and_words_agree() -> None:
    """A choice that is a dict's name cannot be typed for the parser: it must not fall behind."""
    assert set(get_args(choices.DecoderName)) == {"auto", *DECODERS}
    assert set(get_args(choices.FramePlanName)) == set(FRAME_PLANS)
    shown = without_frame(run("train", "--help") + run("precompute", "--help"))
    shown += without_frame(run("evaluate", "--help"))
    for name in (*VARIANT_KINDS, *SCORERS, *BENCHMARKS):
        assert name in shown


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("precomptue", "precompute"),
        ("verify", "cache verify"),
        ("eval", "evaluate"),
        ("TRAIN", "train"),
        ("cache veryfy", "verify"),
        ("lab biuld", "build"),
    ],
)
def test_an_unknown_command_names_the_nearest_and_all(typed: str, meant: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        run(*typed.split())
    message = str(caught.value)
    assert f"did you mean '{meant}'?" in message and "\n" not in message
    known = message.partition("known: ")[2].split(", ")
    group = typed.split()[0] if " " in typed else ""
    assert set(TREE[group].commands) <= set(known)


def test_help_and_version_are_options() -> None:
    with pytest.raises(ConfigError, match="no command but an option: strive-cli --help"):
        run("help")


@pytest.mark.parametrize(
    "call",
    [
        ("presets", "lab_striv"),
        ("presets", "LAB_STRIVE"),
        ("train", "--config", "lab_striv"),
        ("precompute", "--for-config", "lab_striv"),
    ],
    ids=" ".join,
)
def test_an_unknown_preset_names_the_nearest_only(call: tuple[str, ...]) -> None:
    with pytest.raises(StriveError) as caught:
        run(*call)
    message = str(caught.value)
    assert "did you mean 'lab_strive'?" in message and "strive-cli presets" in message
    assert [name for name in preset_names() if f"'{name}'" in message] == ["lab_strive"]


def test_keys_are_listed_and_found() -> None:
    lines = run("train", "--keys").splitlines()
    assert max(map(len, lines)) <= 80
    at = lines.index("score_transform  none | zscore | minmax | logit, default none")
    assert lines[at + 1].startswith("    What is done to similarity scores before Eq. 4")
    assert "top_p  number > 0, <= 1, default 0.95" in lines
    assert "max_pixels  whole number > 0, default not given" in lines
    # By a word of its meaning, and by what another trainer calls it.
    assert "frame_temperature" in run("train", "--keys", "tau")
    text = without_frame(run("train", "--keys", "max-completion-length"))
    assert text.startswith("max_new_tokens whole number > 0, default 768")
    assert text.endswith("max_completion_length of other trainers; here: max_new_tokens")
    found = json.loads(run("train", "--keys", "temperature", "--json"))
    names = [key["name"] for key in found["keys"]]
    assert names == ["frame_temperature", "sampling_temperature", "sapo_temperatures"]
    assert found["other_trainers"]["temperature"].startswith("sampling_temperature (")
    with pytest.raises(UnknownNameError, match=r"no config key has 'zzz' .* --keys lists them all"):
        run("train", "--keys", "zzz")
    assert "scorers  [text, ...], default" in run("precompute", "--keys", "module:function")
    for name in SCHEMAS:
        with pytest.raises(ConfigError, match=f"{name} takes no 'temperature'"):
            run(name, "temperature")


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_option_that_is_a_key_is_told_once(name: str) -> None:
    """The words of a key's option come from its field, so the two cannot differ."""
    schema = SCHEMAS[name]
    given = {option for each in TREE[name].params for option in each.opts}
    for key in schema.model_fields:
        if option := option_of(schema, key):
            assert option.split("/")[0] in given


def test_an_option_that_goes_by_another_name_is_said() -> None:
    with pytest.raises(ConfigError, match=r"evaluate has no option --num-frames; .*as --frames$"):
        run("evaluate", "--num-frames=4")
    with pytest.raises(ConfigError, match="as --set batch_size=VALUE"):
        run("evaluate", "--batch-size=4")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--temperature=2", "here: sampling_temperature .*--set sampling_temperature=VALUE"),
        ("--learning-rate=2", "here: learning_rate, as --set learning_rate=VALUE"),
        ("--output_dir=x", r"here: --run-dir \(an option of train\)$"),
    ],
)
def test_a_key_given_as_an_option_says_how_it_is_given(option: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run("train", option)


def test_examples_of_the_epilog_are_shell_words() -> None:
    assert all(shlex.split(line) for line in str(ROOT.epilog).split("\n\n"))
