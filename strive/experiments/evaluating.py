"""Evaluations: one call with the lab's defaults filled in, and a policy on the lab's test split."""

from collections.abc import Callable, Sequence
from pathlib import Path

from strive.choices import FramesMode
from strive.configs.load import Given, load_config
from strive.configs.schema import EvaluateConfig
from strive.errors import ConfigError
from strive.evaluate.benchmarks import BENCHMARKS, parse_spec
from strive.evaluate.runner import evaluate
from strive.experiments.workspace import (
    LAB_PREFIX,
    LAB_TEMPLATE,
    Workspace,
    ensure_lab,
    resolve_model,
    trained_template,
)
from strive.lab.world import read_world
from strive.progress import say

EVALUATION_FRAMES = 32
"""At most 32 frames and greedy decoding (Sec. 4.1)."""
MAX_ANSWER_TOKENS = 64
"""The lab's answers take about 16 tokens; one that is longer than this is counted as truncated."""


def resolve(
    workspace: Workspace,
    given: Given,
    *,
    say_lab: Callable[[], None] = lambda: None,
    is_asked: bool = True,
) -> EvaluateConfig:
    """Return the whole configuration of a call; `say_lab` is called if it means the lab.

    Where nothing `is_asked`, a model that is not named decides nothing: not the prompt either.

    Raises:
        ConfigError: an unknown key, a wrong value, or options that contradict one another.
        UnknownNameError: there is no such benchmark, or no such model of the lab.
    """
    config = load_config(EvaluateConfig, *given)
    specs = [parse_spec(text) for text in config.benchmarks]
    folder = resolve_model(config.model)  # an unknown one is an error before a lab is built
    names_benchmark = "benchmarks" in config.model_fields_set
    names_root = "data_root" in config.model_fields_set
    has_records = bool(config.data) or any(spec.is_records for spec in specs)
    if (config.data and (names_root or names_benchmark)) or (config.video_root and not has_records):
        raise ConfigError(
            "your own records are given with --data FILE and --video-root DIR, a benchmark with "
            "--benchmark NAME and --data-root DIR; give one of the two"
        )
    data, data_root = config.data, config.data_root
    has_lab = any(spec.name == "lab" and spec.root is None for spec in specs)
    on_lab = not data and not names_root and has_lab
    for spec in specs:
        if not data and not names_root and spec.root is None and spec.name != "lab":
            what = "published files" if spec.name in BENCHMARKS else "videos"
            raise ConfigError(
                f"--benchmark {spec.name}{'' if spec.name in BENCHMARKS else ' is your own'}; give "
                f"the folder of its {what} with --data-root DIR"
            )
    if on_lab:
        say_lab()
        data_root = ensure_lab(workspace).root
    elif not data and not names_benchmark and read_world(data_root) is None:
        own = data_root / f"{config.split}.jsonl"
        data = (own,) if own.is_file() else ()
    template = config.prompt_template
    has_model = is_asked or "model" in config.model_fields_set
    if on_lab or (has_model and config.model.startswith(LAB_PREFIX)):
        template = template or LAB_TEMPLATE
    resolved = config.model_copy(
        update={
            "model": folder,
            "data": data,
            "data_root": data_root,
            "prompt_template": template,
        }
    )
    taught = trained_template(Path(folder)) if has_model else None
    if taught not in (None, template or config.protocol):
        say(
            f"warning: {config.model} was trained with prompt_template={taught}, and is asked with "
            f"{template or config.protocol} (--prompt-template {taught})"
        )
    return resolved


def evaluate_on_lab(
    model: Path, workspace: Workspace, folder: Path, modes: Sequence[FramesMode]
) -> dict[FramesMode, Path]:
    """Evaluate one policy in each mode into `folder/MODE`; the policy is loaded once.

    Answers that are there already under the same settings are kept.
    """
    from strive.models.loading import load_policy

    policy = load_policy(str(model), dtype="float32", device="cpu")
    for mode in modes:
        config = EvaluateConfig(
            model=str(model),
            data_root=workspace.lab,
            prompt_template=LAB_TEMPLATE,
            num_frames=EVALUATION_FRAMES,
            frames_mode=mode,
            max_new_tokens=MAX_ANSWER_TOKENS,
            batch_size=32,
            dtype="float32",
            device="cpu",
        )
        evaluate(config, out=folder / mode, policy=policy)
    return {mode: folder / mode for mode in modes}
