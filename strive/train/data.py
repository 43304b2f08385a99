"""What our trainer adds to `strive.groups`: augmentation, a process's share, and reading ahead."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from strive.configs.schema import TrainConfig
from strive.errors import ConfigError
from strive.groups import VariantReader
from strive.train.augment import augment_variant

T = TypeVar("T")


class TrainingData(VariantReader):
    """The questions and variants of a run, spatial augmentation included."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config, augment=augment_variant)


def shard(
    questions: Sequence[T], num_variants: int, rank: int, world_size: int
) -> list[tuple[T, range]]:
    """One process's consecutive part of a step: questions, each with the variants that are its own.

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

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
