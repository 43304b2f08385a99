"""`--engine ray`: the stages of the local loop on Ray Data, over several machines.

    items -> decode (tasks, one CPU each) -> embed, score, commit (actors) -> reports -> the driver

An item is a video to decode, a cached video that a scorer's model has not seen, or a part of cached
embeddings with new questions. Between the stages travel encoded frames, never pixels. An actor
commits its batch before it reports it, so that nothing is lost when the job ends, and what was
never committed is found again by the same command. Only this file and ray_cluster.py know of Ray,
and both import it when called.
"""

import logging
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from strive.cache.embeddings import find_embeddings, read_embeddings
from strive.cache.failures import commit_failures
from strive.cache.frames import read_video_states
from strive.cache.layout import CacheLayout
from strive.errors import DecodeError, ModelError, StriveError, TooManyFailuresError
from strive.pipeline.feed import failure_row
from strive.pipeline.options import PrecomputeOptions
from strive.pipeline.prepare import PrepareRule, next_decoder, prepare_video
from strive.pipeline.ray_cluster import Cluster, check_nodes, connected, import_ray
from strive.pipeline.session import ScorerSession
from strive.pipeline.stage import Stage
from strive.pipeline.summary import PrecomputeSummary, StageCounts
from strive.pipeline.work import VideoTask, Work
from strive.progress import Progress, show_progress
from strive.records import Record
from strive.video.worker import Job, Outcome, Worker

# A task takes tens of milliseconds of Ray's own time: a few videos each make that little.
MAX_VIDEOS_PER_TASK = 8
# What an actor commits at once: parts stay few, and little is done twice when an actor dies.
MAX_VIDEOS_PER_COMMIT = 64
VIDEOS_PER_EMBEDDED_ITEM = 256
# A batch that ends its actor is tried once more, then its videos one by one.
MAX_BATCH_RETRIES = 1
MAX_INIT_DEATHS = 3
# Blocks that may be lost in the first round; more mean that it is not the videos.
MAX_LOST_FRACTION = 0.1
MIN_LOST_BLOCKS = 4


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


