"""`evaluate`: ask a policy every question of a benchmark, greedily, and report.

Generation and grading are apart: answers are appended as they come and graded from the file. A run
that stopped goes on where it was, if its settings are the same ones.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from strive.answers import TEMPLATES, build_question, find_unmatched
from strive.cache.frames import FrameReader
from strive.cache.layout import default_frames_key, open_cache
from strive.cache.scores import find_scorer
from strive.choices import EvaluationGrading
from strive.configs.schema import EvaluateConfig
from strive.errors import (
    ConfigError,
    DecodeError,
    MissingInputError,
    OutsideRootError,
    RecordsError,
    TooManyFailuresError,
    unknown_name,
)
from strive.evaluate.benchmarks import OWN, load_benchmark, parse_spec, read_benchmark
from strive.evaluate.benchmarks.base import Benchmark, PlainRecords
from strive.evaluate.frames import CacheFrames, FileFrames, FrameSource
from strive.evaluate.items import Failure, Item
from strive.evaluate.results import (
    EvaluationResults,
    grade_sample,
    model_digest,
    open_out,
    score_of,
)
from strive.evaluate.samples import Sample
from strive.progress import say, show_progress
from strive.records import Record, read_records
from strive.variants import evidence_seen

if TYPE_CHECKING:
    from strive.models.inputs import VideoFrames
    from strive.models.loading import Policy

NUM_FIRST_ANSWERS = 50
"""So many answers without one that can be read are a warning; fewer at the end, too."""


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

    @property
    def grading(self) -> EvaluationGrading:
        """The rules that grade: the protocol's, unless others are named."""
        return self.config.grading or self.config.protocol

    def prompt(self, item: Item) -> str:
        """Return the text of the user turn that follows the video."""
        template = self.config.prompt_template
        if template is not None:
            return build_question(item, template)
        return self.benchmark.prompt(item, self.config.protocol)

    def prompt_hash(self, item: Item) -> str:
        """Identify what a question showed and said: text, frames, pixel budget and video."""
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
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def evaluate_policy(policy: Policy, asking: Asking) -> Iterator[list[Sample | Failure]]:
    """Ask an opened policy, greedily; yields a batch's graded samples and failures at a time.

    Frames of the next batch are read while the policy writes. A video that cannot be read costs
    its own questions only.
    """
    size = asking.config.batch_size
    items = asking.items
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    # One reading thread: its decode worker is kept from batch to batch.
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = [reader.submit(_read_batch, asking, batch) for batch in batches[:1]]
        for number, batch in enumerate(batches):
            loaded = ahead.pop().result()
            if number + 1 < len(batches):
                ahead.append(reader.submit(_read_batch, asking, batches[number + 1]))
            pairs = zip(batch, loaded, strict=True)
            asked = [(r, video) for r, video in pairs if not isinstance(video, Failure)]
            failures = [item for item in loaded if isinstance(item, Failure)]
            samples = _ask(policy, asked, asking) if asked else []
            yield [*samples, *failures]


def _read_batch(asking: Asking, items: Sequence[Item]) -> list[VideoFrames | Failure]:
    found: list[VideoFrames | Failure] = []
    for item in items:
        try:
            found.append(asking.source.frames(item))
        except (DecodeError, OutsideRootError) as error:
            kind = error.kind if isinstance(error, DecodeError) else "outside_root"
            found.append(Failure.of(item, asking.name, kind, str(error.args[-1])))
    return found


def _ask(policy: Policy, asked: Sequence[tuple[Item, VideoFrames]], asking: Asking) -> list[Sample]:
    """Write one answer to each question; returns them graded."""
    from strive.models.decoding import Decoder
    from strive.models.inputs import prepare_prompts
    from strive.models.sampling import Sampling

    config = asking.config
    texts = [asking.prompt(item) for item, _ in asked]
    videos = [video for _, video in asked]
    hashes = [asking.prompt_hash(item) for item, _ in asked]
    prompts = prepare_prompts(policy, texts, videos, max_pixels=config.max_pixels)
    sampling = Sampling(num_generations=1, max_new_tokens=config.max_new_tokens)
    completions = Decoder(policy, mode=config.decode)(prompts, sampling=sampling, greedy=True)
    samples = []
    for row, (item, video) in enumerate(asked):
        indices_1K = np.arange(len(video.pts_seconds_K))[None, :]
        seen_1 = evidence_seen(indices_1K, video.pts_seconds_K, item.evidence_spans_seconds)
        sample = Sample(
            benchmark=asking.name,
            question_id=item.question_id,
            prompt_hash=hashes[row],
            video_id=item.video_id,
            problem_type=item.problem_type,
            kind=item.data_source,
            prompt=texts[row],
            solution=item.solution,
            source_index=tuple(video.source_index_K.tolist()),
            evidence_seen=None if seen_1 is None else bool(seen_1[0]),
            output=completions.texts[row][0],
            num_tokens=int(completions.lengths_RG[row, 0]),
            truncated=bool(completions.truncated_RG[row, 0]),
            options=item.options,
            dimensions=dict(item.dimensions),
            cluster=item.cluster,
            pts_seconds=tuple(round(float(t), 3) for t in video.pts_seconds_K),
        )
        samples.append(grade_sample(sample, asking.benchmark, asking.grading))
    return samples


