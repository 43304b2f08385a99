"""The README of `final/` and `best/`: what the policy was made from, how, and how to serve it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from strive import __version__
from strive.configs.schema import TrainConfig
from strive.records import Record

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


def records_digest(records: Iterable[Record]) -> str:
    """Hash the questions of a run in their order: the same for the same data in any form."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(asdict(record), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()[:32]


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
    changed = {
        key: _shareable(key, value)
        for key, value in config.model_dump(mode="json", exclude_defaults=True).items()
    }
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


def _shareable(key: str, value: Any) -> Any:
    """Names in the place of paths, which are of one machine only."""
    if key in ("cache", "model", "deepspeed"):
        return Path(value).name if Path(value).exists() else value
    return [Path(item).name for item in value] if key in ("data", "held_out") else value
