"""A user's own rewards, variants and losses in runs; the examples of docs/own-rewards.md."""

import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from strive.commands.training import print_training
from strive.configs.load import load_config
from strive.configs.schema import TrainConfig
from strive.errors import ConfigError, RewardError
from strive.lab.models import lab_model_path
from strive.progress import make_console
from strive.records import Record
from strive.train.loop import train
from strive.train.plan import dry_run
from strive.train.rewards import REWARDS, load_rewards, reward_columns, try_rewards
from strive.train.run_folder import RunFolder

PAGE = Path(__file__).parents[3] / "docs" / "own-rewards.md"
RECORD = Record("7", "a.mp4", "Which?", "multiple choice", ("A. x", "B. y"), "<answer>B</answer>")
OWN = ("my_rewards:brief", "trl_rewards:has_reason", "trl_rewards:near_length")
CHAT = "chat_rewards:length"


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The page's files in the working directory, which is on no path."""
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_rewards_do_what_they_say(examples):
    functions = load_rewards([*OWN, CHAT])
    texts = ["one two", " ".join(["word"] * 80), "", "Because."]
    columns = {"completion_ids": [[1] * 128, [1] * 64, [1], [1]], "solution": ["B"] * 4}
    values = [
        list(function(prompts=["p"] * 4, completions=texts, **columns))
        for function in functions.values()
    ]
    assert values == [
        [1.0, 0.5, None, 1.0],
        [0.0, 0.0, 0.0, 1.0],
        [0.0, -0.5, -127 / 128, -127 / 128],
        [7.0, 399.0, 0.0, 8.0],
    ]
    try_rewards(functions, TrainConfig(rewards=dict.fromkeys(functions, 1.0)), RECORD)


def test_a_run_with_all_of_them(examples, make_config):
    """From the working directory, named as on the page; their values land where it says."""
    [rewards] = re.findall(r"--set '(rewards=\{.*?\})'", PAGE.read_text())
    [one] = re.findall(r"--set (rewards\.my_rewards:brief=0\.5)", PAGE.read_text())
    weights = load_config(TrainConfig, [], [rewards]).rewards
    assert weights == {"accuracy": 1.0, "my_rewards:brief": 0.5}
    assert load_config(TrainConfig, [], [one]).rewards == {"format": 1.0, **weights}
    # Values as large as a text is long count for nothing here.
    weights |= dict.fromkeys(OWN[1:], 1.0) | {CHAT: 0.0, "format_strict": 1.0}
    config = make_config(
        model=str(lab_model_path("qwen2_5_vl")),
        rewards=weights,
        variants="my_variants:window",
        scorer="siglip2",
        steps=1,
        loggers=(),
    )
    train(config, run_dir=examples / "run")
    [line] = [json.loads(text) for text in (examples / "run" / "metrics.jsonl").open()]
    rows = pl.read_parquet(examples / "run" / "completions.parquet")
    for name in weights:
        known = rows.filter(pl.col(f"reward_{name}").is_not_nan())[f"reward_{name}"]
        assert line[f"reward/{name}"] == pytest.approx(known.mean())
    total = sum(weight * rows[f"reward_{name}"].fill_nan(0.0) for name, weight in weights.items())
    np.testing.assert_allclose(rows["reward"], total)
    frames = np.array(rows["frame_index"].to_list())
    assert (np.diff(frames, axis=1) == 1).all() and len(np.unique(frames[:, 0])) > 1


def test_the_page_lists_what_comes_in():
    columns = set(reward_columns(RECORD, [[1]], grading="video_r1", max_new_tokens=64))
    table = re.search(r"\| name \| each entry \|\n(.*?)\n\n", PAGE.read_text(), re.DOTALL)[1]
    named = {
        name
        for row in table.splitlines()
        for name in re.findall(r"`(\w+)`", row[: row[1:].index("|") + 2])
    }
    assert named == columns | {"prompts", "completions"}
    assert all(f"`{name}`" in PAGE.read_text() for name in REWARDS if name != "accuracy")


calls = []


def fails_in_its_third_call(completions, **columns):
    calls.append(completions)
    if len(calls) == 3:
        raise KeyError("no\nsuch answer")
    return [float(len(text)) for text in completions]


def vowels(completions, **columns):
    return [float(sum(text.count(letter) for letter in "aeiou")) for text in completions]


def has_nothing_to_say(completions, **columns):
    return [None] * len(completions)


def raises(completions, **columns):
    raise OSError("the judge does not answer")


def writes_into_scores(request, rng):
    if request.scores_F is not None:
        assert request.scores_F.min() >= 0 and request.probabilities_F.min() >= 0
        request.scores_F[:] = request.probabilities_F[:] = -1
    return range(request.num_segments)


