"""Measures a policy folder on frames decoded from real clips, opened and run as training does.

Axis legend: F pool frames, K frames given, G completions.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from recipes.measure import DecodedClip
from strive.answers import build_question, grade_completion, has_think_answer_format
from strive.models.decoding import Decoder
from strive.models.inputs import VideoFrames, prepare_prompts
from strive.models.loading import Policy, load_policy
from strive.models.sampling import Sampling
from strive.records import Record
from strive.seeding import derive_rng
from strive.variants import segment_bounds, uniform_frames

VIEWS = ("uniform", "uniform_32", "random", "evidence", "blank")
_BATCH = 32
_MAX_NEW_TOKENS = 32


@dataclass(frozen=True, slots=True)
class ViewResult:
    """Grades of every record under one selection of frames.

    Args:
        grades_RG: graded answers in [0, 1], records by completions.
        formats_RG: whether the format is right.
        texts_RG: what was written.
    """

    grades_RG: np.ndarray
    formats_RG: np.ndarray
    texts_RG: list[list[str]]


def select_frames(
    view: str, record: Record, clip: DecodedClip, rng: np.random.Generator
) -> VideoFrames:
    """Choose K frames of a clip's pool for one question.

    `uniform` and `uniform_32` spread them, `random` draws one of each segment, `evidence` is
    uniform but for the segments that hold evidence, which show it, and `blank` is uniform with
    grey frames.
    """
    num_frames = 32 if view == "uniform_32" else 16
    chosen_K = uniform_frames(len(clip.frames_F), num_frames)
    bounds_K2 = segment_bounds(len(clip.frames_F), num_frames)
    if view == "random":
        chosen_K = rng.integers(bounds_K2[:, 0], bounds_K2[:, 1])
    elif view == "evidence":
        evidence_F = clip.evidence_F(record)
        for k, (start, end) in enumerate(bounds_K2):
            shown = np.flatnonzero(evidence_F[start:end])
            if len(shown):
                chosen_K[k] = start + rng.choice(shown)
    frames = clip.frames_F[chosen_K]
    if view == "blank":
        frames = np.full_like(frames, 127)
    return VideoFrames(frames, clip.pts_seconds_F[chosen_K], clip.source_index_F[chosen_K])


def run_view(
    policy: Policy,
    view: str,
    records: Sequence[Record],
    clips: dict[str, DecodedClip],
    *,
    num_generations: int = 1,
    seed: int = 0,
) -> ViewResult:
    """Answer every record under one view; greedy for one completion, sampled at 1.0 for several."""
    grades: list[list[float]] = []
    formats: list[list[bool]] = []
    texts: list[list[str]] = []
    limit = 4096 if policy.family.name == "qwen3_vl" else 3136
    for start in range(0, len(records), _BATCH):
        part = records[start : start + _BATCH]
        videos = [
            select_frames(
                view, record, clips[record.video_id], derive_rng("view", seed, record.question_id)
            )
            for record in part
        ]
        questions = [build_question(record, "short") for record in part]
        prompts = prepare_prompts(policy, questions, videos, max_pixels=limit)
        uniforms = None
        if num_generations > 1:
            rng = derive_rng("sample", seed, start)
            uniforms = rng.random((len(part), num_generations, _MAX_NEW_TOKENS))
        written = Decoder(policy)(
            prompts,
            sampling=Sampling(num_generations, _MAX_NEW_TOKENS),
            greedy=num_generations == 1,
            uniforms_RGL=uniforms,
        ).texts
        texts += written
        for record, answers in zip(part, written, strict=True):
            grades.append([grade_completion(record, text) for text in answers])
            formats.append([has_think_answer_format(text) for text in answers])
    return ViewResult(np.array(grades), np.array(formats), texts)


def evidence_shown(record: Record, clip: DecodedClip) -> bool:
    """Whether the uniform 16 frames show each evidence span at least once."""
    pts_K = clip.pts_seconds_F[uniform_frames(len(clip.frames_F), 16)]
    spans = record.evidence_spans_seconds or ()
    return all(bool(((pts_K >= start) & (pts_K < end)).any()) for start, end in spans)


def measure_policy(
    folder: Path,
    records: Sequence[Record],
    clips: dict[str, DecodedClip],
    *,
    num_generations: int = 8,
) -> dict[str, object]:
    """Open a policy folder and return its accuracies (greedy and sampled) by view and kind."""
    torch.manual_seed(0)
    policy = load_policy(folder)
    result: dict[str, object] = {"num_questions": len(records)}
    by_kind: dict[str, dict[str, float]] = defaultdict(dict)
    for view in VIEWS:
        outcome = run_view(policy, view, records, clips)
        grades_R = outcome.grades_RG[:, 0]
        result[f"accuracy_{view}"] = round(float(grades_R.mean()), 4)
        if view == "uniform":
            result["format_greedy"] = round(float(outcome.formats_RG.mean()), 4)
            shown_R = np.array([evidence_shown(r, clips[r.video_id]) for r in records])
            result["evidence_shown_uniform"] = round(float(shown_R.mean()), 4)
            result["accuracy_uniform_shown"] = round(float(grades_R[shown_R].mean()), 4)
            result["accuracy_uniform_not_shown"] = round(float(grades_R[~shown_R].mean()), 4)
        for kind in sorted({record.data_source for record in records}):
            of_kind = [r.data_source == kind for r in records]
            by_kind[kind][view] = round(float(grades_R[of_kind].mean()), 3)
    if num_generations > 1:
        sampled = run_view(policy, "random", records, clips, num_generations=num_generations)
        std_R = sampled.grades_RG.std(axis=1, ddof=1)
        result["sampled_accuracy_random"] = round(float(sampled.grades_RG.mean()), 4)
        result["sampled_format"] = round(float(sampled.formats_RG.mean()), 4)
        result["sampled_reward_std"] = round(float(std_R.mean()), 4)
        result["sampled_zero_std_fraction"] = round(float((std_R < 1e-6).mean()), 4)
    result["by_kind"] = dict(by_kind)
    return result
