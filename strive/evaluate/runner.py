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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from strive.answers import TEMPLATES, build_question, find_unmatched
from strive.choices import (
    DecodeMode,
    EvaluationProtocol,
    FramesMode,
    GradingRules,
    PositionRule,
)
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
from strive.evaluate.frames import CacheFrames, FileFrames, FrameChoice, FrameSource
from strive.evaluate.out_folder import open_out
from strive.evaluate.results import EvaluationResults, Failure, score_of
from strive.evaluate.samples import Sample, grade_sample
from strive.evaluate.versions import model_digest
from strive.progress import say, show_progress
from strive.records import Record, read_records
from strive.variants import evidence_seen

if TYPE_CHECKING:
    from strive.models.inputs import VideoFrames
    from strive.models.loading import Policy

NUM_FIRST_ANSWERS = 50
"""So many answers without one that can be read are a warning; fewer at the end, too."""
PROTOCOL_TEMPLATE = {"video_r1": "video_r1_eval", "direct": "direct"}


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What `strive-cli evaluate` was asked for."""

    model: str
    """Folder or hub id of the policy."""
    data_root: Path
    """Folder of the benchmark's questions and videos; with `data`, of the videos alone."""
    out: Path
    """Folder that `samples.jsonl` and `results.json` go to."""
    benchmarks: tuple[str, ...] = ("lab",)
    data: tuple[Path, ...] = ()
    """Records files of the user's own, asked in the place of benchmarks."""
    split: str = "test"
    protocol: EvaluationProtocol = "video_r1"
    prompt_template: str | None = None
    """Overrides the protocol's template; the lab's policies were taught with `short`."""
    num_frames: int = 32
    frames_mode: FramesMode = "uniform"
    cache: Path | None = None
    """Read frames from this cache's pool; not given: decode the videos."""
    scorer: str | None = None
    """Names the frames of a cache that holds several sets."""
    max_pixels: int | None = 256 * 28 * 28
    """Pixels per frame given to the policy (Video-R1's evaluation: 256 tokens a frame)."""
    max_new_tokens: int = 1024
    batch_size: int = 16
    grading: GradingRules = "video_r1"
    position_rule: PositionRule = "published"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU, float32 on a CPU."""
    device: str = "auto"
    """`auto`: the GPU if there is one."""
    decode: DecodeMode = "auto"
    """Key-value cache: `static` and compiled on a GPU, `dynamic` elsewhere, unless said."""
    decoder: str = "auto"
    decode_timeout_seconds: float = 120.0
    limit: int | None = None
    """First so many questions of each benchmark."""
    overwrite: bool = False

    @property
    def template(self) -> str:
        """Name of the prompt template in `strive.answers`."""
        return self.prompt_template or PROTOCOL_TEMPLATE[self.protocol]

    def check(self) -> None:
        """Refuse values that cannot work, before a model is loaded."""
        if self.protocol not in get_args(EvaluationProtocol):
            raise unknown_name("protocol", self.protocol, get_args(EvaluationProtocol))
        if self.template not in TEMPLATES:
            raise unknown_name("prompt_template", self.template, TEMPLATES)
        FrameChoice(self.num_frames, self.frames_mode)
        for name in ("max_new_tokens", "batch_size", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class AskSettings:
    """How questions are put to a policy; also what the trainer's held-out evaluation uses."""

    template: str = "video_r1_eval"
    max_new_tokens: int = 1024
    max_pixels: int | None = None
    batch_size: int = 16
    grading: GradingRules = "video_r1"
    decode: DecodeMode = "auto"


def prompt_hash(
    record: Record, source: FrameSource, choice: FrameChoice, settings: AskSettings
) -> str:
    """Identify what a question showed and said: text, frames, pixel budget and video."""
    parts = [
        build_question(record, settings.template),
        record.video_id,
        source.identity(record),
        choice.mode,
        choice.num_frames,
        settings.max_pixels,
        record.evidence_spans_seconds if choice.mode == "evidence" else None,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def evaluate_policy(
    policy: Policy,
    records: Sequence[Record],
    source: FrameSource,
    *,
    settings: AskSettings,
    choice: FrameChoice,
    benchmark: str = "held_out",
) -> Iterator[list[Sample | Failure]]:
    """Ask an opened policy, greedily; yields a batch's graded samples and failures at a time.

    Frames of the next batch are read while the policy writes. A video that cannot be read costs
    its own questions only.
    """
    size = settings.batch_size
    batches = [records[start : start + size] for start in range(0, len(records), size)]
    # One reading thread: its decode worker is kept from batch to batch.
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = [reader.submit(_read_batch, source, batch, benchmark) for batch in batches[:1]]
        for number, batch in enumerate(batches):
            loaded = ahead.pop().result()
            if number + 1 < len(batches):
                ahead.append(reader.submit(_read_batch, source, batches[number + 1], benchmark))
            asked = [
                (r, video)
                for r, video in zip(batch, loaded, strict=True)
                if not isinstance(video, Failure)
            ]
            failures = [item for item in loaded if isinstance(item, Failure)]
            hashes = [prompt_hash(record, source, choice, settings) for record, _ in asked]
            samples = _ask(policy, asked, hashes, settings, benchmark) if asked else []
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
    hashes: Sequence[str],
    settings: AskSettings,
    benchmark: str,
) -> list[Sample]:
    from strive.models.generate import generate
    from strive.models.inputs import prepare_prompts
    from strive.models.sampling import Sampling

    texts = [build_question(record, settings.template) for record, _ in asked]
    prompts = prepare_prompts(
        policy, texts, [video for _, video in asked], max_pixels=settings.max_pixels
    )
    completions = generate(
        policy,
        prompts,
        sampling=Sampling(num_generations=1, max_new_tokens=settings.max_new_tokens),
        greedy=True,
        decode_mode=settings.decode,
    )
    samples = []
    for row, (record, video) in enumerate(asked):
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
            evidence_seen=_evidence_seen(record, video),
            output=completions.texts[row][0],
            num_tokens=int(completions.lengths_RG[row, 0]),
            truncated=bool(completions.truncated_RG[row, 0]),
        )
        samples.append(grade_sample(sample, settings.grading))
    return samples


