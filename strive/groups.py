"""The groups of a run, for our trainer and for others: which questions a step holds, which frames
each variant of their videos shows, and one row for each of the M x G completions to be written.

NumPy and Arrow only. Everything here follows from (config, cache, step) alone, so a resumed run, a
run on another number of processes, or another trainer with the same configuration sees the same
questions and the same frames.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from strive.answers import build_question
from strive.cache.failures import read_failures
from strive.cache.frames import FrameReader
from strive.cache.layout import CacheLayout, default_frames_key, open_cache
from strive.cache.questions import read_questions
from strive.cache.scores import ScoreReader, ScorerInfo, find_scorer, list_scorers
from strive.configs.schema import TrainConfig
from strive.errors import CacheError, ConfigError
from strive.records import Record, VideoFrames, read_records, sample_records
from strive.seeding import derive_rng
from strive.variants import (
    NEEDS_SCORES,
    VARIANT_KINDS,
    DrawRule,
    Peak,
    draw_variants,
    effective_frames,
    evidence_seen,
    frame_overlap,
    typical_peak,
)

AugmentVariant = Callable[..., NDArray[np.uint8]]
"""Changes a variant's frames alike: `(frames_KHWC, *, seed, step, question_id, variant)` to frames
of the same shape and type, drawing from nothing but these keys. The paper's is
`strive.train.augment.augment_variant`."""


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
    duration_seconds: float | None = None
    """Of the whole video; None where it is not known."""
    contrast: VideoFrames | None = None
    """The first variant under the contrast's view, where a run has one and the variant is read."""


