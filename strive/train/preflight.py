"""What a start looks at before weights load: whether the run can learn, and what to say of it.

Everything here is known from the configuration, the cache and the policy's small files. What makes
learning impossible is an error, what makes it worse is a line.
"""

from collections.abc import Sequence

from strive.answers import build_question, find_unmatched
from strive.cache.frames import FrameReader
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError
from strive.groups import VariantReader, held_out_records
from strive.models.lengths import long_prompts
from strive.models.loading import OpenedModel, open_model, require_trainable
from strive.records import Record


def preflight(config: TrainConfig, data: VariantReader) -> list[str]:
    """Refuse a run that cannot learn; leave out prompts that are too long; return what to say.

    Every process of a run gets the same result.

    Raises:
        ModelError, MissingInputError: the policy cannot be opened, or its weights not be trained.
        CacheError: held-out records are not in the cache.
        ConfigError: no solution can be earned, prompts are too long, or held-out files are empty.
    """
    opened = open_model(config.model)
    require_trainable(opened)
    lines: list[str] = []
    # Without an accuracy reward nobody grades.
    if config.rewards.get("accuracy"):
        unmatched = find_unmatched(data.records, config.grading)
        if unmatched is not None and unmatched.is_hopeless:
            raise ConfigError(
                f"{unmatched.text()}; a run without them takes 'accuracy' out of rewards"
            )
        if unmatched is not None:
            lines.append(f"warning: {unmatched.text()}")
    too_long = _too_long(config, opened, data.records, data.frames, "questions")
    data.leave_out(frozenset(too_long))
    if config.evaluate_every:
        records, frames, num_failed = held_out_records(config, data.frames)
        if num_failed:
            lines.append(f"held out: {num_failed} left out, their video failed offline")
        _too_long(config, opened, records, frames, "held-out questions", may_skip=False)
        unmatched = find_unmatched(records, config.grading)
        if unmatched is not None:
            lines.append(f"warning: held out: {unmatched.text()}")
        trained = {record.question_id for record in data.records}
        num_trained = sum(record.question_id in trained for record in records)
        if num_trained:
            lines.append(
                f"warning: {num_trained} of {len(records)} held-out questions are trained on, too: "
                "their accuracy says nothing of other questions"
            )
    return [*start_lines(config, data), *lines]


def start_lines(config: TrainConfig, data: VariantReader) -> list[str]:
    """What a start says of its data, a line each; nothing where there is nothing to say."""
    lines = []
    if data.num_left_out:
        lines.append(f"left out: {data.left_out_text()}")
    if data.num_changed:
        fields = ", ".join(f"{name} {count}" for name, count in data.changed_fields.most_common())
        lines.append(
            f"{data.num_changed} records of --data differ from the cache's ({fields}); those of "
            "--data are asked and graded"
        )
    notes = data.notes()
    if notes:
        counted = ", ".join(f"{count} {note}" for note, count in notes.most_common())
        lines.append(f"notes of their videos: {counted} (docs/files.md)")
    peak = data.peak()
    if peak is not None:
        way_out = (
            "; find a temperature with strive-cli inspect-scores --suggest-temperature "
            f"--num-segments {config.num_frames}"
        ) * peak.is_flat
        lines.append(
            "warning: " * peak.is_flat + f"importance at frame_temperature "
            f"{config.frame_temperature:g}, score_transform {config.score_transform}: "
            f"{peak.text} (median of {peak.num_questions} questions){way_out}"
        )
    return lines


def _too_long(
    config: TrainConfig,
    opened: OpenedModel,
    records: Sequence[Record],
    frames: FrameReader,
    what: str,
    *,
    may_skip: bool = True,
) -> list[str]:
    """Return the ids of records whose prompts are too long.

    Raises:
        ConfigError: there are some, and they may not be left out or `skip_long_prompts` is not set.
    """
    context = opened.config.text_config.max_position_embeddings
    limit = config.max_prompt_tokens or context - config.max_new_tokens
    if not 0 < limit <= context - config.max_new_tokens:
        prompt = f"max_prompt_tokens={limit} and " if config.max_prompt_tokens else "a prompt and "
        raise ConfigError(
            f"{prompt}max_new_tokens={config.max_new_tokens} do not fit into the {context:,} "
            f"positions of '{opened.name}'; lower what is too large"
        )
    sizes, longest = frames.sizes([record.video_id for record in records])
    found = long_prompts(
        opened,
        [build_question(record, config.prompt_template) for record in records],
        sizes,
        limit=limit,
        num_frames=config.num_frames,
        longest_seconds=longest,
        max_pixels=config.max_pixels,
        position_rule=config.position_rule,
        kept_in=frames.folder.parents[1] / "prompt-tokens",
    )
    if found and not (may_skip and config.skip_long_prompts):
        place = max(found, key=lambda place: found[place])
        room = (
            f"max_prompt_tokens={limit:,}"
            if config.max_prompt_tokens
            else f"{limit:,} tokens, the {context:,} positions of '{opened.name}' less "
            f"max_new_tokens={config.max_new_tokens}"
        )
        way_out = (
            "shorten them, or add --set skip_long_prompts=true to leave them out"
            if may_skip
            else "shorten them, or take them out of held_out"
        )
        raise ConfigError(
            f"prompts of {len(found)} of {len(records)} {what} are longer than {room} (the "
            f"longest: '{records[place].question_id}' with {found[place]:,}); {way_out}"
        )
    return [records[place].question_id for place in found]
