"""What a start refuses, leaves out and says before weights load."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from strive.cache.failures import FailureRow, commit_failures
from strive.cache.layout import open_cache
from strive.cache.questions import read_questions, write_questions
from strive.errors import CacheError, ConfigError, ModelError
from strive.lab.models import lab_model_path
from strive.models.inputs import long_prompts, prepare_prompts
from strive.models.loading import load_policy, open_model
from strive.records import Record, VideoFrames, write_records
from strive.train.data import TrainingData
from strive.train.plan import dry_run
from strive.train.rewards import REWARDS, reward_columns
from strive.train.start import (
    CONTRAST_REWARDS,
    GRADING_REWARDS,
    INTERVAL_REWARDS,
    comparable,
    comparable_cache,
    preflight,
)


def start(config):
    data = TrainingData(config)
    return data, preflight(config, data)


def edited(cache_root, tmp_path, **changes):
    """The cache's records with some fields changed, by question id, as a file."""
    records = read_questions(open_cache(cache_root))
    path = tmp_path / "edited.jsonl"
    write_records(path, [dataclasses.replace(r, **changes.get(r.question_id, {})) for r in records])
    return path


def test_what_is_in_order_says_how_peaked_the_draws_are(make_config):
    _, lines = start(make_config(frame_temperature=0.05))
    # Scores are spread over [0, 1): the best of three stands out at tau 0.05.
    [line] = lines
    assert line.startswith("importance at frame_temperature 0.05, score_transform none: best frame")
    assert "uniform 0.33 (median of 6 questions)" in line and "--suggest" not in line
    _, [flat] = start(make_config(frame_temperature=50.0))
    assert flat.startswith("warning: importance") and "P 0.34, uniform 0.33: within 10 %" in flat
    assert "--suggest-temperature --num-segments 8" in flat
    assert start(make_config(variants="random"))[1] == []


@pytest.mark.parametrize("surrogate", ["cispo", "sapo"])
def test_a_surrogate_that_one_optimiser_step_makes_grpo_is_said(make_config, surrogate):
    config = make_config(variants="random", surrogate=surrogate)
    said = (
        f"surrogate '{surrogate}' with one optimiser step on a rollout learns as GRPO does, since "
        "the ratio is 1; minibatches_per_rollout above 1 sets them apart"
    )
    assert start(config)[1] == [said]
    assert dry_run(config)["notes"] == [said]
    for key in ("updates_per_rollout", "minibatches_per_rollout"):
        assert start(config.model_copy(update={key: 2}))[1] == []
    assert start(config.model_copy(update={"surrogate": "clip"}))[1] == []


# --- solutions


def test_a_contrast_that_no_reward_reads_is_said(make_config):
    _, lines = start(make_config(contrast="shuffle"))
    [line] = [line for line in lines if "contrast" in line]
    assert line.startswith("warning: contrast=shuffle writes 4 completions a question that no rew")
    for rewards in ({"accuracy": 1.0, "temporal": 0.3}, {"own:reward": 1.0}):
        _, lines = start(make_config(contrast="shuffle", rewards=rewards))
        assert not [line for line in lines if "contrast" in line]


def test_what_is_said_of_rewards_is_said_of_those_that_there_are():
    assert {*GRADING_REWARDS, *INTERVAL_REWARDS, *CONTRAST_REWARDS} <= set(REWARDS)
    record = Record("q", "a.mp4", "Which?", "multiple choice", ("A. x", "B. y"), "A")
    columns = reward_columns(record, [[1], [1]], grading="video_r1", max_new_tokens=8)
    needing = []
    for name, reward in REWARDS.items():
        try:
            reward(prompts=["", ""], completions=["A", "B"], **columns)
        except ValueError:
            needing.append(name)
    assert sorted(needing) == sorted(CONTRAST_REWARDS)