def _evidence_seen(record: Record, video: VideoFrames) -> bool | None:
    indices_1K = np.arange(len(video.pts_seconds_K))[None, :]
    seen_1 = evidence_seen(indices_1K, video.pts_seconds_K, record.evidence_spans_seconds)
    return None if seen_1 is None else bool(seen_1[0])


def held_out_metrics(
    policy: Policy,
    records: Sequence[Record],
    source: FrameSource,
    *,
    settings: AskSettings,
    choice: FrameChoice,
    gather: Callable[[list[Sample | Failure]], list[list[Sample | Failure]]] = lambda own: [own],
) -> dict[str, float]:
    """Evaluate during training: one line of `held_out.jsonl`; shares are in [0, 1].

    Several processes share the work: each brings its own part of the records, and `gather` gives
    everyone's answers to all of them.
    """
    batches = evaluate_policy(policy, records, source, settings=settings, choice=choice)
    own = [item for batch in batches for item in batch]
    everyone = [item for part in gather(own) for item in part]
    samples = [item for item in everyone if isinstance(item, Sample)]
    num_failed = len(everyone) - len(samples)
    score = score_of(samples)
    return {
        "accuracy": score.accuracy_percent / 100,
        "accuracy_standard_error": score.standard_error / 100,
        "unparsed_fraction": sum(not s.parsed for s in samples) / max(1, len(samples)),
        "truncated_fraction": sum(s.truncated for s in samples) / max(1, len(samples)),
        "num_questions": float(len(samples)),
        "num_failed": float(num_failed),
    }


def evaluate(options: EvaluateOptions, *, policy: Policy | None = None) -> EvaluationResults:
    """Evaluate a model on benchmarks and write `samples.jsonl` and `results.json` under `out`.

    The results cover every answer that `out` holds under these settings, so a smaller `limit`
    than before loses none.
    `policy` is `options.model` opened already, for several evaluations of one model.

    Raises:
        ConfigError: `out` holds answers made with other settings.
        RecordsError, MissingInputError: there is nothing to ask.
        TooManyFailuresError: not one question could be asked.
    """
    options = _with_device(options)
    options.check()
    records = _read_records(options)
    choice = FrameChoice(options.num_frames, options.frames_mode)
    source = _open_source(options, choice)
    asking = _ask_settings(options)
    hashes = {
        (name, r.question_id): prompt_hash(r, source, choice, asking)
        for name, rows in records.items()
        for r in rows
    }
    asked = {name: rows[: options.limit] for name, rows in records.items()}
    _require_videos([r for rows in asked.values() for r in rows], source, options)
    _warn_of_solutions([r for rows in asked.values() for r in rows], options)
    settings = _settings(options, source)
    with open_out(options.out, settings, overwrite=options.overwrite) as folder:
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
            policy = policy or _load(options)
            with show_progress("evaluate", num_missing, "questions") as bar:
                for name, rows in missing.items():
                    for batch in evaluate_policy(
                        policy, rows, source, settings=asking, choice=choice, benchmark=name
                    ):
                        samples = [item for item in batch if isinstance(item, Sample)]
                        if samples:
                            folder.append(samples)
                        done.update(((s.benchmark, s.question_id), s) for s in samples)
                        if len(answered) < NUM_FIRST_ANSWERS <= len(answered) + len(samples):
                            _warn_if_unread([*answered, *samples], options)
                        answered.extend(samples)
                        failures.extend(item for item in batch if isinstance(item, Failure))
                        bar.advance(len(batch))
                        bar.note(_note(list(done.values()), failures))
            if 0 < len(answered) < NUM_FIRST_ANSWERS:
                _warn_if_unread(answered, options)
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
            [grade_sample(sample, options.grading) for sample in kept],
            failures,
            benchmarks=tuple(records),
            grading=options.grading,
            num_resumed=sum(map(len, asked.values())) - num_missing,
            seconds=time.monotonic() - started if num_missing else None,
        )


