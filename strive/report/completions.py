"""Completions of several arms for the same questions, with the frames that each variant saw.

Frames come from the cache that a run trained on. Where it is gone, a note says so and the texts are
shown alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from strive.cache.frames import FrameReader
from strive.cache.layout import open_cache
from strive.cache.questions import read_questions
from strive.errors import CacheError
from strive.records import Record
from strive.report.arms import Arm
from strive.report.inspect_html import asked, frame_cell
from strive.report.pages import thumbnail
from strive.report.runs import Run
from strive.variants import evidence_mask

NUM_QUESTIONS = 3
FRAME_WIDTH = 96
"""Pixels: a page may show 6 arms x 2 variants x 16 frames of a question."""
COLUMNS = (
    "step", "question_id", "variant", "frame_index", "evidence_seen", "text", "reward", "advantage",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Written:
    """A text that one variant's completions share."""

    text: str
    reward: float
    advantage: float
    count: int
    """Completions with this text, reward and advantage."""


@dataclass(frozen=True, slots=True)
class ShownVariant:
    """What one variant showed the policy, and what that wrote."""

    variant: int
    evidence_seen: bool | None
    num_completions: int
    written: tuple[Written, ...]
    """The most frequent first."""
    frames: tuple[dict[str, Any], ...]
    """`inspect_html.frame_cell` values, in the order shown; empty where the cache is gone."""


@dataclass(frozen=True, slots=True)
class ShownArm:
    """One arm's variants of a question, as its run of one seed had them at one step."""

    number: int
    """Of the arm's colour."""
    name: str
    seed: Any
    step: int
    variants: tuple[ShownVariant, ...]


@dataclass(frozen=True, slots=True)
class ShownQuestion:
    """One question, arm beside arm."""

    question_id: str
    asked: dict[str, Any] | None
    """`inspect_html.asked` values; None where no cache has the question."""
    arms: tuple[ShownArm, ...]


@dataclass(frozen=True, slots=True)
class Completions:
    """What the page shows of completions."""

    questions: tuple[ShownQuestion, ...]
    notes: tuple[str, ...]
    """What is not as a reader would expect: a line each."""


def choose_questions(
    steps: Sequence[Mapping[int, Sequence[str]]], count: int
) -> list[tuple[str, dict[int, int]]]:
    """Choose questions that all runs were asked, by order alone and not by what came of them.

    Args:
        steps: of each run the question ids of each step, in order.
        count: how many at most.

    Returns:
        Each question with {number of the run: step}. They are the first questions of the last step
        at which all runs were asked the same ones; without such a step the last questions that all
        were asked, each run at the last step where it was; without such questions the first one of
        each run's last step.
    """
    if not steps:
        return []
    first, *others = steps
    for step in sorted(set(first).intersection(*others), reverse=True):
        shared = [
            question for question in first[step] if all(question in run[step] for run in others)
        ]
        if shared:
            return [
                (question, dict.fromkeys(range(len(steps)), step)) for question in shared[:count]
            ]
    last_asked = [
        {question: step for step in sorted(run) for question in run[step]} for run in steps
    ]
    common = set(last_asked[0]).intersection(*last_asked)
    latest = sorted(common, key=lambda question: (-last_asked[0][question], question))[:count]
    if latest:
        return [
            (question, {number: run[question] for number, run in enumerate(last_asked)})
            for question in latest
        ]
    return [(run[max(run)][0], {number: max(run)}) for number, run in enumerate(steps) if run]


def compare_completions(arms: Sequence[Arm], *, count: int = NUM_QUESTIONS) -> Completions:
    """Read completions of the same questions, arm beside arm, each arm by one of its runs.

    Of each arm the run is that of the smallest seed that all arms have, or its first one. Arms
    without completions are left out.
    """
    import polars as pl

    by_seed = {
        number: {run.config.get("seed"): run for run in arm.runs if run.completions}
        for number, arm in enumerate(arms)
    }
    with_texts = [(number, runs) for number, runs in by_seed.items() if runs]
    seeds = with_texts[0][1] if with_texts else ()
    common = [seed for seed in seeds if all(seed in runs for _, runs in with_texts)]
    chosen = [
        (number, arms[number].name, runs[common[0]] if common else next(iter(runs.values())))
        for number, runs in with_texts
    ]
    tables = [pl.scan_parquet(list(run.completions)).select(COLUMNS) for _, _, run in chosen]
    questions = choose_questions([_asked_at(table) for table in tables], count)
    pictures = _Pictures()
    shown = []
    for question_id, steps in questions:
        found_arms = []
        for place, step in steps.items():
            number, name, run = chosen[place]
            rows = tables[place].filter(
                (pl.col("step") == step) & (pl.col("question_id") == question_id)
            )
            variants = tuple(
                _shown_variant(variant.to_dicts(), pictures, run, name)
                for variant in rows.collect().partition_by("variant", maintain_order=True)
            )
            found_arms.append(ShownArm(number, name, run.config.get("seed"), step, variants))
        record = pictures.record(question_id)
        shown.append(
            ShownQuestion(question_id, asked(record) if record else None, tuple(found_arms))
        )
    notes = pictures.notes()
    if len(chosen) > 1 and shown and len(questions[0][1]) == 1:
        notes = ("No question was asked of all arms: each shows one of its own.", *notes)
    if any(len(set(steps.values())) > 1 for _, steps in questions):
        notes = ("The arms were never asked one question at one step: steps differ.", *notes)
    if any(run.config.get("spatial") or run.config.get("views") for _, _, run in chosen):
        notes = (*notes, "Frames are shown as cached, without the augmentation of their views.")
    return Completions(tuple(shown), notes)