def test_interval_rewards_without_intervals_are_said(make_config):
    _, lines = start(make_config(rewards={"grounding_iou_timed": 1.0, "format": 1.0}))
    [line] = [line for line in lines if "interval" in line]
    assert "no question has one (problem types: multiple choice)" in line


def test_more_steps_are_another_run_where_noise_fades(make_config):
    def settings(steps, **changes):
        return comparable(make_config(steps=steps, **changes))

    assert settings(2) == settings(4)
    assert settings(2, views=["none", "noise"]) != settings(4, views=["none", "noise"])
    constant = {"views": "noise", "noise_schedule": "constant"}
    assert settings(2, **constant) == settings(4, **constant)
    assert settings(2, contrast="noise") != settings(4, contrast="noise")


def test_solutions_that_nothing_can_earn(make_config, cache_root, tmp_path):
    some = edited(cache_root, tmp_path, q0={"solution": "B. blue"}, q3={"solution": "(B)"})
    _, lines = start(make_config(data=(some,)))
    [line] = [line for line in lines if "earned" in line]
    assert line.startswith("warning: 2 of 6 solutions can never be earned under grading")
    assert "question q0: 'B. blue'" in line and "grading=tolerant matches 2" in line
    assert not [x for x in start(make_config(data=(some,), grading="tolerant"))[1] if "earned" in x]

    everything = {f"q{n}": {"solution": "blue"} for n in range(6)}
    every = edited(cache_root, tmp_path, **everything)
    with pytest.raises(ConfigError, match=r"6 of 6 solutions.*q0.*q1.*q2.*'accuracy' out of"):
        start(make_config(data=(every,)))
    with pytest.raises(ConfigError, match="6 of 6 solutions"):
        dry_run(make_config(data=(every,)))
    # Nobody grades: another reward decides.
    start(make_config(data=(every,), rewards={"format": 1.0}))


# --- records that differ from the cache's


def test_given_records_are_what_is_graded(make_config, cache_root, tmp_path):
    file = edited(cache_root, tmp_path, q1={"solution": "A"}, q2={"solution": "A"})
    data, lines = start(make_config(data=(file,)))
    assert {r.question_id: r.solution for r in data.records if r.question_id in ("q1", "q3")} == {
        "q1": "A",
        "q3": "<answer>B</answer>",
    }
    assert lines[0] == (
        "2 records of --data differ from the cache's (solution 2); those of --data are asked and "
        "graded"
    )
    assert data.describe()["num_questions_changed"] == 2


def test_a_changed_text_makes_scores_stale(make_config, cache_root, tmp_path):
    file = edited(cache_root, tmp_path, q1={"problem": "Which colour has it?"})
    with pytest.raises(
        CacheError, match=r"1 of 6 .*no current 'siglip2' scores \(first: 'q1'; 1 of them.*another"
    ):
        start(make_config(data=(file,)))
    data, lines = start(make_config(data=(file,), skip_unscored=True))
    assert len(data.records) == 5 and lines[0] == "left out: 1 no current scores"
    # Nothing reads scores: the new text is asked.
    unscored = make_config(data=(file,), variants="random")
    assert len(start(unscored)[0].records) == 6


def test_a_text_that_changed_in_the_cache_is_as_stale(make_config, new_cache):
    root = new_cache()
    layout = open_cache(root)
    write_questions(
        layout, [dataclasses.replace(read_questions(layout)[0], problem="What colour, now?")]
    )
    with pytest.raises(CacheError, match=r"scores of another text.*question has changed since"):
        start(make_config(cache=root))


# --- prompts