def _read_records(options: EvaluateOptions) -> dict[str, list[Record]]:
    """The questions of each benchmark, or the user's own.

    Raises:
        RecordsError: there are none.
    """
    if options.data:
        records = {OWN: list(read_records(options.data).records)}
    else:
        records = {
            name: read_benchmark(name, options.data_root, options.split)
            for name in options.benchmarks
        }
    empty = [name for name, rows in records.items() if not rows]
    if empty:
        where = ", ".join(map(str, options.data)) or f"{empty[0]} under {options.data_root}"
        raise RecordsError(f"nothing to ask: no video record in {where}")
    return records


def _require_videos(
    records: Sequence[Record], source: FrameSource, options: EvaluateOptions
) -> None:
    """Refuse to load a model for questions of which not one has its video.

    Raises:
        MissingInputError: the wrong folder, as a rule.
    """
    if all(source.identity(record) == "absent" for record in records):
        where = f"the cache {options.cache}" if options.cache else f"{options.data_root}"
        raise MissingInputError(
            f"none of the videos of {len(records)} questions is in {where} (first: "
            f"'{records[0].video_id}'); name their folder with "
            f"{'--video-root' if options.data else '--data-root'}"
        )


def _warn_of_solutions(records: Sequence[Record], options: EvaluateOptions) -> None:
    unmatched = find_unmatched(records, options.grading)
    if unmatched is not None:
        knob = f"strive-cli rescore {options.out} --grading tolerant"
        say(f"warning: {unmatched.text(knob)}")


def _warn_if_unread(samples: Sequence[Sample], options: EvaluateOptions) -> None:
    """Say when not one of the first answers has the form that its question asks for."""
    if not any(sample.parsed for sample in samples):
        cut = sum(sample.truncated for sample in samples)
        at = f" ({cut} were cut at --max-new-tokens {options.max_new_tokens})" if cut else ""
        say(
            f"warning: none of the first {len(samples)} answers can be read as one{at}: the policy "
            f"may not know the prompt '{options.template}'; name the one that it was trained with, "
            "--prompt-template (short for the lab's models), or look at "
            f"{options.out / 'samples.jsonl'}"
        )


def _note(samples: Sequence[Sample], failures: Sequence[Failure]) -> str:
    accuracy = score_of(samples).accuracy_percent if samples else float("nan")
    return f"{accuracy:.1f} %" + (f", {len(failures)} failed" if failures else "")


def _ask_settings(options: EvaluateOptions) -> AskSettings:
    return AskSettings(
        template=options.template,
        max_new_tokens=options.max_new_tokens,
        max_pixels=options.max_pixels,
        batch_size=options.batch_size,
        grading=options.grading,
        decode=options.decode,
    )


def _open_source(options: EvaluateOptions, choice: FrameChoice) -> FrameSource:
    if options.cache is None:
        return FileFrames(
            options.data_root, choice,
            max_pixels=options.max_pixels, decoder=options.decoder,
            timeout_seconds=options.decode_timeout_seconds,
        )  # fmt: skip
    from strive.cache.frames import FrameReader
    from strive.cache.layout import default_frames_key, open_cache
    from strive.cache.scores import find_scorer

    layout = open_cache(options.cache)
    named = options.scorer
    key = find_scorer(layout, named).frames_key if named else default_frames_key(layout)
    return CacheFrames(FrameReader(layout, key), choice)


def _with_device(options: EvaluateOptions) -> EvaluateOptions:
    """Settle what `auto` means here: it changes answers, so the settings must say it."""
    if "auto" not in (options.device, options.dtype):
        return options
    from strive.models.loading import pick_device, pick_dtype

    device = pick_device(options.device)
    dtype: Any = pick_dtype(options.dtype, device)
    return replace(options, device=str(device), dtype=dtype)


def _load(options: EvaluateOptions) -> Policy:
    from strive.models.loading import load_policy

    return load_policy(
        options.model,
        dtype=options.dtype,
        device=options.device,
        position_rule=options.position_rule,
    )


def _settings(options: EvaluateOptions, source: FrameSource) -> dict[str, Any]:
    """Everything that changes an answer (not the grading, which is done anew each time)."""
    names = (
        "model", "split", "protocol", "num_frames", "frames_mode", "max_pixels", "max_new_tokens",
        "position_rule", "dtype", "decoder",
    )  # fmt: skip
    row = {name: value for name, value in asdict(options).items() if name in names}
    frames = source.reader.frames_key if isinstance(source, CacheFrames) else "decoded from files"
    return {
        **row,
        "model_digest": model_digest(options.model),
        "prompt_template": options.template,
        "frames": frames,
        "data_root": str(options.data_root),
        "data": [str(path) for path in options.data],
        "decoding": "greedy",
    }