def held_out_metrics(
    policy: Policy,
    records: Sequence[Record],
    source: FrameSource,
    config: EvaluateConfig,
    gather: Callable[[list[Sample | Failure]], list[list[Sample | Failure]]] = lambda own: [own],
) -> dict[str, float]:
    """Evaluate during training: one line of `held_out.jsonl`; shares are in [0, 1].

    Several processes share the work: each brings its own part of the records, and `gather` gives
    everyone's answers to all of them.
    """
    items = tuple(Item.of(record) for record in records)
    asking = Asking("held_out", PlainRecords(), items, source, config)
    own = [item for batch in evaluate_policy(policy, asking) for item in batch]
    everyone = [item for part in gather(own) for item in part]
    samples = [item for item in everyone if isinstance(item, Sample)]
    score = score_of(everyone)
    return {
        "accuracy": score.accuracy_percent / 100,
        "accuracy_standard_error": score.standard_error / 100,
        "unparsed_fraction": sum(not s.parsed for s in samples) / max(1, len(samples)),
        "truncated_fraction": sum(s.truncated for s in samples) / max(1, len(samples)),
        "num_questions": float(len(everyone)),
        "num_failed": float(len(everyone) - len(samples)),
    }


def evaluate(
    config: EvaluateConfig, *, out: Path, overwrite: bool = False, policy: Policy | None = None
) -> EvaluationResults:
    """Evaluate a model on benchmarks and write `samples.jsonl` and `results.json` under `out`.

    The results cover every answer that `out` holds under these settings, so a smaller `limit`
    than before loses none. With `overwrite` what `out` holds is answered again.
    `policy` is `config.model` opened already, for several evaluations of one model.

    Raises:
        UnknownNameError: there is no such benchmark or prompt template.
        ConfigError: `out` holds answers made with other settings.
        RecordsError, MissingInputError: there is nothing to ask.
        TooManyFailuresError: not one question could be asked.
    """
    config = _with_device(config)
    if config.prompt_template not in (None, *TEMPLATES):
        raise unknown_name("prompt_template", str(config.prompt_template), TEMPLATES)
    askings = _open_benchmarks(config)
    hashes = {(a.name, item.question_id): a.prompt_hash(item) for a in askings for item in a.items}
    askings = [replace(a, items=a.items[: a.config.limit]) for a in askings]
    num_asked = sum(len(a.items) for a in askings)
    if not num_asked:
        raise ConfigError("no question to evaluate; name a benchmark with --benchmark, or --data")
    if all(a.source.identity(item) == "absent" for a in askings for item in a.items):
        # The wrong folder, as a rule: no model is loaded for it.
        first = next(a for a in askings if a.items)
        where = f"the cache {config.cache}" if config.cache else f"{first.config.data_root}"
        raise MissingInputError(
            f"none of the videos of {num_asked} questions is in {where} (first: "
            f"'{first.items[0].video_id}'); name their folder with "
            f"{'--video-root' if config.data else '--data-root'}"
        )
    for asking in askings:
        rules = asking.grading
        if isinstance(asking.benchmark, PlainRecords) and rules != "direct":
            unmatched = find_unmatched(asking.items, rules)
            if unmatched is not None:
                knob = f"strive-cli rescore {out} --grading tolerant"
                say(f"warning: {unmatched.text(knob)}")
    settings = _settings(config)
    with open_out(out, settings, overwrite=overwrite) as folder:
        done = folder.current_samples(hashes)
        missing = [
            replace(a, items=tuple(i for i in a.items if (a.name, i.question_id) not in done))
            for a in askings
        ]
        num_missing = sum(len(a.items) for a in missing)
        started = time.monotonic()
        answered: list[Sample] = []
        failures = [failure for a in askings for failure in a.failures]
        if num_missing:
            if policy is None:
                from strive.models.loading import load_policy

                policy = load_policy(
                    config.model,
                    dtype=config.dtype,
                    device=config.device,
                    position_rule=config.position_rule,
                )
            with show_progress("evaluate", num_missing, "questions") as bar:
                for asking in missing:
                    for batch in evaluate_policy(policy, asking):
                        samples = [item for item in batch if isinstance(item, Sample)]
                        if samples:
                            folder.append(samples)
                        done.update(((s.benchmark, s.question_id), s) for s in samples)
                        if len(answered) < NUM_FIRST_ANSWERS <= len(answered) + len(samples):
                            _warn_if_unread([*answered, *samples], config, out)
                        answered.extend(samples)
                        failures.extend(item for item in batch if isinstance(item, Failure))
                        bar.advance(len(batch))
                        accuracy = score_of(list(done.values())).accuracy_percent
                        failed = f", {len(failures)} failed" if failures else ""
                        bar.note(f"{accuracy:.1f} %{failed}")
            if 0 < len(answered) < NUM_FIRST_ANSWERS:
                _warn_if_unread(answered, config, out)
        if not done:
            raise TooManyFailuresError(
                f"none of {len(failures)} questions could be asked; the first: question "
                f"'{failures[0].question_id}', video '{failures[0].video_id}', "
                f"{failures[0].error}: {failures[0].message}"
            )
        order = {key: number for number, key in enumerate(hashes)}
        # Answers of benchmarks that this call does not name stay, behind the others.
        kept = sorted(
            done.values(), key=lambda s: order.get((s.benchmark, s.question_id), len(order))
        )
        benchmarks = {a.name: a.benchmark for a in askings}
        for name in sorted({sample.benchmark for sample in kept} - set(benchmarks)):
            benchmarks[name] = PlainRecords() if name == OWN else load_benchmark(parse_spec(name))
        return folder.finish(
            [grade_sample(s, benchmarks[s.benchmark], askings[0].grading) for s in kept],
            failures,
            benchmarks=benchmarks,
            grading=askings[0].grading,
            num_resumed=num_asked - num_missing,
            seconds=time.monotonic() - started if num_missing else None,
        )


