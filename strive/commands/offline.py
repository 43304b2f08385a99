"""`precompute`."""

from typing import TYPE_CHECKING

from strive.commands.common import (
    LAB_LINE,
    JsonOption,
    WorkspaceOption,
    find_workspace,
    make_console,
    print_json,
    say,
)
from strive.commands.configs import configured
from strive.configs.load import Given
from strive.configs.schema import PrecomputeConfig
from strive.files import plain_json
from strive.scorers import SCORERS

if TYPE_CHECKING:
    from strive.pipeline.summary import PrecomputeSummary

OPTIONS = {
    "Records": "data video_root allow_outside_root filters skip_bad_records subset seed for_config "
    "limit",
    "Scorers": "scorers scorer_models policy query long_text device dtype embed_batch_size",
    "Frames": "frames frame_plan max_pixels frame_codec decoder decode_timeout_seconds repair "
    "max_missing allow_damaged",
    "Running": "cache workers engine shard max_failure_fraction retry_failed overwrite dry_run",
}


@configured(PrecomputeConfig, OPTIONS, choices={"scorers": ", ".join(SCORERS)})
def precompute(
    given: Given, as_json: JsonOption = False, workspace: WorkspaceOption = None
) -> None:
    """Decode videos once, score their frames, fill the cache."""
    from strive.commands.views import print_estimate, print_precompute
    from strive.experiments.offline import resolve
    from strive.pipeline.run import precompute as run

    config = resolve(find_workspace(workspace), given, say_lab=lambda: say(LAB_LINE))

    def show(summary: "PrecomputeSummary") -> None:
        if as_json:
            print_json(_as_json(summary))
        elif summary.estimate is not None:
            print_estimate(summary, make_console())
        else:
            print_precompute(summary, make_console())

    # Also called before an error that ends the work, so that what was done is always seen.
    run(config, show)


def _as_json(summary: "PrecomputeSummary") -> dict[str, object]:
    """Return a summary as JSON values; `cache failures` says which failed."""
    values = plain_json(summary)
    assert isinstance(values, dict)
    del values["failed"], values["failed_questions"]
    return {
        **values,
        "failed_by_error": summary.failed_by_error,
        "num_failed": summary.num_failed,
        "failed_questions_by_error": summary.failed_questions_by_error,
        "num_failed_questions": len(summary.failed_questions),
    }