@pytest.mark.parametrize("model", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("rule", ["published", "transformers"])
def test_lengths_are_those_of_the_prompts(model, rule):
    policy = load_policy(lab_model_path(model), position_rule=rule)
    opened = open_model(lab_model_path(model))
    texts = ["What color is the ring?\n\u00e9\u0301 <|im_end|> \u7ea2", "Where?", "x" * 50]
    sizes = [(56, 56), (112, 56), (300, 40)]
    videos = [
        VideoFrames(
            frames_KHWC=np.zeros((5, *size, 3), np.uint8),
            pts_seconds_K=np.linspace(0.0, 7.0, 5),
            source_index_K=np.arange(5),
        )
        for size in sizes
    ]
    longest = []
    for system_prompt in (None, "Answer twice."):
        prompts = prepare_prompts(policy, texts, videos, system_prompt=system_prompt)
        wanted = [len(prompt.input_ids_P) for prompt in prompts]

        def found(limit, system_prompt=system_prompt):
            return long_prompts(
                opened, texts, sizes, limit=limit, num_frames=5, longest_seconds=7.0,
                max_pixels=None, position_rule=rule, system_prompt=system_prompt,
            )  # fmt: skip

        assert found(0) == dict(enumerate(wanted))
        assert found(max(wanted)) == {} and found(max(wanted) - 1)
        longest.append(max(wanted))
    assert longest[1] > longest[0]


def test_counts_of_many_texts_are_kept_for_the_next_start(tmp_path):
    opened = open_model(lab_model_path("qwen2_5_vl"))
    texts = [f"What is {number} of {number}?" for number in range(1200)]
    tokenizer, calls = opened.processor.tokenizer, []

    class Counting:
        """The tokenizer, with a note of how many texts it was given."""

        def __call__(self, texts, **options):
            calls.append(len(texts) if isinstance(texts, list) else 1)
            return tokenizer(texts, **options)

        def __getattr__(self, name):
            return getattr(tokenizer, name)

    opened.processor.tokenizer = Counting()

    def find(texts):
        calls.clear()
        found = long_prompts(
            opened, texts, [(56, 56)] * len(texts), limit=0, num_frames=4, longest_seconds=1.0,
            max_pixels=None, position_rule="published", kept_in=tmp_path / "kept",
        )  # fmt: skip
        return found, sum(calls)

    first, num_first = find(texts)
    again, num_again = find(texts)
    assert again == first and (num_first - num_again) == 1200
    more, num_more = find([*texts, "Another one?"])
    assert more == first | {1200: more[1200]} and num_more == num_again + 1
    [file] = (tmp_path / "kept").iterdir()
    file.write_bytes(b"damaged")
    assert find(texts) == (first, num_first)
    file.parent.chmod(0o500)
    assert find([f"{text}!" for text in texts])[1] == num_first
    file.parent.chmod(0o700)


def test_a_prompt_that_does_not_fit_is_refused_or_left_out(make_config, cache_root, tmp_path):
    long = "What color is the ring? " * 700
    file = edited(cache_root, tmp_path, q4={"problem": long})
    config = make_config(data=(file,), variants="random")
    with pytest.raises(
        ConfigError,
        match=r"prompts of 1 of 6 questions are longer than 4,088 tokens, the 4,096 positions of "
        r"'strive/lab/weights/qwen2_5_vl' less max_new_tokens=8 \(the longest: 'q4' with \d,\d+\)"
        r".*skip_long_prompts=true",
    ):
        start(config)
    data, lines = start(config.model_copy(update={"skip_long_prompts": True}))
    assert len(data.records) == 5 and lines[0] == "left out: 1 too long"
    with pytest.raises(ConfigError, match=r"6 of 6 questions are longer than max_prompt_tokens=20"):
        start(make_config(max_prompt_tokens=20))
    with pytest.raises(ConfigError, match=r"are 0 questions \(6 left out: 6 too long\)"):
        start(make_config(max_prompt_tokens=20, skip_long_prompts=True))
    with pytest.raises(ConfigError, match="max_new_tokens=5000 do not fit into the 4,096"):
        start(make_config(max_new_tokens=5000))


# --- held-out records


def held_out(make_config, path, **changes):
    return make_config(held_out=(path,), evaluate_every=1, **changes)


def test_held_out_records_must_be_in_the_cache(make_config, tmp_path):
    path = tmp_path / "held.jsonl"
    absent = Record("h", "never.mp4", "?", "multiple choice", ("A. x", "B. y"), "A")
    write_records(path, [absent])
    with pytest.raises(CacheError, match=r"1 of 1 held-out questions have no frames.*'never.mp4'"):
        start(held_out(make_config, path))
    with pytest.raises(CacheError, match="held-out questions have no frames"):
        dry_run(held_out(make_config, path))
    path.write_text("")
    with pytest.raises(ConfigError, match=r"held_out names nothing to ask.*evaluate_every=0"):
        start(held_out(make_config, path))
    write_records(path, [dataclasses.replace(absent, video_id="clip0.mp4", solution="(A)")])
    _, lines = start(held_out(make_config, path))
    assert lines[-1].startswith("warning: held out: 1 of 1 solutions")
    assert "trained on" not in lines[-1]
    same = dataclasses.replace(absent, question_id="q0", video_id="clip0.mp4")
    write_records(path, [same])
    _, lines = start(held_out(make_config, path))
    assert lines[-1].startswith("warning: 1 of 1 held-out questions are trained on, too")
    write_records(path, [dataclasses.replace(absent, video_id="clip0.mp4", problem="a " * 9000)])
    with pytest.raises(ConfigError, match=r"held-out questions are longer.*take them out of held"):
        start(held_out(make_config, path, skip_long_prompts=True))


# --- the policy's folder and the notes of videos


def test_quantised_weights_are_refused(make_config, tmp_path):
    folder = tmp_path / "quantised"
    shutil.copytree(lab_model_path("qwen2_5_vl"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"quantised \(awq, quantization_config.*cannot be traine"):
        start(make_config(model=str(folder)))


def test_notes_of_the_runs_videos_are_counted(make_config, new_cache, tmp_path):
    late, gaps = "late_start", "gaps"
    cache = new_cache(notes={"clip0.mp4": (late,), "clip1.mp4": (late, gaps), "clip5.mp4": (gaps,)})
    _, lines = start(make_config(cache=cache))
    assert lines[0] == "notes of their videos: 2 late_start, 2 gaps (docs/files.md)"
    some = tmp_path / "some.jsonl"
    write_records(some, read_questions(open_cache(cache))[1:5])
    _, lines = start(make_config(cache=cache, data=(some,)))
    assert lines[0] == "notes of their videos: 1 late_start, 1 gaps (docs/files.md)"


def test_held_out_records_whose_video_failed_are_left_out_and_counted(
    make_config, new_cache, tmp_path
):
    cache = new_cache()
    layout = open_cache(cache)
    row = FailureRow("bad.mp4", "bad.mp4", "decode", "damaged", "x", 0.1, layout.frames_keys()[0])
    commit_failures(layout, [row], writer="test")
    good = read_questions(layout)[0]
    path = tmp_path / "held.jsonl"
    bad = dataclasses.replace(good, question_id="bad", video_id="bad.mp4")
    write_records(path, [good, bad])
    _, lines = start(held_out(make_config, path, cache=cache))
    assert "held out: 1 left out, their video failed offline" in lines
    write_records(path, [bad])
    with pytest.raises(ConfigError, match=r"nothing to ask.*1 whose video failed offline"):
        start(held_out(make_config, path, cache=cache))


def test_a_resumed_run_is_told_by_what_was_asked_for(make_config, cache_root, tmp_path):
    """Before and after the prompts that are too long are known."""
    file = edited(cache_root, tmp_path, q4={"problem": "What color is the ring? " * 700})
    config = make_config(data=(file,), variants="random", skip_long_prompts=True)
    data = TrainingData(config)
    before = comparable_cache(data)
    preflight(config, data)
    assert data.left_out["too long"] == 1 and comparable_cache(data) == before
