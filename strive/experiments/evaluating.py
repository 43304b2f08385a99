"""Evaluations of a policy on the lab's test questions, one folder for each way to show frames."""

from collections.abc import Sequence
from pathlib import Path

from strive.evaluate.frames import FramesMode
from strive.evaluate.runner import EvaluateOptions, evaluate
from strive.experiments.workspace import Workspace

EVALUATION_FRAMES = 32
"""At most 32 frames and greedy decoding (Sec. 4.1)."""
MAX_ANSWER_TOKENS = 64
"""The lab's answers take about 16 tokens; one that is longer than this is counted as truncated."""


def evaluate_on_lab(
    model: Path, workspace: Workspace, folder: Path, modes: Sequence[FramesMode]
) -> dict[FramesMode, Path]:
    """Evaluate one policy in each mode into `folder/MODE`; the policy is loaded once.

    Answers that are there already under the same settings are kept.
    """
    from strive.models.loading import load_policy

    policy = load_policy(str(model), dtype="float32", device="cpu")
    outs: dict[FramesMode, Path] = {}
    for mode in modes:
        outs[mode] = folder / mode
        options = EvaluateOptions(
            model=str(model),
            data_root=workspace.lab,
            out=outs[mode],
            prompt_template="short",
            num_frames=EVALUATION_FRAMES,
            frames_mode=mode,
            max_new_tokens=MAX_ANSWER_TOKENS,
            batch_size=32,
            dtype="float32",
            device="cpu",
        )
        evaluate(options, policy=policy)
    return outs
