"""Checkpoints and policies of a run: each appears under its name as a whole.

`best/`, a folder like `final/`, holds the policy with the best held-out accuracy. The first
evaluation, of the policy that the run begins with, takes part: where training never passes it, the
starting policy is the best. Of equals the earliest stays.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from strive import __version__
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError
from strive.files import as_disk_error, disk_error
from strive.models.loading import save_policy
from strive.models.lora import merged_state_dict
from strive.train.run_folder import (
    CHECKPOINT_STATE,
    Best,
    RunFolder,
    checkpoint_name,
    commit_folder,
)
from strive.train.step import Trainer

# The held-out reward: the share of held-out questions that were answered correctly.
BEST_METRIC = "accuracy"
_POSITIONS = {
    "published": (
        "`published`, that of the released weights: Qwen2.5-VL's text after a video starts at the "
        "video's largest position plus 1, and a Qwen3-VL prompt has no second pair of vision "
        "markers around all slices of a video. Of the engines that STRIVE's authors looked at, "
        "vLLM and transformers up to 5.2 place Qwen2.5-VL's text so, and transformers 5.3 and "
        "later do not."
    ),
    "transformers": (
        "`transformers`, that of transformers 5.3 and later: Qwen2.5-VL's text after a video "
        "starts inside the time range of a long video, and a Qwen3-VL prompt has a second pair of "
        "vision markers around all slices of a video. vLLM and transformers up to 5.2 place "
        "Qwen2.5-VL's text elsewhere."
    ),
}
_SHOWN = (
    "reward/",
    "group/reward_std",
    "group/zero_std_fraction",
    "completion/",
    "loss/kl",
    "held",
)


def write_checkpoint(trainer: Trainer, folder: RunFolder, step: int, about: dict[str, Any]) -> None:
    """Write everything that resuming after `step` needs, then let it appear under its name.

    Raises:
        DiskError: the disk takes no more; nothing of the checkpoint is left.
    """
    # A run needs no random state: every draw is derived from the seed and its own keys.
    processes = trainer.processes
    temporary = folder.checkpoints / f"{checkpoint_name(step)}.tmp"

    def begin() -> None:
        folder.flush_completions()
        shutil.rmtree(temporary, ignore_errors=True)
        with written_whole(temporary):
            temporary.mkdir(parents=True)

    def finish() -> None:
        state = {
            "step": step,
            "world_size": processes.world_size,
            "zero_stage": trainer.engine.stage,
            **about,
        }
        if trainer.std_averages:
            state["std_averages"] = trainer.std_averages
        with written_whole(temporary):
            (temporary / CHECKPOINT_STATE).write_text(json.dumps(state, indent=2) + "\n")
            commit_folder(temporary, folder.checkpoint(step))
        folder.prune_checkpoints(trainer.config.keep_checkpoints)
        folder.forget_earlier_best()

    processes.of_main(begin)
    with written_whole(temporary):
        trainer.engine.save(temporary)
    processes.barrier()
    processes.of_main(finish)


def keep_if_best(
    trainer: Trainer,
    folder: RunFolder,
    step: int,
    held_out: Mapping[str, float],
    about: Mapping[str, Any],
) -> Best | None:
    """Write the policy to `best/` if its accuracy passes that of the one there; return the best.

    All processes call it together, with the same values; only the main one gets an answer.

    Raises:
        ConfigError: the evaluation gives no accuracy.
        DiskError: it could not be written.
    """
    if BEST_METRIC not in held_out:
        raise ConfigError(
            f"keep_best goes by held-out '{BEST_METRIC}', but the evaluation gives "
            f"{', '.join(sorted(held_out))}; set keep_best=false"
        )
    processes = trainer.processes
    candidate = Best(step, BEST_METRIC, float(held_out[BEST_METRIC]))
    before = folder.read_best() if processes.is_main else None
    record = -math.inf if before is None else before.value
    if processes.any(processes.is_main and candidate.value > record):
        figures = {f"held-out {name}": value for name, value in held_out.items()}
        write_policy(trainer, folder, about, step, figures=figures, best=candidate)
        return candidate
    return before


def write_policy(
    trainer: Trainer,
    folder: RunFolder,
    about: Mapping[str, Any],
    step: int,
    *,
    figures: Mapping[str, Any] | None = None,
    best: Best | None = None,
) -> None:
    """Write the policy as a plain Hugging Face folder with its processor, adapters merged in.

    It becomes `final/`, or `best/` where `best` says what it is the best by. Its README says how it
    came about (`model_card`), with `figures` or those of the last step. All processes call it
    together.

    Raises:
        DiskError: the disk takes no more; nothing of it is left.
    """
    config, policy = trainer.config, trainer.policy
    temporary = folder.root / ("final.tmp" if best is None else "best.tmp")

    def write() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        shown = folder.last_metrics() if figures is None else figures
        card = model_card(config, about, step=step, figures=shown)
        merged = merged_state_dict(policy.model) if config.trainable == "lora" else None
        with written_whole(temporary):
            save_policy(policy, temporary, merged)
            (temporary / "README.md").write_text(card, encoding="utf-8")
            if best is None:
                commit_folder(temporary, folder.final)
            else:
                folder.replace_best(temporary, best)

    with trainer.engine.gathered():
        trainer.processes.of_main(write)


@contextmanager
def written_whole(temporary: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line, and leave no half of what was being written.

    Raises:
        DiskError: it refused.
    """
    try:
        yield
    except Exception as error:
        refused = as_disk_error(error)
        if refused is None:
            raise
        told = disk_error(temporary, refused, "--run-dir")
        shutil.rmtree(temporary, ignore_errors=True)
        raise told from error


