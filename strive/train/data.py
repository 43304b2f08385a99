"""What our trainer adds to `strive.groups`: augmentation, a process's share, and reading ahead."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from strive.configs.schema import TrainConfig
from strive.errors import ConfigError
from strive.groups import QuestionVariants, VariantReader
from strive.train.augment import augment_variant

__all__ = ["Prefetcher", "QuestionVariants", "TrainingData", "shard"]

T = TypeVar("T")


class TrainingData(VariantReader):
    """The questions and variants of a run, spatial augmentation included."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config, augment=augment_variant)


def shard(items: Sequence[T], rank: int, world_size: int) -> list[T]:
    """One process's consecutive part of a step's questions.

    Raises:
        ConfigError: they do not divide evenly, which would leave processes out of step.
    """
    if len(items) % world_size:
        raise ConfigError(
            f"questions_per_step is {len(items)} with {world_size} processes; it must be a "
            f"multiple of {world_size}"
        )
    size = len(items) // world_size
    return list(items[rank * size : (rank + 1) * size])


class Prefetcher(Generic[T]):
    """Prepares the next step in a background thread while this one computes."""

    def __init__(self, load: Callable[[int], T], num_steps: int) -> None:
        self._load = load
        self._num_steps = num_steps
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="strive-data")
        self._next: tuple[int, Future[T]] | None = None

    def get(self, step: int) -> T:
        """Return a step's data, an error of its loading included, and begin with the next."""
        if self._next is not None and self._next[0] == step:
            future = self._next[1]
        else:
            future = self._pool.submit(self._load, step)
        data = future.result()
        self._next = None
        if step + 1 < self._num_steps:
            self._next = (step + 1, self._pool.submit(self._load, step + 1))
        return data

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
