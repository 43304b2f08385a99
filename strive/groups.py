"""The groups of a run, for our trainer and for others: which questions a step holds, which frames
each variant of their videos shows, and one row for each of the M x G completions to be written.

NumPy and Arrow only. Everything here follows from (config, cache, step) alone, so a resumed run, a
run on another number of processes, or another trainer with the same configuration sees the same
questions and the same frames.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from strive.answers import build_question
from strive.cache.failures import read_failures
from strive.cache.frames import FrameReader, VideoInfo
from strive.cache.layout import CacheLayout, default_frames_key, open_cache
from strive.cache.questions import read_questions
from strive.cache.scores import QuestionScores, ScoreReader, find_scorer, list_scorers
from strive.configs.schema import TrainConfig
from strive.errors import CacheError, ConfigError
from strive.records import Record, read_records, sample_records
from strive.seeding import derive_rng
from strive.variants import (
    DEFAULT_LOGIT_SCALE,
    NEEDS_SCORES,
    VARIANT_KINDS,
    draw_variants,
    effective_frames,
    evidence_seen,
    frame_overlap,
    probabilities_of,
    segment_bounds,
)
from strive.video_frames import VideoFrames


class AugmentVariant(Protocol):
    """Changes a variant's frames alike; the paper's is `strive.train.augment.augment_variant`."""

    def __call__(
        self,
        frames_KHWC: NDArray[np.uint8],
        *,
        seed: int,
        step: int,
        question_id: str,
        variant: int,
    ) -> NDArray[np.uint8]:
        """Return frames of the same shape and type; draw from nothing but the keys."""


@dataclass(frozen=True)
class QuestionVariants:
    """One question of a step with its M variants, before the policy has seen them."""

    record: Record
    frame_index_MK: NDArray[np.int64]
    """Of all M variants, whoever reads their frames."""
    variants: tuple[int, ...]
    """Numbers of the variants whose frames were read: all, or one process's part."""
    videos: tuple[VideoFrames, ...]
    """Of `variants`, in their order."""
    frame_overlap: float
    """NaN with one variant."""
    effective_frames: float
    """NaN where the kind draws without scores."""
    evidence_seen_M: NDArray[np.bool_] | None
    """None where the record has no evidence spans."""