def raises_on_the_second(request, rng):
    return [0 // (1 - request.variant)] * request.num_segments


def returns_ragged(request, rng):
    return [[1], [1, 2]]


@pytest.fixture
def config(make_config):
    return make_config(
        model=str(lab_model_path("qwen2_5_vl")), steps=2, checkpoint_every=1, loggers=()
    )


def test_what_fails_in_a_run_is_kept_and_the_run_goes_on(config, tmp_path):
    """Called for the trial, then for both questions of a step: the third is step 1's second."""
    calls.clear()
    own = config.model_copy(update={"rewards": {f"{__name__}:fails_in_its_third_call": 1.0}})
    kept = tmp_path / "run" / "failed_reward" / "step-000001" / "rank-0.json"
    with pytest.raises(RewardError) as error:
        train(own, run_dir=tmp_path / "run")
    described = json.loads(kept.read_text())
    said = str(error.value)
    assert "raised KeyError: 'no\\nsuch answer'" in said and "\n" not in said
    assert f"for question '{described['question_id']}'" in said
    assert said.endswith(f"its completions and the trace are in {kept}")
    assert [text for row in described["completions"] for text in row] == calls[2]
    assert "fails_in_its_third_call" in "".join(described["trace"])
    assert described["prompt"].startswith("Which colour?") and described["solution"]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert train(own, run_dir=tmp_path / "run", resume=True).num_steps == 2


def test_a_run_with_an_own_objective_and_surrogate(examples, make_config):
    """Named as on the page; the objective's std divides no advantage."""
    named = re.findall(r"--set ((?:objective|surrogate)=my_loss:\w+)", PAGE.read_text())
    assert load_config(TrainConfig, [], named).surrogate == "my_loss:cispo"
    config = make_config(
        model=str(lab_model_path("qwen2_5_vl")),
        steps=1,
        updates_per_rollout=2,
        loggers=(),
        sampling_temperature=3.0,
        rewards={f"{__name__}:vowels": 1.0},
        **dict(text.split("=") for text in named),
    )
    train(config, run_dir=examples / "run")
    rows = pl.read_parquet(examples / "run" / "completions.parquet")
    centred = pl.col("reward") - pl.col("reward").mean().over("question_id")
    assert (rows.select((centred - pl.col("advantage")).abs().max()).item()) < 1e-9
    assert rows["advantage"].abs().max() > 0


def test_a_run_without_any_reward_ends_well_and_says_so(config, tmp_path, capsys):
    own = config.model_copy(update={"rewards": {f"{__name__}:has_nothing_to_say": 1.0}})
    summary = train(own, run_dir=tmp_path / "run")
    said, *_ = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert said.startswith("warning: no completion over the last 2 steps had a reward")
    assert summary.last_metrics["reward/mean"] is None
    console = make_console()
    print_training(summary, console)
    assert f"reward none ({__name__}:has_nothing_to_say none)" in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rewards": {f"{__name__}:raises": 1.0}}, r"raised OSError: the judge .*tried before"),
        ({"rewards": {"json:dumps": 1.0}}, r"reward 'json:dumps' (cannot be called|raised TypeE)"),
        (
            {"variants": f"{__name__}:raises_on_the_second"},
            r"ZeroDivisionError.*line.*variant 1 of question",
        ),
        ({"variants": f"{__name__}:returns_ragged"}, r"raised ValueError.*variant 0 of question"),
    ],
    ids=["raises", "other", "division", "ragged"],
)
def test_what_cannot_be_used_is_refused_before_a_model_is_loaded(
    config, tmp_path, monkeypatch, capsys, changes, said
):
    monkeypatch.setattr("strive.train.loop.load_policy", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=said) as error:
        train(config.model_copy(update=changes), run_dir=tmp_path / "a" / "run")
    assert "\n" not in str(error.value) and error.value.exit_code == 2
    assert not list(tmp_path.iterdir()) and capsys.readouterr() == ("", "")


def test_the_trial_can_be_left_out(config, tmp_path):
    own = config.model_copy(update={"rewards": {f"{__name__}:raises": 1.0}, "check_rewards": False})
    with pytest.raises(RewardError, match="the judge does not answer"):
        train(own, run_dir=tmp_path / "run")
    assert RunFolder(tmp_path / "run").has_config


def test_a_kind_of_variant_cannot_change_what_the_next_one_sees(config, tmp_path):
    own = config.model_copy(
        update={"variants": f"{__name__}:writes_into_scores", "scorer": "siglip2", "steps": 1}
    )
    train(own, run_dir=tmp_path / "run")


def test_a_dry_run_tries_them_too(config):
    own = config.model_copy(update={"rewards": {f"{__name__}:raises": 1.0}})
    assert dry_run(own)["completions_per_step"] == 16
    with pytest.raises(ConfigError, match=r"the judge does not answer .*tried before"):
        dry_run(own, try_rewards=True)
