"""What one call asks: each benchmark's questions, as they are worded, shown and graded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from strive.answers import build_question
from strive.cache.frames import FrameReader
from strive.cache.layout import default_frames_key, open_cache
from strive.cache.scores import find_scorer
from strive.choices import EvaluationGrading
from strive.configs.schema import EvaluateConfig
from strive.errors import ConfigError, RecordsError
from strive.evaluate.benchmarks import (
    OWN,
    BenchmarkSpec,
    load_benchmark,
    parse_spec,
    read_benchmark,
)
from strive.evaluate.benchmarks.base import Benchmark, PlainRecords
from strive.evaluate.frames import CacheFrames, FileFrames, FrameSource
from strive.evaluate.items import Failure, Item
from strive.progress import say
from strive.records import read_records

Row = TypeVar("Row", Item, Failure)


@dataclass(frozen=True, slots=True)
class Asking:
    """A benchmark as one call asks it: its rules, its questions, and how their frames are read."""

    name: str
    benchmark: Benchmark
    items: tuple[Item, ...]
    source: FrameSource
    config: EvaluateConfig
    failures: tuple[Failure, ...] = ()
    """Rows that cannot be asked."""
    files: tuple[Path, ...] = ()
    """Files of questions that were read."""

    @property
    def num_questions(self) -> int:
        """Questions that count, those that cannot be asked among them."""
        return len(self.items) + len(self.failures)

    @property
    def question_ids(self) -> set[str]:
        """Ids of all its questions."""
        return {item.question_id for item in self.items} | {f.question_id for f in self.failures}

    def part(self, index: int, count: int) -> Asking:
        """Return one of `count` equal parts, neighbours together."""

        def own(rows: tuple[Row, ...]) -> tuple[Row, ...]:
            return rows[len(rows) * index // count : len(rows) * (index + 1) // count]

        return replace(self, items=own(self.items), failures=own(self.failures))

    @property
    def grading(self) -> EvaluationGrading:
        """The rules that grade: the protocol's, unless others are named."""
        return self.config.grading or self.config.protocol

    def digest(self) -> str:
        """Tell its questions, as they are asked and graded, from other ones."""
        rows = sorted((i.question_id, self.prompt(i), i.solution) for i in self.items)
        failed = sorted(failure.question_id for failure in self.failures)
        return hashlib.sha256(json.dumps([rows, failed]).encode()).hexdigest()[:16]

    def prompt(self, item: Item) -> str:
        """Return the text of the user turn that follows the video."""
        template = self.config.prompt_template
        if template is not None:
            return build_question(item, template)
        return self.benchmark.prompt(item, self.config.protocol)

    def prompt_hash(self, item: Item) -> str:
        """Identify what a question showed and said: texts, frames, pixel budget and video."""
        mode = self.source.frames_mode
        parts = [
            self.prompt(item),
            item.video_id,
            self.source.identity(item),
            mode,
            self.config.num_frames,
            self.config.max_pixels,
            item.evidence_spans_seconds if mode == "evidence" else None,
        ]
        if item.end_frame is not None:
            parts.append(item.end_frame)
        if self.config.system_prompt is not None:
            parts.append(["system", self.config.system_prompt])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def specs_of(config: EvaluateConfig) -> list[BenchmarkSpec]:
    """Return the benchmarks that a call names; a user's own records are one called `own`.

    Raises:
        UnknownNameError: there is no such benchmark.
        ConfigError: one is named twice.
    """
    if config.data:
        return [BenchmarkSpec(OWN)]
    specs = [parse_spec(text) for text in config.benchmarks]
    names = [spec.name for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"benchmark '{twice}' is named twice; one evaluation asks each once")
    return specs


def open_benchmark(spec: BenchmarkSpec, config: EvaluateConfig) -> Asking:
    """Read a benchmark's questions, or the user's own, and open their frames.

    Raises:
        MissingInputError: files of questions are not there.
        RecordsError: they hold none, or are not what was published.
    """
    if spec.root is not None:
        # A file's records may name videos of another folder.
        root = (config.video_root or spec.root.parent) if spec.is_records else spec.root
        config = config.model_copy(update={"data_root": root})
    if spec.limit is not None:
        config = config.model_copy(update={"limit": spec.limit})
    benchmark: Benchmark
    if spec.name == OWN:
        benchmark = PlainRecords(read_records(config.data).records)
        where = ", ".join(map(str, config.data))
    else:
        benchmark = load_benchmark(spec)
        where = f"{spec.name} under {config.data_root}"
    reading = read_benchmark(spec.name, benchmark, config.data_root, config.split)
    reading = benchmark.asked(reading, config.protocol)
    left_out = [f"{count} left out: {why}" for why, count in reading.left_out.items()]
    if not reading.items and not reading.failures:
        reasons = "; ".join(left_out) or "no video record"
        raise RecordsError(f"nothing to ask: {reasons} in {where}")
    for text in left_out:
        say(f"{spec.name}: {text}")
    mode = config.frames_mode or benchmark.frames_mode(config.protocol)
    return Asking(
        name=spec.name,
        benchmark=benchmark,
        items=reading.items,
        source=_open_source(config.model_copy(update={"frames_mode": mode}), spec.name),
        config=config,
        failures=tuple(replace(failure, benchmark=spec.name) for failure in reading.failures),
        files=reading.files or config.data,
    )


def _open_source(config: EvaluateConfig, name: str) -> FrameSource:
    if config.cache is None:
        return FileFrames(config, name)
    return CacheFrames(FrameReader(open_cache(config.cache), frames_key_of(config)), config)


def frames_key_of(config: EvaluateConfig) -> str:
    """Return which frames of `config.cache` are shown: those of its scorer, else the only ones."""
    assert config.cache is not None
    layout = open_cache(config.cache)
    if config.scorer:
        return find_scorer(layout, config.scorer).frames_key
    return default_frames_key(layout)


def choose_part(asking: Asking, *, whole: bool = False) -> Asking:
    """Leave the questions of this call's limit and shard, those of one video one after another.

    With `whole` those of every shard.

    The limit takes whole videos in an order drawn from their keys, so that a larger limit holds a
    smaller one's questions; the shards of a benchmark part its videos.
    """
    config = asking.config
    rows: list[Item | Failure] = [*by_video(asking.items), *by_video(asking.failures)]
    clusters = sorted({_cluster(row) for row in rows}, key=_drawn)
    place = {cluster: number for number, cluster in enumerate(clusters)}
    index, count = (0, 1) if whole else config.shard
    drawn = sorted(rows, key=lambda row: place[_cluster(row)])
    chosen = {
        row.question_id for row in drawn[: config.limit] if place[_cluster(row)] % count == index
    }
    return replace(
        asking,
        items=tuple(row for row in rows if isinstance(row, Item) and row.question_id in chosen),
        failures=tuple(
            row for row in rows if isinstance(row, Failure) and row.question_id in chosen
        ),
    )


def by_video(rows: Sequence[Row]) -> list[Row]:
    """Bring questions of one video together, videos in the order in which they come first."""
    places: dict[str, int] = {}
    return sorted(rows, key=lambda row: places.setdefault(row.video_id, len(places)))


def _cluster(row: Item | Failure) -> str:
    return row.cluster or row.video_id


def _drawn(cluster: str) -> int:
    """A number drawn from a video's key: the same in every call, on every machine."""
    return int.from_bytes(hashlib.blake2b(cluster.encode(), digest_size=8).digest())