def model_card(
    config: TrainConfig, about: Mapping[str, Any], *, step: int, figures: Mapping[str, Any]
) -> str:
    """The card of a policy after `step` steps, with a header that the Hugging Face hub reads.

    `about` holds the run's `start_digest`, `records_digest` and `cache`; `figures` are numbers by
    name, those of a step of metrics.jsonl or of a held-out evaluation.
    """
    on_hub = not Path(config.model).is_dir()
    base = config.model if on_hub else Path(config.model).name
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "video-text-to-text"}
    if on_hub:
        header["base_model"] = base
    header["tags"] = ["strive", "grpo", "video-question-answering"]
    changed = config.model_dump(mode="json", exclude_defaults=True)
    for key, value in changed.items():
        # Names in the place of paths, which are of one machine only.
        if key in ("data", "held_out"):
            changed[key] = [Path(item).name for item in value]
        elif key in ("cache", "model", "deepspeed") and Path(value).exists():
            changed[key] = Path(value).name
    numbers = "\n".join(
        f"| {name} | {value:.4g} |"
        for name, value in figures.items()
        if name.startswith(_SHOWN) and isinstance(value, int | float)
    )
    cache = about["cache"]
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {base}, trained with STRIVE

A policy for questions about videos after {step} steps of reinforcement learning by STRIVE
{__version__} (arXiv:2604.01824). It is a plain Hugging Face folder.

- **Base model:** {base}; digest of its weights {about["start_digest"]}.
- **Data:** {cache["num_questions"]} questions; digest {about["records_digest"]}; frames
  `{cache["frames_key"]}`, scores `{cache["scorer_key"] or "none"}`.
- **Licence:** whatever the base model's licence and that of the data ask for holds for this policy;
  STRIVE adds nothing to it.
- **Positions:** it was trained under the rule {_POSITIONS[config.position_rule]} Serve it with an
  engine of this rule, or its answers may be other ones.
- **Prompt:** template `{config.prompt_template}`, {config.num_frames} frames.

## Numbers of its last step or evaluation

| name | value |
| --- | --- |
{numbers}

Rewards are those of training questions under sampling: they do not say how well it answers others.

## Configuration

What differs from the defaults of STRIVE {__version__}:

```yaml
{yaml.safe_dump(changed, sort_keys=True).strip()}
```
"""