class VariantReader:
    """The questions of a configuration and the cache that their frames and scores come from.

    `config.spatial` asks for spatial augmentation, which needs torchvision and is therefore handed
    in: `VariantReader(config, augment=strive.train.augment.augment_variant)`.

    Raises:
        ConfigError: no cache is named, fewer questions than a step needs, or `spatial` without
            `augment`.
        CacheError: the cache lacks frames or scores; the message says which command makes them.
    """

    def __init__(self, config: TrainConfig, *, augment: AugmentVariant | None = None) -> None:
        if config.cache is None:
            raise ConfigError(
                "cache is not set; name the folder that precompute wrote, --cache DIR"
            )
        if config.spatial and augment is None:
            raise ConfigError(
                "spatial is true and VariantReader was given no augmentation; pass "
                "augment=strive.train.augment.augment_variant, or set spatial=false"
            )
        self.config = config
        self.layout = open_cache(config.cache)
        self.scores = _open_scores(self.layout, config)
        frames_key = self.scores.frames_key if self.scores else default_frames_key(self.layout)
        self.frames = FrameReader(self.layout, frames_key)
        self.num_failed = self.num_unscored = 0
        self._augment = augment
        self.records = self._select_records()
        if len(self.records) < config.questions_per_step:
            raise ConfigError(
                f"questions_per_step is {config.questions_per_step} but there are "
                f"{len(self.records)} questions; lower questions_per_step or add questions"
            )

    @property
    def scorer_name(self) -> str | None:
        """Name of the scorer whose scores are read; None where the variants need none."""
        return self.scores.name if self.scores else None

    def describe(self) -> dict[str, object]:
        """The run folder's account of what was read: keys and counts."""
        return {
            "cache": str(self.layout.root),
            "frames_key": self.frames.frames_key,
            "scorer": self.scorer_name,
            "scorer_key": self.scores.scorer_key if self.scores else None,
            "num_questions": len(self.records),
            "num_questions_without_video": self.num_failed,
            "num_questions_unscored": self.num_unscored,
        }

    def _select_records(self) -> list[Record]:
        """The run's questions in order of their ids, whatever order the cache was written in."""
        records = {record.question_id: record for record in read_questions(self.layout)}
        if self.config.data:
            read = read_records(self.config.data, skip_bad=self.config.skip_bad_records)
            chosen = [record.question_id for record in read.records]
            missing = [question_id for question_id in chosen if question_id not in records]
            if missing:
                raise CacheError(
                    f"{len(missing)} of {len(chosen)} questions are not in {self.layout.root} "
                    f"(first: '{missing[0]}'); add them with {self._command()}"
                )
            records = {question_id: records[question_id] for question_id in chosen}
        ordered = [records[question_id] for question_id in sorted(records)]
        # The sample is drawn before anything is left out, so that it is the one that
        # `precompute --for-config` prepared; a video that failed then makes it smaller.
        wanted = self.config.num_questions
        if wanted is not None and wanted < len(ordered):
            ordered = list(sample_records(ordered, wanted, self.config.seed))
        return self._scored(self._with_video(ordered))

    def _with_video(self, records: list[Record]) -> list[Record]:
        """Leave out questions whose video failed offline: counted there and here."""
        absent = [record for record in records if record.video_id not in self.frames]
        if not absent:
            return records
        failures = read_failures(self.layout)
        failed = {failure.video_id for failure in failures if failure.question_id is None}
        unknown = [record for record in absent if record.video_id not in failed]
        if unknown:
            raise CacheError(
                f"{len(unknown)} questions have no frames in {self.frames.folder} (first: "
                f"'{unknown[0].question_id}', video '{unknown[0].video_id}'); make them with "
                f"{self._command()}"
            )
        self.num_failed = len(absent)
        return [record for record in records if record.video_id in self.frames]

    def _scored(self, records: list[Record]) -> list[Record]:
        if self.scores is None:
            return records
        unscored = [record for record in records if record.question_id not in self.scores]
        if unscored and not self.config.skip_unscored:
            ids = {record.question_id for record in unscored}
            failed = {row.question_id for row in read_failures(self.layout)} & ids
            why = f"; {len(failed)} of them failed: strive-cli cache failures" * bool(failed)
            raise CacheError(
                f"{len(unscored)} of {len(records)} questions have no '{self.scores.name}' scores "
                f"(first: '{unscored[0].question_id}'{why}); make them with {self._command()}, or "
                "set skip_unscored=true"
            )
        self.num_unscored = len(unscored)
        return [record for record in records if record.question_id in self.scores]

    def _command(self) -> str:
        scorer = f" --scorer {self.scores.name}" if self.scores else ""
        return (
            f"`strive-cli precompute --cache {self.layout.root}{scorer}` and the --data and "
            "--video-root of that cache (neither for the lab's)"
        )

    def questions_of(self, step: int) -> list[Record]:
        """All questions of a step (from 0): consecutive parts of a fresh order every epoch.

        What is left over at an epoch's end, fewer than a step needs, is passed over, so that no
        step holds a question twice.
        """
        per_step = self.config.questions_per_step
        epoch, part = divmod(step, len(self.records) // per_step)
        order_N = derive_rng(self.config.seed, "order", epoch).permutation(len(self.records))
        return [self.records[index] for index in order_N[part * per_step : (part + 1) * per_step]]

    def read(
        self, record: Record, step: int, variants: Sequence[int] | None = None
    ) -> QuestionVariants:
        """Draw a question's variants for a step and read the frames of all, or of `variants`."""
        info = self.frames.info(record.video_id)
        scores = self.scores.get(record.question_id) if self.scores else None
        frame_index_MK = self._draw(record, info, scores, step)
        wanted = tuple(range(len(frame_index_MK)) if variants is None else variants)
        # Variants share frames: read each frame once.
        drawn_VK = frame_index_MK[list(wanted)]
        needed_U, where_VK = np.unique(drawn_VK, return_inverse=True)
        pool_UHWC = self.frames.read(record.video_id, needed_U)
        videos = tuple(
            self._video(record, info, step, variant, frame_index_K, pool_UHWC[where_K])
            for variant, frame_index_K, where_K in zip(
                wanted, drawn_VK, where_VK.reshape(drawn_VK.shape), strict=True
            )
        )
        spans = record.evidence_spans_seconds
        return QuestionVariants(
            record=record,
            frame_index_MK=frame_index_MK,
            variants=wanted,
            videos=videos,
            frame_overlap=frame_overlap(frame_index_MK),
            effective_frames=self._effective_frames(scores),
            evidence_seen_M=(
                None if not spans else evidence_seen(frame_index_MK, info.pts_seconds_F, spans)
            ),
        )

    def _draw(
        self, record: Record, info: VideoInfo, scores: QuestionScores | None, step: int
    ) -> NDArray[np.int64]:
        config = self.config
        return draw_variants(
            config.variants,
            num_frames=info.num_frames,
            num_variants=config.num_variants,
            num_segments=config.num_frames,
            scores_F=None if scores is None else scores.scores_F,
            score_kind="similarity" if self.scores is None else self.scores.kind,  # type: ignore[arg-type]
            frame_temperature=config.frame_temperature,
            score_transform=config.score_transform,
            logit_scale=self._logit_scale(),
            seed=config.seed,
            step=step,
            question_id=record.question_id,
        )

    def _effective_frames(self, scores: QuestionScores | None) -> float:
        """Mean over segments of the effective number of frames that Eq. 4 draws from."""
        if scores is None or self.scores is None:
            return float("nan")
        probabilities_F = probabilities_of(
            scores.scores_F,
            score_kind=self.scores.kind,  # type: ignore[arg-type]
            num_segments=self.config.num_frames,
            frame_temperature=self.config.frame_temperature,
            score_transform=self.config.score_transform,
            logit_scale=self._logit_scale(),
        )
        bounds_K2 = segment_bounds(len(probabilities_F), self.config.num_frames)
        effective_K = effective_frames(probabilities_F, bounds_K2)
        return float(effective_K[effective_K > 0].mean())

    def _logit_scale(self) -> float:
        return self.scores.logit_scale if self.scores else DEFAULT_LOGIT_SCALE

    def _video(
        self,
        record: Record,
        info: VideoInfo,
        step: int,
        variant: int,
        frame_index_K: NDArray[np.int64],
        frames_KHWC: NDArray[np.uint8],
    ) -> VideoFrames:
        if self.config.spatial and self._augment is not None:
            frames_KHWC = self._augment(
                frames_KHWC,
                seed=self.config.seed,
                step=step,
                question_id=record.question_id,
                variant=variant,
            )
        return VideoFrames(
            frames_KHWC=frames_KHWC,
            pts_seconds_K=info.pts_seconds_F[frame_index_K],
            source_index_K=info.source_index_F[frame_index_K],
        )


@dataclass(frozen=True)
class GroupRow:
    """What one completion is written for: generation j of variant i of one question."""

    step: int
    """From 0."""
    record: Record
    """`question_id`, `problem`, `options`, `problem_type`, `solution`, ..."""
    prompt: str
    """The text of the user's turn after the video, by the configuration's `prompt_template`."""
    variant: int
    generation: int
    frame_index_K: NDArray[np.int64]
    """Which frames of the pool the variant shows."""
    video: VideoFrames
    """The variant's frames, one object for all of its G rows: copy before writing into it."""

    @property
    def group_id(self) -> str:
        """Equal for the M x G rows of one question in one step, and for no others."""
        return f"{self.step}:{self.record.question_id}"


class GroupRows:
    """The rows of all steps of a run, in the order in which a trainer takes them.

    Steps, then a step's questions, then variants, then generations: the M x G rows of a group stand
    next to one another, and so do the G rows of a variant within it. It has a length and an index,
    so that `torch.utils.data.DataLoader(rows, collate_fn=list)` takes it as it is.
    """

    def __init__(self, reader: VariantReader) -> None:
        config = reader.config
        self.reader = reader
        self.group_size = config.num_variants * config.num_generations
        self.rows_per_step = config.questions_per_step * self.group_size
        self._last: tuple[int, QuestionVariants] | None = None

    def __len__(self) -> int:
        return self.reader.config.steps * self.rows_per_step

    def __iter__(self) -> Iterator[GroupRow]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> GroupRow:
        """Return row `index`, from 0; frames are read once for rows of one question in a row.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        group, row = divmod(index, self.group_size)
        step, place = divmod(group, self.reader.config.questions_per_step)
        last = self._last
        if last is None or last[0] != group:
            record = self.reader.questions_of(step)[place]
            self._last = last = (group, self.reader.read(record, step))
        question = last[1]
        variant, generation = divmod(row, self.reader.config.num_generations)
        return GroupRow(
            step=step,
            record=question.record,
            prompt=build_question(question.record, self.reader.config.prompt_template),
            variant=variant,
            generation=generation,
            frame_index_K=question.frame_index_MK[variant],
            video=question.videos[variant],
        )


def _open_scores(layout: CacheLayout, config: TrainConfig) -> ScoreReader | None:
    """Scores for the kinds that read them; a user's own kind gets them where there is no choice."""
    own_kind = config.variants not in VARIANT_KINDS
    scorers = list_scorers(layout) if own_kind else []
    wanted = config.variants in NEEDS_SCORES or (own_kind and (config.scorer or len(scorers) == 1))
    if not wanted:
        return None
    scores = ScoreReader(layout, find_scorer(layout, config.scorer).key)
    if config.score_transform not in scores.allowed_transforms:
        raise ConfigError(
            f"score_transform is '{config.score_transform}' but scorer '{scores.name}' gives "
            f"scores of kind '{scores.kind}'; allowed: {', '.join(scores.allowed_transforms)}"
        )
    return scores
