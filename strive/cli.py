"""`strive-cli`: the commands by name, and how errors reach the user.

Exit codes: 0 done; 1 the work failed or too much of it did; 2 the call or its input is wrong (one
line, no traceback); 130 interrupted, resumable. What nobody foresaw is one line too, which names
the file that its traceback is in; `--traceback`, anywhere in a call, prints it. Heavy imports stand
inside the commands, so that `--help` is quick and looking at scores needs no torch.
"""

import errno
import functools
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from strive import __version__
from strive.commands import (
    ablating,
    caches,
    comparing,
    configs,
    evaluating,
    house,
    looking,
    offline,
    tables,
    training,
)
from strive.configs.keys import option_of, other_name
from strive.configs.schema import SCHEMAS
from strive.errors import ConfigError, StriveError, unknown_name
from strive.files import expanded
from strive.progress import one_line, prepare_streams, say

_TRACEBACK = "--traceback"
_WrongCall: Any = typer.BadParameter.__mro__[2]  # the parser's base of all wrong calls

# What the disk or a path that the user gave can be blamed for; anything else is a fault of ours.
DISK_ERRORS = frozenset(
    (
        *(errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EIO),
        *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
    )
)


def _tell_flags(params: list[Any]) -> None:
    """Say of flags, too, what holds without them."""
    for option in params:
        if isinstance(option, TyperOption) and option.is_bool_flag and option.default is False:
            option.help = f"{option.help}  \\[default: off]"


class _Command(TyperCommand):
    """Says of a config key that is given as an option how it is given."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        _tell_flags(self.params)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except _WrongCall as error:
            option = str(getattr(error, "option_name", ""))
            is_known = any(option in parameter.opts for parameter in self.params)
            schema = SCHEMAS.get(str(self.name))
            if schema is None or not option.startswith("--") or is_known:
                raise
            if (key := other_name(option.removeprefix("--"), schema)) is None:
                raise
            given = ""
            if key.ours in schema.model_fields:
                given = f", as {option_of(schema, key.ours) or f'--set {key.ours}=VALUE'}"
            raise ConfigError(f"{self.name} has no option {option}; here: {key}{given}") from None


class _Group(TyperGroup):
    """Names the nearest command, of a group inside too, where there is none of the name."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        _tell_flags(self.params)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name.lower() in ("help", "version"):
            raise ConfigError(f"'{name}' is no command but an option: strive-cli --{name.lower()}")
        if name not in self.commands and not name.startswith("-"):
            inner = {
                f"{group} {command}"
                for group, commands in self.commands.items()
                for command in getattr(commands, "commands", ())
            }
            raise unknown_name("command", name, {*self.commands, *inner})
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Group,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Reinforcement learning for video question answering (STRIVE, arXiv:2604.01824).\n\n"
    "Without data and models, every command runs on the embedded lab.",
    epilog="Two calls to begin with; `strive-cli COMMAND --help` says more of each:\n\n"
    "  strive-cli demo\n\n"
    "  strive-cli precompute --data my.jsonl --video-root videos --dry-run",
)
cache_app = typer.Typer(
    cls=_Group, no_args_is_help=True, help="A cache: its contents, failures, damage, leftovers."
)
lab_app = typer.Typer(
    cls=_Group, no_args_is_help=True, help="The embedded lab: synthetic clips, tiny models."
)

COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "Offline": {"precompute": offline.precompute},
    "Train": {
        "train": training.train,
        "ablate": ablating.ablate,
        "presets": configs.presets,
    },
    "Evaluate": {
        "evaluate": evaluating.evaluate,
        "compare": comparing.compare,
        "table": tables.table,
        "rescore": evaluating.rescore,
    },
    "Look": {
        "demo": house.demo,
        "inspect-scores": looking.inspect_scores,
        "score-quality": looking.score_quality,
        "search": looking.search,
        "report": looking.report,
    },
    "Care": {"doctor": house.doctor},
}
CACHE_COMMANDS: dict[str, Callable[..., None]] = {
    "info": caches.cache_info,
    "failures": caches.cache_failures,
    "verify": caches.cache_verify,
    "prune": caches.cache_prune,
}
LAB_COMMANDS: dict[str, Callable[..., None]] = {
    "build": house.lab_build,
    "list": house.lab_list,
    "claims": house.lab_claims,
}


