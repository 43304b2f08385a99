"""`--engine ray`: the stages of the local run on Ray Data, over several machines.

    items -> decode (tasks, one CPU each) -> embed, score, commit (actors) -> reports -> the driver

Between the stages travel encoded frames, never pixels. An actor commits its batch of items before
it reports it, so that nothing is lost when the job ends, and what was never committed is found
again by the same command. Ray is known here and in ray_cluster.py (finding or starting one), and
imported when it is called.
"""

import logging
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from strive.cache.failures import commit_failures
from strive.cache.frames import read_video_states
from strive.cache.layout import CacheLayout
from strive.configs.schema import PrecomputeConfig
from strive.errors import DecodeError, ModelError, ScorerError, StriveError, TooManyFailuresError
from strive.pipeline.embed import EmbedStage
from strive.pipeline.part import StageCounts
from strive.pipeline.prepare import PrepareRule, next_decoder, prepare_video
from strive.pipeline.ray_cluster import Cluster, check_nodes, connected, import_ray
from strive.pipeline.run import PrecomputeSummary
from strive.pipeline.work import (
    Work,
    WorkItem,
    make_frames_key,
    prepare_rule,
    question_failure,
    video_failure,
    writer_name,
)
from strive.progress import Progress, show_progress
from strive.scorers.session import ScorerSession
from strive.video.worker import Job, Outcome, Worker, run_job

# A task takes tens of milliseconds of Ray's own time: a few videos each make that little.
MAX_VIDEOS_PER_TASK = 8
# What an actor commits at once: parts stay few, and little is done twice when an actor dies.
MAX_VIDEOS_PER_COMMIT = 64
# A batch that ends its actor is tried once more, then its videos one by one.
MAX_BATCH_RETRIES = 1
MAX_INIT_DEATHS = 3
# Batches that may be lost in the first round; more mean that it is not the videos.
MAX_LOST_FRACTION = 0.1
MIN_LOST_BATCHES = 4


@dataclass(frozen=True, slots=True)
class Report:
    """An actor's account of one batch.

    `items` (their keys) are committed. With `lost` some fault of a scorer ended the batch, and the
    rest of it is to be done again; a `fault` ends the run.
    """

    items: tuple[str, ...]
    counts: StageCounts
    node_ids: frozenset[str]
    lost: str = ""
    fault: Exception | None = None


@dataclass(frozen=True, slots=True)
class CallerPaths:
    """Where the command was given: relative model paths and a user's own modules begin there."""

    folder: str
    import_paths: tuple[str, ...]

    def enter(self) -> None:
        """Work there, as far as this node has these folders."""
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        sys.path += [path for path in self.import_paths if path not in sys.path]


@dataclass(frozen=True, slots=True)
class DecodedItem:
    """An item on its way to an actor: encoded frames if it was decoded, and by which node."""

    item: WorkItem
    outcome: Outcome | None
    node_id: str


