"""`evaluate`: ask a policy every question of a benchmark, greedily, and report.

Generation and grading are apart: answers are appended as they come and graded from the file. A run
that stopped goes on where it was, if its settings are the same ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from strive.answers import TEMPLATES
from strive.configs.schema import EvaluateConfig
from strive.errors import (
    ConfigError,
    DecodeError,
    MissingInputError,
    OutsideRootError,
    TooManyFailuresError,
    unknown_name,
)
from strive.evaluate.asking import Asking, choose_part, frames_key_of, open_benchmark, specs_of
from strive.evaluate.benchmarks import grader_of
from strive.evaluate.benchmarks.base import PlainRecords
from strive.evaluate.items import Failure, Item
from strive.evaluate.results import (
    EvaluationResults,
    grade_sample,
    model_digest,
    open_out,
    score_of,
    total_of,
)
from strive.evaluate.samples import Sample
from strive.evaluate.shards import join_shards, start_shard
from strive.progress import say, show_progress
from strive.records import VideoFrames
from strive.unmatched import find_unmatched
from strive.variants import evidence_seen

if TYPE_CHECKING:
    from strive.models.family import VisionFeatures
    from strive.models.inputs import PromptInputs
    from strive.models.loading import Policy

NUM_FIRST_ANSWERS = 50
"""So many answers without one that can be read are a warning; fewer at the end, too."""


def evaluate_policy(policy: Policy, asking: Asking) -> Iterator[list[Sample | Failure]]:
    """Ask an opened policy, greedily; yields a batch's graded samples and failures at a time.

    Questions of one video stand together. Frames of the next batch are read while the policy
    writes. A video that cannot be read costs its own questions only.
    """
    size = asking.config.batch_size
    items = asking.items
    batches = [items[start : start + size] for start in range(0, len(items), size)]
    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = [reader.submit(read_batch, asking, batch) for batch in batches[:1]]
        for number, batch in enumerate(batches):
            loaded = ahead.pop().result()
            if number + 1 < len(batches):
                ahead.append(reader.submit(read_batch, asking, batches[number + 1]))
            pairs = zip(batch, loaded, strict=True)
            asked = [(r, video) for r, video in pairs if not isinstance(video, Failure)]
            failures = [item for item in loaded if isinstance(item, Failure)]
            samples = ask_batch(policy, open_batch(policy, asked, asking), asking) if asked else []
            yield [*samples, *failures]


def read_batch(asking: Asking, items: Sequence[Item]) -> list[VideoFrames | Failure]:
    """Read the frames of some questions; a video that cannot be read is a failure of each."""
    asking.source.prepare(items)
    found: list[VideoFrames | Failure] = []
    for item in items:
        try:
            found.append(asking.source.frames(item))
        except (DecodeError, OutsideRootError) as error:
            kind = error.kind if isinstance(error, DecodeError) else "outside_root"
            found.append(Failure.of(item, asking.name, kind, str(error.args[-1])))
    return found


@dataclass(frozen=True)
class OpenedBatch:
    """Some questions with all that a policy reads of them."""

    asked: Sequence[tuple[Item, VideoFrames]]
    prompts: Sequence[PromptInputs]
    features: Sequence[VisionFeatures] | None = None
    """Of a frozen tower, where they were computed before; else the policy encodes the videos."""


def open_batch(
    policy: Policy, asked: Sequence[tuple[Item, VideoFrames]], asking: Asking
) -> OpenedBatch:
    """Turn questions and their frames into model inputs."""
    from strive.models.inputs import prepare_prompts

    texts = [asking.prompt(item) for item, _ in asked]
    videos = [video for _, video in asked]
    config = asking.config
    prompts = prepare_prompts(
        policy, texts, videos, max_pixels=config.max_pixels, system_prompt=config.system_prompt
    )
    return OpenedBatch(asked, prompts)


def ask_batch(policy: Policy, batch: OpenedBatch, asking: Asking) -> list[Sample]:
    """Write one answer to each question, greedily; returns them graded."""
    from strive.models.decoding import Decoder
    from strive.models.sampling import Sampling

    config = asking.config
    hashes = [asking.prompt_hash(item) for item, _ in batch.asked]
    sampling = Sampling(num_generations=1, max_new_tokens=config.max_new_tokens)
    decoder = Decoder(policy, mode=config.decode)
    completions = decoder(batch.prompts, batch.features, sampling=sampling, greedy=True)
    samples = []
    for row, (item, video) in enumerate(batch.asked):
        indices_1K = np.arange(len(video.pts_seconds_K))[None, :]
        seen_1 = evidence_seen(indices_1K, video.pts_seconds_K, item.evidence_spans_seconds)
        sample = Sample(
            benchmark=asking.name,
            question_id=item.question_id,
            prompt_hash=hashes[row],
            video_id=item.video_id,
            problem_type=item.problem_type,
            kind=item.data_source,
            prompt=asking.prompt(item),
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
    askings: Sequence[Asking],
    gather: Callable[[list[Sample | Failure]], list[list[Sample | Failure]]] = lambda own: [own],
) -> dict[str, float]:
    """Evaluate during training: one line of `held_out.jsonl`; shares are in [0, 1].

    `accuracy` is over all questions; a benchmark's headline has its name before it. Several
    processes share the work: each brings its own part of the questions, and `gather` gives
    everyone's answers to all of them.
    """
    own: list[Sample | Failure] = []
    for asking in askings:
        own += asking.failures
        own += [row for batch in evaluate_policy(policy, asking) for row in batch]
    everyone = [row for part in gather(own) for row in part]
    samples = [row for row in everyone if isinstance(row, Sample)]
    score = score_of(everyone)
    metrics = {
        "accuracy": score.accuracy_percent / 100,
        "accuracy_standard_error": score.standard_error / 100,
        "unparsed_fraction": sum(not s.parsed for s in samples) / max(1, len(samples)),
        "truncated_fraction": sum(s.truncated for s in samples) / max(1, len(samples)),
        "num_questions": float(len(everyone)),
        "num_failed": float(len(everyone) - len(samples)),
    }
    for asking in askings:
        if not isinstance(asking.benchmark, PlainRecords):
            rows = [row for row in everyone if row.benchmark == asking.name]
            total = asking.benchmark.totals(asking.grading)[0]
            metrics[f"{asking.name}/{total.name}"] = total_of(total, rows).accuracy_percent / 100
    return metrics


def evaluate(
    config: EvaluateConfig, *, out: Path, overwrite: bool = False, policy: Policy | None = None
) -> EvaluationResults:
    """Evaluate a model on benchmarks and write `samples.jsonl` and `results.json` under `out`.

    The results cover every answer that `out` holds under these settings, so a smaller `limit`
    than before loses none. With `overwrite` what `out` holds is answered again. Of several shards
    each answers into a folder under `out`; the last to end joins them.
    `policy` is `config.model` opened already, for several evaluations of one model.

    Raises:
        UnknownNameError: there is no such benchmark or prompt template.
        ConfigError: `out` holds answers made with other settings.
        RecordsError, MissingInputError: there is nothing to ask.
        TooManyFailuresError: not one question could be asked.
    """
    config = _with_device(_with_shard(config))
    if config.prompt_template not in (None, *TEMPLATES):
        raise unknown_name("prompt_template", str(config.prompt_template), TEMPLATES)
    askings = [open_benchmark(spec, config) for spec in specs_of(config)]
    try:
        _check_questions(askings, config, out)
        if config.shard[1] == 1:
            return _evaluate_part(askings, config, out, overwrite=overwrite, policy=policy)
        part = start_shard(out, config.shard)
        results = _evaluate_part(askings, config, part, overwrite=overwrite, policy=policy)
        questions = {a.name: choose_part(a, whole=True).digest() for a in askings}
        return join_shards(out, config.shard, questions) or results
    finally:
        for asking in askings:
            asking.source.close()


def _check_questions(askings: Sequence[Asking], config: EvaluateConfig, out: Path) -> None:
    """Look at what is asked before a model is loaded for it.

    Raises:
        ConfigError: there is no question.
        MissingInputError: not one video is there.
    """
    items = [item for asking in askings for item in asking.items]
    if not any(asking.num_questions for asking in askings):
        raise ConfigError("no question to evaluate; name a benchmark with --benchmark, or --data")
    if items and all(a.source.identity(item) == "absent" for a in askings for item in a.items):
        # The wrong folder, as a rule.
        first = next(asking for asking in askings if asking.items)
        where = f"the cache {config.cache}" if config.cache else f"{first.config.data_root}"
        raise MissingInputError(
            f"none of the videos of {len(items)} questions is in {where} (first: "
            f"'{items[0].video_id}'); name their folder with "
            f"{'--video-root' if config.data else '--data-root'}"
        )
    for asking in askings:
        rules = asking.grading
        if isinstance(asking.benchmark, PlainRecords) and rules != "direct":
            unmatched = find_unmatched(asking.items, rules)
            if unmatched is not None:
                knob = f"strive-cli rescore {out} --grading tolerant"
                say(f"warning: {unmatched.text(knob)}")


def _evaluate_part(
    askings: Sequence[Asking],
    config: EvaluateConfig,
    out: Path,
    *,
    overwrite: bool,
    policy: Policy | None,
) -> EvaluationResults:
    """Ask what `out` has no answer to, and report everything that it has one to."""
    items = {(a.name, item.question_id): item for a in askings for item in a.items}
    hashes = {(a.name, item.question_id): a.prompt_hash(item) for a in askings for item in a.items}
    absent = {
        (a.name, item.question_id)
        for a in askings
        for item in a.items
        if a.source.identity(item) == "absent"
    }
    asked = [choose_part(asking) for asking in askings]
    num_asked = sum(len(a.items) for a in asked)
    grading = asked[0].grading
    with open_out(out, _settings(config), overwrite=overwrite) as folder:
        done = folder.current_samples(hashes, absent)
        # What a question is graded and reported by may have been corrected since.
        done |= {key: items[key].update(sample) for key, sample in done.items() if key in items}
        missing = [
            replace(a, items=tuple(i for i in a.items if (a.name, i.question_id) not in done))
            for a in asked
        ]
        num_missing = sum(len(a.items) for a in missing)
        started = time.monotonic()
        answered: list[Sample] = []
        failures = [failure for a in asked for failure in a.failures]
        if num_missing:
            if policy is None:
                # The first videos are decoded while the model loads.
                first = next(a for a in missing if a.items)
                first.source.prepare(first.items[: first.config.batch_size])
                policy = _load_policy(config)
            with show_progress("evaluate", num_missing, "questions") as bar:
                for batch in (b for asking in missing for b in evaluate_policy(policy, asking)):
                    samples = [item for item in batch if isinstance(item, Sample)]
                    if samples:
                        folder.append(samples)
                    done.update(((s.benchmark, s.question_id), s) for s in samples)
                    if len(answered) < NUM_FIRST_ANSWERS <= len(answered) + len(samples):
                        _warn_if_unread([*answered, *samples], config, out)
                    answered.extend(samples)
                    failures.extend(item for item in batch if isinstance(item, Failure))
                    bar.advance(len(batch))
                    accuracy = score_of([*done.values(), *failures]).accuracy_percent
                    failed = f", {len(failures)} failed" if failures else ""
                    bar.note(f"{accuracy:.1f} %{failed}")
            if 0 < len(answered) < NUM_FIRST_ANSWERS:
                _warn_if_unread(answered, config, out)
        if failures and not done and config.shard[1] == 1:
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
        benchmarks = {a.name: a.benchmark for a in asked}
        graders = folder.stored_graders()
        for name in sorted({*graders, *(sample.benchmark for sample in kept)} - set(benchmarks)):
            benchmarks[name] = grader_of(graders.get(name, name))
        tried = {(a.name, item.question_id) for a in missing for item in a.items}
        # Rows that cannot be asked are in no call's items, and fail anew in each.
        told = {(failure.benchmark, failure.question_id) for failure in failures}
        known = {asking.name: asking.question_ids for asking in askings}
        failures += folder.other_failures(known, {*tried, *told, *done})
        return folder.finish(
            [grade_sample(sample, benchmarks[sample.benchmark], grading) for sample in kept],
            failures,
            benchmarks=benchmarks,
            grading=grading,
            num_resumed=num_asked - num_missing,
            seconds=time.monotonic() - started if num_missing else None,
        )


def _load_policy(config: EvaluateConfig) -> Policy:
    from strive.models.loading import load_policy

    return load_policy(
        config.model, dtype=config.dtype, device=config.device, position_rule=config.position_rule
    )


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


def _with_shard(config: EvaluateConfig) -> EvaluateConfig:
    """Take the part and the GPU that torchrun or a cluster's launcher gives this process."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "shard" in config.model_fields_set:
        return config
    changes: dict[str, Any] = {"shard": (int(os.environ["RANK"]), count)}
    if config.device == "auto" and "LOCAL_RANK" in os.environ:
        import torch

        if torch.cuda.is_available():
            changes["device"] = f"cuda:{os.environ['LOCAL_RANK']}"
    return config.model_copy(update=changes)


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
        "position_rule", "dtype", "decoder", "system_prompt",
    )  # fmt: skip
    frames = "decoded from files"
    if config.cache is not None:
        frames = frames_key_of(config)
    elif config.frames_cache is not None and config.frame_codec != "raw":
        frames += f", kept as {config.frame_codec}"
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