def _expanding(function: Callable[..., None]) -> Callable[..., None]:
    """Let a command's paths begin with `~`: a shell leaves it as it is in `--data=~/x`."""

    @functools.wraps(function)
    def call(**arguments: Any) -> None:
        for name, value in arguments.items():
            if isinstance(value, Path):
                arguments[name] = expanded(value)
            elif isinstance(value, list):
                arguments[name] = [expanded(v) if isinstance(v, Path) else v for v in value]
        function(**arguments)

    return call


for _panel, _commands in COMMANDS.items():
    for _name, _function in _commands.items():
        app.command(_name, cls=_Command, rich_help_panel=_panel)(_expanding(_function))
for _inner, _name, _commands in (
    (cache_app, "cache", CACHE_COMMANDS),
    (lab_app, "lab", LAB_COMMANDS),
):
    app.add_typer(_inner, name=_name, rich_help_panel="Care")
    for _name, _function in _commands.items():
        _inner.command(_name, cls=_Command)(_expanding(_function))


def _show_version(value: bool) -> None:
    if value:
        print(f"strive-cli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show it, then stop."
        ),
    ] = False,
    traceback: Annotated[
        bool,
        typer.Option(_TRACEBACK, help="Print an error's traceback; may stand after the command."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; every error is one line and an exit code."""
    # Idle OpenMP threads that spin take the cores from decode workers; read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prepare_streams()
    wants_trace = _TRACEBACK in sys.argv[1:]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != _TRACEBACK]
    try:
        _refuse_empty_arguments()
        sys.exit(app(standalone_mode=False))  # None, or the code of a `typer.Exit`
    except KeyboardInterrupt:
        say("interrupted; the same command goes on where it stopped")
        sys.exit(130)
    # The last place: nothing that is raised may pass it.
    except Exception as error:
        if wants_trace:
            say(traceback.format_exc().rstrip())
        sys.exit(_tell(error))


def _refuse_empty_arguments() -> None:
    """An empty path would be the working directory: it is a variable that the shell lacks."""
    for before, argument in pairwise(["", *sys.argv[1:]]):
        option = re.match(r"(--[a-z-]+)=$", argument)
        if argument == "" or option:
            name = option[1] if option else before or "the first argument"
            raise ConfigError(
                f"{name} is given an empty text (a variable that is not set?); give a value, or "
                "leave it out"
            )


def _tell(error: Exception) -> int:
    """Say in one line what went wrong; return the exit code."""
    if isinstance(error, _WrongCall):
        # Without a word where the help, which was asked for by an empty call, has been shown.
        if message := error.format_message():
            _say_error(one_line(message.replace("Value error, ", "", 1)), of_the_call=True)
        return int(error.exit_code)
    if isinstance(error, typer.Abort):
        say("aborted")
        return 1
    if isinstance(error, StriveError):
        if not error.is_told:
            _say_error(str(error), of_the_call=not _has_joined_others())
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # The reader (head, less) has gone: nothing is wrong, and nothing more can be printed.
        sys.stderr.close()
        return 0
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        _say_error(
            f"{error.strerror}: {error.filename or 'the disk'}; what was committed before is "
            "intact, make room or give --workspace and run the same command again"
        )
        return 1
    text = one_line(f"{type(error).__name__}: {error}")[:500]
    rank = f"[rank{os.environ.get('RANK')}] " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    _say_error(f"{rank}{text} (not foreseen; {_kept_trace(error)})")
    return 1


def _say_error(text: str, *, of_the_call: bool = False) -> None:
    """Print an error's line; of what a launcher's processes share, one process of a machine."""
    if of_the_call and int(os.environ.get("LOCAL_RANK", "0")) > 0:
        return
    say(f"error: {text}")


def _has_joined_others() -> bool:
    """Whether this process has met the launcher's others: what it fails at may be its own."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_initialized()


def _kept_trace(error: Exception) -> str:
    """Write the traceback to a file; say where it is."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="strive-trace-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as file:
            file.write(" ".join(sys.argv) + "\n")
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return f"{_TRACEBACK} prints where"
    return f"its traceback is in {file.name}, {_TRACEBACK} prints it"


if __name__ == "__main__":
    main()