def _open_benchmarks(config: EvaluateConfig) -> list[Asking]:
    """Read each benchmark's questions, or the user's own, and open their frames.

    Raises:
        RecordsError: there are none.
    """
    if config.data:
        own = PlainRecords(read_records(config.data).records)
        return [_open_benchmark(OWN, own, config, ", ".join(map(str, config.data)))]
    found = []
    for text in config.benchmarks:
        spec = parse_spec(text)
        own_config = config
        if spec.root is not None:
            root = spec.root.parent if spec.root.is_file() else spec.root
            own_config = config.model_copy(update={"data_root": config.video_root or root})
        if spec.limit is not None:
            own_config = own_config.model_copy(update={"limit": spec.limit})
        where = f"{spec.name} under {own_config.data_root}"
        found.append(_open_benchmark(spec.name, load_benchmark(spec), own_config, where))
    return found


def _open_benchmark(name: str, benchmark: Benchmark, config: EvaluateConfig, where: str) -> Asking:
    reading = read_benchmark(name, benchmark, config.data_root, config.split)
    reading = benchmark.asked(reading, config.protocol)
    left_out = [f"{count} left out: {why}" for why, count in reading.left_out.items()]
    if not reading.items and not reading.failures:
        reasons = "; ".join(left_out) or "no video record"
        raise RecordsError(f"nothing to ask: {reasons} in {where}")
    for text in left_out:
        say(f"{name}: {text}")
    mode = config.frames_mode or benchmark.frames_mode(config.protocol)
    source = _open_source(config.model_copy(update={"frames_mode": mode}))
    failures = tuple(replace(failure, benchmark=name) for failure in reading.failures)
    return Asking(name, benchmark, reading.items, source, config, failures)


def _warn_if_unread(samples: Sequence[Sample], config: EvaluateConfig, out: Path) -> None:
    """Say when not one of the first answers has the form that its question asks for."""
    if not any(sample.parsed for sample in samples):
        cut = sum(sample.truncated for sample in samples)
        at = f" ({cut} were cut at --max-new-tokens {config.max_new_tokens})" if cut else ""
        say(
            f"warning: none of the first {len(samples)} answers can be read as one{at}: the policy "
            f"may not know the prompt '{config.prompt_template or config.protocol}'; name the one "
            "that it was trained with, --prompt-template (short for the lab's models), or look at "
            f"{out / 'samples.jsonl'}"
        )


def _open_source(config: EvaluateConfig) -> FrameSource:
    if config.cache is None:
        return FileFrames(config)
    return CacheFrames(FrameReader(open_cache(config.cache), _frames_key(config)), config)


def _frames_key(config: EvaluateConfig) -> str:
    assert config.cache is not None
    layout = open_cache(config.cache)
    return (
        find_scorer(layout, config.scorer).frames_key
        if config.scorer
        else default_frames_key(layout)
    )


def _with_device(config: EvaluateConfig) -> EvaluateConfig:
    """Settle what `auto` means here: it changes answers, so the settings must say it."""
    if "auto" not in (config.device, config.dtype):
        return config
    from strive.models.loading import pick_device, pick_dtype

    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    return config.model_copy(update={"device": str(device), "dtype": dtype})


def _settings(config: EvaluateConfig) -> dict[str, Any]:
    """Everything that changes an answer (not the grading, which is done anew each time)."""
    names = (
        "model", "split", "protocol", "num_frames", "max_pixels", "max_new_tokens",
        "position_rule", "dtype", "decoder",
    )  # fmt: skip
    frames = "decoded from files"
    if config.cache is not None:
        frames = _frames_key(config)
    templates = {"video_r1": "video_r1_eval", "direct": "direct"}
    return {
        **{name: getattr(config, name) for name in names},
        "frames_mode": config.frames_mode or "protocol",
        "model_digest": model_digest(config.model),
        "prompt_template": config.prompt_template or templates[config.protocol],
        "frames": frames,
        "data_root": str(config.data_root),
        "data": [str(path) for path in config.data],
        "decoding": "greedy",
    }