class VariantReader:
    """The questions of a configuration and the cache that their frames and scores come from.

    `config.spatial` asks for spatial augmentation, which needs torchvision and is therefore handed
    in: `VariantReader(config, augment=strive.train.augment.augment_variant)`; `config.views` asks
    for any view: `VariantReader(config, augment=strive.train.views.FrameViews(config))`.

    Raises:
        ConfigError: no cache is named, fewer questions than a step needs, or `spatial` or `views`
            without `augment`.
        CacheError: the cache lacks frames or scores; the message says which command makes them.
    """

    def __init__(self, config: TrainConfig, *, augment: AugmentVariant | None = None) -> None:
        if config.cache is None:
            raise ConfigError(
                "cache is not set; name the folder that precompute wrote, --cache DIR"
            )
        has_views = any(view != "none" for view in config.views_M)
        if config.views and has_views and augment is None:
            raise ConfigError(
                f"views is {list(config.views)} and VariantReader was given no augmentation; pass "
                "augment=strive.train.views.FrameViews(config), or set views=[]"
            )
        if config.spatial and augment is None:
            raise ConfigError(
                "spatial is true and VariantReader was given no augmentation; pass "
                "augment=strive.train.augment.augment_variant, or set spatial=false"
            )
        self.config = config
        self.layout = open_cache(config.cache)
        self._augment = augment if has_views else None
        self.left_out = Counter({"no video": 0, "no current scores": 0, "too long": 0})
        """Questions that were asked for and are no part of the run, by the reason."""
        self.num_changed = 0
        self.changed_fields: Counter[str] = Counter()
        """Of `num_changed` records that `data` gives otherwise than the cache: what differs."""
        asked = self._read_records()
        scorer = _scorer_of(self.layout, config)
        self.scores = ScoreReader(self.layout, scorer.key, asked) if scorer else None
        rule = DrawRule(config.num_frames, config.frame_temperature, config.score_transform)
        self.rule = self.scores.draw_rule(rule) if self.scores else rule
        """How frames are drawn: the configuration's part and the scorer's."""
        self.frames = open_frames(self.layout, config)
        with_video = _with_video(asked, self.frames, self.layout, config)
        self.left_out["no video"] = len(asked) - len(with_video)
        self.records = self._with_scores(with_video)
        self._require_enough()

    @property
    def scorer_name(self) -> str | None:
        """Name of the scorer whose scores are read; None where the variants need none."""
        return self.scores.name if self.scores else None

    def describe(self) -> dict[str, object]:
        """The run folder's account of what was read: keys and counts.

        Questions that are too long are among `num_questions`: which they are follows from the
        configuration and the policy, and need not be known to tell one run from another.
        """
        return {
            "cache": str(self.layout.root),
            "frames_key": self.frames.frames_key,
            "scorer": self.scorer_name,
            "scorer_key": self.scores.scorer_key if self.scores else None,
            "num_questions": len(self.records) + self.left_out["too long"],
            "num_questions_without_video": self.left_out["no video"],
            "num_questions_unscored": self.left_out["no current scores"],
            "num_questions_too_long": self.left_out["too long"],
            "num_questions_changed": self.num_changed,
        }

    def leave_out(self, question_ids: frozenset[str]) -> None:
        """Take questions out of the run whose prompts are too long for its policy.

        Raises:
            ConfigError: fewer are left than a step needs.
        """
        kept = [record for record in self.records if record.question_id not in question_ids]
        self.left_out["too long"] = len(self.records) - len(kept)
        self.records = kept
        self._require_enough()

    def notes(self) -> Counter[str]:
        """Videos of the run's questions by what is odd about them (docs/files.md)."""
        return self.frames.notes({record.video_id for record in self.records})

    def peak(self) -> Peak | None:
        """How far Eq. 4 is from uniform over the run's questions; None where it is not used."""
        if self.scores is None or self.config.variants not in NEEDS_SCORES:
            return None
        found = (self.scores.get(record.question_id) for record in self.records)
        return typical_peak([scores.scores_F for scores in found if scores], self.rule)

    def _require_enough(self) -> None:
        wanted, left_out = self.config.questions_per_step, self.left_out.total()
        if self.config.resample_rounds and wanted <= len(self.records) < 2 * wanted:
            raise ConfigError(
                f"resample_rounds is {self.config.resample_rounds} and there are "
                f"{len(self.records)} questions, fewer than two steps of questions_per_step="
                f"{wanted}: there would be none to replace groups by; add questions, or set "
                "resample_rounds=0"
            )
        if len(self.records) < wanted:
            raise ConfigError(
                f"questions_per_step is {wanted} but there are {len(self.records)} questions"
                + (f" ({left_out} left out: {self.left_out_text()})" if left_out else "")
                + "; lower questions_per_step or add questions"
            )

    def left_out_text(self) -> str:
        """Why questions were left out, with counts."""
        return ", ".join(f"{count} {reason}" for reason, count in self.left_out.items() if count)

    def _read_records(self) -> list[Record]:
        """The run's questions in order of their ids, whatever order the cache was written in."""
        records = {record.question_id: record for record in read_questions(self.layout)}
        if self.config.data:
            read = read_records(self.config.data, skip_bad=self.config.skip_bad_records)
            missing = [r.question_id for r in read.records if r.question_id not in records]
            if missing or not read.records:
                what = (
                    f"{len(missing)} of {len(read.records)} questions are not in "
                    f"{self.layout.root} (first: '{missing[0]}'); add them with"
                    if missing
                    else f"no video record in {', '.join(map(str, self.config.data))}; add some "
                    "and score them with"
                )
                raise CacheError(f"{what} {_command(self.config)}")
            # What the caller gives is asked and graded, not what an older file said.
            for record in read.records:
                cached = records[record.question_id]
                names = [field.name for field in fields(Record)]
                differing = [n for n in names if getattr(record, n) != getattr(cached, n)]
                self.num_changed += bool(differing)
                self.changed_fields.update(differing)
            records = {record.question_id: record for record in read.records}
        ordered = [records[question_id] for question_id in sorted(records)]
        # The sample is drawn before anything is left out, so that it is the one that
        # `precompute --for-config` prepared; a video that failed then makes it smaller.
        wanted = self.config.num_questions
        if wanted is not None and wanted < len(ordered):
            ordered = list(sample_records(ordered, wanted, self.config.seed))
        return ordered

    def _with_scores(self, records: list[Record]) -> list[Record]:
        """Leave out questions without current scores, where that is allowed."""
        if self.scores is None:
            return records
        unscored = [record for record in records if record.question_id not in self.scores]
        if unscored and not self.config.skip_unscored:
            ids = {record.question_id for record in unscored}
            failed = {row.question_id for row in read_failures(self.layout)} & ids
            stale = Counter(self.scores.stale[name] for name in ids if name in self.scores.stale)
            why = "".join(
                f"; {count} of them have scores of another {what}, which are stale: their {changed}"
                for what, count, changed in (
                    ("text", stale["text"], "question has changed since"),
                    ("set of frames", stale["frames"], "video was decoded anew"),
                )
                if count
            )
            why += f"; {len(failed)} of them failed: strive-cli cache failures" * bool(failed)
            raise CacheError(
                f"{len(unscored)} of {len(records)} questions have no current "
                f"'{self.scores.name}' scores (first: '{unscored[0].question_id}'{why}); make them "
                f"with {_command(self.config, self.scores.name)}, or set skip_unscored=true"
            )
        self.left_out["no current scores"] = len(unscored)
        return [record for record in records if record.question_id in self.scores]

    def questions_of(self, step: int) -> list[Record]:
        """All questions of a step (from 0): consecutive parts of a fresh order every epoch.

        What is left over at an epoch's end, fewer than a step needs, is passed over, so that no
        step holds a question twice.
        """
        per_step = self.config.questions_per_step
        epoch, part = divmod(step, len(self.records) // per_step)
        order_N = derive_rng(self.config.seed, "order", epoch).permutation(len(self.records))
        return [self.records[index] for index in order_N[part * per_step : (part + 1) * per_step]]

    def replacements_of(
        self, step: int, round_number: int, places: Sequence[int], used: Collection[str]
    ) -> dict[int, Record]:
        """Other questions for some places of a step, drawn from (seed, step, round) alone.

        No question is drawn twice or is among the ids `used`; where too few are left, the last
        places get none.
        """
        rng = derive_rng(self.config.seed, "resample", step, round_number)
        drawn = (self.records[index] for index in rng.permutation(len(self.records)))
        fresh = (record for record in drawn if record.question_id not in used)
        return dict(zip(places, fresh, strict=False))

    def read(
        self, record: Record, step: int, variants: Sequence[int] | None = None
    ) -> QuestionVariants:
        """Draw a question's variants for a step and read the frames of all, or of `variants`."""
        config, num_segments = self.config, self.rule.num_segments
        info = self.frames.info(record.video_id)
        scores = self.scores.get(record.question_id) if self.scores else None
        frame_index_MK, probabilities_F = draw_variants(
            config.variants,
            self.rule,
            num_frames=info.num_frames,
            num_variants=config.num_variants,
            scores_F=scores.scores_F if scores else None,
            seed=config.seed,
            step=step,
            question_id=record.question_id,
        )
        wanted = tuple(range(config.num_variants) if variants is None else variants)
        # Variants share frames: each frame is read once.
        wanted_VK = frame_index_MK[list(wanted)]
        needed_U, where_VK = np.unique(wanted_VK, return_inverse=True)
        pool_UHWC = self.frames.read(record.video_id, needed_U)
        videos = []
        for variant, where_K in zip(wanted, where_VK.reshape(wanted_VK.shape), strict=True):
            frames_KHWC = pool_UHWC[where_K]
            if self._augment is not None:
                frames_KHWC = self._augment(
                    frames_KHWC,
                    seed=config.seed,
                    step=step,
                    question_id=record.question_id,
                    variant=variant,
                )
            frame_index_K = frame_index_MK[variant]
            videos.append(
                VideoFrames(
                    frames_KHWC=frames_KHWC,
                    pts_seconds_K=info.pts_seconds_F[frame_index_K],
                    source_index_K=info.source_index_F[frame_index_K],
                )
            )
        mean_effective = float("nan")
        if probabilities_F is not None:
            mean_effective = float(effective_frames(probabilities_F, num_segments).mean())
        return QuestionVariants(
            record=record,
            frame_index_MK=frame_index_MK,
            variants=wanted,
            videos=tuple(videos),
            frame_overlap=frame_overlap(frame_index_MK),
            effective_frames=mean_effective,
            evidence_seen_M=evidence_seen(
                frame_index_MK, info.pts_seconds_F, record.evidence_spans_seconds or None
            ),
            duration_seconds=info.duration_seconds,
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


def held_out_records(
    config: TrainConfig, frames: FrameReader | None = None
) -> tuple[tuple[Record, ...], FrameReader, int]:
    """Read what is evaluated while a run trains, and the frames (opened if need be) that it shows.

    Benchmarks of `held_out` are not read here. Records whose video failed offline are left out; the
    last value counts them.

    Raises:
        ConfigError: the files hold no video record, or none whose video could be cached.
        CacheError: the cache lacks frames; the message says which command makes them.
    """
    assert config.cache is not None
    layout = open_cache(config.cache)
    frames = frames or open_frames(layout, config)
    records = read_records(config.held_out_files, skip_bad=config.skip_bad_records).records
    with_video = _with_video(list(records), frames, layout, config, what="held-out questions")
    if config.held_out_files and not with_video:
        why = f", {len(records)} whose video failed offline" * bool(records)
        raise ConfigError(
            f"held_out names nothing to ask: no video record in "
            f"{', '.join(map(str, config.held_out_files))}{why}; name other records, or set "
            "evaluate_every=0"
        )
    return tuple(with_video), frames, len(records) - len(with_video)


def open_frames(layout: CacheLayout, config: TrainConfig) -> FrameReader:
    """Open the frames that a run reads: those that its scores are of, else the only ones."""
    info = _scorer_of(layout, config)
    return FrameReader(layout, info.frames_key if info else default_frames_key(layout))


def _with_video(
    records: list[Record],
    frames: FrameReader,
    layout: CacheLayout,
    config: TrainConfig,
    *,
    what: str = "questions",
) -> list[Record]:
    """Leave out questions whose video failed offline: counted there, and by the caller.

    Raises:
        CacheError: the video of one was never tried.
    """
    absent = [record for record in records if record.video_id not in frames]
    if not absent:
        return records
    failed = {row.video_id for row in read_failures(layout) if row.question_id is None}
    unknown = [record for record in absent if record.video_id not in failed]
    if unknown:
        raise CacheError(
            f"{len(unknown)} of {len(records)} {what} have no frames in {frames.folder} (first: "
            f"'{unknown[0].question_id}', video '{unknown[0].video_id}'); make them with "
            f"{_command(config)}"
        )
    return [record for record in records if record.video_id in frames]


def _command(config: TrainConfig, scorer: str | None = None) -> str:
    """What brings records into a run's cache."""
    name = scorer or config.scorer
    option = f" --scorer {name}" if name else ""
    return (
        f"`strive-cli precompute --cache {config.cache}{option}` and the --data and --video-root "
        "of these records (neither for the lab's)"
    )


def _scorer_of(layout: CacheLayout, config: TrainConfig) -> ScorerInfo | None:
    """Whose scores a run reads; a user's own kind gets them where there is no choice."""
    own_kind = config.variants not in VARIANT_KINDS
    scorers = list_scorers(layout) if own_kind else []
    wanted = config.variants in NEEDS_SCORES or (own_kind and (config.scorer or len(scorers) == 1))
    return find_scorer(layout, config.scorer) if wanted else None