def run_with_ray(options: PrecomputeConfig, work: Work, summary: PrecomputeSummary) -> None:
    """Do the work of a call on Ray; settings and questions are already committed.

    Raises:
        ConfigError: Ray is not installed, no cluster answers, or a node lacks cache or videos.
        TooManyFailuresError: Ray lost more than single batches; what was committed is kept.
        StriveError: a fault of an actor, such as a full disk.
    """
    ray = import_ray()
    # Other machines, and other working directories on this one.
    options = options.model_copy(
        update={"cache": options.cache.absolute(), "video_root": options.video_root.absolute()}
    )
    layout = CacheLayout(options.cache)
    started = time.monotonic()
    with connected(ray, options.workers) as cluster:
        check_nodes(ray, cluster, cache=options.cache, video_root=options.video_root)
        summary.engine, summary.num_workers = str(cluster), cluster.num_cpus
        decoded = (work.item_of(video_id, decode=True) for video_id in work.to_decode)
        items = {item.key: item for item in chain(decoded, work.cached_items(layout))}
        with show_progress("precompute", work.num_videos, "videos") as progress:
            progress.note(str(cluster))
            driver = _Driver(ray, cluster, options, work, summary, progress)
            try:
                per_actor = -(-len(items) // (2 * cluster.num_actors))
                driver.run(items, min(max(per_actor, 1), MAX_VIDEOS_PER_COMMIT))
                if items:
                    # Lost with an actor or a task: one at a time, so that only the guilty fail.
                    driver.run(items, 1)
                driver.give_up(items.values())
            except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
                # Ray's errors carry whole tracebacks; the last line says what happened.
                lines = [line for line in str(error).strip().splitlines() if line.strip()]
                reason = (lines or [type(error).__name__])[-1].strip()[:300]
                raise TooManyFailuresError(
                    f"{cluster.description} ended the run ({reason}); what was committed is kept, "
                    "the same command goes on"
                ) from error
            finally:
                summary.num_nodes_used = len(driver.node_ids)
                summary.run_seconds = time.monotonic() - started


@dataclass
class _Driver:
    """The driver's side: rounds of the dataset, and what the actors report."""

    ray: Any
    cluster: Cluster
    options: PrecomputeConfig
    work: Work
    summary: PrecomputeSummary
    progress: Progress
    node_ids: set[str] = field(default_factory=set)
    _lost: Counter[str] = field(default_factory=Counter)
    _lost_allowed: int = 0
    _seen: set[str] = field(default_factory=set)
    _started: float = field(default_factory=time.monotonic)

    def run(self, items: dict[str, WorkItem], batch_videos: int) -> None:
        """Run one round and remove from `items` what is done; what was lost stays.

        Raises:
            StriveError: a fault that an actor reported.
        """
        with _quiet(self.ray) as context:
            allowed = max(MIN_LOST_BATCHES, int(len(items) / batch_videos * MAX_LOST_FRACTION))
            self._lost_allowed = len(items) if batch_videos == 1 else allowed
            context.max_errored_blocks = self._lost_allowed  # the dataset takes a copy
            rows = iter(self._dataset(list(items.values()), batch_videos).iter_rows())
            try:
                for row in rows:
                    report: Report = row["report"]
                    self._add(report, [items.pop(key) for key in report.items if key in items])
            finally:
                getattr(rows, "close", lambda: None)()

    def _dataset(self, items: list[WorkItem], batch_videos: int) -> Any:
        per_task = len(items) // (4 * max(self.cluster.num_cpus, 1))
        num_blocks = -(-len(items) // min(max(per_task, 1), MAX_VIDEOS_PER_TASK))
        options, sessions = self.options, [scorer.session for scorer in self.work.scorers]
        paths = CallerPaths(str(Path.cwd()), tuple(sys.path))
        arguments = (options, sessions, [session.key for session in sessions], paths)
        decoded = self.ray.data.from_items(
            [{"item": item} for item in items], override_num_blocks=num_blocks
        ).map(
            decode_item,
            fn_kwargs={
                "rule": prepare_rule(options),
                "timeout_seconds": options.decode_timeout_seconds,
                "paths": paths,
            },
            num_cpus=1,
        )
        num_actors = min(self.cluster.num_actors, -(-len(items) // batch_videos))
        with warnings.catch_warnings():
            # Ray wants named arguments in place of max_task_retries, but has none for it.
            warnings.simplefilter("ignore", DeprecationWarning)
            reports = decoded.map_batches(
                Embedder,
                fn_constructor_args=arguments,
                batch_size=batch_videos,
                batch_format="numpy",
                compute=self.ray.data.ActorPoolStrategy(size=num_actors),
                max_restarts=-1,
                max_task_retries=MAX_BATCH_RETRIES,
                **self.cluster.actor_resources,
            )
        return reports

    def _add(self, report: Report, done: list[WorkItem]) -> None:
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
        new = {video_id for item in done for video_id in item.video_ids} - self._seen
        self._seen |= new
        frames = self.summary.num_frames / max(time.monotonic() - self._started, 1e-9)
        self.progress.note(f"{frames:.0f} frames/s, {self.summary.failed_text}")
        self.progress.advance(len(new))

    def give_up(self, items: Iterable[WorkItem]) -> None:
        """Commit failure rows of videos that ended their process every time."""
        reason = "the Ray process that worked on it died or failed, each time, alone as well"
        if self._lost:
            reason = f"{reason}: {self._lost.most_common(1)[0][0]}"
        error = DecodeError("crashed", reason)
        rows = []
        options = self.options
        layout, frames_key = CacheLayout(options.cache), make_frames_key(options)
        cached = read_video_states(layout, frames_key)
        sessions = {scorer.session.key: scorer.session for scorer in self.work.scorers}
        for item in items:
            for video_id in item.video_ids:
                if item.decode and video_id not in cached:
                    root = options.video_root
                    rows.append(video_failure(video_id, error, 0.0, frames_key, root))
                    continue
                checksum = cached[video_id].checksum
                rows += [
                    question_failure(record, error, 0.0, sessions[key], checksum)
                    for key, records in item.records.items()
                    for record in records[video_id]
                ]
        commit_failures(layout, rows, writer=writer_name(options))
        failed = StageCounts(
            failed={row.video_id: row.error for row in rows if row.question_id is None},
            failed_questions={row.question_id: row.error for row in rows if row.question_id},
        )
        self.summary.add(failed)
        self.progress.advance(len({row.video_id for row in rows} - self._seen))


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


# --- on the nodes ---------------------------------------------------------------------------------


_worker: Worker | None = None
"""The killable process of this Ray worker; it serves one decode task after another."""


def decode_item(
    row: dict[str, Any], *, rule: PrepareRule, timeout_seconds: float, paths: CallerPaths
) -> dict[str, Any]:
    """Decode one item's video in a process that can be killed, as the local run does."""
    global _worker
    item: WorkItem = row["item"]
    outcome = None
    if item.decode:
        paths.enter()
        _worker = _worker or Worker()
        (video_id,) = item.video_ids
        job = Job(video_id, {"video_id": video_id, "rule": rule})
        started = time.monotonic()
        try:
            outcome = run_job(_worker, prepare_video, job, timeout_seconds, next_decoder)
        except (StriveError, OSError) as error:
            unexpected = DecodeError("unexpected", f"{type(error).__name__}: {error}")
            outcome = Outcome(video_id, None, unexpected, time.monotonic() - started)
    # One object a row: a column of its own for outcomes would turn absent ones into NaN.
    return {"decoded": DecodedItem(item, outcome, _node_id())}


class Embedder:
    """An actor: loads the scorers once, and commits each batch before it reports it."""

    def __init__(
        self,
        options: PrecomputeConfig,
        sessions: Sequence[ScorerSession],
        keys: Sequence[str],
        paths: CallerPaths,
    ) -> None:
        self._options, self._sessions = options, sessions
        self._fault: Exception | None = None
        self._stage: EmbedStage | None = None
        self._node_id = _node_id()
        try:
            paths.enter()
            for session, key in zip(sessions, keys, strict=True):
                here = session.loaded_key()
                if here != key:  # its scores are not to be stored under the driver's key
                    raise ModelError(
                        f"scorer '{session.name}' is {here} on node {self._node_id[:8]} but {key} "
                        "where the command was given (another device, number type, model file or "
                        "library version); give --device and --dtype, and the same versions on "
                        "all nodes"
                    )
        except StriveError as error:
            self._fault = error  # raised by the driver, as if it had met it itself
        except Exception as error:  # an actor that cannot begin would be begun again and again
            self._fault = ModelError(
                f"a scorer cannot be loaded on node {self._node_id[:8]} "
                f"({type(error).__name__}: {error})"
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embed, score and commit the items of a batch; one row: the report."""
        decoded: list[DecodedItem] = list(batch["decoded"])
        nodes = frozenset({self._node_id, *(one.node_id for one in decoded)})
        counts, fault, lost = StageCounts(), self._fault, ""
        if fault is None:
            stage = self._stage
            if stage is None:  # the first batch, or one after a fault
                writer = f"{writer_name(self._options)}-{self._node_id[:6]}{os.getpid()}"
                stage = self._stage = EmbedStage(self._options, self._sessions, writer=writer)
                stage.start()
            try:
                for one in decoded:
                    stage.put(one.item, one.outcome)
                stage.flush()
            except Exception as error:
                self._stage = None
                stage.stop()  # commits what is finished
                if isinstance(error, StriveError) and not isinstance(error, ScorerError):
                    fault = error
                else:  # the batch is divided, so that only the guilty video fails
                    lost = f"{type(error).__name__}: {error}"[:300]
            counts = stage.take_counts()
        done = () if fault is not None or lost else tuple(one.item.key for one in decoded)
        return {"report": [Report(done, counts, nodes, lost, fault)]}


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())
