"""`--engine ray`: the stages of the local loop on Ray Data, over several machines.

    items -> decode (tasks, one CPU each) -> embed, score, commit (actors) -> reports -> the driver

An item is a video to decode, a cached video that a scorer's model has not seen, or a part of cached
embeddings with new questions. Between the stages travel encoded frames, never pixels. An actor
commits its batch before it reports it, so that nothing is lost when the job ends, and what was
never committed is found again by the same command. Ray is known here, in ray_cluster.py (finding
or starting one) and in ray_tasks.py (what runs on the nodes), and imported when it is called.
"""

import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strive.cache.embeddings import find_embeddings
from strive.cache.failures import commit_failures
from strive.cache.frames import read_video_states
from strive.cache.layout import CacheLayout
from strive.configs.schema import PrecomputeConfig
from strive.errors import DecodeError, TooManyFailuresError
from strive.pipeline.failing import question_failure, video_failure
from strive.pipeline.options import make_frames_key, prepare_rule, writer_name
from strive.pipeline.ray_cluster import Cluster, check_nodes, connected, import_ray
from strive.pipeline.ray_tasks import Embedder, Item, Place, Report, decode_item
from strive.pipeline.summary import PrecomputeSummary, StageCounts
from strive.pipeline.work import Work
from strive.progress import Progress, show_progress

# A task takes tens of milliseconds of Ray's own time: a few videos each make that little.
MAX_VIDEOS_PER_TASK = 8
# What an actor commits at once: parts stay few, and little is done twice when an actor dies.
MAX_VIDEOS_PER_COMMIT = 64
VIDEOS_PER_EMBEDDED_ITEM = 256
# A batch that ends its actor is tried once more, then its videos one by one.
MAX_BATCH_RETRIES = 1
MAX_INIT_DEATHS = 3
# Batches that may be lost in the first round; more mean that it is not the videos.
MAX_LOST_FRACTION = 0.1
MIN_LOST_BATCHES = 4


def run_with_ray(
    options: PrecomputeConfig, layout: CacheLayout, work: Work, summary: PrecomputeSummary
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
    options = options.model_copy(
        update={"cache": options.cache.absolute(), "video_root": options.video_root.absolute()}
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
        options: PrecomputeConfig,
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
            allowed = max(MIN_LOST_BATCHES, int(len(items) / batch_videos * MAX_LOST_FRACTION))
            self._lost_allowed = len(items) if batch_videos == 1 else allowed
            context.max_errored_blocks = self._lost_allowed  # the dataset takes a copy
            rows = iter(self._dataset(list(items.values()), batch_videos).iter_rows())
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

    def _dataset(self, items: list[Item], batch_videos: int) -> Any:
        per_task = len(items) // (4 * max(self.cluster.num_cpus, 1))
        num_blocks = -(-len(items) // min(max(per_task, 1), MAX_VIDEOS_PER_TASK))
        options = self.options
        sessions = [scorer.session for scorer in self.work.scorers]
        place = Place(str(Path.cwd()), tuple(sys.path))
        arguments = (options, sessions, [session.key for session in sessions], place)
        decoded = self.ray.data.from_items(
            [{"item": item} for item in items], override_num_blocks=num_blocks
        ).map(
            decode_item,
            fn_kwargs={
                "rule": prepare_rule(options),
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
        self.progress.note(f"{frames:.0f} frames/s, {self.summary.failed_text}")
        self.progress.advance(len(new))

    def give_up(self, items: Iterable[Item]) -> None:
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
                task = item.task.records if item.task else {item.scorer_key: item.records[video_id]}
                rows += [
                    question_failure(record, error, 0.0, sessions[key], checksum)
                    for key, records in task.items()
                    for record in records
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


def _last_line(error: BaseException) -> str:
    """Ray's errors carry whole tracebacks; the last line says what happened."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1].strip()[:300]
