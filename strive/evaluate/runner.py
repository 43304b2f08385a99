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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from strive.answers import TEMPLATES, build_question, find_unmatched
from strive.cache.frames import FrameReader
from strive.cache.layout import default_frames_key, open_cache
from strive.cache.scores import find_scorer
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
from strive.evaluate.benchmarks import OWN, read_benchmark
from strive.evaluate.frames import CacheFrames, FileFrames, FrameSource
from strive.evaluate.results import (
    EvaluationResults,
    Failure,
    model_digest,
    open_out,
    score_of,
)
from strive.evaluate.samples import Sample, grade_sample
from strive.progress import say, show_progress
from strive.records import Record, read_records
from strive.variants import evidence_seen

if TYPE_CHECKING:
    from strive.models.inputs import VideoFrames
    from strive.models.loading import Policy

NUM_FIRST_ANSWERS = 50
"""So many answers without one that can be read are a warning; fewer at the end, too."""


def prompt_hash(record: Record, source: FrameSource, config: EvaluateConfig) -> str:
    """Identify what a question showed and said: text, frames, pixel budget and video."""
    parts = [
        build_question(record, config.template),
        record.video_id,
        source.identity(record),
        config.frames_mode,
        config.num_frames,
        config.max_pixels,
        record.evidence_spans_seconds if config.frames_mode == "evidence" else None,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def evaluate_policy(
    policy: Policy,
    records: Sequence[Record],
    source: FrameSource,
    config: EvaluateConfig,
    benchmark: str = "held_out",
) -> Iterator[list[Sample | Failure]]:
    """Ask an opened policy, greedily; yields a batch's graded samples and failures at a time.

    Frames of the next batch are read while the policy writes. A video that cannot be read costs
    its own questions only.
    """
    size = config.batch_size
    batches = [records[start : start + size] for start in range(0, len(records), size)]
    # One reading thread: its decode worker is kept from batch to batch.
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = [reader.submit(_read_batch, source, batch, benchmark) for batch in batches[:1]]
        for number, batch in enumerate(batches):
            loaded = ahead.pop().result()
            if number + 1 < len(batches):
                ahead.append(reader.submit(_read_batch, source, batches[number + 1], benchmark))
            pairs = zip(batch, loaded, strict=True)
            asked = [(r, video) for r, video in pairs if not isinstance(video, Failure)]
            failures = [item for item in loaded if isinstance(item, Failure)]
            samples = _ask(policy, asked, source, config, benchmark) if asked else []
            yield [*samples, *failures]


def _read_batch(
    source: FrameSource, records: Sequence[Record], benchmark: str
) -> list[VideoFrames | Failure]:
    found: list[VideoFrames | Failure] = []
    for record in records:
        try:
            found.append(source.frames(record))
        except (DecodeError, OutsideRootError) as error:
            kind = error.kind if isinstance(error, DecodeError) else "outside_root"
            message = str(error.args[-1])
            found.append(Failure(benchmark, record.question_id, record.video_id, kind, message))
    return found


def _ask(
    policy: Policy,
    asked: Sequence[tuple[Record, VideoFrames]],
    source: FrameSource,
    config: EvaluateConfig,
    benchmark: str,
) -> list[Sample]:
    """Write one answer to each question; returns them graded."""
    from strive.models.decoding import Decoder
    from strive.models.inputs import prepare_prompts
    from strive.models.sampling import Sampling

    texts = [build_question(record, config.template) for record, _ in asked]
    videos = [video for _, video in asked]
    hashes = [prompt_hash(record, source, config) for record, _ in asked]
    prompts = prepare_prompts(policy, texts, videos, max_pixels=config.max_pixels)
    sampling = Sampling(num_generations=1, max_new_tokens=config.max_new_tokens)
    completions = Decoder(policy, mode=config.decode)(prompts, sampling=sampling, greedy=True)
    samples = []
    for row, (record, video) in enumerate(asked):
        indices_1K = np.arange(len(video.pts_seconds_K))[None, :]
        seen_1 = evidence_seen(indices_1K, video.pts_seconds_K, record.evidence_spans_seconds)
        sample = Sample(
            benchmark=benchmark,
            question_id=record.question_id,
            prompt_hash=hashes[row],
            video_id=record.video_id,
            problem_type=record.problem_type,
            kind=record.data_source,
            prompt=texts[row],
            solution=record.solution,
            source_index=tuple(video.source_index_K.tolist()),
            evidence_seen=None if seen_1 is None else bool(seen_1[0]),
            output=completions.texts[row][0],
            num_tokens=int(completions.lengths_RG[row, 0]),
            truncated=bool(completions.truncated_RG[row, 0]),
        )
        samples.append(grade_sample(sample, config.grading))
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
    own = [item for batch in evaluate_policy(policy, records, source, config) for item in batch]
    everyone = [item for part in gather(own) for item in part]
    samples = [item for item in everyone if isinstance(item, Sample)]
    score = score_of(samples)
    return {
        "accuracy": score.accuracy_percent / 100,
        "accuracy_standard_error": score.standard_error / 100,
        "unparsed_fraction": sum(not s.parsed for s in samples) / max(1, len(samples)),
        "truncated_fraction": sum(s.truncated for s in samples) / max(1, len(samples)),
        "num_questions": float(len(samples)),
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
    if config.template not in TEMPLATES:
        raise unknown_name("prompt_template", config.template, TEMPLATES)
    records = _read_records(config)
    source = _open_source(config)
    hashes = {
        (name, r.question_id): prompt_hash(r, source, config)
        for name, rows in records.items()
        for r in rows
    }
    asked = {name: rows[: config.limit] for name, rows in records.items()}
    everything = [record for rows in asked.values() for record in rows]
    if not everything:
        raise ConfigError("no question to evaluate; name a benchmark with --benchmark, or --data")
    if all(source.identity(record) == "absent" for record in everything):
        # The wrong folder, as a rule: no model is loaded for it.
        where = f"the cache {config.cache}" if config.cache else f"{config.data_root}"
        raise MissingInputError(
            f"none of the videos of {len(everything)} questions is in {where} (first: "
            f"'{everything[0].video_id}'); name their folder with "
            f"{'--video-root' if config.data else '--data-root'}"
        )
    unmatched = find_unmatched(everything, config.grading)
    if unmatched is not None:
        say(f"warning: {unmatched.text(f'strive-cli rescore {out} --grading tolerant')}")
    settings = _settings(config, source)
    with open_out(out, settings, overwrite=overwrite) as folder:
        done = folder.current_samples(hashes)
        missing = {
            name: [r for r in rows if (name, r.question_id) not in done]
            for name, rows in asked.items()
        }
        num_missing = sum(map(len, missing.values()))
        started = time.monotonic()
        answered: list[Sample] = []
        failures: list[Failure] = []
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
                for name, rows in missing.items():
                    for batch in evaluate_policy(policy, rows, source, config, name):
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
        return folder.finish(
            [grade_sample(sample, config.grading) for sample in kept],
            failures,
            benchmarks=tuple(records),
            grading=config.grading,
            num_resumed=len(everything) - num_missing,
            seconds=time.monotonic() - started if num_missing else None,
        )


def _read_records(config: EvaluateConfig) -> dict[str, list[Record]]:
    """The questions of each benchmark, or the user's own.

    Raises:
        RecordsError: there are none.
    """
    if config.data:
        records = {OWN: list(read_records(config.data).records)}
    else:
        records = {
            name: read_benchmark(name, config.data_root, config.split) for name in config.benchmarks
        }
    empty = [name for name, rows in records.items() if not rows]
    if empty:
        where = ", ".join(map(str, config.data)) or f"{empty[0]} under {config.data_root}"
        raise RecordsError(f"nothing to ask: no video record in {where}")
    return records


def _warn_if_unread(samples: Sequence[Sample], config: EvaluateConfig, out: Path) -> None:
    """Say when not one of the first answers has the form that its question asks for."""
    if not any(sample.parsed for sample in samples):
        cut = sum(sample.truncated for sample in samples)
        at = f" ({cut} were cut at --max-new-tokens {config.max_new_tokens})" if cut else ""
        say(
            f"warning: none of the first {len(samples)} answers can be read as one{at}: the policy "
            f"may not know the prompt '{config.template}'; name the one that it was trained with, "
            f"--prompt-template (short for the lab's models), or look at {out / 'samples.jsonl'}"
        )


def _open_source(config: EvaluateConfig) -> FrameSource:
    if config.cache is None:
        return FileFrames(config)
    layout = open_cache(config.cache)
    if config.scorer:
        key = find_scorer(layout, config.scorer).frames_key
    else:
        key = default_frames_key(layout)
    return CacheFrames(FrameReader(layout, key), config)


def _with_device(config: EvaluateConfig) -> EvaluateConfig:
    """Settle what `auto` means here: it changes answers, so the settings must say it."""
    if "auto" not in (config.device, config.dtype):
        return config
    from strive.models.loading import pick_device, pick_dtype

    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    return config.model_copy(update={"device": str(device), "dtype": dtype})


def _settings(config: EvaluateConfig, source: FrameSource) -> dict[str, Any]:
    """Everything that changes an answer (not the grading, which is done anew each time)."""
    names = (
        "model", "split", "protocol", "num_frames", "frames_mode", "max_pixels", "max_new_tokens",
        "position_rule", "dtype", "decoder",
    )  # fmt: skip
    frames = source.reader.frames_key if isinstance(source, CacheFrames) else "decoded from files"
    return {
        **{name: getattr(config, name) for name in names},
        "model_digest": model_digest(config.model),
        "prompt_template": config.template,
        "frames": frames,
        "data_root": str(config.data_root),
        "data": [str(path) for path in config.data],
        "decoding": "greedy",
    }
