"""The folder for whatever is not given a place, and the embedded lab that stands in for data.

Everything that a command writes without being told where goes under one folder, the workspace:

    WORKSPACE/lab/            clips and records of the embedded world
    WORKSPACE/lab/cache/      the cache of those clips; never mixed with the user's
    WORKSPACE/cache/          the cache of the user's own records
    WORKSPACE/runs/NAME-001/  run folders
    WORKSPACE/evaluations/    evaluation outputs
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from strive.errors import CacheError, CheckpointError
from strive.files import expanded
from strive.lab.models import lab_model_path
from strive.lab.world import WorldSummary, build_world, read_world

DEFAULT_CLIPS = 400
DEFAULT_SEED = 0
LAB_PREFIX = "lab:"
LAB_TEMPLATE = "short"  # the prompt that its policies were taught


@dataclass(frozen=True)
class Workspace:
    """The folder for everything that was not given a place."""

    root: Path

    @classmethod
    def find(cls, option: Path | None) -> "Workspace":
        """Return `--workspace`, else `$STRIVE_WORKSPACE`, else `./strive-workspace`."""
        return cls(
            option or expanded(Path(os.environ.get("STRIVE_WORKSPACE") or "strive-workspace"))
        )

    @property
    def lab(self) -> Path:
        """Clips and records of the embedded world."""
        return self.root / "lab"

    @property
    def lab_cache(self) -> Path:
        """The cache of the embedded world."""
        return self.lab / "cache"

    @property
    def cache(self) -> Path:
        """The cache of the user's own records."""
        return self.root / "cache"

    def new_run(self, name: str) -> Path:
        """Return the next free run folder of this name."""
        return _next_numbered(self.root / "runs", name)

    def newest_run(self, name: str) -> Path:
        """Return the last run folder of this name, for `--resume`.

        Raises:
            CheckpointError: there is none.
        """
        found = sorted((self.root / "runs").glob(f"{name}-[0-9][0-9][0-9]"))
        if not found:
            raise CheckpointError(
                f"nothing to resume: no run '{name}-...' under {self.root / 'runs'}; "
                "name one with --run-dir"
            )
        return found[-1]

    def new_evaluation(self, name: str) -> Path:
        """Return the next free evaluation folder of this name."""
        return _next_numbered(self.root / "evaluations", name)


def _next_numbered(folder: Path, name: str) -> Path:
    number = 1
    while (folder / f"{name}-{number:03d}").exists():
        number += 1
    return folder / f"{name}-{number:03d}"


def resolve_model(model: str) -> str:
    """Turn `lab:NAME` into the folder of that embedded model; of anything else only `~` changes."""
    if model.startswith(LAB_PREFIX):
        return str(lab_model_path(model.removeprefix(LAB_PREFIX)))
    return expanded(model)


def trained_template(model: Path) -> str | None:
    """The prompt template of the run that left a model (its `final/` or `best/`), if one did."""
    try:
        found = json.loads((model.parent / "config.json").read_text(encoding="utf-8"))
        return str(found["config"]["prompt_template"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def ensure_lab(
    workspace: Workspace, *, num_clips: int | None = None, seed: int | None = None
) -> WorldSummary:
    """Build the embedded world into the workspace, or return the one that is there.

    A world that is there already serves whatever its size, unless a size or seed is asked for.
    """
    if num_clips is None and seed is None:
        found = read_world(workspace.lab)
        if found is not None:
            return found
    return build_world(
        workspace.lab,
        num_clips=num_clips or DEFAULT_CLIPS,
        seed=DEFAULT_SEED if seed is None else seed,
    )


def require_lab_cache(workspace: Workspace) -> Path:
    """Return the lab's cache.

    Raises:
        CacheError: `precompute` has not run yet.
    """
    if not (workspace.lab_cache / "cache.json").is_file():
        raise CacheError(
            f"no cache at {workspace.lab_cache}; make it with: strive-cli precompute "
            "--scorer siglip2"
        )
    return workspace.lab_cache
