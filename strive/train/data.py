"""What our trainer adds to `strive.groups`: augmentation, a process's share, and reading ahead."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Generic, Self, TypeVar

from strive.configs.schema import TrainConfig
from strive.errors import ConfigError
from strive.groups import QuestionVariants, VariantReader
from strive.records import Record
from strive.train.views import FrameViews

T = TypeVar("T")


class TrainingData(VariantReader):
    """The questions and variants of a run, with its views and its contrast."""

    def __init__(self, config: TrainConfig) -> None:
        self._views = FrameViews(config)
        super().__init__(config, augment=self._views)

    def read(
        self, record: Record, step: int, variants: Sequence[int] | None = None
    ) -> QuestionVariants:
        """See `VariantReader.read`; the first variant's contrast goes with it."""
        question = super().read(record, step, variants)
        if self.config.contrast == "none" or 0 not in question.variants:
            return question
        first = question.videos[question.variants.index(0)]
        frames_KHWC = self._views.contrast(
            first.frames_KHWC, step=step, question_id=record.question_id
        )
        return replace(question, contrast=replace(first, frames_KHWC=frames_KHWC))


def step_share(config: TrainConfig, rank: int, world_size: int) -> list[tuple[int, range]]:
    """One process's part of a step: places of questions, each with the variants that are its own.

    Each of `minibatches_per_rollout` parts of the step is shared out for itself (`shard`).

    Raises:
        ConfigError: a part does not divide evenly, or the loss needs all variants of a question in
            one process and they are not.
    """
    size = config.questions_per_step // config.minibatches_per_rollout
    places = range(config.questions_per_step)
    if config.minibatches_per_rollout > 1 and size * config.num_variants % world_size:
        raise ConfigError(
            f"minibatches_per_rollout={config.minibatches_per_rollout} parts of questions_per_step="
            f"{config.questions_per_step} x num_variants={config.num_variants} hold "
            f"{size * config.num_variants} variants each, which {world_size} processes cannot "
            f"share evenly; set questions_per_step to a multiple of "
            f"{world_size * config.minibatches_per_rollout}, or start fewer processes"
        )
    shares = [
        share
        for part in range(config.minibatches_per_rollout)
        for share in shard(
            places[part * size : (part + 1) * size], config.num_variants, rank, world_size
        )
    ]
    # What compares or regroups a question's variants in the loss.
    reasons = (("update_view", "first"), ("surrogate", "regression"))
    whole = [f"{key} '{value}'" for key, value in reasons if getattr(config, key) == value]
    if whole and size % world_size:
        raise ConfigError(
            f"{whole[0]} needs all variants of a question in one process, and {world_size} "
            f"processes cannot share {size} questions so"
            + f" (questions_per_step={config.questions_per_step} in "
            f"{config.minibatches_per_rollout} parts)"
            * (config.minibatches_per_rollout > 1)
            + f"; set questions_per_step to a multiple of "
            f"{world_size * config.minibatches_per_rollout}, or start fewer processes"
        )
    return shares


def shard(
    questions: Sequence[T], num_variants: int, rank: int, world_size: int
) -> list[tuple[T, range]]:
    """One process's consecutive part of some questions, each with the variants that are its own.

    What is shared out is the pair (question, variant), so that 4 questions of 2 variants fill 8
    processes. All get equally many, since each backward pass may be one that all take part in.

    Raises:
        ConfigError: the pairs do not divide evenly.
    """
    num_pairs = len(questions) * num_variants
    if num_pairs % world_size:
        more = len(questions)
        while more * num_variants % world_size:
            more += 1
        fewer = max(n for n in range(1, world_size) if num_pairs % n == 0)
        raise ConfigError(
            f"questions_per_step={len(questions)} x num_variants={num_variants} gives {num_pairs} "
            f"variants a step, which {world_size} processes cannot share evenly; add --set "
            f"questions_per_step={more}, or start {fewer} process{'es' if fewer > 1 else ''} "
            f"(--num_gpus {fewer} of deepspeed, --nproc_per_node={fewer} of torchrun)"
        )
    size = num_pairs // world_size
    first, end = rank * size, (rank + 1) * size
    shares = [
        (question, range(max(0, first - start), min(num_variants, end - start)))
        for start, question in zip(range(0, num_pairs, num_variants), questions, strict=True)
    ]
    return [(question, variants) for question, variants in shares if len(variants)]


class Prefetcher(Generic[T]):
    """Prepares the next step in a background thread while this one computes."""

    def __init__(self, load: Callable[[int], T], num_steps: int) -> None:
        self._load = load
        self._num_steps = num_steps
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="strive-data")
        self._futures: dict[int, Future[T]] = {}

    def begin(self, step: int) -> Future[T]:
        """Begin to prepare a step, if that has not begun; its result raises what is wrong."""
        if step not in self._futures:
            self._futures[step] = self._pool.submit(self._load, step)
        return self._futures[step]

    def get(self, step: int) -> T:
        """Return a step's data, an error of its loading included, and begin with the next."""
        data = self.begin(step).result()
        del self._futures[step]
        if step + 1 < self._num_steps:
            self.begin(step + 1)
        return data

    def call(self, load: Callable[[], T]) -> T:
        """Run `load` in the same thread, after what it is busy with."""
        return self._pool.submit(load).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