def run_with_ray(
    options: PrecomputeOptions, layout: CacheLayout, work: Work, summary: PrecomputeSummary
) -> None:
    """Do the work of a call on Ray; settings and questions are already committed.

    Raises:
        ConfigError: Ray is not installed, no cluster answers, or a node lacks cache or videos.
        TooManyFailuresError: Ray lost more than single batches; what was committed is kept.
        StriveError: a fault of an actor, such as a full disk.
    """
    if work.is_empty:
        return
    ray = import_ray()
    # Other machines, and other working directories on this one.
    options = replace(
        options, cache=options.cache.absolute(), video_root=options.video_root.absolute()
    )
    layout = CacheLayout(options.cache)
    started = time.monotonic()
    with connected(ray, options.workers) as cluster:
        check_nodes(ray, cluster, cache=options.cache, video_root=options.video_root)
        summary.engine, summary.num_workers = str(cluster), cluster.num_cpus
        items = {item.key: item for item in _items(layout, work)}
        with show_progress("precompute", work.num_videos, "videos") as progress:
            progress.note(str(cluster))
            flow = _Flow(ray, cluster, options, work, summary, progress)
            try:
                per_actor = -(-len(items) // (2 * cluster.num_actors))
                flow.run(items, min(max(per_actor, 1), MAX_VIDEOS_PER_COMMIT))
                if items:
                    # Lost with an actor or a task: one at a time, so that only the guilty fail.
                    flow.run(items, 1)
                flow.give_up(items.values())
            except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
                raise TooManyFailuresError(
                    f"{cluster.description} ended the run ({_last_line(error)}); what was "
                    "committed is kept, the same command goes on"
                ) from error
            finally:
                summary.num_nodes_used = len(flow.node_ids)
                summary.run_seconds = time.monotonic() - started


def _items(layout: CacheLayout, work: Work) -> Iterator[Item]:
    for video_id in work.to_decode:
        yield Item(f"video {video_id}", (video_id,), work.task_of(video_id), decode=True)
    for video_id in work.to_read:
        yield Item(f"video {video_id}", (video_id,), work.task_of(video_id))
    for scorer in work.scorers:
        wanted = {
            video_id: work.cached[video_id].checksum
            for video_id in scorer.to_score
            if video_id not in scorer.to_embed
        }
        key = scorer.session.key
        for path, held in find_embeddings(layout, key, wanted):
            ids = list(held)
            for start in range(0, len(ids), VIDEOS_PER_EMBEDDED_ITEM):
                some = ids[start:][:VIDEOS_PER_EMBEDDED_ITEM]
                yield Item(
                    f"part {key} {path.name} {start}",
                    tuple(some),
                    scorer_key=key,
                    part=path,
                    embedded={video_id: held[video_id] for video_id in some},
                    records={video_id: scorer.to_score[video_id] for video_id in some},
                )


class _Flow:
    """The driver's side: rounds of the dataset, and what the actors report."""

    def __init__(
        self,
        ray: Any,
        cluster: Cluster,
        options: PrecomputeOptions,
        work: Work,
        summary: PrecomputeSummary,
        progress: Progress,
    ) -> None:
        self.ray, self.cluster, self.options, self.work = ray, cluster, options, work
        self.summary, self.progress = summary, progress
        self.node_ids: set[str] = set()
        self._lost: Counter[str] = Counter()
        self._lost_allowed = 0
        self._seen: set[str] = set()
        self._started = time.monotonic()

    def run(self, items: dict[str, Item], batch_videos: int) -> None:
        """Run one round and remove from `items` what is done; what was lost stays.

        Raises:
            StriveError: a fault that an actor reported.
        """
        with _quiet(self.ray) as context:
            dataset, num_blocks = self._dataset(list(items.values()), batch_videos)
            allowed = max(MIN_LOST_BLOCKS, int(num_blocks * MAX_LOST_FRACTION))
            self._lost_allowed = len(items) if batch_videos == 1 else allowed
            context.max_errored_blocks = self._lost_allowed
            rows = iter(dataset.iter_rows())
            try:
                for row in rows:
                    report: Report = row["report"]
                    self._take(report)
                    for key in report.items:
                        items.pop(key, None)
            finally:
                close = getattr(rows, "close", None)
                if close is not None:
                    close()

    def _dataset(self, items: list[Item], batch_videos: int) -> tuple[Any, int]:
        per_task = len(items) // (4 * max(self.cluster.num_cpus, 1))
        num_blocks = -(-len(items) // min(max(per_task, 1), MAX_VIDEOS_PER_TASK))
        options = self.options
        sessions = [scorer.session for scorer in self.work.scorers]
        place = _Place(str(Path.cwd()), tuple(sys.path))
        arguments = (options, sessions, [session.key for session in sessions], place)
        decoded = self.ray.data.from_items(
            [{"item": item} for item in items], override_num_blocks=num_blocks
        ).map(
            _decode,
            fn_kwargs={
                "rule": options.prepare_rule(),
                "timeout_seconds": options.decode_timeout_seconds,
                "place": place,
            },
            num_cpus=1,
        )
        num_actors = min(self.cluster.num_actors, -(-len(items) // batch_videos))
        with warnings.catch_warnings():
            # Ray wants named arguments in place of max_task_retries, but has none for it.
            warnings.simplefilter("ignore", DeprecationWarning)
            reports = decoded.map_batches(
                _Embedder,
                fn_constructor_args=arguments,
                batch_size=batch_videos,
                batch_format="numpy",
                compute=self.ray.data.ActorPoolStrategy(size=num_actors),
                max_restarts=-1,
                max_task_retries=MAX_BATCH_RETRIES,
                **self.cluster.actor_resources,
            )
        return reports, num_blocks

    def _take(self, report: Report) -> None:
        self.summary.add(report.counts)
        self.node_ids |= report.node_ids
        if report.fault is not None:
            raise report.fault
        if report.lost:
            self._lost[report.lost] += 1
            if self._lost.total() > self._lost_allowed:
                raise TooManyFailuresError(
                    f"a scorer failed on {self._lost.total()} batches ({report.lost}); what was "
                    "committed is kept, the same command goes on"
                )
        new = set(report.video_ids) - self._seen
        self._seen |= new
        frames = self.summary.num_frames / max(time.monotonic() - self._started, 1e-9)
        self.progress.note(f"{frames:.0f} frames/s, {self.summary.num_failed} failed")
        self.progress.advance(len(new))

    def give_up(self, items: Iterable[Item]) -> None:
        """Commit failure rows of videos that ended their process every time."""
        reason = "the Ray process that worked on it died or failed, each time, alone as well"
        if self._lost:
            reason = f"{reason}: {self._lost.most_common(1)[0][0]}"
        error = DecodeError("crashed", reason)
        rows = []
        layout, frames_key = CacheLayout(self.options.cache), self.options.frames_key()
        cached = read_video_states(layout, frames_key)
        for item in items:
            keys = list(item.task.records) if item.task else [item.scorer_key]
            for video_id in item.video_ids:
                if item.decode and video_id not in cached:
                    rows.append(failure_row(video_id, "decode", error, 0.0, frames_key))
                else:
                    rows += [failure_row(video_id, "score", error, 0.0, key) for key in keys]
        commit_failures(layout, rows, writer=self.options.writer)
        failed = {row.video_id for row in rows}
        self.summary.add(StageCounts(failed_by_error={error.kind: len(failed)} if failed else {}))
        self.progress.advance(len(failed - self._seen))


@contextmanager
def _quiet(ray: Any) -> Iterator[Any]:
    """Give Ray Data's context with its own output turned off, and put it back afterwards."""
    context = ray.data.DataContext.get_current()
    changes = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "max_consecutive_actor_init_deaths": MAX_INIT_DEATHS,
        # A large batch on a slow model is no hang; decodes have a limit of their own.
        "execution_no_progress_timeout_s": 7 * 24 * 3600.0,
        "max_errored_blocks": context.max_errored_blocks,
    }
    before = {name: getattr(context, name) for name in changes}
    logger = logging.getLogger("ray.data")
    level = logger.level
    for name, value in changes.items():
        setattr(context, name, value)
    logger.setLevel(logging.CRITICAL)
    try:
        yield context
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


@dataclass(frozen=True, slots=True)
class _Decoded:
    """An item on its way to an actor: encoded frames if it was decoded, and by which node."""

    item: Item
    outcome: Outcome | None
    node_id: str


_worker: Worker | None = None


def _decode(
    row: dict[str, Any], *, rule: PrepareRule, timeout_seconds: float, place: "_Place"
) -> dict[str, Any]:
    """Decode one item's video in a process that can be killed, as the local engine does."""
    item: Item = row["item"]
    outcome = None
    if item.decode:
        place.enter()
        job = Job(item.video_ids[0], {"video_id": item.video_ids[0], "rule": rule})
        outcome = _prepare(job, timeout_seconds)
    # One object a row: a column of its own for outcomes would turn absent ones into NaN.
    return {"decoded": _Decoded(item, outcome, _node_id())}


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


class _Embedder:
    """An actor: loads the scorers once, and commits each batch before it reports it."""

    def __init__(
        self,
        options: PrecomputeOptions,
        sessions: Sequence[ScorerSession],
        keys: Sequence[str],
        place: "_Place",
    ) -> None:
        self._options, self._sessions = options, sessions
        self._fault: Exception | None = None
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
        decoded: list[_Decoded] = list(batch["decoded"])
        nodes = frozenset({self._node_id, *(one.node_id for one in decoded)})
        counts = StageCounts()
        fault, lost = self._fault, ""
        if fault is None:
            writer = f"{self._options.writer}-{self._node_id[:6]}{os.getpid()}"
            stage = Stage(self._options, self._sessions, writer=writer)
            try:
                with stage:
                    for one in decoded:
                        _put(stage, one.item, one.outcome)
            except StriveError as error:
                fault = error
            except Exception as error:  # the batch is divided, so that only the guilty video fails
                lost = f"{type(error).__name__}: {error}"[:300]
            counts = stage.counts
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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the command was given: relative model paths and a user's own modules begin there."""

    folder: str
    import_paths: tuple[str, ...]

    def enter(self) -> None:
        """Work there, as far as this node has these folders."""
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        sys.path += [path for path in self.import_paths if path not in sys.path]


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _last_line(error: BaseException) -> str:
    """Ray's errors carry whole tracebacks; the last line says what happened."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].strip()[:300]