def _asked_at(table: Any) -> dict[int, list[str]]:
    """Question ids of each step, in the order of the file."""
    pairs = table.select("step", "question_id").unique(maintain_order=True).collect()
    found: dict[int, list[str]] = {}
    for step, question_id in pairs.iter_rows():
        found.setdefault(step, []).append(question_id)
    return found


def _shown_variant(
    rows: Sequence[Mapping[str, Any]], pictures: "_Pictures", run: Run, name: str
) -> ShownVariant:
    first = rows[0]
    texts = Counter((row["text"], row["reward"], row["advantage"]) for row in rows)
    return ShownVariant(
        variant=first["variant"],
        evidence_seen=first["evidence_seen"],
        num_completions=len(rows),
        written=tuple(Written(*key, count) for key, count in texts.most_common()),
        frames=pictures.cells(run, name, first["question_id"], first["frame_index"]),
    )


# --- frames from caches -------------------------------------------------------------------------


def cache_of(run: Run) -> Path:
    """Find the cache that a run trained on.

    A relative path is that of the folder where training was called. It is looked for from the
    run's folder upwards and then from here, so that a workspace can be moved.

    Raises:
        CacheError: the run names none, or it lies in none of these places.
    """
    given = run.config.get("cache")
    if given is None:
        raise CacheError("config.json names no cache")
    places = [place / given for place in (*run.path.resolve().parents, Path.cwd())]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise CacheError(f"the cache {given} is gone")
    return found


class _Pictures:
    """The caches of some runs, each opened once; what cannot be shown becomes a note."""

    def __init__(self) -> None:
        self._opened: dict[tuple[Path, str], tuple[FrameReader, dict[str, Record]]] = {}
        self._failed: dict[str, dict[str, None]] = {}

    def record(self, question_id: str) -> Record | None:
        """Return a question from the first cache that has it."""
        for _, records in self._opened.values():
            if question_id in records:
                return records[question_id]
        return None

    def notes(self) -> tuple[str, ...]:
        """Return a line for each reason why frames are not shown, with the arms' names."""
        return tuple(
            f"{', '.join(names)}: frames are not shown: {reason}"
            for reason, names in self._failed.items()
        )

    def cells(
        self, run: Run, name: str, question_id: str, frame_index_K: Sequence[int]
    ) -> tuple[dict[str, Any], ...]:
        """Return a cell for each frame that a variant showed, or none and a note."""
        try:
            return self._cells(run, question_id, frame_index_K)
        except CacheError as error:
            self._failed.setdefault(str(error), {})[name] = None
            return ()

    def _cells(
        self, run: Run, question_id: str, frame_index_K: Sequence[int]
    ) -> tuple[dict[str, Any], ...]:
        root, frames_key = cache_of(run), run.config.get("frames_key")
        if frames_key is None:
            raise CacheError("config.json does not say which frames of the cache")
        if (root, frames_key) not in self._opened:
            layout = open_cache(root)
            records = {record.question_id: record for record in read_questions(layout)}
            self._opened[root, frames_key] = FrameReader(layout, frames_key), records
        frames, records = self._opened[root, frames_key]
        if question_id not in records:
            raise CacheError(f"question '{question_id}' is not in the cache {root}")
        record = records[question_id]
        video = frames.info(record.video_id)
        if max(frame_index_K) >= video.num_frames:
            raise CacheError(
                f"video '{record.video_id}' was cached anew in {root}, with fewer frames"
            )
        evidence_F = evidence_mask(video.pts_seconds_F, record.evidence_spans_seconds)
        jpegs: dict[int, bytes] = {
            index: thumbnail(frame_HWC, FRAME_WIDTH)
            for index, frame_HWC in zip(
                np.unique(frame_index_K).tolist(),
                frames.read(record.video_id, np.unique(frame_index_K)),
                strict=True,
            )
        }
        return tuple(
            frame_cell(video, index, jpegs[index], is_evidence=bool(evidence_F[index]))
            for index in frame_index_K
        )
