"""What Ray runs for `--engine ray`: the decode task, and the actor that embeds, scores and commits.

Between the two travel encoded frames, never pixels. The driver is ray_engine.py.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strive.cache.embeddings import read_embeddings
from strive.configs.schema import PrecomputeConfig
from strive.errors import DecodeError, ModelError, ScorerError, StriveError
from strive.pipeline.options import writer_name
from strive.pipeline.prepare import PrepareRule, next_decoder, prepare_video
from strive.pipeline.stage import Stage
from strive.pipeline.summary import StageCounts
from strive.pipeline.work import VideoTask
from strive.records import Record
from strive.scorers.session import ScorerSession
from strive.video.worker import Job, Outcome, Worker


@dataclass(frozen=True, slots=True)
class Item:
    """One unit of work; `part` is a file of embeddings that hold the videos of `embedded`."""

    key: str
    video_ids: tuple[str, ...]
    task: VideoTask | None = None
    decode: bool = False
    scorer_key: str = ""
    part: Path | None = None
    embedded: dict[str, str] = field(default_factory=dict)
    records: dict[str, list[Record]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """What an actor says of one batch.

    `items` are committed. With `lost` some fault of a scorer ended the batch, and the rest of it is
    to be done again; a `fault` ends the run.
    """

    items: tuple[str, ...]
    video_ids: tuple[str, ...]
    counts: StageCounts
    node_ids: frozenset[str]
    lost: str = ""
    fault: Exception | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the command was given: relative model paths and a user's own modules begin there."""

    folder: str
    import_paths: tuple[str, ...]

    def enter(self) -> None:
        """Work there, as far as this node has these folders."""
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        sys.path += [path for path in self.import_paths if path not in sys.path]


@dataclass(frozen=True, slots=True)
class Decoded:
    """An item on its way to an actor: encoded frames if it was decoded, and by which node."""

    item: Item
    outcome: Outcome | None
    node_id: str


_worker: Worker | None = None


def decode_item(
    row: dict[str, Any], *, rule: PrepareRule, timeout_seconds: float, place: Place
) -> dict[str, Any]:
    """Decode one item's video in a process that can be killed, as the local engine does."""
    item: Item = row["item"]
    outcome = None
    if item.decode:
        place.enter()
        job = Job(item.video_ids[0], {"video_id": item.video_ids[0], "rule": rule})
        outcome = _prepare(job, timeout_seconds)
    # One object a row: a column of its own for outcomes would turn absent ones into NaN.
    return {"decoded": Decoded(item, outcome, _node_id())}


def _prepare(job: Job, timeout_seconds: float) -> Outcome:
    global _worker
    _worker = _worker or Worker()
    started = time.monotonic()
    attempt: Job | None = job
    while attempt is not None:
        try:
            value = _worker.call(prepare_video, attempt.kwargs, timeout_seconds)
            return Outcome(job.key, value, None, time.monotonic() - started)
        except DecodeError as error:
            last = error
            attempt = next_decoder(attempt, error)
        except (StriveError, OSError) as error:
            last = DecodeError("unexpected", f"{type(error).__name__}: {error}")
            attempt = None
    return Outcome(job.key, None, last, time.monotonic() - started)


class Embedder:
    """An actor: loads the scorers once, and commits each batch before it reports it."""

    def __init__(
        self,
        options: PrecomputeConfig,
        sessions: Sequence[ScorerSession],
        keys: Sequence[str],
        place: Place,
    ) -> None:
        self._options, self._sessions = options, sessions
        self._fault: Exception | None = None
        self._stage: Stage | None = None
        self._node_id = _node_id()
        try:
            place.enter()
            _check_keys(sessions, keys)
        except StriveError as error:
            self._fault = error  # raised by the driver, as if it had met it itself
        except Exception as error:  # an actor that cannot begin would be begun again and again
            self._fault = ModelError(
                f"a scorer cannot be loaded on node {self._node_id[:8]} "
                f"({type(error).__name__}: {error})"
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embed, score and commit the items of a batch; one row: the report."""
        decoded: list[Decoded] = list(batch["decoded"])
        nodes = frozenset({self._node_id, *(one.node_id for one in decoded)})
        counts, fault, lost = StageCounts(), self._fault, ""
        if fault is None:
            stage = self._stage_at_work()
            try:
                for one in decoded:
                    _put(stage, one.item, one.outcome)
                stage.flush()
            except Exception as error:
                self._stage = None
                stage.stop()  # commits what is finished
                if isinstance(error, StriveError) and not isinstance(error, ScorerError):
                    fault = error
                else:  # the batch is divided, so that only the guilty video fails
                    lost = f"{type(error).__name__}: {error}"[:300]
            counts = stage.take_counts()
        done = [] if fault is not None or lost else [one.item for one in decoded]
        report = Report(
            tuple(item.key for item in done),
            tuple(video_id for item in done for video_id in item.video_ids),
            counts,
            nodes,
            lost,
            fault,
        )
        return {"report": [report]}

    def _stage_at_work(self) -> Stage:
        """Return the stage of this actor; after a fault, a fresh one."""
        if self._stage is None:
            writer = f"{writer_name(self._options)}-{self._node_id[:6]}{os.getpid()}"
            self._stage = Stage(self._options, self._sessions, writer=writer).__enter__()
        return self._stage


def _put(stage: Stage, item: Item, outcome: Outcome | None) -> None:
    if item.part is not None:
        videos = list(read_embeddings(item.part, item.embedded))
        stage.put_embedded(item.scorer_key, videos, item.records)
    elif outcome is not None:
        assert item.task is not None
        stage.put(outcome, item.task)
    else:
        assert item.task is not None
        stage.put_cached(item.task)


def _check_keys(sessions: Sequence[ScorerSession], keys: Sequence[str]) -> None:
    """Load the scorers, and refuse to store under the driver's key what differs here.

    Raises:
        ModelError: a scorer has another key on this node.
    """
    for session, key in zip(sessions, keys, strict=True):
        here = session.loaded_key()
        if here != key:
            raise ModelError(
                f"scorer '{session.name}' is {here} on node {_node_id()[:8]} but {key} where the "
                "command was given (another device, number type, model file or library version); "
                "give --device and --dtype, and the same versions on all nodes"
            )


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())
