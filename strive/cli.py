"""`strive-cli`: the commands by name, and how errors reach the user.

Exit codes: 0 done; 1 the work failed or too much of it did; 2 the call or its input is wrong (one
line, no traceback); 130 interrupted, resumable. Heavy imports stand inside the commands, so that
`--help` is quick and looking at scores needs no torch.
"""

import errno
import os
import sys
from typing import Annotated

import typer

from strive import __version__
from strive.commands import caches, house, looking, offline, online, quality, searching
from strive.errors import StriveError

# What the disk or a path that the user gave can be blamed for; anything else is a fault of ours.
DISK_ERRORS = frozenset(
    (
        *(errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EIO),
        *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
    )
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Reinforcement learning for video question answering (STRIVE, arXiv:2604.01824).\n\n"
    "Without data and models, every command runs on the embedded lab.",
)
cache_app = typer.Typer(no_args_is_help=True, help="Look after a cache.")
lab_app = typer.Typer(no_args_is_help=True, help="The embedded lab: synthetic clips, tiny models.")

app.command("precompute")(offline.precompute)
app.command("train")(online.train)
app.command("evaluate")(online.evaluate)
app.command("rescore")(online.rescore)
app.command("compare")(online.compare)
app.command("inspect-scores")(looking.inspect_scores)
app.command("score-quality")(quality.score_quality)
app.command("search")(searching.search)
app.command("report")(looking.report)
app.command("demo")(house.demo)
app.command("doctor")(house.doctor)
app.add_typer(cache_app, name="cache")
cache_app.command("info")(caches.cache_info)
cache_app.command("verify")(caches.cache_verify)
cache_app.command("prune")(caches.cache_prune)
app.add_typer(lab_app, name="lab")
lab_app.command("build")(house.lab_build)
lab_app.command("list")(house.lab_list)


def _show_version(value: bool) -> None:
    if value:
        print(f"strive-cli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; turns errors that a user can cause into one line and an exit code."""
    # Idle OpenMP threads that spin take the cores from decode workers; read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except StriveError as error:
        if not error.is_told:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone: nothing is wrong, and nothing more can be printed.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(
            f"error: {error.strerror}: {error.filename or 'the disk'}; what was committed before "
            "is intact, make room or give --workspace and run the same command again",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
