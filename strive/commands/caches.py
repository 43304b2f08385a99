"""`cache info` and `cache verify`."""

import typer

from strive.commands.common import (
    CacheOption,
    JsonOption,
    WorkspaceOption,
    find_cache,
    find_workspace,
    make_console,
    plain_json,
    print_json,
)


def cache_info(
    cache: CacheOption = None, as_json: JsonOption = False, workspace: WorkspaceOption = None
) -> None:
    """Show a cache's keys, counts and sizes."""
    from strive.cache.audit import cache_info as describe
    from strive.commands.views import print_cache_info

    info = describe(find_cache(cache, find_workspace(workspace)))
    if as_json:
        print_json(plain_json(info))
    else:
        print_cache_info(info, make_console())


def cache_verify(cache: CacheOption = None, workspace: WorkspaceOption = None) -> None:
    """Check every committed part and every frame's checksum; exit 1 on damage."""
    from strive.cache.audit import verify_cache

    root = find_cache(cache, find_workspace(workspace))
    problems = verify_cache(root)
    for problem in problems:
        print(f"damaged: {problem}")
    if problems:
        raise typer.Exit(1)
    print(f"{root}: every part and frame is whole")
